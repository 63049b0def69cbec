"""Class activation maps from gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.explainers.base import Need, register
from xattn.explainers.trace import Trace
from xattn.metrics.probability import widened

VANISHING = 1e-12


@register("grad-cam", needs={Need.FEATURES, Need.GRADIENTS}, source="Selvaraju et al. 2017, Sec. 3")
def grad_cam(trace: Trace) -> Tensor:
    """Feature maps weighted by their mean gradient.

    Returns:
        Raw map `(B, h, w)`, ≥ 0, at the stage's resolution, unitless.
    """
    weights = trace.gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * trace.features).sum(dim=1).relu()


@register("grad-cam++", needs={Need.FEATURES, Need.GRADIENTS}, source="Chattopadhay et al. 2018, Eq. 19")
@dataclass(frozen=True)
class GradCAMPlusPlus:
    """Feature maps weighted by their positive gradients, each position by a closed-form coefficient.

    The gradient of the score is used for that of its exponential: the factor cancels in the coefficient and in the min-max.

    Attributes:
        normalise_alpha: divide the coefficients of a channel by their sum over its positive-gradient positions, as the authors'
            code does.

    Differs: the coefficient is 0 where its denominator vanishes against g² (definitions, Explainers); no ε is added to it. Computed in
    float64, since the cube of a small gradient leaves float32.
    """

    normalise_alpha: bool = False

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)`, ≥ 0, at the stage's resolution."""
        gradients, features = widened(trace.gradients), widened(trace.features)
        squared, cubed = gradients**2, gradients**3
        denominator = 2 * squared + features.sum(dim=(2, 3), keepdim=True) * cubed
        defined = denominator.abs() > VANISHING * squared
        alpha = torch.where(defined, squared / torch.where(defined, denominator, 1), 0)
        if self.normalise_alpha:
            total = torch.where(gradients > 0, alpha, 0).sum(dim=(2, 3), keepdim=True)
            alpha = alpha / torch.where(total != 0, total, 1)
        weights = (alpha * gradients.relu()).sum(dim=(2, 3), keepdim=True)
        return (weights * features).sum(dim=1).relu().to(trace.features)
