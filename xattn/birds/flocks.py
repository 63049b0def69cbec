"""Pictures with several birds of different classes, and their export in the layout of PASCAL VOC."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from PIL import Image
from torch import Tensor

from xattn.birds.drawing import SIDE, Masks, masks_among, render_together
from xattn.birds.scene import CLASSES, Pose, Scene, Split, scene
from xattn.data import urls
from xattn.errors import InputError

KEY = "sketchbirds flock"
MOST = 3
DIFFICULT = 0.7  # a bird is marked as difficult if less than this share of it is visible
OCCLUDED = 0.95
SPOTS = {1: ((0.5, 0.52),), 2: ((0.29, 0.5), (0.71, 0.54)), 3: ((0.28, 0.32), (0.72, 0.36), (0.5, 0.72))}
SIZES = {1: (0.42, 0.72), 2: (0.36, 0.5), 3: (0.32, 0.42)}
"""Centres of the birds, and their smallest and largest size, by number of birds."""
JITTER = 0.1
COVERED = 0.4  # share of the pictures of several birds in which the last bird stands in front of the first
QUALITY = 95


@dataclass(frozen=True)
class Flock:
    """Content of a picture with several birds.

    Attributes:
        birds: one scene per bird, of different classes, from back to front. Habitat, light and clutter are those of the first.
    """

    birds: tuple[Scene, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """Returns the class index of each bird."""
        return tuple(bird.label for bird in self.birds)

    def render(self) -> Image.Image:
        """Renders the RGB picture, 64 × 64; the pixels are the same on every machine and in every call."""
        return render_together(self.birds)

    def masks(self) -> list[Masks]:
        """Returns the masks of each bird and its parts; clutter and other birds hide them."""
        return [masks_among(self.birds, number) for number in range(len(self.birds))]


def flock(index: int, *, split: Split = "train", seed: int = 0) -> Flock:
    """Returns the flock with a given number: one to three birds of different classes.

    Args:
        index: from 0; the class of the first bird cycles through all classes.
        split: birds of "train" lack parts at random; birds of "validation" and "test" are complete.
        seed: seed of the data set.

    Raises:
        InputError: the split is unknown.
    """
    draw = random.Random(f"sketchbirds flock {seed} {split} {index}")
    count = draw.randint(1, MOST)
    kinds = len(CLASSES)
    first = index % kinds
    labels = [first, *draw.sample([label for label in range(kinds) if label != first], count - 1)]
    spots = draw.sample(SPOTS[count], count)
    if count > 1 and draw.random() < COVERED:
        spots[-1] = spots[0]
    birds = []
    for place, (label, spot) in enumerate(zip(labels, spots, strict=True)):
        own = scene(kinds * (MOST * index + place) + label, split=split, seed=seed + 1_000_003)  # no scene of SketchBirds with this seed
        x, y = (centre + draw.uniform(-JITTER, JITTER) for centre in spot)
        birds.append(replace(own, pose=Pose(x, y, draw.uniform(*SIZES[count]), own.pose.tilt, own.pose.facing)))
    return Flock(tuple(birds))


def export_voc(folder: str | Path, *, train: int = 2000, validation: int = 400, seed: int = 0) -> Path:
    """Writes pictures of several birds in the layout of PASCAL VOC: `JPEGImages`, `Annotations` with boxes, `ImageSets/Main`.

    A bird of which less than 70 % is visible is marked as difficult. A comment in each picture names its flock, so that `flock_of` finds
    the ground truth; the pixels do not contain this text.

    Args:
        folder: where to write.
        train: number of pictures in the split train.
        validation: number of pictures in the split val, with complete birds.
        seed: seed of the data set.

    Returns:
        The folder, as `voc:FOLDER` for `train`, `evaluate` and, with a split, `explain`.

    Raises:
        InputError: a number is below 1, or the folder holds other pictures.
    """
    folder = Path(folder)
    if min(train, validation) < 1:
        raise InputError(f"each split needs at least one picture; got {train} and {validation}.")
    counts: dict[str, tuple[Split, int]] = {"train": ("train", train), "val": ("validation", validation)}
    names = {short: [f"{short}_{index:06d}" for index in range(count)] for short, (_, count) in counts.items()}
    if other := {path.stem for path in (folder / "JPEGImages").glob("*.jpg")} - {name for each in names.values() for name in each}:
        raise InputError(f"'{folder}' contains other pictures, such as {min(other)}: export into a new folder.")
    lists = folder / "ImageSets" / "Main"
    for place in (folder / "JPEGImages", folder / "Annotations", lists):
        place.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, list[int]]] = {}
    for short, (split, count) in counts.items():
        entries[short] = {}
        for index in range(count):
            shown, name = flock(index, split=split, seed=seed), names[short][index]
            key = json.dumps({"index": index, "split": split, "seed": seed})
            shown.render().save(folder / "JPEGImages" / f"{name}.jpg", quality=QUALITY, comment=f"{KEY} {key}".encode())
            objects = _objects(shown)
            (folder / "Annotations" / f"{name}.xml").write_text(_annotation(name, objects), encoding="utf-8")
            entries[short][name] = [_entry(kind, objects) for kind in CLASSES]
    for short, names_of in {"train": ["train"], "val": ["val"], "trainval": ["train", "val"]}.items():
        rows = {name: row for each in names_of for name, row in entries[each].items()}
        (lists / f"{short}.txt").write_text("".join(f"{name}\n" for name in rows), encoding="utf-8")
        for number, kind in enumerate(CLASSES):
            lines = "".join(f"{name} {row[number]:2d}\n" for name, row in rows.items())
            (lists / f"{kind}_{short}.txt").write_text(lines, encoding="utf-8")
    return folder


def flock_of(path: str | Path) -> Flock | None:
    """Returns the flock that an exported picture shows; None for any other picture."""
    with Image.open(io.BytesIO(urls.read(path)) if isinstance(path, str) and urls.is_url(path) else path) as picture:
        comment = picture.info.get("comment", b"")
    text = comment.decode(errors="replace") if isinstance(comment, bytes) else str(comment)
    return flock(**json.loads(text.removeprefix(KEY))) if text.startswith(KEY) else None


@dataclass(frozen=True)
class _Object:
    """A bird in an annotation: its class, the bounding box of its visible part, and the visible share."""

    kind: str
    box: tuple[int, int, int, int]
    share: float


def _objects(shown: Flock) -> list[_Object]:
    kinds = tuple(CLASSES)
    found = []
    for number, (label, masks) in enumerate(zip(shown.labels, shown.masks(), strict=True)):
        if not bool(masks.bird.any()):  # it is completely hidden
            continue
        alone = masks_among((shown.birds[number],), 0, clutter=False).bird
        found.append(_Object(kinds[label], _box(masks.bird), float(masks.bird.sum()) / float(alone.sum())))
    return found


def _box(mask: Tensor) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom pixel of a mask, counted from 1 as in VOC."""
    rows, columns = (torch.where(mask.any(dim=axis))[0] + 1 for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _entry(kind: str, objects: Sequence[_Object]) -> int:
    """Returns 1 if a bird of a class is present, 0 if it is difficult, −1 if there is none, as in VOC's lists of a class."""
    shares = [each.share for each in objects if each.kind == kind]
    return (1 if max(shares) >= DIFFICULT else 0) if shares else -1


def _annotation(name: str, objects: Sequence[_Object]) -> str:
    size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
    lines = ["<annotation>", "\t<folder>SketchBirds</folder>", f"\t<filename>{escape(name)}.jpg</filename>", f"\t{size}"]
    for each in objects:
        flags = f"<occluded>{int(each.share < OCCLUDED)}</occluded><difficult>{int(each.share < DIFFICULT)}</difficult>"
        corners = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), each.box, strict=True))
        lines.append(f"\t<object><name>{each.kind}</name><truncated>0</truncated>{flags}<bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])
