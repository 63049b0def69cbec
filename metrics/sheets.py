"""The printed content of a comparison table, independent of the format: columns, decimals, and marks of the best."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Literal

from xattn.errors import NameUnknownError, SettingError
from xattn.metrics.base import MetricMetadata, metrics
from xattn.text import counted, shown

if TYPE_CHECKING:
    import pandas as pd

SIGNIFICANT = 0.05
DIGITS = 2  # significant digits of a column's median half-width
MOST_DIGITS = 6
OF_LABELS = {"accuracy": "acc.", "mean_absolute_error": "MAE"}
BETTER: Literal["△"] = "△"
WORSE: Literal["▽"] = "▽"
Mark = Literal["", "△", "▽"]
FAILS = "✗"  # mark of a metric that fails its trial


@dataclass(frozen=True)
class Cell:
    """A mean with its interval.

    Attributes:
        mean: as printed.
        low: lower end, as printed; empty without an interval.
        high: upper end.
        below: distance of the lower end, as printed.
        above: distance of the upper end.
        rank: 1 for the best of a column within a network, 2 for the second, else 0.
        mark: whether it is better or worse than the reference; empty if neither.
    """

    mean: str
    low: str = ""
    high: str = ""
    below: str = ""
    above: str = ""
    rank: int = 0
    mark: Mark = ""

    @property
    def plain(self) -> str:
        """`mean [low, high] mark`."""
        return self.mean + (f" [{self.low}, {self.high}]" if self.low else "") + (f" {self.mark}" if self.mark else "")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: symbol and direction.
        cells: from top to bottom.
        half: the largest half-width of its intervals, as printed; empty without one.
    """

    header: str
    cells: tuple[Cell, ...]
    half: str


@dataclass(frozen=True)
class Sheet:
    """The printed content of a table, independent of the format.

    Attributes:
        rows: model, head and method of each row.
        columns: of the metrics and the labels.
        tail: headers and texts of the last columns: n and degenerate maps.
        notes: below the table.
        caption: above it.
        label: for references in a document.
    """

    rows: tuple[tuple[str, str, str], ...]
    columns: tuple[Column, ...]
    tail: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...]
    caption: str
    label: str


def sheet(
    frame: pd.DataFrame,
    of: Sequence[str],
    against: str | None,
    notes: Sequence[str],
    *,
    failing: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    digits: int | None = None,
    difference: bool = False,
    caption: str | None = None,
    label: str | None = None,
) -> Sheet:
    """The printed content of a table.

    Args:
        frame: of a `Table`.
        of: its metrics.
        against: its reference.
        notes: its notes.
        failing: metrics whose headers are marked because they fail their trial.
        columns: metrics, by name or symbol, in the order in which they are printed, `accuracy`, `mean_absolute_error`; None: all.
        digits: decimals; None: as many as show two digits of the median half-width of a column's intervals.
        difference: print the mean difference to the reference, with its interval, instead of the mean; the reference's own rows, and
            columns of the labels that were not requested, are left out.
        caption: None: a description of the table.
        label: None: "tab:xattn".

    Raises:
        NameUnknownError: no column has such a name.
        SettingError: the number of decimals is out of range, there is no reference for differences, or a label has characters other than
            letters, digits and `:._-`.
    """
    if digits is not None and not 0 <= digits <= MOST_DIGITS:
        raise SettingError(f"a table prints 0 to {MOST_DIGITS} decimals; got {digits}.")
    if label is not None and not re.fullmatch(r"[\w:.-]+", label, re.ASCII):
        raise SettingError(f"a label consists of letters, digits and any of : . _ -; got '{shown(label)}'.")
    if difference and against is None:
        raise SettingError("differences need a reference: name one with --against (against=).")
    about = {metric: metrics.create(metric).metadata for metric in of}
    names = _chosen([*of, *(name for name in OF_LABELS if name in frame)], about, columns)
    if difference:
        names = [name for name in names if name in about or columns is not None]
        frame = _without_reference(frame, str(against))
    differs = [difference and name in about for name in names]
    found = tuple(
        _column(frame, name, about.get(name), digits, f"{name} difference" if each else name, against is not None)
        for name, each in zip(names, differs, strict=True)
    )
    found = tuple(
        replace(column, header=f"{column.header} {FAILS}") if name in failing else column for name, column in zip(names, found, strict=True)
    )
    rows = tuple(zip(*(frame[key].astype(str) for key in ("model", "head", "method")), strict=True))
    degenerate = tuple(f"{share:.1%}" for share in frame["degenerate_share"])
    seeds = (("seeds", tuple(str(count) for count in frame["seeds"])),) if "seeds" in frame else ()
    tail = (*seeds, ("n", tuple(str(count) for count in frame["n"])), ("degenerate", degenerate))
    if difference:
        plain = [OF_LABELS[name] for name in names if name not in about]
        own = f" {' and '.join(plain)}: no difference but the mean, as in a table without differences." if plain else ""
        notes = (f"Differences to {against}, mean over pairs [95 % confidence interval: Student's].{own}", *notes[1:])
    left_out = tuple(
        start
        for name in of
        if name not in names
        for start in (f"{about[name].symbol}: {name},", f"{about[name].symbol}: {name}.", f"{name}: ")  # name:setting is another metric
    )
    notes = [note for note in notes if not note.startswith(left_out)]
    counts = sorted(set(frame["n"]))
    images = counted(counts[0], "image") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} images"
    what = "Differences" if difference else "Means"
    said = f"{what} over {images}." if caption is None else caption
    return Sheet(rows, found, tail, tuple(notes), said, label or "tab:xattn")


def _without_reference(frame: pd.DataFrame, against: str) -> pd.DataFrame:
    """The rows that are tested against the reference."""
    if (frame["method"] == against).any():
        kept = frame["method"] != against
    else:
        model, head = frame["model"].astype(str), frame["head"].astype(str)
        kept = (model != against) & (head != against) & (model + " · " + head != against)
    return frame[kept].reset_index(drop=True) if kept.any() else frame


def _chosen(known: list[str], of: dict[str, MetricMetadata], columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        return known
    symbols = {OF_LABELS.get(name) or of[name].symbol: name for name in reversed(known)}
    for asked in columns:
        if asked not in known and asked not in symbols:
            raise NameUnknownError("column of this table", asked, [*known, *symbols])
    return list(dict.fromkeys(asked if asked in known else symbols[asked] for asked in columns))


def _column(frame: pd.DataFrame, name: str, metadata: MetricMetadata | None, digits: int | None, shows: str, tested: bool) -> Column:
    better = metadata.better if metadata else "lower" if name == "mean_absolute_error" else "higher"
    suffix = name.partition(":")[2] if metadata else ""
    symbol = (metadata.symbol if metadata else OF_LABELS[name]) + (f" ({suffix})" if suffix else "")
    means, lows, highs = (list(frame[key]) for key in (shows, f"{shows} low", f"{shows} high"))
    halves = [half for low, high in zip(lows, highs, strict=True) if math.isfinite(half := (high - low) / 2)]
    if metadata is None and name == "mean_absolute_error" and digits is None:
        written: Callable[[float], str] = _significant
    else:
        places = decimals(halves) if digits is None else digits
        written = lambda value: _number(value, places)  # noqa: E731
    ranks = _ranks(frame, means, better, written) if shows == name else [0] * len(means)
    cells = []
    for number, (mean, low, high) in enumerate(zip(means, lows, highs, strict=True)):
        mark = _mark(frame.iloc[number], name, better) if metadata and tested else ""
        if math.isnan(mean) or math.isnan(low):
            cells.append(Cell(written(mean), rank=ranks[number], mark=mark))
        else:
            ends = written(low), written(high), written(mean - low), written(high - mean)
            cells.append(Cell(written(mean), *ends, rank=ranks[number], mark=mark))
    arrow = {"lower": " ↓", "higher": " ↑"}[better] if metadata else ""
    return Column(f"{symbol}{arrow}", tuple(cells), written(max(halves)) if halves else "")


def decimals(halves: Sequence[float]) -> int:
    """Number of decimals that shows two digits of the median of some half-widths."""
    wide = [half for half in halves if 0 < half < math.inf]
    if not wide:
        return 2
    return min(MOST_DIGITS, max(0, DIGITS - 1 - math.floor(math.log10(median(wide)))))


def _ranks(frame: pd.DataFrame, means: Sequence[float], better: str, written: Callable[[float], str]) -> list[int]:
    """Ranks by the printed values, so that equal cells have equal ranks; within the rows of one model and head, if there are at least
    three."""
    found = [0] * len(means)
    classifiers = list(zip(frame["model"], frame["head"], strict=True))
    for classifier in dict.fromkeys(classifiers):
        places = [place for place, each in enumerate(classifiers) if each == classifier and not math.isnan(means[place])]
        values = sorted({float(written(means[place])) for place in places}, reverse=better == "higher")
        for place in places:
            rank = values.index(float(written(means[place]))) + 1
            found[place] = rank if rank <= 2 < len(values) else 0
    return found


def _mark(row: pd.Series, name: str, better: str) -> Mark:
    if not row[f"{name} p"] < SIGNIFICANT:
        return ""
    return BETTER if (row[f"{name} difference"] > 0) == (better == "higher") else WORSE


def _significant(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _number(value: float, decimals: int) -> str:
    if math.isnan(value):
        return "–"
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text
