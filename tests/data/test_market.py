"""Market-1501 as published: splits, junk and distractors; what is said of missing, torn and misnamed files; individuals in its layout."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from xattn.birds import export_individuals
from xattn.data.images import ImageSource
from xattn.data.market import DISTRACTOR, FOLDERS, JUNK, sighting_of
from xattn.data.preprocessing import Preprocessing
from xattn.data.published import open_published
from xattn.errors import ImageError, InputError
from xattn.training import open_data


def small(root: Path) -> Path:
    return export_individuals(root, train=3, test=2, cameras=2, each=2, distractors=2, junk=1)


def test_training_sees_the_identities_of_training_and_queries_and_gallery_have_no_class(tmp_path: Path) -> None:
    root = small(tmp_path)
    data = open_data(f"market:{root}")
    assert data.names == ("0001", "0002", "0003")
    assert data.targets == (0,) * 4 + (1,) * 4 + (2,) * 4
    source = ImageSource([f"market:{root}:query", f"market:{root}:gallery"])
    assert {image.label for image in source.images} == {None}
    seen = {split: Counter(sighting_of(file)[0] for file in open_published("market", root, split).files) for split in ("query", "gallery")}
    assert seen == {"query": {4: 2, 5: 2}, "gallery": {4: 2, 5: 2, DISTRACTOR: 2, JUNK: 1}}
    assert not set(open_published("market", root, "query").files) & set(open_published("market", root, "gallery").files)
    assert [image.label for image in ImageSource(f"market:{root}:train").images] == ["0001"] * 4 + ["0002"] * 4 + ["0003"] * 4
    with pytest.raises(InputError, match="write market:ROOT:query, or market:ROOT:train, or market:ROOT:gallery"):
        ImageSource(f"market:{root}:test")


def test_individuals_are_the_same_in_every_call_and_differ_by_identity_camera_and_seed(tmp_path: Path) -> None:
    first, again, other = (export_individuals(tmp_path / name, train=2, test=1, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))

    def contents(root: Path) -> dict[str, str]:
        return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.rglob("*.jpg"))}

    assert contents(first) == contents(again)
    assert contents(first).keys() == contents(other).keys()
    assert len({*contents(first).values(), *contents(other).values()}) == 2 * len(contents(first))
    with pytest.raises(InputError, match="is not empty"):
        export_individuals(first)
    with pytest.raises(InputError, match="got train=1, test=1, cameras=1, each=2"):
        export_individuals(tmp_path / "d", train=1, test=1, cameras=1, each=2)


def renamed(folder: str, name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        next((root / folder).iterdir()).rename(root / folder / name)

    return change


@pytest.mark.parametrize(
    ("split", "change", "said"),
    [
        ("train", lambda root: (root / "bounding_box_train").rename(root / "train"), r"needs .*/bounding_box_train, as in Market-1501"),
        ("query", lambda root: (root / "query").rename(root / "queries"), r"needs .*/query, as in Market-1501.*\(No such file"),
        (
            "train",
            renamed("bounding_box_train", "0002_c1_000451_03.jpg"),
            r"'0002_c1_000451_03.jpg' is not a file name of Market-1501",
        ),
        (
            "train",
            renamed("bounding_box_train", "-1_c1s1_000451_03.jpg"),
            r"-1_c1s1_000451_03.jpg is junk or a distractor, which only b",
        ),
        *(
            (
                split,
                renamed(folder, f"0004_c1s1_000451_03.{ending}"),
                rf"'0004_c1s1_000451_03.{ending}' is not a file name of Market-1501",
            )
            for split, folder in FOLDERS.items()
            for ending in ("jpeg", "png", "JPG")
        ),
        *(
            (
                split,
                renamed(FOLDERS[split], "0002_c1s1_000451_03.jpg"),
                r"0002_c1s1_000451_03.jpg is of identity 0002, which is in b",
            )
            for split in ("query", "gallery")
        ),
        ("query", renamed("query", "0000_c1s1_000451_03.jpg"), r"0000_c1s1_000451_03.jpg is junk or a distractor"),
        ("gallery", lambda root: next((root / "bounding_box_test").iterdir()).write_bytes(b""), r"bounding_box_test/.*jpg is empty"),
        ("query", lambda root: (root / "query" / "0004_c9s1_000451_03.jpg").symlink_to("gone.jpg"), r"lacks 1 of its 5 query pictures"),
        ("gallery", lambda root: [path.unlink() for path in (root / "bounding_box_test").iterdir()], r"has no pictures in its gallery"),
    ],
)
def test_a_missing_or_misnamed_file_is_named(split: str, change: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    change(small(tmp_path))
    with pytest.raises(InputError, match=said):
        open_published("market", tmp_path, split)


def test_training_opens_no_other_folder_and_without_it_nothing_is_compared(tmp_path: Path) -> None:
    root = small(tmp_path)
    renamed("query", "0002_c1s1_000451_03.jpg")(root)
    assert len(open_published("market", root, "train").files) == 12
    (root / "bounding_box_train").rename(root / "elsewhere")
    assert len(open_published("market", root, "query").files) == 4


def test_a_torn_picture_is_named_when_it_is_read_and_other_files_are_left_alone(tmp_path: Path) -> None:
    torn = next((small(tmp_path) / "query").iterdir())
    torn.write_bytes(torn.read_bytes()[:200])
    (tmp_path / "query" / "Thumbs.db").write_bytes(b"of the archive")
    source = ImageSource(f"market:{tmp_path}:query")
    assert len(source) == 4
    preprocessing = Preprocessing((64, 32), (64, 32), (0.5,) * 3, (0.5,) * 3)
    failed = [image.name for batch in source.batches(preprocessing, 2) for image, _ in batch.failed]
    assert failed == [torn.name]
    with pytest.raises(ImageError):
        source.decode(next(image for image in source.images if image.name == torn.name), preprocessing)
