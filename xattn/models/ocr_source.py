"""OCR networks for segmentation on a backbone of torchvision, timm or the shipped classifiers: `ocr:BACKBONE[:key=value,…]`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError, UnsupportedError
from xattn.models.building import Built, Request
from xattn.models.capture import captured
from xattn.models.layout import Stage
from xattn.models.resolution import high_resolution
from xattn.models.stages import find_stages
from xattn.models.state_dicts import fit_weights
from xattn.ocr import OCRNetwork, parsed

BACKBONES = ("torchvision", "timm", "birds")
SIZE = (512, 1024)  # whole pictures of Cityscapes, at half of their size
PROBE = 64
TOLERANCE = 1e-4
LAST_OF_AUX = "aux.1.weight"  # its length is the number of classes


def from_ocr(request: Request, build: Callable[[Request], Built], bare: Callable[[str], nn.Module]) -> Built:
    """Builds the named OCR network.

    Args:
        request: its name; its weights, which are those of the backbone or of a whole OCR network; the stages whose stride is removed from
            the backbone before it is cut.
        build: builds a backbone with weights.
        bare: builds a backbone with random weights, by its name.

    Raises:
        InputError: the name is not valid, its backbone comes from another source, or the number of classes is missing.
        UnsupportedError: the backbone cannot be cut before its pooling and at an earlier stage.
    """
    name, settings = parsed(request.model)
    source = name.partition(":")[0]
    if source not in BACKBONES:
        raise InputError(
            f"model '{request.model}': OCR networks are built on backbones of {', '.join(BACKBONES)}; '{name}' is not one of them."
        )
    state = request.state
    whole = state is not None and LAST_OF_AUX in state
    own = None if whole else build(replace(request, model=name, classes=None, high_res=()))
    network = bare(name) if own is None else own.network
    preprocessing = own.preprocessing if own is not None else build(Request(name)).preprocessing if source == "birds" else Preprocessing()
    if source != "birds":
        preprocessing = replace(preprocessing, input_size=SIZE, resize=SIZE)
    classes = request.classes
    if state is not None and whole:
        classes = len(state[LAST_OF_AUX])
        if request.classes not in (None, classes):
            raise InputError(f"model '{request.model}': the weights are for {classes} classes; got classes={request.classes}.")
    if classes is None:
        raise InputError(f"model '{request.model}' has new classifiers of pixels: give the number of classes (classes=…).")
    if request.high_res:
        high_resolution(network.eval(), request.high_res, dilate=request.dilate, input_size=PROBE)
    early, last, channels = cut(network.eval(), name)
    made = OCRNetwork(early, last, channels, classes, settings)
    if state is not None and whole:
        fit_weights(made, state, request.shown_weights)
    return Built(made.eval(), preprocessing, None, trained=whole)


def cut(network: nn.Module, name: str) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    """The part of a network before its pooling, as two modules, and the channels of their maps.

    The first part ends with the last stage before the input of the pooling that has another number of channels: `layer3` of a ResNet. For a
    HRNet, the first part computes the maps of all branches at the size of the finest, and the second is empty, as in the released code of
    Yuan et al. 2020.

    Args:
        network: in eval mode.
        name: of the network in messages.

    Raises:
        UnsupportedError: there are no two such maps with channels first, or they are not computed by a sequence of the network's modules.
    """
    if hasattr(network, "incre_modules"):
        joined = JoinedBranches(network)
        with torch.no_grad():
            channels = joined(_image(network)).shape[1]
        return joined, nn.Identity(), (channels, channels)
    found = find_stages(network, network, _image(network), named=name).stages
    before = next((stage for stage in reversed(found) if stage.channels != found[-1].channels), None)
    if before is None or {before.layout.axes, found[-1].layout.axes} != {"NCHW"}:
        raise UnsupportedError(
            f"{name} has no two feature maps (batch, channels, height, width) before a pooling: give a convolutional network."
        )
    return *_split(network, before, found[-1], name), (before.channels, found[-1].channels)


class JoinedBranches(nn.Module):
    """The maps of all branches of timm's HRNet, resized to the size of the finest and concatenated: `(B, C, H/4, W/4)`.

    Args:
        network: the HRNet; its parts for classification are removed.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        network.incre_modules = None  # the network then returns the maps of its branches
        network.downsamp_modules = None
        network.final_layer = network.global_pool = network.head_drop = network.classifier = nn.Identity()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        maps: list[Tensor] = self.network.forward_features(images)
        size = maps[0].shape[2:]
        return torch.cat([functional.interpolate(each, size=size, mode="bilinear", align_corners=False) for each in maps], dim=1)


def _image(network: nn.Module) -> Tensor:
    noise = torch.rand((1, 3, PROBE, PROBE), generator=torch.Generator().manual_seed(0))
    return noise.to(next(network.parameters()))


def _split(network: nn.Module, before: Stage, end: Stage, name: str) -> tuple[nn.Module, nn.Module]:
    """A network's modules as two sequences: the first computes the map of one stage, the second, from that, the map of another."""
    parts: list[OrderedDict[str, nn.Module]] = [OrderedDict(), OrderedDict()]
    ends = [before, end]
    for path, module in _in_order(network, [stage.module for stage in ends]):
        parts[2 - len(ends)][path.replace(".", "_")] = module
        if path == ends[0].module:
            if ends[0].offset is not None and ends[0].name.rpartition("+")[2].startswith("relu"):
                parts[2 - len(ends)]["relu"] = nn.ReLU()
            ends.pop(0)
        if not ends:
            break
    early, last = (nn.Sequential(part) for part in parts)
    image = _image(network)
    try:
        with torch.no_grad(), captured(network, [before, end]) as features:
            network(image)
        with torch.no_grad():
            first = early(image)
            found = {before.name: first, end.name: last(first)}
        fits = all(_alike(found[stage.name], features[stage.name]) for stage in (before, end))
    except (RuntimeError, TypeError, ValueError):  # its modules do not form a sequence
        fits = False
    if not fits:
        raise UnsupportedError(
            f"{name} cannot be cut at '{before.name}' and '{end.name}': its modules are not a plain sequence. Give a ResNet, VGG, "
            "DenseNet, MobileNet, EfficientNet or ConvNeXt, or an HRNet of timm."
        )
    return early, last


def _in_order(network: nn.Module, ends: list[str], before: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of a network in their order; those that contain an end are opened, others are not."""
    for key, child in network.named_children():
        path = f"{before}{key}"
        if any(end.startswith(f"{path}.") for end in ends):
            yield from _in_order(child, ends, f"{path}.")
            if path in ends:
                yield path, nn.Identity()  # its end
        else:
            yield path, child


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, TOLERANCE, TOLERANCE * float(other.abs().max()))
