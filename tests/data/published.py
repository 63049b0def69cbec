"""Miniatures of data sets in the layouts in which they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
DOGS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog")


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (40 * number % 256, 90, 30)).save(path)


def cub(root: Path) -> Path:
    """CUB-200-2011 with three species: of each two training pictures and a test picture."""
    rows = [(f"{name}/{name[4:]}_{number:04d}.jpg", kind, number < 2) for kind, name in enumerate(BIRDS, 1) for number in range(3)]
    for index, (file, _, _) in enumerate(rows):
        _picture(root / "images" / file, index)
    tables = {
        "images": [file for file, _, _ in rows],
        "image_class_labels": [kind for _, kind, _ in rows],
        "train_test_split": [int(training) for _, _, training in rows],
        "bounding_boxes": [f"{index}.0 2.0 20.0 {25.5 - index}" for index in range(len(rows))],
    }
    for name, values in tables.items():
        (root / f"{name}.txt").write_text("".join(f"{number} {value}\n" for number, value in enumerate(values, 1)))
    (root / "classes.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(BIRDS, 1)))
    return root


def dogs(root: Path) -> Path:
    """Stanford Dogs with three breeds: of each two training pictures and a test picture. The training list is in no order."""
    rows = [(f"{name}/{name[:9]}_{number}.jpg", kind) for kind, name in enumerate(DOGS, 1) for number in (10, 20, 30)]
    for index, (file, _) in enumerate(rows):
        _picture(root / "Images" / file, index)
    dog_list(root / "train_list.mat", [row for row in rows[::-1] if not row[0].endswith("_30.jpg")])
    dog_list(root / "test_list.mat", [row for row in rows if row[0].endswith("_30.jpg")])
    return root


def dog_list(path: Path, rows: list[tuple[str, float]]) -> None:
    """A list as in `lists.tar`: cells of paths, and labels in a column."""
    files = np.empty((len(rows), 1), dtype=object)
    files[:, 0] = [file for file, _ in rows]
    annotations = np.empty((len(rows), 1), dtype=object)
    annotations[:, 0] = [file.removesuffix(".jpg") for file, _ in rows]
    labels = np.array([[float(label)] for _, label in rows])
    scipy.io.savemat(path, {"file_list": files, "annotation_list": annotations, "labels": labels}, do_compression=True)


def voc_annotation(objects: list[tuple[str, int]]) -> str:
    """The XML of a picture with objects, each a class and whether it is difficult."""
    lines = [f"<object><name>{name}</name><difficult>{difficult}</difficult></object>" for name, difficult in objects]
    return "\n".join(["<annotation>", *lines, "</annotation>"])


INDOOR = ("airport_inside", "bakery", "tv_studio")


def mit67(root: Path) -> Path:
    """MIT67 with three scenes: of each two training pictures and a test picture. The lists are in no order, and end without a new line."""
    rows = [(f"{name}/{name}_{number:04d}.jpg", number) for name in INDOOR for number in range(3)]
    for index, (file, _) in enumerate(rows):
        _picture(root / "Images" / file, index)
    (root / "TrainImages.txt").write_text("\n".join(file for file, number in rows[::-1] if number < 2))
    (root / "TestImages.txt").write_text("\n".join(file for file, number in rows if number == 2))
    return root


VOC = {  # by split, the objects of each picture
    "train": [[("cat", 0), ("person", 0)], [("dog", 0)], [("cat", 1), ("cat", 0)]],
    "val": [[("person", 1)], [("dog", 0), ("person", 1), ("dog", 1)]],
}


def voc(root: Path) -> Path:
    """VOC 2012 with five pictures, without the lists of classes: its 20 are known."""
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (root / "Annotations").mkdir()
    names: dict[str, list[str]] = {"trainval": []}
    for year, (split, pictures) in enumerate(VOC.items(), 2007):
        names[split] = [f"{year}_{number:06d}" for number in range(len(pictures))]
        names["trainval"] += names[split]
        for name, objects in zip(names[split], pictures, strict=True):
            _picture(root / "JPEGImages" / f"{name}.jpg", len(objects))
            (root / "Annotations" / f"{name}.xml").write_text(voc_annotation(objects))
    for split, of_split in names.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in of_split))
    return root
