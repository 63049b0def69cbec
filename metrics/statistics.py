"""Confidence intervals of means and proportions, and paired tests between methods, over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from xattn.deferred import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Doubles: TypeAlias = "NDArray[np.float64]"
Values: TypeAlias = "Sequence[float] | Doubles | Tensor"
"""Values, one per image."""
Zeros = Literal["wilcoxon", "pratt"]

CONFIDENCE = 0.95
POWER = 0.8
ANY = (-math.inf, math.inf)
MOST_NEEDED = 100_000  # images; a difference that needs more is irrelevant in practice
SAME = 1e-6  # differences within this share of the largest value are rounding
EXACT_TO = 200  # number of differing pairs up to which the signed-rank distribution is computed exactly


class Interval(NamedTuple):
    """A mean with its confidence interval.

    Attributes:
        mean: over the finite values; NaN if there is none.
        low: lower end; NaN if there are too few values.
        high: upper end.
        n: number of finite values.
    """

    mean: float
    low: float
    high: float
    n: int


class Comparison(NamedTuple):
    """Comparison of two methods on the same images.

    Attributes:
        difference: interval of the mean paired difference.
        p: p-value of the two-sided Wilcoxon signed-rank test; 1 if no pair differs, NaN without pairs.
    """

    difference: Interval
    p: float


def mean_interval(values: Values, limits: tuple[float, float] = ANY, confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of the mean over images, clipped to the range of the values. NaNs are left out and not counted in n.

    Args:
        values: `(n,)`.
        limits: lowest and highest possible value.
        confidence: coverage.
    """
    from scipy.special import stdtrit

    finite = _finite(values)
    n = len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(finite.tolist()) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * _deviation(finite, mean) / math.sqrt(n)
    # A mean may lie outside the limits by rounding; it stays inside its interval.
    return Interval(mean, min(mean, max(mean - half, limits[0])), max(mean, min(mean + half, limits[1])), n)


def proportion_interval(values: Values, limits: tuple[float, float] = (0, 1), confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion. Source: Wilson 1927. NaNs are left out and not counted in n.

    Args:
        values: `(n,)`, each equal to one of the limits.
        limits: the value of an image that does not count, and of one that counts.
        confidence: coverage.
    """
    finite = _finite(values)
    n = len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    low, span = limits[0], limits[1] - limits[0]
    share = (math.fsum(finite.tolist()) / n - low) / span
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(max(0.0, share * (1 - share) / n + z**2 / (4 * n**2)))
    ends = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Interval(low + span * share, low + span * ends[0], low + span * ends[1], n)


def paired(values: Values, reference: Values, confidence: float = CONFIDENCE, floor: float = 1.0) -> Comparison:
    """The difference between two methods on the same images, in the same order.

    Differences within 1e-6 of the largest value (of the floor, if all are smaller) are rounding and count as 0.

    Args:
        values: `(n,)`.
        reference: `(n,)`; a pair with a NaN is left out.
        confidence: coverage of the interval.
        floor: the unit of the values, from `unit_of`.
    """
    one, other = numbers(values), numbers(reference)
    if len(one) != len(other):
        raise ValueError(f"pairs are of the same images: got {len(one)} values and {len(other)} of the reference")
    both = np.isfinite(one) & np.isfinite(other)
    if not both.any():
        return Comparison(mean_interval([], confidence=confidence), math.nan)
    difference, same = differences(one[both], other[both], floor)
    return Comparison(mean_interval(difference, confidence=confidence), signed_rank(difference, same))


def differences(first: Doubles, second: Doubles, floor: float = 1.0) -> tuple[Doubles, float]:
    """First minus second for each pair, 0 if the difference is rounding; and the largest difference that counts as rounding.

    Args:
        first: `(n,)`, finite, n ≥ 1.
        second: `(n,)`, finite.
        floor: the unit of the values, from `unit_of`.
    """
    same = SAME * max(floor, float(np.abs(first).max()), float(np.abs(second).max()))
    apart = first - second
    return np.where(np.abs(apart) <= same, 0.0, apart), same


def unit_of(limits: tuple[float, float]) -> float:
    """The unit of a metric's values, by which differences are judged as rounding: 1, or 0 for a metric without two finite limits."""
    return 1.0 if all(map(math.isfinite, limits)) else 0.0


def levels(values: Doubles, floor: float = 1.0) -> Doubles:
    """Values as multiples of the rounding unit, for ranks: values that differ only by rounding have equal ranks.

    Args:
        values: finite, of any shape.
        floor: their unit, from `unit_of`.
    """
    return np.rint(values / (SAME * max(floor, float(np.abs(values).max())) or 1.0))


def needed(difference: Interval, power: float = POWER, confidence: float = CONFIDENCE) -> float:
    """Approximate number of pairs that a two-sided t-test needs to find a mean difference of this size and spread.

    (z₁ + z₂)² · σ² / δ² + z₁² / 2, with z₁ and z₂ the normal quantiles of the confidence and the power. Source: Guenther 1981.

    Args:
        difference: unclipped, with its interval at this confidence.
        power: probability of finding it.
        confidence: of the test, and of the interval.

    Returns:
        A whole number; infinity for a difference of 0, NaN if the spread is unknown.
    """
    from scipy.special import stdtrit

    if math.isnan(difference.low):
        return math.nan
    if difference.mean == 0:
        return math.inf
    deviation = (difference.high - difference.mean) * math.sqrt(difference.n) / float(stdtrit(difference.n - 1, (1 + confidence) / 2))
    first, second = NormalDist().inv_cdf((1 + confidence) / 2), NormalDist().inv_cdf(power)
    return float(math.ceil(((first + second) * deviation / difference.mean) ** 2 + first**2 / 2))


def signed_rank(difference: Values, same: float = 0.0, zeros: Zeros = "wilcoxon") -> float:
    """The p-value of the two-sided Wilcoxon signed-rank test; 1 if nothing differs.

    Up to 200 differences the distribution over all signs is computed exactly, given the ties; above, by the normal approximation with the
    variance corrected for ties. Source: Wilcoxon 1945; for ties Hollander, Wolfe & Chicken 2014, Sec. 3.1.

    Args:
        difference: `(n,)`.
        same: magnitudes within this of each other are ties.
        zeros: "wilcoxon", differences of zero are left out; "pratt", they are ranked with the others and then left out, so that pairs that
            agree weaken the evidence of small differences (Pratt 1959).

    >>> signed_rank([0, 0, 1, 2, 3, -4]), signed_rank([0, 0, 1, 2, 3, -4], zeros="pratt")
    (0.875, 0.625)
    """
    apart = numbers(difference)
    magnitudes = np.abs(apart) if same == 0 else np.rint(np.abs(apart) / same)
    differs = apart != 0
    n = int(differs.sum())
    if n == 0:
        return 1.0
    ranks = _twice_ranks(magnitudes)[differs] if zeros == "pratt" else _twice_ranks(magnitudes[differs])
    twice, positive = ranks.tolist(), int(ranks[apart[differs] > 0].sum())
    total = sum(twice)
    smaller = min(positive, total - positive)
    if n <= EXACT_TO:
        return min(1.0, 2 * _choices(twice, smaller) / (1 << n))
    deviation = math.sqrt(sum(rank**2 for rank in twice)) / 2
    return math.erfc((total / 2 - smaller) / deviation / math.sqrt(2))


def _choices(ranks: Sequence[int], most: int) -> int:
    """Number of the 2ⁿ subsets of n ranks whose sum is at most a given value.

    The number of subsets with each sum is a digit of one large integer, which every rank shifts and adds: this is exact and fast.
    """
    width = len(ranks) + 1  # bits per digit; the digits sum to 2ⁿ
    counts = 1
    for rank in ranks:
        counts += counts << rank * width
    up_to = counts & ((1 << (most + 1) * width) - 1)
    return up_to % ((1 << width) - 1)  # the sum of the digits


def _twice_ranks(magnitudes: Doubles) -> NDArray[np.int64]:
    """Twice the rank of each magnitude, counted from 1; ties share their mean rank, whose double is whole."""
    _, group, counts = np.unique(magnitudes, return_inverse=True, return_counts=True)
    twice: NDArray[np.int64] = 2 * np.cumsum(counts) - counts + 1
    return twice[group]


def numbers(values: Values) -> Doubles:
    """The values as an array of float64."""
    return np.asarray(values if isinstance(values, (list, tuple, np.ndarray)) else values.tolist(), dtype=np.float64)  # type: ignore[union-attr]  # a tensor


def _finite(values: Values) -> Doubles:
    found = numbers(values)
    return found[np.isfinite(found)]


def _deviation(values: Doubles, mean: float) -> float:
    """The sample's standard deviation."""
    return math.sqrt(math.fsum(((values - mean) ** 2).tolist()) / (len(values) - 1))


def inverted_limits(limits: tuple[float, float]) -> tuple[float, float]:
    """The limits of the inverses of values ≥ 0, from the limits of the values."""
    return 0.0 if math.isinf(limits[1]) else 1 / limits[1], 1 / limits[0] if limits[0] > 0 else math.inf


def inverted(interval: Interval) -> Interval:
    """The interval of the harmonic mean, from that of the mean of inverses."""
    mean, low, high, n = interval
    return Interval(1 / mean if mean else math.nan, _inverse(high), _inverse(low), n)


def _inverse(end: float) -> float:
    return 1 / end if end > 0 else math.inf if end <= 0 else math.nan


def adjusted(p: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted by Benjamini and Hochberg for the false discovery rate; NaN stays NaN."""
    order = sorted((place for place, value in enumerate(p) if math.isfinite(value)), key=lambda place: p[place], reverse=True)
    found, least = [math.nan] * len(p), 1.0
    for rank, place in zip(range(len(order), 0, -1), order, strict=True):
        least = min(least, p[place] * len(order) / rank)
        found[place] = least
    return found


def holm(p: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted by Holm for the chance of any false one; NaN counts as 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda place: 1.0 if math.isnan(p[place]) else p[place])
    found, most = [1.0] * len(p), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * (1.0 if math.isnan(p[place]) else p[place])))
        found[place] = most
    return found


def rounded(count: float) -> int:
    """A count, rounded to two digits."""
    return int(round(count, 1 - math.floor(math.log10(count))))
