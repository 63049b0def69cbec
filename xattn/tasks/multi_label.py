"""Several labels per picture: binary cross-entropy, mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from xattn.data.images import ImageSource
from xattn.data.labelled import Classes, Labelled, open_data
from xattn.data.labels import Label
from xattn.data.published import open_published, parsed_place
from xattn.data.voc import IGNORED
from xattn.errors import InputError
from xattn.focus import TwoStreams
from xattn.models import Classifier
from xattn.models.class_names import distinct_names
from xattn.tasks.base import Data, Scored, Task, TaskMetadata, tasks
from xattn.tasks.scoring import RESAMPLES, answers, drawn_times, functions_of_torchmetrics, resampled_interval

if TYPE_CHECKING:
    from torchmetrics import Metric


@tasks.register("multi-label", TaskMetadata("mAP", "score", "Everingham et al. 2010, Sec. 4", multi_label=True))
@dataclass(frozen=True)
class MultiLabel(Task):
    """Several labels per picture: binary cross-entropy of each, mean average precision over the classes.

    Classes of which a picture shows difficult objects alone are ignored, as VOC's own evaluation does. **Differs**: the released code of
    Torres et al. 2024 counts them as absent. VOC's development kit raises the precision at each recall to the highest at a higher one; here
    it is as measured, as in scikit-learn.
    """

    def open(self, data: Any, classes: Classes = "folders") -> Labelled:
        """Opens voc:ROOT, a CSV with labels `a|b`, or a data set whose targets are vectors; one class becomes a vector.

        Raises:
            InputError: as for `xattn.data.labelled.open_data`.
        """
        return _as_vectors(open_data(data, classes))

    def check(self, classifier: Classifier) -> None:
        """Checks that labels stand alone.

        Raises:
            InputError: they do not.
        """
        if not classifier.multi_label:
            raise InputError(
                f"{classifier.name} has one class per picture, but task multi-label needs independent labels: load it with "
                f"multi_label (--multi-label), or use task classification."
            )

    def check_training(self, classifier: Classifier, taught: bool) -> None:
        """Checks that nothing asks for the one class of a picture.

        Raises:
            InputError: there is a teacher, or a head or a network that asks for it.
        """
        for wrong, what in (
            (taught, "a teacher's answers are"),
            (classifier.head.asks_class or classifier.head.push_every, f"{classifier.head_name} is"),
            (isinstance(classifier.network, TwoStreams), f"{classifier.name}, of two streams, is"),
        ):
            if wrong:
                raise InputError(f"{what} learnt with one class per picture, and these have several labels: leave it out.")

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of each label that is not ignored.

        Args:
            output: logits `(B, K)`.
            targets: `(B, K)`: 1, 0, or −1, which is ignored.

        Returns:
            Mean over the labels that count, a scalar, ≥ 0; 0 where none does.
        """
        counts = targets != IGNORED
        loss = functional.binary_cross_entropy_with_logits(output, targets.clamp(min=0).to(output.dtype), reduction="none")
        return (loss * counts).sum() / counts.sum().clamp(min=1)

    def validation(self, classifier: Classifier) -> Metric:
        """Mean average precision over the classes of which some picture shows an object."""
        from torchmetrics import Metric
        from torchmetrics.utilities import dim_zero_cat

        class MeanAveragePrecision(Metric):
            """Keeps the outputs of all batches, which are brought together from all processes."""

            output: list[Tensor]
            targets: list[Tensor]

            def __init__(self) -> None:
                super().__init__()
                self.add_state("output", [], dist_reduce_fx="cat")
                self.add_state("targets", [], dist_reduce_fx="cat")

            def update(self, output: Tensor, targets: Tensor) -> None:
                """Takes the logits and label vectors of a batch."""
                self.output.append(output)
                self.targets.append(targets)

            def compute(self) -> Tensor:
                """The mean over classes."""
                return precisions(dim_zero_cat(self.output), dim_zero_cat(self.targets)).nanmean() / 100

        return MeanAveragePrecision()

    def score(self, classifier: Classifier, data: Data) -> Scored:
        """Mean average precision, and that of each class, with bootstrap intervals over pictures.

        Raises:
            InputError: a picture has no label, or one that is no class of the network; or labels are given for a data set that has its
                own.
            MissingPackageError: torchmetrics is not installed.
        """
        functions_of_torchmetrics("average precision")  # if it is missing, this is said before anything is run
        given = _published(data.place, classifier)
        if given is not None and (data.labels_csv is not None or data.labels_from is not None):
            raise InputError(f"'{data.place}' has labels of its own: leave out labels_csv and labels_from (--labels-csv, --labels-from).")
        source = None if given is None else ImageSource([str(path) for path in given])
        vectors = {} if given is None else {path.name: vector for path, vector in given.items()}

        def read(name: str, label: Label | None) -> tuple[int, ...]:
            if vectors:
                return vectors[name]
            found = () if label is None else classifier.class_indices(label)
            return tuple(int(index in found) for index in range(classifier.class_count))

        found = answers(classifier, data, read, source)
        output, targets = found.output, torch.tensor(found.labels)
        draws = torch.randint(len(output), (RESAMPLES, len(output)), generator=torch.Generator().manual_seed(0))
        whole, drawn = precisions(output, targets), resampled_precisions(output, targets, draws)
        mean = resampled_interval(float(whole.nanmean()), drawn.nanmean(dim=1), len(targets))
        columns = [resampled_interval(float(whole[k]), drawn[:, k], int((targets[:, k] != IGNORED).sum())) for k in range(len(whole))]
        network = f"{classifier.name} · {classifier.head_name}"
        names = distinct_names([classifier.label(k) for k in range(classifier.class_count)])
        classes = dict(zip(names, columns, strict=True))
        return Scored("multi-label", network, data.place, len(targets), {"mAP": mean}, classes, tuple(found.failed))


def precisions(output: Tensor, targets: Tensor) -> Tensor:
    """Average precision of each class: Σ (Rₙ − Rₙ₋₁) Pₙ over the thresholds, not interpolated; equal logits share one threshold.

    Args:
        output: logits `(n, K)`.
        targets: `(n, K)`: 1, 0, or −1, which is left out.

    Returns:
        `(K,)` in percent, on the CPU; NaN for a class without a positive.

    Raises:
        MissingPackageError: torchmetrics is not installed.
    """
    functions = functions_of_torchmetrics("average precision")
    output, targets = output.cpu().double(), targets.cpu()  # some devices have no float64
    found = torch.full((output.shape[1],), torch.nan, dtype=torch.float64)
    for k in range(output.shape[1]):
        counts = targets[:, k] != IGNORED
        if bool((targets[:, k] == 1).any()):
            distinct, places = output[counts, k].unique(return_inverse=True)
            ranks = places.double() / max(1, len(distinct) - 1)  # in [0, 1], which torchmetrics takes as it is: a sigmoid makes ties
            value = functions.binary_average_precision(ranks, targets[counts, k], validate_args=False)
            found[k] = 100 * float(value)
    return found


def resampled_precisions(output: Tensor, targets: Tensor, draws: Tensor) -> Tensor:
    """`precisions` of pictures that are drawn with replacement, for all draws at once: a picture counts as often as it was drawn.

    Args:
        output: logits `(n, K)`.
        targets: `(n, K)`: 1, 0, or −1, which is left out.
        draws: numbers of pictures `(R, n)`.

    Returns:
        `(R, K)` in percent, NaN where no positive was drawn.
    """
    times = drawn_times(draws)
    found = torch.full((len(draws), output.shape[1]), torch.nan, dtype=torch.float64)
    for k in range(output.shape[1]):
        order = output[:, k].argsort(descending=True)
        order = order[targets[order, k] != IGNORED]
        if not bool((targets[order, k] == 1).any()):
            continue
        scores, weights = output[order, k], times[:, order]
        ends = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])  # the last of those with equal logits
        right, seen = (each.cumsum(dim=1)[:, ends] for each in (weights * (targets[order, k] == 1), weights))
        gained = right.diff(dim=1, prepend=torch.zeros(len(draws), 1, dtype=torch.float64))
        found[:, k] = 100 * (gained * right / seen.clamp(min=1)).sum(dim=1) / right[:, -1]
    return found


def _as_vectors(data: Labelled) -> Labelled:
    """The data with a vector of labels for each picture."""
    validation = None if data.validation is None else _as_vectors(data.validation)
    if data.several:
        return replace(data, validation=validation)
    indices: Sequence[Any] = data.targets
    count = len(data.names) if data.names is not None else max(indices) + 1
    return replace(data, targets=tuple(tuple(int(k == index) for k in range(count)) for index in indices), validation=validation)


def _published(place: str, classifier: Classifier) -> dict[Path, tuple[int, ...]] | None:
    """The label vectors of the pictures of a published split in the order of a network's classes; None for other places.

    Raises:
        InputError: a class of the data is none of the network.
    """
    parsed = parsed_place(place)
    if parsed is None or parsed[0] != "voc":
        return None
    found = open_published(*parsed)
    index = [classifier.class_index(name) for name in found.classes]

    def moved(target: Any) -> tuple[int, ...]:
        entries = [IGNORED] * classifier.class_count
        for k, entry in zip(index, target, strict=True):
            entries[k] = entry
        return tuple(entries)

    return {path: moved(target) for path, target in zip(found.paths, found.targets, strict=True)}
