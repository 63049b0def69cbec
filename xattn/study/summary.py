"""Means over valid rows, accumulated part by part: `table.csv`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xattn.catalogue import is_control
from xattn.deferred import pandas as pd
from xattn.metrics.base import metrics as registry
from xattn.metrics.target_base import PER_LABEL
from xattn.metrics.values import is_value
from xattn.study.schema import NO_PARTS, NO_REGION

MANY, FEW = 20, 4  # number of labelled images above which an accuracy near chance is informative, in general and if no label is 0
OF_LABELS = ("accuracy", "mean_absolute_error")
OF_MAPS = ("model", "head", "method", "target", "target_rule", "label", "predicted", "degenerate")  # columns of rows without a metric


@dataclass
class LabelCounts:
    """Counts how many labels a classifier predicts.

    Attributes:
        n: number of labelled images.
        right: number of images whose label is predicted.
        before: number of images for which the class before the label is predicted.
        lowest: the lowest label.
        highest: the highest label.
    """

    n: int = 0
    right: int = 0
    before: int = 0
    lowest: float = math.inf
    highest: float = -math.inf

    def add(self, label: float, predicted: float) -> None:
        """Adds an image."""
        self.n += 1
        self.right += label == predicted
        self.before += label - 1 == predicted
        self.lowest, self.highest = min(self.lowest, label), max(self.highest, label)

    def warning(self, classes: int) -> str | None:
        """Returns why the labels seem to be those of other classes; None if they do not.

        Args:
            classes: number of the classifier's classes.
        """
        chance = 1 / classes
        from_one = self.n >= FEW and self.highest > self.lowest >= 1
        if not (from_one or self.n >= MANY) or self.right / self.n > chance + 2 * math.sqrt(chance * (1 - chance) / self.n):
            return None
        about = f"{self.right} of {self.n} labels are predicted, as by chance."
        if from_one:
            return f"{about} No label is 0: if they are counted from 1, subtract 1; {self.before} of {self.n} are predicted then."
        return (
            f"{about} Are they in the order of the network's classes? Names of classes, WordNet ids and --labels-from folders "
            "(labels_from='folders') need no order."
        )


class Summary:
    """Means over valid rows, accumulated part by part.

    Args:
        metrics: names of the metrics as in the rows.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = metrics
        self.harmonic = {metric for metric in metrics if registry.create(metric).instance.aggregation == "harmonic mean"}
        self.label_counts: dict[tuple[str, str], LabelCounts] = defaultdict(LabelCounts)
        self._counted: dict[tuple[str, str], str] = {}  # the method whose rows are counted, so that each image counts once
        self.sums: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, table: pa.Table) -> None:
        """Adds the rows of a part."""
        table = table.filter(pc.is_valid(table["method"]))
        models, heads, methods, metrics, values = (table[name].to_pylist() for name in ("model", "head", "method", "metric", "value"))
        for model, head, method, metric, value in zip(models, heads, methods, metrics, values, strict=True):
            sums = self.sums[model, head, method]
            if metric is not None and value is not None and math.isfinite(value):
                _count(sums[metric], 1 / value if metric in self.harmonic else value)
        for row in table.select(OF_MAPS).filter(pc.is_null(table["metric"])).to_pylist():
            self._add_map(row)

    def _add_map(self, row: Mapping[str, Any]) -> None:
        """Counts the row of a map: facts about the image that do not depend on a metric."""
        sums = self.sums[row["model"], row["head"], row["method"]]
        _count(sums["n"], 1.0)
        _count(sums["degenerate_share"], float(row["degenerate"]))
        if row["label"] is None or row["predicted"] is None or row["target_rule"].startswith(PER_LABEL):
            return
        if is_value(row["target"]):
            _count(sums["mean_absolute_error"], abs(row["predicted"] - row["label"]))
            return
        _count(sums["accuracy"], 100.0 * (row["predicted"] == row["label"]))
        classifier = row["model"], row["head"]
        if self._counted.setdefault(classifier, row["method"]) == row["method"]:
            self.label_counts[classifier].add(row["label"], row["predicted"])

    def frame(self) -> pd.DataFrame:
        """Returns one row per model × head × method: mean of each metric's valid rows, n, degenerate share.

        If labels are known, also the accuracy, or the mean absolute error for a regression.
        """
        rows = []
        of_labels = [name for name in OF_LABELS if any(name in sums for sums in self.sums.values())]
        for (model, head, method), sums in self.sums.items():
            means = {name: total / count for name, (total, count) in sums.items() if count}
            means |= {metric: 1 / means[metric] for metric in self.harmonic if means.get(metric)}
            row: dict[str, object] = {"model": model, "head": head, "method": method}
            row |= {metric: means.get(metric, math.nan) for metric in self.metrics}
            row |= {name: means.get(name, math.nan) for name in of_labels}
            rows.append(row | {"n": int(sums["n"][1]), "degenerate_share": means.get("degenerate_share", 0.0)})
        columns = ["model", "head", "method", *self.metrics, *of_labels, "n", "degenerate_share"]
        return controls_last(pd.DataFrame(rows, columns=columns)).reset_index(drop=True)


class PictureNotes:
    """Notes on a run's pictures for `run.json` and for the end of a run, filled part by part.

    Attributes:
        failed: reason of each failure, by the image's name.
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self._scaled: dict[str, set[str]] = {}
        self._without: dict[str, dict[str, dict[str, None]]] = {"without_region": {}, "without_parts": {}}

    def add(self, table: pa.Table) -> None:
        """Adds the rows of a part."""
        for row in table.select(["image", "error"]).filter(pc.is_valid(table["error"])).to_pylist():
            self.failed.setdefault(row["image"], row["error"])
        for row in table.select(["image", "pixels"]).filter(pc.is_valid(table["pixels"])).to_pylist():
            self._scaled.setdefault(row["pixels"], set()).add(row["image"])
        for found, beginning in zip(self._without.values(), (NO_REGION, NO_PARTS), strict=True):
            for row in table.select(["image", "reason"]).filter(pc.starts_with(table["reason"], beginning)).to_pylist():
                found.setdefault(row["reason"], {})[row["image"]] = None

    def entries(self) -> dict[str, Any]:
        """Returns how many pictures of more than 8 bits were scaled by which rule, and which have no region, or no parts, by reason."""
        found: dict[str, Any] = {"pixels": {rule: len(images) for rule, images in self._scaled.items()}}
        found |= {note: {reason: list(images) for reason, images in of.items()} for note, of in self._without.items()}
        return {note: of for note, of in found.items() if of}


def controls_last(rows: pd.DataFrame) -> pd.DataFrame:
    """Sorts rows classifier by classifier, in their original order; controls come last in each, even if a method was added after them.

    Args:
        rows: with the columns `model`, `head` and `method`.
    """
    classifier = rows.groupby(["model", "head"], sort=False, dropna=False, observed=True).ngroup().to_numpy()
    control = rows["method"].isin([method for method in rows["method"].unique() if isinstance(method, str) and is_control(method)])
    place = 2 * classifier + control.to_numpy()
    if (place[1:] >= place[:-1]).all():
        return rows
    if place.max() < 2**15:
        place = place.astype(np.int16)  # small integers are sorted in a few passes
    ordered: pd.DataFrame = rows.take(np.argsort(place, kind="stable"))
    return ordered


def _count(sums: list[float], value: float) -> None:
    sums[0] += value
    sums[1] += 1
