"""VOC as published: label vectors, splits, and what is said of a missing, damaged or hostile file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data import published
from xattn.data.images import ImageSource
from xattn.data.labelled import open_data
from xattn.data.published import open_published
from xattn.data.voc import CLASSES
from xattn.errors import InputError

BOMB = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
FILE = """<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><object><name>&a;</name></object></annotation>"""


def vector(**entries: int) -> tuple[int, ...]:
    return tuple(entries.get(name, 0) for name in CLASSES)


def test_vectors_are_1_for_objects_0_for_none_and_ignored_where_all_are_difficult(tmp_path: Path) -> None:
    root = published.voc(tmp_path / "VOC2012")
    train, val, both = (open_published("voc", root, split) for split in ("train", "val", "trainval"))
    assert train.classes == CLASSES
    assert train.targets == (vector(cat=1, person=1), vector(dog=1), vector(cat=1))
    assert val.targets == (vector(person=-1), vector(dog=1, person=-1))
    assert both.files == (*train.files, *val.files)
    assert all(path.is_file() for path in both.paths)


def test_classes_are_those_that_have_a_list(tmp_path: Path) -> None:
    root = published.voc(tmp_path)
    for name in ("person", "cat", "dog", "._cat"):  # the last is what macOS leaves in archives
        (root / "ImageSets" / "Main" / f"{name}_trainval.txt").write_text("2007_000000 1\n")
    found = open_published("voc", root, "train")
    assert found.classes == ("cat", "dog", "person")
    assert found.targets == ((1, 0, 1), (0, 1, 0), (1, 0, 0))


def test_training_takes_train_and_never_the_pictures_of_val_which_are_scored(tmp_path: Path) -> None:
    root = published.voc(tmp_path)
    data = open_data(f"voc:{root}")
    assert (len(data), data.validation, data.names, data.several) == (3, None, CLASSES, True)
    assert open_data(f"voc:{root}:train") == data
    for split in ("val", "trainval"):
        with pytest.raises(InputError, match=rf"voc:.*:{split} holds pictures for scores, to which nothing is fitted: give voc:.*:train"):
            open_data(f"voc:{root}:{split}")
    moved = data.renumbered(range(1, 21), 22)
    assert moved.targets[0] == (-1, *data.targets[0], -1)  # type: ignore[misc]


def test_a_picture_in_the_lists_of_train_and_val_is_refused_and_training_opens_no_other_list(tmp_path: Path) -> None:
    root = published.voc(tmp_path)
    with (root / LIST).open("a") as file:
        file.write("2008_000001\n")
    for split in ("val", "trainval"):
        with pytest.raises(InputError, match=r"voc:.*: 2008_000001 is in train.txt and in val.txt, whose pictures are scored"):
            open_published("voc", root, split)
    assert len(open_data(f"voc:{root}")) == 4
    (root / LIST).unlink()  # where there is no training there is nothing to share
    assert len(open_published("voc", root, "val").files) == 2


def test_explain_sees_the_names_of_what_a_picture_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = published.voc(tmp_path)
    caplog.set_level("INFO", "xattn")
    assert [image.label for image in ImageSource(f"voc:{root}:train").images] == [("cat", "person"), ("dog",), ("cat",)]
    assert [(image.name, image.label) for image in ImageSource(f"voc:{root}:val").images] == [("2008_000001.jpg", ("dog",))]
    assert "1 picture shows classes only as difficult objects: left out (2008_000000.jpg)" in caplog.text
    with pytest.raises(InputError, match=r"names no split of voc: write voc:ROOT:val, or voc:ROOT:train, or voc:ROOT:trainval"):
        ImageSource(f"voc:{root}")


XML = "Annotations/2007_000001.xml"
LIST = "ImageSets/Main/train.txt"


def written(name: str, content: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / LIST).unlink(), r"needs .*Main/train.txt, as in VOCtrainval_11-May-2012.tar; ROOT is VOCdevkit/VOC2012"),
        (lambda root: (root / XML).unlink(), r"needs .*2007_000001.xml, as in VOCtrainval"),
        (lambda root: (root / "JPEGImages/2007_000002.jpg").unlink(), r"lacks 1 of its 3 training pictures, as .*2007_000002.jpg"),
        (written(XML, "<annotation><object><name>dog</na"), r"2007_000001.xml' is damaged, or not XML"),
        (written(XML, ""), r"2007_000001.xml' is damaged, or not XML"),
        *[
            (written(XML, f'<?xml version="1.0" encoding="{name}"?><annotation/>'), r"2007_000001.xml' is damaged, or not XML")
            for name in ("foo", "shift_jis", "utf-7")
        ],
        (written(XML, "<html></html>"), r"is not a VOC annotation: its first element is 'html'"),
        (written(XML, published.voc_annotation([("dgo", 0)])), r"has an object of class 'dgo', which is not one of the 20"),
        (written(XML, published.voc_annotation([("dog", 2)])), r"has an object with difficult '2': 0 or 1"),
        (written(XML, BOMB), r"declares a document type 'x': VOC annotations have none"),
        (written(XML, FILE), r"declares a document type 'x'"),
        (written(XML, "<annotation>" + " " * 2**20 + "</annotation>"), r"has 1,048,601 bytes: an annotation has at most 1,048,576"),
        (written(LIST, "2007_000000\n../2007_000001\n"), r"train.txt' has the line '../2007_000001'"),
        (written(LIST, "2007_000000 -1\n"), r"train.txt' has the line '2007_000000 -1'"),
        (written(LIST, "2007_000000\n2007_000000\n"), r"has 2007_000000 twice"),
        (written(LIST, ""), r"has no pictures in its train split"),
        (lambda root: (root / LIST).write_bytes(b"\xff\xfe\x00"), r"train.txt' is damaged: it is not UTF-8 text"),
    ],
)
def test_a_missing_damaged_or_hostile_file_is_named(change: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    root = published.voc(tmp_path)
    change(root)
    with pytest.raises(InputError, match=said):
        open_published("voc", root, "train")
