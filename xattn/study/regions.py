"""Object regions of a batch: where the objects of each image's target are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.data.annotations import Annotations
from xattn.data.preprocessing import Frame
from xattn.errors import ImageError, InputError, NameUnknownError
from xattn.explainers.maps import Maps
from xattn.metrics.targets import ClassTarget
from xattn.metrics.targets import Region as OfRegion
from xattn.models.classifier import Classifier
from xattn.models.target_rules import labels_of
from xattn.study.schema import NO_REGION

logger = logging.getLogger("xattn")
NOT_ANNOTATED = f"{NO_REGION}the picture has no annotated object"
ABSENT = f"{NO_REGION}the crop shows no object of the target"
NO_CLASS = f"{NO_REGION}the regions are of classes, and the target is none"


@dataclass(frozen=True)
class Regions:
    """Regions of the objects of a batch's targets.

    Attributes:
        masks: `(B, N, H, W)` bool; padded with empty masks.
        reasons: why an image has no region; None if it has one.
    """

    masks: Tensor
    reasons: tuple[str | None, ...]

    def part(self, part: slice) -> Regions:
        """Returns the regions of a slice of the images."""
        return Regions(self.masks[part], self.reasons[part])


def class_of_label(annotations: Annotations, classifier: Classifier) -> dict[str, int]:
    """Returns the class index of each annotation label that is a class of the classifier.

    Raises:
        InputError: there are labels, and none is a class of the classifier.
    """
    found: dict[str, int] = {}
    for label in sorted(annotations.labels) if not classifier.regression else ():
        try:
            indices = labels_of(classifier, label)
        except (InputError, NameUnknownError):
            continue
        if len(indices) == 1:
            found[label] = int(indices[0])
    if annotations.labels and not found and not classifier.regression:
        raise InputError(
            f"the classes of the regions in {annotations.origin} ({', '.join(sorted(annotations.labels)[:3])}, …) are none of "
            f"{classifier.name}: give names, indices or WordNet ids of its classes, or regions without classes."
        )
    return found


def check_labels(annotations: Annotations, classifier: Classifier) -> None:
    """Logs the annotation labels that are not classes of the classifier: their regions are left out.

    Raises:
        InputError: there are labels, and none is a class of the classifier.
    """
    found = class_of_label(annotations, classifier)
    if others := sorted(annotations.labels - found.keys()) if found else []:
        logger.warning(
            "%s: %d of %d labels of the regions in %s name no class of it, and their regions are left out: %s",
            *(classifier.name, len(others), len(annotations.labels), annotations.origin),
            f"{', '.join(others[:5])}{', …' if len(others) > 5 else ''}",
        )


def regions_of(annotations: Annotations, classes: Mapping[str, int], maps: Maps, frames: Sequence[Frame]) -> Regions:
    """Returns the regions of objects that have the class of each image's target, and of objects without a class.

    Args:
        annotations: annotations of the pictures.
        classes: class index of each label, from `class_of_label`.
        maps: maps of the batch, with its targets.
        frames: the position of each crop in its picture.
    """
    size = (maps.images.shape[2], maps.images.shape[3])
    target = maps.target
    targets: list[int | None] = target.classes.tolist() if isinstance(target, (ClassTarget, OfRegion)) else [None] * len(maps.names)
    found: list[Tensor] = []
    reasons: list[str | None] = []
    for name, frame, index in zip(maps.names, frames, targets, strict=True):

        def wanted(label: str | None, index: int | None = index) -> bool:
            return label is None or (index is not None and classes.get(label) == index)

        try:
            seen = annotations.seen(name, frame, size, wanted)
            reason = None if len(seen) else _why_none(annotations, name, index)
        except ImageError as error:
            seen, reason = torch.zeros((0, *size), dtype=torch.bool), f"{NO_REGION}{error}"
        found.append(seen)
        reasons.append(reason)
    masks = torch.zeros((len(found), max(1, *map(len, found)), *size), dtype=torch.bool)
    for place, seen in enumerate(found):
        masks[place, : len(seen)] = seen
    return Regions(masks.to(maps.images.device), tuple(reasons))


def _why_none(annotations: Annotations, name: str, target: int | None) -> str:
    """Returns why a picture has no region of a target."""
    if target is None and annotations.labels:
        return NO_CLASS
    return ABSENT if annotations.objects.get(name) else NOT_ANNOTATED
