"""Figure kind: critical-difference diagrams, the methods' mean ranks with bars over those that do not differ significantly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xattn.errors import InputError
from xattn.figures.base import register
from xattn.figures.plots import classifier_name, is_better_higher, metric_name
from xattn.figures.score_data import ScoreData
from xattn.figures.sheet import HEADING, NOTE, TEXT, TITLE, Sheet, text_height, text_width, wrapped
from xattn.figures.style import FigureStyle
from xattn.metrics.base import metrics
from xattn.metrics.rank_tests import critical_difference, friedman, mean_ranks
from xattn.metrics.statistics import holm, levels, paired, unit_of

Doubles = NDArray[np.float64]
LEVEL = 0.05
Test = Literal["nemenyi", "wilcoxon"]
TESTS = {
    "nemenyi": "Nemenyi's test, as in Demšar 2006",
    "wilcoxon": "Wilcoxon signed-rank tests, adjusted by Holm 1979, as in Benavoli et al. 2016",
}
PAGE_HEIGHT, GAP, MARGIN = 235.0, 4.0, 0.5
TICK, ROW, CLIQUE = 1.0, 3.2, 1.5  # millimetres


class Ranking(NamedTuple):
    """Ranks of a classifier's methods by a metric.

    Attributes:
        names: names of the methods, best first.
        ranks: mean rank of each method; 1 is best.
        friedman: p-value of Friedman's test that all have the same ranks; NaN for fewer than three methods.
        critical: the critical difference of mean ranks; NaN if pairs are tested.
        cliques: first and last place of each group of methods that do not differ; no group contains another.
        n: number of images.
    """

    names: list[str]
    ranks: list[float]
    friedman: float
    critical: float
    cliques: list[tuple[int, int]]
    n: int


def ranking(names: Sequence[str], values: Doubles, higher: bool, test: Test = "nemenyi", floor: float = 1.0) -> Ranking:
    """Ranks methods and finds groups that do not differ.

    Args:
        names: names of the methods.
        values: `(n, k)`, finite: the value of each image for each method.
        higher: whether higher is better.
        test: the test that compares pairs.
        floor: unit of the values, from `unit_of`.
    """
    n, k = values.shape
    whole = levels(values, floor)
    ranks = mean_ranks(whole, higher)
    order = sorted(range(k), key=lambda place: (ranks[place], names[place]))
    p_all = friedman(whole).p if k > 2 else math.nan
    critical = critical_difference(k, n) if test == "nemenyi" else math.nan
    pairs = [(a, b) for a in range(k) for b in range(a + 1, k)]
    if test == "nemenyi":
        same = {pair: abs(ranks[order[pair[1]]] - ranks[order[pair[0]]]) < critical for pair in pairs}
    else:
        p = holm([paired(values[:, order[a]], values[:, order[b]], floor=floor).p for a, b in pairs])
        same = {pair: value >= LEVEL for pair, value in zip(pairs, p, strict=True)}
    return Ranking([names[place] for place in order], [ranks[place] for place in order], p_all, critical, cliques(same, k), n)


def cliques(same: dict[tuple[int, int], bool], k: int) -> list[tuple[int, int]]:
    """Returns the longest sequences of neighbouring places in which no two differ."""
    runs: list[tuple[int, int]] = []
    for first in range(k):
        last = first
        while last + 1 < k and all(same[place, last + 1] for place in range(first, last + 1)):
            last += 1
        if last > first and not any(start <= first and last <= stop for start, stop in runs):
            runs.append((first, last))
    return runs


@register("ranks", source="Demšar 2006, Fig. 1", data="scores")
@dataclass(frozen=True)
class Ranks:
    """Critical-difference diagrams: mean ranks of the methods over images, with a bar over those that do not differ at 0.05.

    Attributes:
        test: "nemenyi", a critical difference of mean ranks (Demšar 2006); "wilcoxon", pairwise signed-rank tests adjusted by Holm, which
            do not depend on the other methods (Benavoli et al. 2016).
    """

    test: Test = "nemenyi"

    def __call__(self, shown: ScoreData, style: FigureStyle) -> list[Figure]:
        """Draws one diagram per classifier and metric.

        Raises:
            InputError: there are no two methods with values of the same images.
        """
        found = []
        for classifier in shown.classifiers:
            for metric in shown.metrics:
                table = shown.values(classifier, metric).dropna()
                if table.shape[1] < 2 or len(table) < 2:
                    continue
                values = table.to_numpy(dtype=np.float64)
                unit = unit_of(metrics.create(metric).metadata.limits)
                title = " · ".join(filter(None, [classifier_name(classifier, shown), metric_name(metric)]))
                found.append((title, ranking([str(name) for name in table.columns], values, is_better_higher(metric), self.test, unit)))
        if not found:
            raise InputError("ranks compare at least two methods on at least two common images: the runs have no such values.")
        return _pages(found, self.test, style)


def _pages(found: Sequence[tuple[str, Ranking]], test: Test, style: FigureStyle) -> list[Figure]:
    """Draws the diagrams in one column, or in two on a wide page."""
    columns = 2 if style.millimetres > 120 and len(found) > 1 else 1
    width = (style.millimetres - 2 * MARGIN - (columns - 1) * GAP) / columns
    note = f"Ranks over images of one network, 1 is best; a bar joins methods that do not differ there at {LEVEL:g} by {TESTS[test]}."
    pages: list[Figure] = []
    rows = [list(found[start : start + columns]) for start in range(0, len(found), columns)]
    while rows:
        sheet, y = Sheet(), MARGIN
        if style.title:
            sheet.text(style.millimetres / 2, y, [style.title], HEADING, ha="center", weight="bold")
            y += text_height(1, HEADING) + 1
        lines = wrapped(note, style.millimetres - 2 * MARGIN, NOTE)
        first = True
        while rows:
            depth = max(_height(title, shown, width) for title, shown in rows[0])
            if not first and y + depth + text_height(len(lines), NOTE) > PAGE_HEIGHT:
                break
            for place, (title, shown) in enumerate(rows.pop(0)):
                _diagram(sheet, MARGIN + place * (width + GAP), y, width, title, shown)
            y, first = y + depth + GAP, False
        sheet.text(MARGIN, y - GAP / 2, lines)
        pages.append(sheet.figure(style.millimetres, y - GAP / 2 + text_height(len(lines), NOTE) + MARGIN))
    return pages


def _heading(title: str, shown: Ranking, width: float) -> list[str]:
    p = "" if math.isnan(shown.friedman) else f", Friedman p {'< 0.001' if shown.friedman < 0.001 else f'= {shown.friedman:.2g}'}"
    return wrapped(f"{title}, n = {shown.n}{p}", width, TITLE)


def _height(title: str, shown: Ranking, width: float) -> float:
    above = text_height(len(_heading(title, shown, width)), TITLE) + (0.0 if math.isnan(shown.critical) else 3.4) + 4.2
    return above + 1.0 + CLIQUE * len(shown.cliques) + ROW * -(-len(shown.names) // 2) + 1.0


def _diagram(sheet: Sheet, x: float, y: float, width: float, title: str, shown: Ranking) -> None:
    heading = _heading(title, shown, width)
    sheet.text(x, y, heading, TITLE)
    y += text_height(len(heading), TITLE)
    k = len(shown.names)
    labels = [f"{name}  {rank:.2f}" for name, rank in zip(shown.names, shown.ranks, strict=True)]
    half = -(-k // 2)
    side = min(0.38 * width, max(text_width(label, TEXT) for label in labels) + 1.6)
    left, right = x + side, x + width - side

    def at(rank: float) -> float:
        return left + (right - left) * (rank - 1) / (k - 1)

    if not math.isnan(shown.critical):
        y += 2.4
        end = at(1 + min(shown.critical, k - 1.0))
        sheet.line(left, y, end, y)
        for edge in (left, end):
            sheet.line(edge, y - 0.6, edge, y + 0.6)
        sheet.text(end + 1.0, y, [f"CD = {shown.critical:.2f}"], NOTE, va="center")
        y += 1.0
    y += 4.2
    sheet.line(left, y, right, y, 0.6)
    for tick in range(1, k + 1):
        sheet.line(at(tick), y - TICK, at(tick), y, 0.6)
        sheet.text(at(tick), y - TICK - 0.3, [str(tick)], NOTE, ha="center", va="bottom")
    deepest = y + 1.0 + CLIQUE * len(shown.cliques)
    for place, (start, stop) in enumerate(shown.cliques):
        level = y + 1.2 + CLIQUE * place
        sheet.line(at(shown.ranks[start]) - 0.5, level, at(shown.ranks[stop]) + 0.5, level, 2.0)
    for place, (name, rank) in enumerate(zip(shown.names, shown.ranks, strict=True)):
        is_left = place < half
        row = place if is_left else k - 1 - place
        level = deepest + ROW * (row + 0.5)
        sheet.line(at(rank), y, at(rank), level)
        sheet.line(at(rank), level, left - 0.5 if is_left else right + 0.5, level)
        text = wrapped(f"{name}  {rank:.2f}" if is_left else f"{rank:.2f}  {name}", side - 1.0, TEXT)
        settings: dict[str, Any] = {"va": "center", "ha": "right" if is_left else "left"}
        sheet.text(
            left - 1.0 if is_left else right + 1.0,
            level,
            text[:1] if len(text) == 1 else text[:2],
            TEXT if len(text) == 1 else NOTE,
            **settings,
        )
