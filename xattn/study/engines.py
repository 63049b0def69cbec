"""What does the work of a study: this process, or the actors of a Ray cluster (`ray`).

A unit of work is a batch. Its part is a function of the study alone and is written whole or not at all, so that any engine may do it,
twice does no harm, and what one engine left another may go on with.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from xattn.errors import InputError, MissingPackageError, NameUnknownError
from xattn.study.work import Work

if TYPE_CHECKING:
    from xattn.study.study import Study


@dataclass(frozen=True)
class Unit:
    """One batch for the classifiers that take the same crops.

    Attributes:
        group: which of `Study.groups`.
        number: of the batch in the source.
    """

    group: int
    number: int

    @property
    def name(self) -> str:
        """What its part is called."""
        return f"{self.group:02d}-{self.number:06d}"


@dataclass(frozen=True)
class Engine:
    """An engine that is ready.

    Attributes:
        used: what `run.json` tells of it; values depend on the number of threads in their last bits.
        work: does units, and tells how many images each was.
    """

    used: dict[str, Any]
    work: Callable[[Sequence[Unit], Callable[[int], object]], None]


Opened = Callable[["Study"], contextlib.AbstractContextManager[Engine]]


def named(name: str, actors: int | None) -> Opened:
    """The engine of a name.

    Raises:
        NameUnknownError: there is none.
        MissingPackageError: Ray is not installed.
        InputError: actors without Ray, or fewer than one.
    """
    if name not in ("local", "ray"):
        raise NameUnknownError("engine", name, ("local", "ray"))
    if actors is not None and (name != "ray" or actors < 1):
        raise InputError(f"actors are the processes of engine 'ray', one or more; got {actors} for engine '{name}'.")
    if name == "local":
        return in_process
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError("ray", "ray", "engine 'ray'")
    from xattn.study.ray import on_cluster

    return on_cluster


@contextlib.contextmanager
def in_process(study: Study) -> Iterator[Engine]:
    """This process, with processes that decode ahead of it."""
    yield Engine({"engine": "local", "threads": torch.get_num_threads()}, partial(_work, study))


def _work(study: Study, units: Sequence[Unit], tell: Callable[[int], object]) -> None:
    work = Work(study)
    for group, (preprocessing, _) in enumerate(study.groups()):
        wanted = [unit.number for unit in units if unit.group == group]
        for batch in study.source.batches(preprocessing, study.batch_size, workers=study.workers, wanted=wanted):
            study.store.write_part(Unit(group, batch.number).name, work.rows(group, batch))
            tell(len(batch.images) + len(batch.failed))
