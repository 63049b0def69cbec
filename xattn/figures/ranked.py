"""Colour images of a head's first three maps, in red, green and blue."""

from __future__ import annotations

from typing import Literal

import numpy as np

from xattn.figures.canvas import Bytes, grey, sharp
from xattn.figures.matrix import Panel, Swatches
from xattn.figures.run_data import Column, RunData
from xattn.overlays import Floats

Ground = Literal["black", "photograph"]
RANKED = "maps 1 2 3"
DIMMED = 0.6  # factor on the photograph's brightness, so that hues are visible over a bright one
MAP_COLOURS = {"map 1": "#ff0000", "map 2": "#00ff00", "map 3": "#0000ff"}
STRENGTH = {"black": "brighter", "photograph": "less of the photograph"}


def coloured(ranked: Floats) -> Floats:
    """Returns the first three ranked maps as red, green and blue.

    Args:
        ranked: `(N, h, w)`, maps times the norm of the features; a missing map is black.

    Returns:
        `(h, w, 3)` in [0, 1], min-max normalised over the three together: hues can be compared only within an image.

    Source: Gomez et al. 2021, Sec. 4.2.
    """
    three = np.pad(ranked[:3], ((0, max(0, 3 - len(ranked))), (0, 0), (0, 0)))
    low, high = ranked[:3].min(), ranked[:3].max()
    found: Floats = ((three - low) / np.maximum(high - low, np.float32(1e-12))).clip(0, 1).transpose(1, 2, 0)
    return found


def over_photograph(colours: Floats, crop: Bytes) -> Floats:
    """Overlays coloured maps on the photograph in dark grey, which is visible where they are weak.

    Args:
        colours: `(H, W, 3)` in [0, 1], from `coloured`, at the photograph's size.
        crop: uint8 `(C, H, W)`.

    Returns:
        `(H, W, 3)` in [0, 1].
    """
    shown: Floats = colours + np.float32(DIMMED) * (1 - colours.max(axis=2, keepdims=True)) * grey(crop)[..., None]
    return shown


def ranked_panel(shown: RunData, name: str, column: Column, over: Ground = "black") -> Panel:
    """Returns the first three maps of a head for an image, without smoothing; empty if it has none."""
    found, crop = shown.ranked.get((name, *column[:2])), shown.crops[name, column[0], column[1]]
    if found is None:
        return Panel(None)
    colours = sharp(coloured(found.raw), (crop.shape[1], crop.shape[2]))
    return Panel(colours if over == "black" else over_photograph(colours, crop))


def ranked_legend(over: Ground = "black") -> Swatches:
    """Returns the legend: which colour shows which map."""
    about = f"maps of a head, {STRENGTH[over]} where the features are strong; br-npa's by rank"
    return Swatches(about, [(name, rgb(colour)) for name, colour in MAP_COLOURS.items()])


def rgb(colour: str) -> tuple[float, float, float]:
    """Converts a colour `#rrggbb` to numbers in [0, 1]."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue
