"""Bootstrap intervals, and tests of two methods on the same images, that need scipy.stats, which takes a second to import."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from xattn.deferred import numpy as np
from xattn.metrics.statistics import ANY, CONFIDENCE, Interval, Values, mean_interval, numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

Flags: TypeAlias = "Sequence[bool] | NDArray[np.bool_]"
"""Values, one per image."""
IntervalName = Literal["BCa", "Student", "Wilson", "Bonett-Price", "crossed effects", ""]
RESAMPLES = 9999
FEWEST, MOST = 20, 5000  # numbers of values between which the bootstrap covers better than Student's interval
AT_ONCE = 2_000_000  # most resampled values in memory
TOGETHER = 8  # intervals that share one draw of resamples


class Bounds(NamedTuple):
    """An interval and how it was found.

    Attributes:
        interval: of the mean.
        name: "BCa", "Student", "Wilson" or "Bonett-Price", for networks of several seeds "crossed effects"; empty if there are too few
            values for an interval.
    """

    interval: Interval
    name: IntervalName


def bootstrap_interval(values: Values, limits: tuple[float, float] = ANY, confidence: float = CONFIDENCE) -> Bounds:
    """The bias-corrected and accelerated (BCa) bootstrap interval of the mean, from 9999 resamples, the same in every call.

    Student's interval, under its own name, is returned instead for values that are all equal, for fewer than 20 values, where the coverage
    of the bootstrap is too low, and for more than 5000, where the two agree.
    Source: Efron 1987; resamples that tie with the mean count half (scipy.stats.bootstrap).

    Args:
        values: of the images, finite.
        limits: lowest and highest possible value.
        confidence: coverage.

    >>> found = bootstrap_interval([0.0] * 17 + [1.0, 2.0, 4.0])
    >>> found.name, round(found.interval.low, 2), round(found.interval.high, 2)
    ('BCa', 0.05, 1.1)
    """
    (found,) = bootstrap_intervals([values], limits, confidence)
    return found


def bootstrap_intervals(several: Iterable[Values], limits: tuple[float, float] = ANY, confidence: float = CONFIDENCE) -> Iterator[Bounds]:
    """`bootstrap_interval` of several samples; samples of the same size share their resamples.

    >>> [round(found.interval.low, 2) for found in bootstrap_intervals([[0.0] * 17 + [1.0, 2.0, 4.0], [0.0] * 19 + [3.0]])]
    [0.05, 0.0]
    """
    rest = iter(several)
    while some := [numbers(values) for values in islice(rest, TOGETHER)]:
        students = [mean_interval(values, limits, confidence) for values in some]
        known = {place: values for place, values in enumerate(some) if _resamples(values, students[place])}
        ends = _resampled(known, confidence)
        for place, student in enumerate(students):
            low, high = ends.get(place, (math.nan, math.nan))
            if not (math.isfinite(low) and math.isfinite(high)):
                yield Bounds(student, "" if math.isnan(student.low) else "Student")
                continue
            low, high = min(student.mean, low), max(student.mean, high)
            yield Bounds(Interval(student.mean, max(low, limits[0]), min(high, limits[1]), student.n), "BCa")


def _resamples(values: NDArray[np.float64], student: Interval) -> bool:
    """Whether the bootstrap covers better than Student's interval."""
    return not math.isnan(student.low) and FEWEST <= student.n <= MOST and bool(np.ptp(values) > 0)


def _resampled(several: Mapping[int, NDArray[np.float64]], confidence: float) -> dict[int, tuple[float, float]]:
    """The ends of BCa intervals, by place; NaN where a distribution degenerates."""
    ends = {}
    for n in {len(values) for values in several.values()}:
        from scipy.stats import bootstrap

        same = {place: values for place, values in several.items() if len(values) == n}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # degenerate distributions warn, and their ends are NaN
            found = bootstrap(
                (np.stack(list(same.values())),),
                _mean,
                vectorized=True,
                axis=-1,
                n_resamples=RESAMPLES,
                batch=max(1, AT_ONCE // (n * len(same))),
                confidence_level=confidence,
                method="BCa",
                random_state=0,
            ).confidence_interval
        ends.update({place: (float(low), float(high)) for place, low, high in zip(same, found.low, found.high, strict=True)})
    return ends


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean, rounded like that of a single sample: the memory order of resamples would change the order of summation."""
    means: NDArray[np.float64] = np.ascontiguousarray(values).mean(axis=axis)
    return means


def difference_of_proportions(first: Flags, second: Flags, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the difference of two proportions on the same images. Source: Bonett and Price 2012.

    Wald's interval after adding one image on which only the first succeeds and one on which only the second does, so that its width is not
    0 if no image differs.

    Args:
        first: of each image by one method.
        second: by the other.
        confidence: coverage.

    >>> found = difference_of_proportions([True] * 8 + [False] * 2, [True] * 3 + [False] * 7)
    >>> round(found.mean, 2), round(found.low, 2), round(found.high, 2)
    (0.5, 0.05, 0.78)
    """
    n, only_first, only_second = len(first), *_discordant(first, second)
    one, other = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    half = z * math.sqrt((one + other - (one - other) ** 2) / (n + 2))
    mean = (only_first - only_second) / n
    return Interval(mean, max(-1.0, min(mean, one - other - half)), min(1.0, max(mean, one - other + half)), n)


def mcnemar(first: Flags, second: Flags) -> float:
    """The p-value of McNemar's exact two-sided test that two methods succeed on the same number of images; 1 if no image differs.

    Source: McNemar 1947; exact, the binomial test of the images on which only one succeeds.

    >>> mcnemar([True] * 8 + [False] * 2, [True] * 3 + [False] * 7)
    0.0625
    """
    from scipy.stats import binomtest

    only_first, only_second = _discordant(first, second)
    return 1.0 if only_first + only_second == 0 else float(binomtest(only_first, only_first + only_second).pvalue)


def _discordant(first: Flags, second: Flags) -> tuple[int, int]:
    """Number of images on which only the first succeeds, and only the second."""
    one, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    return int((one & ~other).sum()), int((other & ~one).sum())


def equivalence(difference: Values, margin: float) -> float:
    """The p-value of two one-sided t-tests that the mean difference is within ± a margin. Source: Schuirmann 1987.

    NaN if all differences are equal and within the margin.

    Args:
        difference: of the images, finite, two or more.
        margin: positive; the largest difference that does not matter, stated before the values are seen.

    >>> round(equivalence([0.1, -0.2, 0.3, 0.0, -0.1, 0.2], 0.5), 4)
    0.001
    """
    from scipy.stats import ttest_1samp

    apart = numbers(difference)
    if np.ptp(apart) == 0:
        return 1.0 if abs(apart[0]) >= margin else math.nan  # without a spread, the test is undefined
    above = ttest_1samp(apart, -margin, alternative="greater").pvalue
    below = ttest_1samp(apart, margin, alternative="less").pvalue
    return float(max(above, below))


def equivalence_of_proportions(first: Flags, second: Flags, margin: float) -> float:
    """The p-value of equivalence of two proportions on the same images, by the interval of `difference_of_proportions`.

    Args:
        first: of each image by one method.
        second: by the other.
        margin: positive, as a share of the images.

    >>> round(equivalence_of_proportions([True] * 90 + [False] * 10, [True] * 90 + [False] * 10, 0.05), 5)
    0.00016
    """
    n, only_first, only_second = len(first), *_discordant(first, second)
    one, other = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    deviation = math.sqrt((one + other - (one - other) ** 2) / (n + 2))
    above, below = (one - other + margin) / deviation, (one - other - margin) / deviation
    return max(1 - NormalDist().cdf(above), NormalDist().cdf(below))


def better_share(difference: Values, higher: bool) -> float:
    """The common-language effect size for pairs: the share of images on which the first is better, with ties counting half.

    0.5: neither is better. Source: McGraw and Wong 1992; for pairs, Grissom and Kim 2012.

    >>> better_share([1, 2, -1, 0], higher=True)
    0.625
    """
    apart = numbers(difference)
    wins, ties = int((apart > 0 if higher else apart < 0).sum()), int((apart == 0).sum())
    return (wins + ties / 2) / len(apart)
