"""PASCAL VOC in its published layout: which classes a picture shows, from the XML of its objects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from xattn.errors import InputError

COUNTS = {"train": 5_717, "val": 5_823, "trainval": 11_540}
"""Pictures of each split of VOC 2012."""
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
IGNORED = -1
LARGEST = 2**20  # bytes of an annotation
ARCHIVE = "as in VOCtrainval_11-May-2012.tar; ROOT is VOCdevkit/VOC2012"

Vectors = dict[str, tuple[int, ...]]


def read_voc(where: str, folder: Path, split: str) -> tuple[Path, Vectors, tuple[str, ...]]:
    """The pictures of a split with their label vectors.

    An entry is 1 where the picture shows an object of the class, 0 where it shows none, and −1, ignored in losses and scores, where all of
    them are marked as difficult. **Differs**: the released code of Torres et al. 2024 takes −1 for 0.

    Args:
        where: the data set in messages.
        folder: with `JPEGImages`, `Annotations` and `ImageSets/Main`.
        split: "train", "val" or "trainval".

    Returns:
        The folder of the pictures, label vectors by file, and the names of the classes: those with a file `NAME_trainval.txt` in
        `ImageSets/Main`, in alphabetical order; without such files the 20 of VOC.

    Raises:
        InputError: a file is missing, which is named, or damaged; an object of no class; XML with a document type, which could hold
            entities that grow without end; or, where training is not all that is opened, a picture in the lists of both train and val.
    """
    lists = folder / "ImageSets" / "Main"
    names = _ids(where, lists / f"{split}.txt")
    if split != "train":  # training opens no other list
        sides = [set(_ids(where, path)) for path in (lists / "train.txt", lists / "val.txt") if path.is_file()]
        if len(sides) == 2 and (both := sides[0] & sides[1]):
            raise InputError(f"{where}: {min(both)} is in train.txt and in val.txt, whose pictures are scored: leave it out of one.")
    ending = "_trainval.txt"
    files = [path.name for path in lists.glob(f"*{ending}") if not path.name.startswith(".")]
    classes = tuple(sorted(file.removesuffix(ending) for file in files)) or CLASSES
    rows = {}
    for name in names:
        path = folder / "Annotations" / f"{name}.xml"
        rows[f"{name}.jpg"] = _vector(path, _content(where, path), classes)
    return folder / "JPEGImages", rows, classes


def _ids(where: str, path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{where} needs {path}, {ARCHIVE} ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is damaged: it is not UTF-8 text.") from error
    if odd := [line for line in lines if " " in line or os.path.basename(line) != line or "\0" in line or line.startswith(".")]:
        raise InputError(f"'{path}' has the line '{odd[0][:80]}': a line must be the name of a picture, without its ending.")
    if len(set(lines)) < len(lines):
        raise InputError(f"'{path}' has {next(line for line in lines if lines.count(line) > 1)} twice.")
    return lines


def read_annotation(path: Path) -> ElementTree.Element:
    """An annotation of VOC.

    Raises:
        InputError: it is missing, damaged, none, too large, or declares a document type.
    """
    return _tree(path, _content(str(path.parent), path))


def _content(where: str, path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(f"'{path}' has {size:,} bytes: an annotation has at most {LARGEST:,}.")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{where} needs {path}, {ARCHIVE} ({error.strerror}).") from error


def _vector(path: Path, content: bytes, classes: tuple[str, ...]) -> tuple[int, ...]:
    """The label vector of an annotation."""
    entries = [0] * len(classes)
    for item in _tree(path, content).findall("object"):
        name, difficult = (item.findtext("name") or "").strip(), (item.findtext("difficult") or "0").strip()
        if name not in classes:
            known = ", ".join(classes[:3])
            raise InputError(f"'{path}' has an object of class '{name[:80]}', which is not one of the {len(classes)}: {known}, …")
        if difficult not in ("0", "1"):
            raise InputError(f"'{path}' has an object with difficult '{difficult[:80]}': 0 or 1 is needed.")
        place = classes.index(name)
        entries[place] = 1 if difficult == "0" else entries[place] or IGNORED
    return tuple(entries)


def _tree(path: Path, content: bytes) -> ElementTree.Element:
    """The XML of a file; a document type, and with it every entity, is refused."""

    def refuse(name: str, *_: Any) -> None:
        raise InputError(f"'{path}' declares a document type '{name[:80]}': VOC annotations have none, and it is not read.")

    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except InputError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two of encodings that are unknown or cannot be read
        raise InputError(f"'{path}' is damaged, or not XML ({error}).") from error
    found = builder.close()
    if found.tag != "annotation":
        raise InputError(f"'{path}' is not a VOC annotation: its first element is '{found.tag[:80]}'.")
    return found
