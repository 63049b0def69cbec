"""Image source: images from files, URLs and torch datasets, with their labels, decoded as a viewer would display them."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from PIL import Image

from xattn.data import urls
from xattn.data.annotation_files import read_annotations
from xattn.data.annotations import Annotations, of_dataset
from xattn.data.batches import Batch, Batches
from xattn.data.datasets import (
    dataset_at,
    first_item,
    is_dataset,
    item_content,
    item_parts,
    picture_in,
    picture_or_crop,
    refuse_without_length,
    wrong_values,
)
from xattn.data.depth import MAX_PIXELS, Reading, Scaling
from xattn.data.labels import Label, LabelsFrom, class_names_of, folder_of, label_of, labels_in
from xattn.data.listing import NamedImage, file_digest, listed, numbered, unique
from xattn.data.pictures import SUFFIXES, UNREACHED, read_picture, read_scaled
from xattn.data.preprocessing import Frame, Preprocessing, Region, as_picture
from xattn.data.published import absolute
from xattn.deferred import is_tensor, torch
from xattn.errors import ImageError, InputError, NameUnknownError
from xattn.text import counted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

__all__ = ["ImageSource", "read_picture"]

logger = logging.getLogger("xattn")

METADATA = ("metadata.csv", "metadata.jsonl")
TAKEN = (
    "images are a folder, a glob, a file or a CSV, by path or URL; a list of these, or of pictures; a torch data set; or, for explain and "
    "evaluate, a tensor (batch, channels, height, width) in [0, 1]"
)
READERS = 8  # files that are read concurrently for their digests
ITEM_FAILED = "the dataset failed: "
ENDED_PROCESS = "decoding it ended the process that did it"
MOMENTARY = (UNREACHED, ITEM_FAILED, ENDED_PROCESS)
"""The beginnings of errors of images that may become readable later."""


class ImageSource:
    """Named images in a fixed order.

    Args:
        images: a folder (read recursively), a glob, a file, or a CSV with columns `image` and `label`, each given as a path or a URL that
            fsspec can open; archives (.zip, .tar, shards of webdataset with their classes); Parquet files with columns `image` and `label`;
            `datasets:PLACE[:SPLIT]`, a data set of Hugging Face; `NAME:ROOT:SPLIT` of cub, dogs, mit67, voc, market, cityscapes or
            cifar-fs, as published; a list of these; or a torch or Hugging Face dataset of pictures, of (picture, label) pairs, or of dicts
            with keys such as `image` and `label`.
        labels_csv: a file of labels: a CSV with columns `image` (path relative to the given folder), or `file_name`, and `label` (class
            index, name or WordNet id), or JSON lines of these (.jsonl); lines of a path, a space and a label (.txt); or ILSVRC's ground
            truth next to its `meta.mat`.
        labels_from: "folders", the name of each image's folder; "csv", labels_csv or the `metadata.csv` or `metadata.jsonl` of a folder;
            "none"; None: labels_csv, the source's own labels, or such a metadata file, whichever exists.
        depth: number of bits in use in pictures with more than 8 bits; see `Reading`.
        window: the values of black and white in pictures with more than 8 bits; see `Reading`.
        max_pixels: number of pixels of the largest picture that is decoded.
        quiet: do not log files that are left out.

    Raises:
        InputError: there are no images, the label file does not match the images, or depth and window cannot be used.
        MissingPackageError: a Hugging Face data set needs `datasets`, which is not installed.
    """

    def __init__(
        self,
        images: str | Path | Sequence[str | Path] | Dataset[Any],
        labels_csv: str | Path | None = None,
        *,
        labels_from: LabelsFrom | None = None,
        depth: int | None = None,
        window: Sequence[float] | None = None,
        max_pixels: int = MAX_PIXELS,
        quiet: bool = False,
    ) -> None:
        self.reading = Reading(depth, None if window is None else tuple(window), max_pixels)  # type: ignore[arg-type]  # checked there
        self.dataset: Any = None
        self._pairs = False
        self.class_names: tuple[str, ...] | None = None
        self.by_name = False
        self.labels_from = labels_from
        self.annotations: Annotations | None = None
        if labels_from is not None and labels_from not in get_args(LabelsFrom):
            raise NameUnknownError("source of labels", str(labels_from), get_args(LabelsFrom))
        self.origin: list[str] = []
        refuse_without_length(images)
        if is_dataset(images):
            self.dataset = images
        else:
            given = _places(images)
            self.dataset = dataset_at(given)
            self.origin = [str(place) for place in given]
        if self.dataset is not None:
            self.images = numbered(len(self.dataset))
            first = first_item(self.dataset, len(self.images))
            self._pairs = item_parts(first)[1] is not None and labels_csv is None and labels_from in (None, "csv")
            if self._pairs:
                self.class_names = class_names_of(self.dataset)
                try:
                    label_of(item_parts(first)[1])
                except InputError as error:
                    raise InputError(f"the first item of the data set: {error}") from error
        else:
            if wrong := [type(item).__name__ for item in given if not isinstance(item, (str, Path))]:
                said = f"got {type(images).__name__}. A run takes it as list(images)" if is_tensor(images) else ""
                raise InputError(f"{TAKEN}; {said or f'got a list with {wrong[0]}'}.")
            places = [urls.without_file_scheme(str(item)) for item in given]
            self.origin = [place if urls.is_url(place) else absolute(place) for place in places]
            self.images = unique([image for place in places for image in listed(place, quiet=quiet)])
        self.labels_csv: str | None = None
        if labels_csv is not None:
            if labels_from not in (None, "csv"):
                raise InputError(f"a label file and labels_from '{labels_from}' exclude each other: leave one out.")
            table = urls.without_file_scheme(str(labels_csv))
            self.labels_csv = table if urls.is_url(table) else str(Path(table).resolve())
            self.images = _labelled(self.images, table)
        elif labels_from == "none":
            self.images = [replace(image, label=None) for image in self.images]
        elif labels_from == "folders":
            self.label_by_folders()
        elif self.dataset is None and len(given) == 1:
            self._label_by_metadata(str(given[0]))
        if labels_from == "csv" and not self.labelled:
            raise InputError(
                f"labels_from 'csv' needs a label file for the images: labels_csv (--labels-csv), or {METADATA[0]} beside them."
            )
        if not self.images:
            if self.dataset is not None:
                raise InputError("the data set has no items.")
            shown = ", ".join(self.origin)
            raise InputError(f"no images in {shown}: files of {', '.join(sorted(SUFFIXES))} are read, folders recursively.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return self._pairs or all(image.label is not None for image in self.images)

    def with_regions(self, place: str | Path | None) -> ImageSource:
        """Returns the source with object regions of its pictures; None: the ones it already has, or those of the data set itself.

        Raises:
            InputError: the regions cannot be read, or belong to none of the pictures.
        """
        names, source = [image.name for image in self.images], copy.copy(self)
        source.annotations = (self.annotations or of_dataset(self.dataset, names)) if place is None else read_annotations(place, names)
        return source

    def label_by_folders(self) -> None:
        """Labels each image by the name of its folder.

        Raises:
            InputError: an image is not in a folder below the given one, or has no file.
        """
        if bare := [image.name for image in self.images if not folder_of(image.name)]:
            raise InputError(
                f"of {counted(len(self.images), 'image')}, {counted(len(bare), 'lies', 'lie')} in no folder that could name a class, as "
                f"{bare[0]}. Give the folder that holds those of the classes."
            )
        folders = [folder_of(image.name) for image in self.images]
        labels: list[Label] = [(name,) if "|" in name else name for name in folders]  # as a text it would name several classes
        self.images = [replace(image, label=label) for image, label in zip(self.images, labels, strict=True)]

    def _label_by_metadata(self, place: str) -> None:
        """Labels the images from the `metadata.csv` or `metadata.jsonl` of their folder, if it has a label for each."""
        table = next((file for name in METADATA if (file := Path(place) / name).is_file()), None)
        if table is None or any(image.label is not None for image in self.images):
            return
        try:
            self.images = _labelled(self.images, str(table))
        except InputError as error:
            logger.info("%s gives no labels: %s", table, error)
            return
        self.labels_csv = str(table.resolve())
        logger.info("labels: from %s; --labels-from none (labels_from='none') leaves them out", table)

    def digest(self) -> str:
        """Returns a digest that identifies the source: names, labels and sizes of files; for a dataset, its type and three of its items."""
        digest = hashlib.sha256()
        for image in sorted(self.images, key=lambda image: image.index or 0):  # a data set is the same in any order
            size = image.path.stat().st_size if isinstance(image.path, Path) and image.path.is_file() else image.size
            digest.update(f"{image.name}\0{image.label}\0{size}\n".encode(errors="surrogateescape"))
        if self.dataset is not None:
            digest.update(type(self.dataset).__qualname__.encode())
            digest.update("\n".join(self.class_names or ()).encode() if self.by_name else b"")
            for index in sorted({0, len(self.images) // 2, len(self.images) - 1}):
                digest.update(item_content(self.dataset, index))
        return digest.hexdigest()[:16]

    def digests(self, images: Sequence[NamedImage]) -> list[str | None]:
        """Returns a digest of each file's content; for a URL, of the version that its folder lists; None if there is none."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(file_digest, images))

    def decode(self, image: NamedImage, preprocessing: Preprocessing) -> tuple[NamedImage, Tensor]:
        """Decodes an image: returns it with the label that a dataset may provide, and its input crop, uint8 `(C, H, W)`.

        Raises:
            ImageError: the image cannot be read, with the reason.
        """
        return self.decode_scaled(image, preprocessing)[:2]

    def decode_scaled(self, image: NamedImage, preprocessing: Preprocessing) -> tuple[NamedImage, Tensor, Scaling | None, Frame]:
        """Decodes like `decode`; also returns the rule by which more than 8 bits were reduced to 8, and the crop's position."""
        if image.path is not None:
            picture, scaling = read_scaled(image.path, preprocessing.channels, self.reading)
            return image, preprocessing.crop(picture), scaling, preprocessing.frame(picture)
        given, label = item_parts(self._item(image))
        if self._pairs:
            try:
                found = label_of(label)
            except InputError as error:
                raise ImageError(f"label: {error}") from error
            if self.by_name and self.class_names is not None and isinstance(found, int) and 0 <= found < len(self.class_names):
                found = self.class_names[found]
            image = replace(image, label=found)
        return image, *picture_or_crop(given, preprocessing, self.reading)

    def cropped(self, image: NamedImage, preprocessing: Preprocessing) -> Image.Image:
        """Returns the network's input crop as a picture.

        Raises:
            ImageError: the image cannot be read, with the reason.
        """
        if image.path is not None:
            return preprocessing.cropped(read_scaled(image.path, preprocessing.channels, self.reading)[0])
        given = item_parts(self._item(image))[0]
        found = picture_in(given, preprocessing.channels, self.reading)
        return as_picture(picture_or_crop(given, preprocessing, self.reading)[0]) if found is None else preprocessing.cropped(found[0])

    def photograph(self, image: NamedImage, preprocessing: Preprocessing) -> tuple[Image.Image, Region]:
        """Returns the picture at its own size, in RGB as a viewer displays it, and the region that the network's crop keeps.

        A tensor of a data set is already a crop; its region is the whole tensor.

        Raises:
            ImageError: the image cannot be read, with the reason.
        """
        if image.path is not None:
            picture = read_scaled(image.path, 3, self.reading)[0]
        else:
            given = item_parts(self._item(image))[0]
            found = picture_in(given, 3, self.reading)
            if found is None:
                crop = as_picture(picture_or_crop(given, preprocessing, self.reading)[0])
                return crop, Region(0, 0, *crop.size)
            picture = found[0]
        return picture, preprocessing.region(picture)

    def _item(self, image: NamedImage) -> Any:
        if self.dataset is None or image.index is None:
            raise ImageError(f"'{image.name}' has neither a file nor an index in a dataset")
        try:
            return self.dataset[image.index]
        except Exception as error:  # any error of an item counts as an error of that image
            raise ImageError(f"{ITEM_FAILED}{type(error).__name__}: {error}") from error

    def refuse_wrong_values(self, count: int) -> None:
        """Raises if tensors of a data set are in a range that a run does not accept, judged by the first items.

        Args:
            count: number of items to check.

        Raises:
            InputError: they are normalised, reach 255, or are neither uint8 nor floats; says what to do.
        """
        for index in range(min(count, len(self.images)) if self.dataset is not None else 0):
            try:
                item = self.dataset[index]
            except Exception:  # reported as this image's error when it is decoded
                continue
            if is_tensor(given := item_parts(item)[0]) and (wrong := wrong_values(given)):
                raise InputError(f"item {index} of the data set: {wrong}")

    def by_number(self, preprocessing: Preprocessing, batch_size: int) -> Batches:
        """Returns its batches by number, each decoded when requested."""
        return Batches(self.images, partial(self.decode_scaled, preprocessing=preprocessing), batch_size)

    def batches(
        self, preprocessing: Preprocessing, batch_size: int, *, workers: int = 0, wanted: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Yields decoded batches in order, read ahead by worker processes: the wanted numbers, or all if None."""
        decoder: Any = self.by_number(preprocessing, batch_size)  # a data set without the base class, which would import torch
        wanted = range(decoder.count) if wanted is None else wanted
        loader = torch.utils.data.DataLoader[Batch](
            decoder, batch_size=None, sampler=wanted, num_workers=min(workers, len(wanted)), pin_memory=torch.cuda.is_available()
        )
        yield from loader


def _places(images: Any) -> list[Any]:
    """Returns images that are not a data set as a list.

    Raises:
        InputError: they are neither a path nor a list.
    """
    if isinstance(images, (str, Path)):
        return [images]
    if isinstance(images, (Image.Image, bytes, bytearray)):
        advice = "One picture is [picture]." if isinstance(images, Image.Image) else "Content of a file is decoded by PIL.Image.open."
        raise InputError(f"{TAKEN}; got {type(images).__name__}. {advice}")
    try:
        return list(images)
    except TypeError as error:
        raise InputError(f"{TAKEN}; got {type(images).__name__}.") from error


def _labelled(images: list[NamedImage], path: str) -> list[NamedImage]:
    """Returns the images with their labels from a file.

    Raises:
        InputError: it cannot be read, or lacks a label for some image.
    """
    labels = labels_in(path, [image.name for image in images])
    without = [image.name for image in images if labels.get(image.name) is None]
    if without and labels and not any(label is not None for label in labels.values()):
        raise InputError(
            f"{path} names {counted(len(labels), 'image')} and gives none a label: a column 'label' with a class for each is needed."
        )
    if without:
        shown = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
        absent = [name for name in without if name not in labels]
        known = f"It holds {', '.join(list(labels)[:3])}, …" if labels else "It holds no image"
        why = f" {known}: paths relative to the given folder are needed." if absent else " Give each one, or leave the image out."
        raise InputError(f"of {counted(len(images), 'image')}, {counted(len(without), 'has', 'have')} no label in {path} ({shown}).{why}")
    return [replace(image, label=labels[image.name]) for image in images]
