"""Data sets in the layout in which they are published, with their own splits, as CUB, MIT67, PASCAL VOC, Market-1501 and Cityscapes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from xattn.data import cityscapes
from xattn.data.market import read_market
from xattn.data.pictures import SUFFIXES
from xattn.data.torchvision_sets import PUBLISHED, TorchvisionSet
from xattn.data.voc import COUNTS, read_voc
from xattn.errors import InputError
from xattn.text import counted

logger = logging.getLogger("xattn")

CIFAR_FS = ("train", "val", "test")
Target = int | tuple[int, ...]
"""A class index, or a label vector with one entry per class: 1, 0, or −1, which is ignored."""
CUB_TABLES = ("images", "image_class_labels", "train_test_split", "classes")


@dataclass(frozen=True)
class PublishedSplit:
    """One split of a data set, in the order of torchvision's `ImageFolder`: by class folder, then by file name.

    Attributes:
        name: "NAME:ROOT:SPLIT".
        folder: holds the pictures or their folders.
        files: paths below `folder`, with "/".
        targets: class index of each; of voc and cityscapes a label vector, one entry per class: 1, 0, or −1, which is ignored; of market's
            queries and gallery ().
        classes: names in the order of their indices.
        label_maps: of cityscapes the class of every pixel; None: the data have none.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    targets: tuple[Target, ...]
    classes: tuple[str, ...]
    label_maps: cityscapes.LabelMaps | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The pictures' files."""
        return tuple(self.folder / file for file in self.files)


def parsed_place(place: str) -> tuple[str, str, str] | None:
    """Name, root and split of `NAME:ROOT:SPLIT`; None if it names no such data set.

    Raises:
        InputError: it names one, but no split of it.
    """
    name, known, rest = _layout_of(place)
    if known is None:
        return None
    root, _, split = rest.rpartition(":")
    if "\0" in root:
        raise InputError(f"a path must not contain null bytes; got {place!r}.")
    if split not in known.splits or not root:
        others = ", or ".join(f"{name}:ROOT:{each}" for each in known.splits if each != known.test)
        raise InputError(f"'{place}' names no split of {name}: write {name}:ROOT:{known.test}, or {others}.")
    return name, root, split


def with_split(place: str) -> str:
    """`NAME:ROOT` of such a data set with the split that is published for scores; other places, and those with a split, unchanged."""
    _, known, rest = _layout_of(place)
    return place if known is None or rest.rpartition(":")[2] in known.splits else f"{place}:{known.test}"


def refuse_scored(places: Iterable[str]) -> None:
    """Raises for places of pictures that are for scores: nothing is fitted to these.

    Args:
        places: `NAME:ROOT[:SPLIT]`, `datasets:PLACE:SPLIT` of Hugging Face, or other places, of which it is not known what they are for.

    Raises:
        InputError: one is a split that holds pictures for scores.

    >>> refuse_scored(["cub:CUB_200_2011:train", "photos"])
    """
    for place in places:
        name, known, rest = _layout_of(place)
        root, _, split = rest.rpartition(":")
        scored = known.scored if known is not None else ("test",) if name == "datasets" else ()
        if root and split in scored:
            train = "train" if known is None else known.train
            raise InputError(f"{place} holds pictures for scores, to which nothing is fitted: give {name}:{root}:{train}.")


def _layout_of(place: str) -> tuple[str, _Layout | TorchvisionSet | None, str]:
    """The name of a data set, how it is read, and the rest of a place that begins with its name; None if it names none."""
    name, colon, rest = place.partition(":")
    known = (KNOWN.get(name) or PUBLISHED.get(name)) if colon and not rest.startswith("//") else None
    return name, known, rest


def absolute(place: str) -> str:
    """`NAME:ROOT:SPLIT` with an absolute root, or a path as an absolute one."""
    parsed = parsed_place(place)
    return os.path.abspath(place) if parsed is None else f"{parsed[0]}:{os.path.abspath(parsed[1])}:{parsed[2]}"


def open_published(name: str, root: str | Path, split: str) -> PublishedSplit:
    """A split of a data set.

    Args:
        name: "cub" (Wah et al. 2011), "dogs" (Khosla et al. 2011), "voc" (Everingham et al. 2012), "market" (Zheng et al. 2015),
            "cityscapes" (Cordts et al. 2016), "cifar-fs" (Bertinetto et al. 2019) or "mit67" (Quattoni and Torralba 2009).
        root: its folder: for cub with `images.txt`, `image_class_labels.txt`, `train_test_split.txt`, `classes.txt` and `images/`; for dogs
            with `train_list.mat`, `test_list.mat` and `Images/`; for voc with `JPEGImages/`, `Annotations/` and `ImageSets/Main/`; for
            market with `bounding_box_train/`, `query/` and `bounding_box_test/`; for cityscapes with `leftImg8bit/` and `gtFine/`; for
            cifar-fs with `data/` and `splits/bertinetto/`; for mit67 with `TrainImages.txt`, `TestImages.txt` and `Images/`.
        split: "train" or "test"; of voc "train", "val" or "trainval"; of cityscapes "train" or "val"; of market "train", "query" or
            "gallery"; of cifar-fs "train", "val" or "test", which have different classes.

    Raises:
        InputError: a file is missing, which is named, or damaged; lists that do not match; labels that are no class; a missing picture.
    """
    folder = Path(os.path.abspath(root))
    where = f"{name}:{root}"
    if not folder.is_dir():
        raise InputError(f"{where} needs its folder, but there is no folder {folder}: give its location as {name}:ROOT:{split}.")
    pictures, rows, classes = KNOWN[name].read(where, folder, split)
    order = sorted(rows, key=lambda file: PurePosixPath(file).parts)
    if missing := [file for file in order if not (pictures / file).is_file()]:
        kind = {"train": "training", "val": "validation"}.get(split, split)
        raise InputError(f"{where} lacks {len(missing)} of its {len(order)} {kind} pictures, as {pictures / missing[0]}.")
    if not order:
        raise InputError(f"{where} has no pictures in its {split} split.")
    published = KNOWN[name].counts[split]
    if len(order) != published:
        logger.warning("%s:%s has %s; as published, there are %d.", where, split, counted(len(order), "picture"), published)
    maps = cityscapes.label_maps(where, folder, split, order) if name == "cityscapes" else None
    return PublishedSplit(f"{where}:{split}", pictures, tuple(order), tuple(rows[file] for file in order), classes, maps)


def cub_boxes(root: str | Path, split: str) -> list[tuple[float, float, float, float]]:
    """The birds' bounding boxes of CUB, in the order of `open_published`: left, top, right, bottom in pixels of the photograph.

    Raises:
        InputError: as for `open_published`, or `bounding_boxes.txt` is missing, damaged, or lacks a picture.
    """
    folder = Path(os.path.abspath(root))
    found = open_published("cub", root, split)
    file_of = dict(_table(f"cub:{root}", folder, "images"))
    boxes: dict[str, tuple[float, float, float, float]] = {}
    for key, value in _table(f"cub:{root}", folder, "bounding_boxes"):
        try:
            x, y, width, height = map(float, value.split())
        except ValueError as error:
            raise InputError(f"'{folder / 'bounding_boxes.txt'}' has the line '{key} {value}': an id, x, y, width, height.") from error
        boxes[file_of.get(key, "")] = (x, y, x + width, y + height)
    if without := [file for file in found.files if file not in boxes]:
        raise InputError(f"'{folder / 'bounding_boxes.txt'}' has no box of {without[0]}.")
    return [boxes[file] for file in found.files]


Rows = tuple[Path, Mapping[str, Any], tuple[str, ...]]


def _table(where: str, folder: Path, name: str) -> list[tuple[str, str]]:
    """The lines of one of CUB's tables: an id, a space, a value."""
    path = folder / f"{name}.txt"
    found = [(key, value.strip()) for key, _, value in (line.partition(" ") for line in _lines(where, path, "CUB_200_2011.tgz"))]
    if bare := [key for key, value in found if not value]:
        raise InputError(f"'{path}' is damaged: the line '{bare[0]}' is not an id and a value.")
    return found


def _cub(where: str, folder: Path, split: str) -> Rows:
    tables = {name: _table(where, folder, name) for name in CUB_TABLES}
    files, labels, sides, names = (dict(tables[name]) for name in CUB_TABLES)
    for name, table in (("image_class_labels", labels), ("train_test_split", sides)):
        if table.keys() != files.keys():
            odd = min(table.keys() ^ files.keys())
            raise InputError(f"{where}: images.txt has {len(files)} pictures, {name}.txt {len(table)}; they differ in id {odd}.")
    classes = tuple(names.values())
    number = {key: index for index, key in enumerate(names)}
    rows: dict[str, Target] = {}
    for key, file in files.items():
        _refuse_outside(where, file)
        if labels[key] not in number:
            raise InputError(f"{where}: image_class_labels.txt has class {labels[key]} for {file}; classes.txt has {len(classes)}.")
        if sides[key] not in ("0", "1"):
            raise InputError(f"{where}: train_test_split.txt has '{sides[key]}' for {file}: 1 is training, 0 is test.")
        if (sides[key] == "1") == (split == "train"):
            rows[file] = number[labels[key]]
    return folder / "images", rows, classes


def _dogs(where: str, folder: Path, split: str) -> Rows:
    """The lists' labels count from 1, in the order of the folders; the folder of label k is that of its pictures."""
    pictures = folder / "Images"
    if not pictures.is_dir():
        raise InputError(f"{where} needs {pictures}, as in images.tar.")
    count = sum(1 for path in pictures.iterdir() if path.is_dir() and not path.name.startswith("."))
    known: dict[int, str] = {}
    found: dict[str, dict[str, Target]] = {}
    for which in ("train",) if split == "train" else ("train", "test"):  # the training list also names the classes; training opens no other
        path = folder / f"{which}_list.mat"
        found[which] = {}
        for file, label in _dog_list(where, path):
            _refuse_outside(where, file)
            if not 1 <= label <= count:
                raise InputError(f"'{path}' has label {label} for {file}; {pictures} has {count} class folders, labels 1 to {count}.")
            kind = PurePosixPath(file).parts[0]
            if known.setdefault(label, kind) != kind:
                raise InputError(f"'{path}' has label {label} for {file}, and for pictures in {known[label]}: a label is one folder.")
            found[which][file] = label - 1
    if without := sorted(set(range(1, count + 1)) - set(known)):
        raise InputError(f"{where} has {count} class folders, but no picture of label {without[0]} in train_list.mat.")
    if twice := found["train"].keys() & found.get("test", {}).keys():
        raise InputError(f"{where}: {min(twice)} is in train_list.mat and in test_list.mat.")
    return pictures, found[split], tuple(known[label] for label in range(1, count + 1))


def _dog_list(where: str, path: Path) -> list[tuple[str, int]]:
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError(f"{where} needs {path}, as in lists.tar (No such file or directory).")
    try:
        content = loadmat(path, variable_names=["file_list", "labels"], squeeze_me=True)
    except Exception as error:  # the reader's errors on damaged files have no common base class
        raise InputError(f"'{path}' is damaged, or not a MATLAB file ({type(error).__name__}: {error}).") from error
    if lacking := [key for key in ("file_list", "labels") if key not in content]:
        raise InputError(f"'{path}' has no variable {lacking[0]}: train_list.mat and test_list.mat of lists.tar have one.")
    files, labels = (_as_list(content[key]) for key in ("file_list", "labels"))
    if len(files) != len(labels):
        raise InputError(f"'{path}' has {counted(len(files), 'file')} and {counted(len(labels), 'label')}: give one label per file.")
    rows = []
    for file, label in zip(files, labels, strict=True):
        if not isinstance(file, str) or not isinstance(label, (int, float)) or label != label // 1:
            raise InputError(f"'{path}' has the label {label!r:.40} for {file!r:.80}: a path and a whole number are needed.")
        rows.append((str(file), int(label)))
    return rows


def _as_list(values: Any) -> list[Any]:
    found = values.tolist() if hasattr(values, "tolist") else values  # a list of one is read as its item
    return found if isinstance(found, list) else [found]


def _cifar_fs(where: str, folder: Path, split: str) -> Rows:
    """Each split has classes of its own, which a text file names; their pictures are those of the folders."""
    pictures, names = folder / "data", _few_shot_classes(where, folder, split)
    for which in CIFAR_FS[: CIFAR_FS.index(split)]:  # training opens no other list
        if both := set(names) & set(_few_shot_classes(where, folder, which)):
            raise InputError(f"{where}: class {min(both)} is in {which}.txt and in {split}.txt: the splits have different classes.")
    rows: dict[str, int] = {}
    for index, name in enumerate(names):
        if not (pictures / name).is_dir():
            raise InputError(f"{where}: {split}.txt names the class '{name}', which has no folder {pictures / name}.")
        shown = [path for path in (pictures / name).iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
        if odd := [path for path in shown if path.suffix.lower() != ".png"]:
            raise InputError(f"{where}: {min(odd)} is no .png, as all pictures of CIFAR-FS are: convert it, or remove it.")
        found = [path.name for path in shown]
        if not found:
            raise InputError(f"{where}: {pictures / name} has no pictures (.png).")
        rows |= {f"{name}/{file}": index for file in found}
    return pictures, rows, names


def _few_shot_classes(where: str, folder: Path, split: str) -> tuple[str, ...]:
    """The names of a split's classes, in order."""
    path = folder / "splits" / "bertinetto" / f"{split}.txt"
    names = _lines(where, path, "cifar-fs.zip")
    for number, name in enumerate(names):
        _refuse_outside(where, f"{name}/*.png")
        if name in names[:number]:
            raise InputError(f"'{path}' names the class '{name}' twice.")
    return tuple(sorted(names))


def _mit67(where: str, folder: Path, split: str) -> Rows:
    """The lists name the pictures, and the pictures' folders are the classes."""
    listed: dict[str, list[str]] = {}
    for which in ("train",) if split == "train" else ("train", "test"):  # the training list also names the classes; training opens no other
        path = folder / f"{which.capitalize()}Images.txt"
        listed[which] = _lines(where, path, "indoorCVPR_09.tar or beside it")
        for file in listed[which]:
            _refuse_outside(where, file)
        if len(listed[which]) > len(set(listed[which])):
            twice = next(file for number, file in enumerate(listed[which]) if file in listed[which][:number])
            raise InputError(f"'{path}' lists {twice} twice.")
    classes = tuple(sorted({PurePosixPath(file).parts[0] for file in listed["train"]}))
    if both := set(listed["train"]) & set(listed.get("test", ())):
        raise InputError(f"{where}: {min(both)} is in TrainImages.txt and in TestImages.txt.")
    if unknown := [file for file in listed[split] if PurePosixPath(file).parts[0] not in classes]:
        raise InputError(f"{where}: TestImages.txt has {unknown[0]}, of a class without a picture in TrainImages.txt.")
    return folder / "Images", {file: classes.index(PurePosixPath(file).parts[0]) for file in listed[split]}, classes


def _lines(where: str, path: Path, archive: str) -> list[str]:
    """The lines of a text file that are not empty, without white space around them."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{where} needs {path}, as in {archive} ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is damaged: it is not UTF-8 text.") from error


def _refuse_outside(where: str, file: str) -> None:
    parts = PurePosixPath(file).parts
    if len(parts) != 2 or ".." in parts or file.startswith("/") or "\0" in file:
        raise InputError(f"{where} lists '{file!s:.100}': a class folder and a file are needed.")


@dataclass(frozen=True)
class _Layout:
    """How a data set is read.

    Attributes:
        read: what names it in messages, its folder and a split → its pictures.
        counts: how many pictures its splits have as published.
        scored: the splits that hold pictures for scores, to which nothing is fitted; first the one that is scored where none is named.
            Where the labels of test are not published, it is that for validation.
        same_classes: whether all splits are of the same classes.
        train: the split for training.
    """

    read: Callable[[str, Path, str], Rows]
    counts: Mapping[str, int]
    scored: tuple[str, ...] = ("test",)
    same_classes: bool = True
    train: str = "train"

    @property
    def test(self) -> str:
        """The split that is scored where none is named."""
        return self.scored[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits."""
        return tuple(self.counts)


KNOWN = {
    "cub": _Layout(_cub, {"train": 5994, "test": 5794}),
    "dogs": _Layout(_dogs, {"train": 12_000, "test": 8_580}),
    "mit67": _Layout(_mit67, {"train": 5_360, "test": 1_340}),
    "voc": _Layout(read_voc, COUNTS, ("val", "trainval")),
    "market": _Layout(read_market, {"train": 12_936, "query": 3_368, "gallery": 19_732}, ("query", "gallery")),
    "cityscapes": _Layout(cityscapes.read_cityscapes, cityscapes.COUNTS, ("val",)),
    "cifar-fs": _Layout(_cifar_fs, {"train": 38_400, "val": 9_600, "test": 12_000}, same_classes=False),
}
