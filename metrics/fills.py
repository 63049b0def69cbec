"""Fills of replaced pixels: one colour, a blur, noise, or interpolation from their neighbours."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.inpainting import interpolated
from xattn.metrics.seeds import content_seeds
from xattn.metrics.stream import of_rows, replaced

if TYPE_CHECKING:
    from torch import Tensor

BLUR_SIGMA = 5.0
NOISE = 0.01  # standard deviation of the noise on interpolated pixels, in pixel space


@dataclass(frozen=True)
class Baseline:
    """What replaced pixels show.

    Attributes:
        kind: "colour", one colour; "gaussian" or "box", a blur with that colour outside the image; "noise", uniform in [0, 1];
            "noisy-linear", the weighted mean of the neighbours with noise of standard deviation 0.01 (ROAD), and the image's mean colour if
            no pixel is left. Noise is seeded by the image's content: it is the same for every batch, mask and step.
        colour: the given mean colour, or black.
        side: of the blur's kernel; None: max(H // 5, 9) made odd.
    """

    kind: Literal["colour", "gaussian", "box", "noise", "noisy-linear"]
    colour: Literal["mean", "black"] = "mean"
    side: int | None = None


class Fill:
    """Images, and the values of their replaced pixels.

    Args:
        images: `(B, C, H, W)` in pixel space.
        baseline: what replaced pixels show.
        mean: the classifier's mean colour, if the baseline needs it.

    Attributes:
        whole: the images with all pixels replaced, `(B, C, H, W)`.

    Raises:
        InputError: the mean colour is needed but not given.
    """

    def __init__(self, images: Tensor, baseline: Baseline, mean: Tensor | None) -> None:
        self.images = images
        self.noise = NOISE * _drawn(images, torch.randn) if baseline.kind == "noisy-linear" else None
        self.whole = baseline_images(images, baseline, mean)

    def __call__(self, rows: Tensor, which: Tensor) -> Tensor:
        """Some of the images with some pixels replaced, `(n, C, H, W)`.

        Args:
            rows: which images, `(n,)`.
            which: which of their pixels, `(n, H, W)` bool.
        """
        images = of_rows(self.images, rows)
        if self.noise is None:
            return replaced(images, of_rows(self.whole, rows), which)
        return replaced(images, (interpolated(images, which) + of_rows(self.noise, rows)).clamp(0, 1), which)


def _drawn(images: Tensor, draw: Any) -> Tensor:
    """Random numbers for every value of each image, seeded by its content."""
    numbers = [draw(images.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in content_seeds(images, stream="fill")]
    return torch.stack(numbers).to(images)


def baseline_images(images: Tensor, baseline: Baseline, mean: Tensor | None) -> Tensor:
    """Images with all pixels replaced, `(B, C, H, W)`.

    Raises:
        InputError: the mean colour is needed but not given.
    """
    if baseline.kind == "noise":
        return _drawn(images, torch.rand)
    if baseline.kind == "noisy-linear":
        return (images.mean(dim=(2, 3), keepdim=True) + NOISE * _drawn(images, torch.randn)).clamp(0, 1)
    channels = images.shape[1]
    colour = images.new_zeros(channels, 1, 1)
    if baseline.colour == "mean":
        if mean is None:
            raise InputError("this protocol fills with the classifier's mean colour: pass fill=classifier.mean, or three values in [0, 1].")
        if mean.numel() != channels:
            needed = "three values in [0, 1], red, green and blue" if channels == 3 else f"{channels} values in [0, 1], one per channel"
            raise InputError(f"a fill is {needed}; got {mean.numel()}.")
        colour = mean.to(images).view(channels, 1, 1)
    if baseline.kind == "colour":
        return colour.expand_as(images)
    side = baseline.side if baseline.side is not None else max(images.shape[2] // 5, 9) // 2 * 2 + 1
    kernel = torch.full((side,), 1 / side) if baseline.kind == "box" else _gaussian(side)
    line = kernel.to(images).expand(channels, 1, -1)
    blurred = images - colour  # the outside becomes zero, the padding of the convolution
    blurred = torch.nn.functional.conv2d(blurred, line[:, :, None, :], padding=(0, side // 2), groups=channels)
    blurred = torch.nn.functional.conv2d(blurred, line[:, :, :, None], padding=(side // 2, 0), groups=channels)
    return blurred + colour


@functools.lru_cache(maxsize=16)
def _gaussian(side: int) -> Tensor:
    """The blur of both releases: scipy's Gaussian filter, σ = 5, reflected at the borders, of a unit impulse of this side."""
    from scipy.ndimage import gaussian_filter1d

    impulse = [0.0] * side
    impulse[side // 2] = 1.0
    return torch.as_tensor(gaussian_filter1d(impulse, BLUR_SIGMA, output=float))
