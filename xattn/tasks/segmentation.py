"""Segmentation: the class of every pixel; cross-entropy, mean intersection over union."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from xattn.data.batches import Batch
from xattn.data.cityscapes import IGNORED, LabelMaps
from xattn.data.images import ImageSource
from xattn.data.labelled import Classes, Labelled, open_data
from xattn.data.preprocessing import Frame, Region, channels_first, pixels
from xattn.data.published import open_published, parsed_place
from xattn.data.workers import each_batch
from xattn.errors import ImageError, InputError, SettingError
from xattn.models import Classifier, evaluating
from xattn.progress import Progress
from xattn.tasks.base import Data, Scored, Task, TaskMetadata, tasks
from xattn.tasks.scoring import RESAMPLES, drawn_times, functions_of_torchmetrics, resampled_interval
from xattn.text import counted

if TYPE_CHECKING:
    from torchmetrics import Metric

logger = logging.getLogger("xattn")

DATA = "cityscapes"
WHOLE = 0.999  # share of a picture's pixels above which all of it counts as seen


@tasks.register(
    "segmentation", TaskMetadata("mIoU", "score", "Yuan et al. 2020; Everingham et al. 2010, Sec. 4", per_pixel=True, head="gap")
)
@dataclass(frozen=True)
class Segmentation(Task):
    """The class of every pixel: cross-entropy, mean over the classes of the intersection over union.

    Pixels labelled 255 count neither in the loss nor in the score.

    Attributes:
        auxiliary: weight of the loss of the network's auxiliary classifier, if it has one.
        ohem: online hard example mining: only pixels count whose own class is less probable than this, and at least `ohem_pixels` of a
            batch; None: all count.
        ohem_pixels: the least probable ones of a batch, which count in any case.

    Source: Yuan et al. 2020 (OCR), Sec. 4.2, whose released code has the mining, with 0.9 and 131,072.
    """

    auxiliary: float = 0.4
    ohem: float | None = None
    ohem_pixels: int = 131_072

    def __post_init__(self) -> None:
        if not 0 <= self.auxiliary < math.inf or (self.ohem is not None and not 0 < self.ohem <= 1) or self.ohem_pixels < 1:
            raise SettingError(
                "auxiliary is a weight of 0 or more, ohem a probability above 0, and ohem_pixels 1 or more; got "
                f"auxiliary={self.auxiliary}, ohem={self.ohem}, ohem_pixels={self.ohem_pixels}."
            )
        if self.ohem is None and self.ohem_pixels != Segmentation.ohem_pixels:
            raise SettingError(f"ohem_pixels={self.ohem_pixels} is for hard example mining: give ohem too, or leave it out.")

    def open(self, data: Any, classes: Classes = "folders") -> Labelled:
        """Opens cityscapes:ROOT, or other pictures with label maps.

        Raises:
            InputError: as for `xattn.data.labelled.open_data`, or the class of every pixel is not known.
        """
        found = open_data(data, classes)
        if found.label_maps is None:
            raise InputError(f"{found.name} has no label maps, but segmentation needs the class of every pixel: give {DATA}:ROOT.")
        return found

    def check(self, classifier: Classifier) -> None:
        """Checks that the output is a map of logits.

        Raises:
            InputError: it is something else, or labels stand alone.
        """
        if not classifier.reader.dense or classifier.regression:
            raise InputError(
                f"{classifier.name} · {classifier.head_name} gives no map of logits, but segmentation needs one, alone or as "
                f"'out': use ocr:BACKBONE, or a network such as torchvision:fcn_resnet50, with head gap."
            )
        if classifier.multi_label:
            raise InputError(f"{classifier.name} is multi-label, but a pixel has one class: load it without multi_label.")

    def check_training(self, classifier: Classifier, taught: bool) -> None:
        """Checks that there is no teacher, and that a given weight of the auxiliary classifier is one of some.

        Raises:
            InputError: there is a teacher, or a weight without an auxiliary classifier.
        """
        if taught:
            raise InputError("learning a teacher's answers needs one class per picture, but segmentation has one per pixel: leave it out.")
        if self.auxiliary != Segmentation.auxiliary:
            with torch.no_grad(), evaluating(classifier):
                probes = classifier.run(classifier.probe()).probes
            if not probes:
                raise InputError(f"auxiliary={self.auxiliary} needs an auxiliary classifier, and {classifier.name} has none: leave it out.")

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the pixels that count.

        Args:
            output: logits `(B, K, h, w)`; of another size than the targets they are resized, bilinear.
            targets: class indices `(B, H, W)`; 255 does not count.

        Returns:
            Mean over the pixels that count, a scalar, ≥ 0; 0 where none does.
        """
        logits = _resized(output, targets)
        losses = functional.cross_entropy(logits, targets.long(), reduction="none", ignore_index=IGNORED)
        counts = targets != IGNORED
        if self.ohem is not None and bool(counts.any()):
            own = (-losses.detach()).exp()  # the probability of each pixel's own class
            known = own[counts]
            least = known.kthvalue(min(self.ohem_pixels, len(known))).values
            counts = counts & ((own < self.ohem) | (own <= least))
        return (losses * counts).sum() / counts.sum().clamp(min=1)

    def validation(self, classifier: Classifier) -> Metric:
        """Mean intersection over union at the size of the network's crop, over the classes that are labelled or predicted."""
        from torchmetrics.classification import MulticlassJaccardIndex

        class MeanIoU(MulticlassJaccardIndex):
            """Takes logits of any size."""

            def update(self, output: Tensor, targets: Tensor) -> None:
                """Takes the logits and label maps of a batch."""
                super().update(_resized(output, targets).argmax(dim=1), targets.long())

        return MeanIoU(classifier.class_count, ignore_index=IGNORED, validate_args=False)

    def score(self, classifier: Classifier, data: Data) -> Scored:
        """Mean intersection over union, and that of each class, at the label maps' own size, with bootstrap intervals over pictures.

        Intersections and unions are counted over all pixels of all pictures. The mean is over the classes of the data that are labelled or
        predicted somewhere. Pixels outside the network's crop do not count, which is logged.

        Raises:
            InputError: no label maps are known of the place, labels are given besides, or its classes are not those of the network.
            ImageError: no picture could be read.
            MissingPackageError: torchmetrics is not installed.
        """
        functions_of_torchmetrics("intersection over union")  # if it is missing, this is said before anything is run
        parsed = parsed_place(data.place)
        if parsed is None or parsed[0] != DATA:
            raise InputError(f"segmentation is scored on {DATA}:ROOT, which has the class of every pixel; got '{data.place}'.")
        if data.labels_csv is not None or data.labels_from is not None:
            raise InputError(f"'{data.place}' has labels of its own: leave out labels_csv and labels_from (--labels-csv, --labels-from).")
        found = open_published(*parsed)
        assert found.label_maps is not None
        index = _classes_in(classifier, found.classes, data.place)
        counted = _count(classifier, data, found.paths, found.label_maps.renumbered(index))
        overlap = counted.overlap[:, index].double()
        union = counted.union[:, index].double()
        n = len(overlap)
        times = drawn_times(torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0)))
        whole, drawn = _ratio(overlap.sum(dim=0), union.sum(dim=0)), _ratio(times @ overlap, times @ union)
        mean = resampled_interval(float(whole.nanmean()), drawn.nanmean(dim=1), n)
        pictures = (union > 0).sum(dim=0).tolist()
        classes = {
            name: resampled_interval(float(whole[k]), drawn[:, k], pictures[k]) for k, name in enumerate(found.classes)
        }  # the interval of a class that one picture shows is of no use
        network = f"{classifier.name} · {classifier.head_name}"
        return Scored("segmentation", network, data.place, n, {"mIoU": mean}, classes, tuple(counted.failed))


class _Counted(NamedTuple):
    """Pixels of each class in the intersection and in the union of labels and predictions, `(n, K)`, and the pictures that failed."""

    overlap: Tensor
    union: Tensor
    failed: list[tuple[str, str]]


def _count(classifier: Classifier, data: Data, paths: tuple[Path, ...], maps: LabelMaps) -> _Counted:
    """Runs the network over pictures and compares its predictions with their label maps.

    Raises:
        ImageError: no picture could be read.
    """
    source = ImageSource([str(path) for path in paths])
    numbers = {str(path): number for number, path in enumerate(paths)}
    pieces: dict[int, Tensor] = {}
    failed: list[tuple[str, str]] = []
    seen: list[float] = []
    with Progress(len(source), data.shown) as progress:

        def work(batch: Batch) -> None:
            if batch.images:
                logits = classifier.predict(pixels(batch.crops, classifier.device))
                rows = []
                for image, frame, own in zip(batch.images, batch.frames, logits, strict=True):
                    labels = channels_first(maps.read(numbers[str(image.path)], frame.size))[0].long()
                    rows.append(_compared(own, labels, frame, seen))
                pieces[batch.number] = torch.stack(rows)
            failed.extend((image.name, reason) for image, reason in batch.failed)
            progress.add(len(batch.images) + len(batch.failed))

        batches = range(-(-len(source) // data.batch_size))
        each_batch(source, classifier.preprocessing, data.batch_size, batches, data.workers, work)
    if not pieces:
        raise ImageError(f"none of {counted(len(source), 'picture')} of '{data.place}' could be read: {failed[0][1]}")
    if min(seen) < WHOLE:
        size = "×".join(map(str, classifier.input_size))
        logger.warning(
            "%s sees crops of %s, in one picture only %.0f %% of the pixels; the others do not count. For whole pictures, give "
            "--input-size H,W --resize H,W with the same height and width.",
            classifier.name,
            size,
            100 * min(seen),
        )
    overlap, union = torch.cat([pieces[number] for number in sorted(pieces)]).unbind(dim=1)
    return _Counted(overlap, union, failed)


def _compared(logits: Tensor, labels: Tensor, frame: Frame, seen: list[float]) -> Tensor:
    """Pixels of each class in the intersection and in the union of a picture's labels and predictions, `(2, K)`, on the CPU."""
    predicted, rows, columns = predicted_pixels(logits, frame.kept, frame.size)
    known = labels[rows, columns].to(predicted.device)
    seen.append(known.numel() / labels.numel())
    functions = functions_of_torchmetrics("intersection over union")
    matrix = functions.multiclass_confusion_matrix(predicted[None], known[None], len(logits), ignore_index=IGNORED, validate_args=False)
    overlap = matrix.diagonal()
    return torch.stack([overlap, matrix.sum(dim=0) + matrix.sum(dim=1) - overlap]).cpu()


def predicted_pixels(logits: Tensor, kept: Region, size: tuple[int, int]) -> tuple[Tensor, slice, slice]:
    """The class that is predicted for each pixel of a picture, where the crop shows it.

    Args:
        logits: of the crop, `(K, h, w)`.
        kept: the part of the picture that the crop shows, in the picture's pixels.
        size: width and height of the picture.

    Returns:
        Class indices `(H, W)` by the logits' bilinear values at the pixels' centres (those beyond the outermost cells' centres have the
        values at them), and the rows and columns of the picture that they are of.
    """
    rows, columns = (
        slice(max(0, math.ceil(start - 0.5)), min(side, math.ceil(end - 0.5)))
        for start, end, side in ((kept.top, kept.bottom, size[1]), (kept.left, kept.right, size[0]))
    )
    down, across = (
        2 * (torch.arange(place.start, place.stop, device=logits.device, dtype=torch.float64) + 0.5 - start) / (end - start) - 1
        for place, start, end in ((rows, kept.top, kept.bottom), (columns, kept.left, kept.right))
    )
    places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)[None].to(logits.dtype)
    values = functional.grid_sample(logits[None], places, mode="bilinear", padding_mode="border", align_corners=False)
    return values[0].argmax(dim=0), rows, columns


def _classes_in(classifier: Classifier, names: tuple[str, ...], place: str) -> tuple[int, ...]:
    """The network's index of each class of the data.

    Raises:
        NameUnknownError: a class of the data is none of the network.
        InputError: the network has no names, and another number of classes.
    """
    if classifier.labels is not None:
        return tuple(classifier.class_index(name) for name in names)
    if classifier.class_count != len(names):
        raise InputError(
            f"{classifier.name} has {classifier.class_count} classes without names, '{place}' {len(names)}: give their names (--labels)."
        )
    return tuple(range(len(names)))


def _ratio(overlap: Tensor, union: Tensor) -> Tensor:
    """Intersection over union in percent; NaN for a class that is neither labelled nor predicted."""
    return torch.where(union > 0, 100 * overlap / union.clamp(min=1), torch.nan)


def _resized(output: Tensor, targets: Tensor) -> Tensor:
    """Logits at the size of the targets."""
    if output.shape[2:] == targets.shape[1:]:
        return output
    return functional.interpolate(output, size=targets.shape[1:], mode="bilinear", align_corners=False)
