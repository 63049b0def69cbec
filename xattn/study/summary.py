"""Means over valid rows, accumulated part by part: `table.csv`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import pandas as pd
import pyarrow as pa

from xattn.metrics.base import metrics as registry
from xattn.metrics.targets import PER_LABEL
from xattn.metrics.values import is_value
from xattn.study.schema import COLUMNS

OF_LABELS = ("accuracy", "mean_absolute_error")


class Summary:
    """Means over valid rows, accumulated part by part.

    Args:
        metrics: as named in the rows.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = metrics
        self.harmonic = {metric for metric in metrics if registry.create(metric).instance.aggregation == "harmonic mean"}
        self.sums: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, table: pa.Table) -> None:
        """Adds the rows of a part."""
        for row in table.select(list(COLUMNS)).to_pylist():
            if row["method"] is None:
                continue
            sums = self.sums[row["model"], row["head"], row["method"]]
            if row["metric"] is None:
                _count(sums["n"], 1.0)
                _count(sums["degenerate_share"], float(row["degenerate"]))
                if row["label"] is not None and row["predicted"] is not None and not row["target_rule"].startswith(PER_LABEL):
                    if is_value(row["target"]):
                        _count(sums["mean_absolute_error"], abs(row["predicted"] - row["label"]))
                    else:
                        _count(sums["accuracy"], 100.0 * (row["predicted"] == row["label"]))
            elif row["value"] is not None and math.isfinite(row["value"]):
                _count(sums[row["metric"]], 1 / row["value"] if row["metric"] in self.harmonic else row["value"])

    def frame(self) -> pd.DataFrame:
        """One row per model × head × method: mean of each metric's valid rows, n, degenerate share.

        Where labels are known, also the accuracy, or the mean absolute error of the values of a regression.
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
        return pd.DataFrame(rows, columns=columns)


def _count(sums: list[float], value: float) -> None:
    sums[0] += value
    sums[1] += 1
