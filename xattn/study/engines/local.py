"""The local engine: computes a plan in this process; other processes decode images ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from xattn.data.batches import Batch
from xattn.data.workers import each_batch
from xattn.study.engines.base import Running
from xattn.study.executor import Executor
from xattn.study.plan import Plan, Unit
from xattn.study.store import Store


@contextmanager
def in_process(plan: Plan) -> Iterator[Running]:
    """Makes this process an engine."""
    yield Running({"engine": "local", "threads": torch.get_num_threads()}, _work)


def _work(plan: Plan, store: Store, units: Sequence[Unit], report: Callable[[int], object]) -> None:
    executor = Executor(plan, store)
    for group, (preprocessing, _) in enumerate(plan.groups()):

        def do(batch: Batch, group: int = group) -> None:
            unit = Unit(group, batch.number)
            store.write_part(unit.name, executor.part(unit, batch))
            report(len(batch.images) + len(batch.failed))

        wanted = [unit.number for unit in units if unit.group == group]
        each_batch(plan.source, preprocessing, plan.batch_size, wanted, plan.workers, do)
