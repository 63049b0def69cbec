"""SLIC superpixels of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xattn.deferred import torch

if TYPE_CHECKING:
    from torch import Tensor


def superpixels(images: Tensor, count: int) -> Tensor:
    """Each pixel's SLIC superpixel, 0 … L − 1, `(B, H, W)` int64 on the images' device; L is about `count`, and each image has its own.

    scikit-image computes them on the CPU, with its default compactness, from the image in 8 bits, so that they are the same in any
    precision.

    Args:
        images: `(B, C, H, W)` in pixel space.
        count: requested number of superpixels.
    """
    from skimage.segmentation import slic

    crops = (images.detach() * 255).round().clamp(0, 255).double().div(255).permute(0, 2, 3, 1).cpu()
    found = [torch.as_tensor(slic(crop.numpy(), n_segments=count, start_label=0, channel_axis=-1)) for crop in crops]
    return torch.stack([labels.unique(return_inverse=True)[1] for labels in found]).to(images.device)
