"""Training data: class folders, a CSV, or data sets in their published layout. Randomness is keyed by seed, epoch and index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler, Subset
from torchvision import datasets
from torchvision.transforms import v2

from xattn.data.images import ImageSource, read_picture
from xattn.data.labels import imagenet_wnids, is_index
from xattn.data.preprocessing import Preprocessing
from xattn.data.published import KNOWN, open_published
from xattn.data.seeds import mixed
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
    """Pictures with one class index each.

    Attributes:
        name: as in messages.
        names: class names in the order of their indices; None where labels are indices of the network's own classes.
        targets: one class index per picture.
        pictures: source of the pictures, by number.
        validation: the published validation pictures; None: a share of these is held out.
    """

    name: str
    names: tuple[str, ...] | None
    targets: tuple[int, ...]
    pictures: Pictures
    validation: Labelled | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def renumbered(self, index: Sequence[int]) -> Labelled:
        """The same pictures with class `k` renumbered to `index[k]`, its index among other classes."""
        validation = None if self.validation is None else self.validation.renumbered(index)
        return Labelled(self.name, None, tuple(index[target] for target in self.targets), self.pictures, validation)


@dataclass(frozen=True)
class _Published:
    """A torchvision data set: its part for training, and its published part for validation. Test splits are never opened."""

    build: Callable[[str, str], Any]
    train: str
    validation: str | None = None


def _cifar(name: str) -> Callable[[str, str], Any]:
    return lambda root, _split: getattr(datasets, name)(root, train=True)


PUBLISHED = {
    "fgvc-aircraft": _Published(lambda root, split: datasets.FGVCAircraft(root, split=split), "train", "val"),
    "stanford-cars": _Published(lambda root, split: datasets.StanfordCars(root, split=split), "train"),
    "oxford-pets": _Published(lambda root, split: datasets.OxfordIIITPet(root, split=split), "trainval"),
    "cifar10": _Published(_cifar("CIFAR10"), "train"),
    "cifar100": _Published(_cifar("CIFAR100"), "train"),
}
MOST_CLASSES = 1_000_000


def open_data(data: str | Path | Labelled | Dataset[Any], classes: Classes = "folders") -> Labelled:
    """Opens training data.

    Args:
        data: a folder with one subfolder per class; a CSV with columns `image` and `label` (class index or name); `NAME:ROOT` for
            fgvc-aircraft, stanford-cars, oxford-pets, cifar10, cifar100 in torchvision's layout, or for cub, dogs and cifar-fs as
            published; or a torch data set of pictures with `classes` and `targets`, like torchvision's.
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
        found = _split(name, root)
    elif colon and name in PUBLISHED:
        found = _published(name, root)
    elif Path(data).suffix.lower() == ".csv":
        found = _csv(Path(data))
    elif Path(data).is_dir():
        found = _folders(Path(data))
    else:
        known = ", ".join(f"{key}:ROOT" for key in sorted([*PUBLISHED, *KNOWN]))
        raise InputError(f"training data '{data}' is no folder and no CSV, nor one of {known}.")
    return _by_wnid(found) if classes == "wnid" else found


def _dataset(items: Any) -> Labelled:
    if missing := [name for name in ("classes", "targets", "__len__") if not hasattr(items, name)]:
        raise InputError(
            f"training needs a data set with classes and targets, like torchvision's; {type(items).__name__} lacks {missing[0]}."
        )
    name = repr(items).partition("\n")[0]
    if " at 0x" in name:  # Python's default repr, which differs between processes
        name = type(items).__qualname__
    return Labelled(name, tuple(items.classes), tuple(int(target) for target in items.targets), _Items(items, name))


def _of_source(name: str, source: ImageSource, labels: Sequence[str], names: Sequence[str]) -> Labelled:
    index = {label: number for number, label in enumerate(names)}
    paths = tuple(image.path for image in source.images if image.path is not None)
    return Labelled(name, tuple(names), tuple(index[label] for label in labels), _Files(paths))


def _folders(folder: Path) -> Labelled:
    folder = Path(os.path.abspath(folder))
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise InputError(f"training data '{folder}' needs a folder for each of two classes or more; it has {', '.join(names) or 'none'}.")
    source = ImageSource([str(folder / name) for name in names])
    labels = [image.path.relative_to(folder).parts[0] for image in source.images if isinstance(image.path, Path)]
    if empty := [name for name in names if name not in set(labels)]:
        raise InputError(f"{len(empty)} class folders of '{folder}' hold no pictures: {', '.join(empty[:5])}. Fill them or remove them.")
    return _of_source(str(folder), source, labels, names)


def _csv(path: Path) -> Labelled:
    source = ImageSource(str(path))
    labels = [image.label for image in source.images]
    if None in labels:
        raise InputError(f"{path} has no label for {source.images[labels.index(None)].name}: training needs one for each image.")
    indices = [int(str(label)) for label in labels if is_index(label)]
    if len(indices) == len(labels):
        if max(indices) >= MOST_CLASSES:
            raise InputError(f"'{path}' has the class index {max(indices)}: at most {MOST_CLASSES:,} classes are trained.")
        found = _of_source(str(path), source, [str(index) for index in indices], [str(number) for number in range(max(indices) + 1)])
        return Labelled(found.name, None, found.targets, found.pictures)
    texts = [str(label) for label in labels]
    return _of_source(str(path), source, texts, sorted(set(texts)))


def _split(name: str, root: str) -> Labelled:
    """The training split of a data set as it is published."""
    found = open_published(name, root, "train")
    return Labelled(f"{name}:{root}", found.classes, found.targets, _Files(found.paths))


def _published(name: str, root: str) -> Labelled:
    about = PUBLISHED[name]

    def split(which: str) -> Labelled:
        try:
            items = about.build(root, which)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"{name}:{root} could not be opened ({error}). torchvision.datasets says how its folder is laid out."
            ) from error
        targets = next(getattr(items, key) for key in ("targets", "_labels", "_samples") if hasattr(items, key))
        indices = tuple(int(target[1] if isinstance(target, tuple) else target) for target in targets)
        return Labelled(f"{name}:{root}", tuple(items.classes), indices, _Items(items, which))

    found = split(about.train)
    return found if about.validation is None else replace(found, validation=split(about.validation))


def _by_wnid(data: Labelled) -> Labelled:
    wnids = imagenet_wnids()
    if data.names is None:
        raise InputError(f"{data.name} has class indices already: leave out --classes wnid.")
    if unknown := [name for name in data.names if name not in wnids]:
        raise NameUnknownError("ImageNet class (a WordNet id, as n01440764)", unknown[0], wnids)
    return data.renumbered([wnids.index(name) for name in data.names])


def held_out(targets: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the training pictures and of the held-out ones: a share of each class, at least one where a class has two."""
    generator = torch.Generator().manual_seed(seed)
    by_class: dict[int, list[int]] = {}
    for number, target in enumerate(targets):
        by_class.setdefault(target, []).append(number)
    kept, out = [], []
    for numbers in by_class.values():
        shuffled = [numbers[place] for place in torch.randperm(len(numbers), generator=generator).tolist()]
        count = min(max(1, round(share * len(numbers))), len(numbers) - 1) if share else 0
        out += shuffled[:count]
        kept += shuffled[count:]
    return sorted(kept), sorted(out)


class Crops(Dataset[tuple[Tensor, int]]):
    """Augmented uint8 crops, each a pure function of seed, epoch and number; without `smallest`, the classifier's own crop.

    Args:
        data: the pictures.
        preprocessing: of the classifier.
        smallest: smallest share of the picture's area that a random crop may cover; None: no augmentation.
        seed: of the augmentation.
    """

    def __init__(self, data: Labelled, preprocessing: Preprocessing, smallest: float | None, seed: int) -> None:
        self.data = data
        self.preprocessing = preprocessing
        self.seed = seed
        self.augment = None
        if smallest is not None:
            interpolation = v2.InterpolationMode(preprocessing.interpolation)
            crop = v2.RandomResizedCrop(preprocessing.input_size, scale=(smallest, 1.0), interpolation=interpolation, antialias=True)
            self.augment = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        picture = self.data.pictures.picture(number)
        if self.augment is None:
            return self.preprocessing.crop(picture), self.data.targets[number]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(self.seed, epoch, number))
            crop: Tensor = self.augment(self.preprocessing.converted(picture))
        return crop, self.data.targets[number]


class EpochOrder(Sampler[tuple[int, int]]):
    """Keys `(epoch, number)` in an order that depends on epoch and seed alone.

    Args:
        numbers: of the pictures.
        seed: of the order.
        epoch: returns the epoch that is about to start.
    """

    def __init__(self, numbers: Sequence[int], seed: int, epoch: Callable[[], int]) -> None:
        self.numbers = numbers
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch()
        order = torch.randperm(len(self.numbers), generator=torch.Generator().manual_seed(mixed(self.seed, epoch, -1)))
        return iter([(epoch, self.numbers[place]) for place in order.tolist()])


def splits(
    data: Labelled, preprocessing: Preprocessing, share: float, smallest: float | None, seed: int
) -> tuple[Crops, list[int], Dataset[Any]]:
    """Augmented crops with the numbers of the training pictures, and the validation data."""
    training = Crops(data, preprocessing, smallest, seed)
    if data.validation is not None:
        return training, list(range(len(data))), Crops(data.validation, preprocessing, None, seed)
    kept, out = held_out(data.targets, share, seed)
    if not out:
        raise InputError(f"{data.name} has one picture per class: nothing can be held out for validation. Give at least two per class.")
    return training, kept, Subset(Crops(data, preprocessing, None, seed), out)
