"""Re-identification: a gallery is ranked for each query by the network's vectors; cumulative matching and mean average precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from xattn.data.images import ImageSource
from xattn.data.labelled import Classes, Labelled, open_data
from xattn.data.labels import Label
from xattn.data.market import Sighting, sighting_of
from xattn.data.published import parsed_place
from xattn.errors import InputError
from xattn.metrics.retrieval import rank_gallery
from xattn.metrics.statistics import Interval
from xattn.models import Classifier
from xattn.tasks.base import Data, Scored, Task, TaskMetadata, tasks
from xattn.tasks.scoring import answers

if TYPE_CHECKING:
    from torchmetrics import Metric

DATA = "market"


@tasks.register("re-identification", TaskMetadata("accuracy", "loss", "Zheng et al. 2015, Sec. 3.2"))
@dataclass(frozen=True)
class ReIdentification(Task):
    """The same individual before another camera: cross-entropy over the identities of training; CMC rank-1, 5 and 10 and mAP of others.

    Pictures are compared by the cosine of the network's outputs. Identities of the test are none of training's, so that validation gives
    the accuracy on held-out pictures of these, and the weights of the lowest validation loss are kept.
    """

    def open(self, data: Any, classes: Classes = "folders") -> Labelled:
        """Opens the training split of market:ROOT, or other pictures whose classes are identities.

        Raises:
            InputError: as for `xattn.data.labelled.open_data`, or pictures with several labels.
        """
        found = open_data(data, classes)
        if found.several:
            raise InputError(f"{found.name} has several labels per picture, and re-identification needs the one identity that it shows.")
        return found

    def check(self, classifier: Classifier) -> None:
        """Checks that the output is a vector, which may also be logits of identities.

        Raises:
            InputError: labels stand alone.
        """
        if classifier.multi_label:
            raise InputError(f"{classifier.name} is multi-label, and re-identification compares vectors: load it without multi_label.")

    def check_training(self, classifier: Classifier, taught: bool) -> None:
        """Every classifier of one class per picture can be trained."""

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy.

        Args:
            output: logits of the identities of training `(B, K)`.
            targets: their indices `(B,)`.

        Returns:
            Mean over the batch, a scalar, ≥ 0.
        """
        return functional.cross_entropy(output, targets)

    def validation(self, classifier: Classifier) -> Metric:
        """Accuracy among the identities of training."""
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(classifier.class_count, average="micro", validate_args=False)

    def score(self, classifier: Classifier, data: Data) -> Scored:
        """CMC rank-1, 5 and 10 and mAP on the queries and the gallery of market:ROOT, with bootstrap intervals over queries.

        Queries without a match in the gallery are left out.

        Raises:
            InputError: another place, or labels from elsewhere.
        """
        parsed = parsed_place(data.place)
        if parsed is None or parsed[0] != DATA or parsed[2] != "query" or data.labels_csv is not None or data.labels_from is not None:
            raise InputError(f"re-identification is scored on {DATA}:ROOT, whose file names say who is seen; got '{data.place}'.")
        place = data.place.removesuffix("query")
        sides = [answers(classifier, data, _seen, ImageSource(f"{place}{split}")) for split in ("query", "gallery")]
        query, gallery = (functional.normalize(side.output, dim=1) for side in sides)
        (persons, cameras), (others, theirs) = (torch.tensor(side.labels).unbind(dim=1) for side in sides)
        found = rank_gallery(query @ gallery.T, persons, others, cameras, theirs).scores()
        scores = {name: _percent(interval) for name, interval in found.items()}
        failed = tuple(one for side in sides for one in side.failed)
        return Scored(
            "re-identification", f"{classifier.name} · {classifier.head_name}", data.place, scores["mAP"].n, scores, failed=failed
        )


def _seen(name: str, _label: Label | None) -> Sighting:
    return sighting_of(name)


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high, interval.n)
