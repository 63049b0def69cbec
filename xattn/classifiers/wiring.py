"""How a head is put between a network's features and its logits, whatever the network: by hooks that live as long as a forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xattn.classifiers.capture import captured, tapped, to_nchw
from xattn.classifiers.concurrency import in_this_thread
from xattn.classifiers.stages import Stage
from xattn.errors import UnsupportedError
from xattn.heads import Attended, CAStreamHead, ClassifierHead, GapHead, Head, Place, Site
from xattn.heads.facts import HeadSettings

Forward = Callable[[Tensor], Tensor]
PROBE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Tail:
    """What follows a network's pooling.

    Attributes:
        entry: dotted name of the first module that takes the pooled vector `(B, C)`, `(B, C, 1, 1)` or `(B, 1, 1, C)`; None if none
            does.
        call: which call of that module, from 1.
        linear: the classifier, where it is one linear layer on the pooled vector.
    """

    entry: str | None = None
    call: int = 1
    linear: nn.Linear | None = None


def find_tail(network: nn.Module, forward: Forward, image: Tensor, last: Stage) -> Tail:
    """Finds what follows the pooling with one forward of one image, in eval mode.

    Args:
        network: whose modules are looked at.
        forward: images `(1, 3, H, W)` → logits, running `network`.
        image: `(1, 3, H, W)`.
        last: what enters the pooling.
    """
    entries: list[tuple[str, int, Tensor]] = []
    calls: Counter[str] = Counter()

    def before(name: str, args: tuple[Any, ...]) -> None:
        calls[name] += 1
        given = args[0] if len(args) == 1 else None
        if not isinstance(given, Tensor) or last.name not in found:
            return
        if given.dim() in (2, 4) and given.numel() == last.channels == max(given.shape):
            entries.append((name, calls[name], given))

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
    features = to_nchw(found[last.name], last.layout)
    return _tail(modules, entries, features, logits)


def _tail(modules: dict[str, nn.Module], entries: Sequence[tuple[str, int, Tensor]], features: Tensor, logits: Tensor) -> Tail:
    for name, call, vector in entries:
        pooled = vector.flatten()
        low, high = features.flatten(2)[0].amin(dim=1), features.flatten(2)[0].amax(dim=1)
        slack = PROBE_TOLERANCE * features.abs().amax()
        if not ((pooled >= low - slack) & (pooled <= high + slack)).all():
            continue  # it has been through a layer: a pooling stays between the smallest and the largest value of each channel
        means = any(torch.allclose(pooled, mean, rtol=PROBE_TOLERANCE, atol=float(slack)) for mean in (features.mean(dim=(2, 3))[0], high))
        linears = (module for module in modules.values() if isinstance(module, nn.Linear))
        linear = next((linear for linear in linears if means and _is_classifier(linear, pooled, logits)), None)
        return Tail(name, call, linear)
    return Tail()


def _is_classifier(module: nn.Linear, pooled: Tensor, logits: Tensor) -> bool:
    if (module.in_features, module.out_features) != (len(pooled), logits.shape[1]):
        return False
    said = module(pooled[None])
    return bool(torch.allclose(said, logits, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE * float(logits.abs().max())))


@dataclass(frozen=True)
class Wiring:
    """Where a head is put.

    Attributes:
        stages: which it reads, in order.
        tail: where its vector goes in.
    """

    stages: tuple[Stage, ...] = ()
    tail: Tail = field(default_factory=Tail)


def site_of(network: nn.Module, name: str, stages: Sequence[Stage], tail: Tail) -> Site:
    """What a head is told of a network."""
    return Site(
        name=name,
        places=tuple(Place(stage.name, stage.channels, stage.stride) for stage in stages),
        kinds=frozenset(type(module).__name__ for module in network.modules()),
        modules=frozenset(module for module, _ in network.named_modules()),
        takes_vector=tail.entry is not None,
    )


def attend(
    network: nn.Module,
    normalised: Tensor,
    head: Head,
    wiring: Wiring,
    logits_of: Callable[[Any], Tensor],
    classes: Tensor | None,
    seeds: Sequence[int] | None,
) -> Attended:
    """One forward of the network with its head.

    Args:
        network: normalised images → logits.
        normalised: images.
        head: the module.
        wiring: where it is put.
        logits_of: the logits in what the network gives.
        classes: `(B,)`, for a head with a query for each class.
        seeds: one an image, for what is random.
    """
    if isinstance(head, CAStreamHead):
        return _stream(network, normalised, head, wiring, logits_of, classes)
    if isinstance(head, GapHead):
        return Attended(logits_of(network(normalised)))
    if not isinstance(head, ClassifierHead):
        raise UnsupportedError(f"{type(head).__name__} is neither a ClassifierHead nor a CAStreamHead: nothing says how to put it on.")
    found: list[Attended] = []

    def tap(stage: Stage, tensor: Tensor) -> Tensor | None:
        found.append(head.attend(to_nchw(tensor, stage.layout), stage.name, seeds))
        return _to_go_on(tensor)

    with tapped(network, wiring.stages, tap):
        network(normalised)
    _all_reached(wiring, len(found))
    return found[0]


def asked_classes(network: nn.Module, normalised: Tensor, head: Head, logits_of: Callable[[Any], Tensor]) -> Tensor | None:
    """The classes `(B,)` that the network itself predicts, for a head with a query for each; None for others."""
    if not isinstance(head, CAStreamHead) or not head.settings.per_class:
        return None
    with torch.no_grad():
        return logits_of(network(normalised)).argmax(dim=1)


def _stream(
    network: nn.Module,
    normalised: Tensor,
    head: CAStreamHead,
    wiring: Wiring,
    logits_of: Callable[[Any], Tensor],
    classes: Tensor | None,
) -> Attended:
    if classes is None:
        classes = asked_classes(network, normalised, head, logits_of)
    query = head.begin(len(normalised), classes)
    attention: dict[str, Tensor] = {}
    scores: dict[str, Tensor] = {}

    def tap(stage: Stage, tensor: Tensor) -> Tensor | None:
        nonlocal query
        query, maps, before = head.step(len(attention), query, to_nchw(tensor, stage.layout))
        attention[stage.name], scores[stage.name] = maps[:, None], before[:, None]
        return _to_go_on(tensor)

    with tapped(network, wiring.stages, tap), _replaced(network, wiring.tail, lambda pooled: _like(pooled, query)):
        logits = logits_of(network(normalised))
    _all_reached(wiring, len(attention))
    return Attended(logits, attention, scores)


def attend_together(
    network: nn.Module, normalised: Tensor, heads: Sequence[Head], wirings: Sequence[Wiring], logits_of: Callable[[Any], Tensor]
) -> list[Tensor]:
    """The logits of several heads from one forward of the network, without gradients.

    What enters the classifier is the pooled vector, and below it in the batch the vector of each stream.
    """
    found: dict[int, Tensor] = {}
    queries: dict[int, Tensor] = {}
    steps: Counter[int] = Counter()

    def tap_of(number: int, head: Head) -> Callable[[Stage, Tensor], None]:
        def tap(stage: Stage, tensor: Tensor) -> None:
            features = to_nchw(tensor, stage.layout)
            if isinstance(head, CAStreamHead):
                queries[number], _, _ = head.step(steps[number], queries[number], features)
            elif isinstance(head, ClassifierHead):
                found[number] = head.attend(features, stage.name, None).output
            steps[number] += 1

        return tap

    with torch.no_grad(), ExitStack() as stack:
        for number, (head, wiring) in enumerate(zip(heads, wirings, strict=True)):
            if isinstance(head, CAStreamHead):
                queries[number] = head.begin(len(normalised), None)
                tail = wiring.tail
            if wiring.stages:
                stack.enter_context(tapped(network, wiring.stages, tap_of(number, head)))
        if queries:
            stack.enter_context(_replaced(network, tail, lambda pooled: torch.cat([pooled, *(_like(pooled, q) for q in queries.values())])))
        own, *streamed = logits_of(network(normalised)).split(len(normalised))
    for number, wiring in enumerate(wirings):
        _all_reached(wiring, steps[number])
    found |= dict(zip(queries, streamed, strict=True))
    return [found.get(number, own) for number in range(len(heads))]


def _to_go_on(tensor: Tensor) -> Tensor | None:
    """A copy for what follows, so that an in-place operation there leaves what the head's backward needs."""
    return tensor.clone() if torch.is_grad_enabled() else None


def _all_reached(wiring: Wiring, count: int) -> None:
    if count < len(wiring.stages):
        raise UnsupportedError(
            f"the forward did not come to '{wiring.stages[count].name}', where the head looks: it takes another way now than when the head "
            "was put on, or something stands in the module's place that runs no hooks."
        )


def _like(pooled: Tensor, vector: Tensor) -> Tensor:
    return vector.to(pooled.dtype).reshape(pooled.shape)


@contextmanager
def _replaced(network: nn.Module, tail: Tail, vector: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What enters the classifier is made of the pooled vector."""
    calls = 0

    def put(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal calls
        calls += 1
        return (vector(args[0]),) if calls == tail.call else None

    if tail.entry is None:
        raise UnsupportedError("the network has no module that takes the pooled vector.")
    handle = network.get_submodule(tail.entry).register_forward_pre_hook(in_this_thread(put))
    try:
        yield
    finally:
        handle.remove()


def made(settings: HeadSettings, stages: Sequence[Stage], classes: int, like: Tensor) -> Head:
    """A head's module for these stages, where the network is and in its precision."""
    return settings.build([stage.channels for stage in stages], classes).to(device=like.device, dtype=like.dtype)
