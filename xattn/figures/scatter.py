"""Figure kind: two metrics plotted against each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
from xattn.metrics.statistics import Interval
from xattn.metrics.tables import aggregated

HEIGHT = {1: 60.0, 2: 66.0, 3: 54.0}  # millimetres of a row, by its number of panels
PER_ROW = 3
SAME = {"method": 0.012, "image": 1e-6}  # share of the axes within which two points count as the same place
SIZE = {"method": 3.5, "image": 2.2}  # of a marker, in points
RING = {"method": 4.2, "image": 2.6}  # by how much the ring of each further method at the same place is larger


class Point(NamedTuple):
    """A point of a method: its position, and the intervals of a mean."""

    x: Interval
    y: Interval


def methods_before(points: Sequence[Sequence[tuple[float, float]]], reach: tuple[float, float]) -> list[list[int]]:
    """Counts, for each point of each method, the earlier methods that have a point at the same place.

    Args:
        points: x and y of the points of each method.
        reach: largest distance between two points of one place, along x and along y; positive.

    >>> methods_before([[(0.0, 0.0), (2.0, 2.0)], [(0.0, 0.1)], [(0.0, 0.0), (5.0, 0.0)]], (0.2, 0.2))
    [[0, 0], [1], [2, 0]]
    """
    held: defaultdict[tuple[int, int], set[tuple[int, float, float]]] = defaultdict(set)
    found = []
    for number, own in enumerate(points):
        cells = [(math.floor(x / reach[0]), math.floor(y / reach[1])) for x, y in own]
        counts = []
        for (x, y), (column, row) in zip(own, cells, strict=True):
            around = [held.get((column + i, row + j), set()) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            near = {other for cell in around for other, a, b in cell if abs(a - x) <= reach[0] and abs(b - y) <= reach[1]}
            counts.append(len(near))
        for (x, y), cell in zip(own, cells, strict=True):
            held[cell].add((number, x, y))
        found.append(counts)
    return found


@register("scatter", data="scores")
@dataclass(frozen=True)
class Scatter:
    """Two metrics against each other: the first two, or those of --metric; one point per method, or per image.

    Attributes:
        each: "method", means over images with their 95 % intervals; "image", one point per image and method, with Spearman's correlation.
    """

    each: Literal["method", "image"] = "method"

    def __call__(self, shown: ScoreData, style: FigureStyle) -> list[Figure]:
        """Draws one panel per classifier. If methods have a point at the same place, each further one is a ring around those before it.

        Raises:
            InputError: there are no two metrics.
        """
        if len(shown.metrics) < 2:
            raise InputError(f"a scatter plot needs two metrics, but the rows have {', '.join(shown.metrics)}: give --metric twice.")
        metrics = (shown.metrics[1], shown.metrics[0]) if style.transpose else (shown.metrics[0], shown.metrics[1])
        columns = min(PER_ROW if style.millimetres > 120 else 2, len(shown.classifiers))
        rows = -(-len(shown.classifiers) // columns)
        share: Any = {"each": False, "common": "all"}[style.scale]
        height = HEIGHT[columns] * min(1.0, style.millimetres / columns / HEIGHT[columns])
        figure, axes = panels(rows, columns, style, height, sharex=share, sharey=share)
        style_of = looks(shown.methods, style)
        points = {classifier: self._points(shown, classifier, metrics) for classifier in shown.classifiers}
        everywhere = [point for of_methods in points.values() for several in of_methods.values() for point in several]
        has_rings = False
        for place in range(rows * columns):
            axis = axes[place // columns][place % columns]
            if place >= len(shown.classifiers):
                axis.set_axis_off()
                continue
            classifier = shown.classifiers[place]
            own = [point for several in points[classifier].values() for point in several]
            reach = tuple(SAME[self.each] * span for span in _spans(everywhere if style.scale == "common" else own))
            has_rings |= self._draw(axis, points[classifier], (reach[0], reach[1]), style_of)
            if self.each == "image":
                _write_correlation(axis, own)
            axis.set_title(classifier_name(classifier, shown))
            axis.set_xlabel(metric_name(metrics[0]))
            axis.set_ylabel(metric_name(metrics[1]))
        handles = [
            Line2D([], [], color=look.colour, linestyle="", marker=look.marker, markersize=3.5, label=m) for m, look in style_of.items()
        ]
        drawn = shown.rows[shown.rows["metric"].isin(metrics) & shown.rows["value"].notna()]
        if drawn.empty:
            raise InputError(f"none of these images has a value of {metrics[0]} or {metrics[1]}: name other metrics by --metric.")
        counts = sorted(set(drawn.groupby(["model", "head", "method", "metric"])["image"].nunique()))
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        means = f"mean over images, n = {n}; bars: 95 % interval"
        note = "a point per image; ρ: Spearman's, over all points" if self.each == "image" else means
        legend_below(figure, handles, note + "; a ring: another method at the same place" * has_rings, style)
        return [figure]

    def _points(self, shown: ScoreData, classifier: Classifier, metrics: tuple[str, str]) -> dict[str, list[Point]]:
        """Returns the points of each method that has values of both metrics."""
        tables = [shown.values(classifier, metric) for metric in metrics]
        found = {}
        for method in shown.methods:
            if any(method not in table.columns for table in tables):
                continue
            if self.each == "image":
                pairs = pd.concat([table[method] for table in tables], axis=1, join="inner").dropna().to_numpy().tolist()
                found[method] = [Point(*(Interval(float(value), math.nan, math.nan, 1) for value in pair)) for pair in pairs]
            else:
                about = [registry.create(metric) for metric in metrics]
                ends = [
                    aggregated(table[method].astype("float32").to_list(), of.instance.aggregation, of.metadata.limits)
                    for of, table in zip(about, tables, strict=True)
                ]
                found[method] = [Point(*ends)] if all(math.isfinite(end.mean) for end in ends) else []
        return found

    def _draw(self, axis: Any, points: Mapping[str, Sequence[Point]], reach: tuple[float, float], style_of: Mapping[str, Look]) -> bool:
        """Draws the points of a classifier; returns whether some are rings around others."""
        places = [[(point.x.mean, point.y.mean) for point in several] for several in points.values()]
        before = methods_before(places, reach)
        for (method, several), counts in zip(points.items(), before, strict=True):
            look = style_of[method]
            for point in several if self.each == "method" else ():
                bars = [None if math.isnan(end.low) else [[end.mean - end.low], [end.high - end.mean]] for end in point]
                axis.errorbar([point.x.mean], [point.y.mean], *reversed(bars), fmt="none", ecolor=look.colour, elinewidth=0.6, zorder=3)
            for count in sorted(set(counts)):
                chosen = [(point.x.mean, point.y.mean) for point, own in zip(several, counts, strict=True) if own == count]
                ring = {"markerfacecolor": "none", "markeredgewidth": 0.8} if count else {"markeredgewidth": 0}
                axis.plot(
                    *zip(*chosen, strict=True),
                    linestyle="",
                    color=look.colour,
                    marker=look.marker,
                    markersize=SIZE[self.each] + RING[self.each] * count,
                    alpha=0.7 if self.each == "image" and not count else 1.0,
                    zorder=3,
                    **ring,
                )
        return any(count for counts in before for count in counts)


def _spans(points: Sequence[Point]) -> tuple[float, float]:
    """Returns the extent of some points and their intervals along x and along y; 1 if it is zero."""
    spans = []
    for ends in zip(*points, strict=True) if points else ((), ()):
        values = [value for end in ends for value in (end.mean, end.low, end.high) if math.isfinite(value)]
        spans.append((max(values) - min(values) if values else 0.0) or 1.0)
    return spans[0], spans[1]


def _write_correlation(axis: Any, points: Sequence[Point]) -> None:
    """Writes Spearman's correlation of some points, if there are at least three and both values vary."""
    both = [(point.x.mean, point.y.mean) for point in points]
    if len(both) > 2 and all(len(set(values)) > 1 for values in zip(*both, strict=True)):
        correlation = pd.DataFrame(both).rank().corr().to_numpy()[0, 1]
        axis.text(0.02, 0.99, f"ρ = {correlation:.2f}", transform=axis.transAxes, va="top", fontsize=NOTE)
