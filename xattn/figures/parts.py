"""Ranked maps of heads in colour, beside other maps and, on SketchBirds, beside the true parts; no cell is smoothed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn import functional

from xattn.birds import PARTS, Scene, masks
from xattn.birds.data import scene_of
from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError
from xattn.figures.base import register
from xattn.figures.canvas import CELL_INCHES, broken, called, caption, grey, note_below, sharp, show, shown_crop, shown_map, shown_title
from xattn.figures.run_data import RunData

MAP_COLOURS = {"map 1": "#ff0000", "map 2": "#00ff00", "map 3": "#0000ff"}
PART_COLOURS = {"crest": "#e08214", "beak": "#f4e04d", "wing": "#35a7a0", "tail": "#9c6b3c", "legs": "#b07ad0"}  # none of the maps' hues


def coloured(ranked: Tensor) -> Tensor:
    """The first three ranked maps as red, green and blue.

    Args:
        ranked: `(N, h, w)`, maps times the norm of the features; a missing map is black.

    Returns:
        `(h, w, 3)` in [0, 1], min-maxed over the three together: hues compare within an image only.

    Source: Gomez et al. 2021, Sec. 4.2.
    """
    three = functional.pad(ranked[:3], (0, 0, 0, 0, 0, max(0, 3 - len(ranked))))
    low, high = ranked[:3].min(), ranked[:3].max()
    return ((three - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).permute(1, 2, 0)


def true_parts(crop: Tensor, visible: Tensor) -> Tensor:
    """The parts `(5, H, W)` in colours over the grey crop `(C, H, W)`: `(H, W, 3)`."""
    shown = (0.35 + 0.5 * grey(crop))[..., None].repeat(1, 1, 3)
    for part, mask in zip(PARTS, visible, strict=True):
        colour = PART_COLOURS[part].lstrip("#")
        shown[mask] = torch.tensor([int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)])
    return shown


def seen_parts(scene: Scene, preprocessing: Preprocessing) -> Tensor:
    """Masks of a scene's visible parts after a classifier's resize and crop: `(5, H, W)` bool."""
    from torchvision.transforms.v2.functional import to_pil_image

    pictures = [to_pil_image(mask.float().repeat(3, 1, 1)) for mask in masks(scene).visible]
    return torch.stack([preprocessing.crop(picture)[0] > 127 for picture in pictures])


@register("parts", source="Gomez et al. 2021, Figs. 1, 3 and 5")
def parts(shown: RunData) -> Figure:
    """The maps of br-npa and b-cnn in red, green and blue, beside the maps of the methods, without smoothing.

    For exported SketchBirds pictures, the true parts are shown beside the maps.

    Raises:
        InputError: none of the runs has a head with several maps.
    """
    if not shown.ranked:
        raise InputError("none of these runs has a head with several maps: run br-npa or b-cnn, or draw --kind grid.")
    heads = list(dict.fromkeys(key[1:] for key in shown.ranked))
    scenes = {name: None if path is None else scene_of(path) for name, path in shown.paths.items()}
    has_truth = any(scene is not None for scene in scenes.values())
    width = 1 + has_truth + len(heads) + len(shown.columns)
    captions = {name: caption(name, shown.columns, shown.maps, shown.labels) for name in shown.names}
    lines = max(text.count("\n") for text in captions.values()) + 1.5
    figure = Figure(
        figsize=(CELL_INCHES * width, (CELL_INCHES + 0.13 * lines) * len(shown.names) + 0.5),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.0),
    )
    axes = figure.subplots(len(shown.names), width, squeeze=False)
    for row, name in enumerate(shown.names):
        for axis, panel in zip(axes[row], _panels(shown, name, heads, scenes[name], has_truth), strict=True):
            if panel.picture is None:
                axis.set_axis_off()
                continue
            show(axis, panel.picture)
            axis.set_xlabel(panel.below, fontsize=6, labelpad=2)
            if row == 0:
                axis.set_title(panel.title, fontsize=7)
        axes[row][0].set_xlabel(captions[name], fontsize=6, labelpad=2)
    style = {"fontsize": 6, "title_fontsize": 6, "frameon": False}
    if has_truth:
        true = [Patch(color=colour, label=part) for part, colour in PART_COLOURS.items()]
        figure.legend(handles=true, loc="outside lower left", ncols=len(true), title="true parts", **style)
    maps = [Patch(color=colour, label=label) for label, colour in MAP_COLOURS.items()]
    title = "maps of a head, brighter where the features are strong; br-npa's by rank"
    figure.legend(handles=maps, loc="outside lower right", ncols=3, title=title, **style)
    return figure


class _Panel(NamedTuple):
    """A picture `(H, W, 3)`, or None if there is none, its title and the text below it."""

    picture: Tensor | None
    title: str
    below: str = ""


def _panels(shown: RunData, name: str, heads: Sequence[tuple[str, str]], scene: Scene | None, has_truth: bool) -> Iterator[_Panel]:
    """One row of the figure."""
    everyone = [*shown.columns, *((model, head, "") for model, head in heads)]
    first = next(key for key in shown.maps if key[0] == name)[1:3]
    crop = shown.crops[name, *first]
    yield _Panel(shown_crop(crop).float() / 255, shown_title(crop))
    if has_truth:
        yield _Panel(None if scene is None else true_parts(crop, seen_parts(scene, shown.preprocessing[first])), "true parts")
    for model, head in heads:
        ranked = shown.ranked.get((name, model, head))
        picture = None if ranked is None else sharp(coloured(ranked.raw), _size(shown.crops[name, model, head]))
        yield _Panel(picture, "\n".join([*called(model, head, everyone), "maps 1 2 3"]))
    for model, head, method in shown.columns:
        title = "\n".join([*called(model, head, everyone), broken(method)])
        found = shown.maps.get((name, model, head, method))
        if found is None:
            yield _Panel(None, title)
            continue
        yield _Panel(shown_map(shown.crops[name, model, head], found, method, smooth=False), title, note_below(found, method))


def _size(crop: Tensor) -> tuple[int, int]:
    return crop.shape[1], crop.shape[2]
