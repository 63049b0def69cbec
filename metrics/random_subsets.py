"""Sensitivity-n and infidelity: the map's sum over random subsets of the image, compared with the fall of the response without them.

The subsets are drawn for the image and are the same for every method, so that one set of forwards serves all methods and both metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.base import Evidence, Metric, register
from xattn.metrics.curves import Fill, refuse_wrong_count
from xattn.metrics.functions import measured
from xattn.metrics.inputs import Outputs, as_fill
from xattn.metrics.perturbations import ORIGINAL, Perturbation, Subsets
from xattn.metrics.probability import widened
from xattn.metrics.protocols import DeletionFill, filled
from xattn.metrics.removals import at_image_size
from xattn.metrics.targets import Predict, Targets

if TYPE_CHECKING:
    from torch import Tensor

MOST_SUBSETS, LARGEST_PATCH = 1000, 1024
FLAT_FALL, FLAT_SUMS = 1e-9, 1e-6

Scale = Literal["optimal", "raw"]


@dataclass(frozen=True)
class _OfSubsets(Metric):
    """Settings of a metric of random subsets.

    Attributes:
        subsets: number of subsets.
        share: of the image's patches that are in each.
        patch: side of a patch in pixels; 1: single pixels.
        fill: what deleted pixels show, as for `deletion`.
    """

    kind = "responses"
    subsets: int = 100
    share: float = 0.2
    patch: int = 16
    fill: DeletionFill = "mean"

    def __post_init__(self) -> None:
        refuse_wrong_count(self.subsets, "subsets", 2, MOST_SUBSETS)
        refuse_wrong_count(self.patch, "pixels along a patch", 1, LARGEST_PATCH)
        if not 0 < self.share < 1:
            raise InputError(f"the share of patches in a subset lies between 0 and 1; got {self.share!r:.40}.")

    @property
    def asked(self) -> Subsets:
        """The subsets."""
        return Subsets(self.subsets, self.share, self.patch, filled(self.fill))

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return ORIGINAL, self.asked

    def sums_and_falls(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """The map's sum over each subset, and the fall of the target's probability without it, `(B, S)` float64.

        The map is resized to the image's size bilinearly, with each value divided over its pixels, so that its sum stays about the same.
        """
        found = evidence.responses.subsets[self.asked]
        maps = widened(evidence.raw_maps if evidence.signed_maps is None else evidence.signed_maps)
        maps = at_image_size(maps, (evidence.masks.shape[1], evidence.masks.shape[2]))
        fall = evidence.responses.probability(ORIGINAL).p[:, None] - found.p
        return found.sums(maps.to(found.chosen.device)).to(fall.device), fall


@register("sensitivity-n", symbol="Sens-n", better="higher", limits=(-1, 1), unit="1", source="Ancona et al. 2018, Sec. 4")
@dataclass(frozen=True)
class SensitivityN(_OfSubsets):
    """Pearson's r between the map's sum over random patches and the fall of the target's probability without them."""

    def value(self, evidence: Evidence) -> Tensor:
        sums, fall = self.sums_and_falls(evidence)
        flat = fall.amax(1) - fall.amin(1) <= FLAT_FALL
        flat |= ~(sums.amax(1) - sums.amin(1) > FLAT_SUMS * sums.abs().amax(1))
        a, b = (values - values.mean(dim=1, keepdim=True) for values in (sums, fall))
        r = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
        return torch.where(flat, torch.nan, r.clamp(-1, 1))


@register("infidelity", symbol="Infd", better="lower", limits=(0, float("inf")), unit="1", source="Yeh et al. 2019, Def. 2.1")
@dataclass(frozen=True)
class Infidelity(_OfSubsets):
    """Mean squared error between the map's sum over random patches and the fall of the target's probability without them.

    Attributes:
        scale: "optimal", the map is first multiplied by the number that minimises the error; "raw", the unchanged map.
    """

    scale: Scale = "optimal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in ("optimal", "raw"):
            raise InputError(f"a scale is 'optimal' or 'raw'; got {self.scale!r:.40}.")

    def value(self, evidence: Evidence) -> Tensor:
        sums, fall = self.sums_and_falls(evidence)
        if self.scale == "optimal":
            square = (sums * sums).sum(dim=1, keepdim=True)
            sums = sums * torch.where(square > 0, (sums * fall).sum(dim=1, keepdim=True) / square, 0)
        return (fall - sums).square().mean(dim=1)


def sensitivity_n(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    subsets: int = 100,
    share: float = 0.2,
    patch: int = 16,
    replace_with: DeletionFill = "mean",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """Pearson's r over random subsets between the map's sum over a subset and the fall of the target's probability without it.

    All subsets have n patches, the given `share` of all patches. The value is the same for any map a·φ with a > 0, and for a·φ + b if
    patches divide the image.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`: masks, or raw maps of this size, with their sign.
        targets: class indices `(B,)`, or a target.
        fill: the classifier's mean colour, three values in pixel space; may be None where it is not needed.
        subsets: number of subsets; drawn with a generator seeded by the image's content, the same for every method.
        share: of the patches that are in each subset.
        patch: side of a patch in pixels; 1: single pixels, as in the paper.
        replace_with: what deleted pixels show: "mean", "black", "blur", "noise" or "noisy-linear", the setting `fill` of a run.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64 in [-1, 1], 1 for an additive classifier explained by its terms; NaN for a constant map, or if no subset changes the
        probability; higher is better.

    Differs: patches are removed, since single random pixels of a large image hide little; the paper draws r against n, here n is one
    `share`; the probability is used, not the logit.

    >>> import torch
    >>> images, masks = torch.ones(1, 3, 4, 4), torch.arange(16.0).view(1, 4, 4) / 120
    >>> weighed = lambda x: torch.stack([(x[:, 0] * masks).sum((1, 2)), 1 - (x[:, 0] * masks).sum((1, 2))], dim=1)
    >>> sensitivity_n(weighed, images, masks, torch.tensor([0]), fill=None, patch=1, replace_with="black", outputs="probabilities")
    tensor([1.0000], dtype=torch.float64)
    """
    metric = SensitivityN(subsets, share, patch, replace_with)
    mean = as_fill(fill)
    return measured(
        "sensitivity-n", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs
    )


def infidelity(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    scale: Scale = "optimal",
    subsets: int = 100,
    share: float = 0.2,
    patch: int = 16,
    replace_with: DeletionFill = "mean",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """Mean over random subsets of (β · the map's sum over the subset − the fall of the target's probability without it)².

    β = Σ s·d / Σ s² over the subsets' sums s and falls d ("optimal"), or 1 ("raw"). A map of zeros has the mean of d².

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`: masks, or raw maps of this size, with their sign.
        targets: class indices `(B,)`, or a target.
        fill: the classifier's mean colour, three values in pixel space; may be None where it is not needed.
        scale: "optimal" or "raw".
        subsets: as for `sensitivity_n`, which shares its forwards with this metric; so do `share`, `patch` and `replace_with`.
        share: of the patches that are in each subset.
        patch: side of a patch in pixels.
        replace_with: what deleted pixels show.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64, ≥ 0, squared probability, 0 for an additive classifier explained by its terms; lower is better.

    Differs: the paper perturbs with Gaussian noise or with one square; here some patches are replaced, and the map is taken to attribute
    the whole difference to the fill. The paper's definition is "raw", its code scales the map; the probability is used, not the logit.

    >>> import torch
    >>> images, masks = torch.ones(1, 3, 4, 4), torch.arange(16.0).view(1, 4, 4) / 120
    >>> weighed = lambda x: torch.stack([(x[:, 0] * masks).sum((1, 2)), 1 - (x[:, 0] * masks).sum((1, 2))], dim=1)
    >>> arguments = (weighed, images, masks, torch.tensor([0]))
    >>> infidelity(*arguments, fill=None, patch=1, replace_with="black", outputs="probabilities").round(decimals=6)
    tensor([0.], dtype=torch.float64)
    """
    metric = Infidelity(subsets, share, patch, replace_with, scale)
    mean = as_fill(fill)
    return measured("infidelity", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs)
