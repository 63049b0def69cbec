"""Captures the features of stages while a forward runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xattn.errors import UnsupportedError
from xattn.models.concurrency import in_this_thread
from xattn.models.layout import Place, Stage
from xattn.models.outputs import exchanged, map_in

P = TypeVar("P", bound=Place)


class _Taps(TorchFunctionMode, Generic[P]):
    """Calls `tap` with each stage's output while a forward runs; the forward continues with the tensor that `tap` returns."""

    def __init__(self, stages: Sequence[P], tap: Callable[[P, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.stages = stages
        self.tap = tap
        self.calls: Counter[str] = Counter()
        self.position: dict[tuple[str, int], int] = {}
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for key in self.position:
            self.position[key] += 1
        for stage in self.stages:
            at_stage = stage.offset is not None and self.position.get((stage.module, stage.call)) == stage.offset
            if at_stage and stage.name not in self.seen:
                self.seen.add(stage.name)
                changed = self.tap(stage, result)
                result = result if changed is None else changed
        return result

    def after_module(self, module: str, output: Any) -> Any:
        self.calls[module] += 1
        call = self.calls[module]
        for stage in self.stages:
            if (stage.module, stage.call) != (module, call) or stage.offset is not None:
                continue
            tensor = map_in(output)
            if tensor is None:
                raise UnsupportedError(f"stage '{stage.name}' gave a tensor in the probe and {type(output).__name__} now.")
            changed = self.tap(stage, tensor)
            if changed is not None:
                output = exchanged(output, tensor, changed)
        if any((stage.module, stage.call, stage.offset is not None) == (module, call, True) for stage in self.stages):
            self.position[module, call] = 0  # set last, so that functions called here do not count
        return output


@contextmanager
def tapped(network: nn.Module, stages: Sequence[P], tap: Callable[[P, Tensor], Tensor | None]) -> Iterator[None]:
    """Calls `tap(stage, tensor)` when a forward in the block reaches a stage, with the tensor in the network's own layout.

    The forward continues with the tensor that `tap` returns; None leaves it unchanged.
    """
    taps = _Taps(stages, tap)
    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(in_this_thread(lambda _m, _a, output, name=name: taps.after_module(name, output)))
        for name in dict.fromkeys(stage.module for stage in stages)
    ]
    try:
        if any(stage.offset is not None for stage in stages):
            with taps:
                yield
        else:
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def captured(network: nn.Module, stages: Sequence[Stage], *, cut: bool = False) -> Iterator[dict[str, Tensor]]:
    """Stores the outputs of stages during the forwards in the block, in the network's own layout; `to_nchw` converts it.

    Args:
        network: the module in which the stages were found.
        stages: the stages to store.
        cut: start the autograd graph at the first stage that is reached, as a leaf: a gradient with respect to it then costs only a
            backward through the later layers. Only for stages that are module outputs.
    """
    features: dict[str, Tensor] = {}
    uncut = cut and not any(stage.offset is not None for stage in stages)

    def keep(stage: Stage, tensor: Tensor) -> Tensor | None:
        nonlocal uncut
        if stage.offset is not None:
            features[stage.name] = tensor
            return None
        if uncut:
            torch.set_grad_enabled(True)  # the graph starts here; the mode is restored below
            tensor, uncut = tensor.detach().requires_grad_(), False
        features[stage.name] = tensor
        # Later layers get a copy, so that an in-place rectifier after the stage does not change the features.
        return tensor.clone()

    mode = torch.is_grad_enabled()
    try:
        with tapped(network, stages, keep):
            yield features
    finally:
        torch.set_grad_enabled(mode)
