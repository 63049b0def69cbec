"""Rules that choose the target of each image, from the output for the unmasked image and the labels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xattn.data.labels import Label
from xattn.errors import InputError, UnsupportedError
from xattn.metrics.probability import sigmoid_probability
from xattn.metrics.target_base import Target
from xattn.metrics.targets import ClassTarget, Contrast, Region
from xattn.metrics.values import Values
from xattn.models.classifier import Classifier


@dataclass(frozen=True)
class TargetRule(ABC):
    """A rule that chooses the target of each image.

    Attributes:
        text: its name in the rows: "predicted", "label", "given", `predicted - second`, …
    """

    text: str

    @property
    def needs_labels(self) -> bool:
        """Whether every image must have a label."""
        return False

    @property
    def per_label(self) -> bool:
        """Whether an image has a target for each of its labels."""
        return False

    @property
    def fixed(self) -> Target | None:
        """The target, if it does not depend on the output."""
        return None

    @property
    def without_probability(self) -> str | None:
        """The name of its targets in messages, if they have no probability; None if they have one."""
        return None

    def described(self) -> Any:
        """Its description in `run.json`."""
        return self.text

    def __len__(self) -> int:
        """Number of images that the rule is for; 1: any number."""
        return 1

    def part(self, part: slice) -> TargetRule:
        """The rule for some of the images."""
        return self

    @abstractmethod
    def bind(self, classifier: Classifier, output: Tensor, labels: Sequence[int | None]) -> Target:
        """The targets of a batch.

        Args:
            classifier: the one that is explained.
            output: of the unmasked images.
            labels: class index of each image, or None.
        """


@dataclass(frozen=True)
class Terms(TargetRule):
    """Weighted classes, each an index, "predicted", "second" or "label". A single class of weight 1 is a class target; all else is a
    contrast."""

    terms: tuple[tuple[float, int | str], ...]

    @property
    def needs_labels(self) -> bool:
        return any(term == "label" for _, term in self.terms)

    def bind(self, classifier: Classifier, output: Tensor, labels: Sequence[int | None]) -> Target:
        if classifier.regression and output.shape[1] > 1 and any(isinstance(term, str) for _, term in self.terms):
            raise InputError(
                f"target '{self.text}' is a class, and {classifier.name} gives {output.shape[1]} values: give one, by its index."
            )
        columns = [self._column(term, output, labels) for _, term in self.terms]
        weights = torch.tensor([weight for weight, _ in self.terms], device=output.device)
        if classifier.regression:
            return Values(torch.stack(columns, dim=1), weights, rule=self.text)
        if [weight for weight, _ in self.terms] == [1.0]:
            return ClassTarget(columns[0], classifier.multi_label, rule=self.text)
        return Contrast(torch.stack(columns, dim=1), weights, classifier.multi_label, rule=self.text)

    def _column(self, term: int | str, output: Tensor, labels: Sequence[int | None]) -> Tensor:
        if output.dim() != 2:
            raise UnsupportedError(
                f"target '{self.text}' is a class of each image; the network gives {tuple(output.shape)}. For a map of logits, give "
                "'predicted' or one class, over the pixels predicted as it; or a region, in Python xattn.metrics.targets.Region."
            )
        if term == "label":
            if len(labels) != len(output) or any(label is None for label in labels):
                raise InputError(f"target '{self.text}' needs labels: pass one for every image, or a source that has them.")
            return torch.tensor(list(labels), device=output.device)
        if term == "predicted":
            return output.detach().argmax(dim=1)
        if term == "second":
            if output.shape[1] < 2:
                raise UnsupportedError(f"target '{self.text}' needs two classes; the network gives one.")
            first = output.detach().argmax(dim=1, keepdim=True)
            return output.detach().scatter(1, first, -torch.inf).argmax(dim=1)
        return torch.full((len(output),), int(term), device=output.device)


@dataclass(frozen=True)
class EveryLabel(TargetRule):
    """Each label of an image; the batch holds an image once per label."""

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def per_label(self) -> bool:
        return True

    def bind(self, classifier: Classifier, output: Tensor, labels: Sequence[int | None]) -> Target:
        return Terms(self.text, ((1.0, "label"),)).bind(classifier, output, labels)


@dataclass(frozen=True)
class OfOutput(TargetRule):
    """Classes that are chosen from the output for an image; the batch holds an image once for each of them."""

    @property
    def per_label(self) -> bool:
        return True

    @abstractmethod
    def predicted(self, classifier: Classifier, row: Tensor) -> tuple[int, ...]:
        """The classes to explain for an image.

        Args:
            classifier: the one that is explained.
            row: its output for the image, `(K,)` or `(K, h, w)`.

        Raises:
            InputError: there is none; the message names the nearest one.
        """


@dataclass(frozen=True)
class PredictedLabels(OfOutput):
    """Each label that a multi-label classifier predicts.

    Attributes:
        threshold: the lowest probability of a label that counts as predicted.
    """

    threshold: float

    def predicted(self, classifier: Classifier, row: Tensor) -> tuple[int, ...]:
        found = sigmoid_probability(row).p
        if not bool((found >= self.threshold).any()):
            raise InputError(
                f"none has a probability of {self.threshold:g} or more; the highest is {float(found.max()):.2g}, of "
                f"'{classifier.label(int(found.argmax()))}'. For a lower threshold: --threshold, in Python threshold."
            )
        return tuple((found >= self.threshold).nonzero()[:, 0].tolist())

    def bind(self, classifier: Classifier, output: Tensor, labels: Sequence[int | None]) -> Target:
        return Terms(self.text, ((1.0, "label"),)).bind(classifier, output, labels)


@dataclass(frozen=True)
class PredictedRegion(OfOutput):
    """A class over the pixels that a segmentation network predicts as this class on the unmasked image, see `xattn.metrics.targets.Region`.

    The pixels of a class are those where its logit is the largest; for a multi-label network, those where it is above 0.

    Attributes:
        index: of the class; None: the class with the most pixels, the first of equal ones.
    """

    index: int | None

    def predicted(self, classifier: Classifier, row: Tensor) -> tuple[int, ...]:
        counts = _pixels_of_classes(row[None], classifier.multi_label)[0].sum(dim=(1, 2))
        most = int(counts.argmax())
        index = most if self.index is None else self.index
        if counts[index] == 0:
            others = f"most are '{classifier.label(most)}'" if counts[most] else "none is predicted as any class"
            raise InputError(
                f"no pixel is predicted as '{classifier.label(index)}', so there is no region to explain it over; {others}. "
                "Give a region, in Python xattn.metrics.targets.Region, or another class."
            )
        return (index,)

    def bind(self, classifier: Classifier, output: Tensor, labels: Sequence[int | None]) -> Target:
        if any(label is None for label in labels) or len(labels) != len(output):
            labels = [self.predicted(classifier, row)[0] for row in output.detach()]
        classes = torch.tensor(list(labels), device=output.device)
        every = torch.arange(len(output), device=output.device)
        own = _pixels_of_classes(output.detach(), classifier.multi_label)[every, classes]
        lost = ~own.flatten(1).any(dim=1)  # a class of few pixels, chosen in other arithmetic than this output's
        highest = output.detach()[every, classes].flatten(1).argmax(dim=1)
        own.flatten(1)[every[lost], highest[lost]] = True
        return Region(classes, own, classifier.multi_label, rule=self.text)


def _pixels_of_classes(output: Tensor, multi_label: bool) -> Tensor:
    """The pixels that maps of logits predict as each class, `(B, K, h, w)` bool."""
    if multi_label:
        return output > 0
    return torch.zeros_like(output, dtype=torch.bool).scatter_(1, output.argmax(dim=1, keepdim=True), True)


@dataclass(frozen=True)
class Given(TargetRule):
    """A ready-made target, one for all images or one for each."""

    target: Target

    @property
    def fixed(self) -> Target:
        return self.target

    @property
    def without_probability(self) -> str | None:
        return None if self.target.has_probability else self.target.kind

    def __len__(self) -> int:
        return len(self.target)

    def part(self, part: slice) -> TargetRule:
        return self if len(self) == 1 else replace(self, target=self.target[part])

    def bind(self, classifier: Classifier, output: Tensor, labels: Sequence[int | None]) -> Target:
        return self.target.expanded(len(output))


def labels_of(classifier: Classifier, label: Label) -> tuple[float, ...]:
    """Converts an image's label to class indices of a classifier, or to the value of a regression.

    Raises:
        NameUnknownError: there is no class of that name.
        InputError: an index is outside the classes, or the label is not one number for a regression.
    """
    if not classifier.regression:
        if isinstance(label, float):
            raise InputError(
                f"label {label:g} is not a class index. If {classifier.name} gives values, set regression=True (--regression)."
            )
        return classifier.class_indices(label)
    try:
        value = float(label) if isinstance(label, (int, float, str)) else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"label {label!r} is not a number, but {classifier.name} gives values: give one finite number per image.")
    return (value,)
