"""Finds where the pooled vector enters a network's classifier, and replaces it by another vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import UnsupportedError
from xattn.models.capture import captured
from xattn.models.concurrency import in_this_thread
from xattn.models.layout import Layout, Stage, other_tokens, to_nchw

Forward = Callable[[Tensor], Tensor]
PROBE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ClassifierEntry:
    """The place where the pooled vector enters a network's classifier.

    Attributes:
        module: dotted name of the first module that takes the pooled vector `(B, C)`, `(B, C, 1, 1)` or `(B, 1, 1, C)`; None if there is
            none.
        call: number of the call of that module, from 1.
        linear: the classifier, if it is one linear layer on the pooled vector.
    """

    module: str | None = None
    call: int = 1
    linear: nn.Linear | None = None


def find_classifier_entry(network: nn.Module, forward: Forward, image: Tensor, last: Stage) -> ClassifierEntry:
    """Finds where the pooled vector enters the classifier, with a few forwards of one image in eval mode.

    The pooled vector is made from the last map by any pooling, or is a class token next to the map's cells. If the output depends on
    something else as well, as in a network with a distillation token, there is no such place.

    Args:
        network: whose modules are searched.
        forward: images `(1, 3, H, W)` → logits, running `network`.
        image: `(1, 3, H, W)`.
        last: the stage at the input of the pooling.
    """
    candidates: list[tuple[str, int, Tensor]] = []
    calls: Counter[str] = Counter()

    def before(name: str, args: tuple[Any, ...]) -> None:
        calls[name] += 1
        given = args[0] if len(args) == 1 else None
        if not isinstance(given, Tensor) or last.name not in found:
            return
        if given.dim() in (2, 4) and given.numel() == last.channels == max(given.shape):
            candidates.append((name, calls[name], given))

    modules = {name: module for name, module in network.named_modules() if name}
    handles = [
        module.register_forward_pre_hook(in_this_thread(lambda _m, args, name=name: before(name, args))) for name, module in modules.items()
    ]
    try:
        with torch.no_grad(), captured(network, [last]) as found:
            logits = forward(image)
    finally:
        for handle in handles:
            handle.remove()
    entry = _first_entry(modules, candidates, found[last.name], last.layout, logits)
    return entry if entry.module is None or _decides(network, forward, image, entry) else ClassifierEntry()


def _decides(network: nn.Module, forward: Forward, image: Tensor, entry: ClassifierEntry) -> bool:
    """Whether the output depends on the image only through the pooled vector."""
    with torch.no_grad(), vector_replaced(network, entry, torch.ones_like):
        one = forward(image)
    with torch.no_grad(), vector_replaced(network, entry, torch.ones_like):
        other = forward(1 - image)
    return bool(torch.allclose(one, other, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE * float(one.abs().max())))


def _first_entry(
    modules: dict[str, nn.Module], candidates: Sequence[tuple[str, int, Tensor]], last: Tensor, layout: Layout, logits: Tensor
) -> ClassifierEntry:
    features, others = to_nchw(last, layout), other_tokens(last, layout)
    for name, call, vector in candidates:
        pooled = vector.flatten()
        if any(torch.allclose(pooled, token, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE) for token in others[0]):
            return ClassifierEntry(name, call)  # a class token: its classifier does not take pooled cells
        low, high = features.flatten(2)[0].amin(dim=1), features.flatten(2)[0].amax(dim=1)
        slack = PROBE_TOLERANCE * features.abs().amax()
        if not ((pooled >= low - slack) & (pooled <= high + slack)).all():
            continue  # a layer has changed it: a pooled value lies between the smallest and the largest value of its channel
        means = any(torch.allclose(pooled, mean, rtol=PROBE_TOLERANCE, atol=float(slack)) for mean in (features.mean(dim=(2, 3))[0], high))
        linears = (module for module in modules.values() if isinstance(module, nn.Linear))
        linear = next((linear for linear in linears if means and _is_classifier(linear, pooled, logits)), None)
        return ClassifierEntry(name, call, linear)
    return ClassifierEntry()


def _is_classifier(module: nn.Linear, pooled: Tensor, logits: Tensor) -> bool:
    if (module.in_features, module.out_features) != (len(pooled), logits.shape[1]):
        return False
    given = module(pooled[None])
    return bool(torch.allclose(given, logits, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE * float(logits.abs().max())))


@contextmanager
def vector_replaced(network: nn.Module, entry: ClassifierEntry, vector: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replaces the input of the classifier, computed from the pooled vector."""
    calls = 0

    def put(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal calls
        calls += 1
        return (vector(args[0]),) if calls == entry.call else None

    if entry.module is None:
        raise UnsupportedError("the network has no module that takes the pooled vector.")
    handle = network.get_submodule(entry.module).register_forward_pre_hook(in_this_thread(put))
    try:
        yield
    finally:
        handle.remove()
