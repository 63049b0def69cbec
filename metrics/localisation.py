"""Localisation metrics: pointing game, energy, relevance mass and rank, and average precision of pixels.

Regions are where the object is, `(B, H, W)` bool, or `(B, N, H, W)` with N objects, whose union counts; a picture with fewer objects has
empty ones. A picture with an empty region has no value (NaN), and neither has a map that shows nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.base import RegionMetric, register
from xattn.metrics.inputs import as_maps, as_masks, as_regions, refuse_no_masks
from xattn.metrics.perturbations import LEVELS
from xattn.metrics.probability import widened
from xattn.registry import AtMost

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 15
MOST_TOLERANCE = 1000


@register("pointing-game", symbol="PG", better="higher", source="Zhang et al. 2018, Sec. 4.2")
@dataclass(frozen=True)
class PointingGame(RegionMetric):
    """Whether the mask's maximum lies in the region, or at most `tolerance` pixels from it; of several maxima, the share that does.

    Attributes:
        tolerance: in pixels.
    """

    tolerance: Annotated[int, AtMost(MOST_TOLERANCE)] = TOLERANCE

    def of_regions(self, masks: Tensor, raw_maps: Tensor, regions: Tensor) -> Tensor:
        return pointing_game(masks, regions, tolerance=self.tolerance)


def pointing_game(masks: Tensor, regions: Tensor, *, tolerance: int = TOLERANCE) -> Tensor:
    """Whether the mask's maximum lies in the region, or at most `tolerance` pixels from it: 100 · |M ∩ R⁺| / |M|.

    M are the pixels that hold the maximum, of the mask rounded to 2⁻¹⁶. There is nearly always one, and the value is 0 or 100; with
    several, it is the expected value of a random choice among them. R⁺ are the pixels at most `tolerance` from a pixel of the region.

    **Differs**: the paper measures its 15 pixels in the photograph; here they are pixels of the mask, the crop that the network sees.

    Args:
        masks: `(B, H, W)` in [0, 1].
        regions: `(B, H, W)` or `(B, N, H, W)`, bool.
        tolerance: in pixels, Euclidean; 0: the maximum lies in the region.

    Returns:
        `(B,)` float64, percent in [0, 100]; higher is better. NaN for an empty region and for a mask of zeros. A constant mask has the
        share of the picture in R⁺, with tolerance 0 that of the region.

    Raises:
        InputError: shapes or values that do not match, or a negative tolerance.

    >>> import torch
    >>> mask, region = torch.eye(3)[None], torch.zeros(1, 3, 3, dtype=torch.bool)
    >>> region[0, 2, 2] = True
    >>> pointing_game(mask, region, tolerance=0), pointing_game(mask, region, tolerance=2)
    (tensor([33.3333], dtype=torch.float64), tensor([66.6667], dtype=torch.float64))
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int) or not 0 <= tolerance <= MOST_TOLERANCE:
        raise InputError(f"a tolerance is 0 to {MOST_TOLERANCE} pixels; got {tolerance!r}.")
    masks, inside = _masks_and_union(masks, regions)
    levels = _levels(masks)
    peak = levels.amax(dim=(1, 2), keepdim=True)
    maxima = levels == peak
    hits = maxima & _grown(inside, tolerance)
    return _defined(100 * _count(hits) / _count(maxima), peak.flatten(), inside)


@register("energy-pointing", symbol="EPG", better="higher", source="Wang et al. 2020, Sec. 4.3")
@dataclass(frozen=True)
class EnergyPointing(RegionMetric):
    """Share of the mask's energy that lies in the region: 100 · Σ_R S / Σ S."""

    def of_regions(self, masks: Tensor, raw_maps: Tensor, regions: Tensor) -> Tensor:
        return energy_pointing(masks, regions)


def energy_pointing(masks: Tensor, regions: Tensor) -> Tensor:
    """Share of the mask's energy that lies in the region: 100 · Σ_R S / Σ S, the energy-based pointing game.

    Args:
        masks: `(B, H, W)` in [0, 1].
        regions: `(B, H, W)` or `(B, N, H, W)`, bool.

    Returns:
        `(B,)` float64, percent in [0, 100]; higher is better. NaN for an empty region and for a mask of zeros. A constant mask has the
        region's share of the picture; 100: the whole mask lies in the region.

    Raises:
        InputError: shapes or values that do not match.

    >>> import torch
    >>> energy_pointing(torch.tensor([[[1.0, 0.5], [0.5, 0.0]]]), torch.tensor([[[True, False], [False, False]]]))
    tensor([50.], dtype=torch.float64)
    """
    masks, inside = _masks_and_union(masks, regions)
    return 100 * _mass(widened(masks), inside)


@register("relevance-mass", symbol="RMA", better="higher", limits=(0, 1), unit="1", source="Arras et al. 2022, Sec. 3.2")
@dataclass(frozen=True)
class RelevanceMass(RegionMetric):
    """Share of the raw map's positive relevance that lies in the region."""

    def of_regions(self, masks: Tensor, raw_maps: Tensor, regions: Tensor) -> Tensor:
        return relevance_mass(raw_maps, regions)


def relevance_mass(raw_maps: Tensor, regions: Tensor) -> Tensor:
    """Share of the raw map's positive relevance that lies in the region: Σ_R max(r, 0) / Σ max(r, 0).

    This is not `energy_pointing`: a mask is min-maxed, while a raw map keeps its zero.

    Args:
        raw_maps: `(B, h, w)`; negatives count as 0, and the map is resized bilinearly to the regions.
        regions: `(B, H, W)` or `(B, N, H, W)`, bool.

    Returns:
        `(B,)` float64 in [0, 1], unitless; higher is better. NaN for an empty region and for a map without a positive value, or that is
        not finite. A constant map scores the region's share of the picture.

    Raises:
        InputError: shapes that do not match.

    >>> import torch
    >>> relevance_mass(torch.tensor([[[3.0, 1.0], [-4.0, 0.0]]]), torch.tensor([[[True, False], [True, False]]]))
    tensor([0.7500], dtype=torch.float64)
    """
    relevance, inside = _relevance_and_union(raw_maps, regions)
    return _mass(relevance, inside)


@register("relevance-rank", symbol="RRA", better="higher", limits=(0, 1), unit="1", source="Arras et al. 2022, Sec. 3.2")
@dataclass(frozen=True)
class RelevanceRank(RegionMetric):
    """Share of the region's K pixels among the K pixels of highest relevance."""

    def of_regions(self, masks: Tensor, raw_maps: Tensor, regions: Tensor) -> Tensor:
        return relevance_rank(raw_maps, regions)


def relevance_rank(raw_maps: Tensor, regions: Tensor) -> Tensor:
    """Share of the region's K pixels among the K pixels of highest relevance: |top K ∩ R| / K with K = |R|.

    Relevance is rounded to 2⁻¹⁶ of the map's maximum. If pixels tie for the last ranks, the value is the expected value of a random choice
    among them.

    Args:
        raw_maps: `(B, h, w)`; negatives count as 0, and the map is resized bilinearly to the regions.
        regions: `(B, H, W)` or `(B, N, H, W)`, bool.

    Returns:
        `(B,)` float64 in [0, 1], unitless; higher is better. NaN for an empty region and for a map without a positive value, or that is
        not finite. A constant map scores the region's share of the picture.

    Raises:
        InputError: shapes that do not match.

    >>> import torch
    >>> relevance_rank(torch.tensor([[[3.0, 1.0], [2.0, 0.0]]]), torch.tensor([[[True, True], [False, False]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    relevance, inside = _relevance_and_union(raw_maps, regions)
    peak = relevance.flatten(1).amax(dim=1)
    levels = _levels(relevance / torch.where(peak > 0, peak, 1)[:, None, None])
    wanted = _count(inside)
    places = (wanted.long() - 1).clamp(min=0)[:, None]
    last = levels.flatten(1).sort(dim=1, descending=True).values.gather(1, places)[..., None]
    above, tied = levels > last, levels == last
    found = _count(above & inside) + (wanted - _count(above)) * _count(tied & inside) / _count(tied)
    return _defined(found / wanted, peak, inside)


@register("segmentation-ap", symbol="AP", better="higher", source="Choe et al. 2020, Sec. 3.3, for each picture")
@dataclass(frozen=True)
class SegmentationAP(RegionMetric):
    """Average precision of the mask's pixels as a segmentation of the region, over all thresholds."""

    def of_regions(self, masks: Tensor, raw_maps: Tensor, regions: Tensor) -> Tensor:
        return segmentation_ap(masks, regions)


def segmentation_ap(masks: Tensor, regions: Tensor) -> Tensor:
    """Average precision of the mask's pixels as a segmentation of the region: 100 · Σ_t (recall_t − recall_{t−1}) · precision_t.

    t runs over the distinct values of the mask, rounded to 2⁻¹⁶, from the highest; equal pixels are added together, as in scikit-learn's
    `average_precision_score`.

    **Differs**: the paper's PxAP pools the pixels of all pictures; here each picture has its own value.

    Args:
        masks: `(B, H, W)` in [0, 1].
        regions: `(B, H, W)` or `(B, N, H, W)`, bool.

    Returns:
        `(B,)` float64, percent in [0, 100]; higher is better. NaN for an empty region and for a mask of zeros. A constant mask has the
        region's share of the picture; 100: every pixel of the region is above all others.

    Raises:
        InputError: shapes or values that do not match.

    >>> import torch
    >>> segmentation_ap(torch.tensor([[[0.9, 0.8], [0.7, 0.1]]]), torch.tensor([[[True, False], [True, False]]]))
    tensor([83.3333], dtype=torch.float64)
    """
    masks, inside = _masks_and_union(masks, regions)
    levels, order = _levels(masks).flatten(1).sort(dim=1, descending=True)
    hits = widened(inside.flatten(1).gather(1, order).float())
    count = levels.shape[1]
    places = torch.arange(count, device=levels.device)
    ends = torch.cat([levels[:, 1:] != levels[:, :-1], torch.ones_like(levels[:, :1], dtype=torch.bool)], dim=1)
    last = torch.where(ends, places, count).flip(1).cummin(dim=1).values.flip(1)  # where the pixels that are equal to this one end
    precision = hits.cumsum(dim=1).gather(1, last.to(hits.device)) / (last + 1).to(hits.device)
    return _defined(100 * (precision * hits).sum(dim=1) / hits.sum(dim=1), levels[:, 0], inside)


def _masks_and_union(masks: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Masks, checked, and the union of the objects of each picture, `(B, H, W)` bool."""
    maps = as_maps(masks, "masks")
    masks = as_masks(maps, len(maps))
    refuse_no_masks(masks)
    inside = as_regions(regions, masks).any(dim=1)
    if inside.shape != masks.shape:
        raise InputError(f"masks and regions have one size; got masks {tuple(masks.shape)} and regions {tuple(inside.shape)}.")
    return masks, inside


def _relevance_and_union(raw_maps: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Positive relevance at the size of the regions, float64, NaN for a map that is not finite, and the union of the objects."""
    maps = as_maps(raw_maps, "raw maps")
    inside = as_regions(regions, maps).any(dim=1)
    relevance = widened(maps)
    finite = torch.isfinite(relevance).flatten(1).all(dim=1)[:, None, None]
    relevance = torch.where(finite, relevance, 0).clamp(min=0)
    if relevance.shape[1:] != inside.shape[1:]:
        size = (inside.shape[1], inside.shape[2])
        relevance = torch.nn.functional.interpolate(relevance[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return relevance, inside.to(relevance.device)


def _mass(values: Tensor, inside: Tensor) -> Tensor:
    """Share of the values `(B, H, W)`, ≥ 0, that lies inside, float64."""
    total = values.sum(dim=(1, 2))
    return _defined((values * inside.to(values.device)).sum(dim=(1, 2)) / total, total, inside)


def _levels(values: Tensor) -> Tensor:
    """Values as multiples of 2⁻¹⁶, so that rounding that differs between batches or devices does not decide maxima or order."""
    return (values * LEVELS).round()


def _grown(inside: Tensor, tolerance: int) -> Tensor:
    """The pixels whose centre is at most `tolerance` from that of a pixel inside."""
    if tolerance == 0:
        return inside
    height, width = inside.shape[1:]
    places = torch.arange(width, device=inside.device, dtype=torch.int32)
    far = width + tolerance + 1  # further than anything that counts
    before = places - torch.where(inside, places, -far).cummax(dim=2).values
    after = torch.where(inside, places, width + far).flip(2).cummin(dim=2).values.flip(2) - places
    across = torch.minimum(before, after)  # to the nearest pixel of the region in the same row
    grown = inside.clone()
    for down in range(-min(tolerance, height - 1), min(tolerance, height - 1) + 1):
        near = across <= math.isqrt(tolerance**2 - down**2)
        grown[:, max(0, down) : height + min(0, down)] |= near[:, max(0, -down) : height - max(0, down)]
    return grown


def _count(chosen: Tensor) -> Tensor:
    return widened(chosen.flatten(1).sum(dim=1))


def _defined(values: Tensor, shows: Tensor, inside: Tensor) -> Tensor:
    """The values where the map shows something (> 0) and the region is not empty, else NaN."""
    known = (shows > 0).to(values.device) & inside.flatten(1).any(dim=1).to(values.device)
    return torch.where(known, values, torch.nan)
