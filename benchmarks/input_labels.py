"""Formats of labels for pictures whose classes are known: the labels that a run must read, or why it refuses them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import xattn

NAMES = ("cat", "dog", "crane", "owl, great grey", "ox|cow")
NUMBERS = ("5", "10", "0", "20", "3")
TWICE = ("cat", "crane", "dog", "crane", "ox")
FILES = tuple(f"{number}.png" for number in range(5))
IMAGENET = 1000


class Level(nn.Module):
    """A network for which the class of a picture is its grey level, in steps of 50."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.blur = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        nn.init.ones_(self.blur.weight)
        self.linear = nn.Linear(3, classes)
        steps = torch.arange(classes) * 50 / 255
        with torch.no_grad():  # 2 s x - s² is largest where x is nearest to s
            self.linear.weight.copy_((2 * steps / 3)[:, None].expand(-1, 3) * 1000)
            self.linear.bias.copy_(-(steps**2) * 1000)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.linear(self.pool(self.blur(images)).flatten(1))
        return found


def network(names: Sequence[str] | None = NAMES, classes: int = 5) -> xattn.Classifier:
    """Returns a classifier of grey levels."""
    return xattn.attach(
        Level(classes), input_size=8, resize=8, mean=[0.0] * 3, std=[1.0] * 3, labels=None if names is None else list(names)
    )


@dataclass(frozen=True)
class Form:
    """A format of labels.

    Attributes:
        name: name of the format.
        make: writes the pictures and their labels into a folder, and returns arguments of `Study`: `images` and options.
        right: the class of each picture, in the order of their names; None: no labels must be read.
        names: names of the network's classes; None: unknown.
        classes: number of classes.
        says: what a log line must contain if other labels or none are read.
    """

    name: str
    make: Callable[[Path], Mapping[str, Any]]
    right: Sequence[int] | None = (0, 1, 2, 3, 4)
    names: Sequence[str] | None = NAMES
    classes: int = 5
    says: str = ""


def picture(level: int) -> Image.Image:
    """Makes a picture of one grey level."""
    return Image.new("RGB", (8, 8), (50 * level,) * 3)


def drawn(folder: Path, names: Sequence[str] = FILES, levels: Sequence[int] = (0, 1, 2, 3, 4)) -> Path:
    """Writes a picture of each class."""
    for name, level in zip(names, levels, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(level).save(folder / name)
    return folder


def folders(names: Sequence[str], levels: Sequence[int] = (0, 1, 2, 3, 4), **more: Any) -> Callable[[Path], Mapping[str, Any]]:
    """Writes one folder per class."""

    def make(folder: Path) -> Mapping[str, Any]:
        return {"images": drawn(folder / "in", [f"{name}/a.png" for name in names], levels), **more}

    return make


def table(content: str | bytes, file: str = "labels.csv", **more: Any) -> Callable[[Path], Mapping[str, Any]]:
    """Writes a label file next to the pictures."""

    def make(folder: Path) -> Mapping[str, Any]:
        drawn(folder / "in")
        path = folder / "in" / file if file.startswith("metadata") else folder / file
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return {"images": folder / "in", **({} if file.startswith("metadata") else {"labels_csv": path}), **more}

    return make


def csv(labels: Sequence[object], head: str = "image,label", sep: str = ",", **more: Any) -> Callable[[Path], Mapping[str, Any]]:
    """Writes a CSV of pictures and labels."""
    return table("\n".join([head, *(f"{file}{sep}{label}" for file, label in zip(FILES, labels, strict=True))]) + "\n", **more)


def items(labels: Sequence[Any], levels: Sequence[int] = (0, 1, 2, 3, 4), **attributes: Any) -> Callable[[Path], Mapping[str, Any]]:
    """Makes a data set of pairs."""

    def make(folder: Path) -> Mapping[str, Any]:
        class Pairs(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return 5

            def __getitem__(self, index: int) -> Any:
                return picture(levels[index]), labels[index]

        found = Pairs()
        for name, value in attributes.items():
            setattr(found, name, value)
        return {"images": found}

    return make


def special(make_file: Callable[[Path], object]) -> Callable[[Path], Mapping[str, Any]]:
    """Makes a label file that is not an ordinary file."""

    def make(folder: Path) -> Mapping[str, Any]:
        drawn(folder / "in")
        place = folder / "labels.csv"
        made = make_file(place)
        return {"images": folder / "in", "labels_csv": made if isinstance(made, Path) else place}

    return make


def sparse(place: Path) -> None:
    """Makes a sparse file of 64 GiB."""
    with open(place, "wb") as file:
        file.truncate(64 * 2**30)


def ground_truth(folder: Path) -> Mapping[str, Any]:
    """Writes ILSVRC's ground truth: its numbers are not the network's."""
    from scipy.io import savemat

    wnids = wordnet()
    drawn(folder / "in", [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 6)])
    (folder / "truth.txt").write_text("".join(f"{5 - number}\n" for number in range(5)))
    rows = np.array([(5 - number, wnids[number]) for number in range(5)], dtype=[("ILSVRC2012_ID", int), ("WNID", object)])
    savemat(folder / "meta.mat", {"synsets": rows})
    return {"images": folder / "in", "labels_csv": folder / "truth.txt"}


def wordnet() -> Sequence[str]:
    """Returns the ids of ImageNet's classes, in their order."""
    from xattn.data.labels import imagenet_wnids

    return imagenet_wnids()


def forms() -> list[Form]:
    """Lists all formats."""
    quoted = ["cat", "dog", "crane", '"owl, great grey"', "ox|cow"]
    plain = list(range(5))
    hot = torch.eye(5)
    json_lines = "".join(json.dumps({"file_name": file, "label": label}) + "\n" for file, label in zip(FILES, NAMES, strict=True))
    return [
        Form(
            "folders called as classes",
            folders(["cat", "dog", "crane", "owl", "ox"]),
            (0, 2, 1, 3, 4),
            ["cat", "dog", "crane", "owl", "ox"],
        ),
        Form(
            "folders called as classes, in another order",
            folders(["ox", "owl", "dog", "crane", "cat"], (4, 2, 1, 3, 0)),
            (0, 3, 1, 2, 4),
            ["cat", "dog", "owl", "crane", "ox"],
        ),
        Form("folders called by WordNet ids", lambda folder: folders(wordnet()[:5])(folder), names=None, classes=IMAGENET),
        Form("folders called by numbers, unasked", folders(["0", "1", "2", "3", "4"]), None, says="name no class"),
        Form("folders called by numbers, --labels-from folders", folders(["0", "1", "2", "3", "4"], labels_from="folders")),
        Form("folders called by numbers that are names", folders(["5", "10", "0", "20", "3"]), (2, 1, 3, 4, 0), NUMBERS),
        Form("folders of other classes, unasked", folders(["train", "val", "test", "a", "b"]), None, says="name no class"),
        Form("folders of other classes, --labels-from folders", folders(["train", "val", "test", "a", "b"], labels_from="folders")),
        Form(
            "folders of which one is no class, unasked",
            folders(["cat", "dog", "crane", "owl", "cow"]),
            None,
            ["cat", "dog", "crane", "owl", "ox"],
            says="cow",
        ),
        Form("CSV of indices", csv(plain)),
        Form("CSV of class names, one with a comma in quotes", csv(quoted)),
        Form("CSV of class names, one with a comma unquoted", csv(NAMES)),
        Form("CSV with columns in another order", table("label,image\n" + "".join(f"{n},{n}.png\n" for n in plain))),
        Form("CSV with further columns", table("image,size,label\n" + "".join(f"{n}.png,8,{n}\n" for n in plain))),
        Form("CSV without a header", csv(plain, head="0.png,0")),
        Form("CSV with spaces in its header", csv(plain, head="image, label")),
        Form("CSV with a header in capitals", csv(plain, head="Image,Label")),
        Form("CSV with semicolons", csv(plain, "image;label", ";")),
        Form("CSV with tabs", csv(plain, "image\tlabel", "\t")),
        Form("TSV", csv(plain, "image\tlabel", "\t", file="labels.tsv")),
        Form("CSV with a byte order mark", table(b"\xef\xbb\xbf" + b"image,label\n" + b"".join(b"%d.png,%d\n" % (n, n) for n in plain))),
        Form("CSV in UTF-16", table(("image,label\n" + "".join(f"{n}.png,{n}\n" for n in plain)).encode("utf-16"))),
        Form("CSV in Latin-1", table(("image,label\n" + "".join(f"{n}.png,{n}\n" for n in plain) + "\xe9.png,1\n").encode("latin-1"))),
        Form("CSV with Windows's ends of lines", table("image,label\r\n" + "".join(f"{n}.png,{n}\r\n" for n in plain))),
        Form("CSV with empty lines", table("image,label\n\n" + "".join(f"{n}.png,{n}\n\n" for n in plain))),
        Form("CSV of WordNet ids", lambda folder: csv(wordnet()[:5])(folder), names=None, classes=IMAGENET),
        Form("Kaggle's ILSVRC CSV", kaggle, names=None, classes=IMAGENET),
        Form("text lines of a path and a label", table("".join(f"{n}.png {n}\n" for n in plain), "labels.txt")),
        Form("ILSVRC's ground truth with its meta.mat", ground_truth, names=None, classes=IMAGENET),
        Form("numbers alone, a line each", table("".join(f"{n}\n" for n in plain), "labels.txt")),
        Form("Hugging Face's metadata.csv", csv(quoted, "file_name,label", file="metadata.csv")),
        Form("Hugging Face's metadata.jsonl", table(json_lines, "metadata.jsonl")),
        Form("JSON lines as a label file", table(json_lines, "labels.jsonl")),
        Form("JSON as a label file", table(json.dumps(dict(zip(FILES, plain, strict=True))), "labels.json")),
        Form("labels from 1", from_one, (0, 1, 2, 3), says="counted from 1"),
        Form("labels from 1, the last beyond the classes", csv([1, 2, 3, 4, 5])),
        Form("a label for one picture missing", table("image,label\n" + "".join(f"{n}.png,{n}\n" for n in plain[:4]))),
        Form("an empty label", csv([0, 1, "", 3, 4])),
        Form("an unknown class", csv(["cat", "dog", "heron", 3, 4])),
        Form("a class beyond the network's", csv([0, 1, 2, 3, 17])),
        Form("a negative label", csv([0, 1, 2, 3, -1])),
        Form("floats that are whole", csv(["0.0", "1.0", "2.0", "3.0", "4.0"])),
        Form("floats that are not", csv(["0.5", "1", "2", "3", "4"])),
        Form("NaN", csv(["nan", 1, 2, 3, 4])),
        Form("a number of 5,000 digits", csv(["9" * 5000, 1, 2, 3, 4])),
        Form("digits of another script", csv(["٠", 1, 2, 3, 4])),
        Form("a picture twice, alike", table("image,label\n0.png,0\n" + "".join(f"{n}.png,{n}\n" for n in plain))),
        Form("a picture twice, with two labels", table("image,label\n0.png,3\n" + "".join(f"{n}.png,{n}\n" for n in plain))),
        Form("names of pictures with ./", table("image,label\n" + "".join(f"./{n}.png,{n}\n" for n in plain))),
        Form("absolute paths", absolute),
        Form("labels of further pictures", table("image,label\n" + "".join(f"{n}.png,{n % 5}\n" for n in range(9)))),
        Form("class names that are numbers", csv(["5", "10", "0", "20", "3"]), names=NUMBERS),
        Form("an index where class names are numbers", csv([1, 10, 0, 20, 3]), names=NUMBERS),
        Form("two classes of one name", csv(["cat", "crane", "dog", "crane", "ox"]), names=TWICE),
        Form("places of folders that are other classes", order_of_folders, (4, 2, 1, 3, 0), ["cat", "dog", "owl", "crane", "ox"]),
        Form("an empty file", table("")),
        Form("a header alone", table("image,label\n")),
        Form("a binary file", table(bytes(range(256)) * 9)),
        Form("a file of zeros", table(bytes(5000))),
        Form("a picture as label file", special(lambda place: picture(0).save(place, "PNG"))),
        Form("a folder as label file", special(lambda place: place.mkdir())),
        Form("a missing file", special(lambda place: None)),
        Form("a FIFO as label file", special(os.mkfifo)),
        Form("/dev/zero as label file", special(lambda place: Path("/dev/zero"))),
        Form("a file of 64 GiB", special(sparse)),
        Form("data set: integers", items(plain)),
        Form("data set: tensors of one integer", items(list(torch.arange(5)))),
        Form("data set: NumPy integers", items(list(np.arange(5)))),
        Form("data set: class names", items(NAMES)),
        Form("data set: one-hot", items(list(hot))),
        Form("data set: one-hot lists", items(hot.tolist())),
        Form("data set: one-hot of other classes", items(list(torch.eye(7)[:5]))),
        Form("data set: soft labels", items(list(hot * 0.8 + 0.04))),
        Form("data set: None", items([None] * 5), None),
        Form("data set: None for one", items([0, 1, None, 3, 4])),
        Form("data set: several labels", items([(0, 1), (1,), (2,), (3,), (4,)])),
        Form("data set: a dict", items([{"class": 0}] * 5)),
        Form("data set: floats that are whole", items([float(n) for n in plain])),
        Form("data set: floats that are not", items([0.5, 1.5, 2.5, 3.5, 4.5])),
        Form("data set: booleans", items([False, True, True, True, True], (0, 1, 1, 1, 1)), (0, 1, 1, 1, 1)),
        Form("data set: negative", items([0, 1, 2, 3, -1])),
        Form("data set: beyond the classes", items([0, 1, 2, 3, 5])),
        Form("data set with classes in another order", items([4, 3, 2, 1, 0], classes=list(NAMES[::-1]))),
        Form("data set with other classes", items([0, 1, 0, 1, 0], classes=["a", "b"])),
    ]


def from_one(folder: Path) -> Mapping[str, Any]:
    """Returns labels 1 to 4 of pictures of the classes 0 to 3."""
    drawn(folder / "in", FILES[:4], range(4))
    (folder / "labels.csv").write_text("image,label\n" + "".join(f"{n}.png,{n + 1}\n" for n in range(4)))
    return {"images": folder / "in", "labels_csv": folder / "labels.csv"}


def kaggle(folder: Path) -> Mapping[str, Any]:
    """Writes its CSV, in which each object is a WordNet id and a box."""
    names = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 6)]
    drawn(folder / "in", [f"{name}.JPEG" for name in names])
    rows = "".join(f"{name},{wnid} 1 2 3 4 \n" for name, wnid in zip(names, wordnet()[:5], strict=True))
    (folder / "val.csv").write_text("ImageId,PredictionString\n" + rows)
    return {"images": folder / "in", "labels_csv": folder / "val.csv"}


def absolute(folder: Path) -> Mapping[str, Any]:
    """Writes a CSV that names pictures by their absolute paths."""
    drawn(folder / "in")
    (folder / "labels.csv").write_text("image,label\n" + "".join(f"{folder}/in/{n}.png,{n}\n" for n in range(5)))
    return {"images": folder / "in", "labels_csv": folder / "labels.csv"}


def order_of_folders(folder: Path) -> Mapping[str, Any]:
    """Returns labels that number the folders by name, as ImageFolder does."""
    names = ["cat", "crane", "dog", "owl", "ox"]
    drawn(folder / "in", [f"{name}/a.png" for name in names], [0, 3, 1, 2, 4])
    (folder / "labels.csv").write_text("image,label\n" + "".join(f"{name}/a.png,{n}\n" for n, name in enumerate(names)))
    return {"images": folder / "in", "labels_csv": folder / "labels.csv"}
