"""What is compared on the same pictures: methods of one classifier, or one method of several classifiers, metric by metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xattn.deferred import numpy as np
from xattn.errors import InputError
from xattn.metrics.base import metrics
from xattn.metrics.statistics import Doubles
from xattn.metrics.tables import KEYS, Row, references, scored
from xattn.metrics.wide import by_picture, numbered

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Block:
    """What is compared of one metric: several methods of one classifier, or one method of several classifiers, on the same pictures.

    Attributes:
        metric: as rows name it.
        rows: model, head and method of each column.
        values: `(n, k)`, of each picture that has a finite value in every column.
        pictures: number of all pictures.
        lacking: for each column, the pictures of which it has no value.
        degenerate: for each column, the share of the n pictures whose map shows nothing.
        pairs: columns that are tested against each other.
        binary: whether each value is one of the metric's limits.
    """

    metric: str
    rows: tuple[Row, ...]
    values: Doubles
    pictures: int
    lacking: tuple[int, ...]
    degenerate: tuple[float, ...]
    pairs: tuple[tuple[int, int], ...]
    binary: bool

    @property
    def classifiers(self) -> list[tuple[str, str]]:
        """Model and head of its columns, each once."""
        return list(dict.fromkeys(row[:2] for row in self.rows))

    def column(self, place: int) -> Doubles:
        """The values of one column."""
        return self.values[:, place]

    def name(self, place: int) -> str:
        """A column as conclusions name it."""
        model, head, method = self.rows[place]
        return method if len(self.classifiers) == 1 else f"{model} · {head}"


def blocks(rows: pd.DataFrame, against: str | None = None, *, without_degenerate: bool = False) -> list[Block]:
    """What is compared, metric by metric.

    A picture that is explained for several targets has one value, the mean over them.

    Args:
        rows: with the columns of `scores.csv`.
        against: a method, which the others of its classifier are tested against; or a model, a head or "model · head", which the same
            method of every other classifier is tested against; None: every two methods of a classifier.
        without_degenerate: count maps that are flagged `degenerate` as without a value.

    Raises:
        NameUnknownError: there are no rows of `against`.
        InputError: there are no scores, or nothing to compare.
    """
    rows = scored(rows)
    reference = references(rows, against)
    rows = rows.assign(flagged=rows["degenerate"].astype(bool))
    if without_degenerate:
        rows = rows.assign(value=rows["value"].where(~rows["flagged"]))
    known: list[Row] = list(rows[KEYS].drop_duplicates().itertuples(index=False, name=None))
    of_classifier = against is None or any(row[2] == against for row in known)
    groups: dict[Any, list[Row]] = {}
    for row in known:
        if of_classifier or row in reference or row in reference.values():
            groups.setdefault(row[:2] if of_classifier else row[2], []).append(row)
    found = []
    for metric in rows["metric"].unique():
        values = rows[rows["metric"] == metric]
        for members in groups.values():
            block = _block(str(metric), values, members, None if against is None else reference)
            if block is not None:
                found.append(block)
    if not found:
        raise InputError("tests compare at least two methods, or a method of two classifiers, on two pictures or more: the rows hold none.")
    return found


def _block(metric: str, rows: pd.DataFrame, members: Sequence[Row], reference: Mapping[Row, Row] | None) -> Block | None:
    """The block of some rows; None if fewer than two of them have values of two common pictures."""
    place, known = numbered(rows, KEYS)
    is_member = np.array([row in members for row in known])
    if is_member.sum() < 2:
        return None
    chosen = rows if is_member.all() else rows[is_member[place]]
    chosen = chosen.assign(value=chosen["value"].where(chosen["value"].abs() < math.inf))
    several = chosen.duplicated(["image", *KEYS]).any()
    if len({row[:2] for row in members}) == 1:  # of one classifier, all methods explain the same targets of a picture
        wide = by_picture(chosen, "value", ["image", "target"], KEYS)
        valued = wide[wide.columns[wide.notna().any()]]
        whole = valued.notna().all(axis=1)
        kept = whole | ~whole.groupby(level="image").transform("any")  # a picture without a complete target falls out, and is counted
        table = valued[kept].groupby(level="image", sort=False).mean()
    else:
        table = by_picture(chosen, "value", ["image"], KEYS)
    own = [row for row in members if row in table.columns and table[row].notna().any()]
    table = table.reindex(columns=own)
    flags = by_picture(chosen, "flagged", ["image"], KEYS)
    if reference is None:
        pairs = [(a, b) for a in range(len(own)) for b in range(a + 1, len(own))]
    else:
        pairs = [(a, own.index(reference[row])) for a, row in enumerate(own) if reference.get(row) in own]
    complete = table.dropna()
    if not pairs or len(complete) < 2:
        return None
    binary = metrics.create(metric).instance.aggregation == "proportion" and not several
    return Block(
        metric,
        tuple(own),
        complete.to_numpy(),
        len(table),
        tuple(int(count) for count in table.isna().sum()),
        tuple(float(flags.loc[complete.index, [row]].mean().iloc[0]) for row in own),
        tuple(pairs),
        binary,
    )
