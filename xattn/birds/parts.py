"""Birds with the part that every pixel shows, in the layout of Cityscapes."""

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
    """The class of every pixel of a scene, uint8 `(64, 64)`: 0 the ground, 1 to 5 the parts, 255 what does not count.

    The body is of no class, and so are pixels at an edge that two parts colour.
    """
    found = masks(scene)
    shared = found.visible.sum(dim=0)
    labels = torch.zeros(found.bird.shape, dtype=torch.uint8)
    labels[found.bird] = IGNORED
    for number, part in enumerate(found.visible):
        labels[part & (shared == 1)] = number + 1
    return labels


def export_parts(root: str | Path, *, train: int = 2000, validation: int = 400, seed: int = 0) -> Path:
    """Writes birds in the layout of Cityscapes, with the part of every pixel: `leftImg8bit/`, `gtFine/` and `classes.txt`.

    Args:
        root: folder, new or empty.
        train: pictures of the split train, whose birds lack parts at random.
        validation: pictures of the split val, of whole birds.
        seed: of the data set.

    Returns:
        The folder, for `cityscapes:ROOT`.

    Raises:
        InputError: the folder holds other things, or a number below 1.

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
