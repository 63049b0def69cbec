"""The stages of a two-stream network, and how it looks at the patches in a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from xattn.boxes import lay_back
from xattn.focus import GLOBAL, LOCAL, LocalStream, Looked, TwoStreams
from xattn.models.capture import captured
from xattn.models.concurrency import in_this_thread
from xattn.models.layout import Layout, Stage
from xattn.models.reader import Reader
from xattn.models.stages import Stages, find_stages, named_stage

GLOBAL_STAGE, LOCAL_STAGE = "global", "local"
OF_STREAM = "named by the network: the input of the pooling of one of its two streams"


@dataclass(frozen=True)
class Looks:
    """How a two-stream network looked at the patches of some images.

    Attributes:
        boxes: `(B, n, 4)`, x1, y1, x2, y2 in pixels of the image.
        alpha: `(B, n, T)`, the weight of each step.
        steps: `(B, T, K)`, the logits of each single step: the local stream's classifier on its output, averaged over the patches. In the
            graph of the forward.
        attention: `(B·n, T, h, w)`, where the self-attention of each step looks; None without it.
    """

    boxes: Tensor
    alpha: Tensor
    steps: Tensor
    attention: Tensor | None

    def joined(self, maps: Tensor, size: tuple[int, int], images: Tensor | slice = slice(None)) -> Tensor:
        """Joins the maps of an image's patches to one map: each is placed at its box, and they are added; 0 outside all boxes.

        The logits of the local stream are the mean over the patches, so that the contributions of patches add up, also where boxes overlap.

        Args:
            maps: `(b, n·h, w)`, the patches of an image below each other, as in the features of a stage of patches.
            size: height and width of the image.
            images: the images that the maps belong to.

        Returns:
            `(b, H, W)`.
        """
        boxes = self.boxes[images]
        return lay_back(maps.unflatten(1, (boxes.shape[1], -1)), boxes, size).sum(dim=1)


def stages_of(network: nn.Module, forward: Callable[[Tensor], Tensor], image: Tensor, named: str) -> Stages:
    """The stages of a network: for a two-stream network `global` and `local`, where each stream's features are pooled; else those found.

    Args:
        network: the module, in eval mode.
        forward: images `(B, 3, H, W)` → the output, running it.
        image: `(1, 3, H, W)`.
        named: name of the network in errors.

    Raises:
        UnsupportedError: no gradient of the output reaches the image.
    """
    if not isinstance(network, TwoStreams):
        return find_stages(network, forward, image, named=named)
    whole = Stage(GLOBAL_STAGE, 0, (0, 0), 1, Layout(), f"{GLOBAL}.features", found=OF_STREAM)
    part = _of_patches(replace(whole, name=LOCAL_STAGE, module=f"{LOCAL}.features"), network)
    with torch.no_grad(), captured(network, [whole, part]) as found:
        forward(image)
    stages = []
    for stage in (whole, part):
        channels, height, width = found[stage.name].shape[1:]
        stages.append(replace(stage, channels=channels, size=(height, width), stride=max(1, round(image.shape[2] / height))))
    return Stages(tuple(stages), (), "", Reader(image.shape[-2] / image.shape[-1], pieces=True))


def stage_named(network: nn.Module, forward: Callable[[Tensor], Tensor], image: Tensor, name: str, known: Stages) -> Stage:
    """As `named_stage`; the maps of any module of a local stream are those of patches."""
    found = named_stage(network, forward, image, name, known)
    inside = isinstance(network, TwoStreams) and found.module.startswith(f"{LOCAL}.") and not found.boxes
    return _of_patches(found, network) if inside and isinstance(network, TwoStreams) else found


def steps_in(network: nn.Module) -> int:
    """Number of steps in which a network looks at a patch: T for a two-stream network with an LSTM, 1 without; 0 for other networks."""
    if not isinstance(network, TwoStreams):
        return 0
    return 1 if network.settings.local == "cnn" else network.settings.steps


def attends(network: nn.Module) -> bool:
    """Whether a network is a two-stream network with self-attention between the steps."""
    return isinstance(network, TwoStreams) and network.settings.self_attention


def _of_patches(stage: Stage, network: TwoStreams) -> Stage:
    return replace(stage, layout=replace(stage.layout, patches=network.seen), boxes=True)


@contextmanager
def looks_kept(network: nn.Module) -> Iterator[list[Looks]]:
    """Stores how a two-stream network looks at the patches in each forward in the block; nothing for other networks."""
    kept: list[Looks] = []
    if not isinstance(network, TwoStreams):
        yield kept
        return
    boxes: list[Tensor] = []

    def keep_boxes(_module: nn.Module, _given: object, found: Tensor) -> None:
        boxes.append(found)

    def keep_looks(stream: LocalStream, _given: object, looked: Looked) -> None:
        shape = boxes[-1].shape[:2]
        steps = stream.classifier(looked.hidden).unflatten(0, shape).mean(dim=1)
        kept.append(Looks(boxes[-1], looked.alpha.unflatten(0, shape), steps, looked.attention))

    handles = [
        network.boxes.register_forward_hook(in_this_thread(keep_boxes)),
        network.local_stream.register_forward_hook(in_this_thread(keep_looks)),
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
