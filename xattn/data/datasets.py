"""Items of data sets: from torch, Hugging Face, Parquet files, and lists of pictures."""

from __future__ import annotations

import glob
import importlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from xattn.data import urls
from xattn.data.depth import Reading, Scaling
from xattn.data.pictures import content_of, decode, from_memory
from xattn.data.preprocessing import Frame, Preprocessing, Region
from xattn.data.published import parsed_place
from xattn.data.torchvision_sets import PUBLISHED, open_torchvision
from xattn.deferred import is_tensor, torch
from xattn.errors import ImageError, InputError, MissingPackageError
from xattn.metrics.inputs import EDGE

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = ("image", "pixel_values", "img", "picture", "jpg", "jpeg", "png", "webp")
LABELS = ("label", "labels", "cls", "target", "fine_label")
HUGGING_FACE = "datasets:"


def is_dataset(images: object) -> bool:
    """Checks whether images are a data set: torch's, an object with a length and items by number, or a list of pictures; not places."""
    if isinstance(images, (str, bytes, Path, Mapping)) or is_tensor(images):
        return False
    if _is_of_torch(images, "Dataset"):
        return True
    if isinstance(images, Sequence):
        return bool(images) and all(
            isinstance(item, (Image.Image, tuple, dict, bytes)) or is_tensor(item) or _is_array(item) for item in images
        )
    return hasattr(images, "__len__") and hasattr(images, "__getitem__")


def _is_of_torch(images: object, kind: str) -> bool:
    """Checks whether images are a torch data set; torch has already been imported if they are."""
    return "torch" in sys.modules and isinstance(images, getattr(torch.utils.data, kind))


def refuse_without_length(images: object) -> None:
    """Raises for data sets that can only be read sequentially.

    Raises:
        InputError: it has no length or no items by number, or is a dict of data sets.
    """
    if isinstance(images, Mapping):
        keys = ", ".join(map(str, list(images)[:6])) or "nothing"
        raise InputError(f"images must be one data set; got a dict with {keys}: pass one of its values.")
    is_stream = _is_of_torch(images, "IterableDataset") or (hasattr(images, "__iter__") and not hasattr(images, "__getitem__"))
    if is_stream or (_is_of_torch(images, "Dataset") and not hasattr(images, "__len__")):
        raise InputError(
            f"a run needs a data set with a length and items by number, so that it can resume; {type(images).__name__} gives its "
            f""
            f"items only in order. Pass list(dataset) if it fits in memory; the shards of webdataset, as 'shards/*.tar'; or a data set of "
            "Hugging Face loaded without streaming."
        )


def item_parts(item: Any) -> tuple[Any, Any]:
    """Returns picture and label of an item: a pair, a dict with the usual keys, or a picture alone; None for a missing one."""
    if isinstance(item, Mapping) and "bytes" not in item:
        picture, label = (next((item[key] for key in keys if item.get(key) is not None), None) for keys in (PICTURES, LABELS))
        if picture is None:
            raise ImageError(f"an item needs a picture under one of {', '.join(PICTURES)}; got the keys {', '.join(map(str, item))}.")
        return picture, label
    if isinstance(item, (tuple, list)):
        return (item[0] if item else None), (item[1] if len(item) > 1 else None)
    return item, None


def first_item(dataset: Any, count: int) -> Any:
    """Returns the first readable item; it shows whether items are pairs."""
    for index in range(min(count, 10)):
        try:
            return dataset[index]
        except Exception:  # reported as this image's error when it is decoded
            continue
    return None


def item_content(dataset: Any, index: int) -> bytes:
    """Identifies an item among others by its values and its label."""
    try:
        item = dataset[index]
    except Exception:  # reported as this image's error when it is decoded
        return b"failed"
    picture, label = item_parts(item)
    content = picture.contiguous().numpy().tobytes() if is_tensor(picture) else getattr(picture, "tobytes", lambda: b"")()
    return content + str(label).encode()


def wrong_values(picture: Tensor) -> str | None:
    """Returns why a tensor is not a picture in pixel space, and what to do; None if it is one."""
    if picture.dtype == torch.uint8 or not picture.numel():
        return None
    if not picture.is_floating_point():
        return f"a tensor of {str(picture.dtype).removeprefix('torch.')} is given: uint8, or floats in [0, 1], are needed. Convert it."
    low, high = float(picture.amin()), float(picture.amax())
    if low >= -EDGE and high <= 1 + EDGE:
        return None
    remedy = "Divide by 255" if low >= 0 and 1 < high <= 255 else "Leave out its normalisation: the classifier does it"
    return f"its values reach from {low:.3g} to {high:.3g}, and images are in pixel space, [0, 1]. {remedy}."


def picture_or_crop(given: Any, preprocessing: Preprocessing, reading: Reading) -> tuple[Tensor, Scaling | None, Frame]:
    """Returns the input crop of an item's picture, uint8 `(C, H, W)`, how more than 8 bits were reduced to 8, and the crop's position.

    Args:
        given: a PIL picture, a file's content, an array `(H, W)` or `(H, W, C)` of uint8, or a tensor that is already a crop.
        preprocessing: preprocessing of the network.
        reading: depth, window and largest size.

    Raises:
        ImageError: the item is none of these, or its values are in another range.
    """
    needed = (preprocessing.channels, *preprocessing.input_size)
    if is_tensor(given) and given.shape == needed:
        if wrong := wrong_values(given):
            raise ImageError(wrong)
        crop = given if given.dtype == torch.uint8 else (given * 255).round().clamp(0, 255).to(torch.uint8)
        size = (crop.shape[2], crop.shape[1])
        return crop, None, Frame(size, Region(0, 0, *size))
    found = picture_in(given, preprocessing.channels, reading)
    if found is None:
        came = f"an array {tuple(given.shape)} of {given.dtype}" if _is_array(given) else type(given).__name__
        came = str(tuple(given.shape)) if is_tensor(given) else came
        raise ImageError(
            f"a dataset gives PIL pictures, arrays (height, width, channels) of uint8, or tensors {needed} in [0, 1] or uint8; got {came}."
        )
    return preprocessing.crop(found[0]), found[1], preprocessing.frame(found[0])


def picture_in(given: Any, channels: int, reading: Reading) -> tuple[Image.Image, Scaling | None] | None:
    """Returns the picture of an item, and how more than 8 bits were reduced to 8; None if there is no picture.

    Args:
        given: a PIL picture, a file's content, or an array `(H, W)` or `(H, W, C)` of uint8.
        channels: number of channels that will be used.
        reading: depth, window and largest size.
    """
    scaling = None
    if (content := content_of(given)) is not None:
        given, scaling = decode(content, channels, reading)
    elif _is_array(given) and str(given.dtype) == "uint8" and given.ndim in (2, 3):
        given = Image.fromarray(given)
    if not isinstance(given, Image.Image):
        return None
    picture, found = from_memory(given, channels, reading)
    return picture, scaling or found


def _is_array(given: Any) -> bool:
    """Checks for an array of NumPy or a similar library."""
    return hasattr(given, "dtype") and hasattr(given, "ndim") and not is_tensor(given)


def dataset_at(places: Sequence[object]) -> Any:
    """Opens the data set that places name: `datasets:PLACE[:SPLIT]`, one that torchvision reads, or Parquet files; None for other files.

    Raises:
        InputError: it cannot be read, or such places are mixed with others.
        MissingPackageError: `datasets` is not installed.
    """
    named = [str(place) for place in places]
    if any(parsed is not None and parsed[0] in PUBLISHED for parsed in map(parsed_place, named)):
        if len(named) > 1 or (parsed := parsed_place(named[0])) is None:
            raise InputError("a data set as published cannot be mixed with other places: make one run for each.")
        return open_torchvision(*parsed)
    if not any(place.startswith(HUGGING_FACE) or place.endswith(".parquet") for place in named):
        return None
    if all(place.endswith(".parquet") and not place.startswith(HUGGING_FACE) for place in named):
        return ParquetPictures(tuple(file for place in named for file in _files(place)))
    if len(named) > 1:
        raise InputError("a data set of Hugging Face, and Parquet files, cannot be mixed with other places: make one run for each.")
    return _hugging_face(named[0].removeprefix(HUGGING_FACE))


def _hugging_face(place: str) -> Any:
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingPackageError("datasets", "datasets", f"'{HUGGING_FACE}{place}'") from error
    name, _, split = place.partition(":")
    try:
        is_saved = any((Path(name) / file).is_file() for file in ("dataset_info.json", "dataset_dict.json"))
        found = library.load_from_disk(name) if is_saved else library.load_dataset(name)
    except Exception as error:  # its errors have no common base class
        raise InputError(f"'{HUGGING_FACE}{place}' could not be loaded ({type(error).__name__}: {error}).") from error
    if not isinstance(found, dict):
        return found
    if split not in found and (split or len(found) > 1):
        raise InputError(
            f"'{HUGGING_FACE}{name}' has the splits {', '.join(found)}: name one, as {HUGGING_FACE}{name}:{next(iter(found))}."
        )
    return found[split or next(iter(found))]


def _files(place: str) -> list[str]:
    if urls.is_url(place):
        return [file.url for file in urls.found(place)]
    found = sorted(glob.glob(place)) or [place]
    return [urls.without_file_scheme(file) for file in found]


@dataclass
class ParquetPictures:
    """Rows of Parquet files with a column of pictures (bytes, or a struct with them, as Hugging Face writes) and optionally one of labels.

    Attributes:
        files: paths or URLs.

    Raises:
        InputError: a file cannot be read, or has no column of pictures.
    """

    files: tuple[str, ...]
    groups: list[tuple[str, int, int]] = field(init=False)
    columns: list[str] = field(init=False)
    _kept: tuple[int, list[dict[str, Any]]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.groups, end = [], 0
        for file in self.files:
            with _parquet(file) as opened:
                names = opened.schema_arrow.names
                picture, label = (next((name for name in known if name in names), None) for known in (PICTURES, LABELS))
                if picture is None:
                    raise InputError(f"'{file}' has no column of pictures, {', '.join(PICTURES)}: it has {', '.join(names)}.")
                self.columns = [picture] if label is None else [picture, label]
                for number in range(opened.num_row_groups):
                    end += opened.metadata.row_group(number).num_rows
                    self.groups.append((file, number, end))

    def __len__(self) -> int:
        return self.groups[-1][2] if self.groups else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = next(number for number, (_, _, end) in enumerate(self.groups) if index < end)
        if self._kept is None or self._kept[0] != number:  # a group's rows are read at once, and batches use them in order
            file, group, _ = self.groups[number]
            with _parquet(file) as opened:
                self._kept = number, opened.read_row_group(group, columns=self.columns).to_pylist()
        rows = self._kept[1]
        return rows[index - self.groups[number][2] + len(rows)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def _parquet(file: str) -> Any:
    pq = importlib.import_module("pyarrow.parquet")
    try:
        if urls.is_url(file):
            return pq.ParquetFile(io.BytesIO(urls.read(file)))
        return pq.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise InputError(f"'{file}' could not be read as Parquet ({error}).") from error
