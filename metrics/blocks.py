"""Blocks for comparison on the same pictures: methods of one classifier, or one method of several classifiers, for each metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xattn.deferred import numpy as np
from xattn.errors import InputError
from xattn.metrics.base import metrics
from xattn.metrics.statistics import Doubles
from xattn.metrics.tables import Row, references, scored
from xattn.metrics.training_seeds import with_networks
from xattn.metrics.wide import KEYS, by_picture, numbered

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Block:
    """The values of one metric to compare: several methods of one classifier, or one method of several classifiers, on the same pictures.

    Attributes:
        metric: its name in the rows.
        rows: model, head and method of each column.
        values: `(n, k)`, for the pictures that have a finite value in every column.
        pictures: number of all pictures.
        lacking: for each column, the pictures without a value.
        degenerate: for each column, the share of the n pictures whose map shows nothing.
        pairs: columns that are tested against each other.
        binary: whether each value is one of the metric's limits.
        networks: for networks of several seeds, each column's values with one row per picture and one column per network; `values` are the
            means over the networks. Empty if each column is one network.
        left_networks: with several seeds, the networks that are left out because they have no value in some column.
    """

    metric: str
    rows: tuple[Row, ...]
    values: Doubles
    pictures: int
    lacking: tuple[int, ...]
    degenerate: tuple[float, ...]
    pairs: tuple[tuple[int, int], ...]
    binary: bool
    networks: tuple[pd.DataFrame, ...] = ()
    left_networks: tuple[str, ...] = ()

    @property
    def classifiers(self) -> list[tuple[str, str]]:
        """Model and head of the columns, each once."""
        return list(dict.fromkeys(row[:2] for row in self.rows))

    def column(self, place: int) -> Doubles:
        """The values of one column."""
        return self.values[:, place]

    def name(self, place: int) -> str:
        """The name of a column in conclusions."""
        model, head, method = self.rows[place]
        return method if len(self.classifiers) == 1 else f"{model} · {head}"


def blocks(rows: pd.DataFrame, against: str | None = None, *, without_degenerate: bool = False, seeds: str | None = None) -> list[Block]:
    """The blocks to compare, one or several per metric.

    A picture that is explained for several targets has one value, the mean over them.

    Args:
        rows: with the columns of `scores.csv`.
        against: a method, with which the others of its classifier are compared; or a model, a head or "model · head", with which the same
            method of every other classifier is compared; None: all pairs of methods of a classifier.
        without_degenerate: treat maps that are flagged `degenerate` as missing values.
        seeds: regular expression that matches the training seed in the models' names: models with the same name without it are one
            classifier.

    Raises:
        NameUnknownError: there are no rows of `against`.
        InputError: there are no scores, there is nothing to compare, no network of several seeds has all compared values, or no models
            differ only by their seeds.
        SettingError: `seeds` is not a regular expression.
    """
    rows = with_networks(scored(rows), seeds)
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
        raise InputError(
            "tests compare at least two methods, or one method on two classifiers, on at least two pictures: the rows have no such values."
        )
    return found


def _block(metric: str, rows: pd.DataFrame, members: Sequence[Row], reference: Mapping[Row, Row] | None) -> Block | None:
    """The block of some rows; None if fewer than two of them have values for two common pictures."""
    import pandas as pd

    place, known = numbered(rows, KEYS)
    is_member = np.array([row in members for row in known])
    if is_member.sum() < 2:
        return None
    chosen = rows if is_member.all() else rows[is_member[place]]
    chosen = chosen.assign(value=chosen["value"].where(chosen["value"].abs() < math.inf))
    several = chosen.duplicated(["image", "network", *KEYS]).any()
    of_seeds = bool((chosen.groupby(KEYS[:2], observed=True)["network"].nunique() > 1).any())
    pictures = ["image", "network"] if of_seeds else ["image"]
    of_one = len({row[:2] for row in members}) == 1
    if of_one:  # all methods explain the same targets of a picture
        wide = by_picture(chosen, "value", [*pictures, "target"], KEYS)
        valued = wide[wide.columns[wide.notna().any()]]
        whole = valued.notna().all(axis=1)
        kept = whole | ~whole.groupby(level=pictures).transform("any")  # a picture without a complete target is left out, and counted
        table = valued[kept].groupby(level=pictures, sort=False).mean()
    else:
        table = by_picture(chosen, "value", pictures, KEYS)
    own = [row for row in members if row in table.columns and table[row].notna().any()]
    table = table.reindex(columns=own)
    flags = by_picture(chosen, "flagged", pictures, KEYS)
    if reference is None:
        pairs = [(a, b) for a in range(len(own)) for b in range(a + 1, len(own))]
    else:
        pairs = [(a, own.index(reference[row])) for a, row in enumerate(own) if reference.get(row) in own]
    if not pairs:
        return None
    left: tuple[str, ...] = ()
    if of_seeds:
        table, left = _by_network(table, of_one)
        flags = flags[~flags.index.isin(left, level="network")]
        if table.empty:
            raise InputError(
                f"no network of {' · '.join(own[0][:2])} has values of {metric} for every compared method: compare runs that do."
            )
    complete = table.dropna()
    if len(complete) < 2:
        return None
    flags = flags[flags.index.isin(complete.index, level="image")]
    networks = tuple(pd.DataFrame(complete[row]) for row in own) if of_seeds else ()
    binary = metrics.create(metric).instance.aggregation == "proportion" and not several
    return Block(
        metric,
        tuple(own),
        np.stack([each.to_numpy().mean(axis=1) for each in networks], axis=1) if of_seeds else complete.to_numpy(),
        len(table),
        tuple(int(table[row].isna().T.any().sum()) if of_seeds else int(table[row].isna().sum()) for row in own),
        tuple(float(flags[row].mean()) for row in own),
        tuple(pairs),
        binary,
        networks,
        left,
    )


def _by_network(table: pd.DataFrame, of_one: bool) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Values with one row per picture and one column per compared row and network, and the networks that are left out.

    Args:
        table: by picture and network, a column per compared row.
        of_one: whether methods of the same networks are compared; networks without a value of some method are left out.
    """
    import pandas as pd

    known = table.groupby(level="network", sort=False).count() > 0
    has_all = known.all(axis=1) if of_one else known.any(axis=1)
    left = tuple(map(str, known.index[~has_all]))
    wide = pd.DataFrame(table[~table.index.isin(left, level="network")].unstack("network"))
    return wide.dropna(axis=1, how="all").sort_index(axis=1), left
