"""Confidence intervals of means and proportions, and paired tests between methods, over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

CONFIDENCE = 0.95
ANY = (-math.inf, math.inf)
SAME = 1e-6  # differences within this share of the largest value are rounding
EXACT_TO = 200  # pairs that differ, up to which the signed-rank distribution is computed exactly


class Interval(NamedTuple):
    """A mean with its confidence interval.

    Attributes:
        mean: over the finite values; NaN if there is none.
        low: lower end; NaN where too few values are known for one.
        high: upper end.
        n: number of finite values.
    """

    mean: float
    low: float
    high: float
    n: int


class Comparison(NamedTuple):
    """One method against another on the same images.

    Attributes:
        difference: interval of the mean paired difference.
        p: two-sided Wilcoxon signed-rank test; 1 if no pair differs, NaN without pairs.
    """

    difference: Interval
    p: float


def mean_interval(values: Tensor, limits: tuple[float, float] = ANY, confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of the mean over images, clipped to the range of the values. NaNs are left out and not counted in n.

    Args:
        values: `(n,)`.
        limits: lowest and highest value that there can be.
        confidence: coverage.
    """
    from scipy.special import stdtrit

    finite = values.double()[torch.isfinite(values)]
    n = len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(finite.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(finite.std()) / math.sqrt(n)
    # A mean may lie outside the limits by rounding, and stays inside its interval.
    return Interval(mean, min(mean, max(mean - half, limits[0])), max(mean, min(mean + half, limits[1])), n)


def proportion_interval(values: Tensor, limits: tuple[float, float] = (0, 1), confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion. Source: Wilson 1927. NaNs are left out and not counted in n.

    Args:
        values: `(n,)`, each one of the limits.
        limits: the value of an image that does not count, and of one that does.
        confidence: coverage.
    """
    finite = values.double()[torch.isfinite(values)]
    n = len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    low, span = limits[0], limits[1] - limits[0]
    share = (float(finite.mean()) - low) / span
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(max(0.0, share * (1 - share) / n + z**2 / (4 * n**2)))
    ends = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Interval(low + span * share, low + span * ends[0], low + span * ends[1], n)


def paired(values: Tensor, reference: Tensor, confidence: float = CONFIDENCE) -> Comparison:
    """The difference between two methods on the same images, in the same order.

    Differences within 1e-6 of the largest value (of 1, if all are smaller) are none: they are rounding.

    Args:
        values: `(n,)`.
        reference: `(n,)`; a pair with a NaN is left out.
        confidence: coverage of the interval.
    """
    both = torch.isfinite(values) & torch.isfinite(reference)
    of_values, of_reference = values.double()[both], reference.double()[both]
    difference = of_values - of_reference
    if len(difference) == 0:
        return Comparison(mean_interval(difference, confidence=confidence), math.nan)
    same = SAME * max(1.0, float(of_values.abs().max()), float(of_reference.abs().max()))
    difference = torch.where(difference.abs() <= same, 0.0, difference)
    return Comparison(mean_interval(difference, confidence=confidence), signed_rank(difference, same))


def signed_rank(difference: Tensor, same: float = 0.0) -> float:
    """The p-value of the two-sided Wilcoxon signed-rank test; 1 if nothing differs.

    Zeros are left out. Up to 200 differences the distribution over all signs is computed exactly, given the ties; above, the normal
    approximation with the variance of the ties. Source: Wilcoxon 1945; for ties Hollander, Wolfe & Chicken 2014, Sec. 3.1.

    Args:
        difference: `(n,)`.
        same: magnitudes within this of each other are ties.
    """
    differs = difference.double()[difference != 0]
    n = len(differs)
    if n == 0:
        return 1.0
    twice = _twice_ranks(differs.abs() if same == 0 else (differs.abs() / same).round())
    total, positive = int(twice.sum()), int(twice[differs > 0].sum())
    smaller = min(positive, total - positive)
    if n <= EXACT_TO:
        # The distribution of the sum of the doubled ranks of positive differences, each sign as likely.
        chances = torch.zeros(total + 1, dtype=torch.float64)
        chances[0] = 1.0
        for rank in twice.tolist():
            chances = torch.cat([chances[:rank], chances[rank:] + chances[: total + 1 - rank]]) / 2
        return min(1.0, 2 * float(chances[: smaller + 1].sum()))
    deviation = math.sqrt(float((twice.double() ** 2).sum())) / 2
    return math.erfc((total / 2 - smaller) / deviation / math.sqrt(2))


def _twice_ranks(magnitudes: Tensor) -> Tensor:
    """Twice the rank of each magnitude, counted from 1; ties share the mean of theirs, so that the double is whole: `(n,)` int64."""
    _, group, counts = magnitudes.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    twice: Tensor = (2 * last - counts + 1)[group]
    return twice


def adjusted(p: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted by Benjamini and Hochberg for the false discovery rate; NaN stays NaN."""
    order = sorted((place for place, value in enumerate(p) if math.isfinite(value)), key=lambda place: p[place], reverse=True)
    found, least = [math.nan] * len(p), 1.0
    for rank, place in zip(range(len(order), 0, -1), order, strict=True):
        least = min(least, p[place] * len(order) / rank)
        found[place] = least
    return found
