"""Rank tests of several methods on the same images: Friedman's, and Nemenyi's for each pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from xattn.deferred import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LEVEL = 0.05


class Friedman(NamedTuple):
    """Friedman's test that all methods have the same ranks.

    Attributes:
        statistic: χ² of k − 1 degrees of freedom, with the correction for ties.
        p: its p-value; 1 if all methods have the same value on each image.
        agreement: Kendall's W, 0 if the ranks of the images do not agree, 1 if all are the same.
    """

    statistic: float
    p: float
    agreement: float


def mean_ranks(values: ArrayLike, higher: bool) -> list[float]:
    """Mean over images of the rank of each method, 1 for the best; ties share the mean of their ranks.

    Args:
        values: `(n, k)`, finite: one row per image, one column per method.
        higher: whether higher is better.

    >>> mean_ranks([[1, 2, 3], [2, 2, 3]], higher=True)
    [2.75, 2.25, 1.0]
    """
    table = np.asarray(values)
    before = np.greater if higher else np.less
    # Twice a rank, counted from 1, is whole: 2 for each value before it, 1 for each that ties with it (including itself), and 1.
    twice = [int((2 * before(table, own).sum(axis=1) + _ties(table, own) + 1).sum()) for own in _columns(table)]
    return [total / (2 * len(table)) for total in twice]


def _columns(table: NDArray[np.float64]) -> Sequence[NDArray[np.float64]]:
    return [table[:, [place]] for place in range(table.shape[1])]


def _ties(table: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of values of each row that equal that of a column."""
    found: NDArray[np.int64] = (table == own).sum(axis=1)
    return found


def friedman(values: ArrayLike) -> Friedman:
    """Friedman's test of three or more methods over images.

    Source: Friedman 1937; for ties Hollander, Wolfe & Chicken 2014, Sec. 7.1.

    Args:
        values: `(n, k)`, finite, k ≥ 3.

    >>> round(friedman([[1, 2, 3], [1, 2, 3], [2, 1, 3], [1, 3, 3]]).p, 4)
    0.0569
    """
    from scipy.special import chdtrc

    table = np.asarray(values)
    n, k = table.shape
    tied = sum(int((_ties(table, own) ** 2 - 1).sum()) for own in _columns(table))  # t³ − t for each group of t ties, shared by its values
    untied = 1 - tied / (n * k * (k**2 - 1))
    if untied == 0:
        return Friedman(0.0, 1.0, 0.0)
    spread = math.fsum((rank - (k + 1) / 2) ** 2 for rank in mean_ranks(table, higher=True))
    statistic = 12 * n / (k * (k + 1)) * spread / untied
    return Friedman(statistic, float(chdtrc(k - 1, statistic)), statistic / (n * (k - 1)))


def critical_difference(methods: int, n: int) -> float:
    """The critical difference of mean ranks of two methods, by Nemenyi's test at 0.05.

    Source: Demšar 2006, Sec. 3.2.2: `q·√(k(k+1)/(6n))`, q the Studentised range's quantile over √2.

    >>> round(critical_difference(5, 30), 3)
    1.114
    """
    return studentised_range(1 - LEVEL, methods) / math.sqrt(2) * _unit(methods, n)


def nemenyi(difference: float, methods: int, n: int) -> float:
    """The p-value of a difference of mean ranks between two of several methods, by Nemenyi's test. Source: Demšar 2006, Sec. 3.2.2.

    >>> round(nemenyi(critical_difference(5, 30), 5, 30), 6)
    0.05
    """
    return 1 - range_below(abs(difference) / _unit(methods, n) * math.sqrt(2), methods)


def _unit(methods: int, n: int) -> float:
    """Standard deviation of the difference of two mean ranks."""
    return math.sqrt(methods * (methods + 1) / (6 * n))


def range_below(q: float, count: int) -> float:
    """The probability that some standard normal variables lie within q of each other: the Studentised range's for infinitely many degrees
    of freedom.

    `k ∫ φ(z)·(Φ(z) − Φ(z − q))ᵏ⁻¹ dz`, which the trapezoidal rule integrates up to rounding, since the integrand falls smoothly to 0 on
    both sides. scipy.stats also has it, but takes a second to import.
    """
    import numpy as np
    from scipy.special import ndtr

    step = 1 / 64
    z = np.arange(-10, 10, step)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return min(1.0, count * step * float((density * (ndtr(z) - ndtr(z - q)) ** (count - 1)).sum()))


def studentised_range(p: float, count: int) -> float:
    """The quantile of the range of some standard normal variables, by bisection of `range_below`.

    >>> round(studentised_range(0.95, 10), 3)
    4.474
    """
    low, high = 0.0, 20.0
    for _ in range(60):
        q = (low + high) / 2
        low, high = (q, high) if range_below(q, count) < p else (low, q)
    return q
