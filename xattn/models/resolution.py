"""Larger feature maps from the same weights: strides are removed from the last stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from xattn.errors import NameUnknownError, UnsupportedError
from xattn.models.concurrency import in_this_thread
from xattn.models.inputs import input_channels
from xattn.models.outputs import map_in

PROBE_SIDE = 224


@dataclass(frozen=True)
class _Call:
    """A run of a leaf module in the probe, with the sizes of its maps."""

    name: str
    module: nn.Module
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def shrinks(self) -> bool:
        """Whether it shrinks a map by a stride."""
        return hasattr(self.module, "stride") and self.after < self.before


def high_resolution(
    network: nn.Module, stages: Sequence[str], *, dilate: bool = False, input_size: int | tuple[int, int] = PROBE_SIDE
) -> list[str]:
    """Removes the stride from stages, in place: their maps, and those of later stages, grow by the same factor.

    The convolution with the stride and its shortcut get stride 1; weights stay. Where a kernel has no padding (ConvNeXt's 2×2, pooled
    shortcuts), the map is padded right and below by replication.

    Args:
        network: a ResNet, MobileNet, ConvNeXt or similar.
        stages: module names, such as "layer3", "layer4"; for a stage without a stride inside, the stride right before it is removed.
        dilate: dilate the later kernels, so that each keeps its receptive field: at every second position the map equals the original one.
            As in torchvision's `replace_stride_with_dilation`.
        input_size: side, or height and width, of the probe images.

    Returns:
        Names of the modules whose stride was removed.

    Raises:
        NameUnknownError: there is no module of that name.
        UnsupportedError: the stage does not shrink its map, or shrinks it by something other than a convolution or an average pooling. The
            network is then unchanged.

    Source: Gomez et al. 2021, Sec. 3.1.
    """
    before = [(module, dict(vars(module)), dict(module._modules)) for module in network.modules()]
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    try:
        return [name for stage in stages for name in _without_stride(network, stage, dilate, size)]
    except Exception:
        for module, settings, children in before:
            vars(module).update(settings)
            module._modules.update(children)
        raise


def _without_stride(network: nn.Module, stage: str, dilate: bool, size: tuple[int, int]) -> list[str]:
    modules = dict(network.named_modules())
    if stage not in modules or not stage:
        raise NameUnknownError("stage", stage, (name for name, _ in network.named_children()), _strides(_probe(network, size)[0]))
    calls, sizes = _probe(network, size)
    inside = [number for number, call in enumerate(calls) if call.name == stage or call.name.startswith(f"{stage}.")]
    if not inside or stage not in sizes:
        raise UnsupportedError(f"high resolution needs a stage that gives a map; '{stage}' gives none.")
    shrinking = [call for call in calls[inside[0] : inside[-1] + 1] if call.shrinks]
    if not shrinking:
        shrinking = _right_before(calls[: inside[0]], calls[inside[0]].before)
    if not shrinking:
        raise UnsupportedError(f"high resolution removes strides, but '{stage}' has none, nor has the module before it. {_strides(calls)}")
    for call in shrinking:
        _put(network, call.name, _strideless(call, stage))
    if dilate:
        first = min(number for number, call in enumerate(calls) if call in shrinking)
        for call in calls[first + 1 :]:
            if call not in shrinking:
                _widen(network.get_submodule(call.name))
    try:
        grown = _probe(network, size)[1].get(stage)
    except Exception as error:  # a network in which two maps no longer match may raise any error
        raise UnsupportedError(
            f"without the strides of '{stage}' the network does not run ({error}): does its code contain a stride?"
        ) from error
    if grown is None or grown <= sizes[stage]:
        raise UnsupportedError(f"'{stage}' gives a map of {grown} instead of {sizes[stage]} after its strides were removed.")
    return [call.name for call in shrinking]


def _strides(calls: Sequence[_Call]) -> str:
    found = dict.fromkeys(call.name for call in calls if call.shrinks)
    return f"The network strides at {', '.join(found)}: name a module that holds one of these."


def _probe(network: nn.Module, size: tuple[int, int]) -> tuple[list[_Call], dict[str, tuple[int, int]]]:
    """The runs of leaf modules in order, and the size of each module's map."""
    calls: list[_Call] = []
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given, gave = map_in(args), map_in(output)
        if given is None or gave is None or given.dim() != 4 or gave.dim() != 4:
            return
        sizes[name] = (gave.shape[2], gave.shape[3])
        if next(module.children(), None) is None:
            calls.append(_Call(name, module, (given.shape[2], given.shape[3]), (gave.shape[2], gave.shape[3])))

    handles = [
        m.register_forward_hook(in_this_thread(lambda m, args, out, name=name: note(name, m, args, out)))
        for name, m in network.named_modules()
    ]
    training = [m for m in network.modules() if m.training]
    like = next(network.parameters())
    try:
        for m in training:
            m.training = False
        channels = input_channels(network, network, size, like, type(network).__name__)
        with torch.no_grad():
            network(torch.rand((1, channels, *size), generator=torch.Generator().manual_seed(0)).to(like))
    finally:
        for m in training:
            m.training = True
        for handle in handles:
            handle.remove()
    return calls, sizes


def _right_before(calls: Sequence[_Call], size: tuple[int, int]) -> list[_Call]:
    """The stride directly before a stage, such as ConvNeXt's downsampling."""
    return [calls[-1]] if calls and calls[-1].shrinks and calls[-1].after == size else []


class _PaddedConv2d(nn.Conv2d):
    """A convolution without padding whose map is padded right and below by replication, so that its size stays the same."""

    def forward(self, features: Tensor) -> Tensor:
        below, right = (dilation * (kernel - 1) for dilation, kernel in zip(self.dilation, self.kernel_size, strict=True))
        return super().forward(functional.pad(features, (0, right, 0, below), mode="replicate"))


def _strideless(call: _Call, stage: str) -> nn.Module:
    module = call.module
    if isinstance(module, nn.Conv2d):
        module.stride = (1, 1)
        if isinstance(module.padding, str) or type(module) is not nn.Conv2d or any(module.padding) or module.kernel_size == (1, 1):
            return module  # already padded, or padded as it runs
        padded = _PaddedConv2d(1, 1, (module.kernel_size[0], module.kernel_size[1]))
        vars(padded).update(vars(module))
        return padded
    if isinstance(module, nn.AvgPool2d):
        kernel, padding = (side if isinstance(side, tuple) else (side, side) for side in (module.kernel_size, module.padding))
        if any(padding):
            module.stride = 1
            return module
        return nn.Sequential(nn.ReplicationPad2d((0, kernel[1] - 1, 0, kernel[0] - 1)), nn.AvgPool2d(kernel, 1)).train(module.training)
    raise UnsupportedError(
        f"high resolution removes the strides of convolutions and average poolings; '{stage}' shrinks its map by '{call.name}', a "
        f"{type(module).__name__}. Choose a later stage, or another network (ResNet, MobileNet, ConvNeXt, EfficientNet, DenseNet)."
    )


def _widen(module: nn.Module) -> None:
    """Doubles the dilation and the padding of a convolution with a kernel larger than 1."""
    if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
        module.dilation = (module.dilation[0] * 2, module.dilation[1] * 2)
        if not isinstance(module.padding, str):
            module.padding = (module.padding[0] * 2, module.padding[1] * 2)


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)
