"""Object regions of pictures, boxes or masks, from CSV, COCO's JSON, VOC's XML and mask images; and their visible part in a crop.

Coordinates are pixels of the picture as a viewer displays it; 0 is the outer edge of the first pixel. Objects are resized and cropped with
their picture: a pixel of the crop belongs to an object if its centre, mapped to the picture, lies in the object.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from xattn.data.depth import MAX_PIXELS
from xattn.data.preprocessing import Frame, Region
from xattn.deferred import torch
from xattn.errors import ImageError, InputError

if TYPE_CHECKING:
    from torch import Tensor

MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".pgm", ".pbm")


class Shape(Protocol):
    """Interface of an object's shape."""

    def seen(self, frame: Frame, size: tuple[int, int]) -> Tensor:
        """Returns `(H, W)` bool: the pixels of the crop, of height and width `size`, that lie in the shape.

        Raises:
            ImageError: the shape belongs to another picture, or cannot be read.
        """
        ...

    def content(self) -> str:
        """Identifies the shape among others."""
        ...


@dataclass(frozen=True)
class Box:
    """A rectangle.

    Attributes:
        edges: in pixels of the picture.
    """

    edges: Region

    def seen(self, frame: Frame, size: tuple[int, int]) -> Tensor:
        y, x = _centres(frame, size)
        rows, columns = (y >= self.edges.top) & (y < self.edges.bottom), (x >= self.edges.left) & (x < self.edges.right)
        return rows[:, None] & columns

    def content(self) -> str:
        return str(tuple(self.edges))


@dataclass(frozen=True)
class MaskImage:
    """A mask in its own file, with two values: 0, and another value in the object.

    Attributes:
        path: path of the file.
    """

    path: Path

    def seen(self, frame: Frame, size: tuple[int, int]) -> Tensor:
        try:
            with Image.open(self.path) as picture:
                _refuse_other_size(f"the mask {self.path.name}", picture.size, frame)
                picture.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"the mask {self.path.name} cannot be read ({error})") from error
        values = _values(picture)
        if len(found := values.unique()) > 2 or (len(found) == 2 and 0 not in found.tolist()):
            raise ImageError(f"the mask {self.path.name} holds {len(found)} values: 0 and one other are needed; threshold it")
        return sampled(values != 0, frame, size)

    def content(self) -> str:
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError as error:
            return f"{self.path.name}: {error.strerror}"


@dataclass(frozen=True)
class DrawnMask:
    """A mask that a function returns.

    Attributes:
        draw: returns the mask at the picture's size, `(h, w)` bool.
        about: identifies the shape among others.
        size: width and height of the mask's picture; None: any.
    """

    draw: Callable[[], Tensor]
    about: str
    size: tuple[int, int] | None = None

    def seen(self, frame: Frame, size: tuple[int, int]) -> Tensor:
        if self.size is not None:
            _refuse_other_size("the annotation", self.size, frame)
        drawn = self.draw()
        _refuse_other_size("the mask", (drawn.shape[1], drawn.shape[0]), frame)
        return sampled(drawn, frame, size)

    def content(self) -> str:
        return self.about


@dataclass(frozen=True)
class AnnotatedObject:
    """An object in a picture.

    Attributes:
        shape: shape of the object.
        label: class index, name or WordNet id, as a text; None: it is the picture's object whatever class is asked for.
    """

    shape: Shape
    label: str | None = None


@dataclass(frozen=True)
class Annotations:
    """The objects of pictures.

    Attributes:
        origin: the file or folder from which they were read.
        objects: objects by name of the picture, as in the rows; a picture without objects may be absent.
        sizes: width and height of the annotated pictures, by name, if the annotations state them.
    """

    origin: str
    objects: Mapping[str, tuple[AnnotatedObject, ...]]
    sizes: Mapping[str, tuple[int, int]]

    @property
    def labels(self) -> set[str]:
        """Returns the classes of objects that have one."""
        return {each.label for some in self.objects.values() for each in some if each.label is not None}

    @cached_property
    def digest(self) -> str:
        """Returns a digest of all objects and their shapes."""
        found = hashlib.sha256()
        for name, some in sorted(self.objects.items()):
            found.update(
                "\0".join([name, *(f"{each.label} {each.shape.content()}" for each in some), "\n"]).encode(errors="surrogateescape")
            )
        return found.hexdigest()[:16]

    def seen(self, name: str, frame: Frame, size: tuple[int, int], wanted: Callable[[str | None], bool]) -> Tensor:
        """Returns the objects visible in a crop, `(N, H, W)` bool; objects outside the crop are left out.

        Args:
            name: name of the picture.
            frame: size of the picture, and the region that the crop keeps.
            size: height and width of the crop.
            wanted: whether objects of a label are wanted.

        Raises:
            ImageError: the annotation belongs to a picture of another size, or a mask cannot be read.
        """
        if name in self.sizes:
            _refuse_other_size("the annotation", self.sizes[name], frame)
        masks = [each.shape.seen(frame, size) for each in self.objects.get(name, ()) if wanted(each.label)]
        shown = [mask for mask in masks if bool(mask.any())]
        return torch.stack(shown) if shown else torch.zeros((0, *size), dtype=torch.bool)


def of_dataset(dataset: Any, names: Sequence[str]) -> Annotations | None:
    """Returns a data set's own regions, from a method `region(index)` that returns a mask `(h, w)` bool; None if it has none."""
    if not callable(getattr(dataset, "region", None)):
        return None
    objects = {name: (AnnotatedObject(DrawnMask(_Item(dataset, index), f"region {index}")),) for index, name in enumerate(names)}
    return Annotations(type(dataset).__name__, objects, {})


@dataclass(frozen=True)
class _Item:
    dataset: Any
    index: int

    def __call__(self) -> Tensor:
        found: Tensor = self.dataset.region(self.index)
        return found


def sampled(mask: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
    """Crops a mask of a whole picture: takes the value at the centre of each pixel of the crop.

    Args:
        mask: `(h, w)`, mask of the picture.
        frame: size of the picture, and the region that the crop keeps.
        size: height and width of the crop.
    """
    y, x = (centres.floor().long() for centres in _centres(frame, size))
    return mask[y.clamp(0, mask.shape[0] - 1)[:, None], x.clamp(0, mask.shape[1] - 1)]


def _centres(frame: Frame, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Maps the centres of a crop's rows and columns to the picture, `(H,)` and `(W,)` float64."""
    kept = frame.kept
    return (
        kept.top + (torch.arange(size[0], dtype=torch.float64) + 0.5) * ((kept.bottom - kept.top) / size[0]),
        kept.left + (torch.arange(size[1], dtype=torch.float64) + 0.5) * ((kept.right - kept.left) / size[1]),
    )


def _refuse_other_size(what: str, size: tuple[int, int], frame: Frame) -> None:
    if tuple(size) != tuple(frame.size):
        raise ImageError(f"{what} is of {size[0]}×{size[1]} pixels, and the picture has {frame.size[0]}×{frame.size[1]}")


def _values(picture: Image.Image) -> Tensor:
    """Returns the values of a mask image `(h, w)`: indices for a palette; one number per colour for several channels.

    Black is 0, and so are transparent pixels; a partly transparent colour is a separate value.
    """
    if picture.mode.startswith(("I", "F")):
        return torch.frombuffer(bytearray(picture.convert("F").tobytes()), dtype=torch.float32).view(picture.height, picture.width)
    if picture.mode in ("1", "L", "P"):
        plain = picture if picture.mode == "P" else picture.convert("L")
        return torch.frombuffer(bytearray(plain.tobytes()), dtype=torch.uint8).view(picture.height, picture.width)
    channels = torch.frombuffer(bytearray(picture.convert("RGBA").tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 4)
    red, green, blue, alpha = channels.int().unbind(dim=2)
    colours = (red << 16) + (green << 8) + blue
    return torch.where(alpha == 255, colours, torch.where(alpha == 0, 0, -1))


def mask_images(folder: Path, files: Iterable[Path], names: Sequence[str]) -> dict[str, tuple[AnnotatedObject, ...]]:
    """Finds the mask of each picture: the file with the same path below the folder, with any extension.

    Args:
        folder: folder of the masks.
        files: files in the folder.
        names: names of the pictures.

    Raises:
        InputError: a picture has two mask files.
    """
    by_stem: dict[str, Path] = {}
    for file in files:
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if file.suffix.lower() in MASK_SUFFIXES and by_stem.setdefault(stem, file) != file:
            raise InputError(f"'{folder}' has two masks of one picture, {by_stem[stem].name} and {file.name}: leave one.")
    stems = {name: PurePosixPath(name).with_suffix("").as_posix() for name in names}
    return {name: (AnnotatedObject(MaskImage(by_stem[stem])),) for name, stem in stems.items() if stem in by_stem}


def box(edges: Sequence[float]) -> Box | None:
    """Returns a box from its left, top, right and bottom edge; None if they do not form a box."""
    left, top, right, bottom = edges
    if not all(math.isfinite(edge) for edge in edges) or left >= right or top >= bottom:
        return None
    return Box(Region(left, top, right, bottom))


def is_side(value: object) -> bool:
    """Checks whether a value can be the width or height of a picture."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_PIXELS
