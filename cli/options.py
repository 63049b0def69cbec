"""What several commands read alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from xattn.urls import is_url, without_file_scheme


class PathOrURL(click.Path):
    """A path, looked at as click does, or a URL, which is looked at when it is read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_url(value) else super().convert(without_file_scheme(value) if isinstance(value, str) else value, param, ctx)


def triple(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[float] | None:
    """Three numbers, R,G,B."""
    if value is None:
        return None
    try:
        return [float(number) for number in value.replace(",", " ").split()]
    except ValueError as error:
        raise click.BadParameter(f"three numbers are needed, as 0.485,0.456,0.406; got '{value}'.") from error


def shard(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, int]:
    """One of several parts of the work, i/n."""
    place, slash, count = value.partition("/")
    if not slash or not place.isdigit() or not count.isdigit():
        raise click.BadParameter(f"a shard is i/n, as 2/8 for the second of eight; got '{value}'.")
    return int(place), int(count)


def stages(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(filter(None, (part.strip() for part in (value or "").split(","))))


@contextmanager
def in_plain_lines() -> Iterator[None]:
    """What xattn warns of inside, as a line each on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        click.echo(f"  note: {warning.message}", err=True)
