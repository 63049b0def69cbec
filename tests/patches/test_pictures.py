"""Boxes of files of pictures, in the photographs' pixels, and the command that writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import xattn
from tests import networks
from tests.data import published
from xattn.cli import main
from xattn.data.images import ImageSource
from xattn.data.preprocessing import pixels
from xattn.errors import InputError
from xattn.models import Classifier
from xattn.patches import boxes_of, find, read_patches

MODEL = ["--model", f"{networks.__file__}:small", "--input-size", "32", "--resize", "36", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "photographs"
    made.mkdir()
    for number, size in enumerate(((72, 108), (90, 45), (36, 36))):
        values = networks.pictures(1, max(size), seed=number)[0, :, : size[1], : size[0]]
        Image.fromarray((values.permute(1, 2, 0) * 255).byte().numpy()).save(made / f"{number}.png")
    return made


def plain(resize: int | tuple[int, int] = 36, **options: object) -> Classifier:
    return xattn.attach(networks.small(), input_size=32, resize=resize, name="small", **options)  # type: ignore[arg-type]  # any


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_boxes_are_in_the_photographs_pixels_with_resize_and_crop_undone(folder: Path) -> None:
    clf = plain()
    found = boxes_of(clf, ImageSource(folder), n=3, side=9, batch_size=2)
    assert found.names == ["0.png", "1.png", "2.png"]
    assert found.sizes.tolist() == [[72, 108], [90, 45], [36, 36]]
    for number, name in enumerate(found.names):
        picture = Image.open(folder / name)
        inner = find(clf, pixels(clf.preprocessing.crop(picture)[None], clf.device), n=3, side=9)[0]
        shorter = min(picture.size)
        resized = [round(side * 36 / shorter) for side in picture.size]
        margin = torch.tensor([(side - 32) / 2 for side in resized] * 2)
        assert torch.allclose(found.boxes[number], (inner + margin) * shorter / 36, atol=1e-4)


def test_a_picture_that_cannot_be_read_is_named_and_has_no_row(folder: Path, tmp_path: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    found = boxes_of(plain(), ImageSource(folder), n=2)
    assert (found.names, [name for name, _ in found.failed]) == (["0.png", "2.png"], ["1.png"])
    with pytest.raises(InputError, match=r"1 picture could not be read, as 1.png .* write a .csv"):
        found.save(tmp_path / "boxes.npy")
    result = run("patches", folder, *MODEL, "--count", 2, "--out", tmp_path / "boxes.csv")
    assert result.exit_code == 3
    assert "1 of 3 images failed" in result.output
    assert pd.read_csv(tmp_path / "boxes.csv")["image"].tolist() == ["0.png"] * 2 + ["2.png"] * 2


def test_the_command_writes_csv_and_the_released_format(folder: Path, tmp_path: Path) -> None:
    for out in ("boxes.csv", "boxes.npy"):
        result = run("patches", folder, *MODEL, "--finder", "representative", "--count", 4, "--side", 8, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{tmp_path / out}\n"
    rows = pd.read_csv(tmp_path / "boxes.csv")
    assert list(rows) == ["image", "number", "x1", "y1", "x2", "y2", "width", "height"]
    boxes, classes = read_patches(tmp_path / "boxes.npy", 3)
    assert classes.unique().tolist() == [-1]
    edges = rows[["x1", "y1", "x2", "y2"]].to_numpy().reshape(3, 4, 4)
    sides = rows[["width", "height", "width", "height"]].to_numpy().reshape(3, 4, 4)
    assert np.allclose(boxes, edges / sides * 448, atol=0.1)


def test_boxes_are_those_of_training_pictures_and_of_one_label_each(tmp_path: Path) -> None:
    root = published.cub(tmp_path)
    clf = plain(32, head="protopnet:per_class=2,width=4", classes=3, labels=published.BIRDS)
    clf.trained = True
    found = boxes_of(clf, ImageSource(f"cub:{root}:train"), "prototype", 2, target="label")
    assert found.classes is not None
    assert found.classes.tolist() == [0, 0, 1, 1, 2, 2]
    found.save(tmp_path / "train.npy")
    assert read_patches(tmp_path / "train.npy", 6)[1].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1], [2, 2], [2, 2]]
    for target in ("predicted", "label"):
        with pytest.raises(InputError, match=r"cub:.*:test holds pictures for scores, to which nothing is fitted: give cub:.*:train"):
            boxes_of(clf, ImageSource(f"cub:{root}:test"), "prototype", 2, target=target)  # type: ignore[arg-type]
    voc = published.voc(tmp_path / "voc")
    with pytest.raises(InputError, match=r"one class per picture is needed; 2007_000000.jpg has 2 labels, cat, person"):
        boxes_of(clf, ImageSource(f"voc:{voc}:train"), "prototype", 2, target="label")
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "plain" / "a.png")
    with pytest.raises(InputError, match=r"target label needs a label of each picture; a.png has none"):
        boxes_of(clf, ImageSource(tmp_path / "plain"), "prototype", 2, target="label")


def test_wrong_command_lines_are_refused_before_anything_is_loaded(folder: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("--finder", "activate", "--out", "b.csv"), "Did you mean 'activation'"),
        (("--out", "b.txt"), "boxes are written to a .csv or a .npy; got 'b.txt'"),
        (("--count", "0", "--out", "b.csv"), "0 is not in the range"),
    ):
        result = run("patches", folder, "--model", "nowhere.py:none", *arguments)
        assert result.exit_code == 2
        assert said in result.output
    assert "activation" in run("list", "patches").output
