"""Ranked maps of heads in colour, beside other maps and, on SketchBirds, beside the true parts; no cell is smoothed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xattn.birds.drawing import visible_parts
from xattn.birds.scene import PARTS, Scene, scene_of
from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError
from xattn.figures.base import register
from xattn.figures.canvas import Bytes, enlarged, grey, is_control, shown_crop, shown_title
from xattn.figures.columns import CONTROLS, INPUT, captions_of, colour_bars, columns_once, headings_of, limits_of, map_panel
from xattn.figures.matrix import Item, Lane, Legend, Panel, Swatches, matrix
from xattn.figures.run_data import Column, RunData
from xattn.figures.style import FigureStyle
from xattn.overlays import Floats

RANKED = "maps 1 2 3"
MAP_COLOURS = {"map 1": "#ff0000", "map 2": "#00ff00", "map 3": "#0000ff"}
PART_COLOURS = {"crest": "#e08214", "beak": "#f4e04d", "wing": "#35a7a0", "tail": "#9c6b3c", "legs": "#b07ad0"}  # none of the maps' hues


def coloured(ranked: Floats) -> Floats:
    """The first three ranked maps as red, green and blue.

    Args:
        ranked: `(N, h, w)`, maps times the norm of the features; a missing map is black.

    Returns:
        `(h, w, 3)` in [0, 1], min-maxed over the three together: hues compare within an image only.

    Source: Gomez et al. 2021, Sec. 4.2.
    """
    three = np.pad(ranked[:3], ((0, max(0, 3 - len(ranked))), (0, 0), (0, 0)))
    low, high = ranked[:3].min(), ranked[:3].max()
    found: Floats = ((three - low) / np.maximum(high - low, np.float32(1e-12))).clip(0, 1).transpose(1, 2, 0)
    return found


def true_parts(crop: Bytes, visible: NDArray[np.bool_]) -> Floats:
    """The parts `(5, H, W)` in colours over the grey crop `(C, H, W)`: `(H, W, 3)`."""
    shown = (0.35 + 0.5 * grey(crop))[..., None].repeat(3, axis=2)
    for part, mask in zip(PARTS, visible, strict=True):
        shown[mask] = _rgb(PART_COLOURS[part])
    return shown


def seen_parts(scene: Scene, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Masks of a scene's visible parts after a classifier's resize and crop: `(5, H, W)` bool."""
    crops = [preprocessing.cropped(picture.convert("RGB")) for picture in visible_parts(scene)]
    return np.stack([np.asarray(crop)[..., 0] > 127 for crop in crops])


@register("parts", source="Gomez et al. 2021, Figs. 1, 3 and 5")
def parts(shown: RunData, style: FigureStyle) -> list[Figure]:
    """The maps of br-npa and b-cnn in red, green and blue, beside the maps of the methods, without smoothing.

    For exported SketchBirds pictures, the true parts are shown beside the maps.

    Raises:
        InputError: none of the runs has a head with several maps.
    """
    if not shown.ranked:
        raise InputError("none of these runs has a head with several maps: run br-npa or b-cnn, or draw --kind grid.")
    several_maps = {key[1:] for key in shown.ranked}
    columns: list[Column] = []
    for column in columns_once(shown.columns):
        first = column[:2] not in {other[:2] for other in columns}
        columns += [(*column[:2], RANKED)] * (first and column[:2] in several_maps and not is_control(column[2]))
        columns.append(column)
    scenes = {name: None if path is None else scene_of(path) for name, path in shown.paths.items()}
    has_truth = any(scene is not None for scene in scenes.values())
    crops = {name: next(crop for key, crop in shown.crops.items() if key[0] == name) for name in shown.names}
    lanes = [Lane(INPUT, shown_title(crops[shown.names[0]])), *[Lane(INPUT, "true parts")] * has_truth]
    lanes += [Lane(CONTROLS if is_control(method) else f"{model}\n{head}", method) for model, head, method in columns]
    limits = limits_of(shown, columns, style)
    items = []
    for name in shown.names:
        panels = [Panel(shown_crop(crops[name])), *[_true_panel(shown, name, scenes[name])] * has_truth]
        for column in columns:
            is_ranked = column[2] == RANKED
            panels.append(
                _ranked_panel(shown, name, column) if is_ranked else map_panel(shown, name, column, limits.get(column), style, smooth=False)
            )
        items.append(Item(panels, captions_of(shown, name, columns, alone=False)))
    legends: list[Legend] = [Swatches("true parts", [(part, _rgb(colour)) for part, colour in PART_COLOURS.items()])] * has_truth
    maps = "maps of a head, brighter where the features are strong; br-npa's by rank"
    legends.append(Swatches(maps, [(name, _rgb(colour)) for name, colour in MAP_COLOURS.items()]))
    others = [column for column in columns if column[2] != RANKED]
    return matrix(lanes, items, headings_of(others, alone=False), [*legends, *colour_bars(others, style)], style)


def _true_panel(shown: RunData, name: str, scene: Scene | None) -> Panel:
    key = next(key for key in shown.crops if key[0] == name)
    return Panel(None if scene is None else true_parts(shown.crops[key], seen_parts(scene, shown.preprocessing[key[1:]])))


def _ranked_panel(shown: RunData, name: str, column: Column) -> Panel:
    found, crop = shown.ranked.get((name, *column[:2])), shown.crops[name, column[0], column[1]]
    if found is None:
        return Panel(None)
    size = (crop.shape[1], crop.shape[2])
    channels = [enlarged(channel, size, "nearest") for channel in coloured(found.raw).transpose(2, 0, 1)]
    return Panel(np.stack(channels, axis=2))


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue
