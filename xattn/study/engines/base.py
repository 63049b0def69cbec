"""The interface of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from xattn.study.plan import Plan, Unit
from xattn.study.store import Store


@dataclass(frozen=True)
class Running:
    """An engine that is ready.

    Attributes:
        about: description of the engine for `run.json`; the last bits of values depend on the number of threads.
        work: computes units of a plan, with its execution settings, into a store, and yields the number of images in each.
    """

    about: dict[str, Any]
    work: Callable[[Plan, Store, Sequence[Unit], Callable[[int], object]], None]


Engine = Callable[[Plan], AbstractContextManager[Running]]
"""A function from a plan to a context in which the engine is ready."""
