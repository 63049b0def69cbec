"""Common elements of score figures: panels, colours of methods, names of metrics and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from xattn.catalogue import is_control
from xattn.figures.canvas import called
from xattn.figures.score_data import Classifier, ScoreData
from xattn.figures.sheet import TEXT, PaperFigure, text_height, text_width
from xattn.figures.style import MM, FigureStyle
from xattn.metrics.base import metrics

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b4f1d", "#000000")
"""Colours that the colour-blind can distinguish. Source: Okabe and Ito 2008; its yellow, too pale for lines on white, is a brown here."""
GREY = "#888888"
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X"
ARROWS = {"lower": "↓", "higher": "↑"}
HANDLE = 11.0  # millimetres of a legend's line and the space around a name


class Look(NamedTuple):
    """Colour, line and marker of a method."""

    colour: Any
    dash: Any
    marker: Any


def looks(methods: Sequence[str], style: FigureStyle) -> dict[str, Look]:
    """Returns the style of each method: neighbours differ in dashes, so that both are visible where they coincide; controls are grey."""
    own = [method for method in methods if not is_control(method)]
    controls = [method for method in methods if is_control(method)]
    found = {}
    for place, method in enumerate(own):
        if style.cmap is None:
            colour: Any = PALETTE[place % len(PALETTE)]
        else:
            colour = colormaps[style.cmap]((place + 0.5) / len(own))
        found[method] = Look(colour, DASHES[(place + place // len(PALETTE)) % len(DASHES)], MARKERS[place % len(MARKERS)])
    for place, method in enumerate(controls):
        found[method] = Look(GREY, DASHES[1 + place % (len(DASHES) - 1)], MARKERS[-1 - place % len(MARKERS)])
    return found


def metric_name(metric: str) -> str:
    """Returns a metric's name as in the rows, with an arrow in its better direction, and its unit.

    >>> metric_name("average-drop"), metric_name("sparsity")
    ('average-drop ↓ (%)', 'sparsity ↑')
    """
    about = metrics.create(metric).metadata
    return f"{metric} {ARROWS[about.better]}{' (%)' if about.unit == '%' else ''}"


def is_better_higher(metric: str) -> bool:
    """Checks whether a higher value of a metric is better."""
    return metrics.create(metric).metadata.better == "higher"


def classifier_name(classifier: Classifier, shown: ScoreData) -> str:
    """Returns what distinguishes a classifier from the others; empty for a single one."""
    return called(*classifier, shown.classifiers)


def panels(rows: int, columns: int, style: FigureStyle, height: float, **shared: Any) -> tuple[Figure, Any]:
    """Makes a figure of the style's width with axes in rows and columns.

    Args:
        rows: number of rows of axes.
        columns: number of columns of axes.
        style: style of the figure.
        height: height of a row in millimetres.
        shared: `sharex` and `sharey`, as in matplotlib.
    """
    size = (style.millimetres / MM, (rows * height + 6.0 * bool(style.title)) / MM)
    figure = PaperFigure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02))
    if style.title:
        figure.suptitle(style.title, weight="bold")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def legend_below(figure: Figure, handles: Sequence[Any], note: str, style: FigureStyle) -> None:
    """Adds a legend below the axes, in as many columns as fit, with a note under its names; the figure grows to hold it."""
    widest = max(text_width(handle.get_label(), TEXT) for handle in handles) + HANDLE
    rows = -(-len(handles) // max(1, min(len(handles), int((style.millimetres - 2) / widest))))
    columns = -(-len(handles) // rows)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + (text_height(rows + 1, TEXT) + 0.6 * rows + 3.0) / MM)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, title=note, columnspacing=1.2, handlelength=1.8)
