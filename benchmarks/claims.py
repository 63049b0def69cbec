"""Pages of results: a table, and a line a claim with its verdict, both from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from xattn.metrics.statistics import Interval, mean_interval

Line = dict[str, str]


def cell(values: Tensor, digits: int = 2) -> str:
    """A mean over images with its interval."""
    return shown(mean_interval(values), digits)


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """A mean over seeds with its interval."""
    return shown(mean_interval(torch.tensor(values, dtype=torch.float64)), digits)


def shown(interval: Interval, digits: int = 2) -> str:
    """An interval as mean ± half its width."""
    if math.isnan(interval.mean):
        return "–"
    half = "" if math.isnan(interval.low) else f" ± {interval.high - interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f}{half}"


def claim(text: str, difference: Interval, way: int, digits: int = 2, margin: float = 0.0) -> str:
    """A claim of a paper and whether the interval of a difference bears it out.

    Args:
        text: the claim.
        difference: of the two means that it compares.
        way: sign that the claim gives the difference; 0: that there is none beyond the margin.
        digits: after the point.
        margin: how large a difference counts as none.
    """
    return f"{text}: **{verdict(difference, way, margin)}**{_numbers(difference, digits)}"


def question(text: str, difference: Interval, digits: int = 2) -> str:
    """A question of our own, with its question mark, whether a difference is above 0; and its answer."""
    answers = {"reproduced": "yes", "not reproduced: it is the other way round": "no, the other way round"}
    found = "no difference at all" if difference.low == difference.high == 0 else verdict(difference, 1)
    return f"{text} **{answers.get(found, found)}**{_numbers(difference, digits)}"


def verdict(difference: Interval, way: int, margin: float = 0.0) -> str:
    """Reproduced, not reproduced, or not decided: an interval that holds 0 shows neither a difference nor, unless it is narrow, none."""
    if math.isnan(difference.low):
        return "not testable here"
    apart = 0 if difference.low <= 0 <= difference.high else (1 if difference.mean > 0 else -1)
    if way == 0 and -margin < difference.low and difference.high < margin:
        return f"reproduced, within {margin:g}"
    if way == 0 and apart != 0:
        return "not reproduced: they differ"
    if apart == 0 or way == 0:
        return "not decided: the interval holds 0"
    return "reproduced" if apart == way else "not reproduced: it is the other way round"


def _numbers(difference: Interval, digits: int) -> str:
    if math.isnan(difference.low):
        return f" (n = {difference.n})"
    return f" ({difference.mean:+.{digits}f}, 95 % [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}], n = {difference.n})"


def page(title: str, about: Sequence[str], table: pd.DataFrame, lines: Sequence[str]) -> str:
    """One page of Markdown."""
    parts = [f"# {title}", *about, table.to_markdown(index=False, disable_numparse=True)]
    if lines:
        parts.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts) + "\n"
