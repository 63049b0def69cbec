"""Figure of `why`: one row per question, with the picture and the map of each method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from xattn.figures.canvas import COLOURS, shown_crop, shown_map
from xattn.figures.matrix import ColourBar, Item, Lane, Panel, matrix
from xattn.figures.style import FigureStyle
from xattn.study.schema import StoredMap

if TYPE_CHECKING:
    from xattn.study.expectation import Why


def why_figure(found: Why, style: FigureStyle | None = None) -> list[Figure]:
    """Draws maps of the predicted class, of the expected class, and of the evidence for one against the other.

    Args:
        found: the maps.
        style: style of the figure.
    """
    style = style or FigureStyle()
    *_, contrast = found.maps.values()
    methods = list(contrast)
    items = []
    for question, maps in found.maps.items():
        crop = (maps.images[0].cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
        stored = [StoredMap(maps.raw[method][0].float().cpu().numpy(), {}) for method in methods]
        shown = [Panel(shown_map(crop, raw, method, colours=style.cmap)) for raw, method in zip(stored, methods, strict=True)]
        items.append(Item([Panel(shown_crop(crop)), *shown], {"": question}))
    bar = ColourBar(style.cmap or COLOURS, "0", "1", "mask: each map from its lowest to its highest value")
    with matplotlib.rc_context(style.rc()):
        return matrix([Lane("", "input"), *(Lane("", method) for method in methods)], items, {}, [bar], style)
