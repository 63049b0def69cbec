"""Notes below a comparison table: how its numbers are computed, over which images, and what they do not decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xattn.deferred import numpy as np
from xattn.metrics.base import metrics
from xattn.metrics.fill_order import fill_notes
from xattn.metrics.sheets import BETTER, SIGNIFICANT, WORSE
from xattn.metrics.statistics import EXACT_TO, MOST_NEEDED, POWER, rounded
from xattn.metrics.target_base import PER_LABEL
from xattn.metrics.wide import EXPLAINED, KEYS, groups, numbered
from xattn.text import counted

if TYPE_CHECKING:
    import pandas as pd

FEW = 30  # a note warns about fewer images
MOST_SAID = 4  # most undecided comparisons to name
SEEDS = (
    "Rows with several seeds are means over networks trained with them and over the images that all of them have. Their intervals are over "
    "both, as crossed random effects (t, Howe's combination; of proportions at least Wilson's): two seeds that disagree say little."
)


def table_notes(rows: pd.DataFrame, frame: pd.DataFrame, names: Sequence[str], against: str | None, left_out: int) -> tuple[str, ...]:
    """The notes of a comparison.

    Args:
        rows: the tidy rows of the comparison.
        frame: rows of the table, with the means of each metric and the accuracy.
        names: the metrics, as in the rows.
        against: the reference, or None.
        left_out: number of degenerate maps that are only in the last column.
    """
    rules = sorted(map(str, rows["target_rule"].dropna().unique()))
    of = {metric: metrics.create(metric) for metric in names}
    proportions = [of[metric].metadata.symbol for metric in names if of[metric].instance.aggregation == "proportion"]
    proportions += ["accuracy"] * ("accuracy" in frame)
    wilson = f"; of {' and '.join(dict.fromkeys(proportions))} Wilson's" if proportions else ""
    notes = [f"Mean over images [95 % confidence interval: Student's, clipped to the metric's range{wilson}]; n images."]
    if "seeds" in frame and (frame["seeds"] > 1).any():
        notes.append(SEEDS)
        if (frame["seeds"] == 1).any():
            notes.append(
                "Rows of 1 seed are of that network alone: their intervals and accuracy are over images, and know no spread of seeds."
            )
    if (frame["n"] < FEW).any():
        notes.append(f"n is below {FEW}: intervals and tests of so few images are rough.")
    notes.append(f"Target: {', '.join(rules)}." + _counted(rules))
    if "mean_absolute_error" in frame:
        notes.append("MAE: mean absolute error, of the value that is explained against the label.")
    if "predicted" in rules and len(numbered(rows, ["network", "head"]).values) > 1:
        notes.append("Each classifier is explained for its own prediction: rows of different classifiers answer different questions.")
    if left_out:
        notes.append(f"Left out of every column but the last: {counted(left_out, 'degenerate map')}.")
    images = numbered(rows, ["image"]).place
    if len({np.unique(images[where]).tobytes() for _, where in groups(rows, KEYS)}) > 1:
        notes.append("Rows are over different images: their means are not over the same ones.")
    if "seeds" in frame:
        rows = rows.drop_duplicates(["metric", *KEYS, *EXPLAINED])
    sizes: dict[str, int] = {}
    for (metric, *_), where in groups(rows, ["metric", *KEYS]):
        sizes[metric] = max(sizes.get(metric, 0), len(where))
    fewer = {metric: sizes[metric] for metric in names if metric in sizes and sizes[metric] < int(frame["n"].max())}
    notes += [f"{metric}: over {counted(count, 'image')} at most." for metric, count in fewer.items()]
    notes += [
        f"{metric}: the harmonic mean over images, as released (the inverse of the mean of inverses)."
        for metric in names
        if of[metric].instance.aggregation == "harmonic mean"
    ]
    undefined = rows[rows["value"].isna()].groupby("metric", sort=False, observed=True).size()
    notes += [f"{metric}: undefined for {counted(count, 'map')}, left out of the mean." for metric, count in undefined.items()]
    if against is not None:
        reference = against if against in set(frame["method"]) else f"the same method of {against}"
        seeds_tested = ", of several seeds the t-test over seeds and pictures" if SEEDS in notes else ""
        notes.append(
            f"{BETTER} better, {WORSE} worse than {reference} on the same images (Wilcoxon signed-rank, exact up to {EXACT_TO} "
            f"differences{seeds_tested}, p < {SIGNIFICANT}, Benjamini–Hochberg within a metric)."
        )
        notes += _undecided(frame, names, of)
    notes += fill_notes(frame, names)
    for metric in names:
        about = of[metric].metadata
        notes.append(f"{about.symbol}: {metric}{', in %' if about.unit == '%' else ''}.")
    return tuple(notes)


def _counted(rules: Sequence[str]) -> str:
    """What n counts, if it does not count images."""
    if PER_LABEL[2] in rules:
        return " n counts both pictures of each pair."
    return " n counts pairs of image and label." if any(rule.startswith(PER_LABEL) for rule in rules) else ""


def _undecided(frame: pd.DataFrame, names: Sequence[str], of: Mapping[str, Any]) -> list[str]:
    """Number of images that would decide the comparisons that these images do not decide."""
    classifiers = len(frame.drop_duplicates(["model", "head"])) > 1
    found = []
    for metric in names:
        for line in frame.to_dict("records"):
            if line[f"{metric} p"] >= SIGNIFICANT and line["n"] < line[f"{metric} needed"] < MOST_NEEDED:
                row = f"{line['model']} · {line['head']} · {line['method']}" if classifiers else line["method"]
                count = line[f"{metric} needed"]
                found.append((count, f"{of[metric].metadata.symbol} of {row} about {rounded(count):,}"))
    said = [text for _, text in sorted(found)]
    if not said:
        return []
    more = f"; and {len(said) - MOST_SAID} more comparisons, in the columns 'needed' of CSV" if len(said) > MOST_SAID else ""
    start = f"Not decided by these images; of differences as large, a t-test of one alone would find {POWER:.0%} with so many: "
    return [f"{start}{', '.join(said[:MOST_SAID])}{more}."]
