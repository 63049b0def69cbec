"""Pages of pictures × panels: cells of equal size, headings above them, captions below."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xattn.figures.sheet import HEADING, NOTE, TEXT, TITLE, Sheet, breaks_words, fitted, text_height, text_width, wrapped
from xattn.figures.style import FigureStyle
from xattn.overlays import table

GAP, GROUP_GAP, ROW_GAP, MARGIN = 0.7, 2.2, 1.6, 0.5  # millimetres
LARGEST_CELL, SMALLEST_CELL, WANTED_CELL = 30.0, 9.0, 22.0
PAGE_HEIGHT = 235.0
BAR, BAR_HEIGHT = 24.0, 1.8
SWATCH = 2.2
SLACK = 0.6  # a line of text may be this much wider because letters are aligned to pixels

logger = logging.getLogger("xattn")


@dataclass(frozen=True)
class Lane:
    """A lane: one of the panels that are shown for every picture.

    Attributes:
        group: adjacent lanes of one group share a heading and a caption.
        title: title of this lane.
    """

    group: str
    title: str


@dataclass(frozen=True)
class Panel:
    """A cell.

    Attributes:
        picture: `(H, W, 3)`, uint8 or in [0, 1]; None for an empty cell.
        note: text over the picture.
    """

    picture: NDArray[Any] | None
    note: str = ""


@dataclass(frozen=True)
class Item:
    """Content of one picture.

    Attributes:
        panels: one panel for each lane.
        captions: captions by group.
    """

    panels: Sequence[Panel]
    captions: Mapping[str, str]


@dataclass(frozen=True)
class ColourBar:
    """A colour map and its meaning; `low` and `high` are the labels of its ends."""

    cmap: str
    low: str
    high: str
    label: str


@dataclass(frozen=True)
class Swatches:
    """Names of colours, each `(name, red, green, blue)` in [0, 1], after a label."""

    label: str
    colours: Sequence[tuple[str, tuple[float, float, float]]]


Legend = ColourBar | Swatches


class _Places:
    """Positions of the lanes along their axis."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self.groups = [
            (group, [number for number, _ in found]) for group, found in groupby(enumerate(lanes), key=lambda pair: pair[1].group)
        ]
        self.gaps = (len(lanes) - 1) * GAP + (len(self.groups) - 1) * (GROUP_GAP - GAP)

    def starts(self, cell: float) -> list[float]:
        """Returns the offset of each lane, for cells of a given size along the axis."""
        found, at = [], 0.0
        for place, (_, numbers) in enumerate(self.groups):
            at += GROUP_GAP - GAP if place else 0.0
            for _ in numbers:
                found.append(at)
                at += cell + GAP
        return found


def matrix(
    lanes: Sequence[Lane], items: Sequence[Item], headings: Mapping[str, str], legends: Sequence[Legend], style: FigureStyle
) -> list[Figure]:
    """Draws the pictures in rows and the lanes in columns, or transposed; uses as many pages as needed.

    Args:
        lanes: the panels of each picture.
        items: the pictures.
        headings: headings by group.
        legends: legends below the pictures.
        style: width, font, orientation and title.
    """
    ratios = [panel.picture.shape[0] / panel.picture.shape[1] for item in items for panel in item.panels if panel.picture is not None]
    pages = _transposed if style.transpose else _upright
    return pages(_Places(lanes), items, headings, legends, style, max(ratios, default=1.0))


def _cell(room: float, count: int, gaps: float, what: str) -> float:
    cell = min(LARGEST_CELL, (room - gaps) / count)
    if cell < SMALLEST_CELL:
        logger.warning("%d %s leave %.1f mm for each: choose fewer, a larger --width, or --transpose.", count, what, cell)
    return max(cell, 1.0)


def _upright(
    places: _Places, items: Sequence[Item], headings: Mapping[str, str], legends: Sequence[Legend], style: FigureStyle, ratio: float
) -> list[Figure]:
    room = style.millimetres - 2 * MARGIN
    cell = _cell(room, len(places.lanes), places.gaps, "columns")
    starts = [MARGIN + at for at in places.starts(cell)]
    width = starts[-1] + cell + MARGIN
    spans = {group: (starts[numbers[0]], len(numbers) * (cell + GAP) - GAP) for group, numbers in places.groups}
    pages: list[Figure] = []
    left = list(items)
    while left or not pages:
        sheet = Sheet()
        y = _title(sheet, style, width)
        y = _heads(sheet, places, headings, starts, spans, cell, y)
        first = True
        while left:
            captions = {
                group: wrapped(text, spans[group][1] - SLACK, NOTE) for group, text in left[0].captions.items() if group in spans and text
            }
            below = text_height(max((len(lines) for lines in captions.values()), default=0), NOTE)
            height = cell * ratio + (0.6 + below if captions else 0.0)
            if not first and y + height + _legends_height(legends, width) > PAGE_HEIGHT:
                break
            for x, panel in zip(starts, left.pop(0).panels, strict=True):
                _panel(sheet, panel, x, y, cell, cell * ratio)
            for group, lines in captions.items():
                sheet.text(spans[group][0], y + cell * ratio + 0.6, lines)
            y, first = y + height + ROW_GAP, False
        y = _legends(sheet, legends, y, width)
        pages.append(sheet.figure(width, y + MARGIN))
    return pages


def _heads(
    sheet: Sheet,
    places: _Places,
    headings: Mapping[str, str],
    starts: Sequence[float],
    spans: Mapping[str, tuple[float, float]],
    cell: float,
    y: float,
) -> float:
    """Draws group headings and lane titles, aligned at the bottom; returns that height. Titles are rotated if one would be broken."""
    room = GROUP_GAP - SLACK  # a heading may extend halfway to its neighbours
    over = {group: fitted(headings[group], spans[group][1] + room, TITLE, bold=True) for group, _ in places.groups if headings.get(group)}
    edge = starts[-1] + cell
    if over:
        depth = text_height(max(len(lines) for lines, _ in over.values()), TITLE)
        for group, (lines, size) in over.items():
            x, across = spans[group]
            half = max(text_width(line, size, bold=True) for line in lines) / 2
            middle = max(MARGIN + half, min(x + across / 2, edge - half))
            sheet.text(middle, y + depth, lines, size, ha="center", va="bottom", weight="bold")
            sheet.line(x, y + depth + 0.4, x + across, y + depth + 0.4)
        y += depth + 1.0
    if any(breaks_words(lane.title, cell + GAP - SLACK) for lane in places.lanes):
        depth = max(text_width(lane.title, TEXT) for lane in places.lanes)
        for x, lane in zip(starts, places.lanes, strict=True):
            sheet.turned(x + cell / 2, y + depth, [lane.title], TEXT, ha="center", va="bottom")
        return y + depth + 0.6
    titles = [fitted(lane.title, cell + GAP - SLACK, TEXT) for lane in places.lanes]
    depth = text_height(max(len(lines) for lines, _ in titles), TEXT)
    for x, (lines, size) in zip(starts, titles, strict=True):
        sheet.text(x + cell / 2, y + depth, lines, size, ha="center", va="bottom")
    return y + depth + 0.6


def _transposed(
    places: _Places, items: Sequence[Item], headings: Mapping[str, str], legends: Sequence[Legend], style: FigureStyle, ratio: float
) -> list[Figure]:
    over = any(headings.get(group) for group, _ in places.groups)
    sides = (text_height(1, TITLE) + 0.8 if over else 0.0), text_height(2, TEXT) + 0.4
    left_edge = MARGIN + sum(sides)
    room = style.millimetres - left_edge - MARGIN
    at_once = max(1, min(len(items), int((room + GAP) / (WANTED_CELL + GAP))))
    captions = text_height(5, NOTE)
    cell = _cell(room, at_once, (at_once - 1) * GAP, "pictures")
    tallest = (PAGE_HEIGHT - captions - places.gaps - 10) / len(places.lanes) / ratio
    cell = min(cell, max(tallest, SMALLEST_CELL))
    pages: list[Figure] = []
    for first in range(0, len(items), at_once):
        several = items[first : first + at_once]
        width = left_edge + len(several) * (cell + GAP) - GAP + MARGIN
        sheet = Sheet()
        y = _title(sheet, style, width)
        starts = places.starts(cell * ratio)
        for group, numbers in places.groups:
            top, bottom = starts[numbers[0]], starts[numbers[-1]] + cell * ratio
            if headings.get(group):
                lines = wrapped(headings[group], bottom - top, TITLE, bold=True)[:1]
                sheet.turned(MARGIN, y + (top + bottom) / 2, lines, TITLE, weight="bold", ha="left")
                sheet.line(MARGIN + sides[0] - 0.4, y + top, MARGIN + sides[0] - 0.4, y + bottom)
        for start, lane in zip(starts, places.lanes, strict=True):
            lines, size = fitted(lane.title, cell * ratio + GAP - SLACK, TEXT)
            sheet.turned(left_edge - 0.5, y + start + cell * ratio / 2, lines, size, ha="right")
        deepest = y + starts[-1] + cell * ratio
        for place, item in enumerate(several):
            x = left_edge + place * (cell + GAP)
            for start, panel in zip(starts, item.panels, strict=True):
                _panel(sheet, panel, x, y + start, cell, cell * ratio)
            said = [": ".join(filter(None, [headings.get(group, ""), text])) for group, text in item.captions.items() if text]
            lines = [line for text in said for line in wrapped(text, cell - SLACK, NOTE)]
            sheet.text(x, y + starts[-1] + cell * ratio + 0.6, lines)
            deepest = max(deepest, y + starts[-1] + cell * ratio + 0.6 + text_height(len(lines), NOTE))
        y = _legends(sheet, legends, deepest + ROW_GAP, width)
        pages.append(sheet.figure(width, y + MARGIN))
    return pages


def _panel(sheet: Sheet, panel: Panel, x: float, y: float, width: float, height: float) -> None:
    """Draws a picture in its cell, keeping its aspect ratio."""
    if panel.picture is None:
        return
    ratio = panel.picture.shape[0] / panel.picture.shape[1]
    across, down = (width, width * ratio) if width * ratio <= height + 1e-6 else (height / ratio, height)
    sheet.picture(x + (width - across) / 2, y + (height - down) / 2, across, down, panel.picture)
    if panel.note:
        sheet.boxed(x + width / 2, y + height / 2, wrapped(panel.note, width - 1, NOTE))


def _title(sheet: Sheet, style: FigureStyle, width: float) -> float:
    """Draws the figure's title, and returns where the content after it begins."""
    if not style.title:
        return MARGIN
    lines = wrapped(style.title, width - 2 * MARGIN, HEADING, bold=True)
    sheet.text(width / 2, MARGIN, lines, HEADING, ha="center", weight="bold")
    return MARGIN + text_height(len(lines), HEADING) + 1.0


Mark = NDArray[Any] | tuple[float, float, float] | None


def _parts(legend: Legend) -> list[tuple[Mark, str]]:
    """Returns the elements of a legend: texts, with or without a colour bar or a colour before them."""
    if isinstance(legend, Swatches):
        return [(None, f"{legend.label}:"), *((colour, name) for name, colour in legend.colours)]
    return [(None, legend.low), (table(legend.cmap)[None], f"{legend.high}  {legend.label}")]


def _legends(sheet: Sheet | None, legends: Sequence[Legend], y: float, width: float) -> float:
    """Places the legends, each on its own lines, or only measures them; returns where they end."""
    for legend in legends:
        x = MARGIN
        y += 0.6
        for mark, text in _parts(legend):
            across = 0.0 if mark is None else 1.0 + (BAR if isinstance(mark, np.ndarray) else SWATCH)
            if x > MARGIN and x + across + min(text_width(text, NOTE), width / 2) > width - MARGIN:
                x, y = MARGIN, y + text_height(1, NOTE) + 0.3
            top = y + (text_height(1, NOTE) - BAR_HEIGHT) / 2
            lines = wrapped(text, width - MARGIN - x - across, NOTE)
            if sheet is not None:
                if isinstance(mark, np.ndarray):
                    sheet.picture(x, top, across - 1.0, BAR_HEIGHT, mark)
                elif mark is not None:
                    sheet.box(x, top, across - 1.0, BAR_HEIGHT, mark)
                sheet.text(x + across, y, lines)
            x += across + max(text_width(line, NOTE) for line in lines) + 1.0
            y += text_height(len(lines) - 1, NOTE)
        y += text_height(1, NOTE)
    return y


def _legends_height(legends: Sequence[Legend], width: float) -> float:
    return _legends(None, legends, 0.0, width) + MARGIN
