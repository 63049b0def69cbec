"""Counters by name, in a separate module, so that a process that only counts does not import torch."""

from __future__ import annotations

from collections import Counter


class EventCounter:
    """How many times each name was counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, name: str) -> int:
        """Increments the count of a name, and returns it."""
        self.counts[name] += 1
        return self.counts[name]
