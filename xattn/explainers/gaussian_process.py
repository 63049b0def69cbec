"""Gaussian processes: covariances and their likelihoods, and moments of a response whose latent value is normal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softmax
from torch.special import ndtr

Response = Callable[[Tensor], Tensor]
"""Latent value (any real number) → response."""

LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 16.0)
NUGGETS = (1e-8, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
SMOOTHNESS = ("gaussian", "matern")
NODES = 24
TINY = 1e-12


class Kernel(NamedTuple):
    """A covariance: scale · (correlation + nugget); the nugget counts only for a mask with itself."""

    smoothness: str
    length: float
    nugget: float
    scale: float = 1.0

    def correlation(self, one: Tensor, other: Tensor) -> Tensor:
        """`(n, d)` and `(m, d)` → `(n, m)`."""
        return _correlation(squared_distances(one, other) / self.length**2, self.smoothness)


class Moments(NamedTuple):
    """Moments of responses with normal latent values: mean, derivative of the mean by the latent mean, and variance, each `(n,)`."""

    mean: Tensor
    slope: Tensor
    variance: Tensor


def squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances, `(n, m)`."""
    return (one.pow(2).sum(dim=1)[:, None] + other.pow(2).sum(dim=1) - 2 * one @ other.mT).clamp(min=0)


def _correlation(squares: Tensor, smoothness: str) -> Tensor:
    """Correlation of latent values, from squared distances in units of the length; "matern" has order 5/2."""
    if smoothness == "gaussian":
        return torch.exp(-squares / 2)
    distance = (5 * squares).sqrt()
    return (1 + distance + distance**2 / 3) * torch.exp(-distance)


def covariances(inputs: Tensor, latents: Tensor, unit: float) -> list[tuple[float, Kernel]]:
    """Covariances, each with its share of the marginal likelihood; the mean is unknown and the scale the likeliest."""
    squares, ones = squared_distances(inputs, inputs), torch.ones_like(latents)
    nuggets = latents.new_tensor(NUGGETS)
    kernels, found = [], []
    for smoothness in SMOOTHNESS:
        for length in LENGTHS:
            values, vectors = torch.linalg.eigh(_correlation(squares / (length * unit) ** 2, smoothness))
            inverse = 1 / (values.clamp(min=0) + nuggets[:, None])
            own, one = vectors.mT @ latents, vectors.mT @ ones
            weight = inverse @ one**2
            mean = inverse @ (one * own) / weight
            scale = ((inverse * (own - mean[:, None] * one) ** 2).sum(dim=1) / (len(latents) - 1)).clamp(min=TINY)
            found.append(-0.5 * ((len(latents) - 1) * scale.log() - inverse.log().sum(dim=1) + weight.log()))
            kernels += [Kernel(smoothness, length * unit, *pair) for pair in zip(NUGGETS, scale.tolist(), strict=True)]
    return list(zip(softmax(torch.cat(found), dim=0).tolist(), kernels, strict=True))


def rectified_error(mean: Tensor, error: Tensor) -> Tensor:
    """Standard errors of rectified means, from those of means: √E(max(x, 0) − max(mean, 0))² of a normal x."""
    ratio = mean.abs() / error.clamp(min=TINY)
    beyond, density = ndtr(-ratio), torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    above = (1 + ratio**2) * beyond - ratio * density  # E max(x, 0)² in units of the variance, of a negative mean
    below = 1 - 2 * beyond + above  # E (max(x, 0) − mean)², of a positive one
    return error * torch.where(mean > 0, below, above).clamp(min=0).sqrt()


def moments_of(response: Response, mean: Tensor, variance: Tensor) -> Moments:
    """The moments by Gauss-Hermite quadrature; points and weights from the eigenvectors of the Jacobi matrix (Golub and Welsch 1969)."""
    beside = torch.diag(torch.arange(1, NODES).to(mean).sqrt(), 1)
    points, vectors = torch.linalg.eigh(beside + beside.mT)
    weights = vectors[0] ** 2
    deviation = variance.sqrt()
    values = response(mean[:, None] + deviation[:, None] * points)
    first = values @ weights
    return Moments(first, (values * points) @ weights / deviation, (values - first[:, None]).pow(2) @ weights)
