"""Pictures with labels to train on: class folders, a CSV, or data sets in their published layout. Test splits are never opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image
from torch.utils.data import Dataset

from xattn.data.cityscapes import LabelMaps
from xattn.data.images import ImageSource, read_picture
from xattn.data.labels import imagenet_wnids, is_index
from xattn.data.published import KNOWN, Target, open_published, refuse_scored
from xattn.data.torchvision_sets import PUBLISHED, open_torchvision
from xattn.data.voc import IGNORED
from xattn.errors import ImageError, InputError, NameUnknownError

Classes = Literal["folders", "wnid"]


class Pictures(Protocol):
    """Source of pictures. It is sent to worker processes, so it is a class and holds no function."""

    def picture(self, number: int) -> Image.Image:
        """The RGB picture with this number."""

    def called(self, number: int) -> str:
        """Its name in messages."""

    def identity(self, number: int) -> str:
        """What tells it from another picture, and from an earlier version of itself where that can be known, without decoding it."""


@dataclass(frozen=True)
class _Files:
    paths: tuple[Path | str, ...]

    def picture(self, number: int) -> Image.Image:
        try:
            return read_picture(self.paths[number])
        except ImageError as error:
            raise ImageError(
                f"training picture {self.paths[number]}: {error}. Replace it with an intact file and run the same command to "
                "resume, or remove it and train into another file."
            ) from error

    def called(self, number: int) -> str:
        return str(self.paths[number])

    def identity(self, number: int) -> str:
        path = self.paths[number]
        if not os.path.exists(path):  # a URL
            return str(path)
        found = os.stat(path)
        return f"{path} {found.st_size} {found.st_mtime_ns}"


@dataclass(frozen=True)
class _Items:
    items: Any
    split: str

    def picture(self, number: int) -> Image.Image:
        found = self.items[number][0]
        if not isinstance(found, Image.Image):
            raise InputError(f"{self.called(number)} is a {type(found).__name__}; training needs PIL pictures: set no transform.")
        return found.convert("RGB")

    def called(self, number: int) -> str:
        return f"{self.split} {number}"

    def identity(self, number: int) -> str:
        return self.called(number)


@dataclass(frozen=True)
class Labelled:
    """Pictures with one class index each, or with a vector of labels each.

    Attributes:
        name: as in messages.
        names: class names in the order of their indices; None where labels are indices of the network's own classes.
        targets: one class index per picture; or one vector with an entry per class: 1, 0, or −1, which is ignored.
        pictures: source of the pictures, by number.
        validation: the published validation pictures; None: a share of these is held out.
        label_maps: the class of every pixel of each picture; None: the data have none.
    """

    name: str
    names: tuple[str, ...] | None
    targets: tuple[Target, ...]
    pictures: Pictures
    validation: Labelled | None = None
    label_maps: LabelMaps | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def several(self) -> bool:
        """Whether a picture has a vector of labels, not one class."""
        return isinstance(self.targets[0], tuple)

    def renumbered(self, index: Sequence[int], count: int) -> Labelled:
        """The same pictures with class `k` renumbered to `index[k]`, its index among other classes.

        Args:
            index: by class.
            count: number of the other classes. Those that these data do not know are ignored in vectors.
        """
        validation = None if self.validation is None else self.validation.renumbered(index, count)

        def moved(vector: tuple[int, ...]) -> tuple[int, ...]:
            entries = [IGNORED] * count
            for place, entry in zip(index, vector, strict=True):
                entries[place] = entry
            return tuple(entries)

        targets = tuple(moved(target) if isinstance(target, tuple) else index[target] for target in self.targets)
        maps = None if self.label_maps is None else self.label_maps.renumbered(tuple(index))
        return Labelled(self.name, None, targets, self.pictures, validation, maps)


MOST_CLASSES = 1_000_000


def open_data(data: str | Path | Labelled | Dataset[Any], classes: Classes = "folders") -> Labelled:
    """Opens training data.

    Args:
        data: a folder with one subfolder per class; a CSV with columns `image` and `label` (class index or name); `NAME:ROOT` for
            fgvc-aircraft, stanford-cars, oxford-pets, cifar10, cifar100 in torchvision's layout, or for cub, dogs, mit67, voc,
            market, cityscapes and cifar-fs as published;
            or a torch data set of pictures with `classes` and `targets`, like torchvision's.
        classes: "folders": the sorted folder names are the classes; "wnid": folders are named by WordNet ids, and labels are the
            indices of ImageNet's 1000 classes.

    Raises:
        InputError: nothing is there, a class has no pictures, or labels are missing.
        NameUnknownError: a folder is not named after an ImageNet class.
    """
    if isinstance(data, Labelled):
        return data
    if isinstance(data, Dataset):
        return _dataset(data)
    name, colon, root = str(data).partition(":")
    if colon and name in KNOWN:
        found = _splits(name, root)
    elif colon and name in PUBLISHED:
        found = _published(name, root)
    elif Path(data).suffix.lower() == ".csv":
        found = _csv(Path(data))
    elif Path(data).is_dir():
        found = _folders(Path(data))
    else:
        known = ", ".join(f"{key}:ROOT" for key in sorted([*PUBLISHED, *KNOWN]))
        raise InputError(f"training data '{data}' is not a folder, not a CSV, and not one of {known}.")
    return _by_wnid(found) if classes == "wnid" else found


def _dataset(items: Any) -> Labelled:
    if missing := [name for name in ("classes", "targets", "__len__") if not hasattr(items, name)]:
        raise InputError(
            f"training needs a data set with classes and targets, like torchvision's; {type(items).__name__} lacks {missing[0]}."
        )
    name = repr(items).partition("\n")[0]
    if " at 0x" in name:  # Python's default repr, which differs between processes
        name = type(items).__qualname__
    if not len(items.targets):
        raise InputError(f"{name} has no pictures: training needs some.")
    return Labelled(name, tuple(items.classes), tuple(_target(target) for target in items.targets), _Items(items, name))


def _target(given: Any) -> Target:
    """A class index, or a vector of labels, of a data set."""
    found = given.tolist() if hasattr(given, "tolist") else given
    return tuple(int(entry) for entry in found) if isinstance(found, (list, tuple)) else int(found)


def _of_source(name: str, source: ImageSource, labels: Sequence[str], names: Sequence[str]) -> Labelled:
    index = {label: number for number, label in enumerate(names)}
    paths = tuple(image.path for image in source.images if image.path is not None)
    return Labelled(name, tuple(names), tuple(index[label] for label in labels), _Files(paths))


def _folders(folder: Path) -> Labelled:
    folder = Path(os.path.abspath(folder))
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise InputError(
            f"training data '{folder}' needs one folder per class, for at least two classes; it has {', '.join(names) or 'none'}."
        )
    source = ImageSource([str(folder / name) for name in names])
    labels = [image.path.relative_to(folder).parts[0] for image in source.images if isinstance(image.path, Path)]
    if empty := [name for name in names if name not in set(labels)]:
        raise InputError(f"{len(empty)} class folders of '{folder}' have no pictures: {', '.join(empty[:5])}. Fill or remove them.")
    return _of_source(str(folder), source, labels, names)


def _csv(path: Path) -> Labelled:
    source = ImageSource(str(path))
    labels = [image.label for image in source.images]
    if None in labels:
        raise InputError(f"{path} has no label for {source.images[labels.index(None)].name}: training needs one label per image.")
    if any("|" in str(label) for label in labels):
        return _csv_of_vectors(str(path), source, [tuple(name.strip() for name in str(label).split("|")) for label in labels])
    indices = [int(float(str(label))) for label in labels if is_index(label)]
    if len(indices) == len(labels):
        if max(indices) >= MOST_CLASSES:
            raise InputError(f"'{path}' has the class index {max(indices)}: at most {MOST_CLASSES:,} classes are trained.")
        found = _of_source(str(path), source, [str(index) for index in indices], [str(number) for number in range(max(indices) + 1)])
        return Labelled(found.name, None, found.targets, found.pictures)
    texts = [str(label) for label in labels]
    return _of_source(str(path), source, texts, sorted(set(texts)))


def _csv_of_vectors(name: str, source: ImageSource, labels: Sequence[tuple[str, ...]]) -> Labelled:
    """Pictures with several class names, or class indices, each."""
    if are_indices := all(is_index(text) for each in labels for text in each):
        labels = [tuple(str(int(float(text))) for text in each) for each in labels]
    texts = sorted({text for each in labels for text in each})
    if are_indices and max(map(int, texts)) >= MOST_CLASSES:
        raise InputError(f"'{name}' has the class index {max(map(int, texts))}: at most {MOST_CLASSES:,} classes are trained.")
    names = [str(number) for number in range(max(map(int, texts)) + 1)] if are_indices else texts
    vectors = tuple(tuple(int(each in given) for each in names) for given in labels)
    paths = tuple(image.path for image in source.images if image.path is not None)
    return Labelled(name, None if are_indices else tuple(names), vectors, _Files(paths))


def _splits(name: str, root: str) -> Labelled:
    """The training split of a data set as it is published, with its published validation pictures if it has any.

    Raises:
        InputError: as for `open_split`.
    """
    about = KNOWN[name]
    root, split = _root_and_split(root, about.splits, about.train)
    found = open_split(name, root, split)
    if split != "train" or "val" not in about.splits or "val" in about.scored or not about.same_classes:
        return found
    return replace(found, validation=open_split(name, root, "val"))


def _root_and_split(given: str, splits: Sequence[str], train: str) -> tuple[str, str]:
    """The folder and the split of `ROOT[:SPLIT]`; without a split it is that for training."""
    root, _, split = given.rpartition(":")
    return (root, split) if root and split in splits else (given, train)


def open_split(name: str, root: str, split: str) -> Labelled:
    """A split of a data set as it is published, see `xattn.data.published.open_published`, to fit something to, or to validate it.

    Raises:
        InputError: as there, or it holds pictures for scores.
    """
    refuse_scored([f"{name}:{root}:{split}"])
    found = open_published(name, root, split)
    shown = f"{name}:{root}" if split == "train" else f"{name}:{root}:{split}"
    return Labelled(shown, found.classes, found.targets, _Files(found.paths), label_maps=found.label_maps)


def _published(name: str, root: str) -> Labelled:
    about = PUBLISHED[name]
    root, chosen = _root_and_split(root, about.splits, about.train)
    refuse_scored([f"{name}:{root}:{chosen}"])
    shown = f"{name}:{root}" if chosen == about.train else f"{name}:{root}:{chosen}"

    def split(which: str) -> Labelled:
        items = open_torchvision(name, root, which)
        targets = next(getattr(items, key) for key in ("targets", "_labels", "_samples") if hasattr(items, key))
        indices = tuple(int(target[1] if isinstance(target, tuple) else target) for target in targets)
        return Labelled(shown, tuple(items.classes), indices, _Items(items, which))

    found = split(chosen)
    return found if about.validation is None or chosen != about.train else replace(found, validation=split(about.validation))


def _by_wnid(data: Labelled) -> Labelled:
    wnids = imagenet_wnids()
    if data.names is None:
        raise InputError(f"{data.name} already has class indices: leave out --classes wnid.")
    if unknown := [name for name in data.names if name not in wnids]:
        raise NameUnknownError("ImageNet class (a WordNet id, as n01440764)", unknown[0], wnids)
    return data.renumbered([wnids.index(name) for name in data.names], len(wnids))
