"""From raw maps to masks, and what becomes of the target when a mask is laid on the image: average drop, gain and increase."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from xattn.metrics.facts import mask_metric
from xattn.metrics.looks import KEPT, ORIGINAL, REMOVED
from xattn.metrics.probability import Probability

EPSILON = torch.finfo(torch.float64).eps
MARGIN = 1e-6
FLAT = 1e-6


class Masks(NamedTuple):
    """Masks and which of them come from a map without contrast.

    Attributes:
        masks: `(B, H, W)` in [0, 1].
        degenerate: `(B,)` bool.
    """

    masks: Tensor
    degenerate: Tensor


def degenerate(raw: Tensor) -> Tensor:
    """Whether a raw map says nothing: not finite, or max − min ≤ 1e-6 · max|map|. `(B, h, w)` → `(B,)` bool."""
    flat = raw.flatten(1)
    low, high = flat.aminmax(dim=1)
    return ~torch.isfinite(flat).all(dim=1) | ~(high - low > FLAT * flat.abs().amax(dim=1))


def to_masks(raw: Tensor, size: tuple[int, int]) -> Masks:
    """Masks of raw maps: each map min-maxed to [0, 1] at its own resolution, bilinear to the image, clamped.

    Args:
        raw: `(B, h, w)`, signed or not, of any scale.
        size: height and width of the image.

    Returns:
        Masks `(B, H, W)`; all zeros, and flagged, for a degenerate map.
    """
    flagged = degenerate(raw)
    clean = torch.where(flagged[:, None, None], torch.zeros_like(raw), raw)
    low, high = (extreme[:, None, None] for extreme in clean.flatten(1).aminmax(dim=1))
    scaled = (clean - low) / torch.where(high > low, high - low, torch.ones_like(high))
    if raw.shape[-2:] != size:
        scaled = functional.interpolate(scaled[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return Masks(scaled.clamp(0, 1), flagged)


@mask_metric("average-drop", symbol="AD", better="lower", limits=(0, 100), looks=(ORIGINAL, KEPT), source="Chattopadhay et al. 2018")
def average_drop(original: Probability, kept: Probability) -> Tensor:
    """How much of the target's probability is lost when only the masked image is seen: 100 · max(o − e, 0)/(o + ε).

    Definitions, Metrics. Percent in [0, 100]; lower is better.
    """
    return 100 * (original.p - kept.p).clamp(min=0) / (original.p + EPSILON)


@mask_metric("average-gain", symbol="AG", better="higher", limits=(0, 100), looks=(ORIGINAL, KEPT), source="Zhang et al. 2023")
def average_gain(original: Probability, kept: Probability) -> Tensor:
    """How much of what the target lacked is won when only the masked image is seen: 100 · max(e − o, 0)/(1 − o + ε).

    Definitions, Metrics. Percent in [0, 100]; higher is better. 1 − o is summed from the other classes, so that it holds near o = 1.
    """
    return 100 * (original.rest - kept.rest).clamp(min=0) / (original.rest + EPSILON)


@mask_metric("average-increase", symbol="AI", better="higher", limits=(0, 100), looks=(ORIGINAL, KEPT), source="Chattopadhay et al. 2018")
def average_increase(original: Probability, kept: Probability) -> Tensor:
    """Whether the masked image is recognised better: 100 · [e > o + 1e-6].

    Definitions, Metrics. 0 or 100 an image; higher is better.

    Differs: the paper has no margin; it keeps rounding noise from counting as an increase.
    """
    return 100 * (kept.p > original.p + MARGIN).double()


@mask_metric(
    "average-drop-deletion",
    symbol="ADD",
    better="higher",
    limits=(-float("inf"), 100),
    looks=(ORIGINAL, REMOVED),
    source="Gomez et al. 2022",
)
def average_drop_deletion(original: Probability, removed: Probability) -> Tensor:
    """How much of the target's probability is lost when what the mask shows is taken away: 100 · (o − p(x ⊙ (1 − mask)))/(o + ε).

    Definitions, Metrics. Percent, at most 100, negative where the probability rises; higher is better.
    """
    return 100 * (original.p - removed.p) / (original.p + EPSILON)
