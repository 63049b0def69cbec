"""CUB, Stanford Dogs and MIT67 as published: splits, order, labels; and what is said of a missing or damaged file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.io
from torchvision.datasets import ImageFolder

import xattn
from tests.data import published
from xattn.data.images import ImageSource
from xattn.data.preprocessing import Preprocessing
from xattn.data.published import CUB_TABLES, cub_boxes, open_published
from xattn.errors import ImageError, InputError
from xattn.training import open_data


@pytest.mark.parametrize(("name", "folder"), [("cub", "images"), ("dogs", "Images"), ("mit67", "Images")])
def test_splits_are_disjoint_complete_and_in_the_order_of_image_folder(name: str, folder: str, tmp_path: Path) -> None:
    root = getattr(published, name)(tmp_path)
    train, test = (open_published(name, root, split) for split in ("train", "test"))
    assert (train.targets, test.targets) == ((0, 0, 1, 1, 2, 2), (0, 1, 2))
    assert train.classes == test.classes == {"cub": published.BIRDS, "dogs": published.DOGS, "mit67": published.INDOOR}[name]
    everything = [Path(path).relative_to(root / folder).as_posix() for path, _ in ImageFolder(root / folder).samples]
    for split in (train, test):
        assert list(split.files) == [file for file in everything if file in split.files]
    assert sorted([*train.files, *test.files]) == sorted(everything)


@pytest.mark.parametrize("name", ["cub", "dogs", "mit67"])
def test_training_sees_the_training_split_and_explain_the_one_that_is_named(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = getattr(published, name)(tmp_path)
    data = open_data(f"{name}:{root}")
    assert data.names == open_published(name, root, "train").classes
    assert data.targets == (0, 0, 1, 1, 2, 2)
    assert data.validation is None
    source = ImageSource(f"{name}:{root}:test")
    assert [image.label for image in source.images] == list(data.names or ())
    assert source.labelled
    assert not {str(image.path) for image in source.images} & {data.pictures.called(number) for number in range(6)}
    assert [image.name for image in ImageSource(source.origin).images] == [image.name for image in source.images]
    assert "test has 3 pictures; as published, there are" in caplog.text
    with pytest.raises(InputError, match=f"names no split of {name}: write {name}:ROOT:test"):
        ImageSource(f"{name}:{root}")


def test_boxes_of_cub_are_edges_in_pixels_of_the_photograph(tmp_path: Path) -> None:
    root = published.cub(tmp_path)
    assert cub_boxes(root, "test") == [(2, 2, 22, 25.5), (5, 2, 25, 22.5), (8, 2, 28, 19.5)]
    (root / "bounding_boxes.txt").write_text("1 0 0 5\n")
    with pytest.raises(InputError, match=r"has the line '1 0 0 5': an id, x, y, width, height"):
        cub_boxes(root, "test")
    (root / "bounding_boxes.txt").write_text("1 0 0 5 5\n")
    with pytest.raises(InputError, match=r"has no box of 001.Black"):
        cub_boxes(root, "test")


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).write_text((root / name).read_text().replace(old, new, 1))

    return change


def relisted(name: str, change: Callable[[list[tuple[str, float]]], list[tuple[str, float]]]) -> Callable[[Path], None]:
    def rewrite(root: Path) -> None:
        known = scipy.io.loadmat(root / name, squeeze_me=True)
        published.dog_list(root / name, change(list(zip(known["file_list"], known["labels"], strict=True))))

    return rewrite


def torn(name: str, keep: float) -> Callable[[Path], None]:
    def cut(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(keep * len(content))])

    return cut


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        *(("cub", lambda root, t=t: (root / f"{t}.txt").unlink(), rf"needs .*{t}.txt, as in CUB_200") for t in CUB_TABLES),
        (
            "cub",
            lambda root: next((root / "images").rglob("*_0001.jpg")).unlink(),
            r"lacks 1 of its 6 training",
        ),
        ("cub", edited("image_class_labels.txt", "9 3\n", "9 4\n"), r"has class 4 for 003.*; classes.txt has 3"),
        ("cub", edited("image_class_labels.txt", "9 3\n", ""), r"images.txt has 9 pictures, image_class_labels.txt 8; they differ in id 9"),
        ("cub", edited("train_test_split.txt", "1 1\n", "1 2\n"), r"train_test_split.txt has '2' for 001"),
        ("cub", edited("images.txt", "1 001.Black", "1 ../001.Black"), r"lists '../001.*': a class folder and a file are needed"),
        ("cub", edited("classes.txt", "1 001", "1001"), r"classes.txt' is damaged"),
        (
            "dogs",
            lambda root: next((root / "Images").rglob("*_20.jpg")).unlink(),
            r"lacks 1 of its 6 training pictures, as .*Images/n020\d+-\w+/n020\d+_20.jpg",
        ),
        ("dogs", lambda root: (root / "train_list.mat").unlink(), r"needs .*train_list.mat, as in lists.tar"),
        ("dogs", lambda root: (root / "Images").rename(root / "images_"), r"needs .*Images, as in images.tar"),
        ("dogs", torn("train_list.mat", 0.6), r"train_list.mat' is damaged, or not a MATLAB file"),
        ("dogs", torn("train_list.mat", 0.02), r"train_list.mat' is damaged, or not a MATLAB file"),
        ("dogs", torn("train_list.mat", 0.0), r"train_list.mat' is damaged, or not a MATLAB file"),
        ("dogs", relisted("train_list.mat", lambda rows: [(rows[0][0], 4.0), *rows[1:]]), r"has label 4 for n02085936.* labels 1 to 3"),
        ("dogs", relisted("train_list.mat", lambda rows: [(rows[0][0], 0.0), *rows[1:]]), r"has label 0 for"),
        ("dogs", relisted("train_list.mat", lambda rows: [(rows[0][0], 1.5), *rows[1:]]), r"has the label 1.5 for"),
        ("dogs", relisted("train_list.mat", lambda rows: [(rows[0][0], 1.0), *rows[1:]]), r"a label is one folder"),
        ("dogs", relisted("train_list.mat", lambda rows: rows[2:]), r"3 class folders, but no picture of label 3"),
        ("dogs", lambda root: scipy.io.savemat(root / "train_list.mat", {"labels": [1.0]}), r"has no variable file_list"),
        ("dogs", lambda root: scipy.io.savemat(root / "train_list.mat", {"labels": [1.0, 2.0], "file_list": ["a"]}), r"has 1 file and 2"),
        ("mit67", lambda root: (root / "TrainImages.txt").unlink(), r"needs .*TrainImages.txt, as in indoorCVPR_09.tar"),
        ("mit67", lambda root: (root / "Images/bakery/bakery_0001.jpg").unlink(), r"lacks 1 of its 6 training pictures, as .*bakery_0001"),
        ("mit67", edited("TrainImages.txt", "bakery/", "../bakery/"), r"lists '../bakery/.*': a class folder and a file are needed"),
        ("mit67", edited("TrainImages.txt", "bakery_0001", "bakery_0000"), r"TrainImages.txt' lists bakery/bakery_0000.jpg twice"),
        ("mit67", lambda root: (root / "TrainImages.txt").write_bytes(b"\xff\xfe"), r"TrainImages.txt' is damaged: it is not UTF-8 text"),
        ("mit67", lambda root: (root / "TrainImages.txt").write_text(""), r"has no pictures in its train split"),
    ],
)
def test_a_missing_or_damaged_file_is_named(name: str, change: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    root = getattr(published, name)(tmp_path)
    change(root)
    with pytest.raises(InputError, match=said):
        open_data(f"{name}:{root}")


@pytest.mark.parametrize("name", ["cub", "dogs", "mit67", "voc"])
def test_a_torn_picture_is_named_when_it_is_read_and_the_others_are_read(name: str, tmp_path: Path) -> None:
    root = getattr(published, name)(tmp_path)
    data = open_data(f"{name}:{root}")
    torn = Path(data.pictures.called(1))
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(ImageError, match=f"training picture {re.escape(str(torn))}: .*Replace it"):
        data.pictures.picture(1)
    assert data.pictures.picture(0).size == (40, 30)
    batches = list(ImageSource(f"{name}:{root}:train").batches(Preprocessing((8, 8), (8, 8), (0.5,) * 3, (0.5,) * 3), 2))
    assert [torn.name] == [Path(image.name).name for batch in batches for image, _ in batch.failed]
    assert sum(len(batch.images) for batch in batches) == len(data) - 1


def test_training_opens_no_test_list_and_a_picture_in_both_is_refused(tmp_path: Path) -> None:
    root = published.dogs(tmp_path)
    test = (root / "test_list.mat").read_bytes()
    (root / "test_list.mat").write_bytes((root / "train_list.mat").read_bytes())
    with pytest.raises(InputError, match=r"is in train_list.mat and in test_list.mat"):
        open_published("dogs", root, "test")
    (root / "test_list.mat").unlink()
    assert len(open_data(f"dogs:{root}")) == 6
    with pytest.raises(InputError, match=r"needs .*test_list.mat"):
        open_published("dogs", root, "test")
    (root / "test_list.mat").write_bytes(test)
    assert len(open_published("dogs", root, "test").files) == 3


def test_test_pictures_of_mit67_are_scored_and_never_trained_on(tmp_path: Path) -> None:
    root = published.mit67(tmp_path)
    with pytest.raises(InputError, match=r"test holds pictures for scores, to which nothing is fitted: give mit67:.*:train"):
        open_data(f"mit67:{root}:test")
    clf = xattn.load("birds:gap", device="cpu", labels=[*published.INDOOR, *(f"other {number}" for number in range(13))])
    for place in (f"mit67:{root}", f"mit67:{root}:test"):
        assert xattn.tasks.score(clf, place, workers=0, progress=False).n == 3
    (root / "TestImages.txt").write_text("casino/casino_0000.jpg\n")
    assert len(open_data(f"mit67:{root}")) == 6
    with pytest.raises(InputError, match=r"TestImages.txt has casino/casino_0000.jpg, of a class without a picture in TrainImages.txt"):
        open_published("mit67", root, "test")
    (root / "TestImages.txt").write_text((root / "TrainImages.txt").read_text())
    with pytest.raises(InputError, match=r"airport_inside_0000.jpg is in TrainImages.txt and in TestImages.txt"):
        open_published("mit67", root, "test")
    (root / "TestImages.txt").unlink()
    with pytest.raises(InputError, match=r"needs .*TestImages.txt"):
        open_published("mit67", root, "test")
