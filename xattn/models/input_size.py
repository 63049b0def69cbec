"""Finds the image size that a network states, and the arguments that its forward needs besides images."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from xattn.models.concurrency import evaluating

logger = logging.getLogger("xattn")

DEFAULT_SIZE = (224, 224)


def stated_size(network: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images for which a network states it was built; None if it states none.

    It is `image_size` of a transformers configuration, of torchvision's ViT and of open_clip's encoders, `img_size` of timm's patch
    embeddings, else `input_size` of timm's pretrained configuration, which belongs to the weights and not to the network.

    >>> import torchvision
    >>> stated_size(torchvision.models.VisionTransformer(64, 16, 1, 1, 8, 8))
    (64, 64)
    """
    stated = (value for statements in (_of_layers, _of_weights) for module in network.modules() for value in statements(module))
    return next((size for value in stated if (size := _pair(value)) is not None), None)


def own_size(network: nn.Module) -> tuple[int, int]:
    """224 × 224, or the size that the network states if it cannot run this one."""
    stated = stated_size(network)
    if stated in (None, DEFAULT_SIZE) or _runs(network, DEFAULT_SIZE):
        return DEFAULT_SIZE
    assert stated is not None
    logger.info("%s takes images of %d × %d, as it states; %d × %d does not run", type(network).__name__, *stated, *DEFAULT_SIZE)
    return stated


def required_arguments(network: nn.Module) -> list[str]:
    """Names of the required arguments of the network's forward."""
    return [
        parameter.name
        for parameter in inspect.signature(network.forward).parameters.values()
        if parameter.default is parameter.empty and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def _of_layers(module: nn.Module) -> Iterator[Any]:
    for holder in (module, getattr(module, "config", None)):
        for name in ("image_size", "img_size"):
            yield getattr(holder, name, None)


def _of_weights(module: nn.Module) -> Iterator[Any]:
    pretrained = getattr(module, "pretrained_cfg", None)
    if isinstance(pretrained, dict):
        yield (pretrained.get("input_size") or (None,))[1:]


def _pair(value: Any) -> tuple[int, int] | None:
    sides = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    return (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides) else None


def _runs(network: nn.Module, size: tuple[int, int]) -> bool:
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with evaluating(network), torch.no_grad():
            network(like.new_zeros((1, 3, *size)))
    except Exception:  # a network may raise any error for a wrong size
        return False
    return True
