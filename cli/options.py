"""Options that several commands share."""

from __future__ import annotations

from typing import Any

import click

from xattn.data.urls import is_url, without_file_scheme


class PathOrURL(click.Path):
    """A path, checked as click does, or a URL, which is checked when it is read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_url(value) else super().convert(without_file_scheme(value) if isinstance(value, str) else value, param, ctx)


def numbers(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[float] | None:
    """Numbers, one for each channel, as R,G,B."""
    if value is None:
        return None
    try:
        return [float(number) for number in value.replace(",", " ").split()]
    except ValueError as error:
        raise click.BadParameter(f"numbers are needed, one for each channel, as 0.485,0.456,0.406; got '{value}'.") from error


def shard(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, int]:
    """One of several shares of the work, i/n."""
    place, slash, count = value.partition("/")
    if not slash or not place.isdigit() or not count.isdigit():
        raise click.BadParameter(f"a shard is i/n, as 2/8 for the second of eight; got '{value}'.")
    return int(place), int(count)


def stages(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(filter(None, (part.strip() for part in (value or "").split(","))))
