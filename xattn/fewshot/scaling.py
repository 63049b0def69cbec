"""Scale and shift: what meta-training learns of convolutions whose weights are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from xattn.errors import UnsupportedError


class _Scale(nn.Module):
    """A weight `(out, in, h, w)` times a scale `(out, in, 1, 1)`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(weight.new_ones(*weight.shape[:2], 1, 1))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


class _Shift(nn.Module):
    """A bias `(out,)` plus a shift."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(bias))

    def forward(self, bias: Tensor) -> Tensor:
        return bias + self.shift


@contextmanager
def scaled_and_shifted(network: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Gives each convolution a learnt scale and, where it has a bias, a learnt shift; at the end they are folded into its weights.

    Scales `(out, in, 1, 1)` start at 1 and shifts `(out,)` at 0, so that the network is at first what it was. Inside, nothing else of it
    requires gradients; afterwards it has plain weights, and what required gradients before does so again.

    Args:
        network: whose convolutions are changed, in place.

    Yields:
        The scales and shifts.

    Raises:
        UnsupportedError: it has no convolution, or one whose weights are computed from others or shared with another.

    Source: Sun et al. 2019, Sec. 4.2.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise UnsupportedError(f"scales and shifts belong to convolutions, but {type(network).__name__} has none.")
    if any(parametrize.is_parametrized(module) for module in convolutions):
        raise UnsupportedError("a convolution has weights that are computed from others (a parametrization): fold them first.")
    if len({id(module.weight) for module in convolutions}) < len(convolutions):
        raise UnsupportedError("two convolutions share their weights, but each convolution needs a scale of its own.")
    flags = {parameter: parameter.requires_grad for parameter in network.parameters()}
    learnt: list[nn.Parameter] = []
    try:
        for parameter in flags:
            parameter.requires_grad_(False)
        for module in convolutions:
            scale = _Scale(module.weight)
            learnt.append(scale.scale)
            parametrize.register_parametrization(module, "weight", scale)
            if module.bias is not None:
                shift = _Shift(module.bias)
                learnt.append(shift.shift)
                parametrize.register_parametrization(module, "bias", shift)
        yield learnt
    finally:
        for module in convolutions:
            for name in ("weight", "bias"):
                if parametrize.is_parametrized(module, name):
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
