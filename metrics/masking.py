"""Masks from raw maps, and metrics of the masked image: average drop, gain, increase, and complexity."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from xattn.deferred import torch
from xattn.metrics.base import ResponseMetric, mask_metric, register
from xattn.metrics.functions import measured, response_metric
from xattn.metrics.inputs import Outputs, as_maps, refuse_no_masks
from xattn.metrics.perturbations import FLAT, KEPT, ORIGINAL, Perturbation, Removed, Upsampling
from xattn.metrics.probability import Probability, widened
from xattn.metrics.targets import Predict, Targets

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = sys.float_info.epsilon
MARGIN = 1e-6


class Masks(NamedTuple):
    """Masks, and flags for those from a map without contrast.

    Attributes:
        masks: `(B, H, W)` in [0, 1].
        degenerate: `(B,)` bool.
    """

    masks: Tensor
    degenerate: Tensor


def degenerate(raw: Tensor) -> Tensor:
    """Whether a raw map shows nothing: not finite, or max − min ≤ 1e-6 · max|map|. `(B, h, w)` → `(B,)` bool."""
    flat = raw.flatten(1)
    low, high = flat.aminmax(dim=1)
    return ~torch.isfinite(flat).all(dim=1) | ~(high - low > FLAT * flat.abs().amax(dim=1))


def to_masks(raw: Tensor, size: tuple[int, int]) -> Masks:
    """Converts raw maps to masks: each map is min-maxed to [0, 1] at its own resolution, resized bilinearly to the image's size, clamped.

    Args:
        raw: `(B, h, w)`, signed or not, of any scale.
        size: height and width of the image.

    Returns:
        Masks `(B, H, W)`; all zeros, and flagged, for a degenerate map.

    >>> import torch
    >>> to_masks(torch.tensor([[[0.0, 1.0], [2.0, 4.0]]]), (2, 2)).masks
    tensor([[[0.0000, 0.2500],
             [0.5000, 1.0000]]])
    """
    raw = as_maps(raw, "raw maps")
    flagged = degenerate(raw)
    clean = torch.where(flagged[:, None, None], torch.zeros_like(raw), raw)
    low, high = (extreme[:, None, None] for extreme in clean.flatten(1).aminmax(dim=1))
    scaled = (clean - low) / torch.where(high > low, high - low, torch.ones_like(high))
    if raw.shape[-2:] != size:
        scaled = torch.nn.functional.interpolate(scaled[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return Masks(scaled.clamp(0, 1), flagged)


@response_metric("average-drop", symbol="AD", better="lower", perturbations=(ORIGINAL, KEPT), source="Chattopadhay et al. 2018")
def average_drop(original: Probability, kept: Probability) -> Tensor:
    """Relative fall of the target's probability when only the masked image is seen: 100 · max(o − e, 0)/(o + ε).

    Definitions, Metrics. Percent in [0, 100]; lower is better.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)` in [0, 1].
        targets: class indices `(B,)`, or a target.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    >>> import torch
    >>> from xattn.metrics import average_drop
    >>> images, brightness = torch.ones(1, 3, 4, 4), lambda x: torch.stack([x.mean((1, 2, 3)), 0 * x.mean((1, 2, 3))], dim=1)
    >>> average_drop(brightness, images, torch.zeros(1, 4, 4), torch.tensor([0])).round(decimals=2)
    tensor([31.6100], dtype=torch.float64)
    """
    return average_drop_of(original, kept)


def average_drop_of(original: Probability, kept: Probability) -> Tensor:
    """Average drop of two probabilities, percent `(B,)`."""
    return 100 * (original.p - kept.p).clamp(min=0) / (original.p + EPSILON)


@response_metric("average-gain", symbol="AG", better="higher", perturbations=(ORIGINAL, KEPT), source="Zhang et al. 2023")
def average_gain(original: Probability, kept: Probability) -> Tensor:
    """Relative rise of the target's probability, towards 1, when only the masked image is seen: 100 · max(e − o, 0)/(1 − o + ε).

    Definitions, Metrics. Percent in [0, 100]; higher is better. 1 − o is summed from the other classes, so that it is accurate near o = 1.
    Arguments as for `average_drop`: `predict` gives logits.

    >>> import torch
    >>> from xattn.metrics import average_gain
    >>> images, darkness = torch.ones(1, 3, 4, 4), lambda x: torch.stack([-x.mean((1, 2, 3)), 0 * x.mean((1, 2, 3))], dim=1)
    >>> average_gain(darkness, images, torch.zeros(1, 4, 4), torch.tensor([0])).round(decimals=2)
    tensor([31.6100], dtype=torch.float64)
    """
    return 100 * (original.rest - kept.rest).clamp(min=0) / (original.rest + EPSILON)


@response_metric(
    "average-increase",
    symbol="AI",
    better="higher",
    perturbations=(ORIGINAL, KEPT),
    source="Chattopadhay et al. 2018",
    aggregation="proportion",
)
def average_increase(original: Probability, kept: Probability) -> Tensor:
    """Whether the target's probability is higher for the masked image: 100 · [e > o + 1e-6].

    Definitions, Metrics. 0 or 100 per image; higher is better. Arguments as for `average_drop`: `predict` gives logits.

    Differs: the paper has no margin; here it prevents rounding from counting as an increase.

    >>> import torch
    >>> from xattn.metrics import average_increase
    >>> images, darkness = torch.ones(1, 3, 4, 4), lambda x: torch.stack([-x.mean((1, 2, 3)), 0 * x.mean((1, 2, 3))], dim=1)
    >>> average_increase(darkness, images, torch.zeros(1, 4, 4), torch.tensor([0]))
    tensor([100.], dtype=torch.float64)
    """
    undefined = original.p.isnan() | kept.p.isnan()
    return torch.where(undefined, torch.nan, 100 * (kept.p > original.p + MARGIN).double())


@register(
    "average-drop-deletion",
    symbol="ADD",
    better="higher",
    limits=(-float("inf"), 100),
    source="Jung et al. 2021, as in Gomez et al. 2022",
)
@dataclass(frozen=True)
class AverageDropDeletion(ResponseMetric):
    """Relative fall of the target's probability when the area that the mask shows is removed: 100 · (o − p(x ⊙ (1 − mask)))/(o + ε).

    Attributes:
        upsample: "bilinear"; "bicubic", as in the code released with Gomez et al. 2022, to bring maps to the image's size.
    """

    upsample: Upsampling = "bilinear"

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return ORIGINAL, Removed(self.upsample)

    def of_probabilities(self, *probabilities: Probability) -> Tensor:
        original, removed = probabilities
        return 100 * (original.p - removed.p) / (original.p + EPSILON)


def average_drop_deletion(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    upsample: Upsampling = "bilinear",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """How much of the target's probability is lost when the area that the mask shows is removed: 100 · (o − p(x ⊙ (1 − mask)))/(o + ε).

    Definitions, Metrics.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)` in [0, 1]; with upsample="bicubic" min-maxed maps of any resolution.
        targets: class indices `(B,)`, or a target.
        upsample: "bilinear", or "bicubic" as in the code released with Gomez et al. 2022.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64, percent, at most 100, negative where the probability rises; higher is better.

    >>> import torch
    >>> images, brightness = torch.ones(1, 3, 4, 4), lambda x: torch.stack([x.mean((1, 2, 3)), 0 * x.mean((1, 2, 3))], dim=1)
    >>> average_drop_deletion(brightness, images, torch.ones(1, 4, 4), torch.tensor([0])).round(decimals=2)
    tensor([31.6100], dtype=torch.float64)
    """
    metric = AverageDropDeletion(upsample)
    return measured("average-drop-deletion", metric, predict, images, masks, targets, multi_label=multi_label, chunk=chunk, outputs=outputs)


@mask_metric("complexity", symbol="Com", better="lower", source="Poppi et al. 2021, Eq. 5")
def complexity(masks: Tensor) -> Tensor:
    """Mean of the mask: how much of the image it shows.

    Definitions, Metrics. In [0, 1]; lower is better.

    >>> import torch
    >>> complexity(torch.tensor([[[0.0, 0.5], [0.5, 1.0]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    masks = as_maps(masks, "masks")
    refuse_no_masks(masks)
    return widened(masks).mean(dim=(1, 2))
