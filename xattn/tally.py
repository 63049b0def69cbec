"""A count by name, in a module of its own: a process that only counts has no need of torch."""

from __future__ import annotations

from collections import Counter


class Tally:
    """How many times each name came."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, name: str) -> int:
        """Counts a name once more, and tells how many times it came."""
        self.counts[name] += 1
        return self.counts[name]
