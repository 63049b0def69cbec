"""Inserts a head between the features and the logits of any network, by hooks that last for one forward."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import UnsupportedError
from xattn.focus import TwoStreams
from xattn.heads.base import Attended, Head, HeadMetadata, HeadSettings, NetworkInfo, Replaces, StageInfo
from xattn.models.capture import tapped
from xattn.models.classifier_entry import ClassifierEntry, Forward, find_classifier_entry, vector_replaced
from xattn.models.layout import Stage, to_nchw
from xattn.models.stages import Stages, named_stage

AUXILIARY = "aux"  # as torchvision calls it


@dataclass(frozen=True)
class Attachment:
    """The place of a head in a network.

    Attributes:
        replaces: the part of the network that the head replaces.
        stages: the stages that the head reads, in order.
        entry: where the head's vector enters the network's classifier.
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
    forward: Forward,
    image: Tensor,
    known: Stages,
    reads: Sequence[str] | None = None,
) -> Attachment:
    """Finds the place of a head in a network.

    Args:
        network: the network, in eval mode.
        name: of the network in messages.
        head: name of the head in messages.
        settings: of the head.
        metadata: of the head.
        forward: images `(1, C, H, W)` → logits, running `network`.
        image: `(1, C, H, W)`.
        known: the stages that were found in the network.
        reads: names of the stages that the head reads; empty: those of a file that does not name them; None: the head chooses.

    Raises:
        UnsupportedError: the network has no map that the head could read; or the head replaces the pooling, but the network's classifier
            does not take a pooled vector.
    """
    if metadata.replaces == "nothing":
        return Attachment()
    if isinstance(network, TwoStreams):
        raise UnsupportedError(f"{name} has two streams, each with its classifier, and takes no {head}: leave it out.")
    stages = known.stages + known.behind
    if not stages:
        raise UnsupportedError(f"{head} reads the map that enters the pooling; {known.reason}. Use gap.")
    found = find_classifier_entry(network, forward, image, stages[-1])
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
        with torch.no_grad():
            dense = forward(image).dim() == 4
        others = "gap, which leaves its map of logits as it is" if dense else "br-npa, b-cnn or gap"
        raise UnsupportedError(
            f"{head} replaces the pooled vector before the classifier, but the classifier of {name} does not take a vector of "
            f"{stages[-1].channels} values (its pooling is not global, or comes after it). Use {others}."
        )
    names = reads or (settings.stages(info) if reads is None else settings.unnamed_stages(info))
    read = tuple(named_stage(network, forward, image, stage, known) for stage in names)
    return Attachment(metadata.replaces, read, found, replace(info, sizes=tuple(each.size for each in read)))


def grafted(head: Head, entry: ClassifierEntry, class_count: int, named: str) -> bool:
    """Initialises a new head as the network's own classifier, if the head supports this; returns whether it did.

    If the head supports it, but the network has no classifier that fits, a warning is logged.

    Args:
        head: the module.
        entry: where the pooled vector enters the network's classifier.
        class_count: of the head.
        named: head and network in messages.
    """
    if not head.grafts:
        return False
    linear = entry.linear
    if linear is not None and linear.out_features == class_count:
        head.graft(linear)
        return True
    why = f"its own has {linear.out_features} classes" if linear is not None else "its own is not one linear layer on the pooled vector"
    warnings.warn(f"{named} starts with a fresh classifier of {class_count} classes: {why}.", stacklevel=5)
    return False


def attend(
    network: nn.Module,
    normalised: Tensor,
    head: Head,
    attachment: Attachment,
    read_output: Callable[[Any], Tensor],
    classes: Tensor | None = None,
    seeds: Sequence[int] | None = None,
) -> Attended:
    """Runs one forward of the network with its head.

    Args:
        network: normalised images → an object that holds its output.
        normalised: the normalised images.
        head: the module.
        attachment: the place of the head.
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
        vector_replaced(network, attachment.entry, lambda pooled: _shaped_like(pooled, attended.output)),
    ):
        output = read_output(network(normalised))
    _all_reached(attachment, len(reached))
    attended.output = output
    return attended


def _auxiliary(returned: Any, output: Tensor) -> dict[str, Tensor]:
    """The maps of logits of an auxiliary classifier, if a network returns them with its own, as torchvision's segmentation networks do."""
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

            stack.enter_context(vector_replaced(network, entry, below))
        own, *pooled_outputs = read_output(network(normalised)).split(count)
    for number, attachment in enumerate(attachments):
        _all_reached(attachment, reached[number])
    outputs = dict(zip(pooling, pooled_outputs, strict=True))
    classifiers = {number for number, attachment in enumerate(attachments) if attachment.replaces == "classifier"}
    return [attended[number].output if number in classifiers else outputs.get(number, own) for number in range(len(heads))]


def _copy_to_go_on(tensor: Tensor) -> Tensor | None:
    """A copy for the rest of the network, so that an in-place operation there does not change a tensor that the head's backward needs."""
    return tensor.clone() if torch.is_grad_enabled() else None


def _all_reached(attachment: Attachment, count: int) -> None:
    if count < len(attachment.stages):
        raise UnsupportedError(
            f"the forward did not reach '{attachment.stages[count].name}', which the head reads: it takes another path than when "
            f"the head was attached, or the module was replaced by something that runs no hooks."
        )


def _shaped_like(pooled: Tensor, vector: Tensor) -> Tensor:
    return vector.to(pooled.dtype).reshape(pooled.shape)
