"""CIFAR-FS as published, on SketchBirds in its layout: splits of different classes, and what is said of a missing or damaged file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from xattn.birds import CLASSES, export_few_shot, scene_of
from xattn.data.images import ImageSource
from xattn.data.published import KNOWN, open_published
from xattn.errors import ImageError, InputError
from xattn.training import open_data


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_few_shot(tmp_path_factory.mktemp("birds"), 2)


def test_splits_have_different_classes_and_all_pictures_of_their_folders(birds: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = {split: open_published("cifar-fs", birds, split) for split in ("train", "val", "test")}
    assert {split: len(each.classes) for split, each in found.items()} == {"train": 8, "val": 4, "test": 4}
    assert sorted(name for each in found.values() for name in each.classes) == sorted(CLASSES)
    for split, each in found.items():
        assert each.targets == tuple(index for index in range(len(each.classes)) for _ in range(2))
        assert [path.parent.name for path in each.paths] == [each.classes[target] for target in each.targets]
        assert f"{split} has {2 * len(each.classes)} pictures; as published, there are {KNOWN['cifar-fs'].counts[split]}" in caplog.text
    assert [KNOWN["cifar-fs"].counts[split] for split in found] == [600 * count for count in (64, 16, 20)]


def test_birds_of_the_splits_are_known_scenes_of_their_kinds_and_the_same_each_time(birds: Path, tmp_path: Path) -> None:
    again = export_few_shot(tmp_path, 2)
    kinds = list(CLASSES)
    for path in sorted((birds / "data").glob("*/*.png")):
        scene = scene_of(path)
        assert scene is not None
        assert kinds[scene.label] == path.parent.name
        assert (again / path.relative_to(birds)).read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match=r"contains other pictures, such as .*/0001.png"):
        export_few_shot(tmp_path, 1)


def test_training_sees_the_training_classes_and_a_run_those_of_the_split_that_is_named(birds: Path) -> None:
    data = open_data(f"cifar-fs:{birds}")
    assert data.names == open_published("cifar-fs", birds, "train").classes
    source = ImageSource(f"cifar-fs:{birds}:val")
    assert {str(image.label) for image in source.images} == set(open_published("cifar-fs", birds, "val").classes)
    with pytest.raises(
        InputError, match=r"names no split of cifar-fs: write cifar-fs:ROOT:test, or cifar-fs:ROOT:train, or cifar-fs:ROOT:val"
    ):
        ImageSource(f"cifar-fs:{birds}")


def relisted(split: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def rewrite(root: Path) -> None:
        path = root / "splits" / "bertinetto" / f"{split}.txt"
        path.write_text(change(path.read_text()))

    return rewrite


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda root: (root / "splits/bertinetto/train.txt").unlink(),
            r"needs .*splits/bertinetto/train.txt, as in cifar-fs.zip \(No such",
        ),
        (lambda root: (root / "splits/bertinetto/train.txt").write_bytes(b"\xff\xfe"), r"train.txt' is damaged: it is not UTF-8 text"),
        (lambda root: shutil.rmtree(root / "data/reedhook"), r"train.txt names the class 'reedhook', which has no folder .*data/reedhook"),
        (lambda root: [path.unlink() for path in (root / "data/reedhook").iterdir()], r"data/reedhook has no pictures \(.png\)"),
        (
            lambda root: (root / "data/reedhook/0001.png").rename(root / "data/reedhook/0001.jpeg"),
            r"data/reedhook/0001.jpeg is no .png, as all pictures of CIFAR-FS are",
        ),
        (relisted("train", lambda text: f"{text}reedhook\n"), r"train.txt' names the class 'reedhook' twice"),
        (relisted("train", lambda text: f"{text}../data\n"), r"lists '../data/\*.png': a class folder and a file"),
        (relisted("train", lambda text: ""), r"has no pictures in its train split"),
    ],
)
def test_a_missing_or_damaged_file_is_named(change: Callable[[Path], object], said: str, birds: Path, tmp_path: Path) -> None:
    root = shutil.copytree(birds, tmp_path / "copy")
    change(root)
    with pytest.raises(InputError, match=said):
        open_data(f"cifar-fs:{root}")


def test_training_opens_no_test_list_and_a_class_of_two_splits_is_refused(birds: Path, tmp_path: Path) -> None:
    root = shutil.copytree(birds, tmp_path / "copy")
    relisted("test", lambda text: f"{text}reedhook\n")(root)
    assert len(open_data(f"cifar-fs:{root}")) == 16
    with pytest.raises(InputError, match=r"class reedhook is in train.txt and in test.txt"):
        open_published("cifar-fs", root, "test")
    (root / "splits/bertinetto/test.txt").unlink()
    assert len(open_published("cifar-fs", root, "val").files) == 8


def test_a_torn_picture_is_named(birds: Path, tmp_path: Path) -> None:
    root = shutil.copytree(birds, tmp_path / "copy")
    torn = root / "data" / "reedhook" / "0001.png"
    torn.write_bytes(torn.read_bytes()[:500])
    data = open_data(f"cifar-fs:{root}")
    number = [index for index in range(len(data)) if data.pictures.called(index) == str(torn)]
    with pytest.raises(ImageError, match=re.escape(str(torn))):
        data.pictures.picture(number[0])
