"""Confidence intervals of means, and paired tests between methods, over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean with its confidence interval.

    Attributes:
        mean: over the finite values; NaN if there is none.
        low: lower end; NaN for fewer than two values.
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


def mean_interval(values: Tensor, confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of the mean over images. NaNs are left out and not counted in n.

    Args:
        values: `(n,)`.
        confidence: coverage.
    """
    from scipy.stats import t

    finite = values.double()[torch.isfinite(values)]
    n = len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(finite.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * float(finite.std()) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(values: Tensor, reference: Tensor, confidence: float = CONFIDENCE) -> Comparison:
    """The difference between two methods on the same images, in the same order.

    Args:
        values: `(n,)`.
        reference: `(n,)`; a pair with a NaN is left out.
        confidence: coverage of the interval.
    """
    from scipy.stats import wilcoxon

    both = torch.isfinite(values) & torch.isfinite(reference)
    difference = values.double()[both] - reference.double()[both]
    interval = mean_interval(difference, confidence)
    if interval.n == 0:
        return Comparison(interval, math.nan)
    if not bool(difference.any()):
        return Comparison(interval, 1.0)
    return Comparison(interval, float(wilcoxon(difference.tolist()).pvalue))


def adjusted(p: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted by Benjamini and Hochberg for the false discovery rate; NaN stays NaN."""
    from scipy.stats import false_discovery_control

    finite = [value for value in p if math.isfinite(value)]
    corrected = iter(false_discovery_control(finite)) if finite else iter(())
    return [float(next(corrected)) if math.isfinite(value) else math.nan for value in p]
