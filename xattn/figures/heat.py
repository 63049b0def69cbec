"""Figure kind: heat map of methods × metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from xattn.figures.base import register
from xattn.figures.canvas import LUMINANCE
from xattn.figures.plots import classifier_name, is_better_higher, metric_name
from xattn.figures.score_data import Classifier, ScoreData
from xattn.figures.sheet import HEADING, NOTE, TEXT, TITLE, Sheet, breaks_words, text_height, text_width, wrapped
from xattn.figures.style import FigureStyle
from xattn.metrics.tables import comparison
from xattn.overlays import coloured, table

CMAP = "viridis"
ROW, COLUMN, GAP, MARGIN = 4.6, 20.0, 2.0, 0.5  # millimetres
TIGHT = 0.8  # space around the widest value of a column
LIGHT = 0.45  # luminance of a colour above which its text is black
PAGE_HEIGHT = 235.0

Cell = tuple[Classifier, str, str]
logger = logging.getLogger("xattn")


@register("heat", data="scores")
def heat(shown: ScoreData, style: FigureStyle) -> list[Figure]:
    """Methods × metrics: means over images, coloured from the worst to the best of each metric, the best in bold.

    Colours compare the methods of one classifier by one metric; with `scale="common"` those of all classifiers.
    """
    frame = comparison(shown.rows).frame
    means: dict[Cell, float] = {}
    halves: dict[str, list[float]] = {metric: [] for metric in shown.metrics}
    for _, row in frame.iterrows():
        for metric in shown.metrics:
            means[(row["model"], row["head"]), row["method"], metric] = float(row[metric])
            halves[metric].append((float(row[f"{metric} high"]) - float(row[f"{metric} low"])) / 2)
    digits = {metric: decimals(several) for metric, several in halves.items()}
    goodness = _goodness(means, shown, common=style.scale == "common")
    blocks = [(key, [m for m in shown.methods if (key, m, shown.metrics[0]) in means]) for key in shown.classifiers]
    draw = _transposed if style.transpose else _upright
    return draw(blocks, shown, means, goodness, digits, style)


def decimals(halves: Sequence[float]) -> int:
    """Returns the numbers of decimals that the half widths of some intervals allow: their second significant digit, from 0 to 3.

    >>> decimals([3.2]), decimals([0.04]), decimals([25.0])
    (1, 3, 0)
    """
    known = sorted(half for half in halves if math.isfinite(half) and half > 0)
    return 2 if not known else min(3, max(0, 1 - math.floor(math.log10(known[len(known) // 2]))))


def _goodness(means: dict[Cell, float], shown: ScoreData, *, common: bool) -> dict[Cell, float]:
    """Scales values from 0, the worst, to 1, the best; NaN for missing values."""
    found = {}
    for (key, method, metric), value in means.items():
        others = [v for (k, _, m), v in means.items() if m == metric and (common or k == key) and math.isfinite(v)]
        if not others or not math.isfinite(value):
            found[key, method, metric] = math.nan
            continue
        low, high = min(others), max(others)
        share = 1.0 if high == low else (value - low) / (high - low)
        found[key, method, metric] = share if is_better_higher(metric) or high == low else 1 - share
    return found


Blocks = Sequence[tuple[Classifier, Sequence[str]]]


def _cell(sheet: Sheet, place: tuple[float, float, float], cell: Cell, value: float, share: float, digits: int, style: FigureStyle) -> None:
    x, y, width = place
    if math.isnan(share):
        sheet.text(x + width / 2, y + ROW / 2, ["–"], TEXT, ha="center", va="center")
        return
    colour = coloured(np.array(share, dtype=np.float32), style.cmap or CMAP)
    sheet.box(x, y, width, ROW, colour.tolist())
    is_light = float(colour @ np.array(LUMINANCE, dtype=np.float32)) > LIGHT
    weight = "bold" if share == 1.0 else "normal"
    sheet.text(
        x + width / 2,
        y + ROW / 2,
        [f"{value:.{digits}f}"],
        TEXT,
        ha="center",
        va="center",
        weight=weight,
        color="black" if is_light else "white",
    )


def _fitted(room: float, count: int, means: dict[Cell, float], digits: dict[str, int]) -> tuple[float, dict[str, int]]:
    """Returns the width of each column in the available space, and the decimals of each metric: fewer if its values would not fit."""
    column = min(COLUMN, room / count)

    def widest(metric: str, decimals: int) -> float:
        values = [value for cell, value in means.items() if cell[2] == metric and math.isfinite(value)]
        return max((text_width(f"{value:.{decimals}f}", TEXT, bold=True) for value in values), default=0.0) + TIGHT

    kept = {metric: next((d for d in range(most, 0, -1) if widest(metric, d) <= column), 0) for metric, most in digits.items()}
    needed = max(widest(metric, decimals) for metric, decimals in kept.items())
    if column < needed:
        logger.warning(
            "%d columns leave %.1f mm for each, but values need %.1f mm: choose fewer columns, or a larger --width.", count, column, needed
        )
    return max(column, needed), kept


def _upright(
    blocks: Blocks, shown: ScoreData, means: dict[Cell, float], goodness: dict[Cell, float], digits: dict[str, int], style: FigureStyle
) -> list[Figure]:
    label = min(0.45 * style.millimetres, max(text_width(method, TEXT) for method in shown.methods) + 1.5)
    column, digits = _fitted(style.millimetres - label - 2 * MARGIN, len(shown.metrics), means, digits)
    width = label + column * len(shown.metrics) + 2 * MARGIN
    names = [metric_name(metric) for metric in shown.metrics]
    heads = [wrapped(name, column - 0.6, NOTE) for name in names]
    is_broken = any(breaks_words(name, column - 0.6) for name in names)
    depth = max(text_width(name, NOTE) for name in names) + 1.0 if is_broken else text_height(max(map(len, heads)), NOTE)
    pages, left = [], [(key, method) for key, methods in blocks for method in methods]
    while left:
        sheet, y = Sheet(), MARGIN
        y = _title(sheet, style, width, y)
        y += depth
        for place, lines in enumerate(heads):
            x = MARGIN + label + (place + 0.5) * column
            if is_broken:
                sheet.turned(x, y - 0.3, [names[place]], NOTE, ha="center", va="bottom")
            else:
                sheet.text(x, y, lines, NOTE, ha="center", va="bottom")
        y += 0.6
        before = None
        while left and y + ROW + 8 < PAGE_HEIGHT:
            key, method = left.pop(0)
            name = classifier_name(key, shown)
            if key != before and name:
                y += GAP * (before is not None)
                sheet.text(MARGIN, y, [name], TITLE, weight="bold")
                y += text_height(1, TITLE) + 0.3
            before = key
            sheet.text(MARGIN, y + ROW / 2, wrapped(method, label - 1, TEXT)[:2], TEXT, va="center")
            for place, metric in enumerate(shown.metrics):
                cell = (key, method, metric)
                at = (MARGIN + label + place * column, y, column - 0.3)
                _cell(sheet, at, cell, means[cell], goodness[cell], digits[metric], style)
            y += ROW + 0.3
        pages.append(_finished(sheet, y, width, shown, style))
    return pages


def _transposed(
    blocks: Blocks, shown: ScoreData, means: dict[Cell, float], goodness: dict[Cell, float], digits: dict[str, int], style: FigureStyle
) -> list[Figure]:
    names = {metric: metric_name(metric) for metric in shown.metrics}
    label = min(0.4 * style.millimetres, max(text_width(name, TEXT) for name in names.values()) + 1.5)
    count = sum(len(methods) for _, methods in blocks)
    room = style.millimetres - label - 2 * MARGIN - GAP * (len(blocks) - 1)
    column, digits = _fitted(room, count, means, digits)
    width = label + column * count + GAP * (len(blocks) - 1) + 2 * MARGIN
    sheet, y = Sheet(), MARGIN
    y = _title(sheet, style, width, y)
    heads = {method: wrapped(method, column - 0.4, NOTE) for method in shown.methods}
    is_broken = any(breaks_words(method, column) for method in shown.methods)
    several = any(classifier_name(key, shown) for key, _ in blocks)
    depth = y + (text_height(1, TITLE) + 0.5 if several else 0.0)
    depth += (
        max(text_width(method, NOTE) for method in shown.methods) + 1.0 if is_broken else text_height(max(map(len, heads.values())), NOTE)
    )
    x = MARGIN + label
    for key, methods in blocks:
        sheet.text(x + column * len(methods) / 2, y, [classifier_name(key, shown)], TITLE, ha="center", weight="bold")
        for method in methods:
            if is_broken:
                sheet.turned(x + column / 2, depth - 0.3, [method], NOTE, ha="center", va="bottom")
            else:
                sheet.text(x + column / 2, depth, heads[method], NOTE, ha="center", va="bottom")
            for row, metric in enumerate(shown.metrics):
                at = (x, depth + 0.6 + row * (ROW + 0.3), column - 0.3)
                _cell(sheet, at, (key, method, metric), means[key, method, metric], goodness[key, method, metric], digits[metric], style)
            x += column
        x += GAP
    for row, metric in enumerate(shown.metrics):
        sheet.text(MARGIN, depth + 0.6 + row * (ROW + 0.3) + ROW / 2, wrapped(names[metric], label - 1, TEXT)[:2], TEXT, va="center")
    return [_finished(sheet, depth + 0.6 + len(shown.metrics) * (ROW + 0.3), width, shown, style)]


def _title(sheet: Sheet, style: FigureStyle, width: float, y: float) -> float:
    if not style.title:
        return y
    sheet.text(width / 2, y, [style.title], HEADING, ha="center", weight="bold")
    return y + text_height(1, HEADING) + 1.0


def _finished(sheet: Sheet, y: float, width: float, shown: ScoreData, style: FigureStyle) -> Figure:
    n = shown.rows.groupby(["model", "head", "method"])["image"].nunique()
    images = str(n.min()) if n.min() == n.max() else f"{n.min()} to {n.max()}"
    of = "each metric" if style.scale == "common" or len(shown.classifiers) == 1 else "each metric and network"
    parts = ["worst", "bar", f"best of {of}; mean over images, n = {images}"]
    x = MARGIN
    y += 1.4
    for part in parts:
        if part == "bar":
            sheet.picture(x, y + (text_height(1, NOTE) - 1.8) / 2, 16.0, 1.8, table(style.cmap or CMAP)[None])
            x += 17.0
        else:
            lines = wrapped(part, width - x - MARGIN, NOTE)
            sheet.text(x, y, lines, NOTE)
            x += text_width(part, NOTE) + 1.0
    return sheet.figure(width, y + text_height(len(lines), NOTE) + MARGIN)
