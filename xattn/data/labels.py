"""Labels of images, from label files of several formats and from items of data sets."""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from xattn.data import urls
from xattn.errors import InputError, MissingPackageError
from xattn.text import shown

if TYPE_CHECKING:
    from torch import Tensor

LabelsFrom = Literal["folders", "csv", "none"]
"""Possible sources of labels."""

WNID = re.compile(r"n\d{8}")
COLUMNS = (("image", "label"), ("file_name", "label"), ("ImageId", "PredictionString"))
"""Columns of label files: xattn's own, Hugging Face's `metadata.csv`, and ILSVRC's at Kaggle, where a label begins with a WordNet id."""
VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
DEVKIT = "meta.mat"
JSON_LINES = ".jsonl"
SEPARATORS = ",;\t"
LARGEST = 2**31  # bytes: a larger file is not a label file, or a mistake


@dataclass(frozen=True)
class HotLabel:
    """Classes of an image from a vector of zeros and ones.

    Attributes:
        indices: positions of the ones.
        length: length of the vector, the number of classes.
    """

    indices: tuple[int, ...]
    length: int

    def __str__(self) -> str:
        return str(self.indices)


Label = int | float | str | tuple[int | str, ...] | HotLabel
"""A class index or name, several of these, or a value."""

FORMS = "a class index or name, a list of these, a vector of zeros and ones with one entry per class, or a number for a regression"


def label_of(given: Any) -> Label | None:
    """Returns the label of a data set's item; None for None.

    Args:
        given: a class index or name, several as a tuple or list, a one-hot or multi-hot vector, or a value.

    Raises:
        InputError: the label is none of these.
    """
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, (Mapping, set)):
        raise InputError(f"a label is {FORMS}; got {_shown(given)}.")
    if hasattr(given, "tolist") and hasattr(given, "ndim"):  # from torch or NumPy
        is_float = "float" in str(given.dtype)
        values = given.tolist()
        if isinstance(values, list):
            if given.ndim != 1 or not values:
                raise InputError(f"a label is {FORMS}; got {_shown(given)}.")
            return _number(values[0]) if len(values) == 1 else _of_vector(values, is_float=is_float)
        return label_of(values)
    if isinstance(given, (tuple, list)):
        if any(isinstance(each, float) for each in given):
            return _of_vector(list(given), is_float=True)
        if len(given) > len(set(map(str, given))) and all(each in (0, 1) for each in given):  # not a list of indices, which are distinct
            return _of_vector(list(given), is_float=False)
        found = [label_of(each) for each in given]
        if any(not isinstance(each, (int, str)) for each in found):
            raise InputError(f"a label is {FORMS}; got {_shown(given)}.")
        return tuple(each for each in found if isinstance(each, (int, str)))
    return _number(given)


def _of_vector(values: list[Any], *, is_float: bool) -> Label:
    if all(value in (0, 1) for value in values):
        return HotLabel(tuple(index for index, value in enumerate(values) if value), len(values))
    if is_float or not all(isinstance(value, int) for value in values):
        raise InputError(
            f"a label is {FORMS}; got a vector of {len(values)} values from {min(values):.3g} to {max(values):.3g}. For "
            f"probabilities or soft labels, give the argmax."
        )
    return tuple(values)


def _number(given: Any) -> int | float:
    try:
        value = float(given)
    except (TypeError, ValueError) as error:
        raise InputError(f"a label is {FORMS}; got {_shown(given)}.") from error
    return int(value) if value.is_integer() else value


def _shown(given: Any) -> str:
    shape = f" {tuple(given.shape)}" if hasattr(given, "shape") else ""
    return f"a {type(given).__name__}{shape}"


def single_class(image: str, label: Label | None) -> str:
    """The one class that the label of a picture names, as text.

    Args:
        image: name of the picture, in messages.
        label: its label.

    Raises:
        InputError: there is none, or it names several classes or none.

    >>> single_class("a.png", "dog")
    'dog'
    """
    several: Sequence[object] = (label,)
    if isinstance(label, HotLabel):
        several = label.indices
    elif isinstance(label, str):
        several = [name.strip() for name in label.split("|")]
    elif isinstance(label, tuple):
        several = label
    if label is None or len(several) != 1:
        came = "no label" if label is None else f"{len(several)} labels, {', '.join(map(str, several[:3]))}" if several else "no class"
        raise InputError(f"one class per picture is needed; {image} has {came}. Give each picture one, or leave it out.")
    return str(several[0])


def class_of_shard(text: str) -> int | str | None:
    """Parses the class in a `.cls` file of a shard: an index, or a name."""
    return int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else text.strip() or None


def read_table(path: str) -> dict[str, str | None]:
    """Reads the labels of a CSV by image, as texts; None for a missing label.

    Fields are separated by commas, or by semicolons or tabs if the header uses them. A byte order mark, spaces around column names and
    their capitalisation are ignored.

    Raises:
        InputError: the file cannot be read, has columns other than one of `COLUMNS`, or has two labels for an image.
    """
    found: dict[str, str | None] = {}
    try:
        with io.TextIOWrapper(io.BytesIO(file_content(path)), newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            separator = max(SEPARATORS, key=head.count)  # the first of the most frequent ones
            reader = csv.DictReader(file, delimiter=separator)
            columns = list(reader.fieldnames or [])
            image, label = _columns(path, columns)
            for row in reader:
                name, text = _name_of(row[image]), _text_of(row, label, columns, separator, f"{path}, line {reader.line_num}")
                if label.strip() == "PredictionString":
                    name, text = f"{name}.JPEG", text and text.split()[0]
                if name in found and found[name] != text:
                    raise InputError(
                        f"{path} gives {name} two labels, {found[name]} and {text} (line {reader.line_num}): leave one out. An image of "
                        f"several classes has them in one row, as {found[name]}|{text}."
                    )
                found[name] = text
    except UnicodeDecodeError as error:
        raise InputError(f"{path} could not be read as CSV ({error}): it is not UTF-8 text. Save it as UTF-8.") from error
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} could not be read as CSV ({error}).") from error
    return found


def file_content(path: str) -> bytes:
    """Reads the content of a file of labels or regions.

    Raises:
        InputError: it is a folder, a pipe or a device, or is too large.
        OSError: it cannot be read.
    """
    if urls.is_url(path):
        return urls.read(path)
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{path} is a folder, a pipe or a device: a label file must be a regular file.")
    if about.st_size > LARGEST:
        raise InputError(f"{path} has {about.st_size / 2**30:.1f} GiB, more than any label file: at most {LARGEST / 2**30:.0f} are read.")
    return Path(path).read_bytes()


def _name_of(given: str | None) -> str:
    return (given or "").removeprefix("./")


def _columns(path: str, columns: Sequence[str]) -> tuple[str, str]:
    """Returns the columns of images and labels, as named in the file; the column of labels may be absent."""
    plain = {column.strip().lower(): column for column in reversed(columns)}
    for image, label in COLUMNS:
        if image.lower() in plain:
            every = [column.strip().lower() for column in columns]
            if twice := [name for name in (image, label) if every.count(name.lower()) > 1]:
                raise InputError(f"{path} has {every.count(twice[0].lower())} columns '{twice[0]}' in its first line: rename all but one.")
            return plain[image.lower()], plain.get(label.lower(), label)
    has = shown(", ".join(columns)[:60], keep="") or "none"
    raise InputError(f"{path} needs the columns 'image' and 'label' (or 'file_name' and 'label') in its first line; it has {has}.")


def _text_of(row: Mapping[Any, Any], label: str, columns: Sequence[str], separator: str, place: str) -> str | None:
    """Returns the text of a row's label; for the last column, including text after unquoted separators."""
    text, more = row.get(label), row.get(None)
    if more:
        if label != columns[-1]:
            raise InputError(f"{place} has more fields than columns: put quotation marks around fields that contain '{separator}'.")
        text = separator.join([text or "", *more])
    return text.strip() or None if text else None


def labels_in(path: str, names: Iterable[str]) -> Mapping[str, Label | None]:
    """Reads the labels of images by name from a label file.

    Args:
        path: a CSV; JSON lines with the same names (.jsonl); a text file of lines `NAME LABEL`; or ILSVRC's ground truth, a number per
            line, with the `meta.mat` of its development kit next to it.
        names: names of the images.

    Raises:
        InputError: the file cannot be read, or is none of these.
    """
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == JSON_LINES:
        return _json_lines(path)
    if suffix != ".txt":
        return read_table(path)
    lines = _lines(path)
    if all(line.isdecimal() for line in lines):
        return _ground_truth(path, lines, names)
    return read_table(path) if "," in lines[0] else _pairs(path, lines)


def read_lines(path: str) -> dict[str, str | None]:
    """Reads the images of a text file, one per line, and their labels if each line ends in one after a space.

    Raises:
        InputError: the file cannot be read, names no existing file, or has two labels for an image.
    """
    lines = _lines(path)
    folder = Path(path).parent
    are_names = any(" " not in line or (folder / line).is_file() for line in lines)
    found: dict[str, str | None] = dict.fromkeys(lines) if are_names else dict(_pairs(path, lines))
    if not any((folder / name).is_file() for name in found):
        raise InputError(
            f"{path} names no existing picture: a line is a path relative to it, or a path, a space and a label; its first is "
            f"'{shown(lines[0][:60])}'."
        )
    return found


def _lines(path: str) -> list[str]:
    try:
        lines = [line.strip() for line in file_content(path).decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} could not be read ({error}).") from error
    if not lines:
        raise InputError(f"{path} is empty: a line is an image's path, a space and one label.")
    return lines


def _pairs(path: str, lines: Sequence[str]) -> dict[str, str]:
    """Splits lines into paths and labels."""
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, space, label = line.partition(" ")
        if not space or found.setdefault(_name_of(name), label.strip()) != label.strip():
            raise InputError(f"{path}, line {number}: a line is an image's path, a space and one label; got '{line}'.")
    return found


def _json_lines(path: str) -> dict[str, Label | None]:
    """Reads labels of JSON lines, such as Hugging Face's `metadata.jsonl`: a number is a class index, a text a name."""
    found: dict[str, Label | None] = {}
    try:
        lines = file_content(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} could not be read ({error}).") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} could not be read as JSON ({error}).") from error
        image = next((key for key, _ in COLUMNS if isinstance(row, dict) and key in row), None)
        if image is None or not isinstance(row[image], str):
            raise InputError(f"{place}: an object with 'image' (or 'file_name') and 'label' is needed; got {line[:60]}.")
        try:
            label = label_of(row.get("label"))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        if found.setdefault(_name_of(row[image]), label) != label:
            raise InputError(f"{place} gives {row[image]} a second label, {label}: leave one out.")
    return found


def _ground_truth(path: str, lines: Sequence[str], names: Iterable[str]) -> dict[str, str | None]:
    """Reads the WordNet ids of ILSVRC's validation images: line n is for image n, in numbers that its `meta.mat` explains."""
    place = Path(path).parent / DEVKIT
    if not place.is_file():
        raise InputError(
            f"{path} has only numbers. If they are ILSVRC's ground truth, they follow an order of their own: put {DEVKIT} of its "
            f"development kit next to it. If they are class indices, make a CSV with columns image and label."
        )
    from scipy.io import loadmat

    try:
        synsets = loadmat(str(place), squeeze_me=True)["synsets"]
        wnids = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{place} could not be read as the table of ILSVRC's classes ({error}).") from error
    found: dict[str, str | None] = {}
    for name in names:
        number = VALIDATION.search(PurePosixPath(name).name)
        if number is None or not 1 <= int(number[1]) <= len(lines):
            raise InputError(f"{path} is for the images ILSVRC2012_val_00000001 to {len(lines):08d}; {name} is not one of them.")
        found[name] = wnids.get(int(lines[int(number[1]) - 1]))
    return found


def folder_of(name: str) -> str:
    """Returns the name of the folder that contains an image; empty if there is none."""
    return PurePosixPath(name).parent.name


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """Returns the WordNet ids of ImageNet's 1000 classes, in the order of networks' outputs.

    Raises:
        MissingPackageError: timm, which lists the ids, is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise MissingPackageError("timm", "train", "a class by its WordNet id")
    return tuple(importlib.import_module("timm.data").ImageNetInfo().label_names())


def class_names_of(dataset: Any) -> tuple[str, ...] | None:
    """Returns a data set's names of its class indices: torchvision's `classes`, or a `ClassLabel` of Hugging Face; None if it has none."""
    while hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # a subset
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, Mapping):
        names = next((found for key in ("label", "labels", "fine_label") if (found := getattr(features.get(key), "names", None))), None)
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def is_index(label: object) -> bool:
    """Checks whether a label is a class index, possibly as a text."""
    return isinstance(label, int) or (isinstance(label, str) and re.fullmatch(r"[0-9]{1,9}(\.0+)?", label) is not None)


def as_plain(labels: Tensor | Sequence[Any]) -> list[Label | None]:
    """Converts a user's labels of several images, each with `label_of`.

    Raises:
        InputError: one of them is not a label; its position is named.
    """
    found: list[Label | None] = []
    for number, given in enumerate(labels):
        try:
            found.append(label_of(given))
        except InputError as error:
            raise InputError(f"label {number}: {error}") from error
    return found
