"""Figure kind: insertion and deletion curves."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xattn.errors import InputError
from xattn.figures.base import register
from xattn.figures.plots import classifier_name, legend_below, looks, panels
from xattn.figures.score_data import Classifier, Curves, ScoreData
from xattn.figures.style import FigureStyle
from xattn.metrics.base import CurveMetric
from xattn.metrics.base import metrics as registry
from xattn.metrics.statistics import mean_interval
from xattn.overlays import Floats

HEIGHT = {True: 46.0, False: 38.0}  # millimetres of a panel, for the width of a page and of a column
BAND, FAINTEST = 0.45, 0.05  # total opacity of the bands in a panel, and minimum for each


@register("curves", source="Petsiuk et al. 2018, Fig. 2", data="scores")
def curves(shown: ScoreData, style: FigureStyle) -> list[Figure]:
    """Insertion and deletion: the target's probability as pixels change, mean over images with its 95 % interval (Student's t).

    Raises:
        InputError: the runs hold no curves.
    """
    found = shown.curves()
    if not found:
        raise InputError("these runs have no curves: run with --metric insertion or deletion, and choose one of these.")
    metrics = list(dict.fromkeys(series[3] for series in found))
    classifiers = [key for key in shown.classifiers if any(series[:2] == key for series in found)]
    style_of = looks([method for method in shown.methods if any(series[2] == method for series in found)], style)
    rows, columns = (len(metrics), len(classifiers)) if style.transpose else (len(classifiers), len(metrics))
    share: Any = {"each": False, "common": "all"}[style.scale]
    figure, axes = panels(rows, columns, style, HEIGHT[style.millimetres > 120], sharey=share)
    axes = axes.T if style.transpose else axes
    counts = set()
    for across, classifier in enumerate(classifiers):
        for down, metric in enumerate(metrics):
            axis = axes[across][down]
            here = {series[2]: curve for series, curve in found.items() if series[:2] == classifier and series[3] == metric}
            for method, look in style_of.items():
                if method in here:
                    _draw(axis, here[method], look.colour, look.dash, min(0.15, max(FAINTEST, BAND / len(here))))
                    counts.add(len(here[method].p))
            _label(axis, classifier, metric, shown, is_first=(across if style.transpose else down) == 0)
    handles = [Line2D([], [], color=look.colour, linestyle=look.dash, label=method) for method, look in style_of.items()]
    n = str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    legend_below(figure, handles, f"mean over images, n = {n}; bands: 95 % interval", style)
    return [figure]


def _draw(axis: Any, curve: Curves, colour: Any, dash: Any, opacity: float) -> None:
    mean, low, high = band(curve.p)
    shares = (100 * curve.shares).tolist()
    axis.plot(shares, mean.tolist(), color=colour, linestyle=dash)
    axis.fill_between(shares, low.tolist(), high.tolist(), color=colour, alpha=opacity, linewidth=0, zorder=1)


def band(p: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns mean over images and ends of its 95 % interval at each step: `(n, S)` → three of `(S,)`; NaN ends for a single image."""
    steps = [mean_interval(step, (0, 1)) for step in p.T.tolist()]
    mean, low, high, _ = zip(*steps, strict=True)
    return np.array(mean, dtype=np.float32), np.array(low, dtype=np.float32), np.array(high, dtype=np.float32)


def _label(axis: Any, classifier: Classifier, metric: str, shown: ScoreData, *, is_first: bool) -> None:
    axis.set_xlim(0, 100)
    axis.set_ylim(bottom=0)
    instance: Any = registry.create(metric).instance
    inserts = isinstance(instance, CurveMetric) and instance.curve.insertion
    axis.set_xlabel(f"pixels {'inserted' if inserts else 'deleted'} (%)")
    if is_first:
        axis.set_ylabel("target's probability")
    axis.set_title(" · ".join(filter(None, [classifier_name(classifier, shown), metric])))
