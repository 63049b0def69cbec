"""Patch finder: boxes stored in the file format of Focus Longer to See Better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xattn.boxes import check_boxes, squares
from xattn.data.npy import npy, read_npy
from xattn.errors import InputError, RunError, SettingError
from xattn.models import Classifier
from xattn.patches.base import image_size, register
from xattn.text import counted

SIDE = 448
COLUMNS = 5
NO_CLASS = -1


def read_patches(path: str | Path, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Reads a file of boxes, as released with Focus Longer to See Better.

    Each row is y1, y2, x1, x2, class in a picture resized to 448 × 448, for n boxes of each of N pictures in the order of torchvision's
    `ImageFolder`: by class folder, then by file name.

    Args:
        path: a `.npy` file, `(N, n, 5)`.
        count: N, number of pictures in the data set; None: any.

    Returns:
        Boxes `(N, n, 4)`, float32, x1, y1, x2, y2 in pixels of 448 × 448; and their classes `(N, n)`, -1 where none is stored.
        Never pass the classes of test pictures to a network: in the released file of the test pictures they are the true classes.

    Raises:
        InputError: the file cannot be read or has another shape or number of rows, boxes are empty or leave the picture, or classes are not
            indices.

    Source: Shroff 2020, Sec. 3.1.2, and the released `.npy` files.
    """
    values = read_npy(path).double()
    if values.dim() != 3 or values.shape[2] != COLUMNS or not values.shape[1]:
        raise InputError(
            f"'{path}' has the shape {tuple(values.shape)}: (pictures, boxes, {COLUMNS}) with y1, y2, x1, x2, class are needed."
        )
    if count is not None and len(values) != count:
        raise InputError(
            f"'{path}' has boxes for {counted(len(values), 'picture')}, but the data set has {count}: give the file of this split."
        )
    boxes = values[:, :, [2, 0, 3, 1]]
    classes = values[:, :, 4]
    try:
        check_boxes(boxes, len(boxes), (SIDE, SIDE))
    except InputError as error:
        raise InputError(f"'{path}': {error}") from error
    if not bool(((classes >= NO_CLASS) & (classes < 2**31) & (classes == classes.round())).all()):  # also false for NaN
        raise InputError(f"'{path}' has a class that is neither an index from 0 nor {NO_CLASS} for none.")
    return boxes.float(), classes.long()


def write_patches(path: str | Path, boxes: Tensor, size: tuple[int, int], classes: Tensor | None = None) -> None:
    """Writes boxes in the format that `read_patches` reads.

    Args:
        path: a `.npy` file.
        boxes: `(N, n, 4)`, x1, y1, x2, y2 in pixels of an image of `size`, which is the whole picture, resized.
        size: height and width of that image.
        classes: `(N,)` or `(N, n)`; None: -1, no class.

    Raises:
        InputError: boxes have another shape, are empty or leave the image.
        RunError: the file cannot be written.
    """
    check_boxes(boxes, len(boxes), size)
    scaled = boxes.double().cpu() * torch.tensor((SIDE / size[1], SIDE / size[0]) * 2, dtype=torch.float64)
    known = torch.full((1, 1), NO_CLASS) if classes is None else classes.cpu().view(len(boxes), -1)
    column = known.double().expand(*boxes.shape[:2])[..., None]
    try:
        Path(path).write_bytes(npy(torch.cat([scaled[..., [1, 3, 0, 2]], column], dim=2), torch.float64))
    except OSError as error:
        raise RunError(f"'{path}' cannot be written ({error.strerror}).") from error


@register("file", source="Shroff 2020, Sec. 3.1.2, and the released files", stored=True)
@dataclass(frozen=True)
class StoredPatches:
    """Boxes from a `.npy` of y1, y2, x1, x2, class in pictures of 448 × 448, as released; the class is never used.

    Attributes:
        path: path of the file, without commas.

    In the released file, rows of test pictures contain the true class, with which the boxes seem to have been found. Ignoring that column
    does not prevent the boxes from revealing the class. `prototype` finds new boxes with the predicted class.
    """

    path: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            raise SettingError("file needs a path: write file:path=boxes.npy.")

    def __call__(
        self,
        classifier: Classifier,
        images: Tensor,
        n: int = 10,
        side: int | None = None,
        *,
        classes: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Returns boxes `(B, n, 4)`, the first n of each picture; with a side, squares around their centres.

        Raises:
            InputError: no rows are given, the file has fewer rows or boxes than requested, or the classifier crops the pictures, because
                the boxes are those of whole pictures.
        """
        size = image_size(images, n)
        resize, shape = classifier.preprocessing.resize, classifier.input_size
        if resize != shape:
            raise InputError(
                f"the boxes of '{self.path}' are for whole pictures, but {classifier.name} crops them ({classifier.preprocessing}): "
                f"load it with resize={shape[0], shape[1]}."
            )
        boxes, _ = read_patches(self.path)
        if rows is None or len(rows) != len(images):
            raise InputError(f"file needs the row of each image in '{self.path}', as rows=[0, 1, …] for {counted(len(images), 'image')}.")
        if rows and not 0 <= min(rows) <= max(rows) < len(boxes):
            raise InputError(f"'{self.path}' has rows 0 to {len(boxes) - 1}; {min(rows)} to {max(rows)} were asked for.")
        if n > boxes.shape[1]:
            raise InputError(f"'{self.path}' has {counted(boxes.shape[1], 'box')} per picture; {n} were asked for.")
        found = boxes[list(rows), :n] * torch.tensor((size[1] / SIDE, size[0] / SIDE) * 2)
        if side is not None:
            found = squares((found[..., :2] + found[..., 2:]) / 2, side, size)
        return found.to(images.device)
