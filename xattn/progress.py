"""How far a run is."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 10.0


class Progress:
    """A bar with rate and time left where stderr is a terminal; plain lines where it is not."""

    def __init__(self, total: int, wanted: bool) -> None:
        self.bar = tqdm(total=total, unit="image", disable=not (wanted and sys.stderr.isatty()), file=sys.stderr)
        self.lines = wanted and not sys.stderr.isatty()
        self.total, self.before, self.now, self.last_shown = total, 0, 0, 0
        self.start = self.last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.lines and self.now and self.last_shown < self.now:
            self._line()

    def skip(self, count: int) -> None:
        """Images that an earlier run has done."""
        if count and self.lines:
            print(f"{count} of {self.total} images are done already", file=sys.stderr)
        self.before += count
        self.bar.update(count)
        self.bar.start_t = time.time()
        self.bar.initial = self.before

    def add(self, count: int) -> None:
        self.now += count
        self.bar.update(count)
        if self.lines and time.monotonic() - self.last > LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        self.last, self.last_shown = time.monotonic(), self.now
        rate = self.now / max(self.last - self.start, 1e-9)
        left = (self.total - self.before - self.now) / rate
        print(f"{self.before + self.now} of {self.total} images, {rate:.2f} a second, {left:.0f} s left", file=sys.stderr)
