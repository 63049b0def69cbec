"""Options that several commands share."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from xattn.data.urls import is_url, without_file_scheme
from xattn.registry import LARGEST_INTEGER, coerce

MOST_SHARDS = 1_000_000


class _Whole(click.IntRange):
    """An integer that a machine can count to."""

    def _describe_range(self) -> str:
        return ""  # the help of an option says what it takes


Integer = _Whole(-LARGEST_INTEGER, LARGEST_INTEGER)


class Number(click.FloatRange):
    """A finite number within bounds."""

    name = "number"

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number.", param, ctx)
        return found


class Grouped(click.Command):
    """A command whose help lists its options by group, those that most runs need first.

    Args:
        groups: names of options by group, in the order in which they are shown; those that no group names come last.
    """

    def __init__(self, *args: Any, groups: dict[str, tuple[str, ...]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, group by group."""
        params = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        left = {str(param.name).removeprefix("_click_default_"): param.get_help_record(ctx) for param in params}
        for group, names in self.groups.items():
            records = [record for name in names if (record := left.pop(name, None)) is not None]
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)
        if rest := [record for record in left.values() if record is not None]:
            with formatter.section("Other options"):
                formatter.write_dl(rest)


class LocalPath(click.Path):
    """A path, checked as click does, which takes no null byte."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "\0" in value:
            self.fail("a path must not contain null bytes.", param, ctx)
        return super().convert(value, param, ctx)


class PathOrURL(LocalPath):
    """A path, or a URL, which is checked when it is read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_url(value) else super().convert(without_file_scheme(value) if isinstance(value, str) else value, param, ctx)


def numbers(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[float] | None:
    """Numbers, one for each channel, as R,G,B."""
    if value is None:
        return None
    try:
        return [coerce(number, float) for number in value.replace(",", " ").split()]
    except ValueError as error:
        raise click.BadParameter(f"give one number per channel, such as 0.485,0.456,0.406; got '{value}'.") from error


def sides(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | tuple[int, int] | None:
    """A side in pixels, or height and width."""
    if value is None:
        return None
    try:
        found = [coerce(side, int) for side in value.split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, 2) or min(found) < 1:
        raise click.BadParameter(f"give a side of at least 1 pixel, or height and width such as 256,128; got '{value[:80]}'.")
    return found[0] if len(found) == 1 else (found[0], found[1])


def values_by_name(_ctx: click.Context, _param: click.Parameter, value: Sequence[str]) -> dict[str, float]:
    """Numbers by name, each NAME=VALUE; a name may hold `=` itself, as settings of a metric do."""
    found = {}
    for given in value:
        name, equals, number = given.rpartition("=")
        try:
            found[name] = coerce(number, float)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise click.BadParameter(f"give a metric and a number, such as average-drop=2; got '{given[:80]}'.")
    return found


def shard(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, int]:
    """One of several shares of the work, i/n."""
    place, slash, count = value.partition("/")
    try:
        found = coerce(place, int), coerce(count, int)
    except ValueError:
        found = (0, 0)
    if not slash or not 1 <= found[0] <= found[1] <= MOST_SHARDS:
        raise click.BadParameter(
            f"a shard is i/n, such as 2/8 for the second of eight, with n at most {MOST_SHARDS:,}; got '{value[:80]}'."
        )
    return found


def devices_of(_ctx: click.Context, _param: click.Parameter, value: str) -> int | str:
    """Devices as Lightning takes them: a number, -1 or auto for all, or their indices."""
    if value == "auto" or re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})+,?|[0-9]{1,4},", value):
        return value
    if not re.fullmatch(r"-1|[1-9][0-9]{0,3}", value):
        raise click.BadParameter(f"give a number of devices of at least 1, -1 or auto for all, or indices such as 0,1; got '{value[:80]}'.")
    return int(value)


def stages(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(filter(None, (part.strip() for part in (value or "").split(","))))


def classes_or_texts(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """What folder names mean, or a text file with the texts of the classes."""
    if value not in ("folders", "wnid") and ("\0" in value or not os.path.isfile(value)):
        raise click.BadParameter(f"give 'folders', 'wnid' or a text file with the text of one class per line; got '{value}'.")
    return value


TEXTS = "Text file with the text of one class per line, for open_clip:, CLIP and SigLIP"
_MODEL = (
    click.option(
        "--template", "templates", multiple=True, help="Template of the texts of classes, such as 'a photo of a {}.'. Repeatable."
    ),
    click.option("--labels", type=LocalPath(exists=True, dir_okay=False), help="Text file with one class name of the network per line."),
    click.option(
        "--output",
        metavar="NAME|INDEX",
        help="Which of a network's several outputs is the logits. Default: the one that the others lead to.",
    ),
    click.option("--input-size", metavar="SIDE|H,W", callback=sides, help="Side of the crop, or height and width."),
    click.option("--resize", metavar="SIDE|H,W", callback=sides, help="Shorter side before the crop, or height and width."),
    click.option("--mean", callback=numbers, help="Mean of the normalisation in [0, 1]: R,G,B, one for each channel, or one for all."),
    click.option("--std", callback=numbers, help="Standard deviation of the normalisation in [0, 1], likewise."),
    click.option(
        "--trust-code",
        is_flag=True,
        help="Import and run the code that a saved .safetensors names as the source of its network, or that a hub model comes with.",
    ),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options by which every command that loads a network describes it."""
    for option in reversed(_MODEL):
        command = option(command)
    return command
