"""`explain`: saliency maps of images by several methods at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Sized
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xattn.data.images import ImageSource
from xattn.data.labels import as_plain
from xattn.data.photographs import Photographs
from xattn.data.preprocessing import pixels
from xattn.errors import ImageError, InputError, UnsupportedError
from xattn.explainers.base import MethodComponent, RunsNetworkAgain, created
from xattn.explainers.maps import Maps, joined, maps_of_trace, needs_of
from xattn.explainers.reasons import log_doubts, log_reasons
from xattn.explainers.trace import Trace
from xattn.inference.memory import kept_pages
from xattn.inference.predictor import Predictor
from xattn.inference.tuning import fastest
from xattn.metrics.inputs import EDGE, as_tensor, refuse_chunk
from xattn.metrics.targets import ClassTarget
from xattn.models.asked_targets import THRESHOLD, Asked, target_rule
from xattn.models.classifier import Classifier
from xattn.models.layout import Stage
from xattn.models.loading import refuse_no_classifier
from xattn.models.target_rules import OfOutput, PredictedLabels, labels_of
from xattn.progress import Progress
from xattn.text import counted

QUIET_S = 2.0  # before a call shows its progress
FEW = 200  # forwards: too little work for a benchmark to pay off, on any network

logger = logging.getLogger("xattn")

Images = Tensor | str | Path | Sequence[str | Path] | Dataset[Any] | ImageSource


def explain(
    classifier: Classifier,
    images: Images,
    methods: Sequence[str] = ("grad-cam",),
    *,
    target: Asked = "predicted",
    threshold: float | None = None,
    labels: Tensor | Sequence[Any] | None = None,
    stage: str | None = None,
    batch_size: int = 8,
    predictor: Predictor | None = None,
    seed: int = 0,
    signed: bool = False,
    untrained: bool = False,
    progress: bool = True,
) -> Maps:
    """Computes saliency maps of images by several methods at once.

    Args:
        classifier: from `xattn.load` or `xattn.attach`.
        images: `(B, C, H, W)` in pixel space (float in [0, 1], not normalised), or files: a folder, a glob, a path, a list of paths;
            or a torch data set of pictures, or of pairs of picture and label.
        methods: names with settings, `name[:key=value,…]`.
        target: "predicted", "label", a class index or name; "labels", every label of an image, with one map per label; a contrast,
            `A - 0.6*B`, `predicted - second`, `label - predicted`; an index per image; a target of `xattn.metrics.targets`; or a function
            of the output that gives a score per image. "predicted" of a multi-label classifier is every label that it predicts, with one
            map per label; an image without any is logged and left out.
        threshold: the lowest probability of a label that a multi-label classifier predicts; None: 0.5.
        labels: of the images, for targets that use them: an index or name per image, or several per image for target "labels".
        stage: where features are taken, one of `classifier.stages` or any module whose output is a map; None: the last of
            `classifier.stages`.
        batch_size: images per forward.
        predictor: for methods that run the network again, from `xattn.inference.fastest`; None: one of level exact, benchmarked first if
            the work is large enough, as a run does with `tune="auto"`.
        seed: of everything random; combined with each image's content.
        signed: keep evidence against the target, as negative values of the raw maps; masks are made of the positive part. Controls do not
            change.
        untrained: also explain a head that was never trained.
        progress: after two seconds, a bar where stderr is a terminal; elsewhere log lines.

    Raises:
        NameUnknownError: there is no such method, setting, stage or class.
        InputError: `classifier` is not a classifier, or the images or labels cannot be used.
        ImageError: a file cannot be read.
        SettingError: the maps of a method cannot be signed.
        UnsupportedError: a method cannot run on this classifier, its head was never trained, or a method uses features and the network has
            no default stage.

    >>> import torch, xattn
    >>> clf = xattn.load("birds:gap", device="cpu")
    >>> xattn.explain(clf, torch.rand(2, 3, 64, 64), ["grad-cam", "random"])["grad-cam"].shape
    torch.Size([2, 64, 64])
    """
    refuse_no_classifier(classifier)
    refuse_chunk(batch_size, "batch_size")
    components = created(methods, signed=signed)
    if not untrained:
        refuse_untrained(classifier)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"a seed is a whole number; got {type(seed).__name__}.")
    names, tensor, found_labels, photographs = _images(classifier, images)
    rule = target_rule(classifier, target, THRESHOLD if threshold is None else threshold)
    if threshold is not None and not isinstance(rule, PredictedLabels):
        raise InputError("a threshold is for target 'predicted' of a multi-label classifier (multi_label=True): leave it out.")
    given = _labels(classifier, found_labels if labels is None else labels, len(names))
    if isinstance(rule, OfOutput):
        given = _predicted(classifier, rule, predictor or Predictor(classifier), names, tensor, batch_size)
    if rule.per_label:
        names, tensor, given = _per_label(names, tensor, given)
    batch_labels = [label[0] if label is not None and len(label) == 1 else None for label in given]
    if len(rule) not in (1, len(names)):
        what = "class" if isinstance(rule.fixed, ClassTarget) else "target"
        raise InputError(f"{counted(len(names), 'image needs', 'images need')} {counted(len(names), what)}; got {len(rule)}.")
    found_stage = classifier.stage_or_default(stage)
    runs = predictor or _predictor(classifier, tensor, components, found_stage)
    again = len(names) > batch_size or any(isinstance(component.instance, RunsNetworkAgain) for component in components)
    needs = needs_of(components)
    pieces = []
    logged: set[tuple[str, str]] = set()
    # A single pass reuses no memory pages, and would leave none to the next call.
    with kept_pages() if again else nullcontext(), Progress(len(names), progress, QUIET_S) as shown:
        for start in range(0, len(names), batch_size):
            part = slice(start, start + batch_size)
            trace = Trace(
                classifier,
                tensor[part],
                rule.part(part),
                batch_labels[part],
                stage=found_stage,
                needs=needs,
                predictor=runs,
                seed=seed,
            )
            pieces.append(maps_of_trace(trace, components, names[part], tensor[part]))
            log_reasons(pieces[-1].reasons, names[part], logged)
            log_doubts(pieces[-1].raw, pieces[-1].errors, names[part], classifier.name, logged)
            shown.add(len(names[part]))
    return replace(joined(pieces), photographs=photographs)


def _predictor(classifier: Classifier, images: Tensor, components: Sequence[MethodComponent], stage: Stage | None) -> Predictor:
    """The predictor, of level exact, for the forwards that the methods run again on the images."""
    channels, size = 0 if stage is None else stage.channels, classifier.input_size
    again = [method.instance for method in components]
    forwards = len(images) * sum(one.forwards(channels, size) if isinstance(one, RunsNetworkAgain) else 0 for one in again)
    return Predictor(classifier) if forwards < FEW else fastest(classifier, forwards=forwards, sample=images)


def refuse_untrained(classifier: Classifier) -> None:
    """Raises if a head was never trained: its logits are at chance level."""
    if not classifier.trained:
        raise UnsupportedError(
            f"{classifier.head_name} on {classifier.name} was never trained: its logits and maps mean nothing. Train it (xattn "
            f"train), load a trained file, or explain it untrained: --untrained, in Python untrained=True (or .trained = True "
            f"after a loop of "
            "your own)."
        )


def _labels(classifier: Classifier, labels: Tensor | Sequence[Any] | None, count: int) -> list[tuple[int, ...] | None]:
    """The class indices of each image's labels."""
    if labels is None:
        return [None] * count
    if not isinstance(labels, Sized) or isinstance(labels, str):
        raise InputError(f"labels are a list or tensor with one label per image; got {type(labels).__name__}.")
    if len(labels) != count:
        raise InputError(f"{counted(count, 'image needs', 'images need')} {counted(count, 'label')}; got {len(labels)}.")
    values = as_plain(labels)
    found = [None if value is None else labels_of(classifier, value) for value in values]
    return [None if label is None or classifier.regression else tuple(map(int, label)) for label in found]


def _predicted(
    classifier: Classifier, rule: OfOutput, runs: Predictor, names: Sequence[str], images: Tensor, batch_size: int
) -> list[tuple[int, ...] | None]:
    """The classes to explain for each image; None, and a line in the log, for an image without any."""
    output = torch.cat([runs(images[start : start + batch_size]) for start in range(0, len(images), batch_size)])
    found: list[tuple[int, ...] | None] = []
    for name, row in zip(names, output, strict=True):
        try:
            found.append(rule.predicted(classifier, row))
        except InputError as error:
            logger.warning("%s has no map%s %s", name, ". Of its labels" if isinstance(rule, PredictedLabels) else ":", error)
            found.append(None)
    return found


def _per_label(
    names: list[str], images: Tensor, labels: Sequence[tuple[int, ...] | None]
) -> tuple[list[str], Tensor, list[tuple[int, ...] | None]]:
    """Repeats each image once per label."""
    pairs = [(number, label) for number, several in enumerate(labels) for label in several or ()]
    if not pairs:
        raise InputError(
            "target 'labels' explains every label of an image, but no image has one: pass labels, or a lower threshold for the "
            "labels that a multi-label classifier predicts."
        )
    index = torch.tensor([number for number, _ in pairs], device=images.device)
    return [names[number] for number, _ in pairs], images[index], [(label,) for _, label in pairs]


def refuse_wrong_images(classifier: Classifier, images: Tensor) -> None:
    """Raises if a tensor is not a batch of images that the classifier accepts.

    Args:
        classifier: the network that would run them.
        images: `(B, C, H, W)` in pixel space.

    Raises:
        InputError: the shape or size is wrong, there is no image, or values are integers or outside [0, 1].
    """
    if images.dim() != 4 or images.numel() == 0:
        one = " One image is images[None]." if images.dim() == 3 else ""
        raise InputError(
            f"images must be (batch, {classifier.channels}, height, width) with at least one image; got {tuple(images.shape)}.{one}"
        )
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise InputError(f"images are floats in pixel space, [0, 1]; got {kind}. Divide 8-bit images by 255.")
    low, high = float(images.min()), float(images.max())
    if not (low >= -EDGE and high <= 1 + EDGE):
        raise InputError(
            f"images are in pixel space, [0, 1]; these reach from {low:.3g} to {high:.3g}. Divide 8-bit images by 255; do not normalise "
            "them: the classifier does."
        )
    if tuple(images.shape[2:]) != classifier.input_size:
        raise InputError(
            f"{classifier.name} takes images of {classifier.input_size}; got {tuple(images.shape[2:])}. Resize them, or load the "
            "classifier with input_size."
        )


def _images(classifier: Classifier, images: Images) -> tuple[list[str], Tensor, list[Any] | None, Photographs | None]:
    """Names, pixel values, labels and pictures of the images to explain."""
    if hasattr(images, "__array__"):
        images = as_tensor(images, "images")
        refuse_wrong_images(classifier, images)
        return [str(number) for number in range(len(images))], images.to(classifier.device), None, None
    source = images if isinstance(images, ImageSource) else ImageSource(images)
    crops, found = [], []
    for image in source.images:
        try:
            decoded, crop = source.decode(image, classifier.preprocessing)
            crops.append(crop)
            found.append(decoded)
        except ImageError as error:
            raise ImageError(
                f"{image.path or image.name}: {str(error).rstrip('.')}. A study continues without such an image; explain needs all of them."
            ) from error
    labels = [image.label for image in found] if source.labelled else None
    photographs = Photographs(source, classifier.preprocessing)
    return [image.name for image in source.images], pixels(torch.stack(crops), classifier.device), labels, photographs
