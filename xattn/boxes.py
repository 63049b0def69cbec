"""Boxes in images: cropping, placing the maps of crops back on the image, and overlap.

A box is x1, y1, x2, y2 in pixels of the prepared image, as in torchvision.ops, from its top-left corner.
The whole image of W × H pixels is 0, 0, W, H.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from xattn.errors import InputError

__all__ = ["cell_centres", "check_boxes", "crop", "lay_back", "overlaps", "picked", "squares", "whole"]

EDGE = 1e-3  # pixels by which a box may leave the image through rounding


def check_boxes(boxes: Tensor, batch: int, size: tuple[int, int]) -> None:
    """Checks that boxes `(B, n, 4)` have an area and lie in the image.

    Args:
        boxes: to be checked.
        batch: B.
        size: height and width of the image.

    Raises:
        InputError: the shape or batch is wrong, or a box is empty, not finite or outside the image.
    """
    if boxes.dim() != 3 or boxes.shape[2] != 4 or len(boxes) != batch:
        raise InputError(f"boxes are (batch, n, 4), x1, y1, x2, y2, for {batch} images; got {tuple(boxes.shape)}.")
    if torch.compiler.is_compiling() or not boxes.numel():
        return
    height, width = size
    low, high = boxes[..., :2], boxes[..., 2:]
    limits = torch.tensor((width, height), device=boxes.device) + EDGE
    fine = ((low >= -EDGE) & (low < high) & (high <= limits)).all(dim=2)  # false for NaN
    if not bool(fine.all()):
        image, number = (~fine).nonzero()[0].tolist()
        raise InputError(
            f"box {number} of image {image} is {[round(value, 2) for value in boxes[image, number].tolist()]}: x1 < x2 and y1 < y2 inside "
            f"the image of {width} × {height} pixels (width × height) are needed."
        )


def crop(images: Tensor, boxes: Tensor, side: int | tuple[int, int]) -> Tensor:
    """Cuts boxes out of images and resizes them, differentiably in the images.

    Each output pixel is the mean of bilinear samples, at least one per input pixel, so that shrinking does not alias. A box of whole pixels
    that is as large as `side` is copied exactly.

    Args:
        images: `(B, C, H, W)`, float.
        boxes: `(B, n, 4)`, x1, y1, x2, y2 in pixels.
        side: of the crops, in pixels, or their height and width.

    Returns:
        `(B, n, C, side, side)`.

    Raises:
        InputError: images or boxes have a wrong shape, a box is empty or leaves the image, or the side is below 1.

    >>> import torch
    >>> images = torch.rand(2, 3, 8, 8)
    >>> bool((crop(images, whole(images), 8)[:, 0] == images).all())
    True
    """
    from torchvision.ops import roi_align

    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(f"crop takes images (batch, channels, height, width), float; got {tuple(images.shape)} {images.dtype}.")
    height, width = (side, side) if isinstance(side, int) else side
    if height < 1 or width < 1:
        raise InputError(f"crops need at least one pixel per side; got {height} × {width}.")
    check_boxes(boxes, len(images), (images.shape[2], images.shape[3]))
    n = boxes.shape[1]
    numbers = torch.arange(len(images), device=images.device).repeat_interleave(n)
    wide = images if images.dtype in (torch.float32, torch.float64) else images.float()  # half precision rounds coordinates
    rows = torch.cat([numbers[:, None].to(wide), boxes.reshape(-1, 4).to(wide)], dim=1)
    cropped: Tensor = roi_align(wide, rows, (height, width), aligned=True).to(images.dtype)
    return cropped.view(len(images), n, *cropped.shape[1:])


def lay_back(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Places the map of each crop at its box in the image; 0 outside the box. Differentiable in the maps.

    The map is enlarged bilinearly; where a box has fewer pixels than the map has cells, a pixel gets the mean of the cells that it covers.

    Args:
        maps: `(B, n, h, w)`, one per box.
        boxes: `(B, n, 4)`, x1, y1, x2, y2 in pixels.
        size: height and width of the image.

    Returns:
        `(B, n, H, W)`. Pixels whose centre lies in the box get a value.

    Raises:
        InputError: maps or boxes have a wrong shape, or a box is empty or leaves the image.

    >>> import torch
    >>> lay_back(torch.ones(1, 1, 2, 2), torch.tensor([[[1., 0., 3., 2.]]]), (3, 4))[0, 0].tolist()
    [[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    if maps.dim() != 4 or not maps.is_floating_point() or maps.shape[:2] != boxes.shape[:2]:
        raise InputError(
            f"lay_back takes maps (batch, n, height, width), float, one for each box of (batch, n, 4); got {tuple(maps.shape)} "
            f"{maps.dtype} and {tuple(boxes.shape)}."
        )
    check_boxes(boxes, len(maps), size)
    boxes = boxes.to(maps)
    rows = _resizing(boxes[..., 1], boxes[..., 3], maps.shape[2], size[0])
    columns = _resizing(boxes[..., 0], boxes[..., 2], maps.shape[3], size[1])
    return rows @ maps @ columns.mT


def _resizing(low: Tensor, high: Tensor, count: int, pixels: int) -> Tensor:
    """Weights `(…, pixels, count)` that map the cells between two edges to the pixels of an image; 0 outside the edges."""
    starts = torch.arange(pixels, device=low.device, dtype=low.dtype)
    cells = torch.arange(count, device=low.device, dtype=low.dtype)
    inside = (starts + 0.5 >= low[..., None]) & (starts + 0.5 < high[..., None])
    per_pixel = (count / (high - low))[..., None]
    first = (starts - low[..., None]) * per_pixel  # where a pixel begins, counted in cells
    places = (first + (per_pixel - 1) / 2).clamp(0, count - 1)
    between = (1 - (places[..., None] - cells).abs()).clamp(min=0)
    covered = (torch.minimum((first + per_pixel)[..., None], cells + 1) - torch.maximum(first[..., None], cells)).clamp(min=0)
    mean = covered / covered.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(low.dtype).tiny)
    return torch.where(per_pixel[..., None] > 1, mean, between) * inside[..., None]


def whole(images: Tensor) -> Tensor:
    """The box of the whole image for each of images `(B, C, H, W)`: `(B, 1, 4)`."""
    box = torch.tensor((0.0, 0.0, images.shape[3], images.shape[2]), device=images.device)
    return box.expand(len(images), 1, 4)


def squares(centres: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Square boxes of whole pixels around points, shifted into the image if they would leave it.

    Args:
        centres: `(…, 2)`, x and y in pixels.
        side: of the squares in pixels.
        size: height and width of the image.

    Returns:
        Boxes `(…, 4)`.

    Raises:
        InputError: the side is below 1 or longer than the image's shorter side.
    """
    height, width = size
    if not 1 <= side <= min(height, width):
        raise InputError(f"boxes of side {side} do not fit into an image of {width} × {height}: give 1 to {min(height, width)} pixels.")
    furthest = centres.new_tensor((width - side, height - side))
    low = (centres - side / 2).round().clamp(min=0).minimum(furthest)
    return torch.cat([low, low + side], dim=-1)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each box with each other one.

    Args:
        boxes: `(B, n, 4)`.
        others: `(B, m, 4)`.

    Returns:
        `(B, n, m)` in [0, 1].
    """
    low = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(dim=-1) for each in (boxes, others)]
    return shared / (areas[0][..., :, None] + areas[1][..., None, :] - shared)


def cell_centres(cells: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The centres of a map's cells in the image.

    Args:
        cells: numbers `(…)`, row by row.
        grid: height and width of the map.
        size: height and width of the image.

    Returns:
        `(…, 2)`, x and y in pixels.
    """
    x = ((cells % grid[1]).float() + 0.5) * (size[1] / grid[1])
    y = ((cells // grid[1]).float() + 0.5) * (size[0] / grid[0])
    return torch.stack([x, y], dim=-1)


def picked(scores: Tensor, candidates: Tensor, n: int, overlap: float) -> Tensor:
    """The boxes of the strongest local maxima that do not overlap, and of further cells if there are fewer than n.

    Args:
        scores: map `(B, h, w)`.
        candidates: box of each cell, `(h·w, 4)`.
        n: number of boxes, at most h·w.
        overlap: largest intersection over union of two boxes.

    Returns:
        `(B, n, 4)`.
    """
    count = scores.shape[1] * scores.shape[2]
    highest = functional.max_pool2d(scores[:, None], 3, stride=1, padding=1)[:, 0]
    maxima = (scores >= highest).flatten(1)
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(count, 0, -1, device=order.device).expand_as(order))
    shared = overlaps(candidates[None], candidates[None])[0] > overlap
    suppressed = torch.zeros_like(maxima)
    taken = torch.zeros_like(maxima)
    chosen = []
    for _ in range(n):
        # Ranks are 1 to h·w: each condition outweighs all of them.
        keys = ranks + (maxima.long() + 2 * (~suppressed).long()) * count
        best = keys.masked_fill(taken, 0).argmax(dim=1)
        taken = taken.scatter(1, best[:, None], True)
        suppressed = suppressed | shared[best]
        chosen.append(best)
    return candidates[torch.stack(chosen, dim=1)]
