"""ResNets with relation-aware attention after each layer, by name: `rga:BACKBONE[:key=value,…]`."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError, UnsupportedError
from xattn.models.building import Built, Request
from xattn.models.gates import FEATURES, RELATIONS
from xattn.models.resolution import high_resolution
from xattn.models.state_dicts import fit_weights
from xattn.rga import RelationAware, parsed

BACKBONES = ("torchvision", "timm", "birds")
SIDE = 224
LAYER = re.compile(r"layer\d+")


def from_rga(request: Request, build: Callable[[Request], Built], bare: Callable[[str], nn.Module]) -> Built:
    """Builds the named network with relation-aware attention.

    Args:
        request: its name; its weights, which are those of the backbone or of a whole network with attention; the stages whose stride is
            removed before the attention, which has weights for each position, is added.
        build: builds a backbone with weights.
        bare: builds a backbone with random weights, by its name.

    Raises:
        InputError: the name is not valid, or its backbone comes from another source.
        UnsupportedError: the backbone is not a ResNet.
    """
    name, settings = parsed(request.model)
    source = name.partition(":")[0]
    if source not in BACKBONES:
        raise InputError(
            f"model '{request.model}': relation-aware attention is put on backbones of {', '.join(BACKBONES)}; '{name}' is not one of them."
        )
    state = request.state
    whole = state is not None and any(f".{RELATIONS}." in key for key in state)
    own = None if whole else build(replace(request, model=name, classes=None, high_res=()))
    network = bare(name) if own is None else own.network
    layers = [key for key, _ in network.named_children() if LAYER.fullmatch(key)]
    classifier = getattr(network, "fc", None)
    if not layers or not isinstance(classifier, nn.Linear):
        raise UnsupportedError(f"model '{request.model}': the attention stands after layer1, layer2, … of a ResNet; {name} is not one.")
    preprocessing = own.preprocessing if own is not None else build(Request(name)).preprocessing if source == "birds" else Preprocessing()
    standard = preprocessing.input_size if source == "birds" else (SIDE, SIDE)
    size = (settings.height or standard[0], settings.width or standard[1])
    if size != preprocessing.input_size:
        preprocessing = replace(preprocessing, input_size=size, resize=size)
    before, classes = classifier.out_features, request.classes
    if state is not None and whole and "fc.weight" in state:
        classes = len(state["fc.weight"])
        if request.classes not in (None, classes):
            raise InputError(f"model '{request.model}': the weights are for {classes} classes; got classes={request.classes}.")
    if classes not in (None, before):
        network.fc = nn.Linear(classifier.in_features, int(classes or before))
    if request.high_res:
        high_resolution(network.eval(), request.high_res, dilate=request.dilate, input_size=size)
    with_relations(network.eval(), layers, size, settings.reduction)
    if state is not None and whole:
        fit_weights(network, state, request.shown_weights)
    labels = own.labels if own is not None and classes in (None, before) else None
    return Built(network.eval(), preprocessing, labels, trained=whole)


def with_relations(network: nn.Module, layers: list[str], size: tuple[int, int], reduction: int = 8) -> None:
    """Adds relation-aware attention with new weights after some children of a network, in place.

    Args:
        network: in eval mode.
        layers: names of the children, whose outputs are maps.
        size: height and width of the images.
        reduction: of the attention's embeddings.
    """
    shapes: dict[str, tuple[int, int, int]] = {}

    def keep(layer: str, found: Tensor) -> None:
        shapes[layer] = (found.shape[1], found.shape[2], found.shape[3])

    handles = [
        network.get_submodule(layer).register_forward_hook(lambda _module, _given, found, layer=layer: keep(layer, found))
        for layer in layers
    ]
    like = next(network.parameters())
    try:
        with torch.no_grad():
            network(like.new_zeros(1, 3, *size))
    finally:
        for handle in handles:
            handle.remove()
    for layer, (channels, height, width) in shapes.items():
        attention = RelationAware(channels, (height, width), reduction).to(like).eval()
        setattr(network, layer, nn.Sequential(OrderedDict([(FEATURES, network.get_submodule(layer)), (RELATIONS, attention)])))
