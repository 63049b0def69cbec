"""Images from files, URLs and torch datasets, decoded in worker processes as a viewer would show them."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xattn.data import urls
from xattn.data.listing import SUFFIXES, NamedImage, labelled, listed, unique
from xattn.data.preprocessing import MAX_PIXELS, Preprocessing
from xattn.errors import ImageError, InputError, RunError


@dataclass(frozen=True)
class Batch:
    """Decoded images.

    Attributes:
        number: position of the batch in the source.
        images: those that could be read.
        crops: uint8 `(B, C, H, W)`, what the network sees of them.
        failed: those that could not be read, with the reason.
    """

    number: int
    images: list[NamedImage] = field(default_factory=list)
    crops: Tensor = field(default_factory=lambda: torch.empty(0, 3, 0, 0, dtype=torch.uint8))
    failed: list[tuple[NamedImage, str]] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """The same in pinned memory, which a GPU copies from while it computes; the loader calls this where there is a GPU."""
        return replace(self, crops=self.crops.pin_memory()) if len(self.crops) else self


class ImageSource:
    """Named images in a fixed order.

    Args:
        images: a folder (read recursively), a glob, a file, or a CSV with columns `image` and `label`, each given as a path or a URL that
            fsspec knows; a list of these; or a torch dataset of pictures, or of (picture, label) pairs.
        labels_csv: a CSV with columns `image` (path relative to the given folder) and `label` (class index or name).

    Raises:
        InputError: nothing is there, or the label file does not match the images.
    """

    def __init__(self, images: str | Path | Sequence[str | Path] | Dataset[Any], labels_csv: str | Path | None = None) -> None:
        self.dataset: Dataset[Any] | None = None
        self._pairs = False
        self.origin: list[str] = []
        if isinstance(images, Dataset):
            self.dataset = images
            self.images = _dataset_images(images)
            first = _first_item(images, len(self.images))
            self._pairs = isinstance(first, (tuple, list)) and len(first) > 1 and labels_csv is None
        else:
            given = [images] if isinstance(images, (str, Path)) else list(images)
            if wrong := [type(item).__name__ for item in given if not isinstance(item, (str, Path))]:
                raise InputError(
                    "images are paths, a torch dataset or, for explain, a tensor (batch, channels, height, width) in [0, 1]; "
                    f"got {wrong[0]}."
                )
            places = [urls.without_file_scheme(str(item)) for item in given]
            self.origin = [place if urls.is_url(place) else os.path.abspath(place) for place in places]
            self.images = unique([image for place in places for image in listed(place)])
        self.labels_csv: str | None = None
        if labels_csv is not None:
            table = urls.without_file_scheme(str(labels_csv))
            self.labels_csv = table if urls.is_url(table) else str(Path(table).resolve())
            self.images = labelled(self.images, table)
        if not self.images:
            shown = ", ".join(self.origin) or "the dataset"
            raise InputError(f"no images in {shown}: files of {', '.join(sorted(SUFFIXES))} are read, folders recursively.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return self._pairs or all(image.label is not None for image in self.images)

    def digest(self) -> str:
        """A digest that distinguishes sources: names, labels and sizes of files; for a dataset, its type and three of its items."""
        digest = hashlib.sha256()
        for image in self.images:
            size = image.path.stat().st_size if isinstance(image.path, Path) and image.path.is_file() else image.size
            digest.update(f"{image.name}\0{image.label}\0{size}\n".encode())
        if self.dataset is not None:
            digest.update(type(self.dataset).__qualname__.encode())
            for index in sorted({0, len(self.images) // 2, len(self.images) - 1}):
                digest.update(_content(self.dataset, index))
        return digest.hexdigest()[:16]

    def decode(self, image: NamedImage, preprocessing: Preprocessing) -> tuple[NamedImage, Tensor]:
        """The image, with the label that a dataset gives with the picture, and the crop that the network sees: uint8 `(C, H, W)`.

        Raises:
            ImageError: the image cannot be read, with the reason.
        """
        if image.path is not None:
            return image, preprocessing.crop(read_picture(image.path, preprocessing.channels))
        if self.dataset is None or image.index is None:
            raise ImageError(f"'{image.name}' has neither a file nor an index in a dataset")
        try:
            item = self.dataset[image.index]
        except Exception as error:  # any error of one item is that image's error
            raise ImageError(f"the dataset failed: {type(error).__name__}: {error}") from error
        picture = item
        if isinstance(item, (tuple, list)):
            picture = item[0]
            if self._pairs:
                image = replace(image, label=_label_of(item[1]))
        if isinstance(picture, Image.Image):
            return image, preprocessing.crop(_decoded(picture, preprocessing.channels))
        if isinstance(picture, Tensor) and picture.shape == (preprocessing.channels, *preprocessing.input_size):
            crop = picture if picture.dtype == torch.uint8 else (picture * 255).round().clamp(0, 255).to(torch.uint8)
            return image, crop
        came = tuple(picture.shape) if isinstance(picture, Tensor) else type(picture).__name__
        needed = (preprocessing.channels, *preprocessing.input_size)
        raise ImageError(f"a dataset gives PIL pictures, or tensors {needed} in [0, 1] or uint8; got {came}.")

    def batches(
        self, preprocessing: Preprocessing, batch_size: int, *, workers: int = 0, wanted: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Decoded batches in order, read ahead by worker processes: those of the wanted numbers, or all if None."""
        decoder = Batches(self, preprocessing, batch_size)
        wanted = range(decoder.count) if wanted is None else wanted
        loader = DataLoader(
            decoder, batch_size=None, sampler=wanted, num_workers=min(workers, len(wanted)), pin_memory=torch.cuda.is_available()
        )
        yield from loader


class Batches(Dataset[Batch]):
    """Batches by number, so that one worker decodes a whole batch."""

    def __init__(self, source: ImageSource, preprocessing: Preprocessing, batch_size: int) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.count = -(-len(source) // batch_size)

    def __getitem__(self, number: int) -> Batch:
        batch = Batch(number)
        crops = []
        for image in self.source.images[number * self.batch_size : (number + 1) * self.batch_size]:
            try:
                decoded, crop = self.source.decode(image, self.preprocessing)
                batch.images.append(decoded)
                crops.append(crop)
            except ImageError as error:
                batch.failed.append((image, str(error)))
        return Batch(number, batch.images, torch.stack(crops) if crops else batch.crops, batch.failed)


def read_picture(path: str | Path, channels: int = 3) -> Image.Image:
    """A picture as a viewer shows it, in RGB: EXIF orientation applied, first frame, alpha on white.

    Args:
        path: of the picture, or its URL.
        channels: that will be taken of it; with more than three, its own channels are left as they are.

    Raises:
        ImageError: the file is empty, truncated, not a picture, or larger than `MAX_PIXELS`.
        RunError: the storage does not answer.
    """
    content = io.BytesIO(_fetched(path)) if isinstance(path, str) and urls.is_url(path) else None
    try:
        if (Path(path).stat().st_size if content is None else len(content.getbuffer())) == 0:
            raise ImageError("empty file (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked here, and Pillow's warnings about metadata do not matter
            with Image.open(path if content is None else content) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise ImageError(f"{width}×{height} pixels, more than {MAX_PIXELS:,}: a decompression bomb?")
                picture.seek(0)
                picture.load()
                return _decoded(ImageOps.exif_transpose(picture), channels)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not a picture in a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    except OSError as error:
        raise ImageError(error.strerror or f"torn or damaged: {error}") from error
    except Exception as error:  # errors of Pillow's decoders on broken files have no common base class
        raise ImageError(f"damaged: {type(error).__name__} {error}") from error


def _fetched(url: str) -> bytes:
    try:
        return urls.read(url)
    except (FileNotFoundError, PermissionError) as error:
        raise ImageError(error.strerror or f"it is not there, or may not be read: {error}") from error
    except OSError as error:  # silent storage says nothing about the image: the run stops, and can be resumed
        raise RunError(f"'{url}' could not be read ({error}). What was finished is kept: run the same command to go on.") from error


def _decoded(picture: Image.Image, channels: int) -> Image.Image:
    return picture if channels > 3 else _as_rgb(picture)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit values in 16 or 32 bits
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    elif picture.mode == "F":
        low, high = (float(extreme) for extreme in picture.getextrema())  # type: ignore[arg-type]  # one band
        scale = 255.0 if low >= 0 and high <= 1 else 1.0
        picture = picture.point(lambda value: value * scale).convert("L")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _label_of(given: Any) -> int | float | str | tuple[int | str, ...]:
    """A label of a dataset: a class index or name, several of these, a multi-hot vector, or a value."""
    if isinstance(given, str):
        return given
    if isinstance(given, Tensor) and given.dim() == 1 and len(given) > 1:
        return tuple(int(index) for index in given.nonzero()[:, 0])
    if isinstance(given, (tuple, list)):
        return tuple(each if isinstance(each, str) else int(each) for each in given)
    value = float(given)
    return int(value) if value.is_integer() else value


def _first_item(dataset: Dataset[Any], count: int) -> Any:
    """The first item that can be read; it shows whether items are pairs."""
    for index in range(min(count, 10)):
        try:
            return dataset[index]
        except Exception:  # reported as that image's error when it is decoded
            continue
    return None


def _content(dataset: Dataset[Any], index: int) -> bytes:
    try:
        item = dataset[index]
    except Exception:  # reported as that image's error when it is decoded
        return b"failed"
    picture, label = (item[0], item[1]) if isinstance(item, (tuple, list)) and len(item) > 1 else (item, None)
    content = picture.contiguous().numpy().tobytes() if isinstance(picture, Tensor) else getattr(picture, "tobytes", lambda: b"")()
    return content + str(label).encode()


def _dataset_images(dataset: Dataset[Any]) -> list[NamedImage]:
    count = len(dataset)  # type: ignore[arg-type]
    width = len(str(max(count - 1, 0)))
    return [NamedImage(f"{index:0{width}d}", index=index) for index in range(count)]
