"""Class activation maps whose weights are optimised for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from xattn.errors import SettingError
from xattn.explainers.base import Need, RunsNetworkAgain, register
from xattn.explainers.trace import Trace
from xattn.metrics.masking import degenerate
from xattn.registry import AtMost

CAUTION = "optimises what average drop, gain and increase measure: compare it by other metrics as well"


@register("opti-cam", needs={Need.FEATURES}, source="Zhang et al. 2023, Sec. 3", caution=CAUTION)
@dataclass(frozen=True)
class OptiCAM(RunsNetworkAgain):
    """Feature maps with weights optimised so that the target's score is highest for the image masked by their weighted sum.

    The weights are a softmax over the channels of variables that start equal and that Adam changes for each image on its own. The map is
    upsampled and min-maxed to be the mask. Each iteration is a forward and a backward of the batch.

    Attributes:
        iterations: steps of the optimiser.
        lr: its learning rate.

    Differs: images are masked in pixel space, features are not rectified, and every iteration is run: the authors' code stops a batch
    early, by its summed loss.
    """

    iterations: Annotated[int, AtMost(100_000)] = 100
    lr: float = 0.1

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise SettingError(f"opti-cam takes at least one step; got iterations={self.iterations}.")
        if not 0 < self.lr < math.inf:
            raise SettingError(f"opti-cam's learning rate is above 0; got lr={self.lr}.")

    def forwards(self, channels: int, size: tuple[int, int]) -> int:
        """0: all of its forwards are run with gradients."""
        return 0

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)` at the stage's resolution; ≥ 0 after a rectifier."""
        images, features = trace.images.detach(), trace.features
        variables = features.new_zeros(features.shape[:2], requires_grad=True)
        optimiser = torch.optim.Adam([variables], lr=self.lr)
        for _ in range(self.iterations):
            with torch.enable_grad():
                mask = _mask(trace.on_image(_combined(variables, features)), (images.shape[2], images.shape[3]))
                score = trace.scores(images * mask.to(images)).sum()
            (gradient,) = torch.autograd.grad(score, variables)
            variables.grad = -gradient  # the optimiser descends
            optimiser.step()
        return _combined(variables, features).detach()


def _combined(variables: Tensor, features: Tensor) -> Tensor:
    """Feature maps weighted by the softmax of their variables, `(B, h, w)`."""
    return (variables.softmax(dim=1)[:, :, None, None] * features).sum(dim=1)


def _mask(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """The map upsampled and min-maxed, `(B, 1, H, W)`, differentiable; zeros for a map without contrast."""
    upsampled = functional.interpolate(raw[:, None], size=size, mode="bilinear", align_corners=False)
    low, high = upsampled.amin(dim=(2, 3), keepdim=True), upsampled.amax(dim=(2, 3), keepdim=True)
    shown = ~degenerate(raw.detach())[:, None, None, None]
    return torch.where(shown, (upsampled - low) / torch.where(shown, high - low, 1), 0)
