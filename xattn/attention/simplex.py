"""Distributions, which map scores to the simplex: non-negative weights with the sum 1."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from xattn.attention.base import DistributionMetadata, distributions, widened


@distributions.register("softmax", DistributionMetadata(formula="exp(sᵢ) / Σⱼ exp(sⱼ)", source="Vaswani et al. 2017"))
def softmax(scores: Tensor) -> Tensor:
    """Softmax; every weight is above 0.

    Args:
        scores: `(…, n)`.

    Returns:
        `(…, n)` with the sum 1 over the last dimension, in float32 at least, in any surrounding precision.
    """
    return (scores if scores.dtype == torch.float64 else scores.float()).softmax(dim=-1)


@distributions.register(
    "sparsemax",
    DistributionMetadata(formula="max(sᵢ − τ, 0), Σᵢ = 1", source="Martins and Astudillo 2016 (arXiv 1602.02068)", package="entmax"),
)
def sparsemax(scores: Tensor) -> Tensor:
    """Projection of the scores onto the simplex: weights are exactly 0 for scores 1 or more below the highest, and may be 0 for others.

    Args:
        scores: `(…, n)`.

    Returns:
        As `softmax`; NaN where a score is not finite.
    """
    return _entmax("sparsemax", scores)


@distributions.register(
    "entmax15",
    DistributionMetadata(formula="max(sᵢ/2 − τ, 0)², Σᵢ = 1", source="Peters et al. 2019 (arXiv 1905.05702)", package="entmax"),
)
def entmax15(scores: Tensor) -> Tensor:
    """1.5-entmax, between softmax and sparsemax: weights are exactly 0 for scores 2 or more below the highest, and may be 0 for others.

    Args:
        scores: `(…, n)`.

    Returns:
        As `softmax`; NaN where a score is not finite.
    """
    return _entmax("entmax15", scores)


def _entmax(name: str, scores: Tensor) -> Tensor:
    """A function of the package entmax, over the last dimension; returns NaN where entmax would raise an indexing error for NaN."""
    (scores,) = widened(scores)
    finite = scores.isfinite().all(dim=-1, keepdim=True)
    with torch.autocast(scores.device.type, enabled=False):
        weights: Tensor = getattr(importlib.import_module("entmax"), name)(torch.where(finite, scores, 0), dim=-1)
    return torch.where(finite, weights, torch.nan)


@distributions.register("sum", DistributionMetadata(formula="sᵢ / Σⱼ sⱼ", source="Nadaraya 1964; Watson 1964", kernel=True))
def over_sum(values: Tensor) -> Tensor:
    """Values of a kernel, divided by their sum.

    Args:
        values: `(…, n)`, ≥ 0.

    Returns:
        As `softmax`; uniform where all values are 0.
    """
    (values,) = widened(values)
    total = values.sum(dim=-1, keepdim=True)
    return torch.where(total == 0, 1 / values.shape[-1], values / torch.where(total == 0, 1, total))
