"""Control maps that ignore the network or show the wrong place: a method that does not beat them explains nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from xattn.birds import pixels, scene
from xattn.explainers.base import Need, register
from xattn.explainers.cams import GradCAM
from xattn.explainers.trace import Trace
from xattn.models.target_rules import Given

LUMINANCE = (0.299, 0.587, 0.114)


@register("random", source="control", control=True, direct=True)
def random(trace: Trace) -> Tensor:
    """Uniform noise, seeded by the image's content: the same in every batch.

    Returns:
        `(B, H, W)` in [0, 1), the mask itself.
    """
    size = trace.images.shape[-2:]
    noise = [torch.rand(size, generator=torch.Generator().manual_seed(seed)) for seed in trace.seeds]
    return torch.stack(noise).to(trace.images)


@register("centre", source="control", control=True, direct=True)
def centre(trace: Trace) -> Tensor:
    """A Gaussian at the image's centre, with σ a quarter of the side.

    Returns:
        `(B, H, W)` in (0, 1], the mask itself.
    """
    height, width = trace.images.shape[-2:]
    y = (torch.arange(height) - (height - 1) / 2) / (height / 4)
    x = (torch.arange(width) - (width - 1) / 2) / (width / 4)
    gaussian = torch.exp(-(y[:, None] ** 2 + x**2) / 2).to(trace.images)
    return gaussian.expand(len(trace.images), -1, -1)


@register("edges", source="control", control=True)
def edges(trace: Trace) -> Tensor:
    """Sobel magnitude of the luminance, or of the channels' mean for images without three channels.

    Returns:
        `(B, H, W)`, ≥ 0.
    """
    images = trace.images.detach()
    rgb = images.shape[1] == len(LUMINANCE)
    luminance = (images * images.new_tensor(LUMINANCE).view(3, 1, 1)).sum(dim=1, keepdim=True) if rgb else images.mean(1, keepdim=True)
    padded = functional.pad(luminance, (1, 1, 1, 1), mode="replicate")[:, 0]
    x = padded[:, :, 2:] - padded[:, :, :-2]  # differences first: they are exactly 0 where nothing changes
    y = padded[:, 2:] - padded[:, :-2]
    across = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    down = y[:, :, :-2] + 2 * y[:, :, 1:-1] + y[:, :, 2:]
    return torch.hypot(across, down)


@register("uniform", source="control", control=True, direct=True)
def uniform(trace: Trace) -> Tensor:
    """Ones: the whole image.

    Returns:
        `(B, H, W)`, the mask itself.
    """
    return trace.images.new_ones((len(trace.images), *trace.images.shape[-2:]))


@register("fake-cam", source="Poppi et al. 2021, Sec. 3.1", control=True, direct=True)
def fake_cam(trace: Trace) -> Tensor:
    """Ones except for the top-left pixel: a map that shows nothing and scores well on average drop.

    Returns:
        `(B, H, W)`, the mask itself.
    """
    mask = uniform(trace)
    mask[:, 0, 0] = 0
    return mask


@register("misplaced-cam", needs={Need.FEATURES, Need.GRADIENTS}, source="control", planted=True, caution="is wrong on purpose")
def misplaced_cam(trace: Trace) -> Tensor:
    """Grad-CAM in the wrong place: shifted by half the picture down and to the right, wrapping around its edges.

    It has the values of a real map of this picture.

    Returns:
        Raw map `(B, h, w)`, ≥ 0, at the stage's resolution.
    """
    found = GradCAM()(trace)
    return found.roll((found.shape[1] // 2, found.shape[2] // 2), dims=(1, 2))


@register("other-image-cam", needs={Need.FEATURES, Need.GRADIENTS}, source="control", planted=True, caution="is wrong on purpose")
def other_image_cam(trace: Trace) -> Tensor:
    """Grad-CAM of another image, always the same drawn bird, for the target of the image's own map.

    Returns:
        Raw map `(B, h, w)`, ≥ 0, at the stage's resolution.
    """
    images, target = trace.images, trace.target
    drawn = (pixels(scene(0, split="test"))[None].to(images.device) / 255).to(images.dtype)
    drawn = drawn if images.shape[1] == drawn.shape[1] else drawn.mean(dim=1, keepdim=True).expand(-1, images.shape[1], -1, -1)
    other = functional.interpolate(drawn, size=images.shape[-2:], mode="bilinear", antialias=True).expand(len(images), -1, -1, -1)
    needs = (Need.FEATURES, Need.GRADIENTS)
    return GradCAM()(
        Trace(trace.classifier, other, Given(target.rule, target), stage=trace.given_stage, needs=needs, predictor=trace.predictor)
    )
