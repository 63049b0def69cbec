"""Images × methods."""

from __future__ import annotations

from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from xattn.explainers.base import is_signed
from xattn.figures.base import register
from xattn.figures.canvas import (
    CELL_INCHES,
    COLOURS,
    SIGNED_COLOURS,
    broken,
    called,
    caption,
    note_below,
    show,
    shown_crop,
    shown_map,
    shown_title,
)
from xattn.figures.run_data import RunData


@register("grid")
def grid(shown: RunData) -> Figure:
    """Images × methods, each mask laid over the crop that the network saw."""
    names, columns, maps = shown.names, shown.columns, shown.maps
    captions = {name: caption(name, columns, maps, shown.labels) for name in names}
    lines = max(text.count("\n") for text in captions.values()) + 1.5
    figure = Figure(
        figsize=(CELL_INCHES * (len(columns) + 1) + 0.4, (CELL_INCHES + 0.13 * lines) * len(names) + 0.2),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.0),
    )
    axes = figure.subplots(len(names), len(columns) + 1, squeeze=False)
    for row, name in enumerate(names):
        first = next(key for key in maps if key[0] == name)
        input_crop = shown.crops[name, first[1], first[2]]
        show(axes[row][0], shown_crop(input_crop))
        if row == 0:
            axes[0][0].set_title(shown_title(input_crop), fontsize=7)
        axes[row][0].set_xlabel(captions[name], fontsize=6, labelpad=2)
        for place, (model, head, method) in enumerate(columns, start=1):
            axis = axes[row][place]
            found = maps.get((name, model, head, method))
            if found is None:
                axis.set_axis_off()
                continue
            crop = shown.crops[name, model, head]
            show(axis, shown_map(crop, found, method))
            axis.set_xlabel(note_below(found, method), fontsize=6, labelpad=2)
            if row == 0:
                axis.set_title("\n".join([*called(model, head, columns), broken(method)]), fontsize=7)
    signed = [is_signed(method) for _, _, method in columns]
    if not all(signed):
        _colour_bar(figure, axes, ScalarMappable(cmap=COLOURS), "mask, 0 to 1 within each map")
    if any(signed):
        _colour_bar(figure, axes, ScalarMappable(Normalize(-1, 1), SIGNED_COLOURS), "signed map, over its largest magnitude")
    return figure


def _colour_bar(figure: Figure, axes: Any, colours: ScalarMappable, label: str) -> None:
    bar = figure.colorbar(colours, ax=axes, fraction=0.012, pad=0.01, aspect=40)
    bar.set_label(label, fontsize=6)
    bar.ax.tick_params(labelsize=6)
