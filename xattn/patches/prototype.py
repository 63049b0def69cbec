"""Patch finder: regions that resemble the prototypes of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from xattn.boxes import cell_centres, squares
from xattn.errors import InputError, SettingError, UnsupportedError
from xattn.heads.protopnet import ProtoPNetHead
from xattn.models import Classifier
from xattn.patches.base import features_of, image_size, register


@register("prototype", source="Chen et al. 2019, Sec. 2.4 and App.; Shroff 2020, Sec. 3.1.2", trained=True)
@dataclass(frozen=True)
class PrototypePatches:
    """Boxes around the regions most similar to the predicted class's prototypes, for a classifier with a trained protopnet head.

    Attributes:
        percentile: the box of a prototype is the smallest box that holds all pixels of its similarity map, enlarged to the image's size by
            bicubic interpolation, whose value is at least this percentile of the map.

    In training, the classes are the labels; labels of test pictures must not be used.
    Differs: the released boxes of test pictures were found with their true class; these boxes are found with the predicted class.
    """

    percentile: float = 95.0

    def __post_init__(self) -> None:
        if not 0 <= self.percentile < 100:
            raise SettingError(f"prototype takes a percentile from 0 to below 100; got {self.percentile}.")

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
        """Returns boxes `(B, n, 4)` of the class's n most similar prototypes, most similar first; with a side, squares around their maxima.

        Raises:
            UnsupportedError: the head is not protopnet, or is not trained.
            InputError: n exceeds the number of prototypes of a class, or the head does not have the classes.
        """
        size = image_size(images, n)
        head = classifier.head
        if not isinstance(head, ProtoPNetHead) or not classifier.trained:
            state = "that was trained" if isinstance(head, ProtoPNetHead) else f"and this classifier has {classifier.head_name}"
            raise UnsupportedError(f"prototype needs the head protopnet, {state}: xattn train --head protopnet …, then load that file.")
        if n > head.settings.per_class:
            raise InputError(
                f"a class has {head.settings.per_class} prototypes, and {n} boxes were asked for: give n of at most that, or train with "
                f"protopnet:per_class={n}."
            )
        features = features_of(classifier, images, classifier.attachment.stages[0].name).to(head.prototypes.dtype)
        with torch.no_grad():
            similar = head.similarities(features)
            wanted = classes_of(head, similar, classes)
            maps = head.of_class(similar, wanted)
            strongest = maps.amax(dim=(2, 3)).argsort(dim=1, descending=True, stable=True)[:, :n]
            maps = maps.gather(1, strongest[..., None, None].expand(-1, -1, *maps.shape[2:]))
        if side is None:
            return bounding_boxes(maps, size, self.percentile).to(images.device)
        centres = cell_centres(maps.flatten(2).argmax(dim=2), (maps.shape[2], maps.shape[3]), size)
        return squares(centres, side, size).to(images.device, torch.float32)


def classes_of(head: ProtoPNetHead, similar: Tensor, classes: Tensor | None) -> Tensor:
    """Returns the class of each image: the given one, else the predicted one.

    Args:
        head: head whose prototypes are compared.
        similar: similarities `(B, K·per_class, h, w)`.
        classes: `(B,)` or None.

    Raises:
        InputError: the head does not have the classes.
    """
    if classes is None:
        return (similar.amax(dim=(2, 3)).to(head.last.weight.dtype) @ head.last.weight.T).argmax(dim=1)
    classes = classes.to(similar.device)
    if classes.shape != (len(similar),) or classes.is_floating_point() or not bool(((classes >= 0) & (classes < head.classes)).all()):
        raise InputError(f"classes are one index below {head.classes} for each of {len(similar)} images; got {tuple(classes.shape)}.")
    return classes


def bounding_boxes(maps: Tensor, size: tuple[int, int], percentile: float) -> Tensor:
    """Returns the smallest box around the highest values of each map.

    Args:
        maps: `(B, n, h, w)`.
        size: height and width of the image, to which they are enlarged by bicubic interpolation.
        percentile: values of at least this percentile of the enlarged map are in the box.

    Returns:
        `(B, n, 4)`, float32, x1, y1, x2, y2 in whole pixels.
    """
    boxes = []
    for image in maps:  # one at a time: at the image's size they are large
        large = functional.interpolate(image[None], size=size, mode="bicubic", align_corners=False)[0]
        for each in large:
            rows, columns = ((each >= torch.quantile(each, percentile / 100)).any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
            boxes.append(torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]))
    return torch.stack(boxes).view(*maps.shape[:2], 4).float() if boxes else maps.new_empty((0, maps.shape[1], 4))
