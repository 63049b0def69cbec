"""Columns of figures: classifiers and methods, what they are called, what is written and drawn for each image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from torch import Tensor
from torch.nn import functional

from xattn.explainers.base import is_signed
from xattn.figures.canvas import COLOURS, SIGNED_COLOURS, called, caption, common_limits, is_control, note_below, sharp, shown_map
from xattn.figures.matrix import ColourBar, Panel, Swatches
from xattn.figures.run_data import Column, RunData
from xattn.figures.style import FigureStyle

INPUT, CONTROLS = "", "controls"
RANKED = "maps 1 2 3"
MAP_COLOURS = {"map 1": "#ff0000", "map 2": "#00ff00", "map 3": "#0000ff"}


def rgb(colour: str) -> tuple[float, float, float]:
    """A colour `#rrggbb` as numbers in [0, 1]."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


RANKED_LEGEND = Swatches(
    "maps of a head, brighter where the features are strong; br-npa's by rank",
    [(name, rgb(colour)) for name, colour in MAP_COLOURS.items()],
)


def columns_once(columns: Sequence[Column]) -> list[Column]:
    """The columns, classifier by classifier; controls, which look at no network, once and last."""
    classifiers = list(dict.fromkeys(column[:2] for column in columns))
    own = [column for key in classifiers for column in columns if column[:2] == key and not is_control(column[2])]
    controls = {column[2]: column for column in reversed(columns) if is_control(column[2])}
    return own + [controls[method] for method in dict.fromkeys(column[2] for column in columns) if method in controls]


def group_of(column: Column, alone: bool) -> str:
    """The group of a column: its classifier, or the controls where there are several classifiers."""
    return CONTROLS if is_control(column[2]) and not alone else f"{column[0]}\n{column[1]}"


def headings_of(columns: Sequence[Column], alone: bool) -> dict[str, str]:
    """What is written over each group."""
    if alone:
        return {}
    return {group_of(column, alone): CONTROLS if is_control(column[2]) else called(*column[:2], columns) for column in columns}


def captions_of(shown: RunData, name: str, columns: Sequence[Column], alone: bool) -> dict[str, str]:
    """The classifiers' answers for an image, each below its group; a known label below the image."""
    found: dict[str, str] = {}
    labels: dict[str, None] = {}
    for (model, head), several in groupby(columns, key=lambda column: column[:2]):
        about = next((shown.maps[name, *column].about for column in several if (name, *column) in shown.maps), None)
        group = f"{model}\n{head}"
        if about is None or group in found:
            continue
        classes = shown.labels.get((model, head))
        found[group] = caption(about, classes)
        label = about["label"]
        if isinstance(label, int) and str(label) != str(about["target"]) and about["predicted"] is not None:
            labels[f"label: {f'class {label}' if classes is None else classes[label]}"] = None
    if labels and alone:
        return {group: "; ".join([text, *labels]) for group, text in found.items()}
    return {INPUT: "; ".join(labels), **found}


def limits_of(shown: RunData, columns: Sequence[Column], style: FigureStyle) -> dict[Column, tuple[float, float]]:
    """The values of the first and the last colour of each column, if its maps share them."""
    if style.scale == "each":
        return {}
    return {column: common_limits(found for key, found in shown.maps.items() if key[1:] == column) for column in columns}


def map_panel(
    shown: RunData, name: str, column: Column, limits: tuple[float, float] | None, style: FigureStyle, *, smooth: bool = True
) -> Panel:
    """The map of a column for an image; empty if there is none."""
    found = shown.maps.get((name, *column))
    if found is None:
        return Panel(None)
    picture = shown_map(shown.crops[name, column[0], column[1]], found, column[2], smooth=smooth, limits=limits, colours=style.cmap)
    return Panel(picture, note_below(found, column[2]))


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


def ranked_panel(shown: RunData, name: str, column: Column) -> Panel:
    """The first three maps of a head for an image, in colour and without smoothing; empty if it has none."""
    found, crop = shown.ranked.get((name, *column[:2])), shown.crops[name, column[0], column[1]]
    return Panel(None if found is None else sharp(coloured(found.raw), (crop.shape[1], crop.shape[2])))


def colour_bars(columns: Sequence[Column], style: FigureStyle) -> list[ColourBar]:
    """The colour bars that the columns need."""
    signed = [is_signed(method) for _, _, method in columns]
    each = style.scale == "each"
    bars = []
    if not all(signed):
        ends = (
            ("0", "1", "mask: each map from its lowest to its highest value")
            if each
            else ("low", "high", "all maps of a column on one scale")
        )
        bars.append(ColourBar(style.cmap or COLOURS, *ends))
    if any(signed):
        label = "signed map over its largest magnitude" if each else "signed maps over the largest magnitude of their column"
        bars.append(ColourBar(style.cmap or SIGNED_COLOURS, "−1", "1", label))
    return bars
