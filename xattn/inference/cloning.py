"""Copies of a classifier in another memory format and precision, with batch norms folded or not."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xattn.inference.shared_backbone import SharedBackbone
from xattn.models.classifier import Classifier

Runnable = Classifier | SharedBackbone
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def clone_of(classifier: Runnable, form: torch.memory_format, dtype: torch.dtype | None = None, *, folded: bool = False) -> Runnable:
    """Copies a classifier in eval mode in a memory format and precision, optionally with folded batch norms; shares unchanged weights."""

    def converted(tensor: Tensor) -> Tensor:
        return tensor.detach().to(memory_format=form if tensor.dim() == 4 else torch.preserve_format)

    memo: dict[int, Any] = {id(weight): nn.Parameter(converted(weight), requires_grad=False) for weight in classifier.parameters()}
    memo |= {id(buffer): converted(buffer) for buffer in classifier.buffers()}
    clone: Runnable = copy.deepcopy(classifier, memo).eval()
    if folded:
        _fold(clone)  # folded in its own precision, before any conversion
    return clone if dtype is None else clone.to(dtype)


def _fold(clone: Runnable) -> None:
    """Folds every batch norm whose input is the output of one convolution, and nothing else, into that convolution.

    This does not detect whether the convolution's output is also used elsewhere; callers compare the logits of a folded copy.
    """
    gave: dict[int, tuple[nn.Module, int]] = {}
    kept: list[Tensor] = []  # kept alive, so that no two share an id
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(output, Tensor):
            gave[id(output)] = (module, output._version)
            kept.append(output)

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        source, version = gave.get(id(args[0]), (None, 0)) if args else (None, 0)
        if source is not None and args[0]._version == version:  # not modified in place in between
            pairs.append((source, module))

    handles: list[Any] = []
    for module in clone.network.modules():
        if type(module) in CONVOLUTIONS:
            handles.append(module.register_forward_hook(after))
        elif type(module) in NORMS and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before))
    try:
        with torch.no_grad():
            clone(clone.probe())
    finally:
        for handle in handles:
            handle.remove()
    taken = Counter(convolution for convolution, _ in pairs)
    for convolution, norm in pairs:
        if taken[convolution] > 1:
            continue
        if calls[convolution] == calls[norm] == 1 and not (_watched(convolution) or _watched(norm)):
            fused: Any = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]
            _exchange(clone.network, convolution, fused)
            _exchange(clone.network, norm, nn.Identity())


def _watched(module: nn.Module) -> bool:
    """Checks whether folding the module away would lose a user's hook or parametrisation."""
    return bool(module._forward_hooks or module._forward_pre_hooks or getattr(module, "parametrizations", None))


def _exchange(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in network.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
