"""Replaces groups, random subsets or grid patches of pixels, each separately, or the pixels where a mask is highest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.seeds import content_seeds
from xattn.metrics.stream import PerturbedImages, of_rows

if TYPE_CHECKING:
    from torch import Tensor

    from xattn.metrics.fills import Fill
    from xattn.metrics.perturbations import RankedPixels, Subsets


class GroupResponse(NamedTuple):
    """The target's probability without each of K groups of pixels.

    Attributes:
        p: `(B, K)` float64.
        mask_means: `(B, K)` float64, mean of the mask over the pixels of each group.
    """

    p: Tensor
    mask_means: Tensor


class SubsetResponse(NamedTuple):
    """The target's probability without each of S subsets of patches.

    Attributes:
        p: `(B, S)` float64.
        chosen: `(B, S, rows, columns)` bool, the patches of each subset.
        patch: side of a patch in pixels.
    """

    p: Tensor
    chosen: Tensor
    patch: int

    def sums(self, maps: Tensor) -> Tensor:
        """Sums of maps `(B, H, W)` of the image's size over each subset, `(B, S)`."""
        rows, columns = self.chosen.shape[2:]
        below, beside = rows * self.patch - maps.shape[1], columns * self.patch - maps.shape[2]
        whole = torch.nn.functional.pad(maps, (0, beside, 0, below))
        patches = whole.view(len(maps), rows, self.patch, columns, self.patch).sum(dim=(2, 4))
        return torch.einsum("bsp,bp->bs", self.chosen.flatten(2).to(patches), patches.flatten(1))


class PatchResponse(NamedTuple):
    """The target's probability and score without each of the G · G patches of a grid, row by row.

    Attributes:
        p: `(B, G · G)` float64, its probability.
        score: `(B, G · G)` float64, its score; for a class, the logit.
        whole: `(B,)` float64, its score for the whole image.
    """

    p: Tensor
    score: Tensor
    whole: Tensor


def at_image_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes maps `(B, h, w)` bilinearly to the image's size, each value divided over its pixels, so that a map's sum stays about the
    same."""
    if tuple(maps.shape[1:]) == size:
        return maps
    larger = torch.nn.functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return larger * (maps[0].numel() / larger[0].numel())


def grid_patches(size: tuple[int, int], grid: int) -> Tensor:
    """The patch of a grid that each pixel lies in, `(H, W)` int64, numbered row by row; patches have equal size up to one pixel.

    Args:
        size: H and W.
        grid: patches along each side.

    Raises:
        InputError: the image has fewer pixels along a side than the grid has patches.

    >>> grid_patches((2, 3), 2)
    tensor([[0, 1, 1],
            [2, 3, 3]])
    """
    if min(size) < grid:
        raise InputError(f"an image of {size[0]} × {size[1]} pixels has no {grid} × {grid} patches: choose a smaller grid.")
    down, across = (
        torch.bucketize(torch.arange(side), torch.tensor([side * k // grid for k in range(1, grid)]), right=True) for side in size
    )
    return down[:, None] * grid + across


def without_patches(fill: Fill, grid: int) -> PerturbedImages:
    """The images without each patch of a grid, image by image."""
    height, width = fill.images.shape[2:]
    patches, count = grid_patches((height, width), grid).to(fill.images.device), grid**2

    def make(part: slice) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(part.start, part.stop, device=patches.device)
        rows = numbers // count
        return fill(rows, patches == (numbers % count)[:, None, None]), rows

    return PerturbedImages(len(fill.images) * count, make)


def without_highest(fill: Fill, ranked: RankedPixels, share: float, rows: Tensor) -> PerturbedImages | None:
    """Some of the images without the pixels where their masks are highest; None if there are no images."""
    count = max(1, round(share * ranked.ranks[0].numel()))

    def make(part: slice) -> tuple[Tensor, Tensor]:
        index = rows[part]
        return fill(index, of_rows(ranked.ranks, index) < count), index

    return PerturbedImages(len(rows), make) if len(rows) else None


def chosen_patches(images: Tensor, subsets: Subsets) -> Tensor:
    """The patches of random subsets of each image, `(B, S, rows, columns)` bool.

    Each patch gets a uniform random number, drawn subset by subset with a generator seeded by the image's content; a subset holds the
    patches with the smallest numbers.

    Raises:
        InputError: there is only one such subset.
    """
    rows, columns = (-(-side // subsets.patch) for side in images.shape[2:])
    size = max(1, round(subsets.share * rows * columns))
    if size == rows * columns:
        raise InputError(
            f"{size} of {rows * columns} patches make only one subset, which shows nothing: choose a smaller patch than "
            f"{subsets.patch} pixels, or a smaller share than {subsets.share:g}."
        )
    found = torch.zeros(len(images), subsets.count, rows * columns, dtype=torch.bool)
    for one, seed in zip(found, content_seeds(images, stream="subsets"), strict=True):
        numbers = torch.rand(one.shape, generator=torch.Generator().manual_seed(seed))
        one.scatter_(1, numbers.argsort(dim=1)[:, :size], True)
    return found.view(len(images), subsets.count, rows, columns).to(images.device)


def without_subsets(fill: Fill, chosen: Tensor, patch: int) -> PerturbedImages:
    """The images without each of their subsets, image by image."""
    count, size = chosen.shape[1], fill.images.shape[2:]

    def make(part: slice) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(part.start, part.stop, device=chosen.device)
        rows = numbers // count
        cells = chosen[rows, numbers % count]
        gone = cells.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, : size[0], : size[1]]
        return fill(rows, gone), rows

    return PerturbedImages(len(chosen) * count, make)


def without_groups(fill: Fill, ranked: RankedPixels, rows: Tensor) -> PerturbedImages | None:
    """Some of the images without each of their groups, image by image; None if there are none."""
    count = len(ranked.cuts) - 1

    def make(part: slice) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(part.start, part.stop, device=rows.device)
        index, group = rows[numbers // count], numbers % count
        ranks, low, high = of_rows(ranked.ranks, index), ranked.cuts[group][:, None, None], ranked.cuts[group + 1][:, None, None]
        return fill(index, (ranks >= low) & (ranks < high)), index

    return PerturbedImages(len(rows) * count, make) if len(rows) else None
