"""Two-stream networks on a backbone of torchvision, timm or the shipped classifiers: `focus:BACKBONE[:key=value,…]`."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError, UnsupportedError
from xattn.focus import GLOBAL, TwoStreams, parsed
from xattn.models.building import Built, Request
from xattn.models.capture import captured
from xattn.models.stages import find_stages
from xattn.models.state_dicts import fit_weights

BACKBONES = ("torchvision", "timm", "birds")
SIDE = 448  # side of the whole picture, for a backbone for 224; pictures are made square, not cropped
TOLERANCE = 1e-4


def from_focus(request: Request, build: Callable[[Request], Built], bare: Callable[[str], nn.Module]) -> Built:
    """Builds the named two-stream network.

    Args:
        request: its name; its weights are those of the backbone, for both streams, or of a whole two-stream network.
        build: builds a backbone with weights.
        bare: builds a backbone with random weights, by its name.

    Raises:
        InputError: the name is not valid, or its backbone comes from another source.
        UnsupportedError: the backbone cannot be cut before its pooling.
    """
    name, settings = parsed(request.model)
    if name.partition(":")[0] not in BACKBONES:
        raise InputError(
            f"model '{request.model}': two-stream networks are built on backbones of {', '.join(BACKBONES)}; '{name}' is not one of them."
        )
    state = request.state
    whole = state is not None and any(key.startswith(f"{GLOBAL}.") for key in state)
    own = build(replace(request, model=name, classes=None)) if not whole else None
    backbone = bare(name) if own is None else own.network
    preprocessing = None if own is None else own.preprocessing
    classes = request.classes
    if state is not None and whole:
        preprocessing = build(Request(name)).preprocessing if name.startswith("birds:") else None
        classes = len(state[f"{GLOBAL}.classifier.weight"])
        if request.classes not in (None, classes):
            raise InputError(f"model '{request.model}': the weights are for {classes} classes; got classes={request.classes}.")
    count = classes or (0 if own is None else _outputs(own))
    trunk, channels = trunk_of(backbone.eval(), name)
    labels = own.labels if own is not None and own.labels is not None and len(own.labels) == count else None
    if not count:
        raise InputError(f"model '{request.model}' has a new classifier: give the number of classes (classes=…).")
    network = TwoStreams(trunk, without_last_pooling(copy.deepcopy(trunk)), channels, count, settings)
    if state is not None and whole:
        fit_weights(network, state, request.shown_weights)
    size = (SIDE, SIDE) if preprocessing is None or not name.startswith("birds:") else preprocessing.input_size
    return Built(network, replace(preprocessing or Preprocessing(), input_size=size, resize=size), labels, trained=whole)


def _outputs(built: Built) -> int:
    """Number of outputs of a backbone for a picture."""
    with torch.no_grad():
        found: Tensor = built.network.eval()(torch.zeros(1, 3, *built.preprocessing.input_size))
    return found.shape[-1]


def trunk_of(network: nn.Module, name: str) -> tuple[nn.Module, int]:
    """The part of a network before its pooling, as a separate module, and the number of channels of its map.

    Args:
        network: in eval mode.
        name: of the network in messages.

    Raises:
        UnsupportedError: the network's last map is not channels-first, or is not computed by a sequence of its modules.
    """
    image = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    found = find_stages(network, network, image, named=name)
    if not found.stages or found.stages[-1].layout.axes != "NCHW":
        raise UnsupportedError(
            f"{name} has no feature map (batch, channels, height, width) before a pooling: give a convolutional network."
        )
    last = found.stages[-1]
    if hasattr(network, "reset_classifier"):  # of timm
        trunk: Any = network
        trunk.reset_classifier(0, "")
        return _checked(trunk, image, None, name)
    top = last.module.partition(".")[0]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for key, child in network.named_children():
        parts[key] = child
        if key == top:
            break
    end = replace(last, name="end", module=top, call=1, offset=None)
    with torch.no_grad(), captured(network, [end]) as features:
        network(image)
    expected = features["end"]
    if last.offset is not None and last.name.partition("+")[2].startswith("relu"):
        parts["relu"] = nn.ReLU()
        expected = expected.relu()
    return _checked(nn.Sequential(parts), image, expected, name)


def _checked(trunk: nn.Module, image: Tensor, expected: Tensor | None, name: str) -> tuple[nn.Module, int]:
    """The trunk and its channels, after a check that it computes the same map as the network."""
    try:
        with torch.no_grad():
            features = trunk(image)
        slack = TOLERANCE * float(features.abs().max())
        fits = features.dim() == 4 and (expected is None or torch.allclose(features, expected, TOLERANCE, slack))
    except (RuntimeError, TypeError, ValueError):  # its modules do not form a sequence
        fits = False
    if not fits:
        raise UnsupportedError(
            f"{name} cannot be cut before its pooling: its modules are not a plain sequence. Give a ResNet, VGG, DenseNet, "
            "MobileNet, EfficientNet or ConvNeXt, or one of timm."
        )
    return trunk, features.shape[1]


def without_last_pooling(trunk: nn.Module) -> nn.Module:
    """A trunk without the max-pooling at its end, as in VGG, so that the map of a smaller patch stays as fine.

    Source: the released code of Shroff 2020.
    """
    last = trunk
    while isinstance(last, nn.Sequential) and len(last):
        if isinstance(last[-1], nn.MaxPool2d):
            del last[-1]
            break
        last = last[-1]
    return trunk
