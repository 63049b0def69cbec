"""Cityscapes as published: which files it needs, what is said of missing, torn and wrong ones; parts of birds in its layout."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import xattn
from xattn.birds import PARTS, export_parts, masks, scene_of
from xattn.data.cityscapes import CLASSES, IDS, IGNORED
from xattn.data.images import ImageSource
from xattn.data.published import open_published
from xattn.errors import ImageError, InputError
from xattn.training import open_data


def published(root: Path, kind: str = "labelTrainIds") -> Path:
    """Two pictures in two cities for training and one to validate, 8 × 4, each with a road, a class of its own and void."""
    for split, cities in {"train": ("aachen", "zurich"), "val": ("ulm",)}.items():
        for number, city in enumerate(cities):
            stem = f"{city}_000000_000019"
            for kept, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", f"gtFine_{kind}")):
                (root / kept / split / city).mkdir(parents=True)
                shown = Image.new("RGB" if kept == "leftImg8bit" else "L", (8, 4))
                if kept == "gtFine":
                    own = [0, 11 + number, IGNORED] if kind == "labelTrainIds" else [IDS[0], IDS[11 + number], 4]
                    shown.putdata([own[column // 3] for _ in range(4) for column in range(8)])
                shown.save(root / kept / split / city / f"{stem}_{ending}.png")
    return root


@pytest.mark.parametrize("kind", ["labelTrainIds", "labelIds"])
def test_pictures_are_labelled_by_the_classes_of_their_pixels_whichever_kind_of_map_there_is(kind: str, tmp_path: Path) -> None:
    data = open_data(f"cityscapes:{published(tmp_path, kind)}")
    assert data.names == CLASSES
    assert data.validation is None
    assert [[CLASSES[k] for k, entry in enumerate(target) if entry] for target in data.targets] == [["road", "person"], ["road", "rider"]]
    assert data.label_maps is not None
    assert list(data.label_maps.read(1).tobytes())[:8] == [0, 0, 0, 12, 12, 12, IGNORED, IGNORED]
    moved = data.renumbered(list(range(1, 20)), 20)
    assert moved.label_maps is not None
    assert list(moved.label_maps.read(1).tobytes())[:8] == [1, 1, 1, 13, 13, 13, IGNORED, IGNORED]
    assert [image.label for image in ImageSource(f"cityscapes:{tmp_path}:val").images] == [("road", "person")]
    with pytest.raises(InputError, match="val holds pictures for scores, to which nothing is fitted"):
        open_data(f"cityscapes:{tmp_path}:val")


def wrong(value: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        Image.new("L", (8, 4), value).save(path)

    return change


def renamed(folder: Path) -> None:
    for path in folder.iterdir():
        path.rename(path.with_suffix(".jpg"))


PICTURE = "leftImg8bit/train/zurich/zurich_000000_000019_leftImg8bit.png"
LABELS = "gtFine/train/zurich/zurich_000000_000019_gtFine_labelTrainIds.png"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (LABELS, Path.unlink, r"needs .*zurich_000000_000019_gtFine_labelTrainIds.png, or labelIds, as in gtFine_t.*lacks 1 of 2"),
        (LABELS, lambda path: path.write_bytes(path.read_bytes()[:50]), r"zurich.*labelTrainIds.png' cannot be read \(.*: unpack gtFine"),
        (LABELS, wrong(19), r"zurich.*labelTrainIds.png' has the label 19, which is not one of the 19 classes"),
        (LABELS, lambda path: Image.new("RGB", (8, 4)).save(path), r"zurich.*is a picture of mode RGB: a label map must have one channel"),
        (PICTURE, Path.unlink, r"needs .*zurich_000000_000019_leftImg8bit.png, as in leftImg8bit_t.*; 1 label map has no picture"),
        ("leftImg8bit/train/zurich", shutil.rmtree, r"needs .*zurich_000000_000019_leftImg8bit.png, .*; 1 label map has no picture"),
        (
            "leftImg8bit/train/zurich",
            renamed,
            r"train/zurich/zurich_000000_000019_leftImg8bit.jpg is not a file name of Cityscapes",
        ),
        ("gtFine/train", shutil.rmtree, r"needs .*aachen_.*labelTrainIds.png, or labelIds, as in gtFine_t.*; it lacks 2 of 2"),
        ("leftImg8bit/train", lambda path: path.rename(path.parent / "gone"), r"needs .*leftImg8bit/train, as in leftImg8bit_trainvaltest"),
        ("classes.txt", lambda path: path.write_text("road\nroad\n"), r"classes.txt' has 2 names, 1 of them distinct"),
    ],
)
def test_a_missing_torn_or_wrong_file_is_named(file: str, change: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    change(published(tmp_path) / file)
    with pytest.raises(InputError, match=said):
        open_published("cityscapes", tmp_path, "train")


def test_files_that_are_missing_where_pictures_are_scored_or_explained_are_named_whichever_kind_of_map_there_is(tmp_path: Path) -> None:
    root = published(tmp_path, "labelIds")
    net = xattn.attach(nn.Conv2d(3, 19, 1), input_size=(4, 8), resize=(4, 8), labels=CLASSES, name="net")
    stem = "val/ulm/ulm_000000_000019"
    for file, said in (
        (root / f"gtFine/{stem}_gtFine_labelIds.png", r"needs .*ulm_000000_000019_gtFine_labelTrainIds.png, or labelIds.*it lacks 1 of 1"),
        (root / f"leftImg8bit/{stem}_leftImg8bit.png", r"needs .*ulm_000000_000019_leftImg8bit.png.*1 label map has no picture"),
    ):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(InputError, match=said):
            xattn.tasks.score(net, f"cityscapes:{root}", task="segmentation", workers=0, progress=False)
        with pytest.raises(InputError, match=said):
            ImageSource(f"cityscapes:{root}:val")
        file.write_bytes(content)
    assert xattn.tasks.score(net, f"cityscapes:{root}", task="segmentation", workers=0, progress=False).n == 1


def test_a_torn_picture_is_named_when_it_is_read(tmp_path: Path) -> None:
    root = published(tmp_path)
    data = open_data(f"cityscapes:{root}")
    torn = root / PICTURE
    torn.write_bytes(torn.read_bytes()[:40])
    with pytest.raises(ImageError, match=re.escape(str(torn))):
        data.pictures.picture(1)
    assert data.pictures.picture(0).size == (8, 4)


def test_maps_of_ids_that_cityscapes_does_not_have_are_refused(tmp_path: Path) -> None:
    published(tmp_path, "labelIds")
    path = tmp_path / LABELS.replace("labelTrainIds", "labelIds")
    wrong(34)(path)
    with pytest.raises(InputError, match="has the label 34"):
        open_published("cityscapes", tmp_path, "train")


def test_parts_of_birds_are_labelled_by_their_masks(tmp_path: Path) -> None:
    data = open_data(f"cityscapes:{export_parts(tmp_path / 'birds', train=3, validation=1)}")
    assert data.names == ("ground", *PARTS)
    maps = data.label_maps
    assert maps is not None
    assert len(maps.paths) == 3
    for number, path in enumerate(open_published("cityscapes", tmp_path / "birds", "train").paths):
        shown = scene_of(path)
        assert shown is not None
        truth, found = masks(shown), torch.tensor(list(maps.read(number).tobytes())).view(64, 64)
        assert torch.equal(found == 0, ~truth.bird)
        for part, visible in enumerate(truth.visible):
            alone = visible & (truth.visible.sum(dim=0) == 1)
            assert torch.equal(found == part + 1, alone)
            assert data.targets[number][part + 1] == int(alone.any())  # type: ignore[index]
    with pytest.raises(InputError, match="is not empty"):
        export_parts(tmp_path / "birds")
