"""Crops of training pictures, their order and the held-out ones. Randomness is keyed by seed, epoch and index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, Subset
from torchvision.transforms import v2

from xattn.data.cityscapes import IGNORED
from xattn.data.labelled import Classes, Labelled, open_data
from xattn.data.preprocessing import Preprocessing, channels_first
from xattn.data.published import Target
from xattn.data.seeds import mixed
from xattn.errors import InputError
from xattn.metrics.removals import grid_patches

DELETIONS = -4  # in the place of an epoch: the seed of deleted patches
ERASED = {"scale": (0.02, 0.4), "ratio": (0.3, 1 / 0.3)}  # share of the crop, and aspect ratio, of what is erased; Zhong et al. 2020

__all__ = ["Classes", "Crops", "EpochOrder", "LabelMapCrops", "Labelled", "held_out", "mixed", "open_data", "splits"]


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
        deletion_grid: in half of the crops, one patch of a grid of so many by so many shows the classifier's mean colour; None: in none.
        padding: pixels by which the classifier's own crop is padded with its outermost ones, before it is cropped at a random place and
            flipped or not, in the place of other random crops; None: it is not.
        erasing: probability that a random rectangle of a crop shows the classifier's mean colour.

    Raises:
        InputError: the grid has more patches along a side than the crop has pixels.
    """

    def __init__(
        self,
        data: Labelled,
        preprocessing: Preprocessing,
        smallest: float | None,
        seed: int,
        centre: float = 1.0,
        deletion_grid: int | None = None,
        padding: int | None = None,
        erasing: float = 0.0,
    ) -> None:
        self.data = data
        self.targets = torch.tensor(data.targets)
        self.preprocessing = preprocessing
        self.seed = seed
        self.deletion_grid = deletion_grid
        self.patches = None if deletion_grid is None else grid_patches(preprocessing.input_size, deletion_grid)
        self.of_own_crop = smallest is None
        steps: list[nn.Module] = []
        if smallest is not None:
            interpolation = v2.InterpolationMode(preprocessing.interpolation)
            size = [round(side / centre) for side in preprocessing.input_size]
            crop = v2.RandomResizedCrop(size, scale=(smallest, 1.0), interpolation=interpolation, antialias=True)
            kept = v2.CenterCrop(preprocessing.input_size)
            steps = [crop, kept, v2.RandomHorizontalFlip(), v2.PILToTensor()]
        elif padding is not None:
            pad = v2.Pad(padding, padding_mode="edge")
            steps = [pad, v2.RandomCrop(preprocessing.input_size), v2.RandomHorizontalFlip()]
        if erasing:
            steps.append(v2.RandomErasing(erasing, value=_mean_colour(preprocessing), **ERASED))
        self.augment = v2.Compose(steps) if steps else None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        picture = self.data.pictures.picture(number)
        if self.augment is None:
            return self._with_deletion(self.preprocessing.crop(picture), epoch, number), self.targets[number]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(self.seed, epoch, number))
            crop: Tensor = self.augment((self.preprocessing.crop if self.of_own_crop else self.preprocessing.converted)(picture))
        return self._with_deletion(crop, epoch, number), self.targets[number]

    def _with_deletion(self, crop: Tensor, epoch: int, number: int) -> Tensor:
        """The crop, half of the time without one patch."""
        if self.patches is None or self.deletion_grid is None:
            return crop
        generator = torch.Generator().manual_seed(mixed(mixed(self.seed, DELETIONS, 0), epoch, number))
        keeps, patch = (int(torch.randint(count, (), generator=generator)) for count in (2, self.deletion_grid**2))
        colour = torch.tensor(_mean_colour(self.preprocessing), dtype=crop.dtype)[:, None, None]
        return crop if keeps else torch.where(self.patches == patch, colour, crop)


class LabelMapCrops(Crops):
    """Crops of pictures with the class of every pixel, uint8 `(C, H, W)` and `(H, W)`; each a pure function of seed, epoch and number.

    With `smallest`, picture and label map are scaled together by a random factor from √smallest to 1/√smallest, cropped at one random place
    and flipped or not. What a picture does not cover of its crop has the classifier's mean colour, and does not count. Without, it is the
    classifier's own crop.

    Args:
        data: the pictures, with label maps.
        preprocessing: of the classifier.
        smallest: what a crop covers of a picture at the largest scale; None: no augmentation.
        seed: of the augmentation.

    Raises:
        InputError: the data have no label maps.
    """

    def __init__(self, data: Labelled, preprocessing: Preprocessing, smallest: float | None, seed: int) -> None:
        if data.label_maps is None:
            raise InputError(f"{data.name} has no label maps: the class of every pixel is needed.")
        super().__init__(data, preprocessing, None, seed)
        self.label_maps = data.label_maps
        self.smallest = smallest

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        picture = self.data.pictures.picture(number)
        labels = self.label_maps.read(number, picture.size)
        if self.smallest is None:
            return self.preprocessing.crop(picture), self.preprocessing.label_crop(labels)
        scaled, down, across, flip = torch.rand(4, generator=torch.Generator().manual_seed(mixed(self.seed, epoch, number))).tolist()
        lowest = self.smallest**0.5
        scale = lowest + scaled * (1 / lowest - lowest)
        picture = self.preprocessing.converted(picture)
        height, width = (max(1, round(scale * side)) for side in self.preprocessing.resized(picture))
        how = Image.Resampling[self.preprocessing.interpolation.removesuffix("-exact").upper()]
        picture, labels = picture.resize((width, height), how), labels.resize((width, height), Image.Resampling.NEAREST)
        size = self.preprocessing.input_size[::-1]
        corner = round(across * (size[0] - width)), round(down * (size[1] - height))  # of the picture in the crop
        colour = _mean_colour(self.preprocessing)
        crop = Image.new(picture.mode, size, tuple(colour) if len(colour) > 1 else colour[0])
        kept = Image.new("L", size, IGNORED)
        crop.paste(picture, corner)
        kept.paste(labels, corner)
        if flip < 0.5:
            crop, kept = (each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for each in (crop, kept))
        return channels_first(crop), channels_first(kept)[0]


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
    data: Labelled,
    preprocessing: Preprocessing,
    share: float,
    smallest: float | None,
    seed: int,
    centre: float = 1.0,
    per_pixel: bool = False,
    deletion_grid: int | None = None,
    padding: int | None = None,
    erasing: float = 0.0,
) -> tuple[Crops, list[int], Dataset[Any]]:
    """Augmented crops with the numbers of the training pictures, and the validation data.

    Args:
        data: the pictures.
        preprocessing: of the classifier.
        share: of the pictures that is held out where the data have no validation pictures.
        smallest: of random crops, see `Crops` and `LabelMapCrops`; None: no augmentation.
        seed: of the split and of the augmentation.
        centre: share of a random crop's side that is kept, around its centre.
        per_pixel: the targets are label maps.
        deletion_grid: of training pictures, see `Crops`.
        padding: of training pictures, see `Crops`.
        erasing: of training pictures, see `Crops`.

    Raises:
        InputError: nothing can be held out, the data lack label maps, or `centre`, `deletion_grid`, `padding` or `erasing` is given for
            label maps; or the padding is as wide as the crop.
    """
    if per_pixel and centre != 1:
        raise InputError(f"centre_crop does not apply to pictures with label maps: leave out centre_crop={centre}.")
    if per_pixel and (padding is not None or erasing):
        given = f"{padding=}" if padding is not None else f"{erasing=}"
        raise InputError(f"padding and erasing do not apply to pictures with label maps: leave out {given}.")
    if padding is not None and padding >= (side := min(preprocessing.input_size)):
        raise InputError(f"padding={padding} must be below the shorter side of the network's crop, {side} pixels.")
    if per_pixel and deletion_grid is not None:
        raise InputError(f"patches are not deleted from pictures with label maps: leave out {deletion_grid=}.")

    def own(part: Labelled) -> Crops:
        return LabelMapCrops(part, preprocessing, None, seed) if per_pixel else Crops(part, preprocessing, None, seed)

    if per_pixel:
        training: Crops = LabelMapCrops(data, preprocessing, smallest, seed)
    else:
        training = Crops(data, preprocessing, smallest, seed, centre, deletion_grid, padding, erasing)
    if data.validation is not None:
        return training, list(range(len(data))), own(data.validation)
    kept, out = held_out(data.targets, share, seed)
    if not out:
        raise InputError(f"{data.name} has one picture per class: nothing can be held out for validation. Give at least two per class.")
    return training, kept, Subset(own(data), out)


def _mean_colour(preprocessing: Preprocessing) -> list[int]:
    return [round(255 * value) for value in preprocessing.mean]
