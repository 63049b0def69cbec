"""How a head is put between the features and the logits of any network: by hooks that last for one forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import UnsupportedError
from xattn.heads.base import Attended, Head, HeadMetadata, HeadSettings, NetworkInfo, Replaces, StageInfo
from xattn.models.capture import captured, tapped
from xattn.models.concurrency import in_this_thread
from xattn.models.layout import Layout, Stage, other_tokens, to_nchw

Forward = Callable[[Tensor], Tensor]
PROBE_TOLERANCE = 1e-4
AUXILIARY = "aux"  # as torchvision calls it


@dataclass(frozen=True)
class ClassifierEntry:
    """Where the pooled vector enters a network's classifier.

    Attributes:
        module: dotted name of the first module that takes the pooled vector `(B, C)`, `(B, C, 1, 1)` or `(B, 1, 1, C)`; None if there is
            none.
        call: which call of that module, from 1.
        linear: the classifier, if it is one linear layer on the pooled vector.
    """

    module: str | None = None
    call: int = 1
    linear: nn.Linear | None = None


def find_classifier_entry(network: nn.Module, forward: Forward, image: Tensor, last: Stage) -> ClassifierEntry:
    """Finds where the pooled vector enters the classifier, with a few forwards of one image in eval mode.

    The pooled vector is made from the last map by any pooling, or is a class token beside its cells. Where the output depends on something
    else as well, as that of a network with a distillation token does, there is no such place.

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
    """Whether the output depends on the image by the pooled vector alone."""
    with torch.no_grad(), _replaced(network, entry, torch.ones_like):
        one = forward(image)
    with torch.no_grad(), _replaced(network, entry, torch.ones_like):
        other = forward(1 - image)
    return bool(torch.allclose(one, other, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE * float(one.abs().max())))


def _first_entry(
    modules: dict[str, nn.Module], candidates: Sequence[tuple[str, int, Tensor]], last: Tensor, layout: Layout, logits: Tensor
) -> ClassifierEntry:
    features, others = to_nchw(last, layout), other_tokens(last, layout)
    for name, call, vector in candidates:
        pooled = vector.flatten()
        if any(torch.allclose(pooled, token, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE) for token in others[0]):
            return ClassifierEntry(name, call)  # a class token: its classifier is not one of what the cells are pooled to
        low, high = features.flatten(2)[0].amin(dim=1), features.flatten(2)[0].amax(dim=1)
        slack = PROBE_TOLERANCE * features.abs().amax()
        if not ((pooled >= low - slack) & (pooled <= high + slack)).all():
            continue  # it has been through a layer: pooling stays between the smallest and the largest value of each channel
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


@dataclass(frozen=True)
class Attachment:
    """Where a head is put on a network.

    Attributes:
        replaces: the part of the network that it replaces.
        stages: the stages that it reads, in order.
        entry: where its vector enters the network's classifier.
        info: about the network.
    """

    replaces: Replaces = "nothing"
    stages: tuple[Stage, ...] = ()
    entry: ClassifierEntry = field(default_factory=ClassifierEntry)
    info: NetworkInfo = field(default_factory=lambda: NetworkInfo("", (), frozenset(), frozenset(), False))


def attachment_of(
    network: nn.Module,
    name: str,
    head: str,
    settings: HeadSettings,
    metadata: HeadMetadata,
    stages: Sequence[Stage],
    entry: Callable[[], ClassifierEntry],
    stage: Callable[[str], Stage],
    reads: Sequence[str] | None = None,
) -> Attachment:
    """Where a head is put on a network.

    Args:
        network: the network.
        name: of the network in messages.
        head: name of the head in messages.
        settings: of the head.
        metadata: of the head.
        stages: of the network.
        entry: finds where the pooled vector enters the classifier.
        stage: returns a stage by name.
        reads: names of the stages that it reads; empty: as in a file that does not name them; None: the head chooses.

    Raises:
        UnsupportedError: the head replaces the pooling, but the network's classifier takes no pooled vector.
    """
    if metadata.replaces == "nothing":
        return Attachment()
    found = entry()
    info = NetworkInfo(
        name=name,
        stages=tuple(
            StageInfo(
                stage.name,
                stage.channels,
                stage.stride,
                stage.layout.grid != (0, 0),
                type(network.get_submodule(stage.module)).__name__,
            )
            for stage in stages
        ),
        kinds=frozenset(type(module).__name__ for module in network.modules()),
        modules=frozenset(module for module, _ in network.named_modules()),
        takes_vector=found.module is not None,
    )
    if metadata.replaces == "pooling" and not info.takes_vector:
        raise UnsupportedError(
            f"{head} replaces the pooled vector before the classifier, but the classifier of {name} does not take a vector of "
            f"{stages[-1].channels} values (its pooling is not global, or comes after it). Use br-npa, b-cnn or gap."
        )
    names = reads or (settings.stages(info) if reads is None else settings.unnamed_stages(info))
    read = tuple(stage(name) for name in names)
    return Attachment(metadata.replaces, read, found, replace(info, sizes=tuple(each.size for each in read)))


def attend(
    network: nn.Module,
    normalised: Tensor,
    head: Head,
    attachment: Attachment,
    read_output: Callable[[Any], Tensor],
    classes: Tensor | None = None,
    seeds: Sequence[int] | None = None,
) -> Attended:
    """One forward of the network with its head.

    Args:
        network: normalised images → an object that holds its output.
        normalised: the normalised images.
        head: the module.
        attachment: where the head is put.
        read_output: finds the output in what the network returns.
        classes: `(B,)`, for a head that needs the class; None: the network's own prediction.
        seeds: one per image, for randomness.
    """
    if attachment.replaces == "nothing":
        returned = network(normalised)
        output = read_output(returned)
        return Attended(output, probes=_auxiliary(returned, output))
    if head.asks_class and classes is None:
        classes = own_prediction(network, normalised, read_output)
    attended = head.start(len(normalised), classes)
    reached: list[str] = []

    def tap(stage: Stage, tensor: Tensor) -> Tensor | None:
        head.read(attended, stage.name, to_nchw(tensor, stage.layout), seeds)
        reached.append(stage.name)
        return _copy_to_go_on(tensor)

    if attachment.replaces == "classifier":
        with tapped(network, attachment.stages, tap):
            network(normalised)
        _all_reached(attachment, len(reached))
        return attended
    with (
        tapped(network, attachment.stages, tap),
        _replaced(network, attachment.entry, lambda pooled: _shaped_like(pooled, attended.output)),
    ):
        output = read_output(network(normalised))
    _all_reached(attachment, len(reached))
    attended.output = output
    return attended


def _auxiliary(returned: Any, output: Tensor) -> dict[str, Tensor]:
    """The maps of logits of an auxiliary classifier beside those of a network, as torchvision's segmentation networks return them."""
    found = returned.get(AUXILIARY) if isinstance(returned, Mapping) else None
    fits = isinstance(found, Tensor) and found.dim() == output.dim() == 4 and found.shape[1] == output.shape[1]
    return {AUXILIARY: found} if fits and isinstance(found, Tensor) else {}


def own_prediction(network: nn.Module, normalised: Tensor, read_output: Callable[[Any], Tensor]) -> Tensor:
    """The classes `(B,)` that the network predicts without a head."""
    with torch.no_grad():
        return read_output(network(normalised)).argmax(dim=1)


def attend_all(
    network: nn.Module,
    normalised: Tensor,
    heads: Sequence[Head],
    attachments: Sequence[Attachment],
    read_output: Callable[[Any], Tensor],
) -> list[Tensor]:
    """The outputs of several heads from one forward of the network, without gradients.

    The classifier receives a larger batch: the pooled vectors, followed by the vectors of each head that replaces the pooling.
    """
    count = len(normalised)
    attended = [head.start(count) for head in heads]
    reached: Counter[int] = Counter()

    def tap_of(number: int, head: Head) -> Callable[[Stage, Tensor], None]:
        def tap(stage: Stage, tensor: Tensor) -> None:
            head.read(attended[number], stage.name, to_nchw(tensor, stage.layout))
            reached[number] += 1

        return tap

    pooling = [number for number, attachment in enumerate(attachments) if attachment.replaces == "pooling"]
    with torch.no_grad(), ExitStack() as stack:
        for number, (head, attachment) in enumerate(zip(heads, attachments, strict=True)):
            if attachment.stages:
                stack.enter_context(tapped(network, attachment.stages, tap_of(number, head)))
        if pooling:
            entry = attachments[pooling[0]].entry

            def below(pooled: Tensor) -> Tensor:
                return torch.cat([pooled, *(_shaped_like(pooled, attended[number].output) for number in pooling)])

            stack.enter_context(_replaced(network, entry, below))
        own, *pooled_outputs = read_output(network(normalised)).split(count)
    for number, attachment in enumerate(attachments):
        _all_reached(attachment, reached[number])
    outputs = dict(zip(pooling, pooled_outputs, strict=True))
    classifiers = {number for number, attachment in enumerate(attachments) if attachment.replaces == "classifier"}
    return [attended[number].output if number in classifiers else outputs.get(number, own) for number in range(len(heads))]


def _copy_to_go_on(tensor: Tensor) -> Tensor | None:
    """A copy for the rest of the network, so that an in-place operation there does not change what the head's backward needs."""
    return tensor.clone() if torch.is_grad_enabled() else None


def _all_reached(attachment: Attachment, count: int) -> None:
    if count < len(attachment.stages):
        raise UnsupportedError(
            f"the forward did not reach '{attachment.stages[count].name}', which the head reads: it takes another path than when "
            f"the head was attached, or the module was replaced by something that runs no hooks."
        )


def _shaped_like(pooled: Tensor, vector: Tensor) -> Tensor:
    return vector.to(pooled.dtype).reshape(pooled.shape)


@contextmanager
def _replaced(network: nn.Module, entry: ClassifierEntry, vector: Callable[[Tensor], Tensor]) -> Iterator[None]:
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
