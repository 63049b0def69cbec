"""Taking the features of stages while a forward runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xattn.classifiers.stages import Layout, Stage, first_tensor
from xattn.errors import UnsupportedError


class _Capture(TorchFunctionMode):
    """Keeps the features of stages while a forward runs."""

    def __init__(self, stages: Sequence[Stage], cut: bool) -> None:
        super().__init__()
        self.stages = stages
        self.cut = cut
        self.features: dict[str, Tensor] = {}
        self.calls: Counter[str] = Counter()
        self.position: dict[tuple[str, int], int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for key in self.position:
            self.position[key] += 1
        for stage in self.stages:
            if stage.offset is not None and self.position.get((stage.module, stage.call)) == stage.offset:
                self.features.setdefault(stage.name, result)
        return result

    def after_module(self, module: str, output: Any) -> Any:
        self.calls[module] += 1
        call = self.calls[module]
        for stage in self.stages:
            if (stage.module, stage.call) != (module, call) or stage.offset is not None:
                continue
            tensor = first_tensor(output)
            if tensor is None:
                raise UnsupportedError(f"stage '{stage.name}' gave a tensor in the probe and {type(output).__name__} now.")
            if self.cut:
                torch.set_grad_enabled(True)  # the graph begins here; `captured` restores the mode
                tensor, self.cut = tensor.detach().requires_grad_(), False
            self.features[stage.name] = tensor
            # What follows gets a copy, so that an in-place rectifier behind the stage leaves the features as they were.
            output = tensor.clone() if isinstance(output, Tensor) else type(output)((tensor.clone(), *output[1:]))
        if any((stage.module, stage.call, stage.offset is not None) == (module, call, True) for stage in self.stages):
            self.position[module, call] = 0  # last, so that what is done here does not count
        return output


@contextmanager
def captured(network: nn.Module, stages: Sequence[Stage], *, cut: bool = False) -> Iterator[dict[str, Tensor]]:
    """Keeps what the stages give during the forwards inside, in the network's own layout; `to_nchw` turns it.

    Args:
        network: the module in which the stages were found.
        stages: which to keep.
        cut: begin the autograd graph at the first stage that is reached, as a leaf: a gradient with respect to it costs the tail
            of the network alone. Only for stages that are modules' outputs.
    """
    capture = _Capture(stages, cut and not any(stage.offset is not None for stage in stages))
    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _a, output, name=name: capture.after_module(name, output))
        for name in dict.fromkeys(stage.module for stage in stages)
    ]
    mode = torch.is_grad_enabled()
    try:
        if any(stage.offset is not None for stage in stages):
            with capture:
                yield capture.features
        else:
            yield capture.features
    finally:
        torch.set_grad_enabled(mode)
        for handle in handles:
            handle.remove()


def to_nchw(features: Tensor, layout: Layout) -> Tensor:
    """`(B, C, h, w)`, a view."""
    return features if layout == "NCHW" else features.permute(0, 3, 1, 2)
