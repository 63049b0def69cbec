"""Figures of the model randomisation test: similarity against depth, and maps as layers are re-initialised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xattn.figures.canvas import COLOURS, shown_crop, shown_map
from xattn.figures.matrix import ColourBar, Item, Lane, Panel, matrix
from xattn.figures.plots import legend_below, looks, panels
from xattn.figures.style import FigureStyle
from xattn.metrics.statistics import mean_interval
from xattn.study.schema import StoredMap
from xattn.text import counted

if TYPE_CHECKING:
    from xattn.study.randomisation import Randomisation

NAMES = {"spearman": "Spearman's correlation", "pearson": "Pearson's correlation", "ssim": "SSIM of the masks"}
HEIGHT = 44.0  # millimetres of a panel


def similarity_figure(found: Randomisation, style: FigureStyle | None = None) -> Figure:
    """Plots the similarity of each method's maps to those of the trained network against the number of re-initialised layers.

    Means over pictures, with their 95 % intervals; a dotted line shows how similar the maps of two different pictures are.

    Args:
        found: the result of the test.
        style: style of the figure.
    """
    from xattn.study.randomisation import ORDERS, OTHER  # imported only to draw: figures of runs load no torch

    style = style or FigureStyle()
    rows = found.rows
    orders = [order for order in ORDERS if (rows["order"] == order).any()]
    with matplotlib.rc_context(style.rc()):
        figure, axes = panels(len(orders), len(NAMES), style, HEIGHT, sharey="row")
        style_of = looks(list(dict.fromkeys(rows["method"])), style)
        for line, order in zip(axes, orders, strict=True):
            for axis, (metric, name) in zip(line, NAMES.items(), strict=True):
                for method, look in style_of.items():
                    here = rows[(rows["method"] == method) & (rows["metric"] == metric)]
                    _draw(axis, here[here["order"] == order], here[here["order"] == OTHER], look)
                axis.set_title(name if len(orders) == 1 else f"{name}, {order}")
                axis.set_ylim(top=1.02)
            _ticks(line, order, found)
        handles = [Line2D([], [], color=look.colour, linestyle=look.dash, label=method) for method, look in style_of.items()]
        n = rows["image"].nunique()
        note = f"mean over n = {counted(n, 'picture')}, bands: 95 % interval; dotted: the map of another picture by the trained network"
        legend_below(figure, handles, note, style)
    return figure


def _draw(axis: Any, rows: Any, others: Any, look: Any) -> None:
    steps = [mean_interval(values.to_list()) for _, values in rows.groupby("step")["value"]]
    x = range(len(steps) + 1)
    mean, low, high = ([1.0, *(interval[place] for interval in steps)] for place in range(3))
    axis.plot(x, mean, color=look.colour, linestyle=look.dash)
    axis.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0, zorder=1)
    if len(others):
        axis.axhline(others["value"].mean(), color=look.colour, linestyle=":", linewidth=0.6, zorder=0)


def _ticks(line: Any, order: str, found: Randomisation) -> None:
    for axis in line:
        axis.set_xlim(0, len(found.layers))
        axis.set_xlabel("steps drawn anew, from the output" if order == "cascading" else "the step drawn anew, from the output")
    line[0].set_ylabel("similarity to the trained map")


def maps_figure(found: Randomisation, style: FigureStyle | None = None) -> list[Figure]:
    """Draws the maps by layer: one row per picture and method, one column for each of some steps.

    Args:
        found: the result of the test.
        style: style of the figure.
    """
    from xattn.models.randomised import JOIN
    from xattn.study.randomisation import ORDERS

    style = style or FigureStyle()
    order = next(order for order in ORDERS if any(key[0] == order for key in found.shown))
    steps = sorted({step for kind, step, _ in found.shown if kind == order})
    methods = list(dict.fromkeys(method for kind, _, method in found.shown if kind == order))
    to = "to " if order == "cascading" else ""
    reached = [found.layers[step - 1].partition(JOIN)[0] if step else "" for step in steps]
    lanes = [Lane("", "input"), *(Lane("", f"{to}{layer}" if layer else "trained") for layer in reached)]
    crops = (found.images.numpy() * 255).round().clip(0, 255).astype(np.uint8)
    items = []
    for number, crop in enumerate(crops):
        for method in methods:
            maps = [StoredMap(found.shown[order, step, method][number].float().cpu().numpy(), {}) for step in steps]
            shown = [Panel(shown_map(crop, stored, method, colours=style.cmap)) for stored in maps]
            items.append(Item([Panel(shown_crop(crop)), *shown], {"": method}))
    bar = ColourBar(style.cmap or COLOURS, "0", "1", "mask: each map from its lowest to its highest value")
    with matplotlib.rc_context(style.rc()):
        return matrix(lanes, items, {}, [bar], style)
