"""The library's log messages and warnings, as lines on stderr."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from xattn.text import shown


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Prints text with its control characters as escapes: names of files and classes are shown, not obeyed."""
    click.echo(shown(text), err=err, nl=nl)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # not before a message comes: the command line is to start at once

        tqdm.write(shown(self.format(record)), file=sys.stderr)  # above a progress bar, if one is drawn


@contextmanager
def logged_lines() -> Iterator[None]:
    """Prints xattn's log messages on stderr, one line each."""
    logger, handler = logging.getLogger("xattn"), _Lines()
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


@contextmanager
def warned_lines() -> Iterator[None]:
    """Prints xattn's warnings inside on stderr, one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        say(f"  note: {warning.message}", err=True)
