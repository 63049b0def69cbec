"""Estimates of differences with their uncertainty: over seeds, over pictures, or over both, crossed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from xattn.metrics.statistics import CONFIDENCE, SAME

RESAMPLES = 4999


class Estimate(NamedTuple):
    """A mean with its standard error.

    Attributes:
        mean: mean of the finite values; NaN if there is none.
        error: standard error; NaN if there are too few values to estimate it.
        freedom: degrees of freedom of the Student distribution of mean over error.
        over: sample that it is over, such as "3 seeds × 200 birds".
    """

    mean: float
    error: float
    freedom: float
    over: str

    @property
    def half(self) -> float:
        """Half of the 95 % interval; NaN if the error is NaN."""
        return float(self.error * student.ppf((1 + CONFIDENCE) / 2, self.freedom))

    def differs(self) -> float:
        """The two-sided p-value that the true mean is 0. NaN without an error, and if all values are equal: they show no spread."""
        if self.error == 0:
            return 1.0 if self.mean == 0 else math.nan
        return float(2 * student.sf(abs(self.mean) / self.error, self.freedom))

    def within(self, margin: float) -> float:
        """The p-value of two one-sided tests that the true mean is not within ± a margin. Source: Schuirmann 1987."""
        if self.error == 0:
            return 0.0 if abs(self.mean) < margin else 1.0
        return float(max(student.sf((self.mean + sign * margin) / self.error * sign, self.freedom) for sign in (1, -1)))


def estimate(values: Tensor, units: str = "birds") -> Estimate:
    """Estimates the mean of values, of one network's pictures or of seeds × pictures.

    Values of one network, or of seeds alone, have Student's error. Those of seeds × pictures are crossed: all networks saw the same
    pictures. Their error is that of a two-way bootstrap (Owen 2007): seeds and pictures are drawn independently with replacement, one fewer
    of each than there are, so that few seeds do not make the error too small (McCarthy and Snowden 1985). The degrees of freedom are
    Satterthwaite's for the sum of the mean squares of seeds, pictures and both, which is the square of that error: near the number of seeds
    minus 1 if seeds differ most. If the values differ only by independent noise, the error is too large, by up to √3.

    Args:
        values: `(n,)`, or `(seeds, pictures)`; NaN is ignored.
        units: name of what the last axis counts.
    """
    table = values.double().numpy()
    if table.ndim == 2 and len(table) == 1:
        return estimate(values[0], units)
    if table.ndim == 1:
        finite = table[np.isfinite(table)]
        n = len(finite)
        if n < 2:
            return Estimate(float(finite.mean()) if n else math.nan, math.nan, math.nan, f"{n} {units}")
        return Estimate(float(finite.mean()), float(finite.std(ddof=1) / math.sqrt(n)), n - 1, f"{n} {units}")
    table = table[np.isfinite(table).any(axis=1)]
    table = table[:, np.isfinite(table).any(axis=0)] if len(table) else table
    seeds, n = table.shape
    over = f"{seeds} seeds × {n} {units}"
    if seeds < 2 or n < 2:
        return Estimate(float(np.nanmean(table)) if table.size else math.nan, math.nan, math.nan, over)
    known = np.isfinite(table)
    of_seeds, of_pictures = _drawn(seeds, RESAMPLES, 0), _drawn(n, RESAMPLES, 1)
    sums = ((of_seeds @ np.where(known, table, 0)) * of_pictures).sum(axis=1)
    weights = ((of_seeds @ known) * of_pictures).sum(axis=1)
    means = sums[weights > 0] / weights[weights > 0]  # a resample of missing values only has no mean
    return Estimate(float(table[known].mean()), float(means.std(ddof=1)), _freedom(table), over)


def apart(after: Tensor | Sequence[float], before: Tensor | Sequence[float], units: str = "birds") -> Estimate:
    """Estimates the mean of differences; a difference below 1e-6 of the largest value, or of 1, counts as 0.

    Args:
        after: `(n,)` or `(seeds, pictures)`.
        before: `(n,)` or `(seeds, pictures)`; a pair with a NaN is ignored. `(pictures,)`, of one network, is compared with each seed's.
        units: name of what the last axis counts.
    """
    one, other = (torch.as_tensor(each, dtype=torch.float64) for each in (after, before))
    difference = one - other
    largest = torch.cat([one.flatten(), other.flatten()]).nan_to_num(0).abs().max() if one.numel() else torch.tensor(0.0)
    return estimate(torch.where(difference.abs() <= SAME * largest.clamp(min=1), 0 * difference, difference), units)


@cache
def _drawn(count: int, resamples: int, stream: int) -> np.ndarray:
    """Returns how often each item is drawn, in resamples of one fewer than there are: `(resamples, count)`."""
    return np.random.default_rng((stream, count)).multinomial(count - 1, np.full(count, 1 / count), resamples).astype(float)


def _freedom(table: np.ndarray) -> float:
    """Returns Satterthwaite's degrees of freedom of the sum of the mean squares; infinity if all are 0."""
    seeds, n = table.shape
    rows, columns, whole = np.nanmean(table, axis=1), np.nanmean(table, axis=0), np.nanmean(table)
    rest = table - rows[:, None] - columns + whole
    both = (seeds - 1) * (n - 1)
    squares = [(n * rows.var(ddof=1), seeds - 1), (seeds * columns.var(ddof=1), n - 1), (np.nansum(rest**2) / both, both)]
    parts = sum(square**2 / freedom for square, freedom in squares)
    return float(sum(square for square, _ in squares) ** 2 / parts) if parts > 0 else math.inf
