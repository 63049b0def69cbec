"""Episodes of new classes: accuracy of queries, by a linear layer fitted to the few labelled pictures of each episode."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from xattn.data.images import ImageSource
from xattn.data.labelled import Classes, Labelled, open_data, open_split
from xattn.data.labels import single_class
from xattn.data.preprocessing import pixels
from xattn.errors import InputError, SettingError
from xattn.fewshot import Embedding, Episodes, EpisodeShape, episode_logits
from xattn.fewshot.adaptation import label_by_class, start_of
from xattn.metrics.statistics import mean_interval
from xattn.models import Classifier, evaluating
from xattn.tasks.base import Data, Scored, Task, TaskMetadata, tasks
from xattn.tasks.scoring import outputs

if TYPE_CHECKING:
    from torchmetrics import Metric

WAYS = 5  # of an episode for a classifier that was not trained by episodes
AT_ONCE = 20  # episodes whose linear layers are fitted together


@tasks.register(
    "few-shot", TaskMetadata("accuracy", "score", "Gomez et al. 2021, Sec. 4.1; Sun et al. 2019", head="gap", preset="few-shot")
)
@dataclass(frozen=True)
class FewShot(Task):
    """Episodes of new classes: mean accuracy of the queries over episodes.

    Attributes:
        ways: classes of an episode; None: as many as the classifier was trained for by episodes, 5 if it was not.
        shots: labelled pictures of each class.
        queries: pictures of each class to be classified.
        episodes: on which a classifier is scored.
    """

    ways: int | None = None
    shots: int = 1
    queries: int = 15
    episodes: int = 600

    def __post_init__(self) -> None:
        EpisodeShape(WAYS if self.ways is None else self.ways, self.shots, self.queries)  # refuses numbers that cannot be
        if self.episodes < 2:
            raise SettingError(f"a mean over episodes with its interval takes two or more; got episodes={self.episodes}.")

    def of(self, classifier: Classifier) -> FewShot:
        """The task with the ways of a classifier, where it has none of its own."""
        return self if self.ways is not None else replace(self, ways=WAYS if classifier.inner is None else classifier.class_count)

    def shape_for(self, classifier: Classifier) -> EpisodeShape:
        """The shape of an episode for a classifier."""
        ways = self.of(classifier).ways
        assert ways is not None
        return EpisodeShape(ways, self.shots, self.queries)

    def open(self, data: Any, classes: Classes = "folders") -> Labelled:
        """Opens the training classes of a data set, and as its validation its validation classes, which are others.

        Raises:
            InputError: as for `xattn.data.labelled.open_data`, another split is named, pictures have several labels, or there are no
                validation classes of its own.
        """
        name, colon, root = str(data).partition(":")
        if colon and name == "cifar-fs":
            root = _root(root)
            return replace(open_data(f"{name}:{root}", classes), validation=open_split(name, root, "val"))
        if isinstance(data, Labelled) and data.validation is not None:
            if several := next((each.name for each in (data, data.validation) if each.several), None):
                raise InputError(f"{several} has several labels per picture, and few-shot training needs one class of each.")
            if shared := _classes(data) & _classes(data.validation):
                raise InputError(
                    f"few-shot training needs classes for validation that are not trained on; {data.name} has "
                    f"'{min(map(str, shared))}' in both: give validation pictures of other classes."
                )
            return data
        raise InputError(
            f"few-shot training needs classes for validation that are not trained on: cifar-fs:ROOT, in its layout; got '{data!s:.80}'."
        )

    def check(self, classifier: Classifier) -> None:
        """Checks that there is a vector to tell new classes by.

        Raises:
            UnsupportedError: there is none.
            InputError: it is multi-label, or of values.
        """
        if classifier.multi_label or classifier.regression:
            raise InputError(f"{classifier.name} is multi-label or gives values, but an episode has one class per picture.")
        Embedding(classifier)

    def check_training(self, classifier: Classifier, taught: bool) -> None:
        """Refuses: it is trained by episodes, not by batches.

        Raises:
            InputError: always.
        """
        raise InputError("few-shot is trained by episodes: xattn train --task few-shot, in Python xattn.training.fit_episodes.")

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of an episode's queries, a scalar, ≥ 0."""
        return functional.cross_entropy(output, targets)

    def validation(self, classifier: Classifier) -> Metric:
        """Accuracy of the queries."""
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(self.shape_for(classifier).ways, average="micro", validate_args=False)

    def score(self, classifier: Classifier, data: Data) -> Scored:
        """Mean accuracy of the queries over episodes, with Student's interval over episodes.

        Each picture is embedded once. The labels are classes of their own: the classifier need not know them. The task in the result has
        all of its settings.

        Raises:
            InputError: labels are missing, a picture has several, or there are too few classes or pictures of a class. For labels that are
                known beforehand, the error comes before anything is run.
        """
        task, shape = self.of(classifier), self.shape_for(classifier)

        def episodes_of(labels: list[str]) -> Episodes:
            names = sorted(set(labels))
            numbers = {name: number for number, name in enumerate(names)}
            return Episodes([numbers[label] for label in labels], shape, self.episodes, seed=0, name=data.place, names=names)

        source = ImageSource(data.place, data.labels_csv, labels_from=data.labels_from)
        label_by_class(source)
        if source.dataset is None:
            episodes_of([single_class(image.name, image.label) for image in source.images])
        weight, bias, inner = start_of(Embedding(classifier), shape.ways)
        vectors, labels, failed = _vectors(classifier, source, data)
        episodes = episodes_of(labels)
        start = weight.detach().to(vectors), bias.detach().to(vectors)
        drawn = torch.tensor([episodes.drawn(0, number) for number in range(self.episodes)])
        answers, support = shape.labels(), shape.support
        right = []
        for chunk in drawn.split(AT_ONCE):
            given, asked = vectors[chunk[:, :support]], vectors[chunk[:, support:]]
            known = answers[:support].expand(len(chunk), -1)
            logits = episode_logits(given, known, asked, *start, steps=inner.steps, lr=inner.lr)
            right.append((logits.argmax(dim=2) == answers[support:]).double().mean(dim=1))
        found = mean_interval(100.0 * torch.cat(right), (0, 100))
        network = f"{classifier.name} · {classifier.head_name}"
        spec = "few-shot:" + ",".join(f"{setting.name}={getattr(task, setting.name)}" for setting in fields(task))
        return Scored(spec, network, data.place, len(labels), {"accuracy": found}, failed=tuple(failed))


def _root(place: str) -> str:
    """The folder of `ROOT[:train]`.

    Raises:
        InputError: another split is named, which is not trained on.
    """
    root, colon, split = place.rpartition(":")
    if colon and split in ("val", "test"):
        raise InputError(
            f"few-shot training takes the classes of split train, and those of val for validation; got split {split}: give only ROOT."
        )
    return root if colon and split == "train" else place


def _classes(data: Labelled) -> set[str | int]:
    """Names of the classes that pictures have, or their numbers if they have no names."""
    numbers = {target for target in data.targets if isinstance(target, int)}
    return set(numbers) if data.names is None else {data.names[number] for number in numbers}


def _vectors(classifier: Classifier, source: ImageSource, data: Data) -> tuple[Tensor, list[str], list[tuple[str, str]]]:
    """The vectors of pictures, on the CPU, their labels, and those that could not be read with the reason."""
    embedding = Embedding(classifier)

    def run(crops: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(classifier):
            return embedding(pixels(crops, classifier.device))

    images, vectors, failed = outputs(classifier, source, data, run)
    return vectors, [single_class(image.name, image.label) for image in images], failed
