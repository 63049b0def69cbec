"""Tidy rows → comparison tables with intervals, as CSV, LaTeX or Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from xattn.errors import InputError, NameUnknownError
from xattn.metrics.base import Aggregation, MetricMetadata, metrics
from xattn.metrics.statistics import Interval, adjusted, mean_interval, paired
from xattn.metrics.targets import PER_LABEL
from xattn.metrics.values import is_value
from xattn.text import neutral_cell, shown

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["csv", "latex", "markdown"]
KEYS = ["model", "head", "method"]
EXPLAINED = ["image", "target"]  # what a row explains, for one model and head
SIGNIFICANT = 0.05
LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
MARKDOWN = {"|": r"\|", "<": "&lt;", ">": "&gt;", "`": r"\`"}


@dataclass(frozen=True)
class Table:
    """A comparison: one row per model × head × method.

    Attributes:
        frame: `model, head, method`, then for each metric its mean, `… low` and `… high` (95 %), with a reference also `… difference`
            and `… p`; then where labels are known `accuracy`, or `mean_absolute_error` of the values of a regression, `n` and
            `degenerate_share`.
        metrics: as named in the rows.
        against: the reference method, or None.
        notes: what a reader must know.
    """

    frame: pd.DataFrame
    metrics: tuple[str, ...]
    against: str | None
    notes: tuple[str, ...]

    def text(self, form: Format, *, spreadsheet: bool = False) -> str:
        """The table in one of the formats; Markdown and LaTeX print mean ± half the interval, and the notes.

        Args:
            form: "csv", "latex" or "markdown".
            spreadsheet: of CSV, put an apostrophe before names that a spreadsheet would take for formulas.
        """
        if form == "csv":
            frame = self.frame.copy()
            for key in KEYS if spreadsheet else ():
                frame[key] = [neutral_cell(str(name)) for name in frame[key]]
            return str(frame.to_csv(index=False))
        cells = self._shown(form)
        if form == "markdown":
            return (
                f"{cells.to_markdown(index=False, disable_numparse=True, colalign=['left'] * 3 + ['right'] * (cells.shape[1] - 3))}\n\n"
                + "".join(f"- {_escaped(note, latex=False)}\n" for note in self.notes)
            )
        body = cells.to_latex(index=False, escape=False, column_format="l" * 3 + "r" * (cells.shape[1] - 3))
        return body + "".join(f"% {shown(note, keep='')}\n" for note in self.notes)

    def _shown(self, form: Format) -> pd.DataFrame:
        import pandas as pd

        latex = form == "latex"
        marks = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"} if latex else {"lower": "↓", "higher": "↑"}
        plus = r"$\,\pm\,$" if latex else " ± "
        columns: dict[str, list[str]] = {key: [_escaped(str(value), latex) for value in self.frame[key]] for key in KEYS}
        for metric in self.metrics:
            metadata = metadata_of(metric)
            suffix = metric.partition(":")[2]
            header = f"{metadata.symbol}{f' ({suffix})' if suffix else ''}"
            columns[f"{_escaped(header, latex)} {marks[metadata.better]}"] = [
                self._cell(row, metric, plus, latex) for _, row in self.frame.iterrows()
            ]
        if "accuracy" in self.frame:
            columns["acc."] = [_number(value) for value in self.frame["accuracy"]]
        if "mean_absolute_error" in self.frame:
            columns["MAE"] = [_significant(value) for value in self.frame["mean_absolute_error"]]
        columns["n"] = [str(value) for value in self.frame["n"]]
        columns["degenerate"] = [f"{value:.1%}".replace("%", r"\%" if latex else "%") for value in self.frame["degenerate_share"]]
        return pd.DataFrame(columns)

    def _cell(self, row: pd.Series, metric: str, plus: str, latex: bool) -> str:
        mean, high = row[metric], row[f"{metric} high"]
        if math.isnan(mean):
            return "–"
        text = _number(mean) + (f"{plus}{_number(high - mean)}" if math.isfinite(high) else "")
        if self.against is not None and row["method"] != self.against and row[f"{metric} p"] < SIGNIFICANT:
            text += r"$^{*}$" if latex else " *"
        return text


def metadata_of(metric: str) -> MetricMetadata:
    """What the metric of a row declares."""
    return metrics.create(metric).metadata


def aggregated(values: torch.Tensor, aggregation: Aggregation) -> Interval:
    """The interval in a table's cell.

    Args:
        values: of the images, `(n,)`.
        aggregation: "mean"; "harmonic mean", the inverse of the mean of the inverses.
    """
    if aggregation == "mean":
        return mean_interval(values)
    inverse = mean_interval(values.reciprocal())
    return Interval(1 / inverse.mean if inverse.mean else math.nan, _inverse(inverse.high), _inverse(inverse.low), inverse.n)


def _inverse(end: float) -> float:
    return 1 / end if end > 0 else math.inf if end <= 0 else math.nan


def comparison(rows: pd.DataFrame, against: str | None = None) -> Table:
    """A comparison table from tidy rows.

    Args:
        rows: with the columns of `scores.csv`, of one run or several.
        against: a method; every other one is tested against it on the same images, model and head.

    Raises:
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
    aggregations = {metric: metrics.create(metric).instance.aggregation for metric in names}
    of_values = rows["target"].map(lambda target: is_value(str(target)))
    per_label = rows["target_rule"].map(lambda rule: str(rule).startswith(PER_LABEL))
    compared = rows["label"].notna() & rows["predicted"].notna() & ~per_label
    lines = []
    for (model, head, method), group in rows.groupby(KEYS, sort=False):
        line: dict[str, object] = {"model": model, "head": head, "method": method}
        for metric in names:
            values = torch.tensor(group.loc[group["metric"] == metric, "value"].to_list(), dtype=torch.float64)
            interval = aggregated(values, aggregations[metric])
            line |= {metric: interval.mean, f"{metric} low": interval.low, f"{metric} high": interval.high}
            if against is not None:
                line |= _tested(rows, str(model), str(head), str(method), metric, against)
        images = group.drop_duplicates(EXPLAINED)
        labelled = images[compared[images.index]]
        if (compared & ~of_values).any():
            found = labelled[~of_values[labelled.index]]
            line["accuracy"] = 100.0 * float((found["predicted"] == found["label"]).mean())
        if (compared & of_values).any():
            found = labelled[of_values[labelled.index]]
            line["mean_absolute_error"] = float((found["predicted"] - found["label"]).abs().mean())
        lines.append(line | {"n": len(images), "degenerate_share": float(images["degenerate"].astype(float).mean())})
    frame = pd.DataFrame(lines)
    if against is not None:
        for metric in names:
            frame[f"{metric} p"] = adjusted(frame[f"{metric} p"].to_list())
    return Table(frame, names, against, _notes(rows, frame, names, against))


def _tested(rows: pd.DataFrame, model: str, head: str, method: str, metric: str, against: str) -> dict[str, object]:
    if method == against:
        return {f"{metric} difference": math.nan, f"{metric} p": math.nan}
    import pandas as pd

    here = rows[(rows["model"] == model) & (rows["head"] == head) & (rows["metric"] == metric)].set_index(EXPLAINED)
    pairs = {name: here.loc[here["method"] == name, "value"] for name in (method, against)}
    both = pd.concat(pairs, axis=1, join="inner")
    values, reference = (torch.tensor(both[name].to_list(), dtype=torch.float64) for name in (method, against))
    found = paired(values, reference)
    return {f"{metric} difference": found.difference.mean, f"{metric} p": found.p}


def _notes(rows: pd.DataFrame, frame: pd.DataFrame, names: Sequence[str], against: str | None) -> tuple[str, ...]:
    rules = sorted(rows["target_rule"].dropna().unique())
    notes = ["Mean over images ± half of the 95 % confidence interval (Student); n images."]
    notes.append(
        f"Target: {', '.join(rules)}."
        + (" n counts pairs of image and label." if any(rule.startswith(PER_LABEL) for rule in rules) else "")
    )
    if "mean_absolute_error" in frame:
        notes.append("MAE: mean absolute error, of the value that is explained against the label.")
    if "predicted" in rules and len(frame.drop_duplicates(["model", "head"])) > 1:
        notes.append("Each classifier is explained for its own prediction: rows of different classifiers answer different questions.")
    if frame["n"].nunique() > 1:
        notes.append("Methods were run on different images (see n): their means are not over the same ones.")
    fewer = {m: counts for m in names if (counts := _counts(rows, m)) and max(counts) < int(frame["n"].max())}
    notes += [f"{metric}: over {max(counts)} images at most." for metric, counts in fewer.items()]
    notes += [
        f"{metric}: the harmonic mean over images, as released (the inverse of the mean of inverses)."
        for metric in names
        if metrics.create(metric).instance.aggregation == "harmonic mean"
    ]
    undefined = rows[rows["value"].isna()].groupby("metric", sort=False).size()
    notes += [f"{metric}: undefined for {count} maps, left out of the mean." for metric, count in undefined.items()]
    if against is not None:
        notes.append(
            f"* differs from {against} on the same images (Wilcoxon signed-rank, p < {SIGNIFICANT}, Benjamini–Hochberg within a metric)."
        )
    notes += [
        f"{metadata_of(m).symbol}: {m}, {metadata_of(m).better} is better{', in %' if metadata_of(m).unit == '%' else ''}." for m in names
    ]
    return tuple(notes)


def _counts(rows: pd.DataFrame, metric: str) -> list[int]:
    return [int(count) for count in rows[rows["metric"] == metric].groupby(KEYS).size()]


def _significant(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _escaped(text: str, latex: bool) -> str:
    """A name as it is read in LaTeX or Markdown, on one line."""
    text = shown(text, keep="")
    return "".join((LATEX if latex else MARKDOWN).get(character, character) for character in text)
