"""Interpolates missing pixels from their neighbours: the linear imputation of ROAD, for a batch of images at once.

Every missing pixel is the weighted mean of its eight neighbours, 1/6 for those at its sides and 1/12 for those at its corners; neighbours
outside the image are left out. That is one sparse, symmetric and positive definite system of equations per image, solved by conjugate
gradients that start from the solution at half the resolution, which in turn starts from that at a quarter, and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xattn.deferred import torch

if TYPE_CHECKING:
    from torch import Tensor

RESIDUAL = 1e-5  # largest difference of a pixel from the mean of its neighbours, in pixel space
ROUNDS = 2000  # most steps of conjugate gradients; every map that was tried needs fewer than a quarter


def interpolated(images: Tensor, missing: Tensor) -> Tensor:
    """Replaces each missing pixel of images by the weighted mean of its neighbours.

    Each image stops on its own when every missing pixel differs by at most 1e-5 from the mean of its neighbours, so that its pixels do not
    depend on the batch.

    Args:
        images: `(B, C, H, W)` in pixel space; the values of missing pixels are ignored if other pixels are left.
        missing: `(B, H, W)` bool.

    Returns:
        `(B, C, H, W)`; an image without a pixel left shows its own mean colour.

    Source: Rong et al. 2022, noisy linear imputation, here without its noise.

    Differs: the released code solves each image's system on the CPU by factorisation.

    >>> import torch
    >>> line = torch.tensor([[[[0.0, 9.0, 1.0]]]])
    >>> interpolated(line, torch.tensor([[[False, True, False]]]))
    tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    holes = missing[:, None].to(wide)
    known = 1 - holes
    mean = wide.mean(dim=(2, 3), keepdim=True)
    some = known.amax(dim=(2, 3), keepdim=True) > 0
    filled = torch.where(some, _solved(wide * known, holes), mean)
    return torch.where(missing[:, None], filled, wide).to(images)


def _solved(values: Tensor, holes: Tensor) -> Tensor:
    """The images with holes `(B, 1, H, W)` filled, from values `(B, C, H, W)` that are 0 in them."""
    height, width = values.shape[2:]
    known = 1 - holes
    if min(height, width) == 1:
        count = known.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        start = (values.sum(dim=(2, 3), keepdim=True) / count).expand_as(values)
    else:
        count = _halved(known)
        coarse = _solved(_halved(values) / torch.where(count > 0, count, 1), (count == 0).to(values))
        start = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return _conjugate_gradients(values + holes * start, holes)


def _halved(values: Tensor) -> Tensor:
    """Means of blocks of 2 × 2 pixels; at the lower and right edge, means of the existing pixels times their share of the block."""
    return torch.nn.functional.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False)


def _neighbours(values: Tensor) -> Tensor:
    """The weighted sum of each pixel's neighbours within the image: weights 1, 2, 1 across and down, over 12, without the pixel itself."""
    down = 2 * values
    down[..., 1:, :] += values[..., :-1, :]
    down[..., :-1, :] += values[..., 1:, :]
    both = 2 * down
    both[..., 1:] += down[..., :-1]
    both[..., :-1] += down[..., 1:]
    return both.div_(12).sub_(values, alpha=1 / 3)


def _conjugate_gradients(filled: Tensor, holes: Tensor) -> Tensor:
    """Images whose pixels in the holes are the weighted mean of their neighbours.

    Args:
        filled: `(B, C, H, W)`, with a guess in the holes.
        holes: `(B, 1, H, W)`, 1 where pixels are missing.
    """
    weights = _neighbours(torch.ones_like(holes[:1]))
    smallest = torch.finfo(filled.dtype).tiny

    def lacking(values: Tensor) -> Tensor:
        return _neighbours(values).sub_(weights * values).mul_(holes)

    residual = lacking(filled)
    step, size = residual, _dot(residual, residual)
    running = _largest(residual, weights) > RESIDUAL
    for _ in range(ROUNDS):
        if not bool(running.any()):
            break
        change = lacking(step)
        length = torch.where(running, size / -_dot(step, change).clamp(max=-smallest), 0)
        filled = torch.addcmul(filled, length, step)
        residual = torch.addcmul(residual, length, change)
        before, size = size, _dot(residual, residual)
        step = torch.addcmul(residual, torch.where(running, size / before.clamp(min=smallest), 0), step)
        running = running & (_largest(residual, weights) > RESIDUAL)
    return filled


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(2, 3), keepdim=True)


def _largest(residual: Tensor, weights: Tensor) -> Tensor:
    """The largest difference of a pixel from the mean of its neighbours, in each channel."""
    return (residual / weights).abs().amax(dim=(2, 3), keepdim=True)
