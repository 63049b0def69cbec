"""SketchBirds as a torch data set that is drawn on demand, and as exported folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.utils.data import Dataset

from xattn.birds.drawing import masks, render
from xattn.birds.scene import CLASSES, KEY, SPLITS, Scene, Split, scene
from xattn.errors import InputError


class SketchBirds(Dataset[tuple[Any, int]]):
    """Drawings of birds of 16 classes that differ in their parts, as (picture, class index) pairs; each is drawn on demand.

    Args:
        split: birds of "train" lack parts and clutter at random; birds of "validation" and "test" are complete.
        count: number of pictures; classes alternate.
        seed: seed of the data set.
        spurious: share of pictures whose cue (a mushroom or a kite) is that of their own class; None: no cues.
        hard: smaller birds with smaller parts, partly hidden by clutter; each split has its own pictures of this kind.
        transform: applied to the RGB picture, as in torchvision's data sets; None: the picture itself, 64 × 64.

    Raises:
        InputError: the split is unknown, the count is below 1, or the share is outside [0, 1].
    """

    def __init__(
        self,
        split: Split = "train",
        count: int = 20_000,
        *,
        seed: int = 0,
        spurious: float | None = None,
        hard: bool = False,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"SketchBirds has no split '{split}'. Splits: {', '.join(SPLITS)}.")
        if count < 1 or not 0 <= (spurious or 0) <= 1:
            raise InputError(f"SketchBirds needs at least one picture, and a share in [0, 1] as spurious; got {count} and {spurious}.")
        self.split: Split = split
        self.count = count
        self.seed = seed
        self.spurious = spurious
        self.hard = hard
        self.transform = transform
        self.classes = tuple(CLASSES)
        self.targets = tuple(index % len(CLASSES) for index in range(count))

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        hard = ", hard" if self.hard else ""
        return f"SketchBirds({self.split}, {self.count}, seed={self.seed}, spurious={self.spurious}{hard})"

    def __getitem__(self, index: int) -> tuple[Any, int]:
        shown = self.scene(index)
        picture = render(shown)
        return (picture if self.transform is None else self.transform(picture)), shown.label

    def scene(self, index: int) -> Scene:
        """Returns the scene that a picture shows."""
        if not 0 <= index < self.count:
            raise IndexError(f"{self!r} has no picture {index}.")
        return scene(index, split=self.split, seed=self.seed, spurious=self.spurious, hard=self.hard)

    def region(self, index: int) -> Tensor:
        """Returns where the bird is visible in a picture, `(64, 64)` bool, in the form used by metrics that compare maps with it."""
        return masks(self.scene(index)).bird

    def write(self, index: int, path: Path) -> None:
        """Writes a picture as PNG into a new folder; a text field names its scene, so that `scene_of` finds the ground truth."""
        key = PngInfo()
        hard = {"hard": True} if self.hard else {}
        key.add_text(KEY, json.dumps({"index": index, "split": self.split, "seed": self.seed, "spurious": self.spurious, **hard}))
        path.parent.mkdir(parents=True, exist_ok=True)
        render(self.scene(index)).save(path, pnginfo=key)

    def export(self, folder: str | Path) -> Path:
        """Writes the pictures as PNG into one folder per class, and `labels.csv` (image, label) next to these folders.

        A text field of each file names its scene, so that `scene_of` finds the ground truth; the pixels do not contain this text.

        Returns:
            The folder, for `explain` and `train`.

        Raises:
            InputError: the folder holds other pictures.
        """
        folder = Path(folder)
        names = [f"{self.classes[self.targets[index]]}/{index:06d}.png" for index in range(self.count)]
        if other := {path.relative_to(folder).as_posix() for path in folder.glob("*/*.png")} - set(names):
            raise InputError(f"'{folder}' contains other pictures, such as {min(other)}: export into a new folder.")
        rows = []
        for index, name in enumerate(names):
            self.write(index, folder / name)
            rows.append((name, self.classes[self.targets[index]]))
        with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "label"))
            writer.writerows(rows)
        return folder
