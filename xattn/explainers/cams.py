"""Class activation maps from gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from xattn.errors import SettingError, UnsupportedError
from xattn.explainers.base import Need, register
from xattn.explainers.trace import Trace
from xattn.metrics.probability import widened
from xattn.metrics.target_base import Target
from xattn.metrics.targets import ClassTarget, Contrast
from xattn.registry import AtMost

CANCELLED = 1e-4
VANISHING = 1e-12


@register("grad-cam", needs={Need.FEATURES, Need.GRADIENTS}, source="Selvaraju et al. 2017, Sec. 3")
@dataclass(frozen=True)
class GradCAM:
    """Feature maps weighted by their mean gradient.

    Attributes:
        signed: keep evidence against the target, as negative values.
    """

    signed: bool = False

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)` at the stage's resolution, unitless; ≥ 0 unless signed."""
        weights = trace.gradients.mean(dim=(2, 3), keepdim=True)
        return _rectified((weights * trace.features).sum(dim=1), self.signed)


def _rectified(total: Tensor, signed: bool) -> Tensor:
    return total if signed else total.relu()


@register("grad-cam++", needs={Need.FEATURES, Need.GRADIENTS}, source="Chattopadhay et al. 2018, Eq. 19")
@dataclass(frozen=True)
class GradCAMPlusPlus:
    """Feature maps weighted by their positive gradients, each position by a closed-form coefficient.

    The gradient of the score replaces that of its exponential: the factor between them cancels in the coefficient and in the min-max.

    Attributes:
        normalise_alpha: divide the coefficients of a channel by their sum over its positive-gradient positions, as the authors'
            code does.

    Differs: the coefficient is 0 where its denominator vanishes against g² (definitions, Explainers); no ε is added to it. Computed in
    float64, since the cube of a small gradient underflows in float32.
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


@register("layer-cam", needs={Need.FEATURES, Need.GRADIENTS}, source="Jiang et al. 2021")
def layer_cam(trace: Trace) -> Tensor:
    """Feature maps weighted position by position by their positive gradient; also meant for early stages.

    Returns:
        Raw map `(B, h, w)`, ≥ 0, at the stage's resolution.
    """
    return (trace.gradients.relu() * trace.features).sum(dim=1).relu()


@register("hires-cam", needs={Need.FEATURES, Need.GRADIENTS}, source="Draelos and Carin 2020")
@dataclass(frozen=True)
class HiResCAM:
    """Feature maps weighted position by position by their gradient.

    Attributes:
        signed: keep evidence against the target, as negative values.

    Differs: the map is zero where the products of the channels cancel, for example where only a layer norm reads the features: the norm
    undoes a change of scale, so the scale of a token has no gradient, and only rounding is left.
    """

    signed: bool = False

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)` at the stage's resolution; ≥ 0 unless signed."""
        products = trace.gradients * trace.features
        total = products.sum(dim=1)
        return _rectified(torch.where(cancelled(products)[:, None, None], 0, total), self.signed)


def cancelled(products: Tensor) -> Tensor:
    """Whether the sum over the channels of `(B, C, h, w)` is almost 0 compared with the summands: `(B,)` bool."""
    total, added = products.sum(dim=1).abs(), products.abs().sum(dim=1)
    return total.flatten(1).amax(dim=1) <= CANCELLED * added.flatten(1).amax(dim=1)


@register("xgrad-cam", needs={Need.FEATURES, Need.GRADIENTS}, source="Fu et al. 2020")
@dataclass(frozen=True)
class XGradCAM:
    """Feature maps weighted by the mean of their gradient, where each position counts by its share of the map's sum.

    Attributes:
        signed: keep evidence against the target, as negative values.

    Differs: no ε is added to a map's sum, which keeps its sign; the weight is 0 where |Σ F| ≤ 1e-12 · Σ |F|. Computed in float64, since the
    sum of a signed map may nearly cancel.
    """

    signed: bool = False

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)` at the stage's resolution; ≥ 0 unless signed."""
        gradients, features = widened(trace.gradients), widened(trace.features)
        total, scale = (values.sum(dim=(2, 3), keepdim=True) for values in (features, features.abs()))
        defined = total.abs() > VANISHING * scale
        products = (gradients * features).sum(dim=(2, 3), keepdim=True)
        weights = torch.where(defined, products / torch.where(defined, total, 1), 0)
        return _rectified((weights * features).sum(dim=1), self.signed).to(trace.features)


@register("finer-cam", needs={Need.FEATURES, Need.GRADIENTS}, source="Zhang et al. 2025")
@dataclass(frozen=True)
class FinerCAM:
    """Grad-CAM of the difference between a class and those that the network finds most similar: z − α · mean of their logits.

    The similar classes are those whose logits are nearest to the target's. Where the target is a contrast, it names the classes itself,
    and this is Grad-CAM of the contrast.

    Attributes:
        alpha: how much the similar classes count; 0 is Grad-CAM.
        similar: number of similar classes; all others where the network has fewer.
        signed: keep evidence for the similar classes, as negative values.

    Differs: the similar classes count equally; the authors' code weighs them by their probabilities.
    """

    alpha: float = 0.6
    similar: Annotated[int, AtMost(10_000)] = 3
    signed: bool = False

    def __post_init__(self) -> None:
        if self.similar < 1:
            raise SettingError(f"finer-cam compares with at least one class; got similar={self.similar}.")
        if not 0 <= self.alpha < math.inf:
            raise SettingError(f"finer-cam subtracts the similar classes with a weight of 0 or more; got alpha={self.alpha}.")

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)` at the stage's resolution; ≥ 0 unless signed.

        Raises:
            UnsupportedError: the target is neither a class nor a contrast, or there is no other class.
        """
        contrast = self.contrast(trace.target, trace.output.detach())
        gradients = trace.gradients if contrast is trace.target else trace.gradients_of(contrast)
        return _rectified((gradients.mean(dim=(2, 3), keepdim=True) * trace.features).sum(dim=1), self.signed)

    def contrast(self, target: Target, output: Tensor) -> Contrast:
        """The contrast of the target with the classes that are most similar to it.

        Args:
            target: of the batch.
            output: logits `(B, K)`.
        """
        if isinstance(target, Contrast):
            return target
        if not isinstance(target, ClassTarget):
            raise UnsupportedError(
                f"finer-cam compares a class with similar ones, and {target.kind} has none. Use grad-cam, or a class or contrast as target."
            )
        distance = (output - target.score(output)[:, None]).abs()
        if output.shape[1] < 2:
            raise UnsupportedError("finer-cam compares a class with similar ones, and the network gives a single logit. Use grad-cam.")
        own = target.classes.to(output.device)[:, None]
        order = distance.scatter(1, own, -1).argsort(dim=1, stable=True)  # the class itself is first; ties go to the lowest index
        others = order[:, 1 : self.similar + 1]
        weights = torch.tensor([1.0] + [-self.alpha / others.shape[1]] * others.shape[1])
        return Contrast(torch.cat([own, others], dim=1), weights)
