"""Metrics of pictures that can be drawn again without some of their parts: ranks of the parts' effects, and FunnyBirds' checks.

The parts and their effects on the network's output are in `KnownParts`; `xattn.birds.known_parts` creates them for SketchBirds. A picture
without known parts has no value (NaN), and neither has a map that shows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.base import Evidence, register
from xattn.metrics.inputs import as_tensor
from xattn.metrics.known_parts import UNKNOWN, effects_of, in_parts, in_shares, rank_correlation, rounded
from xattn.metrics.parts_base import MARGIN, PartsMetric, checked_masks, defined, given, known_parts_of
from xattn.metrics.probability import widened

if TYPE_CHECKING:
    from torch import Tensor

    from xattn.metrics.known_parts import KnownParts


@register("parts-removal", symbol="SD", better="higher", limits=(-1, 1), unit="1", source="Hesse et al. 2023, single deletion")
@dataclass(frozen=True)
class PartsRemoval(PartsMetric):
    """Whether the map is higher in the parts whose removal lowers the target's logit more: Spearman's ρ over the parts."""

    def of_parts(self, masks: Tensor, parts: KnownParts) -> Tensor:
        return parts_removal(masks, parts)

    def has(self, parts: KnownParts) -> Tensor:
        return parts.visible.flatten(2).any(dim=2).sum(dim=1) >= 3


def parts_removal(masks: Tensor, parts: KnownParts) -> Tensor:
    """Spearman's ρ, over a picture's visible parts, between the mask's mean in a part and the fall of the target's logit without that part.

    **Differs** from Hesse et al. 2023: the mean of the mask in the part, not the sum over it dilated by five pixels, so that a part does
    not rank higher because it is large; ρ in [−1, 1], where they print (ρ + 1)/2. Effects within 1e-5 of the largest logit, and means
    within 2⁻¹⁶, are ties.

    Args:
        masks: `(B, H, W)` in [0, 1].
        parts: of the pictures, for the classes that the masks explain.

    Returns:
        `(B,)` float64 in [−1, 1], unitless; higher is better. NaN where fewer than three parts are visible, where the mask has the same
        mean in all of them (a uniform map), or where all effects are equal. A map that shows each part's effect in that part has 1; its
        negative, min-maxed, has −1.

    Raises:
        InputError: shapes or values that do not match.

    >>> from xattn.metrics import KnownParts
    >>> visible, shown = torch.eye(3).view(1, 3, 1, 3) > 0, torch.arange(8)
    >>> logits = torch.stack([3.0 * (shown & 1) + 2 * (shown >> 1 & 1) + (shown >> 2), 0 * shown], dim=1)
    >>> parts_removal(torch.tensor([[[1.0, 0.6, 0.2]]]), KnownParts(visible, logits[None], torch.tensor([0])))
    tensor([1.], dtype=torch.float64)
    """
    masks = checked_masks(masks, parts)
    return _ranked(masks, effects_of(parts.values).removal, parts)


@register("parts-shapley", symbol="Shap", better="higher", limits=(-1, 1), unit="1", source="Shapley 1953, over all subsets of the parts")
@dataclass(frozen=True)
class PartsShapley(PartsRemoval):
    """Whether the map is higher in the parts of higher Shapley value for the target's logit: Spearman's ρ over the parts."""

    def of_parts(self, masks: Tensor, parts: KnownParts) -> Tensor:
        return parts_shapley(masks, parts)


def parts_shapley(masks: Tensor, parts: KnownParts) -> Tensor:
    """Spearman's ρ, over a picture's visible parts, between the mask's mean in a part and the part's Shapley value for the target's logit.

    Shapley values are exact: the mean gain of the part over all orders in which the parts can be added to the picture without them.
    Arguments, range and undefined cases are those of `parts_removal`.

    >>> from xattn.metrics import KnownParts
    >>> visible, shown = torch.eye(3).view(1, 3, 1, 3) > 0, torch.arange(8)
    >>> logits = torch.stack([3.0 * (shown & 1) + 2 * (shown >> 1 & 1) + (shown >> 2), 0 * shown], dim=1)
    >>> parts_shapley(torch.tensor([[[0.2, 0.6, 1.0]]]), KnownParts(visible, logits[None], torch.tensor([0])))
    tensor([-1.], dtype=torch.float64)
    """
    masks = checked_masks(masks, parts)
    return _ranked(masks, effects_of(parts.values).shapley, parts)


class _Check(PartsMetric):
    """Base class of metrics that check whether the network's answer is still the target."""

    lacks = "the network does not answer with the target"

    def has(self, parts: KnownParts) -> Tensor:
        return parts.known & _answered(parts).to(parts.visible.device)


@register("parts-preservation", symbol="PresC", better="higher", source="Hesse et al. 2023, preservation check")
@dataclass(frozen=True)
class PartsPreservation(_Check):
    """How few of the parts that the map ranks highest are enough for the network to answer with the target."""

    def of_parts(self, masks: Tensor, parts: KnownParts) -> Tensor:
        return parts_preservation(masks, parts)


def parts_preservation(masks: Tensor, parts: KnownParts) -> Tensor:
    """Percentage of k = 1, …, N − 1 for which the network answers with the target when only the map's k highest-ranked parts are kept.

    Parts are ranked by the mean of the mask in them; means within 2⁻¹⁶ tie, and the part with the lower number then comes first.

    **Differs** from Hesse et al. 2023: every number of parts counts once, while they keep the parts above one threshold on the sum of the
    attribution, which they choose to be best for all pictures. A map therefore gains nothing by showing every part. The mean in a part is
    used, not the sum, as in `parts_removal`. The value is undefined if the network's answer is not the target, since the kept answer is
    then not the explained one.

    Args:
        masks: `(B, H, W)` in [0, 1].
        parts: of the pictures, for the classes that the masks explain.

    Returns:
        `(B,)` float64, percent in [0, 100]; higher is better. NaN for a mask with the same mean in all visible parts (a uniform map), where
        no part is visible, and where the network does not answer with the target. 100: the highest-ranked part is enough.

    Raises:
        InputError: shapes or values that do not match.

    >>> from xattn.metrics import KnownParts
    >>> visible, shown = torch.eye(3).view(1, 3, 1, 3) > 0, torch.arange(8)
    >>> logits = torch.stack([1.0 * (shown & 1), 0.5 + 0 * shown], dim=1)  # the first part decides
    >>> parts_preservation(torch.tensor([[[0.5, 1.0, 0.0]]]), KnownParts(visible, logits[None], torch.tensor([0])))
    tensor([50.], dtype=torch.float64)
    """
    masks = checked_masks(masks, parts)
    most_shown, ordered = _most_shown(masks, parts)
    return _checked(_answers(parts, most_shown) == _targets(parts, masks), ordered, masks, parts)


@register("parts-deletion", symbol="DelC", better="higher", source="Hesse et al. 2023, deletion check")
@dataclass(frozen=True)
class PartsDeletion(_Check):
    """How soon the network's answer changes as the parts that the map ranks highest are removed."""

    def of_parts(self, masks: Tensor, parts: KnownParts) -> Tensor:
        return parts_deletion(masks, parts)


def parts_deletion(masks: Tensor, parts: KnownParts) -> Tensor:
    """Percentage of k = 1, …, N − 1 for which the network's answer is not the target without the map's k highest-ranked parts.

    The ranking of parts, differences from the source, arguments, range and undefined cases are those of `parts_preservation`.

    >>> from xattn.metrics import KnownParts
    >>> visible, shown = torch.eye(3).view(1, 3, 1, 3) > 0, torch.arange(8)
    >>> logits = torch.stack([1.0 * (shown & 1), 0.5 + 0 * shown], dim=1)  # the first part decides
    >>> parts_deletion(torch.tensor([[[1.0, 0.5, 0.0]]]), KnownParts(visible, logits[None], torch.tensor([0])))
    tensor([100.], dtype=torch.float64)
    """
    masks = checked_masks(masks, parts)
    most_shown, ordered = _most_shown(masks, parts)
    whole = parts.logits.shape[1] - 1
    return _checked(_answers(parts, whole - most_shown) != _targets(parts, masks), ordered, masks, parts)


@register("target-sensitivity", symbol="TS", better="higher", source="Hesse et al. 2023, target sensitivity")
@dataclass(frozen=True)
class TargetSensitivity(PartsMetric):
    """Whether the maps for two other classes lie more on the parts that the bird shares with the explained class."""

    needs_rivals = True
    lacks = "the network tells no two other classes apart by the parts that the picture shares with each"

    def of_parts(self, masks: Tensor, parts: KnownParts) -> Tensor:
        return target_sensitivity(masks, parts)

    def value(self, evidence: Evidence) -> Tensor:
        if evidence.rivals is None:
            raise InputError("target-sensitivity needs the method's maps for two other classes; got none.")
        return self.of_parts(evidence.rivals, known_parts_of(evidence.parts))

    def has(self, parts: KnownParts) -> Tensor:
        return parts.known & (given(parts.rivals, "rivals") != UNKNOWN).all(dim=1).to(parts.visible.device)


def target_sensitivity(rivals: Tensor, parts: KnownParts) -> Tensor:
    """Whether a method's maps for two classes lie more on the parts that each shares with the picture than the other's map does.

    Class 1 shares the parts A with the picture, class 2 the parts B, and A and B have none in common. Each of these conditions adds 50: the
    map for 1 has a larger share of its energy in A than the map for 2; the map for 2 has a larger share in B than the map for 1. A method
    with the same map for every class has 0.

    **Differs** from Hesse et al. 2023: shares of the mask's energy, not sums of the attribution; a map of zeros has no share anywhere.

    Args:
        rivals: `(B, 2, H, W)` in [0, 1], masks for the two classes in the order of `parts.rivals`.
        parts: of the pictures, with `rivals` and `shared`.

    Returns:
        `(B,)` float64, 0, 50 or 100 percent; higher is better. NaN if there are no two such classes.

    Raises:
        InputError: shapes or values that do not match, or no rivals are given.

    >>> from xattn.metrics import KnownParts
    >>> visible, shared = torch.eye(2).view(1, 2, 1, 2) > 0, torch.eye(2).view(1, 2, 2) > 0
    >>> parts = KnownParts(visible, torch.ones(1, 4, 3), torch.tensor([0]), rivals=torch.tensor([[1, 2]]), shared=shared)
    >>> target_sensitivity(torch.tensor([[[[1.0, 0.2]], [[1.0, 0.1]]]]), parts)
    tensor([0.], dtype=torch.float64)
    """
    maps = as_tensor(rivals, "masks for two classes")
    if maps.dim() != 4 or maps.shape[1] != 2 or len(maps) != len(known_parts_of(parts)):
        raise InputError(f"target-sensitivity takes masks (batch, 2, height, width), of two classes; got {tuple(maps.shape)}.")
    both = [checked_masks(maps[:, number], parts) for number in (0, 1)]
    classes, shared = given(parts.rivals, "rivals"), given(parts.shared, "shared")
    shares = torch.stack([in_shares(masks, parts.visible).nan_to_num(0) for masks in both], dim=1)
    mine = shared.to(shares.device).double() @ shares.transpose(1, 2)  # [:, i, j]: share of the map for class j in the parts of class i
    right = (mine[:, 0, 0] > mine[:, 0, 1] + MARGIN).double() + (mine[:, 1, 1] > mine[:, 1, 0] + MARGIN).double()
    there = (classes != UNKNOWN).all(dim=1).to(shares.device) & parts.known.to(shares.device)
    return torch.where(there, 50 * right, torch.nan)


def _ranked(masks: Tensor, effects: Tensor, parts: KnownParts) -> Tensor:
    """The rank correlation of the mask in each visible part with its effect."""
    found = rank_correlation(rounded(in_parts(masks, parts.visible)), (effects / parts.rounding).round())
    return defined(found, masks, parts)


def _most_shown(masks: Tensor, parts: KnownParts) -> tuple[Tensor, Tensor]:
    """The subsets of a map's 1, …, N − 1 highest-ranked parts, `(B, N − 1)`, and whether it ranks any visible part above another,
    `(B,)`."""
    means = rounded(in_parts(masks, parts.visible))
    order = means.nan_to_num(-1).argsort(dim=1, descending=True, stable=True)
    highest, lowest = means.nan_to_num(-1).amax(dim=1), means.nan_to_num(2).amin(dim=1)
    return (1 << order).cumsum(dim=1)[:, :-1], highest > lowest


def _answers(parts: KnownParts, subsets: Tensor) -> Tensor:
    """The network's answer for each of some subsets `(B, T)` of the parts."""
    return parts.logits.argmax(dim=2).to(subsets.device).gather(1, subsets)


def _targets(parts: KnownParts, masks: Tensor) -> Tensor:
    return parts.targets.to(widened(masks).device)[:, None]


def _answered(parts: KnownParts) -> Tensor:
    """`(B,)` bool: the network answers with the target."""
    return parts.logits[:, -1].argmax(dim=1) == parts.targets.to(parts.logits.device)


def _checked(holds: Tensor, ordered: Tensor, masks: Tensor, parts: KnownParts) -> Tensor:
    """Percentage of the cases `(B, N − 1)` in which a condition holds; NaN unless the map orders parts and the answer is the target."""
    there = ordered & _answered(parts).to(ordered.device)
    return defined(torch.where(there, 100 * holds.double().mean(dim=1), torch.nan), masks, parts)
