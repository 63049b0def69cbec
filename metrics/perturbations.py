"""Perturbations of images by metrics: what is kept, removed, or changed step by step, the order, and the fill."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.fills import Baseline
from xattn.metrics.probability import widened

if TYPE_CHECKING:
    from torch import Tensor

LOW_RES_STEPS = 196
LEVELS, NARROW = 2**16, 2**-6  # levels and smallest span for ranking pixels
BYTE, BYTE_SLACK = 255, 2**-8  # the slack preserves whole 255ths that were rounded to LEVELS
MOST_SUPERPIXELS = 2**16
FLAT = 1e-6  # contrast below which a map shows nothing, as a share of its largest magnitude

Upsampling = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Original:
    """The unchanged image."""


@dataclass(frozen=True)
class Kept:
    """The image times the mask."""


@dataclass(frozen=True)
class Removed:
    """The image times one minus the mask.

    Attributes:
        upsampling: "bilinear", the unchanged mask; "bicubic", the mask at its map's own resolution, upsampled bicubically.
    """

    upsampling: Upsampling = "bilinear"


@dataclass(frozen=True)
class Noised:
    """The image plus noise, independent of the mask: uniform in [−radius, radius] at every value, clipped to [0, 1].

    Attributes:
        radius: in pixel space.
        draw: number of the draw.
    """

    radius: float
    draw: int


@dataclass(frozen=True)
class Curve:
    """Pixels changed step by step, those where the mask is highest first.

    Attributes:
        insertion: True: from the baseline to the image; False: from the image to the baseline.
        baseline: what a changed (deletion) or not yet changed (insertion) pixel shows.
        step: pixels per step; None: 8 · W; with `low_res`, cells per step; None: ceil(cells / 196).
        steps: number of steps, of equal size up to one pixel, instead of `step`.
        superpixels: requested number of superpixels; they are changed one per step, in the order of the mask's mean over each.
        low_res: rank the cells of the map at its own resolution instead of the pixels of the mask.
        as_bytes: rank the whole part of 255 · the mask, as for a map that was stored in bytes.
        tolerance: points of area; only as many steps are evaluated as are needed to keep the area's estimated error below this; None: all.
    """

    insertion: bool
    baseline: Baseline
    step: int | None = None
    low_res: bool = False
    tolerance: float | None = None
    as_bytes: bool = field(default=False, repr=False)  # the name of a run's protocol implies it
    steps: int | None = None
    superpixels: int | None = None


@dataclass(frozen=True)
class Groups:
    """Pixels in groups of equal size, up to one pixel, in the order of the mask; each group is replaced separately.

    Attributes:
        count: of groups.
        baseline: what a replaced pixel shows.
    """

    count: int
    baseline: Baseline

    @property
    def curve(self) -> Curve:
        """The deletion curve whose steps the groups are."""
        return Curve(False, self.baseline, steps=self.count)


@dataclass(frozen=True)
class Subsets:
    """Random subsets of square patches, each replaced separately; seeded by the image's content, and the same for every mask.

    Attributes:
        count: of subsets.
        share: of the patches that are in each, at least one patch.
        patch: side of a patch in pixels; patches at the lower and right edge are smaller if it does not divide the image.
        baseline: what a replaced pixel shows.
    """

    count: int
    share: float
    patch: int
    baseline: Baseline


@dataclass(frozen=True)
class Patches:
    """The patches of a grid, each replaced separately; the same for every mask.

    Attributes:
        grid: patches along each side, of equal size to one pixel.
        baseline: what a replaced pixel shows.
    """

    grid: int
    baseline: Baseline


@dataclass(frozen=True)
class Highest:
    """The pixels where the mask is highest, replaced together.

    Attributes:
        share: of the pixels, to one pixel, at least one.
        baseline: what a replaced pixel shows.
    """

    share: float
    baseline: Baseline

    @property
    def curve(self) -> Curve:
        """The deletion curve that this perturbation is a point of."""
        return Curve(False, self.baseline)


Perturbation = Original | Kept | Removed | Noised | Curve | Groups | Subsets | Patches | Highest
ORIGINAL, KEPT, REMOVED = Original(), Kept(), Removed()


def ignores_masks(perturbation: Perturbation) -> bool:
    """Whether a perturbation is the same for every mask, so that it is run only once."""
    return isinstance(perturbation, Original | Subsets | Patches)


def noised_images(images: Tensor, noise: Noised, seeds: Sequence[int]) -> Tensor:
    """Images with noise: `(B, C, H, W)` in [0, 1].

    Args:
        images: in pixel space.
        noise: its radius and the number of the draw.
        seeds: of the images, from their content.
    """
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed((seed + 1_000_003 * (noise.draw + 1)) % 2**63)
        drawn.append(torch.rand(images.shape[1:], generator=generator))
    return (images + (2 * torch.stack(drawn).to(images) - 1) * noise.radius).clamp(0, 1)


def takes_low_res(perturbation: Perturbation) -> bool:
    """Whether a perturbation takes the mask at its map's own resolution."""
    return (isinstance(perturbation, Curve) and perturbation.low_res) or perturbation == Removed("bicubic")


def forwards(perturbation: Perturbation, size: tuple[int, int], cells: int = 0) -> int:
    """The largest number of forwards of a perturbation for one image under one mask, without the image itself and its baseline.

    Args:
        perturbation: of the image.
        size: height and width of the image.
        cells: number of cells of the map, for a curve that ranks them with its own step; 0: unknown, and the usual number of steps counts.
    """
    if isinstance(perturbation, Original):
        return 0
    if isinstance(perturbation, Groups | Subsets):
        return perturbation.count
    if isinstance(perturbation, Patches):
        return perturbation.grid**2
    if not isinstance(perturbation, Curve):
        return 1
    if perturbation.steps is not None or perturbation.superpixels is not None:
        return (perturbation.steps or perturbation.superpixels or 0) - 1
    if perturbation.low_res:
        count, step = (cells, perturbation.step) if cells and perturbation.step else (LOW_RES_STEPS, 1)
    else:
        count, step = size[0] * size[1], perturbation.step or 8 * size[1]
    return -(-count // step) - 1


def ranks(masks: Tensor, as_bytes: bool = False) -> Tensor:
    """Each pixel's rank in descending order: `(B, h, w)` → `(B, h, w)` int64.

    Values are rounded to 2⁻¹⁶, so that rounding that differs between batches or devices does not decide the order. Ties, such as plateaus
    of ReLU'd maps, are broken by one permutation fixed for all images.

    Args:
        masks: the masks to rank.
        as_bytes: rank by the whole part of 255 · the value.
    """
    flat = _levels(masks)
    if as_bytes:
        flat = (flat * BYTE / LEVELS + BYTE_SLACK).floor()
    count = flat.shape[1]
    permutation = _permutation(count).to(flat.device)
    order = permutation[flat[:, permutation].argsort(dim=1, descending=True, stable=True)]
    positions = torch.arange(count, device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions).view(masks.shape)


def _levels(masks: Tensor) -> Tensor:
    """The whole numbers of 2⁻¹⁶ in each value `(B, N)`."""
    return (_scaled(masks) * LEVELS).round()


def _scaled(masks: Tensor) -> Tensor:
    """The values `(B, N)`; those of maps that are not masks, or span less than 2⁻⁶, are min-maxed."""
    flat = masks.to(torch.promote_types(masks.dtype, torch.float32)).flatten(1)
    low, high = flat.aminmax(dim=1, keepdim=True)
    span = high - low
    raw = (low < 0) | (high > 1) | (span < NARROW)
    contrast = span > FLAT * torch.maximum(low.abs(), high.abs())
    scaled = (flat - low) / torch.where(contrast, span, torch.inf)
    return torch.where(raw, scaled, flat)


def rank_superpixels(labels: Tensor, masks: Tensor) -> RankedPixels:
    """The order of superpixels by the mean of the mask over each; ties are in an order that is fixed for all images.

    Args:
        labels: `(B, H, W)`, each pixel's superpixel.
        masks: `(B, H, W)`.
    """
    flat, wide = labels.flatten(1), widened(_scaled(masks))
    counts = flat.amax(dim=1) + 1
    most = int(counts.max())
    sums, pixels = (
        wide.new_zeros(len(flat), most).scatter_add_(1, flat.to(wide.device), values) for values in (wide, torch.ones_like(wide))
    )
    means = sums / pixels  # NaN where an image has fewer superpixels
    fixed = _permutation(MOST_SUPERPIXELS)
    fixed = fixed[fixed < most].to(means.device)
    levels = (means * LEVELS).round().nan_to_num(nan=-torch.inf)
    order = fixed[levels[:, fixed].argsort(dim=1, descending=True, stable=True)]
    places = torch.empty_like(order).scatter_(1, order, torch.arange(most, device=order.device).expand_as(order))
    cuts = torch.arange(most + 1, device=flat.device)
    shares = (cuts.to(wide) / counts.to(wide)[:, None]).clamp(max=1)
    return RankedPixels(places.to(flat.device).gather(1, flat).view(labels.shape), cuts, shares, means.gather(1, order), counts)


@functools.lru_cache(maxsize=16)
def _permutation(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class RankedPixels:
    """The order in which a curve changes the pixels of a batch under one mask.

    Attributes:
        ranks: `(B, H, W)`, each pixel's place in the order.
        cuts: `(T + 1,)`; after each step, the pixels with ranks below its cut have changed.
        shares: `(B, T + 1)`, share of the changed pixels; for superpixels, the share of changed superpixels.
        mask_means: `(B, T)`, mean mask value of the pixels of each step; NaN where an image has fewer superpixels than T.
        counts: `(B,)`, the superpixels of each image; None: pixels or cells are ranked, the same number in each image.
    """

    ranks: Tensor
    cuts: Tensor
    shares: Tensor
    mask_means: Tensor
    counts: Tensor | None = None


def rank_pixels(curve: Curve, masks: Tensor, low_res_masks: Tensor, size: tuple[int, int]) -> RankedPixels:
    """The order of a curve's pixels.

    Args:
        curve: the curve.
        masks: `(B, H, W)`.
        low_res_masks: `(B, h, w)`, ranked instead of the masks if the curve asks for cells.
        size: H and W.

    Raises:
        InputError: the map has more cells than the image has pixels.
    """
    values = low_res_masks if curve.low_res else masks
    count = values[0].numel()
    if count > size[0] * size[1]:
        raise InputError(f"a map of {tuple(values.shape[1:])} has more cells than an image of {size} has pixels.")
    places = ranks(values, curve.as_bytes)
    cuts = torch.tensor(_cuts(curve, count, size), device=values.device)
    wide = widened(values)
    spread, area = places, torch.ones_like(wide)
    if values.shape[-2:] != size:
        spread = torch.nn.functional.interpolate(places[:, None].float(), size=size, mode="nearest")[:, 0].long()
        cell = torch.nn.functional.interpolate(torch.arange(count).view(1, 1, *values.shape[1:]).float(), size=size, mode="nearest")
        pixels_of_cell = torch.bincount(cell.flatten().long(), minlength=count)
        area = pixels_of_cell.to(wide).view(1, *values.shape[1:]).expand_as(wide)
    order = places.flatten(1).argsort(dim=1).to(wide.device)
    ordered_area = area.flatten(1).gather(1, order)
    ordered_mask = wide.flatten(1).gather(1, order) * ordered_area
    at = cuts.to(wide.device)
    pixels = torch.nn.functional.pad(ordered_area.cumsum(1), (1, 0))[:, at]
    weighted = torch.nn.functional.pad(ordered_mask.cumsum(1), (1, 0))[:, at]
    return RankedPixels(spread, cuts, pixels / pixels[:, -1:], weighted.diff(dim=1) / pixels.diff(dim=1))


def _cuts(curve: Curve, count: int, size: tuple[int, int]) -> list[int]:
    """How many pixels or cells of `count` have changed after each step."""
    if curve.steps is not None:
        return [count * step // curve.steps for step in range(curve.steps + 1)]
    step = curve.step if curve.step is not None else (-(-count // LOW_RES_STEPS) if curve.low_res else 8 * size[1])
    return [*range(0, count, step), count]
