"""Training of a two-stream network: its loss, its learning rates, and the boxes of its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from xattn.errors import InputError
from xattn.focus import Streams, TwoStreams
from xattn.models import Classifier
from xattn.patches.file import SIDE, read_patches
from xattn.training.data import Crops, Labelled
from xattn.training.recipe import Recipe


class Boxed(NamedTuple):
    """Pictures with boxes.

    Attributes:
        crops: uint8 `(B, 3, H, W)`.
        boxes: `(B, n, 4)`, x1, y1, x2, y2 in pixels of the crops.
    """

    crops: Tensor
    boxes: Tensor


class BoxedCrops(Dataset[tuple[Boxed, Tensor]]):
    """Crops without augmentation, each with the boxes that a file has of it."""

    def __init__(self, crops: Crops, boxes: Tensor) -> None:
        self.crops = crops
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Boxed, Tensor]:
        crop, target = self.crops[key]
        return Boxed(crop, self.boxes[key[1] if isinstance(key, tuple) else key]), target


def training_boxes(path: str | Path, data: Labelled, classifier: Classifier, recipe: Recipe) -> Tensor:
    """The boxes `(N, n, 4)` of training pictures in a file of patches, in pixels of the classifier's crops.

    Args:
        path: a `.npy`, see `xattn.patches.file.read_patches`.
        data: the training pictures, in the file's order.
        classifier: which network they are for.
        recipe: of the training.

    Raises:
        InputError: it is no two-stream network; crops that are not the whole picture, or augmented; a file of other pictures.
    """
    if not isinstance(classifier.network, TwoStreams):
        raise InputError(f"{classifier.name} takes whole pictures: patches are for a two-stream network, focus:BACKBONE.")
    size, resize = classifier.input_size, classifier.preprocessing.resize
    if recipe.smallest_crop is not None or recipe.padding is not None:
        raise InputError("the boxes of patches are for whole pictures: train without random crops (preset focus).")
    if resize != size:
        raise InputError(
            f"the boxes of patches are for whole pictures, but {classifier.name} crops them (resize {resize}, crop {size}): load it "
            f"without a resize (--resize), or in Python with resize={size}."
        )
    boxes, classes = read_patches(path, len(data))
    other = (classes != torch.tensor(data.targets)[:, None]) & (classes >= 0)
    if bool(other.any()):
        number = int(other.any(dim=1).nonzero()[0])
        raise InputError(
            f"'{path}' has class {int(classes[number][other[number]][0])} for {data.pictures.called(number)}, which has label "
            f"{data.targets[number]}: it belongs to other pictures, or has another order than class folder and file name."
        )
    height, width = size
    return boxes * torch.tensor((width, height, width, height)) / SIDE


def loss_of_streams(classifier: Classifier, given: Tensor, boxes: Tensor | None, labels: Tensor, recipe: Recipe) -> Tensor:
    """The loss of a two-stream network in training mode, on one patch of each picture.

    Args:
        classifier: with such a network.
        given: pictures `(B, 3, H, W)` in pixel space.
        boxes: `(B, n, 4)`, from which one is drawn for each picture; None: those that the network finds.
        labels: `(B,)` class indices.
        recipe: of the training.
    """
    network = classifier.network
    assert isinstance(network, TwoStreams)
    found = network.streams(classifier.normalise(given), boxes)
    return two_stream_loss(network, found, labels, ranking=recipe.ranking, margin=recipe.margin)


def two_stream_loss(network: TwoStreams, found: Streams, labels: Tensor, *, ranking: float, margin: float) -> Tensor:
    """CE(g, y) + λ'·CE(l, y) + λ·mean max(0, p_y^g − p_y^l + margin), with g and l the logits of the two streams and p their softmax.

    With local=lstm, CE(l, y) is the mean of those of all steps, each classified.

    Args:
        network: which gave them; λ' is its setting `weight`.
        found: of one patch per picture.
        labels: `(B,)` class indices.
        ranking: λ.
        margin: of the ranking.

    Returns:
        A scalar, ≥ 0.

    Source: Shroff 2020, Eqs. 3.8 to 3.11. As printed, the ranking wants the local stream to be surer than the global one by the margin.
    The released code has no ranking: ranking=0.
    """
    local = found.looked.logits
    if network.settings.local == "lstm":
        steps = network.local_stream.classifier(found.looked.hidden)
        of_local = functional.cross_entropy(steps.flatten(0, 1), labels.repeat_interleave(steps.shape[1]))
    else:
        of_local = functional.cross_entropy(local, labels)
    loss = functional.cross_entropy(found.logits, labels) + network.settings.weight * of_local
    if ranking:
        whole, part = (logits.softmax(dim=1).gather(1, labels[:, None]) for logits in (found.logits, local))
        loss = loss + ranking * (whole - part + margin).relu().mean()
    return loss


def parameter_groups(classifier: Classifier, recipe: Recipe, trained: list[nn.Parameter]) -> list[dict[str, object]]:
    """What the optimiser trains: one group, or two where the local stream or the head has a learning rate of its own."""
    if isinstance(classifier.network, TwoStreams):
        rate, part = recipe.local_lr, set(classifier.network.local_stream.parameters())
    else:
        rate, part = recipe.head_lr, set(classifier.head.parameters())
    if rate is None:
        return [{"params": trained}]
    groups: list[dict[str, object]] = [
        {"params": [parameter for parameter in trained if parameter not in part]},
        {"params": [parameter for parameter in trained if parameter in part], "lr": rate},
    ]
    return [group for group in groups if group["params"]]
