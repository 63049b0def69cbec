"""Cache of the most recently used values."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """A cache of the most recently used values, by key. Threads that request the same key at the same time wait for the first of them.

    Args:
        most: how many values are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._turns: dict[Hashable, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        """Returns the value of a key; None if it is not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def keep(self, key: Hashable, value: T) -> None:
        """Caches a value, and evicts the least recently used one if necessary."""
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.most:
                self._values.popitem(last=False)

    def get_or_make(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the value of a key, or makes it. If `make` raises, nothing is cached, and threads that waited try it themselves."""
        with self._lock:
            turn, waiting = self._turns.get(key, (threading.Lock(), 0))
            self._turns[key] = (turn, waiting + 1)
        try:
            with turn:
                if (found := self.get(key)) is None:
                    self.keep(key, found := make())
                return found
        finally:
            with self._lock:
                turn, waiting = self._turns[key]
                if waiting == 1:
                    del self._turns[key]
                else:
                    self._turns[key] = (turn, waiting - 1)
