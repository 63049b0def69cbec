"""SketchBirds in the layout of CIFAR-FS, with disjoint classes for training, validation and test."""

from __future__ import annotations

from pathlib import Path

from xattn.birds.data import SketchBirds
from xattn.birds.scene import CLASSES, Split
from xattn.errors import InputError

KINDS = tuple(CLASSES)
SPLITS: dict[str, tuple[Split, tuple[str, ...]]] = {
    "train": ("train", KINDS[:8]),
    "val": ("validation", KINDS[8:12]),
    "test": ("test", KINDS[12:]),
}
"""For each split of the layout: the SketchBirds split of its pictures, and its classes."""


def export_few_shot(folder: str | Path, count: int = 600, *, seed: int = 0, hard: bool = False) -> Path:
    """Writes SketchBirds in the layout of CIFAR-FS: `data/KIND/*.png` and `splits/bertinetto/{train,val,test}.txt`.

    Eight of the classes are for training, four for validation, four for test.

    Args:
        folder: where to write.
        count: pictures per class.
        seed: seed of the data set.
        hard: as for `SketchBirds`.

    Returns:
        The folder, for `cifar-fs:FOLDER`.

    Raises:
        InputError: the count is below 1, or the folder holds other pictures.
    """
    folder = Path(folder)
    if count < 1:
        raise InputError(f"a kind needs at least one picture; got {count}.")
    names = {(kind, f"{number:04d}.png") for kind in KINDS for number in range(count)}
    if other := {(path.parent.name, path.name) for path in (folder / "data").glob("*/*.png")} - names:
        raise InputError(f"'{folder}' contains other pictures, such as {'/'.join(min(other))}: export into a new folder.")
    lists = folder / "splits" / "bertinetto"
    lists.mkdir(parents=True, exist_ok=True)
    for split, (drawn, kinds) in SPLITS.items():
        birds = SketchBirds(drawn, count * len(KINDS), seed=seed, hard=hard)
        for kind in kinds:
            for number in range(count):
                birds.write(number * len(KINDS) + KINDS.index(kind), folder / "data" / kind / f"{number:04d}.png")
        (lists / f"{split}.txt").write_text("".join(f"{kind}\n" for kind in kinds), encoding="utf-8")
    return folder
