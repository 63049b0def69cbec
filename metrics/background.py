"""Metrics of the background next to known parts: objects that do not matter, and a cue that a network may have learnt.

The parts and the objects are in `KnownParts`. A picture without known parts has no value (NaN), and neither has a map that shows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.deferred import torch
from xattn.metrics.base import register
from xattn.metrics.known_parts import UNKNOWN, effects_of, in_parts, rounded
from xattn.metrics.parts_base import PartsMetric, checked_masks, defined, given, known_parts_of
from xattn.metrics.probability import widened

if TYPE_CHECKING:
    from torch import Tensor

    from xattn.metrics.known_parts import KnownParts

IRRELEVANT = 0.05  # share of the target's logit: a smaller change does not matter


@register("distractibility", symbol="Dist", better="higher", source="Hesse et al. 2023, distractibility")
@dataclass(frozen=True)
class Distractibility(PartsMetric):
    """How often the map shows a part that matters to the network more than a part or object that does not."""

    lacks = "all of the picture's parts and objects matter to the network, or none does"

    def of_parts(self, masks: Tensor, parts: KnownParts) -> Tensor:
        return distractibility(masks, parts)

    def has(self, parts: KnownParts) -> Tensor:
        _, relevant, irrelevant = _relevance(parts)
        return parts.known & (relevant.any(dim=1) & irrelevant.any(dim=1)).to(parts.visible.device)


def distractibility(masks: Tensor, parts: KnownParts) -> Tensor:
    """Percentage of pairs, of a region that matters to the network and one that does not, that the map ranks correctly.

    The regions are the visible parts and the objects of the background. A region does not matter if the target's logit falls by less than 5
    % of its magnitude, or rises, without it. The map's value of a region is the mean of the mask in it; a tie, within 2⁻¹⁶, counts a half.

    **Differs** from Hesse et al. 2023, who print the share of unimportant regions below one threshold on the sum of the attribution, chosen
    to be best for all pictures. Here it is the area over all thresholds (the area under the ROC curve), and the mean, not the sum, as in
    `parts_removal`, so that a region does not distract only because it is large.

    Args:
        masks: `(B, H, W)` in [0, 1].
        parts: of the pictures, with `objects` and `without`.

    Returns:
        `(B,)` float64, percent in [0, 100]; higher is better, and a uniform map has 50. NaN for a mask of zeros, where no part is visible,
        and where all visible regions matter, or none does. A map that shows each region's effect has 100.

    Raises:
        InputError: shapes or values that do not match, or no objects are given.

    >>> from xattn.metrics import KnownParts
    >>> pixels, shown = torch.eye(4).view(1, 4, 1, 4) > 0, torch.arange(8)
    >>> logits = torch.stack([1.0 * (shown & 1), 0.5 + 0 * shown], dim=1)  # the first part decides; two parts and the object do not matter
    >>> parts = KnownParts(pixels[:, :3], logits[None], torch.tensor([0]), objects=pixels[:, 3:], without=torch.tensor([[1.0]]))
    >>> distractibility(torch.tensor([[[0.5, 0.0, 0.5, 1.0]]]), parts)  # above one, level with one, below the object
    tensor([50.], dtype=torch.float64)
    """
    masks = checked_masks(masks, parts)
    where, relevant, irrelevant = _relevance(parts)
    means = rounded(in_parts(masks, where))
    pairs = (relevant[:, :, None] & irrelevant[:, None, :]).to(means.device)
    ahead = (means[:, :, None] > means[:, None, :]).double() + 0.5 * (means[:, :, None] == means[:, None, :]).double()
    return defined(100 * (ahead * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)), masks, parts)


@register("background-independence", symbol="BI", better="higher", source="Hesse et al. 2023, background independence")
@dataclass(frozen=True)
class BackgroundIndependence(PartsMetric):
    """Share of the background's objects that do not matter to the network: a property of the network, the same for all methods."""

    lacks = "no object of the background is visible"

    def of_parts(self, masks: Tensor, parts: KnownParts) -> Tensor:
        return background_independence(parts).to(widened(masks).device)

    def has(self, parts: KnownParts) -> Tensor:
        return parts.known & _objects(parts)[0].flatten(1).any(dim=1)


def background_independence(parts: KnownParts) -> Tensor:
    """Percentage of visible background objects whose removal lowers the target's logit by less than 5 % of its magnitude, or raises it.

    It measures what the network uses, not how good a map is: all methods have the same value. It is reported to help interpret
    `distractibility`.

    **Differs** from Hesse et al. 2023: each picture has its own share, while they pool the objects of all pictures; only visible objects
    count.

    Args:
        parts: of the pictures, with `objects` and `without`.

    Returns:
        `(B,)` float64, percent in [0, 100]; higher: the background matters less. NaN where no object is visible. A network that sees only
        the parts has 100.

    Raises:
        InputError: no objects are given.

    >>> from xattn.metrics import KnownParts
    >>> pixels, logits = torch.eye(4).view(1, 4, 1, 4) > 0, torch.ones(1, 4, 2)
    >>> parts = KnownParts(pixels[:, :2], logits, torch.tensor([0]), objects=pixels[:, 2:], without=torch.tensor([[0.5, 0.99]]))
    >>> background_independence(parts)  # half of the logit rests on the first object
    tensor([50.], dtype=torch.float64)
    """
    objects, without = _objects(known_parts_of(parts))
    there = objects.flatten(2).any(dim=2).to(without.device)
    spared = (there & _spares(parts.values[:, -1:], without)).sum(dim=1).double()
    return torch.where(parts.known.to(without.device), 100 * spared / there.sum(dim=1), torch.nan)


@register("clever-hans", symbol="CH", better="higher", source="Lapuschkin et al. 2019, as pairs of a cue and a part")
@dataclass(frozen=True)
class CleverHans(PartsMetric):
    """Whether the map ranks a cue next to the bird above the parts that matter less to the network, and below those that matter more."""

    lacks = "the picture shows no cue"

    def of_parts(self, masks: Tensor, parts: KnownParts) -> Tensor:
        return clever_hans(masks, parts)

    def has(self, parts: KnownParts) -> Tensor:
        return parts.known & (given(parts.cue, "cue") != UNKNOWN).to(parts.visible.device)


def clever_hans(masks: Tensor, parts: KnownParts) -> Tensor:
    """Percentage of the visible parts that the map ranks correctly above or below the cue, by the effect of their removal.

    A part whose removal lowers the target's logit more than the cue's removal is ranked correctly if the mask's mean in it is above that in
    the cue; a part whose removal lowers it less, if the mean is below. A tie of the means counts a half. For a network that has learnt the
    cue, this tests whether the map shows the cue; for a network that has not, whether the map ignores it.

    Args:
        masks: `(B, H, W)` in [0, 1].
        parts: of the pictures, with `objects`, `without` and `cue`.

    Returns:
        `(B,)` float64, percent in [0, 100]; higher is better, and a uniform map has 50. NaN for a mask of zeros, where no cue is visible,
        or where the cue and the parts have the same effect. A map that shows the effect of each has 100.

    Raises:
        InputError: shapes or values that do not match, or no objects are given.

    >>> from xattn.metrics import KnownParts
    >>> pixels, shown = torch.eye(3).view(1, 3, 1, 3) > 0, torch.arange(4)
    >>> logits = torch.stack([2.0 * (shown & 1) + 0.5 * (shown >> 1), 0 * shown], dim=1)
    >>> known = {"objects": pixels[:, 2:], "without": torch.tensor([[1.5]]), "cue": torch.tensor([0])}  # 1 is lost without the cue
    >>> clever_hans(torch.tensor([[[0.1, 0.2, 1.0]]]), KnownParts(pixels[:, :2], logits[None], torch.tensor([0]), **known))
    tensor([50.], dtype=torch.float64)
    """
    masks = checked_masks(masks, parts)
    objects, without = _objects(parts)
    place = given(parts.cue, "cue").to(without.device)
    chosen = place.clamp(min=0)[:, None]
    where = objects[torch.arange(len(objects), device=objects.device), chosen[:, 0].to(objects.device)]
    means = rounded(in_parts(masks, torch.cat([parts.visible, where[:, None]], dim=1)))
    values, unit = parts.values, parts.rounding
    falls = ((values[:, -1:] - without.gather(1, chosen)) / unit).round().to(means.device)
    apart = (effects_of(values).removal / unit).round().to(means.device) - falls
    higher = means[:, :-1] - means[:, -1:]
    counted = (apart != 0) & higher.isfinite()
    right = ((apart > 0) == (higher > 0)).double()
    right = torch.where(higher == 0, 0.5, right)
    found = 100 * (right * counted).sum(dim=1) / counted.sum(dim=1)
    return defined(torch.where((place != UNKNOWN).to(found.device), found, torch.nan), masks, parts)


def _objects(parts: KnownParts) -> tuple[Tensor, Tensor]:
    """Where the objects are, and the target's logit without each, float64."""
    return given(parts.objects, "objects"), widened(given(parts.without, "without"))


def _spares(whole: Tensor, without: Tensor) -> Tensor:
    """`(B, N)` bool: the logit `(B, N)` without something falls by less than 5 % of its magnitude `(B, 1)`, or rises."""
    return whole - without < IRRELEVANT * whole.abs()


def _relevance(parts: KnownParts) -> tuple[Tensor, Tensor, Tensor]:
    """Regions of the parts and then the objects, `(B, N + T, H, W)`; which visible ones matter, and which do not, `(B, N + T)`."""
    objects, without = _objects(parts)
    values = parts.values
    whole = values[:, -1:]
    where = torch.cat([parts.visible, objects.to(parts.visible.device)], dim=1)
    spared = _spares(whole, torch.cat([whole - effects_of(values).removal, without.to(values.device)], dim=1))
    there = where.flatten(2).any(dim=2).to(values.device)
    return where, there & ~spared, there & spared
