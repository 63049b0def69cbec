"""Figure kind: ranked maps of heads in colour, next to other maps and, for SketchBirds, the true parts; cells are not smoothed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xattn.birds.drawing import visible_parts
from xattn.birds.scene import PARTS, Scene, scene_of
from xattn.catalogue import is_control
from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError
from xattn.figures.base import register
from xattn.figures.canvas import Bytes, grey, shown_crop, shown_title
from xattn.figures.columns import CONTROLS, INPUT, captions_of, colour_bars, columns_once, headings_of, limits_of, map_panel
from xattn.figures.matrix import Item, Lane, Legend, Panel, Swatches, matrix
from xattn.figures.ranked import RANKED, Ground, ranked_legend, ranked_panel, rgb
from xattn.figures.run_data import Column, RunData
from xattn.figures.style import FigureStyle
from xattn.overlays import Floats

PART_COLOURS = {"crest": "#e08214", "beak": "#f4e04d", "wing": "#35a7a0", "tail": "#9c6b3c", "legs": "#b07ad0"}  # none of the maps' hues


def true_parts(crop: Bytes, visible: NDArray[np.bool_]) -> Floats:
    """Overlays the parts `(5, H, W)` in colours on the grey crop `(C, H, W)`: `(H, W, 3)`."""
    shown = (0.35 + 0.5 * grey(crop))[..., None].repeat(3, axis=2)
    for part, mask in zip(PARTS, visible, strict=True):
        shown[mask] = rgb(PART_COLOURS[part])
    return shown


def seen_parts(scene: Scene, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Returns masks of a scene's visible parts after a classifier's resize and crop: `(5, H, W)` bool."""
    crops = [preprocessing.cropped(picture.convert("RGB")) for picture in visible_parts(scene)]
    return np.stack([np.asarray(crop)[..., 0] > 127 for crop in crops])


@register("parts", source="Gomez et al. 2021, Figs. 1, 3 and 5")
@dataclass(frozen=True)
class Parts:
    """The maps of br-npa and b-cnn in red, green and blue, next to the maps of the methods, without smoothing.

    For exported SketchBirds pictures, the true parts are shown next to the maps.

    Attributes:
        over: background of the maps, "black", as in the paper, or the "photograph" in dark grey.
    """

    over: Ground = "black"

    def __call__(self, shown: RunData, style: FigureStyle) -> list[Figure]:
        """Draws one row per image.

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
                    ranked_panel(shown, name, column, self.over)
                    if is_ranked
                    else map_panel(shown, name, column, limits.get(column), style, smooth=False)
                )
            items.append(Item(panels, captions_of(shown, name, columns, alone=False)))
        legends: list[Legend] = [Swatches("true parts", [(part, rgb(colour)) for part, colour in PART_COLOURS.items()])] * has_truth
        legends.append(ranked_legend(self.over))
        others = [column for column in columns if column[2] != RANKED]
        return matrix(lanes, items, headings_of(others, alone=False), [*legends, *colour_bars(others, style)], style)


def _true_panel(shown: RunData, name: str, scene: Scene | None) -> Panel:
    key = next(key for key in shown.crops if key[0] == name)
    return Panel(None if scene is None else true_parts(shown.crops[key], seen_parts(scene, shown.preprocessing[key[1:]])))
