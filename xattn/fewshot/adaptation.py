"""A classifier of new classes, from a few labelled pictures of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xattn.data.images import ImageSource
from xattn.data.labels import single_class
from xattn.data.preprocessing import pixels
from xattn.data.published import refuse_scored
from xattn.errors import ImageError, InputError, NameUnknownError
from xattn.fewshot.embedding import Embedding, with_linear
from xattn.fewshot.learner import fit_linear
from xattn.metrics.inputs import refuse_chunk
from xattn.models import Classifier, evaluating
from xattn.models.checkpoints import InnerLoop
from xattn.models.loading import refuse_no_classifier

logger = logging.getLogger("xattn")

BATCH = 32


def adapt(
    classifier: Classifier,
    images: Tensor | str | Path | Any,
    labels: Tensor | Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    *,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int = BATCH,
) -> Classifier:
    """A classifier of new classes, from a few labelled pictures of each: its last linear layer is fitted to them, all else stays.

    The layer is fitted by gradient descent on the mean cross-entropy of all pictures. It starts from the classifier's own weights where
    these were trained for that (`xattn train --task few-shot`) and are of as many classes, else from zeros, which is logged of a classifier
    that was trained so. The classifier itself does not change.

    Args:
        classifier: whose logits are the output of a linear layer on one vector per picture.
        images: `(n, C, H, W)` in pixel space, float in [0, 1]; or a folder with one subfolder per class, or whatever else `ImageSource`
            takes whose images have labels.
        labels: for a tensor, the class of each picture, `(n,)`, in 0 … K − 1.
        names: of the K classes; None: for a tensor they have none; else they are the labels, sorted.
        steps: of the gradient descent; None: as the classifier was trained for, else 50.
        lr: its learning rate; None: as the classifier was trained for, else 0.01.
        batch_size: pictures per forward.

    Returns:
        A classifier of K classes in eval mode.

    Raises:
        InputError: labels are missing or do not fit, a picture has several, a class has no picture, there are fewer than two classes, or
            the pictures are for scores.
        ImageError: a picture cannot be read.
        UnsupportedError: the classifier has no such layer, or is multi-label or of values.

    Source: Sun et al. 2019, Sec. 4.2; Gomez et al. 2021, Sec. 4.1.

    >>> import torch, xattn
    >>> clf = xattn.load("birds:br-npa", device="cpu")
    >>> xattn.adapt(clf, torch.rand(4, 3, 64, 64), [0, 0, 1, 1], ["one", "other"]).labels
    ('one', 'other')
    """
    refuse_no_classifier(classifier)
    refuse_chunk(batch_size, "batch_size")
    if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise InputError(f"names must be a list of class names; got {names!r:.80}.")
    if classifier.multi_label or classifier.regression:
        kind = "multi-label" if classifier.multi_label else "of values"
        raise InputError(f"{classifier.name} is {kind}, but new classes are one per picture: load it as a plain classifier.")
    embedding = Embedding(classifier)
    with torch.no_grad(), evaluating(classifier):
        if isinstance(images, Tensor):
            targets = _checked(images, labels)
            vectors = torch.cat([embedding(batch.to(classifier.device)) for batch in images.split(min(batch_size, max(1, len(images))))])
        else:
            if labels is not None:
                raise InputError("labels are only for a tensor of images; a folder's labels are the names of its subfolders.")
            vectors, targets, names = _of_source(embedding, images, names, batch_size)
    count = int(targets.max()) + 1 if names is None else len(names)
    _check_classes(targets, count, names)
    weight, bias, inner = start_of(embedding, count)
    inner = InnerLoop(inner.steps if steps is None else steps, inner.lr if lr is None else lr)
    linear = nn.Linear(vectors.shape[1], count).to(vectors)
    with torch.no_grad():
        found = fit_linear(vectors[None], targets.to(vectors.device)[None], weight, bias, steps=inner.steps, lr=inner.lr)
        if not bool(found[0].isfinite().all()):
            raise InputError(
                f"the layer fitted to the vectors of {classifier.name} is not finite: the vectors are not finite, or the learning "
                f"rate {inner.lr:g} is "
                "too high."
            )
        linear.weight.copy_(found[0][0])
        linear.bias.copy_(found[1][0])
    return with_linear(classifier, linear, names)


def start_of(embedding: Embedding, classes: int) -> tuple[Tensor, Tensor, InnerLoop]:
    """Weights `(K, D)` and biases `(K,)` that a fit to K new classes starts from, and its steps.

    They are the classifier's own where these were trained for that and are of as many classes, else zeros; where they were trained for
    another number of classes, this is logged.
    """
    classifier, linear = embedding.classifier, embedding.linear
    inner = classifier.inner or InnerLoop()
    if classifier.inner is None or classifier.class_count != classes:
        if classifier.inner is not None:
            logger.warning(
                "%s was trained by episodes of %d ways: for %d classes the layer starts from zeros, not from the weights that it learnt to "
                "start from.",
                classifier.name,
                classifier.class_count,
                classes,
            )
        return linear.weight.new_zeros(classes, linear.in_features), linear.weight.new_zeros(classes), inner
    return linear.weight, linear.weight.new_zeros(classes) if linear.bias is None else linear.bias, inner


def _checked(images: Tensor, labels: Tensor | Sequence[int] | None) -> Tensor:
    if labels is None:
        raise InputError("a tensor of images needs labels: one class index per image, counted from 0.")
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels are one class index per image, such as [0, 0, 1]; got {labels!r:.80}.") from error
    if found.shape != images.shape[:1] or found.dtype.is_floating_point or found.dtype == torch.bool or not found.numel():
        raise InputError(f"labels are one class index per image; got {tuple(found.shape)} {found.dtype} for images {tuple(images.shape)}.")
    return found.long()


def _of_source(embedding: Embedding, images: Any, names: Sequence[str] | None, batch_size: int) -> tuple[Tensor, Tensor, Sequence[str]]:
    """Vectors, class indices and class names of pictures that are read."""
    source = images if isinstance(images, ImageSource) else ImageSource(images)
    refuse_scored(source.origin)
    label_by_class(source)
    vectors, given = [], []
    for batch in source.batches(embedding.classifier.preprocessing, batch_size):
        if batch.failed:
            image, reason = batch.failed[0]
            raise ImageError(f"picture {image.name}: {reason}. Replace it with an intact file, or remove it.")
        vectors.append(embedding(pixels(batch.crops, embedding.classifier.device)))
        given += [single_class(image.name, image.label) for image in batch.images]
    names = sorted(set(given)) if names is None else names
    if unknown := [label for label in given if label not in names]:
        raise NameUnknownError("class", unknown[0], names)
    index = {name: number for number, name in enumerate(names)}
    return torch.cat(vectors), torch.tensor([index[label] for label in given]), names


def label_by_class(source: ImageSource) -> None:
    """Labels pictures without labels by the names of their folders.

    Raises:
        InputError: a picture has no class, or several.
    """
    if not source.labelled:
        source.label_by_folders()
    if source.dataset is None:  # the items of a data set have their labels where they are read
        for image in source.images:
            single_class(image.name, image.label)


def _check_classes(targets: Tensor, count: int, names: Sequence[str] | None) -> None:
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= count:
        raise InputError(f"labels are in 0 … {count - 1}, one for each name; got {low if low < 0 else high}.")
    if count < 2:
        raise InputError("at least two new classes are needed; the pictures have one.")
    if without := sorted(set(range(count)) - set(targets.tolist())):
        raise InputError(
            f"class {without[0] if names is None else repr(names[without[0]])} has no picture: give at least one of each class."
        )
