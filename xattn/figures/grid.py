"""Figure kind: grid of images × methods."""

from __future__ import annotations

from matplotlib.figure import Figure

from xattn.figures.base import register
from xattn.figures.canvas import shown_crop, shown_title
from xattn.figures.columns import INPUT, captions_of, colour_bars, columns_once, group_of, headings_of, limits_of, map_panel
from xattn.figures.matrix import Item, Lane, Panel, matrix
from xattn.figures.run_data import RunData
from xattn.figures.style import FigureStyle


@register("grid")
def grid(shown: RunData, style: FigureStyle) -> list[Figure]:
    """Images × methods, each mask overlaid on the network's input crop."""
    columns = columns_once(shown.columns)
    alone = len({column[:2] for column in columns}) == 1
    crops = {name: next(crop for key, crop in shown.crops.items() if key[0] == name) for name in shown.names}
    lanes = [Lane(group_of(columns[0], alone) if alone else INPUT, shown_title(crops[shown.names[0]]))]
    lanes += [Lane(group_of(column, alone), column[2]) for column in columns]
    limits = limits_of(shown, columns, style)
    items = []
    for name in shown.names:
        panels = [map_panel(shown, name, column, limits.get(column), style) for column in columns]
        items.append(Item([Panel(shown_crop(crops[name])), *panels], captions_of(shown, name, columns, alone)))
    return matrix(lanes, items, headings_of(columns, alone), colour_bars(columns, style), style)
