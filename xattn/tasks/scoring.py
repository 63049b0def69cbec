"""A classifier scored on pictures with labels, by the task that it is for."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from xattn.data.images import ImageSource
from xattn.data.labels import Label, LabelsFrom
from xattn.data.listing import NamedImage
from xattn.data.preprocessing import pixels
from xattn.data.published import with_split
from xattn.data.workers import each_output
from xattn.errors import ImageError, InputError, MissingPackageError, NameUnknownError
from xattn.metrics.inputs import refuse_chunk
from xattn.metrics.statistics import CONFIDENCE, Interval
from xattn.models import Classifier
from xattn.models.loading import refuse_no_classifier
from xattn.models.source_labels import with_labels
from xattn.tasks.base import Data, Scored, default_task, refuse_no_classes, tasks
from xattn.text import counted

T = TypeVar("T")
RESAMPLES = 1000  # of a bootstrap over pictures


def score(
    classifier: Classifier,
    data: str | Path,
    *,
    task: str | None = None,
    labels_csv: str | Path | None = None,
    labels_from: LabelsFrom | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    progress: bool = True,
) -> Scored:
    """The score of a classifier on pictures with labels: accuracy, mAP, or what its task has, with 95 % intervals.

    Args:
        classifier: from `xattn.load` or `xattn.attach`.
        data: a folder whose subfolders are named by classes, a glob, a file, a CSV with columns `image` and `label`; or
            `NAME:ROOT[:SPLIT]`, a data set in its published layout. Without a split it is the one that is published for scores: test, or
            val where the labels of test are not published.
        task: name of the task, `name[:key=value,…]`; None: "multi-label" for a classifier whose labels stand alone, else
            "classification".
        labels_csv: labels of the pictures, as for a run.
        labels_from: where labels come from, as for a run.
        batch_size: pictures per forward.
        workers: decoding processes; None: one fewer than the cores, at most 8.
        progress: show a bar where stderr is a terminal, else log lines.

    Raises:
        NameUnknownError: no such task, or a label that is no class of the network.
        InputError: labels are missing or do not fit the classifier, or the classifier is not one for the task.
        ImageError: no picture could be read.

    >>> import tempfile, xattn
    >>> from xattn.birds import SketchBirds
    >>> folder = SketchBirds("test", 16).export(tempfile.mkdtemp())
    >>> found = xattn.tasks.score(xattn.load("birds:gap", device="cpu"), folder, workers=0, progress=False)
    >>> found.n, list(found.scores)
    (16, ['accuracy', 'top-5 accuracy'])
    """
    refuse_no_classifier(classifier)
    component = tasks.create(task or default_task(classifier.multi_label))
    component.instance.check(classifier)
    refuse_chunk(batch_size, "batch_size")
    workers = min(8, max(1, (os.cpu_count() or 1) - 1)) if workers is None else workers
    table = None if labels_csv is None else str(labels_csv)
    return component.instance.score(classifier, Data(with_split(str(data)), table, labels_from, batch_size, workers, progress))


class Answers:
    """What a classifier answers for pictures, and their labels.

    Attributes:
        output: `(n, K)`, on the CPU.
        labels: of each of the n pictures, as the task reads it.
        names: of these pictures.
        failed: names of the pictures that could not be read, with the reason.
    """

    def __init__(self) -> None:
        self.output = torch.empty(0)
        self.labels: list[Any] = []
        self.names: list[str] = []
        self.failed: list[tuple[str, str]] = []


def answers(
    classifier: Classifier,
    data: Data,
    read: Callable[[str, Label | None], T],
    source: ImageSource | None = None,
    answer: Callable[[Tensor], Tensor] | None = None,
) -> Answers:
    """Runs a classifier over pictures with labels.

    Args:
        classifier: whose outputs are wanted.
        data: the pictures.
        read: name and label of a picture → what the task makes of it. Labels that are known beforehand are read before anything is run.
        source: of the pictures, where `read` knows their labels by name; None: the place of the data, with labels as a run takes them.
        answer: images `(B, C, H, W)` in pixel space → outputs `(B, K)`; None: the classifier's.

    Raises:
        NameUnknownError: a label that is no class of the network.
        InputError: a picture has no label, or one that does not fit; it is named.
        ImageError: no picture could be read.
    """
    if source is None:
        source = with_labels(ImageSource(data.place, data.labels_csv, labels_from=data.labels_from), [classifier])
        _refuse_unlabelled(source, data, classifier)

    def label(name: str, given: Label | None) -> T:
        try:
            return read(name, given)
        except NameUnknownError:
            raise
        except InputError as error:
            raise InputError(f"label of {name}: {error}") from error

    known = {} if source.dataset is not None else {image.name: label(image.name, image.label) for image in source.images}

    def run(crops: Tensor) -> Tensor:
        output = (answer or classifier.predict)(pixels(crops, classifier.device))
        refuse_no_classes(classifier, output)
        return output

    found = Answers()
    images, found.output, found.failed = outputs(classifier, source, data, run)
    found.names = [image.name for image in images]
    found.labels = [known[image.name] if known else label(image.name, image.label) for image in images]
    return found


def outputs(
    classifier: Classifier, source: ImageSource, data: Data, run: Callable[[Tensor], Tensor]
) -> tuple[list[NamedImage], Tensor, list[tuple[str, str]]]:
    """The pictures that can be read, what is run on them gives, and the others; see `xattn.data.workers.each_output`.

    Raises:
        ImageError: no picture could be read.
    """
    images, output, failed = each_output(source, classifier.preprocessing, data.batch_size, data.workers, data.shown, run)
    if not images:
        raise ImageError(f"none of {counted(len(source), 'picture')} of '{data.place}' could be read: {failed[0][1]}")
    return images, output, failed


def _refuse_unlabelled(source: ImageSource, data: Data, classifier: Classifier) -> None:
    if not source.labelled:
        bare = next(image.name for image in source.images if image.label is None)
        raise InputError(
            f"a score needs a label for each picture, and {bare} in '{data.place}' has none: name the folders after the classes of "
            f"{classifier.name} (--labels-from folders names those that are not), or give a label file (--labels-csv)."
        )


def functions_of_torchmetrics(what: str) -> Any:
    """The module of torchmetrics' functions for classification.

    Args:
        what: is computed with them, in messages.

    Raises:
        MissingPackageError: torchmetrics is not installed.
    """
    try:
        return importlib.import_module("torchmetrics.functional.classification")
    except ImportError as error:
        raise MissingPackageError("torchmetrics", "train", what) from error


def drawn_times(draws: Tensor) -> Tensor:
    """How often each picture was drawn, `(R, n)` float64, of numbers of pictures `(R, n)` drawn with replacement."""
    return torch.zeros(draws.shape, dtype=torch.float64).scatter_add_(1, draws, torch.ones(draws.shape, dtype=torch.float64))


def resampled_interval(value: float, drawn: Tensor, n: int) -> Interval:
    """A value with the interval between the percentiles of its resamples; without one where there are fewer than two pictures.

    Args:
        value: of all pictures.
        drawn: its resamples `(R,)`, NaN where it is not defined.
        n: number of pictures.
    """
    known = drawn[drawn.isfinite()]
    if math.isnan(value) or len(known) < 2 or n < 2:
        return Interval(value, math.nan, math.nan, n)
    low, high = known.quantile(torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=known.dtype)).tolist()
    return Interval(value, min(low, value), max(high, value), n)
