"""What a training refuses before it begins, and the labels of its data as classes of the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from xattn.data.published import Target
from xattn.data.voc import IGNORED
from xattn.errors import InputError
from xattn.focus import TwoStreams
from xattn.heads import heads
from xattn.models import Classifier
from xattn.training.data import Labelled
from xattn.training.recipe import Recipe

DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


def in_classes_of(classifier: Classifier, data: Labelled) -> Labelled:
    """Data relabelled with the classifier's class indices, if the classifier has classes of the same names.

    Raises:
        InputError: the head keeps the network's classifier, which knows none of these names.
    """
    known = classifier.labels
    if data.names is None and data.several:
        return _mentioned_alone(data, classifier.class_count)
    if data.names is None or known is None:
        return data
    if set(data.names) <= set(known):
        return data.renumbered([classifier.class_index(name) for name in data.names], len(known))
    unknown = next(name for name in data.names if name not in known)
    if heads.create(classifier.head_name).metadata.replaces != "classifier":
        raise InputError(
            f"{classifier.head_name} keeps the classifier of {classifier.name}, which knows no class '{unknown}' of {data.name}. "
            f"Name the folders after its classes ({', '.join(known[:3])}, …), give --classes wnid for ImageNet's WordNet ids, or use "
            "br-npa or b-cnn."
        )
    return data  # the data has its own classes


def _mentioned_alone(data: Labelled, count: int) -> Labelled:
    """Data of label vectors by index, in which classes that no picture has are ignored, as are names that data do not have."""

    def vectors(part: Labelled) -> list[tuple[int, ...]]:
        return list(part.targets)  # type: ignore[arg-type]  # the caller asks for vectors

    mentioned = {k for vector in vectors(data) for k, entry in enumerate(vector) if entry == 1}

    def marked(part: Labelled) -> Labelled:
        width = max(count, len(vectors(part)[0]))  # `check` refuses one that is wider than the network
        moved = (vector + (IGNORED,) * (width - len(vector)) for vector in vectors(part))
        return replace(part, targets=tuple(tuple(e if k in mentioned else IGNORED for k, e in enumerate(vector)) for vector in moved))

    return replace(marked(data), validation=None if data.validation is None else marked(data.validation))


def check(classifier: Classifier, data: Labelled, teacher: Classifier | None, recipe: Recipe, precision: Any) -> None:
    """Checks that a training can begin.

    Raises:
        InputError: labels outside the classes, a teacher with other classes, nothing to train, or settings that are not for the classifier.
    """
    if classifier.head.gives_vectors:
        raise InputError(f"{classifier.name} · {classifier.head_name} gives vectors: load it without output='vectors' to train it.")
    if data.names is not None and len(data.names) != classifier.class_count:
        raise InputError(
            f"{data.name} has {len(data.names)} classes, {classifier.name} · {classifier.head_name} {classifier.class_count}: load it with "
            f"classes={len(data.names)} (br-npa and b-cnn have a classifier of their own), or give labels among the network's classes "
            "(--classes wnid for folders called by ImageNet's WordNet ids)."
        )
    for part in (data, data.validation):
        for number, target in enumerate(part.targets if part is not None else ()):
            fits = len(target) == classifier.class_count if isinstance(target, tuple) else 0 <= target < classifier.class_count
            if part is not None and not fits:
                raise InputError(
                    f"{data.name}: {part.pictures.called(number)} has label {_shown(target)}, outside the {classifier.class_count} classes "
                    f"of {classifier.name} · {classifier.head_name}. Load it with the number of classes of the data, or relabel."
                )
    if teacher is not None and teacher.class_count != classifier.class_count:
        raise InputError(
            f"the teacher has {teacher.class_count} classes, {classifier.name} {classifier.class_count}: they must be the same."
        )
    if isinstance(classifier.network, TwoStreams):
        if teacher is not None or not recipe.backbone:
            given = "from a teacher" if teacher is not None else "without its backbones"
            raise InputError(f"{classifier.name} has two streams and cannot be trained {given}: use preset focus, without a teacher.")
    elif recipe.local_lr is not None:
        raise InputError(f"{classifier.name} has no local stream: leave local_lr out of the recipe; it is for focus:BACKBONE.")
    if not recipe.backbone and not any(True for _ in classifier.head.parameters()):
        raise InputError(f"{classifier.head_name} has no weights of its own: train the network too (preset full), or use ca-stream.")
    if recipe.dropout is not None and not classifier.head.dropouts():
        raise InputError(f"{classifier.head_name} has no dropout to set: leave it out of the recipe.")
    if recipe.patience is not None and classifier.head.push_every:
        raise InputError(
            f"{classifier.head_name} keeps only epochs after which its weights were set from the training pictures, including the "
            f"last: leave out patience."
        )
    check_precision(classifier, precision)


def check_precision(classifier: Classifier, precision: Any) -> None:
    """Refuses a precision that would turn the weights into another type.

    Raises:
        InputError: it would.
    """
    wanted = DTYPES.get(str(precision))
    if wanted is not None and wanted != classifier.mean.dtype:
        raise InputError(
            f"precision '{precision}' would convert the weights of {classifier.name} from {classifier.mean.dtype} into {wanted}, "
            f"including frozen ones: convert the classifier first, or use 32-true, 16-mixed or bf16-mixed."
        )


def _shown(target: Target) -> str:
    return str(target) if isinstance(target, int) else f"a vector of {len(target)} entries"
