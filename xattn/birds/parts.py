"""SketchBirds with part labels for every pixel, in the layout of Cityscapes."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from xattn.birds.data import SketchBirds
from xattn.birds.drawing import masks
from xattn.birds.scene import PARTS, Scene, Split
from xattn.data.cityscapes import IGNORED, LABELS, PICTURES
from xattn.errors import InputError

CITY = "birds"
GROUND = "ground"
SPLITS: dict[str, Split] = {"train": "train", "val": "validation"}


def label_map(scene: Scene) -> Tensor:
    """Returns the class of every pixel of a scene, uint8 `(64, 64)`: 0 background, 1 to 5 the parts, 255 ignored.

    The body is ignored, and so are edge pixels that two parts colour.
    """
    found = masks(scene)
    shared = found.visible.sum(dim=0)
    labels = torch.zeros(found.bird.shape, dtype=torch.uint8)
    labels[found.bird] = IGNORED
    for number, part in enumerate(found.visible):
        labels[part & (shared == 1)] = number + 1
    return labels


def export_parts(root: str | Path, *, train: int = 2000, validation: int = 400, seed: int = 0) -> Path:
    """Writes birds with the part of every pixel in the layout of Cityscapes: `leftImg8bit/`, `gtFine/` and `classes.txt`.

    Args:
        root: folder, new or empty.
        train: number of pictures in the split train, whose birds lack parts at random.
        validation: number of pictures in the split val, with complete birds.
        seed: seed of the data set.

    Returns:
        The folder, for `cityscapes:ROOT`.

    Raises:
        InputError: the folder holds other things, or a number is below 1.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(path.name for path in export_parts(folder, train=1, validation=1).iterdir())
    ['classes.txt', 'gtFine', 'leftImg8bit']
    """
    folder = Path(root)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"'{folder}' is not empty: export into a new folder.")
    if min(train, validation) < 1:
        raise InputError(f"each split needs at least one picture; got {train} and {validation}.")
    for split, count in {"train": train, "val": validation}.items():
        birds = SketchBirds(SPLITS[split], count, seed=seed)
        labels = folder / LABELS / split / CITY
        labels.mkdir(parents=True)
        for index in range(count):
            name = f"{CITY}_{index:06d}"
            birds.write(index, folder / PICTURES / split / CITY / f"{name}_{PICTURES}.png")
            found = label_map(birds.scene(index))
            picture = Image.frombytes("L", (found.shape[1], found.shape[0]), found.numpy().tobytes())
            picture.save(labels / f"{name}_{LABELS}_labelTrainIds.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in (GROUND, *PARTS)), encoding="utf-8")
    return folder
