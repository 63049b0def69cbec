"""Hides torch's messages during the export of networks."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_one_at_a_time = threading.Lock()


class _OfOtherThreads(io.TextIOBase):
    """A stream that drops what this thread writes."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.own = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.own else int(self.stream.write(text))

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return bool(self.stream.isatty())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides torch's warnings and its stderr output for a network that it cannot export: the error contains the reason."""
    about = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    with _one_at_a_time, warnings.catch_warnings(), contextlib.redirect_stderr(_OfOtherThreads(sys.stderr)):
        warnings.simplefilter("ignore")
        before = about.level
        about.setLevel(logging.ERROR)
        try:
            yield
        finally:
            about.setLevel(before)
