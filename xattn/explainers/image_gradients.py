"""Gradients at the image, averaged over many copies of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from xattn.errors import SettingError
from xattn.explainers.base import RunsNetworkAgain, register
from xattn.explainers.trace import Trace
from xattn.registry import AtMost

Channels = Literal["abs-max", "sum"]


def _mean_gradient(trace: Trace, changed: Iterator[Tensor], count: int) -> Tensor:
    """Mean of the gradients of each image's score at changed copies of it, `(B, 3, H, W)`.

    Copies are run in batches as large as one forward takes.

    Args:
        trace: of the batch.
        changed: copies of the batch, one after the other.
        count: how many there are.
    """
    total = torch.zeros_like(trace.images.detach())
    together = max(1, trace.predictor.chunk // len(total))
    while copies := list(itertools.islice(changed, together)):
        leaf = torch.cat(copies).requires_grad_()
        (gradient,) = torch.autograd.grad(trace.scores(leaf).sum(), leaf)
        for each in gradient.chunk(len(copies)):
            total += each
    return total / count


def _map(attributions: Tensor, channels: Channels) -> Tensor:
    return attributions.sum(dim=1) if channels == "sum" else attributions.abs().amax(dim=1)


@register("integrated-gradients", source="Sundararajan et al. 2017, Sec. 3")
@dataclass(frozen=True)
class IntegratedGradients(RunsNetworkAgain):
    """Image times the mean gradient on the straight line from black to it; all values sum to the score minus that of a black image.

    Attributes:
        steps: points on the line; each is a forward and a backward of the batch.
        channels: "abs-max", the largest magnitude over the channels, or "sum".
        signed: the sum over the channels, whatever `channels` is, shown around zero.

    Differs: the gradient is taken in the middle of each step instead of at its end, in pixel space, where the baseline is black; through
    captum the baseline is 0 after normalisation, the mean colour.
    """

    steps: Annotated[int, AtMost(10_000)] = 50
    channels: Channels = "abs-max"
    signed: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SettingError(f"integrated-gradients takes at least one step; got steps={self.steps}.")

    def forwards(self, channels: int, size: tuple[int, int]) -> int:
        """0: all forwards of this method are run with gradients."""
        return 0

    def attributions(self, trace: Trace) -> Tensor:
        """What each value of the image adds to the score, signed, `(B, 3, H, W)`."""
        images = trace.images.detach()
        line = (images * ((step + 0.5) / self.steps) for step in range(self.steps))
        return images * _mean_gradient(trace, line, self.steps)

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, H, W)`; ≥ 0 unless summed."""
        return _map(self.attributions(trace), "sum" if self.signed else self.channels)


@register("smooth-grad", source="Smilkov et al. 2017")
@dataclass(frozen=True)
class SmoothGrad(RunsNetworkAgain):
    """Mean gradient at noisy copies of the image; the noise is seeded by the image's content.

    Attributes:
        samples: copies; each is a forward and a backward of the batch.
        sigma: standard deviation of the noise, as a share of the image's range.
        channels: "abs-max", the largest magnitude over the channels, or "sum".
        signed: the sum over the channels, whatever `channels` is, shown around zero.

    Differs: taken in pixel space; libraries that take it at the normalised image differ by a factor 1/std per channel.
    """

    samples: Annotated[int, AtMost(10_000)] = 50
    sigma: float = 0.15
    channels: Channels = "abs-max"
    signed: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise SettingError(f"smooth-grad takes at least one sample; got samples={self.samples}.")
        if not 0 <= self.sigma < math.inf:
            raise SettingError(f"smooth-grad's noise has a standard deviation of 0 or more; got sigma={self.sigma}.")

    def forwards(self, channels: int, size: tuple[int, int]) -> int:
        """0: all forwards of this method are run with gradients."""
        return 0

    def attributions(self, trace: Trace) -> Tensor:
        """The mean gradient, signed, `(B, 3, H, W)`."""
        images = trace.images.detach()
        low, high = (extreme[:, None, None, None] for extreme in images.flatten(1).aminmax(dim=1))
        generators = [torch.Generator().manual_seed(seed) for seed in trace.seeds]

        def noisy() -> Iterator[Tensor]:
            for _ in range(self.samples):
                noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for generator in generators])
                yield images + self.sigma * (high - low) * noise.to(images)

        return _mean_gradient(trace, noisy(), self.samples)

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, H, W)`; ≥ 0 unless summed."""
        return _map(self.attributions(trace), "sum" if self.signed else self.channels)
