"""How often the order of two methods changes when removed pixels are filled in another way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations
from typing import TYPE_CHECKING, Any

from xattn.metrics.base import metrics
from xattn.registry import split_spec

if TYPE_CHECKING:
    import pandas as pd

AXIS = ("fill", "blur")  # settings that say what replaced pixels show


def fill_notes(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """A note for each metric that a table holds under several fills: the share of pairs of methods whose order differs between two fills.

    Args:
        frame: one row per model, head and method, with the mean of each metric.
        names: the metrics, as in the rows.
    """
    notes = []
    for metric, fills in _under_several_fills(names).items():
        flipped, pairs = _flips(frame, list(fills))
        if pairs:
            listed = ", ".join(fills.values())
            among = "the two fills" if len(fills) == 2 else f"two of the {len(fills)} fills, over all pairs of fills"
            notes.append(
                f"{metric} ({listed}): {flipped} of {pairs} pairs of methods ({flipped / pairs:.0%}) change places between {among}."
            )
    return notes


def _under_several_fills(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """By metric without its fill, the specs that differ only in the fill, each with its fill in words."""
    found: dict[str, dict[str, str]] = {}
    for spec in names:
        name, settings = split_spec(spec)
        instance: Any = metrics.create(spec).instance
        if any(each.name == "fill" for each in fields(instance)):
            fill = ",".join(f"{key}={settings.pop(key)}" for key in AXIS if key in settings) or "the default fill"
            rest = ",".join(f"{key}={value}" for key, value in settings.items())
            found.setdefault(f"{name}:{rest}" if rest else name, {})[spec] = fill
    return {metric: fills for metric, fills in found.items() if len(fills) > 1}


def _flips(frame: pd.DataFrame, specs: Sequence[str]) -> tuple[int, int]:
    """Number of pairs of methods of one classifier whose order differs between two metrics, and of all pairs, over all pairs of metrics."""
    flipped = pairs = 0
    for _, group in frame.groupby(["model", "head"], sort=False):
        for one, other in combinations(specs, 2):
            for a, b in combinations(zip(group[one], group[other], strict=True), 2):
                if not any(math.isnan(value) for value in (*a, *b)):
                    pairs += 1
                    flipped += (a[0] - b[0]) * (a[1] - b[1]) < 0
    return flipped, pairs
