"""What an engine is."""

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
        about: what `run.json` says of it; values depend on the number of threads in their last bits.
        work: does units of a plan, with its execution, into a store, and reports how many images each was.
    """

    about: dict[str, Any]
    work: Callable[[Plan, Store, Sequence[Unit], Callable[[int], object]], None]


Engine = Callable[[Plan], AbstractContextManager[Running]]
"""A plan → the engine, ready inside the context."""
