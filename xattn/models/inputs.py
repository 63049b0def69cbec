"""Finds the number of image channels of a network, and passes the further inputs of its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from xattn.errors import InputError, UnsupportedError
from xattn.models.concurrency import in_this_thread
from xattn.models.graph import behind, is_a

Inputs = Callable[[Tensor], Mapping[str, Any]]
"""The network's images `(B, C, H, W)`, normalised → its forward's further arguments by name, for these B images."""

RGB = 3
LAYERS = ("conv1d", "conv2d", "conv3d", "linear", "batch_norm", "group_norm", "embedding")
NORMS = ("batch_norm", "group_norm")
CHOOSING = ("SliceBackward", "AliasBackward", "SelectBackward", "SplitBackward", "UnbindBackward", "IndexBackward", "IndexSelectBackward")
OTHER_DATA = {
    "conv1d": "a Conv1d, over sequences (batch, channels, length)",
    "conv3d": "a Conv3d, over videos or volumes (batch, channels, frames or depth, height, width)",
    "embedding": "an Embedding, over indices of tokens",
}


class _Reached(Exception):  # ends the forward; not an error
    """The first layer has run."""


class _FirstLayer(TorchFunctionMode):
    """Ends a forward after the first layer with weights that takes all channels of the image, or before the first layer that cannot.

    A normalisation, whose channels may be another axis, and a layer of only some channels do not end it.

    Attributes:
        kind: the layer's function.
        given: the channels of its input, or the values per row.
        takes: the channels for which its weights are made.
        axes: number of axes of its input.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image
        self.kind = ""
        self.given = self.takes = self.axes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = getattr(func, "__name__", "")
        given = args[0] if args else kwargs.get("input")
        if kind not in LAYERS or not isinstance(given, Tensor) or not (made := _made_of(given, self.image)):
            return func(*args, **kwargs)
        self.kind, self.axes = kind, given.dim()
        self.given = given.shape[-1 if kind == "linear" else 1] if given.dim() > 1 else 0
        self.takes = _taken(kind, args, kwargs)
        result = func(*args, **kwargs)
        if kind not in NORMS and not any(node is not None and is_a(node, CHOOSING) for node in made):
            raise _Reached
        return result


def _made_of(tensor: Tensor, image: Tensor) -> list[Node | None]:
    """The operations that computed a tensor from the image; empty if it does not depend on the image."""
    if tensor is image:
        return [None]
    nodes: list[Node | None] = [] if tensor.grad_fn is None else [*behind(tensor.grad_fn)]
    return nodes if any(getattr(node, "variable", None) is image for node in nodes) else []


def _taken(kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The channels, or values per row, for which a layer's weights are made; 0 if it has none."""
    if kind in NORMS:
        found = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, Tensor)]
        return found[0].shape[0] if found else 0
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    return int(weight.shape[1]) * int(groups)


def input_channels(network: nn.Module, run: Callable[[Tensor], Any], size: tuple[int, int], like: Tensor, name: str) -> int:
    """The number of channels of the images that a network takes, by its first layer; later layers are not run.

    Args:
        network: in eval mode.
        run: normalised images → what the network returns.
        size: height and width of the images.
        like: a tensor of the network's precision, on its device.
        name: of the network in errors.

    Raises:
        UnsupportedError: its first layer is for videos, volumes, sequences or tokens.
    """
    first, fits = _first_layer(run, RGB, size, like)
    if fits:
        return RGB
    if first.kind == "":
        convolution = next((module for module in network.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
        if isinstance(convolution, nn.Conv3d):
            first.kind = "conv3d"
    if first.kind in OTHER_DATA:
        raise UnsupportedError(
            f"xattn explains images (batch, channels, height, width); the first layer of {name} is {OTHER_DATA[first.kind]}. Explain a "
            "network of images, or wrap this one in a module whose forward makes its input from an image."
        )
    if first.kind == "" and _first_layer(run, 1, size, like)[0].kind:
        return 1  # its code selects one channel before the first layer
    if first.kind:
        scaled, rest = divmod(RGB * first.takes, first.given or RGB)
        for count in dict.fromkeys([scaled if rest == 0 and first.given else 0, first.takes - first.given + RGB]):
            if count > 0 and count != RGB and _first_layer(run, count, size, like)[1]:
                return count
    return RGB  # the probe of the whole network reports what fails


def _first_layer(run: Callable[[Tensor], Any], channels: int, size: tuple[int, int], like: Tensor) -> tuple[_FirstLayer, bool]:
    """The first layer, and whether it takes images with this number of channels."""
    noise = torch.rand((1, channels, *size), generator=torch.Generator().manual_seed(0))
    image = noise.to(like).requires_grad_()
    first = _FirstLayer(image)
    try:
        with torch.enable_grad(), first:
            run(image)
    except _Reached:
        volumes = first.kind == "conv3d" and (first.axes == 4 or first.given != channels)  # the images, or the channels, are frames
        return first, not volumes
    except Exception:  # the probe of the whole network reports it
        return first, False
    return first, True


@contextmanager
def supplied(network: nn.Module, inputs: Inputs | None) -> Iterator[None]:
    """Passes the network's further inputs to the forwards in the block, in this thread.

    Args:
        network: whose forward takes them.
        inputs: None: it takes only images.

    Raises:
        InputError: `inputs` does not return a mapping of names.
    """
    if inputs is None:
        yield
        return

    def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        further = inputs(args[0])
        if not isinstance(further, Mapping):
            raise InputError(
                f"inputs gives the forward's further arguments by name, such as {{'metadata': …}}; it gave {type(further).__name__}."
            )
        return args, {**kwargs, **further}

    handle = network.register_forward_pre_hook(in_this_thread(add), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
