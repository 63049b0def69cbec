"""One class per picture: cross-entropy, accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from xattn.data.labelled import Classes, Labelled, open_data
from xattn.data.labels import Label
from xattn.errors import InputError
from xattn.metrics.statistics import proportion_interval
from xattn.models import Classifier
from xattn.tasks.base import Data, Scored, Task, TaskMetadata, tasks
from xattn.tasks.scoring import answers

if TYPE_CHECKING:
    from torchmetrics import Metric

TOP = 5
FEWEST = 2 * TOP  # classes, above which the five most probable ones say something


@tasks.register("classification", TaskMetadata("accuracy", "loss", "Wilson 1927 for its interval"))
@dataclass(frozen=True)
class Classification(Task):
    """One class per picture: cross-entropy, accuracy and, of more than ten classes, top-5 accuracy."""

    def open(self, data: Any, classes: Classes = "folders") -> Labelled:
        """Opens class folders, a CSV, or a data set as published.

        Raises:
            InputError: as for `xattn.data.labelled.open_data`, or pictures with several labels.
        """
        found = open_data(data, classes)
        if found.several:
            raise InputError(f"{found.name} has several labels per picture, but classification needs one: use task multi-label (--task).")
        return found

    def check(self, classifier: Classifier) -> None:
        """Checks that a picture has one class.

        Raises:
            InputError: labels stand alone, or outputs are values.
        """
        if classifier.regression:
            raise InputError(f"{classifier.name} gives values, but classification needs classes: leave out regression.")
        if classifier.multi_label:
            raise InputError(
                f"{classifier.name} is multi-label, but classification has one class per picture: use task multi-label, or load it "
                "without multi_label."
            )

    def check_training(self, classifier: Classifier, taught: bool) -> None:
        """Every classifier of one class per picture can be trained."""

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy.

        Args:
            output: logits `(B, K)`.
            targets: class indices `(B,)`.

        Returns:
            Mean over the batch, a scalar, ≥ 0.
        """
        return functional.cross_entropy(output, targets)

    def validation(self, classifier: Classifier) -> Metric:
        """Accuracy."""
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(classifier.class_count, average="micro", validate_args=False)

    def score(self, classifier: Classifier, data: Data) -> Scored:
        """Accuracy with Wilson's interval, and top-5 accuracy of networks with more than ten classes.

        Raises:
            InputError: a picture has no label, several, or one that is no class of the network.
        """

        def read(_name: str, label: Label | None) -> int:
            found = () if label is None else classifier.class_indices(label)
            if len(found) != 1:
                raise InputError(
                    f"accuracy needs one class per picture, but it has {len(found)}: load the network with multi_label (--multi-label)."
                )
            return found[0]

        found = answers(classifier, data, read)
        targets = torch.tensor(found.labels)
        scores = {"accuracy": right(found.output, targets, 1)}
        if classifier.class_count > FEWEST:
            scores[f"top-{TOP} accuracy"] = right(found.output, targets, TOP)
        intervals = {name: proportion_interval(100.0 * each.double(), (0, 100)) for name, each in scores.items()}
        network = f"{classifier.name} · {classifier.head_name}"
        return Scored("classification", network, data.place, len(targets), intervals, failed=tuple(found.failed))


def right(output: Tensor, targets: Tensor, top: int) -> Tensor:
    """Whether the label is among the classes with the highest logits; of equal logits the first class counts as the higher.

    Args:
        output: `(n, K)`.
        targets: `(n,)` class indices.
        top: how many classes count.

    Returns:
        `(n,)` bool. Rows that are not finite are wrong.
    """
    own = output.gather(1, targets[:, None])
    classes = torch.arange(output.shape[1])
    above = (output > own) | ((output == own) & (classes < targets[:, None]))
    return (above.sum(dim=1) < top) & output.isfinite().all(dim=1)
