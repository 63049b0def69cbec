"""From what a user asks to explain to the target of each image: rules that use the unmasked output and the labels."""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from xattn.data.labels import Label
from xattn.errors import InputError, NameUnknownError, UnsupportedError
from xattn.metrics.probability import sigmoid_probability
from xattn.metrics.targets import CANCELLED, PER_LABEL, ClassTarget, Contrast, OutputFunction, Region, Target, written_contrast
from xattn.metrics.values import Values
from xattn.models.classifier import Classifier

THRESHOLD = 0.5
CANCELS = "is 0 for every output, since its classes cancel out: give different ones, such as 'predicted - second'."
RANKED = {"predicted": 0, "second": 1}
_OPERATOR = re.compile(r"\s+([+-])\s+")
_TERM = re.compile(r"(?:([+-])\s*)?(?:(\d+(?:\.\d+)?)\s*\*\s*)?(.+)", re.DOTALL)


@dataclass(frozen=True)
class TargetRule(ABC):
    """How the target of each image is chosen.

    Attributes:
        text: as in the rows: "predicted", "label", "given", `predicted - second`, …
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
        """What its targets are, in messages, if they have no probability; None if they have one."""
        return None

    def described(self) -> Any:
        """What `run.json` records of it."""
        return self.text

    def __len__(self) -> int:
        """Number of images that it is for; 1: any number."""
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


Asked = str | int | Sequence[int] | Tensor | Target | Callable[[Any], Tensor] | TargetRule
"""What a user may ask for: "predicted", "second", "label", "labels", a class index or name, a contrast of these (`A - 0.6*B`), an index per
image, a target of `xattn.metrics.targets`, a function of the output, or a rule."""


@dataclass(frozen=True)
class Terms(TargetRule):
    """Weighted classes, each an index, "predicted", "second" or "label". A single one of weight 1 is a class; all else is a contrast."""

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
    """Classes that the output for an image itself names; the batch holds an image once for each of them."""

    @property
    def per_label(self) -> bool:
        return True

    @abstractmethod
    def predicted(self, classifier: Classifier, row: Tensor) -> tuple[int, ...]:
        """The classes that are explained of an image.

        Args:
            classifier: the one that is explained.
            row: its output for the image, `(K,)` or `(K, h, w)`.

        Raises:
            InputError: there is none; the message says what is nearest to it.
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
    """A class over the pixels that a network of maps of logits predicts as it on the unmasked image, see `xattn.metrics.targets.Region`.

    The pixels of a class are those where its logit is the largest, of a multi-label network those where it is above 0.

    Attributes:
        index: of the class; None: the one with the most pixels, of equal ones the first.
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
    """Which pixels are predicted as which class, `(B, K, h, w)` bool, of maps of logits."""
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


def target_rule(classifier: Classifier, asked: Asked, threshold: float | None = None) -> TargetRule:
    """The rule for a classifier that a user's request means.

    Args:
        classifier: the one that is explained.
        asked: the request.
        threshold: "predicted" of a multi-label classifier is every label of this probability or more; None: the most probable label.

    Raises:
        NameUnknownError: there is no class of that name.
        InputError: an index outside the classes, or something that is not a target.
    """
    if isinstance(asked, TargetRule):
        return asked
    if isinstance(asked, Target):
        if isinstance(asked, Contrast) and bool(asked.cancels().all()):
            raise InputError(f"the contrast {asked.names()[0]} {CANCELS}")
        return Given(asked.rule, asked)
    if classifier.reader.dense and (isinstance(asked, str) or (isinstance(asked, SupportsIndex) and not isinstance(asked, (bool, Tensor)))):
        return _of_map(classifier, asked)
    if isinstance(asked, str):
        if asked == "predicted" and classifier.multi_label and threshold is not None:
            if not 0 <= threshold <= 1:
                raise InputError(f"the threshold of predicted labels is a probability in [0, 1]; got {threshold}.")
            return PredictedLabels(f"{PER_LABEL[1]}, p ≥ {threshold:g}", threshold)
        rule = _of_text(classifier, asked)
        if classifier.regression and (rule.needs_labels or "second" in rule.text.split()):
            raise InputError(f"target '{asked}' names a class, but {classifier.name} gives values: give 'predicted', or a value's index.")
        return rule
    if isinstance(asked, SupportsIndex) and not isinstance(asked, bool) and (not isinstance(asked, Tensor) or asked.dim() == 0):
        return Terms("given", ((1.0, classifier.class_index(int(asked))),))
    if isinstance(asked, (Tensor, Sequence)) and not isinstance(asked, (bytes, bytearray)):
        values = asked.tolist() if isinstance(asked, Tensor) else asked
        if isinstance(asked, Tensor) and (asked.dim() != 1 or asked.is_floating_point()):
            came = f"{tuple(asked.shape)} {str(asked.dtype).removeprefix('torch.')}"
            raise InputError(f"targets are one class index per image, whole numbers (B,); got {came}. For one-hot rows, give the argmax.")
        classes = torch.tensor([classifier.class_index(value) for value in values])
        if classifier.regression:
            return Given("given", Values(classes[:, None], torch.ones(1)))
        return Given("given", ClassTarget(classes, classifier.multi_label))
    if callable(asked):
        return Given("given", OutputFunction(asked))
    raise InputError(
        "a target is 'predicted', 'label', 'labels', a class index or name, a contrast as 'A - 0.6*B', a target of xattn.metrics.targets "
        f"or a function of the output; got {type(asked).__name__}."
    )


def _of_map(classifier: Classifier, asked: str | SupportsIndex) -> PredictedRegion:
    """The rule for a network of maps of logits.

    Raises:
        UnsupportedError: it is no single class, or the maps are values.
    """
    if classifier.regression:
        raise UnsupportedError(f"{classifier.name} gives maps of values, which have no classes: give a function of them, in Python.")
    if asked == "predicted":
        return PredictedRegion("predicted", None)
    is_name = not isinstance(asked, str) or asked in (classifier.labels or ())
    if not is_name and (asked in ("label", "labels", "second") or _OPERATOR.search(str(asked)) or "*" in str(asked)):
        raise UnsupportedError(
            f"{classifier.name} gives a map of logits, so a target is one class over the pixels predicted as it: 'predicted', an "
            f"index or a name; got '{asked}'. In Python, xattn.metrics.targets.Region takes any region."
        )
    return PredictedRegion("given", classifier.class_index(asked if isinstance(asked, str) else int(asked)))


def _of_text(classifier: Classifier, text: str) -> TargetRule:
    if not text.strip():
        raise InputError("the target is an empty text: give 'predicted', 'label', a class by index or name, or a contrast, as 'A - 0.6*B'.")
    if text == "labels":
        return EveryLabel("labels")
    if text in ("predicted", "label"):
        return Terms(text, ((1.0, text),))
    if text in (classifier.labels or ()):
        return Terms("given", ((1.0, classifier.class_index(text)),))
    pieces = _OPERATOR.split(text.strip())
    if len(pieces) == 1 and text not in RANKED and "*" not in text:
        return Terms("given", ((1.0, classifier.class_index(text)),))
    terms = [_term(classifier, piece, sign, text) for piece, sign in zip(pieces[::2], ["", *pieces[1::2]], strict=True)]
    if all(abs(sum(weight for weight, other in terms if other == term)) <= CANCELLED for _, term in terms):
        raise InputError(f"target '{text}' {CANCELS}")
    canonical = written_contrast([(weight, str(term)) for weight, term in terms])
    return Terms(canonical, tuple(terms))


def _term(classifier: Classifier, piece: str, sign: str, whole: str) -> tuple[float, int | str]:
    found = _TERM.fullmatch(piece.strip())
    if found is None:
        raise InputError(f"target '{whole}' has an empty term: write a contrast as 'A - 0.6*B', with spaces around the sign.")
    own, weight, name = found.groups()
    factor = (-1.0 if "-" in (sign, own or "") else 1.0) * float(weight or 1)
    name = name.strip()
    if name in (*RANKED, "label"):
        return factor, name
    try:
        return factor, classifier.class_index(name)
    except NameUnknownError as error:
        raise NameUnknownError("class", name, [*RANKED, "label", *(classifier.labels or ())], f"It is a term of '{whole}'.") from error


def labels_of(classifier: Classifier, label: Label) -> tuple[float, ...]:
    """What an image's label means to a classifier: class indices, or the value of a regression.

    Raises:
        NameUnknownError: there is no class of that name.
        InputError: an index outside the classes, or not one number for a regression.
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


def described(asked: Asked) -> Any:
    """What `run.json` records of a target: words as they are, tensors by their digest."""
    if isinstance(asked, (str, int)):
        return asked
    if isinstance(asked, TargetRule):
        return asked.described()
    if isinstance(asked, Target):
        about = {f.name: getattr(asked, f.name) for f in fields(asked)}
        return {"kind": type(asked).__name__} | {name: _plain(value) for name, value in about.items()}
    return _plain(asked)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous()
        return {"shape": list(value.shape), "digest": hashlib.sha256(content.numpy().tobytes()).hexdigest()[:16]}
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return list(value) if isinstance(value, (tuple, list)) else value
