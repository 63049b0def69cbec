"""Intervals and tests of means over training seeds and pictures, where every network saw every picture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from xattn.errors import InputError, SettingError
from xattn.metrics.statistics import ANY, CONFIDENCE, Comparison, Interval, differences, proportion_interval, unit_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LEAST_LOG_P, HALVINGS = -35.0, 50  # below, 1 - p is 1
Term: TypeAlias = "tuple[float, int]"
"""A part of the variance of a mean, and its degrees of freedom."""


def crossed(
    first: Sequence[Sequence[float]] | Array,
    second: Sequence[Sequence[float]] | Array | None = None,
    limits: tuple[float, float] = ANY,
    confidence: float = CONFIDENCE,
    *,
    any_level: bool = False,
) -> Comparison:
    """Interval of the mean over seeds and pictures, or of the difference of two means, and the p-value of 0.

    Seeds and pictures are crossed random effects: every network saw every picture. The squared half-width is the sum of two squared
    half-widths: that of Student's t over pictures, for the mean over seeds; and that of Student's t over seeds, for the variance of their
    means that the pictures do not explain. With one seed on each side it is Student's interval over pictures; if pictures do not matter,
    that over seeds.

    With Satterthwaite's degrees of freedom for the sum of the variances, the coverage is 87 % for two seeds that differ much; that of
    two-level bootstraps is lower still (`benchmarks/coverage.py`): resampling the pictures separately for each seed ignores that the seeds
    share them, and resampling two or three seeds underestimates their spread.

    The share that the pictures explain is subtracted as an estimate: if few seeds agree by chance, their remaining spread is 0 at any
    confidence. With `any_level` nothing is subtracted, so that the interval is wider and holds at every confidence (Banerjee 1960), as is
    necessary for p-values that are adjusted over a family.

    Source: the combination of half-widths is Howe's 1974, the components of variance are those of a two-way table without replication; of
    the same design, several readers of the same cases, Obuchowski and Rockette 1995.

    Args:
        first: `(S, n)`, finite, one row per network.
        second: `(R, n)`, for the same pictures and other networks. None: the mean of the first is tested.
        limits: lowest and highest possible value of the mean or of the difference.
        confidence: coverage.
        any_level: whether the interval must hold at every confidence.

    Returns:
        The interval, whose n is the number of pictures, without ends for fewer than two; and the two-sided p-value: 1 minus the confidence
        at which the interval would end at 0.

    >>> found = crossed([[1.0, 2.0, 4.0, 3.0], [2.0, 3.0, 5.0, 5.0]])
    >>> [round(value, 2) for value in found.difference], round(found.p, 3)
    ([3.12, -4.96, 11.21, 4], 0.137)
    """
    found = _effects(first, second)
    return _comparison(found, found.at_any_level if any_level else found.terms, limits, confidence)


class Effects(NamedTuple):
    """The mean of crossed effects and the parts of its variance.

    Attributes:
        mean: over seeds and pictures, or the difference of two.
        n: pictures.
        of_pictures: the variance over pictures, with its degrees of freedom; None for fewer than two.
        of_seeds: the variance that the seeds add, with its degrees of freedom, for each side with several.
        of_means: the variance over the seeds' means, part of which the pictures explain, with its degrees of freedom.
    """

    mean: float
    n: int
    of_pictures: Term | None
    of_seeds: tuple[Term, ...] = ()
    of_means: tuple[Term, ...] = ()

    @property
    def terms(self) -> tuple[Term, ...]:
        """All parts of the variance."""
        return () if self.of_pictures is None else (self.of_pictures, *self.of_seeds)

    @property
    def at_any_level(self) -> tuple[Term, ...]:
        """The parts of a conservative variance: the share of the seeds' means that pictures explain is counted twice."""
        return () if self.of_pictures is None else (self.of_pictures, *self.of_means)


def _effects(first: Sequence[Sequence[float]] | Array, second: Sequence[Sequence[float]] | Array | None) -> Effects:
    import numpy as np

    groups = [np.asarray(group, dtype=np.float64) for group in (first, second) if group is not None]
    pictures: Array = groups[0].mean(axis=0) - (groups[1].mean(axis=0) if len(groups) > 1 else 0.0)
    n = len(pictures)
    if n < 2:
        return Effects(float(pictures.mean()) if n else math.nan, n, None)
    several = [group for group in groups if len(group) > 1]
    of_means = tuple((float(group.mean(axis=1).var(ddof=1)) / len(group), len(group) - 1) for group in several)
    return Effects(float(pictures.mean()), n, (float(pictures.var(ddof=1)) / n, n - 1), tuple(map(_of_seeds, several)), of_means)


def _comparison(effects: Effects, terms: Sequence[Term], limits: tuple[float, float], confidence: float) -> Comparison:
    mean, n = effects.mean, effects.n
    if not terms:
        return Comparison(Interval(mean, math.nan, math.nan, n), math.nan)
    half = _half(terms, confidence)
    low, high = min(mean, max(mean - half, limits[0])), max(mean, min(mean + half, limits[1]))
    return Comparison(Interval(mean, low, high, n), _p(terms, mean))


def _of_seeds(values: Array) -> Term:
    """The variance of the mean that only the seeds add, at least 0, with its degrees of freedom."""
    seeds, n = values.shape
    means = values.mean(axis=1)
    rest = values - means[:, None] - values.mean(axis=0)[None] + values.mean()
    within = float((rest**2).sum()) / ((seeds - 1) * (n - 1))
    return max(0.0, float(means.var(ddof=1)) - within / n) / seeds, seeds - 1


def _half(terms: Sequence[Term], confidence: float) -> float:
    """The half-width from variances with their degrees of freedom."""
    from scipy.special import stdtrit

    return math.sqrt(sum(float(stdtrit(freedom, (1 + confidence) / 2)) ** 2 * variance for variance, freedom in terms if variance))


def _p(terms: Sequence[Term], mean: float) -> float:
    """The p-value of a mean of 0, by bisection of its logarithm; NaN if nothing varies, since the spread is then unknown."""
    if mean == 0:
        return 1.0
    if not any(variance for variance, _ in terms):
        return math.nan
    low, high = LEAST_LOG_P, 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _half(terms, 1 - math.exp(middle)) > abs(mean) else (low, middle)
    return math.exp(high)


def common_names(models: Sequence[str], pattern: str) -> dict[str, str]:
    """The common name of networks with different seeds, by their own names.

    Args:
        models: each once.
        pattern: regular expression that matches the seed, which is removed together with brackets that held nothing else.

    Raises:
        SettingError: it is not a regular expression.
        InputError: no two names are the same without the seed.

    >>> common_names(["net@seed1", "net@seed2", "other"], r"@seed\\d+")
    {'net@seed1': 'net', 'net@seed2': 'net', 'other': 'other'}
    """
    try:
        seed = re.compile(pattern)
    except re.error as error:
        raise SettingError(
            f"seeds must be a regular expression that matches the seed in the models' names; '{pattern}' is not one: {error}."
        ) from error
    found = {model: re.sub(r"\s*\(\s*\)", "", seed.sub("", model)).strip() or model for model in models}
    if len(set(found.values())) == len(found):
        raise InputError(
            f"no two models have the same name without '{pattern}': give a pattern that matches the seed in {', '.join(models)}."
        )
    return found


def with_networks(rows: pd.DataFrame, pattern: str | None) -> pd.DataFrame:
    """The rows with a column `network`, the model's own name, and the models named without their seeds.

    Args:
        rows: tidy.
        pattern: as for `common_names`; None: models keep their names.

    Raises:
        SettingError: it is not a regular expression.
        InputError: no models differ only by their seeds.
    """
    rows = rows.assign(network=rows["model"])
    if pattern is not None:
        rows["model"] = rows["model"].map(common_names([str(model) for model in rows["model"].unique()], pattern))
    return rows


def by_network(rows: pd.DataFrame, values: str, *, per_label: bool) -> pd.DataFrame:
    """Values with one row per picture and one column per network; pictures without a finite value for every network are left out.

    Args:
        rows: of one model, head, method and metric, with a column `network`.
        values: name of the column of values.
        per_label: keep the targets of a picture separate; else a picture has one target, which networks may choose differently.
    """
    import numpy as np

    keys = ["image", "target"] if per_label else "image"
    wide = rows.reset_index(drop=True).pivot_table(index=keys, columns="network", values=values, sort=False, dropna=False, observed=True)
    return wide.replace([np.inf, -np.inf], np.nan).dropna()


def of_networks(rows: pd.DataFrame, *, per_label: bool) -> pd.Series | pd.DataFrame:
    """Values of one model, head, method and metric: a series by what is explained, or, for several seeds, a frame with one column per
    network.

    Args:
        rows: with a column `network`, indexed by image and target.
        per_label: as in `by_network`.
    """
    if rows["network"].nunique() > 1:
        return by_network(rows, "value", per_label=per_label)
    return rows["value"].rename(rows["network"].iloc[0])


def shared_pictures(rows: pd.DataFrame, row: str, *, per_label: bool) -> int:
    """Number of pictures that all networks of a table's row have in common; with `per_label`, of pictures and targets.

    Args:
        rows: one for each network, image and target.
        row: name of the table's row.
        per_label: as in `by_network`.

    Raises:
        InputError: none.
    """
    networks = rows["network"].nunique()
    counts = rows.groupby(["image", "target"] if per_label else "image", observed=True)["network"].nunique()
    found = int((counts == networks).sum())
    if found == 0 < networks:
        raise InputError(f"the {networks} networks of {row} have no picture in common: compare runs over the same pictures.")
    return found


def over_seeds(values: Array, limits: tuple[float, float], *, is_share: bool) -> Interval:
    """The interval of the mean over seeds and pictures, by `crossed`; for a proportion it is at least as wide as Wilson's over pictures.

    Args:
        values: `(S, n)`, one row per network.
        limits: lowest and highest possible value.
        is_share: whether each value is one of the limits.
    """
    found = crossed(values.tolist(), limits=limits).difference
    if not is_share or not found.n:
        return found
    own = proportion_interval(values.mean(axis=0), limits)
    if found.n == 1:
        return own._replace(mean=found.mean)
    return found._replace(low=min(found.low, own.low), high=max(found.high, own.high))


class SeedTest(NamedTuple):
    """Test of networks of several seeds against others on the same pictures.

    Attributes:
        effects: the difference over seeds and pictures.
        differences: `(m,)`, for each picture and each network, or each pair of networks with different names; 0 where they are rounding.
        networks: number of networks on each side.
        limits: lowest and highest possible difference.
    """

    effects: Effects
    differences: Array
    networks: tuple[int, int]
    limits: tuple[float, float] = ANY

    @property
    def comparison(self) -> Comparison:
        """The interval of the difference, and the p-value of no difference, valid at every level (`crossed` with `any_level`)."""
        return _comparison(self.effects, self.effects.at_any_level, self.limits, CONFIDENCE)

    def within(self, margin: float) -> float:
        """The p-value of two one-sided tests that the difference is within ± a margin. Source: Schuirmann 1987.

        It uses the same interval: p is below 0.05 if the interval of 90 % lies within the margin. NaN if nothing varies and the difference
        is within the margin.
        """
        mean, terms = abs(self.effects.mean), self.effects.at_any_level
        if not any(variance for variance, _ in terms):
            return 1.0 if mean >= margin else math.nan
        beyond = _p(terms, mean - margin) / 2
        return beyond if mean < margin else 1 - beyond

    def pictures_suffice(self, confidence: float) -> bool:
        """Whether, with infinitely many pictures, the interval of this confidence over the seeds would exclude 0."""
        return _half(self.effects.of_seeds, confidence) < abs(self.effects.mean)


def compared(values: pd.Series | pd.DataFrame, reference: pd.Series | pd.DataFrame, limits: tuple[float, float] = (0.0, 100.0)) -> SeedTest:
    """Values minus those of a reference, over the pictures that have both; differences that are rounding are 0.

    Networks with the same names are paired: two methods of the same networks, or two heads on the same backbones; if only some names are
    the same, the others are left out. Networks with different names are independent.

    Args:
        values: from `by_network`, or those of one network by image and target.
        reference: in the same form.
        limits: lowest and highest possible value.
    """
    from pandas import Series, concat

    floor, span = unit_of(limits), limits[1] - limits[0]
    sides = [side.to_frame() if isinstance(side, Series) else side for side in (values, reference)]
    if len({side.index.nlevels for side in sides}) > 1:
        sides = [side.droplevel("target") if side.index.nlevels > 1 else side for side in sides]
    one, other = (concat(sides, axis=1, join="inner", keys=[0, 1]).dropna()[key] for key in (0, 1))
    if common := [name for name in one.columns if name in set(other.columns)]:
        one, other = one[common], other[common]
    first, second = one.T.to_numpy(), other.T.to_numpy()
    networks = len(first), len(second)
    if first.size == 0:
        return SeedTest(_effects(first, second), first.ravel(), networks, (-span, span))
    if common:
        apart, _ = differences(first.ravel(), second.ravel(), floor)
        return SeedTest(_effects(apart.reshape(first.shape), None), apart, networks, (-span, span))
    means, _ = differences(first.mean(axis=0), second.mean(axis=0), floor)
    apart, _ = differences(first[:, None].repeat(len(second), axis=1).ravel(), second[None].repeat(len(first), axis=0).ravel(), floor)
    effects = _effects(first, second) if means.any() else _effects([means.tolist()], None)
    return SeedTest(effects, apart, networks, (-span, span))
