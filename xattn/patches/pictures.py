"""Finds boxes in the pictures of a source, in the photographs' own pixels, and writes them to a file."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from xattn.data.images import ImageSource
from xattn.data.labels import single_class
from xattn.data.preprocessing import Region, pixels
from xattn.data.published import refuse_scored
from xattn.errors import ImageError, InputError, RunError
from xattn.models import Classifier
from xattn.patches.base import finders
from xattn.patches.file import write_patches
from xattn.progress import Progress
from xattn.text import counted

logger = logging.getLogger("xattn")

ENDINGS = (".csv", ".npy")
COLUMNS = ("image", "number", "x1", "y1", "x2", "y2", "width", "height")


@dataclass(frozen=True)
class PictureBoxes:
    """Boxes found in pictures.

    Attributes:
        names: names of the pictures that could be read.
        boxes: `(N, n, 4)`, x1, y1, x2, y2 in pixels of each photograph.
        sizes: `(N, 2)`, width and height of each photograph.
        classes: `(N,)`, the labels for which the boxes were found; None if no labels were used.
        failed: pictures that could not be read, with the reason.
    """

    names: list[str]
    boxes: Tensor
    sizes: Tensor
    classes: Tensor | None
    failed: list[tuple[str, str]]

    def save(self, path: str | Path) -> None:
        """Writes a `.csv` with one row per box, or a `.npy` for `read_patches` with one row per picture.

        Raises:
            InputError: the file has another extension; or it is a `.npy` and pictures could not be read, so that its rows would not match
                the pictures.
            RunError: the file cannot be written.
        """
        kind = boxes_file(path).suffix.lower()
        if kind == ".npy":
            if self.failed:
                raise InputError(
                    f"{counted(len(self.failed), 'picture')} could not be read, as {self.failed[0][0]} ({self.failed[0][1]}), but "
                    f"a .npy needs a row for every picture in order. Replace them, or write a .csv."
                )
            relative = self.boxes / torch.cat([self.sizes, self.sizes], dim=1)[:, None]  # as shares of the photograph
            write_patches(path, relative, (1, 1), self.classes)
            return
        try:
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                for name, boxes, size in zip(self.names, self.boxes.tolist(), self.sizes.int().tolist(), strict=True):
                    writer.writerows([name, number, *(round(edge, 2) for edge in box), *size] for number, box in enumerate(boxes))
        except OSError as error:
            raise RunError(f"'{path}' cannot be written ({error.strerror}).") from error


def boxes_file(path: str | Path) -> Path:
    """Checks and returns the path of a file for boxes.

    Raises:
        InputError: it ends neither in `.csv` nor in `.npy`.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise InputError(f"boxes are written to a {' or a '.join(ENDINGS)}; got '{path}'.")
    return Path(path)


def boxes_of(
    classifier: Classifier,
    source: ImageSource,
    finder: str = "activation",
    n: int = 10,
    side: int | None = None,
    *,
    target: Literal["predicted", "label"] = "predicted",
    batch_size: int = 32,
    progress: bool = False,
) -> PictureBoxes:
    """Finds boxes in all pictures of a source, to train on; `find` gives those of any images.

    Args:
        classifier: the classifier whose features or head are used.
        source: the pictures.
        finder: `name[:key=value,…]`.
        n: boxes per picture.
        side: side of the boxes in pixels of the network's input; None: the finder's default.
        target: the class for a finder whose boxes depend on it: the predicted one, or the label.
        batch_size: pictures per forward.
        progress: show progress.

    Raises:
        InputError: pictures for scores, a picture without the single label that the target needs, or as for the finder.
        NameUnknownError: the finder does not exist, or a label is not a class.
    """
    component = finders.create(finder)
    refuse_scored(source.origin)
    if target == "label":
        if bare := next((image.name for image in source.images if image.label is None), None):
            raise InputError(f"target label needs a label of each picture; {bare} has none. Use target predicted, or give labels.")
        for image in source.images:
            single_class(image.name, image.label)
    names, found, sizes, classes, failed = [], [], [], [], []
    with Progress(len(source), progress) as shown:
        for start in range(0, len(source), batch_size):
            crops, regions, rows, labels = [], [], [], []
            for row, image in enumerate(source.images[start : start + batch_size], start):
                try:
                    picture, region = source.photograph(image, classifier.preprocessing)
                    crops.append(classifier.preprocessing.crop(picture))
                except ImageError as error:
                    failed.append((image.name, str(error)))
                    continue
                names.append(image.name)
                regions.append(region)
                sizes.append(picture.size)
                rows.append(row)
                if target == "label":
                    labels.append(classifier.class_indices(image.label)[0])  # type: ignore[arg-type]  # checked above
            if crops:
                given = torch.tensor(labels) if target == "label" else None
                images = pixels(torch.stack(crops), classifier.device)
                boxes = component.instance(classifier, images, n, side, classes=given, rows=rows).cpu()
                found.append(_in_photographs(boxes, regions, classifier.input_size))
                classes += labels
            shown.add(min(batch_size, len(source) - start))
    return PictureBoxes(
        names,
        torch.cat(found) if found else torch.empty(0, n, 4),
        torch.tensor(sizes, dtype=torch.float32).view(-1, 2),
        torch.tensor(classes) if target == "label" else None,
        failed,
    )


def _in_photographs(boxes: Tensor, regions: list[Region], size: tuple[int, int]) -> Tensor:
    """Converts boxes `(B, n, 4)` from pixels of the network's input to pixels of the photographs."""
    seen = torch.tensor(regions)[:, None]
    scale = (seen[..., 2:] - seen[..., :2]) / torch.tensor((size[1], size[0]))
    return seen[..., :2].repeat(1, 1, 2) + boxes * scale.repeat(1, 1, 2)
