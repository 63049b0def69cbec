"""Scores of runs for figures: rows, and the curves that metrics followed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from xattn.deferred import pandas as pd
from xattn.errors import InputError, NameUnknownError
from xattn.metrics.wide import by_picture
from xattn.overlays import Floats
from xattn.study.compare import joint_rows
from xattn.study.questions import picture_names, shown_names
from xattn.study.store import Store

Classifier = tuple[str, str]
Series = tuple[str, str, str, str]


@dataclass(frozen=True)
class Curves:
    """The target's probability of some images along a metric's curve.

    Attributes:
        shares: share of the pixels changed, `(S,)`, from 0 to 1.
        p: `(n, S)`.
    """

    shares: Floats
    p: Floats


@dataclass(frozen=True)
class ScoreData:
    """Scores of runs.

    Attributes:
        rows: one per value, with the columns of `Store.values`.
        stores: the run folders.
    """

    rows: pd.DataFrame
    stores: Sequence[Store]

    @cached_property
    def classifiers(self) -> list[Classifier]:
        """Returns model and head of each classifier."""
        return list(self.rows[["model", "head"]].drop_duplicates().itertuples(index=False, name=None))

    @cached_property
    def methods(self) -> list[str]:
        """Returns the methods, in the order of the rows."""
        return list(self.rows["method"].unique())

    @cached_property
    def metrics(self) -> list[str]:
        """Returns the metrics, in the order of the rows."""
        return list(self.rows["metric"].unique())

    def values(self, classifier: Classifier, metric: str) -> pd.DataFrame:
        """Returns the values of a classifier's methods by a metric: one row per image and target, one column per method."""
        model, head = classifier
        found = self.rows[(self.rows["model"] == model) & (self.rows["head"] == head) & (self.rows["metric"] == metric)]
        table = by_picture(found, "value", ["image", "target"], ["method"])
        return table[[method for method in self.methods if method in table.columns]]

    def curves(self) -> dict[Series, Curves]:
        """Returns the curves by model, head, method and metric; a curve that several metrics follow is stored under the first of them.

        Curves whose steps differ from the first one's, because of a tolerance, are interpolated linearly.
        """
        keys = ["image", "model", "head", "method", "metric", "target"]
        wanted = set(self.rows[keys].itertuples(index=False, name=None))
        shares: dict[Series, Floats] = {}
        found: dict[Series, list[Floats]] = {}
        names = shown_names(self.stores)
        several = len(self.stores) > 1
        renamed = picture_names(self.stores, [set(store.values()["image"].cat.categories) if several else set() for store in self.stores])
        for store, models, pictures in zip(self.stores, names, renamed, strict=True):
            for (image, model, head, method, metric, target), curve in store.each_curve():
                key = (pictures.get(image, image), models.get((model, head), model), head, method, metric, target)
                if key not in wanted:
                    continue
                wanted.discard(key)
                series = key[1:5]
                of_curve, p = np.array(curve.shares, dtype=np.float32), np.array(curve.p, dtype=np.float32)
                grid = shares.setdefault(series, of_curve)
                found.setdefault(series, []).append(p if np.array_equal(of_curve, grid) else interpolated(grid, of_curve, p))
        return {series: Curves(shares[series], np.stack(several)) for series, several in found.items()}


def interpolated(at: Floats, shares: Floats, p: Floats) -> Floats:
    """Interpolates a curve linearly at other shares; all inputs are one-dimensional and increasing."""
    return np.interp(at, shares, p).astype(np.float32)


def read_scores(
    runs: Sequence[str | Path],
    images: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    count: int | None = None,
) -> ScoreData:
    """Reads the data of a score figure from runs.

    Args:
        runs: run folders.
        images: names as in the rows; all if None.
        methods: names as in the rows; all if None.
        metrics: names as in the rows; all if None.
        count: number of images, from the first, if no names are given.

    Raises:
        RunError: a run folder is damaged.
        InputError: runs have no scores, or differ, as for `compare_runs`.
        NameUnknownError: an image, method or metric is not in the runs.
    """
    stores = [Store(run) for run in runs]
    rows, _ = joint_rows(stores, shown_names(stores))
    if rows.empty:
        raise InputError("these runs have no scores: run with a --metric, or draw --kind grid.")
    if count is not None and images is None:
        images = list(rows["image"].unique())[:count]
    for column, asked in (("image", images), ("method", methods), ("metric", metrics)):
        if asked is not None:
            _refuse_unknown(column, asked, rows[column])
            rows = rows[rows[column].isin(list(asked))]
    if metrics is not None:  # in the requested order
        rows = pd.concat([rows[rows["metric"] == metric] for metric in metrics])
    return ScoreData(rows.reset_index(drop=True), stores)


def _refuse_unknown(kind: str, asked: Iterable[str], known: pd.Series) -> None:
    names = set(known.unique())
    for name in asked:
        if name not in names:
            raise NameUnknownError(f"{kind} in these runs", name, names)
