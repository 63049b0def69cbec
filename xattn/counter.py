"""Counts by name, in a module of its own: a process that only counts need not load torch."""

from __future__ import annotations

from collections import Counter


class EventCounter:
    """How many times each name was counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, name: str) -> int:
        """Counts a name once more, and gives its count."""
        self.counts[name] += 1
        return self.counts[name]
