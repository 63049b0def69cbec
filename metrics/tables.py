"""Comparison tables from tidy rows, with intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xattn.deferred import numpy as np
from xattn.errors import InputError, NameUnknownError
from xattn.metrics.base import Aggregation, metrics
from xattn.metrics.sheets import Sheet, sheet
from xattn.metrics.statistics import (
    ANY,
    Interval,
    Values,
    adjusted,
    inverted,
    inverted_limits,
    mean_interval,
    needed,
    numbers,
    paired,
    proportion_interval,
    unit_of,
)
from xattn.metrics.table_notes import table_notes
from xattn.metrics.target_base import PER_LABEL
from xattn.metrics.training_seeds import by_network, compared, crossed, of_networks, over_seeds, shared_pictures, with_networks
from xattn.metrics.typeset import html_table, latex, markdown, typst
from xattn.metrics.values import is_value
from xattn.metrics.wide import EXPLAINED, KEYS, groups
from xattn.text import neutral_cell

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["csv", "markdown", "latex", "html", "typst"]
OF_IMAGES = ["network", *KEYS, *EXPLAINED, "target_rule", "label", "predicted"]  # columns about the image, the same for all metrics
FORMATS: dict[str, Callable[[Sheet], str]] = {"markdown": markdown, "latex": latex, "html": html_table, "typst": typst}


@dataclass(frozen=True, repr=False)
class Table:
    """A comparison: one row per model × head × method.

    Attributes:
        frame: `model, head, method`, then for each metric its mean, `… low` and `… high` (95 %), with a reference also `… difference`, its
            ends, `… p` and `… needed`, the number of images with which a t-test of only this difference would find it in four of five runs;
            then, if labels are known, `accuracy`, or `mean_absolute_error` of the values of a regression, each with `… low` and `… high`;
            `n`, the number of images of the row, `degenerate_share`, of all its maps, and, if networks are grouped by seeds, `seeds`, their
            number.
        metrics: as named in the rows.
        against: the reference, a method or a classifier, or None.
        notes: remarks that a reader needs.
        failing: metrics that fail their trial on these rows; they are marked.
    """

    frame: pd.DataFrame
    metrics: tuple[str, ...]
    against: str | None
    notes: tuple[str, ...]
    failing: tuple[str, ...] = ()

    def text(
        self,
        form: Format,
        *,
        columns: Sequence[str] | None = None,
        digits: int | None = None,
        difference: bool = False,
        caption: str | None = None,
        label: str | None = None,
        spreadsheet: bool = False,
    ) -> str:
        """The table in one of the formats; all but CSV print means with intervals, and the notes.

        LaTeX (booktabs), HTML and Typst group the rows by network; the best of each network is bold and the second underlined.

        Args:
            form: "csv", with every column and digit, or "markdown", "latex", "html", "typst".
            columns: metrics by name or symbol, in the order in which they are printed; None: all.
            digits: decimals; None: as many as show two digits of the median half-width of a column's intervals.
            difference: print mean differences to the reference, with their intervals, instead of the means.
            caption: for LaTeX, HTML and Typst.
            label: for references in a LaTeX or Typst document; None: "tab:xattn".
            spreadsheet: for CSV, put an apostrophe before names that a spreadsheet would take for formulas.

        Raises:
            NameUnknownError: no column has such a name.
            SettingError: the number of decimals is out of range, or there is no reference for differences.
        """
        if form == "csv":
            frame = self.frame.copy()
            for key in KEYS if spreadsheet else ():
                frame[key] = [neutral_cell(str(name)) for name in frame[key]]
            return str(frame.to_csv(index=False))
        look = {"columns": columns, "digits": digits, "difference": difference, "caption": caption, "label": label}
        return FORMATS[form](self.sheet(**look))

    def __repr__(self) -> str:
        """The text, for terminals."""
        return self.text("markdown")

    def _repr_html_(self) -> str:
        """The table as HTML, for notebooks."""
        return self.text("html")

    def sheet(self, **look: Any) -> Sheet:
        """The printed content, independent of the format; arguments are those of `text`."""
        return sheet(self.frame, self.metrics, self.against, self.notes, failing=self.failing, **look)


def aggregated(values: Values, aggregation: Aggregation, limits: tuple[float, float] = ANY) -> Interval:
    """The mean and interval of a table's cell.

    Args:
        values: of the images, `(n,)`.
        aggregation: "mean"; "proportion", for values that are each one of the limits; "harmonic mean", the inverse of the mean of the
            inverses.
        limits: lowest and highest value of the metric.
    """
    if aggregation == "proportion":
        return proportion_interval(values, limits)
    if aggregation == "mean":
        return mean_interval(values, limits)
    own = numbers(values)
    inverses = np.divide(1.0, own, out=np.full_like(own, math.inf), where=own != 0)
    return inverted(mean_interval(inverses, inverted_limits(limits)))


def comparison(rows: pd.DataFrame, against: str | None = None, *, without_degenerate: bool = False, seeds: str | None = None) -> Table:
    """Creates a comparison table from tidy rows.

    Args:
        rows: with the columns of `scores.csv`, of one run or several.
        against: the reference, on the same images: a method, for all others of the same model and head; or a model, a head or
            "model · head", for the same method of every other classifier.
        without_degenerate: leave out maps that are flagged `degenerate` in every column.
        seeds: regular expression that matches the training seed in the models' names: models with the same name without it are one row,
            with an interval over seeds and pictures, see `training_seeds.crossed`.

    Raises:
        NameUnknownError: there are no rows of `against`.
        InputError: there are no scores, `against` names several classifiers of one method, or no models differ only by their seeds.
        SettingError: `seeds` is not a regular expression.
    """
    import pandas as pd

    rows = with_networks(scored(rows), seeds)
    explained = EXPLAINED if seeds is None else ["network", *EXPLAINED]
    reference_of = references(rows, against)
    names = tuple(map(str, rows["metric"].unique()))
    flagged = rows["degenerate"].astype(bool)
    kept = rows[~flagged] if without_degenerate else rows
    left_out = len(rows[flagged].drop_duplicates([*KEYS, *explained])) if without_degenerate else 0
    per_label = any(str(rule).startswith(PER_LABEL) for rule in rows["target_rule"].unique())
    by_explained = kept if against is None and seeds is None else kept.set_index(EXPLAINED, drop=seeds is None)
    of_metrics = groups(kept, [*KEYS, "metric"])
    if seeds is None:
        own_values = by_explained["value"]
        values: dict[Any, Any] = {key: own_values.iloc[where] for key, where in of_metrics}
    else:
        values = {key: of_networks(by_explained.iloc[where], per_label=per_label) for key, where in of_metrics}
    lines = []
    for (model, head, method), where in groups(rows, KEYS):
        group = rows.iloc[where][OF_IMAGES]
        row = str(model), str(head), str(method)
        line: dict[str, object] = dict(zip(KEYS, row, strict=True))
        for metric in names:
            own = values.get((*row, metric))
            line |= _columns(metric, mean_of(own, metric))
            if against is not None:
                reference = reference_of.get(row)
                line |= _tested(own, None if reference is None else _of_reference(values, row, reference, metric, per_label), metric)
        all_images = group.drop_duplicates(explained)
        images = group[~flagged[group.index]].drop_duplicates(explained) if without_degenerate else all_images
        line |= _of_labels(images)
        line |= {"n": len(images) if seeds is None else shared_pictures(images, " · ".join(row), per_label=per_label)}
        line |= {"degenerate_share": float(flagged[all_images.index].mean())}
        lines.append(line | ({} if seeds is None else {"seeds": group["network"].nunique()}))
    frame = pd.DataFrame(lines)
    if against is not None:
        for metric in names:
            frame[f"{metric} p"] = adjusted(frame[f"{metric} p"].to_list())
    return Table(frame, names, against, table_notes(kept, frame, names, against, left_out))


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a score, numbered.

    Raises:
        InputError: there are none.
    """
    has_score = rows["metric"].notna()
    found = rows if has_score.all() else rows[has_score]
    if found.empty:
        raise InputError("there are no scores to compare: the rows have no metric.")
    return found.reset_index(drop=True)


def mean_of(values: Any, metric: str) -> Interval:
    """The mean of a metric's values with its interval: over pictures, or over networks of several seeds and pictures.

    Args:
        values: a series for one network, a frame with one column per network, or None if there are no values.
        metric: its name.
    """
    component = metrics.create(metric)
    aggregation, limits = component.instance.aggregation, component.metadata.limits
    if values is not None and values.ndim == 2:
        if aggregation == "harmonic mean":
            nonzero = values[(values != 0).all(axis=1)]
            return inverted(crossed((1 / nonzero).T.to_numpy(), limits=inverted_limits(limits)).difference)
        return over_seeds(values.T.to_numpy(), limits, is_share=aggregation == "proportion")
    return aggregated([] if values is None else values.to_numpy(), aggregation, limits)


def _of_labels(images: pd.DataFrame) -> dict[str, object]:
    """Accuracy, or mean absolute error of the values of a regression, over the images whose label is known."""
    known = images["label"].notna() & images["predicted"].notna()
    found = images[known & ~images["target_rule"].map(lambda rule: str(rule).startswith(PER_LABEL)).astype(bool)]
    of_values = found["target"].map(lambda target: is_value(str(target))).astype(bool)
    found = found.assign(right=100.0 * (found["predicted"] == found["label"]), off=(found["predicted"] - found["label"]).abs())
    columns: dict[str, object] = {}
    if len(right := found[~of_values]):
        columns |= _columns("accuracy", _of_label(right, "right", (0, 100), proportion_interval))
    if len(off := found[of_values]):
        columns |= _columns("mean_absolute_error", _of_label(off, "off", (0, math.inf), mean_interval))
    return columns


def _of_label(
    images: pd.DataFrame, column: str, limits: tuple[float, float], of_one: Callable[[Values, tuple[float, float]], Interval]
) -> Interval:
    if images["network"].nunique() > 1:
        values = by_network(images, column, per_label=False).T.to_numpy()
        return over_seeds(values, limits, is_share=column == "right")
    return of_one(images[column].to_list(), limits)


def _columns(name: str, interval: Interval) -> dict[str, object]:
    return {name: interval.mean, f"{name} low": interval.low, f"{name} high": interval.high}


Row = tuple[str, str, str]
"""Model, head and method."""


def references(rows: pd.DataFrame, against: str | None) -> dict[Row, Row]:
    """For each row, the row that it is compared with; empty without a reference.

    Args:
        rows: with the columns of `scores.csv`.
        against: as for `comparison`.

    Raises:
        NameUnknownError: there are no rows of `against`.
        InputError: `against` names several classifiers of one method.
    """
    if against is None:
        return {}
    known: list[Row] = list(rows[KEYS].drop_duplicates().itertuples(index=False, name=None))
    if any(method == against for _, _, method in known):
        return {row: (row[0], row[1], against) for row in known if row[2] != against and (row[0], row[1], against) in known}
    found = {}
    for row in known:
        model, _, method = row
        those = [other for other in known if other[2] == method and against in (other[0], other[1], f"{other[0]} · {other[1]}")]
        if len(those) > 1:  # a head of several models: that of the same model
            those = [other for other in those if other[0] == model] if against in {other[1] for other in those} else those
        if len(those) > 1:
            raise InputError(f"'{against}' has several rows of {method}: name one of {', '.join(f'{m} · {h}' for m, h, _ in those)}.")
        if those and those[0] != row:
            found[row] = those[0]
    if not found and not any(against in (model, head, f"{model} · {head}") for model, head, _ in known):
        names = dict.fromkeys([method for _, _, method in known] + [name for model, head, _ in known for name in (model, head)])
        raise NameUnknownError("method, model or head in these runs", against, list(names))
    return found


def _of_reference(values: Mapping[tuple[str, str, str, str], pd.Series], row: Row, reference: Row, metric: str, per_label: bool) -> Any:
    """Values of the reference; for another classifier, which may predict another class, by image only, unless images have several rows."""
    found = values.get((*reference, metric))
    same = per_label or row[:2] == reference[:2]
    return found if found is None or same or found.index.nlevels == 1 else found.droplevel("target")


def _tested(values: Any, reference: Any, metric: str) -> dict[str, object]:
    """Compares values with those of the reference, both indexed by what they explain; NaN where there is none."""
    if values is None or reference is None:
        return {f"{metric} {name}": math.nan for name in ("difference", "difference low", "difference high", "p", "needed")}
    if 2 in (values.ndim, reference.ndim):
        of_seeds = compared(values, reference, metrics.create(metric).metadata.limits).comparison
        return {**_columns(f"{metric} difference", of_seeds.difference), f"{metric} p": of_seeds.p, f"{metric} needed": math.nan}
    import pandas as pd

    if reference.index.nlevels < values.index.nlevels:
        values = values.droplevel("target")
    if not values.index.equals(reference.index):
        both = pd.concat({"values": values, "reference": reference}, axis=1, join="inner")
        values, reference = both["values"], both["reference"]
    found = paired(values.to_numpy(), reference.to_numpy(), floor=unit_of(metrics.create(metric).metadata.limits))
    return {**_columns(f"{metric} difference", found.difference), f"{metric} p": found.p, f"{metric} needed": needed(found.difference)}
