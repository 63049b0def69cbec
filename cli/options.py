"""What several commands read alike."""

from __future__ import annotations

import click


def triple(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[float] | None:
    """Three numbers, R,G,B."""
    if value is None:
        return None
    try:
        return [float(number) for number in value.replace(",", " ").split()]
    except ValueError as error:
        raise click.BadParameter(f"three numbers are needed, as 0.485,0.456,0.406; got '{value}'.") from error


def stages(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(filter(None, (part.strip() for part in (value or "").split(","))))
