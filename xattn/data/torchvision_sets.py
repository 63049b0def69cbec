"""Published data sets that torchvision reads, in their published layout, with their own splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xattn.errors import InputError


@dataclass(frozen=True)
class TorchvisionSet:
    """How one of these data sets is opened.

    Attributes:
        name: name of its class in torchvision.
        choose: the name of a split → the arguments that choose it.
        train: name of the training split.
        validation: name of the published validation split, if there is one.
        test: name of the split for scores.
    """

    name: str
    choose: Callable[[str], dict[str, Any]]
    train: str
    validation: str | None = None
    test: str = "test"

    @property
    def splits(self) -> tuple[str, ...]:
        """Returns all splits."""
        return tuple(filter(None, (self.train, self.validation, self.test)))

    @property
    def scored(self) -> tuple[str, ...]:
        """The splits that hold pictures for scores, to which nothing is fitted."""
        return (self.test,)


def _by_name(split: str) -> dict[str, Any]:
    return {"split": split}


def _by_flag(split: str) -> dict[str, Any]:
    return {"train": split == "train"}


PUBLISHED = {
    "fgvc-aircraft": TorchvisionSet("FGVCAircraft", _by_name, "train", "val"),
    "stanford-cars": TorchvisionSet("StanfordCars", _by_name, "train"),
    "oxford-pets": TorchvisionSet("OxfordIIITPet", _by_name, "trainval"),
    "cifar10": TorchvisionSet("CIFAR10", _by_flag, "train"),
    "cifar100": TorchvisionSet("CIFAR100", _by_flag, "train"),
}


def open_torchvision(name: str, root: str, split: str) -> Any:
    """Opens a split of a data set with torchvision: pairs of a PIL picture and a class index, with `classes`.

    Raises:
        InputError: the data set is missing or damaged.
    """
    from torchvision import datasets  # its import takes seconds

    about = PUBLISHED[name]
    try:
        return getattr(datasets, about.name)(root, **about.choose(split))
    except (RuntimeError, OSError) as error:
        raise InputError(f"{name}:{root} could not be opened ({error}). torchvision.datasets says how its folder is laid out.") from error
