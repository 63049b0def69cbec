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
from xattn.metrics.tables import Row, references, scored
from xattn.metrics.training_seeds import with_networks
from xattn.metrics.wide import KEYS, by_picture, numbered

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
        networks: of networks of several seeds, for each column its values with a row per picture and a column per network; `values` are the
            means over them. Empty where each column is one network.
        left_networks: of several seeds, the networks that are left out since they have no value of some column.
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
        """Model and head of its columns, each once."""
        return list(dict.fromkeys(row[:2] for row in self.rows))

    def column(self, place: int) -> Doubles:
        """The values of one column."""
        return self.values[:, place]

    def name(self, place: int) -> str:
        """A column as conclusions name it."""
        model, head, method = self.rows[place]
        return method if len(self.classifiers) == 1 else f"{model} · {head}"


def blocks(rows: pd.DataFrame, against: str | None = None, *, without_degenerate: bool = False, seeds: str | None = None) -> list[Block]:
    """What is compared, metric by metric.

    A picture that is explained for several targets has one value, the mean over them.

    Args:
        rows: with the columns of `scores.csv`.
        against: a method, which the others of its classifier are tested against; or a model, a head or "model · head", which the same
            method of every other classifier is tested against; None: every two methods of a classifier.
        without_degenerate: count maps that are flagged `degenerate` as without a value.
        seeds: regular expression of what names the seed of training in the models' names: models that have the same name without it are one
            classifier.

    Raises:
        NameUnknownError: there are no rows of `against`.
        InputError: there are no scores, nothing to compare, no network of several seeds has all that is compared, or no models differ by
            their seeds alone.
        SettingError: seeds are no regular expression.
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
    """The block of some rows; None if fewer than two of them have values of two common pictures."""
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
        kept = whole | ~whole.groupby(level=pictures).transform("any")  # a picture without a complete target falls out, and is counted
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
    """Values with a row per picture and a column per compared row and network, and the networks that are left out.

    Args:
        table: by picture and network, a column per compared row.
        of_one: of methods of the same networks; those without a value of some method are left out.
    """
    import pandas as pd

    known = table.groupby(level="network", sort=False).count() > 0
    has_all = known.all(axis=1) if of_one else known.any(axis=1)
    left = tuple(map(str, known.index[~has_all]))
    wide = pd.DataFrame(table[~table.index.isin(left, level="network")].unstack("network"))
    return wide.dropna(axis=1, how="all").sort_index(axis=1), left
