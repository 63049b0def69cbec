"""Converts a requested target to the rule that chooses the targets, and describes it for `run.json`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from xattn.errors import InputError, NameUnknownError, UnsupportedError
from xattn.metrics.target_base import PER_LABEL, Target
from xattn.metrics.targets import CANCELLED, ClassTarget, Contrast, OutputFunction, written_contrast
from xattn.metrics.values import Values
from xattn.models.classifier import Classifier
from xattn.models.target_rules import EveryLabel, Given, PredictedLabels, PredictedRegion, TargetRule, Terms

THRESHOLD = 0.5  # the lowest probability of a predicted label, if no threshold is given
CANCELS = "is 0 for every output, since its classes cancel out: give different ones, such as 'predicted - second'."
RANKED = ("predicted", "second")
_OPERATOR = re.compile(r"\s+([+-])\s+")
_TERM = re.compile(r"(?:([+-])\s*)?(?:(\d+(?:\.\d+)?)\s*\*\s*)?(.+)", re.DOTALL)

Asked = str | int | Sequence[int] | Tensor | Target | Callable[[Any], Tensor] | TargetRule
"""Targets that a user may request: "predicted", "second", "label", "labels", a class index or name, a contrast of these (`A - 0.6*B`), an
index per image, a target of `xattn.metrics.targets`, a function of the output, or a rule."""


def target_rule(classifier: Classifier, asked: Asked, threshold: float | None = None) -> TargetRule:
    """The rule that chooses the targets of a classifier, for a requested target.

    Args:
        classifier: the classifier to explain.
        asked: the requested target.
        threshold: for "predicted" of a multi-label classifier, every label with at least this probability; None: the most probable label.

    Raises:
        NameUnknownError: there is no class of that name.
        InputError: an index is outside the classes, or the value is not a target.
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
    """The rule for a network whose output is maps of logits.

    Raises:
        UnsupportedError: the target is not a single class, or the maps are values without a probability.
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


def described(asked: Asked) -> Any:
    """The description of a target in `run.json`: words unchanged, tensors by their digest."""
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
