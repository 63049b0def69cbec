"""What a training refuses before it begins, and the labels of its data as classes of the network."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

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
        keeps = f"{classifier.head_name} keeps the classifier of {classifier.name}, which knows no class '{unknown}' of {data.name}."
        if data.label_maps is not None:
            raise InputError(f"{keeps} {_of_classes(data)}")
        raise InputError(
            f"{keeps} "
            f"Name the folders after its classes ({', '.join(known[:3])}, …), give --classes wnid for ImageNet's WordNet ids, or use "
            "br-npa or b-cnn."
        )
    return data  # the data has its own classes


def _of_classes(data: Labelled) -> str:
    """What to do about a network of other classes than label maps have."""
    count = len(data.names or ())
    return f"Load a network of these {count} classes: with classes={count} one of ocr: or torchvision gets a new classifier."


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


def refuse_unused(recipe: Recipe, *, taught: bool, by_episodes: bool = False) -> None:
    """Refuses settings that were given and that no training with this recipe uses, whatever the network.

    Args:
        recipe: says which of its settings were given.
        taught: whether a teacher's answers are learnt.
        by_episodes: whether it is a training by episodes.

    Raises:
        InputError: one of them is not used; says what it needs.
    """
    schedule = recipe.schedule
    by_batches = (not by_episodes, "a training by batches, and this is one by episodes")
    of_network = by_batches if by_episodes else (recipe.backbone, "a network that is trained too (preset full)")
    given = recipe.given | ({"base_lr"} if recipe.base_lr is not None else set())  # preset few-shot has it
    _refuse_unused(
        given,
        {
            "momentum": (recipe.optimiser == "sgd", f"the optimiser sgd, and it is {recipe.optimiser}"),
            "nesterov": (recipe.optimiser == "sgd", f"the optimiser sgd, and it is {recipe.optimiser}"),
            "step": (schedule == "step", f"the schedule step, and it is {schedule}"),
            "factor": (schedule == "step", f"the schedule step, and it is {schedule}"),
            "power": (schedule == "poly", f"the schedule poly, and it is {schedule}"),
            "period": (schedule == "cosine", f"the schedule cosine, and it is {schedule}"),
            "alpha": (taught, "a teacher (--teacher)"),
            "temperature": (taught and recipe.alpha < 1, "a teacher whose answers count (--teacher, alpha below 1)"),
            "episodes": (by_episodes, "task few-shot"),
            "base_lr": (by_episodes, "task few-shot"),
            "batch_size": by_batches,
            "validation": by_batches,
            "dropout": by_batches,
            "local_lr": by_batches,
            "ranking": by_batches,
            "margin": by_batches,
            "head_lr": of_network,
            "freeze_statistics": of_network,
        },
    )


def _refuse_unused(given: Set[str], used: Mapping[str, tuple[bool, str]]) -> None:
    """Refuses the first setting that was given and is not used, with what it needs."""
    for name, (is_used, needs) in used.items():
        if name in given and not is_used:
            raise InputError(f"{name} (--{name.replace('_', '-')}) needs {needs}: leave it out.")


def _refuse_unused_of(classifier: Classifier, data: Labelled, recipe: Recipe) -> None:
    """Refuses settings that were given and that this classifier, or these data, do not use."""
    network, head = classifier.network, classifier.head
    streams = isinstance(network, TwoStreams)
    of_streams = f"a two-stream network (focus:BACKBONE), and {classifier.name} is none"
    normalised = any(isinstance(layer, _BatchNorm) for layer in network.modules())
    _refuse_unused(
        recipe.given,
        {
            "ranking": (streams, of_streams),
            "margin": (streams and recipe.ranking > 0, "a ranking loss (ranking above 0)" if streams else of_streams),
            "head_lr": (any(True for _ in head.parameters()), f"a head with weights of its own, and {classifier.head_name} has none"),
            "freeze_statistics": (normalised, f"a network with BatchNorm, and {classifier.name} has none"),
            "validation": (data.validation is None, f"data without a validation split, and {data.name} has one"),
        },
    )


def check(classifier: Classifier, data: Labelled, teacher: Classifier | None, recipe: Recipe, precision: Any) -> None:
    """Checks that a training can begin.

    Raises:
        InputError: labels outside the classes, a teacher with other classes, nothing to train, or settings that are not for the classifier
            or were given and are not used.
    """
    if classifier.head.gives_vectors:
        raise InputError(f"{classifier.name} · {classifier.head_name} gives vectors: load it without output='vectors' to train it.")
    if data.names is not None and len(data.names) != classifier.class_count:
        if data.label_maps is not None:
            counts = f"{data.name} has {len(data.names)} classes, {classifier.name} {classifier.class_count}."
            raise InputError(f"{counts} {_of_classes(data)}")
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
    refuse_unused(recipe, taught=teacher is not None)
    _refuse_unused_of(classifier, data, recipe)
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
