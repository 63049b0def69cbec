"""Random seeds from the content of images."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from xattn.deferred import torch

if TYPE_CHECKING:
    from torch import Tensor


def content_seeds(images: Tensor, seed: int = 0, stream: str = "") -> list[int]:
    """One seed per image, from the run's seed and the image's content in 8 bits; independent of the batch and the place in it.

    Args:
        images: `(B, C, H, W)` in pixel space.
        seed: of the run.
        stream: name of the draw, if it must be independent of other draws for the same image.
    """
    crops = (images.detach() * 255).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()
    run = seed.to_bytes(8, "little", signed=True) + stream.encode()
    digests = [hashlib.sha256(run + crop.numpy().tobytes()).digest() for crop in crops]
    return [int.from_bytes(digest[:7], "little") for digest in digests]
