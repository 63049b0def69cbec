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
        about: its description in `run.json`; the last bits of values depend on the number of threads.
        work: does units of a plan, with its execution, into a store, and reports the number of images in each.
    """

    about: dict[str, Any]
    work: Callable[[Plan, Store, Sequence[Unit], Callable[[int], object]], None]


Engine = Callable[[Plan], AbstractContextManager[Running]]
"""A plan → a context in which the engine is ready."""
