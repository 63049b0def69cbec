"""The gates of positions in a network with relation-aware attention, as one forward computes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from xattn.models.concurrency import in_this_thread
from xattn.rga import RelationAware

FEATURES, RELATIONS = "features", "relations"  # the two parts of a stage: what it was, and the attention behind it


def gated_stages(network: nn.Module) -> tuple[str, ...]:
    """Names of the stages whose maps are gated by relation-aware attention; none in another network."""
    return tuple(name.removesuffix(f".{RELATIONS}") for name, part in network.named_modules() if isinstance(part, RelationAware))


def gate_at(stage: str, gated: Iterable[str]) -> str | None:
    """The gated stage that a place is of: itself, its features before the gate, or the gate's output; None if it is another place."""
    return next((name for name in gated if stage in (name, f"{name}.{FEATURES}", f"{name}.{RELATIONS}")), None)


@contextmanager
def gates_kept(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keeps the gates of positions, `(B, 1, h, w)` in (0, 1), by gated stage in a forward inside."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, gates: Tensor) -> None:
        kept[name] = gates

    handles = [
        network.get_submodule(f"{name}.{RELATIONS}.positions").register_forward_hook(
            in_this_thread(lambda _module, _given, gates, name=name: keep(name, gates))
        )
        for name in gated_stages(network)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
