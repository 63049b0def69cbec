"""Two metrics against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xattn.deferred import pandas as pd
from xattn.errors import InputError
from xattn.figures.base import register
from xattn.figures.plots import Look, classifier_name, legend_below, looks, metric_name, panels
from xattn.figures.score_data import Classifier, ScoreData
from xattn.figures.sheet import NOTE
from xattn.figures.style import FigureStyle
from xattn.metrics.base import metrics as registry
from xattn.metrics.tables import aggregated

HEIGHT = {1: 60.0, 2: 66.0, 3: 54.0}  # millimetres of a row, by its panels
PER_ROW = 3


@register("scatter", data="scores")
@dataclass(frozen=True)
class Scatter:
    """Two metrics against each other: the first two, or those of --metric; a point per method, or per image.

    Attributes:
        each: "method", means over images with their 95 % intervals; "image", a point per image and method, with Spearman's correlation.
    """

    each: Literal["method", "image"] = "method"

    def __call__(self, shown: ScoreData, style: FigureStyle) -> list[Figure]:
        """One panel per classifier.

        Raises:
            InputError: there are no two metrics.
        """
        if len(shown.metrics) < 2:
            raise InputError(f"a scatter needs two metrics, and the rows hold {', '.join(shown.metrics)}: give --metric twice.")
        metrics = (shown.metrics[1], shown.metrics[0]) if style.transpose else (shown.metrics[0], shown.metrics[1])
        columns = min(PER_ROW if style.millimetres > 120 else 2, len(shown.classifiers))
        rows = -(-len(shown.classifiers) // columns)
        share: Any = {"each": False, "common": "all"}[style.scale]
        height = HEIGHT[columns] * min(1.0, style.millimetres / columns / HEIGHT[columns])
        figure, axes = panels(rows, columns, style, height, sharex=share, sharey=share)
        style_of = looks(shown.methods, style)
        for place in range(rows * columns):
            axis = axes[place // columns][place % columns]
            if place >= len(shown.classifiers):
                axis.set_axis_off()
                continue
            (self._images if self.each == "image" else self._methods)(axis, shown, shown.classifiers[place], metrics, style_of)
            axis.set_xlabel(metric_name(metrics[0]))
            axis.set_ylabel(metric_name(metrics[1]))
        handles = [
            Line2D([], [], color=look.colour, linestyle="", marker=look.marker, markersize=3.5, label=m) for m, look in style_of.items()
        ]
        drawn = shown.rows[shown.rows["metric"].isin(metrics) & shown.rows["value"].notna()]
        counts = sorted(set(drawn.groupby(["model", "head", "method", "metric"])["image"].nunique()))
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        means = f"mean over n = {n} images, bars: 95 % interval"
        note = "a point per image; ρ: Spearman's, over all points" if self.each == "image" else means
        legend_below(figure, handles, note, style)
        return [figure]

    def _methods(self, axis: Any, shown: ScoreData, classifier: Classifier, metrics: tuple[str, str], style_of: dict[str, Look]) -> None:
        tables = [shown.values(classifier, metric) for metric in metrics]
        for method, look in style_of.items():
            if any(method not in table.columns for table in tables):
                continue
            ends = []
            for metric, table in zip(metrics, tables, strict=True):
                about = registry.create(metric)
                ends.append(aggregated(table[method].astype("float32").to_list(), about.instance.aggregation, about.metadata.limits))
            x, y = ends
            bars = [None if math.isnan(end.low) else [[end.mean - end.low], [end.high - end.mean]] for end in (x, y)]
            axis.errorbar(
                [x.mean],
                [y.mean],
                xerr=bars[0],
                yerr=bars[1],
                color=look.colour,
                marker=look.marker,
                markersize=3.5,
                elinewidth=0.6,
                zorder=3,
            )
        axis.set_title(classifier_name(classifier, shown))

    def _images(self, axis: Any, shown: ScoreData, classifier: Classifier, metrics: tuple[str, str], style_of: dict[str, Look]) -> None:
        tables = [shown.values(classifier, metric) for metric in metrics]
        both: list[tuple[float, float]] = []
        for method, look in style_of.items():
            if any(method not in table.columns for table in tables):
                continue
            pairs = pd.concat([table[method] for table in tables], axis=1, join="inner").dropna().to_numpy().tolist()
            if not pairs:
                continue
            axis.plot(
                *zip(*pairs, strict=True), linestyle="", marker=look.marker, markersize=2.2, color=look.colour, alpha=0.7, markeredgewidth=0
            )
            both += [(float(x), float(y)) for x, y in pairs]
        varies = len(both) > 2 and all(len(set(values)) > 1 for values in zip(*both, strict=True))
        if varies:
            correlation = pd.DataFrame(both).rank().corr().to_numpy()[0, 1]
            axis.text(0.02, 0.99, f"ρ = {correlation:.2f}", transform=axis.transAxes, va="top", fontsize=NOTE)
        axis.set_title(classifier_name(classifier, shown))
