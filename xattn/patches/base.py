"""Patch finders: their interface and registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.models import Classifier
from xattn.models.loading import refuse_no_classifier
from xattn.models.streams import GLOBAL_STAGE
from xattn.registry import Registry

SHARE = 4  # the default side of a square box is the image's shorter side divided by this


@dataclass(frozen=True)
class FinderMetadata:
    """Properties that a patch finder declares.

    Attributes:
        source: the publication.
        control: it does not use the network; a finder that is not better than a control is useless.
        trained: it needs a head that was trained for it.
        stored: it reads stored boxes by row, and needs the rows of the images.
    """

    source: str
    control: bool = False
    trained: bool = False
    stored: bool = False


class Finder(Protocol):
    """Interface of patch finders: a frozen dataclass of settings that finds boxes in images, without part labels."""

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
        """Finds boxes in images; the result for an image does not depend on its batch.

        Args:
            classifier: the classifier whose features or head are used.
            images: `(B, C, H, W)` in pixel space, float in [0, 1].
            n: boxes per image.
            side: side of the boxes in pixels; None: the finder's default, for square boxes a quarter of the image's shorter side.
            classes: `(B,)`, labels of training images, for a finder whose boxes depend on the class. None: the predicted class. Never pass
                labels of test images: their boxes would reveal the class.
            rows: rows of the images in the stored boxes, for a finder that reads stored boxes.

        Returns:
            `(B, n, 4)`, float, x1, y1, x2, y2 in pixels of `images`, as in torchvision.ops; on the images' device, strongest first.
        """


Registered = TypeVar("Registered", bound=Callable[..., Any])

finders: Registry[FinderMetadata, Finder] = Registry("patch finder")


def register(
    name: str, *, source: str, control: bool = False, trained: bool = False, stored: bool = False
) -> Callable[[Registered], Registered]:
    """Decorator that registers a patch finder: a frozen dataclass of settings that is a `Finder`."""
    return finders.register(name, FinderMetadata(source, control, trained, stored))


def find(
    classifier: Classifier,
    images: Tensor,
    finder: str = "activation",
    n: int = 10,
    side: int | None = None,
    *,
    classes: Tensor | None = None,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Finds boxes in images with the finder `name[:key=value,…]`; the other arguments are those of a `Finder`.

    Returns:
        `(B, n, 4)`, x1, y1, x2, y2 in pixels of `images`.

    Raises:
        NameUnknownError: the finder or setting does not exist.
        InputError: images have another shape, the side does not fit, or the finder has fewer boxes than requested.

    >>> import torch, xattn
    >>> classifier = xattn.load("birds:gap", device="cpu")
    >>> xattn.patches.find(classifier, torch.rand(2, 3, 64, 64), n=4).shape
    torch.Size([2, 4, 4])
    """
    refuse_no_classifier(classifier)
    return finders.create(finder).instance(classifier, images, n, side, classes=classes, rows=rows)


def image_size(images: Tensor, n: int) -> tuple[int, int]:
    """Returns height and width of images in pixel space in which n boxes are to be found.

    Raises:
        InputError: they are not `(B, C, H, W)` and float, or n is below 1.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"patches are found in a tensor of images (batch, channels, height, width); got {type(images).__name__}.")
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(f"patches are found in images (batch, channels, height, width), float; got {tuple(images.shape)} {images.dtype}.")
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise InputError(f"n is the number of boxes per image, 1 or more; got {n!r}.")
    return images.shape[2], images.shape[3]


def side_or_default(side: int | None, size: tuple[int, int]) -> int:
    """Returns the side of square boxes in pixels; None: a quarter of the image's shorter side.

    Raises:
        InputError: it is not a whole number.
    """
    if side is not None and (not isinstance(side, Integral) or isinstance(side, bool)):
        raise InputError(f"side is the side of square boxes, a whole number of pixels; got {side!r}.")
    return max(1, min(size) // SHARE) if side is None else int(side)


def features_of(classifier: Classifier, images: Tensor, stage: str | None) -> Tensor:
    """Returns features `(B, C, h, w)` of a stage, without gradients, in at least float32.

    None means the input of the pooling; for a two-stream network, that of its global stream.

    Raises:
        InputError: the stage has maps of patches.
    """
    found_stage = classifier.stage(stage)
    if found_stage.boxes and stage is None:
        found_stage = classifier.stage(GLOBAL_STAGE)
    if found_stage.boxes:
        raise InputError(f"stage '{found_stage.name}' has maps of patches, not of the picture: use stage={GLOBAL_STAGE}.")
    name = found_stage.name
    with torch.no_grad():
        found = classifier.features(images.to(classifier.device), [name])[name]
    return found if found.dtype == torch.float64 else found.float()


def refuse_too_many(n: int, grid: tuple[int, int]) -> None:
    """Raises if a map has fewer cells than the requested boxes.

    Raises:
        InputError: it has fewer.
    """
    if n > grid[0] * grid[1]:
        raise InputError(
            f"{n} boxes cannot be told apart in a map of {grid[0]} × {grid[1]} cells: give n of at most {grid[0] * grid[1]}, or an earlier "
            "stage, which has more (stage=…)."
        )
