"""Crops of training pictures, their order and the held-out ones. Randomness is keyed by seed, epoch and index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, Subset
from torchvision.transforms import v2

from xattn.data.labelled import Classes, Labelled, open_data
from xattn.data.preprocessing import Preprocessing
from xattn.data.published import Target
from xattn.data.seeds import mixed
from xattn.errors import InputError

__all__ = ["Classes", "Crops", "EpochOrder", "Labelled", "held_out", "mixed", "open_data", "splits"]


def held_out(targets: Sequence[Target], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the training pictures and of the held-out ones: a share of each class, at least one where a class has two.

    Of pictures with vectors of labels it is a share of all.
    """
    generator = torch.Generator().manual_seed(seed)
    by_class: dict[int, list[int]] = {}
    for number, target in enumerate(targets):
        by_class.setdefault(target if isinstance(target, int) else 0, []).append(number)
    kept, out = [], []
    for numbers in by_class.values():
        shuffled = [numbers[place] for place in torch.randperm(len(numbers), generator=generator).tolist()]
        count = min(max(1, round(share * len(numbers))), len(numbers) - 1) if share else 0
        out += shuffled[:count]
        kept += shuffled[count:]
    return sorted(kept), sorted(out)


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented uint8 crops, each a pure function of seed, epoch and number; without `smallest`, the classifier's own crop.

    Args:
        data: the pictures.
        preprocessing: of the classifier.
        smallest: smallest share of the picture's area that a random crop may cover; None: no augmentation.
        seed: of the augmentation.
        centre: share of a random crop's side that is kept, around its centre.
    """

    def __init__(self, data: Labelled, preprocessing: Preprocessing, smallest: float | None, seed: int, centre: float = 1.0) -> None:
        self.data = data
        self.targets = torch.tensor(data.targets)
        self.preprocessing = preprocessing
        self.seed = seed
        self.augment = None
        if smallest is not None:
            interpolation = v2.InterpolationMode(preprocessing.interpolation)
            size = [round(side / centre) for side in preprocessing.input_size]
            crop = v2.RandomResizedCrop(size, scale=(smallest, 1.0), interpolation=interpolation, antialias=True)
            kept = v2.CenterCrop(preprocessing.input_size)
            self.augment = v2.Compose([crop, kept, v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        picture = self.data.pictures.picture(number)
        if self.augment is None:
            return self.preprocessing.crop(picture), self.targets[number]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(self.seed, epoch, number))
            crop: Tensor = self.augment(self.preprocessing.converted(picture))
        return crop, self.targets[number]


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
    data: Labelled, preprocessing: Preprocessing, share: float, smallest: float | None, seed: int, centre: float = 1.0
) -> tuple[Crops, list[int], Dataset[Any]]:
    """Augmented crops with the numbers of the training pictures, and the validation data."""
    training = Crops(data, preprocessing, smallest, seed, centre)
    if data.validation is not None:
        return training, list(range(len(data))), Crops(data.validation, preprocessing, None, seed)
    kept, out = held_out(data.targets, share, seed)
    if not out:
        raise InputError(f"{data.name} has one picture per class: nothing can be held out for validation. Give at least two per class.")
    return training, kept, Subset(Crops(data, preprocessing, None, seed), out)
