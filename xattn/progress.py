"""The progress of a run: a bar where stderr is a terminal, else lines by `logging`. Nothing else in the library writes to the terminal."""

from __future__ import annotations

import logging
import sys
import time

LINE_EVERY_S = 10.0

logger = logging.getLogger("xattn")


class Progress:
    """Shows how many images of a run are done, with the rate and the time left.

    Args:
        total: images in all.
        shown: whether to show it.
        delay: seconds before anything is shown.
    """

    def __init__(self, total: int, shown: bool, delay: float = 0.0) -> None:
        from tqdm import tqdm  # imported only to count, so that reading runs starts quickly

        self.bar = tqdm(total=total, unit="image", disable=not (shown and sys.stderr.isatty()), file=sys.stderr, delay=delay)
        self.delay = delay
        self.lines = shown and not sys.stderr.isatty()
        self.total, self.before, self.now, self.last_shown = total, 0, 0, 0
        self.start = self.last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.lines and self.now and self.last_shown < self.now and time.monotonic() - self.start >= self.delay:
            self._line()

    def skip(self, count: int) -> None:
        """Counts images that an earlier run has done."""
        if count and self.lines:
            logger.info("done already: %d of %d images", count, self.total)
        self.before += count
        self.bar.update(count)
        self.bar.start_t = time.time()
        self.bar.initial = self.before

    def add(self, count: int) -> None:
        """Counts images that are done."""
        self.now += count
        self.bar.update(count)
        if self.lines and time.monotonic() - self.last > LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        self.last, self.last_shown = time.monotonic(), self.now
        rate = self.now / max(self.last - self.start, 1e-9)
        left = (self.total - self.before - self.now) / rate
        logger.info("%d of %d images, %.2f per second, %.0f s left", self.before + self.now, self.total, rate, left)
