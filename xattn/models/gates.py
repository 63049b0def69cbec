"""Captures attention inside a network during a forward: gates of positions, and weights of positions in the regions of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from xattn.models.concurrency import in_this_thread
from xattn.ocr import ObjectContext
from xattn.rga import RelationAware

FEATURES, RELATIONS = "features", "relations"  # the two parts of a stage: its features, and the attention after it


def gated_stages(network: nn.Module) -> tuple[str, ...]:
    """Names of the stages whose maps are gated by relation-aware attention; empty for other networks."""
    return tuple(name.removesuffix(f".{RELATIONS}") for name, part in network.named_modules() if isinstance(part, RelationAware))


def gate_at(stage: str, gated: Iterable[str]) -> str | None:
    """The gated stage of a place, which is the stage itself, its features before the gate, or the gate's output; None for other places."""
    return next((name for name in gated if stage in (name, f"{name}.{FEATURES}", f"{name}.{RELATIONS}")), None)


def has_regions(network: nn.Module) -> bool:
    """Whether a network has object context, whose weights of the positions are one map per class."""
    return any(isinstance(part, ObjectContext) for part in network.modules())


@contextmanager
def gates_kept(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Stores the gates of positions, `(B, 1, h, w)` in (0, 1), by gated stage, of a forward in the block."""
    kept: dict[str, Tensor] = {}
    found: dict[nn.Module, str] = {network.get_submodule(f"{name}.{RELATIONS}.positions"): name for name in gated_stages(network)}
    with _outputs_of(found, kept.__setitem__):
        yield kept


@contextmanager
def regions_kept(network: nn.Module) -> Iterator[list[Tensor]]:
    """Stores an OCR network's weights of positions in the region vector of each class, `(B, L, h, w)`, of forwards in the block."""
    kept: list[Tensor] = []
    found: dict[nn.Module, str] = {part.weights: name for name, part in network.named_modules() if isinstance(part, ObjectContext)}
    with _outputs_of(found, lambda _, weights: kept.append(weights)):
        yield kept


@contextmanager
def _outputs_of(modules: dict[nn.Module, str], keep: Callable[[str, Tensor], Any]) -> Iterator[None]:
    """Calls a function with the name and output of each module during forwards in the block."""
    handles = [
        module.register_forward_hook(in_this_thread(lambda _module, _given, output, name=name: keep(name, output)))
        for module, name in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
