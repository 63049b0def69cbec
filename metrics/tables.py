"""Tidy rows → comparison tables with intervals, as CSV, LaTeX or Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from xattn.errors import InputError, NameUnknownError
from xattn.metrics.base import Aggregation, MetricMetadata, metrics
from xattn.metrics.statistics import ANY, EXACT_TO, Interval, adjusted, mean_interval, paired, proportion_interval
from xattn.metrics.targets import PER_LABEL
from xattn.metrics.values import is_value
from xattn.text import neutral_cell, shown

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["csv", "latex", "markdown"]
KEYS = ["model", "head", "method"]
EXPLAINED = ["image", "target"]  # what a row explains, for one model and head
SIGNIFICANT = 0.05
FEW = 30  # images, below which a table says so
OF_LABELS = {"accuracy": "acc.", "mean_absolute_error": "MAE"}
LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
MARKDOWN = {"|": r"\|", "`": r"\`"}
TAG = re.compile(r"<(?=[A-Za-z/!?])")  # where Markdown reads HTML


@dataclass(frozen=True)
class Table:
    """A comparison: one row per model × head × method.

    Attributes:
        frame: `model, head, method`, then for each metric its mean, `… low` and `… high` (95 %), with a reference also `… difference`
            and `… p`; then where labels are known `accuracy`, or `mean_absolute_error` of the values of a regression, each with `… low`
            and `… high`; `n`, the images that the row is over, and `degenerate_share`, of all its images.
        metrics: as named in the rows.
        against: the reference method, or None.
        notes: what a reader must know.
    """

    frame: pd.DataFrame
    metrics: tuple[str, ...]
    against: str | None
    notes: tuple[str, ...]

    def text(self, form: Format, *, spreadsheet: bool = False) -> str:
        """The table in one of the formats; Markdown and LaTeX print mean [low, high], and the notes.

        Args:
            form: "csv", "latex" or "markdown".
            spreadsheet: of CSV, put an apostrophe before names that a spreadsheet would take for formulas.
        """
        if form == "csv":
            frame = self.frame.copy()
            for key in KEYS if spreadsheet else ():
                frame[key] = [neutral_cell(str(name)) for name in frame[key]]
            return str(frame.to_csv(index=False))
        cells = self.cells(form)
        if form == "markdown":
            return (
                f"{cells.to_markdown(index=False, disable_numparse=True, colalign=['left'] * 3 + ['right'] * (cells.shape[1] - 3))}\n\n"
                + "".join(f"- {_escaped(note, latex=False)}\n" for note in self.notes)
            )
        body = cells.to_latex(index=False, escape=False, column_format="l" * 3 + "r" * (cells.shape[1] - 3))
        return body + "".join(f"% {shown(note, keep='')}\n" for note in self.notes)

    def cells(self, form: Format) -> pd.DataFrame:
        """The cells of the table as text, escaped for the format: names, then mean [low, high] of each metric, then n and degenerate."""
        import pandas as pd

        latex = form == "latex"
        marks = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"} if latex else {"lower": "↓", "higher": "↑"}
        columns: dict[str, list[str]] = {key: [_escaped(str(value), latex) for value in self.frame[key]] for key in KEYS}
        for metric in self.metrics:
            metadata = metadata_of(metric)
            suffix = metric.partition(":")[2]
            header = f"{metadata.symbol}{f' ({suffix})' if suffix else ''}"
            columns[f"{_escaped(header, latex)} {marks[metadata.better]}"] = [
                self._cell(row, metric, latex) for _, row in self.frame.iterrows()
            ]
        for name, header in OF_LABELS.items():
            if name in self.frame:
                written = _number if name == "accuracy" else _significant
                columns[header] = [_with_interval(row, name, written) for _, row in self.frame.iterrows()]
        columns["n"] = [str(value) for value in self.frame["n"]]
        columns["degenerate"] = [f"{value:.1%}".replace("%", r"\%" if latex else "%") for value in self.frame["degenerate_share"]]
        return pd.DataFrame(columns)

    def _cell(self, row: pd.Series, metric: str, latex: bool) -> str:
        text = _with_interval(row, metric, _number)
        if self.against is not None and row["method"] != self.against and row[f"{metric} p"] < SIGNIFICANT:
            text += r"$^{*}$" if latex else " *"
        return text


def metadata_of(metric: str) -> MetricMetadata:
    """What the metric of a row declares."""
    return metrics.create(metric).metadata


def aggregated(values: torch.Tensor, aggregation: Aggregation, limits: tuple[float, float] = ANY) -> Interval:
    """The interval in a table's cell.

    Args:
        values: of the images, `(n,)`.
        aggregation: "mean"; "proportion", of values that are each one of the limits; "harmonic mean", the inverse of the mean of the
            inverses.
        limits: lowest and highest value of the metric.
    """
    if aggregation == "proportion":
        return proportion_interval(values, limits)
    if aggregation == "mean":
        return mean_interval(values, limits)
    within = (0.0 if math.isinf(limits[1]) else 1 / limits[1], 1 / limits[0] if limits[0] > 0 else math.inf)
    inverse = mean_interval(values.reciprocal(), within)
    return Interval(1 / inverse.mean if inverse.mean else math.nan, _inverse(inverse.high), _inverse(inverse.low), inverse.n)


def _inverse(end: float) -> float:
    return 1 / end if end > 0 else math.inf if end <= 0 else math.nan


def comparison(rows: pd.DataFrame, against: str | None = None, *, without_degenerate: bool = False) -> Table:
    """A comparison table from tidy rows.

    Args:
        rows: with the columns of `scores.csv`, of one run or several.
        against: a method; every other one is tested against it on the same images, model and head.
        without_degenerate: leave maps that are flagged `degenerate` out of every column.

    Raises:
        InputError: there are no scores.
        NameUnknownError: there are no rows of the method `against`.
    """
    import pandas as pd

    rows = rows[rows["metric"].notna()].reset_index(drop=True)
    if rows.empty:
        raise InputError("there are no scores to compare: the rows hold no metric.")
    known = list(dict.fromkeys(rows["method"]))
    if against is not None and against not in known:
        raise NameUnknownError("method in these runs", against, known)
    names = tuple(dict.fromkeys(rows["metric"]))
    flagged = rows["degenerate"].astype(bool)
    kept = rows[~flagged] if without_degenerate else rows
    left_out = len(rows[flagged].drop_duplicates([*KEYS, *EXPLAINED])) if without_degenerate else 0
    values = dict(iter(kept.set_index(EXPLAINED).groupby([*KEYS, "metric"], sort=False)["value"]))
    lines = []
    for (model, head, method), group in rows.groupby(KEYS, sort=False):
        line: dict[str, object] = {"model": model, "head": head, "method": method}
        left = kept.loc[kept.index.intersection(group.index)]
        for metric in names:
            own = values.get((model, head, method, metric))
            line |= _columns(metric, _of_metric(own, metric))
            if against is not None:
                line |= _tested(own, None if method == against else values.get((model, head, against, metric)), metric)
        images, all_images = left.drop_duplicates(EXPLAINED), group.drop_duplicates(EXPLAINED)
        line |= _of_labels(images)
        lines.append(line | {"n": len(images), "degenerate_share": float(flagged[all_images.index].mean())})
    frame = pd.DataFrame(lines)
    if against is not None:
        for metric in names:
            frame[f"{metric} p"] = adjusted(frame[f"{metric} p"].to_list())
    return Table(frame, names, against, _notes(kept, frame, names, against, left_out))


def _of_metric(values: pd.Series | None, metric: str) -> Interval:
    component = metrics.create(metric)
    return aggregated(_tensor(values), component.instance.aggregation, component.metadata.limits)


def _tensor(values: pd.Series | None) -> torch.Tensor:
    return torch.tensor([] if values is None else values.to_list(), dtype=torch.float64)


def _of_labels(images: pd.DataFrame) -> dict[str, object]:
    """Accuracy, or mean absolute error of the values of a regression, over the images whose label is known."""
    known = images["label"].notna() & images["predicted"].notna()
    found = images[known & ~images["target_rule"].map(lambda rule: str(rule).startswith(PER_LABEL)).astype(bool)]
    of_values = found["target"].map(lambda target: is_value(str(target))).astype(bool)
    right = torch.tensor((found["predicted"] == found["label"])[~of_values].to_list(), dtype=torch.float64)
    off = torch.tensor((found["predicted"] - found["label"])[of_values].abs().to_list(), dtype=torch.float64)
    columns: dict[str, object] = {}
    if len(right):
        columns |= _columns("accuracy", proportion_interval(100 * right, (0, 100)))
    if len(off):
        columns |= _columns("mean_absolute_error", mean_interval(off, (0, math.inf)))
    return columns


def _columns(name: str, interval: Interval) -> dict[str, object]:
    return {name: interval.mean, f"{name} low": interval.low, f"{name} high": interval.high}


def _tested(values: pd.Series | None, reference: pd.Series | None, metric: str) -> dict[str, object]:
    """Values against those of the reference, both by what they explain; NaN where there is none."""
    if values is None or reference is None:
        return {f"{metric} difference": math.nan, f"{metric} p": math.nan}
    import pandas as pd

    if not values.index.equals(reference.index):
        both = pd.concat({"values": values, "reference": reference}, axis=1, join="inner")
        values, reference = both["values"], both["reference"]
    found = paired(_tensor(values), _tensor(reference))
    return {f"{metric} difference": found.difference.mean, f"{metric} p": found.p}


def _notes(rows: pd.DataFrame, frame: pd.DataFrame, names: Sequence[str], against: str | None, left_out: int) -> tuple[str, ...]:
    rules = sorted(rows["target_rule"].dropna().unique())
    of = {metric: metrics.create(metric) for metric in names}
    proportions = [of[metric].metadata.symbol for metric in names if of[metric].instance.aggregation == "proportion"]
    proportions += ["accuracy"] * ("accuracy" in frame)
    wilson = f"; of {' and '.join(dict.fromkeys(proportions))} Wilson's" if proportions else ""
    notes = [f"Mean over images [95 % confidence interval: Student's, clipped to the metric's range{wilson}]; n images."]
    if (frame["n"] < FEW).any():
        notes.append(f"n is below {FEW}: intervals and tests of so few images are rough.")
    notes.append(
        f"Target: {', '.join(rules)}."
        + (" n counts pairs of image and label." if any(rule.startswith(PER_LABEL) for rule in rules) else "")
    )
    if "mean_absolute_error" in frame:
        notes.append("MAE: mean absolute error, of the value that is explained against the label.")
    if "predicted" in rules and len(frame.drop_duplicates(["model", "head"])) > 1:
        notes.append("Each classifier is explained for its own prediction: rows of different classifiers answer different questions.")
    if left_out:
        notes.append(f"Left out of every column but the last: {left_out} degenerate map{'s' * (left_out > 1)}.")
    if len({frozenset(images) for _, images in rows.groupby(KEYS, sort=False)["image"]}) > 1:
        notes.append("Rows are over different images: their means are not over the same ones.")
    fewer = {m: counts for m in names if (counts := _counts(rows, m)) and max(counts) < int(frame["n"].max())}
    notes += [f"{metric}: over {max(counts)} images at most." for metric, counts in fewer.items()]
    notes += [
        f"{metric}: the harmonic mean over images, as released (the inverse of the mean of inverses)."
        for metric in names
        if of[metric].instance.aggregation == "harmonic mean"
    ]
    undefined = rows[rows["value"].isna()].groupby("metric", sort=False).size()
    notes += [f"{metric}: undefined for {count} maps, left out of the mean." for metric, count in undefined.items()]
    if against is not None:
        notes.append(
            f"* differs from {against} on the same images (Wilcoxon signed-rank, exact up to {EXACT_TO} differences, "
            f"p < {SIGNIFICANT}, Benjamini–Hochberg within a metric)."
        )
    for metric in names:
        about = of[metric].metadata
        notes.append(f"{about.symbol}: {metric}, {about.better} is better{', in %' if about.unit == '%' else ''}.")
    return tuple(notes)


def _counts(rows: pd.DataFrame, metric: str) -> list[int]:
    return [int(count) for count in rows[rows["metric"] == metric].groupby(KEYS).size()]


def _with_interval(row: pd.Series, name: str, written: Callable[[float], str]) -> str:
    mean, low, high = row[name], row[f"{name} low"], row[f"{name} high"]
    return written(mean) + ("" if math.isnan(mean) or math.isnan(low) else f" [{written(low)}, {written(high)}]")


def _significant(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _escaped(text: str, latex: bool) -> str:
    """A name as it is read in LaTeX or Markdown, on one line."""
    text = shown(text, keep="")
    if not latex:
        text = TAG.sub("&lt;", text)
    return "".join((LATEX if latex else MARKDOWN).get(character, character) for character in text)
