"""Sensitivity of a method's map to imperceptible noise in the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from xattn.deferred import torch
from xattn.errors import SettingError
from xattn.metrics.base import Evidence, ExplanationMetric, register
from xattn.metrics.explanation import Explain, explained_again
from xattn.metrics.inputs import as_images, as_masks, refuse_no_masks
from xattn.metrics.perturbations import Noised, Perturbation, noised_images
from xattn.metrics.probability import widened
from xattn.metrics.seeds import content_seeds
from xattn.registry import AtMost

if TYPE_CHECKING:
    from torch import Tensor

RADIUS, SAMPLES = 0.02, 10


@dataclass(frozen=True)
class _Sensitivity(ExplanationMetric):
    radius: float = RADIUS
    samples: Annotated[int, AtMost(10_000)] = SAMPLES

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 1 or self.samples < 1:
            raise SettingError(
                f"sensitivity takes a radius in (0, 1] of pixel space and at least one sample; got radius={self.radius}, "
                f"samples={self.samples}."
            )

    @property
    def explained(self) -> tuple[Perturbation, ...]:
        return tuple(Noised(self.radius, draw) for draw in range(self.samples))

    def _changes(self, evidence: Evidence) -> Tensor:
        """‖S(x + δ) − S(x)‖/‖S(x)‖ for each draw, `(samples, B)`; NaN where S(x) shows nothing."""
        masks = widened(evidence.masks).flatten(1)
        again = [widened(evidence.explanations[asked].to(evidence.masks.device)).flatten(1) for asked in self.explained]
        changes = torch.stack([(some - masks).norm(dim=1) for some in again])
        size = masks.norm(dim=1)
        return changes / torch.where(size > 0, size, torch.nan)


@register("max-sensitivity", symbol="MaxS", better="lower", limits=(0, math.inf), unit="1", source="Yeh et al. 2019, Sec. 3")
@dataclass(frozen=True)
class MaxSensitivity(_Sensitivity):
    """Largest change of the mask under small noise in the picture: max over δ of ‖S(x + δ) − S(x)‖/‖S(x)‖.

    Attributes:
        radius: of the noise, uniform in [−radius, radius] at every value, in pixel space.
        samples: draws of noise, seeded by the picture's content.
    """

    def value(self, evidence: Evidence) -> Tensor:
        return self._changes(evidence).amax(dim=0)


@register("average-sensitivity", symbol="AvgS", better="lower", limits=(0, math.inf), unit="1", source="Yeh et al. 2019, Sec. 3")
@dataclass(frozen=True)
class AverageSensitivity(_Sensitivity):
    """Mean change of the mask under small noise in the picture: mean over δ of ‖S(x + δ) − S(x)‖/‖S(x)‖.

    Attributes:
        radius: of the noise, uniform in [−radius, radius] at every value, in pixel space.
        samples: draws of noise, seeded by the picture's content.
    """

    def value(self, evidence: Evidence) -> Tensor:
        return self._changes(evidence).mean(dim=0)


def max_sensitivity(
    images: Tensor, masks: Tensor, explain: Explain, *, radius: float = RADIUS, samples: int = SAMPLES, seed: int = 0
) -> Tensor:
    """Largest change of a method's mask under small noise: max over δ of ‖S(x + δ) − S(x)‖/‖S(x)‖, with norms over pixels.

    A map that ignores the picture has 0, for example a constant map, or one random map for all pictures. The value does not say whether a
    map is right; read it together with metrics that do.

    **Differs** from Yeh et al. 2019: masks in [0, 1] are compared, not raw maps, so that methods of any scale are comparable; changes are
    relative to the mask's norm; the noisy image is clipped to [0, 1] in pixel space; the value is the largest of some random draws, which
    is at most the true maximum.

    Args:
        images: `(B, C, H, W)` in pixel space.
        masks: S, `(B, H, W)` in [0, 1].
        explain: images → masks by the same method for the same targets.
        radius: of the noise, uniform in [−radius, radius] at every value.
        samples: draws of noise.
        seed: combined with each image's content.

    Returns:
        `(B,)` float64, ≥ 0; lower is better. NaN for a mask of zeros. A mask that doubles or vanishes has 1.

    Raises:
        InputError: shapes or values that do not match, or `explain` returns masks of another shape, or that are not finite.
        SettingError: the radius is outside (0, 1], or there is no sample.

    >>> import torch
    >>> images, masks = torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4)
    >>> max_sensitivity(images, masks, lambda noisy: masks)
    tensor([0.], dtype=torch.float64)
    """
    return _measured(MaxSensitivity(radius, samples), images, masks, explain, seed)


def average_sensitivity(
    images: Tensor, masks: Tensor, explain: Explain, *, radius: float = RADIUS, samples: int = SAMPLES, seed: int = 0
) -> Tensor:
    """Mean change of a method's mask under small noise: `max_sensitivity` with the mean over δ instead of the maximum.

    >>> import torch
    >>> images, masks = torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4)
    >>> average_sensitivity(images, masks, lambda noisy: torch.zeros(1, 4, 4))
    tensor([1.], dtype=torch.float64)
    """
    return _measured(AverageSensitivity(radius, samples), images, masks, explain, seed)


def _measured(metric: _Sensitivity, images: Tensor, masks: Tensor, explain: Explain, seed: int) -> Tensor:
    images = as_images(images)
    masks = as_masks(masks, len(images))
    seeds = content_seeds(images, seed)
    again: Mapping[Perturbation, Tensor] = {
        asked: explained_again(noised_images(images, asked, seeds), masks, explain)
        for asked in metric.explained
        if isinstance(asked, Noised)
    }
    for each in (masks, *again.values()):  # with two scales, the change would be one of scale
        refuse_no_masks(each)
    return metric.value(Evidence(masks, masks, explanations=again))
