"""Columns of figures: classifiers and methods, with their names, captions and panels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from xattn.catalogue import is_control
from xattn.figures.canvas import COLOURS, SIGNED_COLOURS, called, caption, common_limits, note_below, shown_map
from xattn.figures.matrix import ColourBar, Panel
from xattn.figures.run_data import Column, RunData
from xattn.figures.style import FigureStyle
from xattn.overlays import is_signed

INPUT, CONTROLS = "", "controls"


def columns_once(columns: Sequence[Column]) -> list[Column]:
    """Returns the columns, classifier by classifier; controls, which do not use the network, appear once and last."""
    classifiers = list(dict.fromkeys(column[:2] for column in columns))
    own = [column for key in classifiers for column in columns if column[:2] == key and not is_control(column[2])]
    controls = {column[2]: column for column in reversed(columns) if is_control(column[2])}
    return own + [controls[method] for method in dict.fromkeys(column[2] for column in columns) if method in controls]


def group_of(column: Column, alone: bool) -> str:
    """Returns the group of a column: its classifier, or the controls if there are several classifiers."""
    return CONTROLS if is_control(column[2]) and not alone else f"{column[0]}\n{column[1]}"


def headings_of(columns: Sequence[Column], alone: bool) -> dict[str, str]:
    """Returns the heading of each group."""
    if alone:
        return {}
    return {group_of(column, alone): CONTROLS if is_control(column[2]) else called(*column[:2], columns) for column in columns}


def captions_of(shown: RunData, name: str, columns: Sequence[Column], alone: bool) -> dict[str, str]:
    """Returns the classifiers' outputs for an image, each below its group, and a known label below the image."""
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
    """Returns the values of the first and the last colour of each column, if its maps share them."""
    if style.scale == "each":
        return {}
    return {column: common_limits(found for key, found in shown.maps.items() if key[1:] == column) for column in columns}


def map_panel(
    shown: RunData, name: str, column: Column, limits: tuple[float, float] | None, style: FigureStyle, *, smooth: bool = True
) -> Panel:
    """Draws the map of a column for an image; empty if there is none."""
    found = shown.maps.get((name, *column))
    if found is None:
        return Panel(None)
    picture = shown_map(shown.crops[name, column[0], column[1]], found, column[2], smooth=smooth, limits=limits, colours=style.cmap)
    return Panel(picture, note_below(found, column[2]))


def colour_bars(columns: Sequence[Column], style: FigureStyle) -> list[ColourBar]:
    """Returns the colour bars that the columns need."""
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
