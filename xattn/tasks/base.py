"""What a task is: its training data, its loss, its score; and the registry of tasks."""

from __future__ import annotations

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from xattn.data.labelled import Classes, Labelled
from xattn.data.labels import LabelsFrom
from xattn.errors import InputError, RunError, UnsupportedError
from xattn.metrics.statistics import Interval
from xattn.models import Classifier
from xattn.registry import Registry

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class TaskMetadata:
    """What a task declares.

    Attributes:
        score: name of its score, in percent; higher is better.
        best: what decides which epoch of a training is kept: the lowest validation "loss", or the highest validation "score".
        source: where its score was published.
        multi_label: a network's labels stand alone.
        per_pixel: the targets are label maps, with the class of every pixel.
        head: the head that is trained where none is named.
        preset: the training settings where none are named; None: those of the head.
    """

    score: str
    best: Literal["loss", "score"]
    source: str
    multi_label: bool = False
    per_pixel: bool = False
    head: str = "ca-stream"
    preset: str | None = None


@dataclass(frozen=True)
class Data:
    """Pictures to score a classifier on.

    Attributes:
        place: a folder, a glob, a file, a CSV, or `NAME:ROOT[:SPLIT]` of a data set in its published layout.
        labels_csv: labels of the pictures, as for a run.
        labels_from: where labels come from, as for a run.
        batch_size: pictures per forward.
        workers: decoding processes.
        shown: whether to show progress.
    """

    place: str
    labels_csv: str | None = None
    labels_from: LabelsFrom | None = None
    batch_size: int = 32
    workers: int = 0
    shown: bool = False


@dataclass(frozen=True)
class Scored:
    """The scores of a classifier on a data set.

    Attributes:
        task: the task, with its settings where it has any.
        network: name of the classifier and its head.
        data: name of the data, with its split where it has one.
        n: number of pictures behind the scores; of re-identification, of queries.
        scores: in percent, by name, each with its 95 % interval; the task's own score is the first.
        classes: the same score for each class by its name, for tasks whose score is a mean over classes; else empty.
        failed: names of the pictures that could not be read, with the reason.
        pictures: number of pictures that were read; None: n.
    """

    task: str
    network: str
    data: str
    n: int
    scores: Mapping[str, Interval]
    classes: Mapping[str, Interval] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()
    pictures: int | None = None

    def __str__(self) -> str:
        lines = [f"{self.task} · {self.network} · {self.data} · n = {self.n}"]
        lines += [f"{name} {_shown(found)}" for name, found in self.scores.items()]
        return "\n".join([*lines, *(f"  {name} {_shown(found)}" for name, found in self.classes.items())])

    def save(self, path: str | Path) -> None:
        """Writes the scores to a .json, or to a .csv with a row per score.

        Raises:
            InputError: another ending.
            RunError: the file cannot be written.
        """
        about = {"task": self.task, "network": self.network, "data": self.data}
        rows = [("", name, found) for name, found in self.scores.items()]
        rows += [(name, next(iter(self.scores)), found) for name, found in self.classes.items()]
        made = [about | {"class": of, "score": name} | _plain(found) for of, name, found in rows]
        try:
            if form_of(path) == ".csv":
                with open(path, "w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, list(made[0]))
                    writer.writeheader()
                    writer.writerows(made)
                return
            content = about | {
                "n": self.n,
                "scores": {name: _plain(found) for name, found in self.scores.items()},
                "classes": {name: _plain(found) for name, found in self.classes.items()},
                "failed": dict(self.failed),
            }
            Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"'{path}' cannot be written ({error.strerror}).") from error


def form_of(path: str | Path) -> str:
    """The ending of a file of scores.

    Raises:
        InputError: it is neither .json nor .csv.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".json", ".csv"):
        raise InputError(f"scores are written to a .json or a .csv; got '{path}'.")
    return ending


def _shown(found: Interval) -> str:
    if math.isnan(found.mean):
        return "–"
    ends = "" if math.isnan(found.low) else f" %, 95 % [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.mean:.2f}{ends}"


def _plain(found: Interval) -> dict[str, Any]:
    values = {"value": found.mean, "low": found.low, "high": found.high}
    return {name: None if math.isnan(value) else value for name, value in values.items()} | {"n": found.n}


class Task(ABC):
    """A frozen dataclass of settings that says what is trained, and how the result is scored.

    Attributes:
        auxiliary: weight of the loss of each auxiliary classifier.
    """

    auxiliary: float = 1.0

    @abstractmethod
    def open(self, data: Any, classes: Classes = "folders") -> Labelled:
        """Opens training data; never a test split.

        Args:
            data: a place, a data set of torch, or data that are open already.
            classes: what names of folders mean, as for `xattn.data.labelled.open_data`.

        Raises:
            InputError: they are no data of this task.
        """

    @abstractmethod
    def check(self, classifier: Classifier) -> None:
        """Checks that a classifier is one for this task.

        Raises:
            InputError: it is not, with what to do.
        """

    @abstractmethod
    def check_training(self, classifier: Classifier, taught: bool) -> None:
        """Checks that a classifier for this task can be trained.

        Args:
            classifier: its network and head.
            taught: whether a teacher's answers are learnt besides the labels.

        Raises:
            InputError: it cannot, with what to do.
        """

    @abstractmethod
    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            output: of the classifier.
            targets: of the batch, as the data have them.
        """

    @abstractmethod
    def validation(self, classifier: Classifier) -> Metric:
        """A metric of torchmetrics that takes outputs and targets of batches and gives the score of the validation data, in [0, 1]."""

    @abstractmethod
    def score(self, classifier: Classifier, data: Data) -> Scored:
        """The score on pictures that were not trained on, with its interval.

        Raises:
            InputError: labels are missing, or do not fit the classifier.
        """


tasks: Registry[TaskMetadata, Task] = Registry("task")


def default_task(multi_label: bool) -> str:
    """The task where none is named: "multi-label" of a classifier whose labels stand alone, else "classification"."""
    return "multi-label" if multi_label else "classification"


def refuse_no_classes(classifier: Classifier, output: Tensor) -> None:
    """Raises for a network whose output is not one row of classes per picture.

    Raises:
        UnsupportedError: it gives values, vectors or maps.
    """
    if classifier.regression or output.dim() != 2 or output.shape[1] != classifier.class_count:
        came = "values" if classifier.regression else f"an output {tuple(output.shape)}"
        raise UnsupportedError(f"{classifier.name} gives {came}; one logit per class, ({classifier.class_count} classes), is needed.")
