"""Where pictures come from: folders with odd files and links, archives, Parquet files, data sets of every kind; and what is refused."""

from __future__ import annotations

import io
import logging
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from xattn.data import urls
from xattn.data.images import ImageSource
from xattn.data.pictures import UNREACHED, read_picture
from xattn.data.preprocessing import Preprocessing
from xattn.errors import ImageError, InputError, MissingPackageError

TINY = Preprocessing(input_size=(8, 8), resize=8)
COLOURS = {"red": [255, 0, 0], "lime": [0, 255, 0], "blue": [0, 0, 255]}


def picture(colour: str, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, form)
    return content.getvalue()


def names(images: object) -> list[str]:
    return [image.name for image in ImageSource(images).images]  # type: ignore[arg-type]  # of any kind


def corners(source: ImageSource, workers: int = 0) -> list[list[int]]:
    """The colour of each picture."""
    batches = list(source.batches(TINY, 2, workers=workers))
    assert not any(batch.failed for batch in batches)
    return [crop[:, 0, 0].tolist() for batch in batches for crop in batch.crops]


def test_files_are_told_by_their_content_and_those_left_out_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jpg").write_bytes(picture("red", "JPEG"))
    (tmp_path / "download").write_bytes(picture("red", "WEBP"))
    (tmp_path / "b.photo").write_bytes(picture("red", "PNG"))
    (tmp_path / "b.png_original").write_bytes(picture("red", "PNG"))  # a copy that a program left
    (tmp_path / "c.nef").write_bytes(picture("red", "TIFF"))  # a raw file is a TIFF of a small preview
    for number in range(3):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(b"x")
    (tmp_path / "a.xml").write_text("<a/>")
    with caplog.at_level(logging.INFO, "xattn"):
        assert names(tmp_path) == ["a.jpg", "b.photo", "download"]
    assert "5 files are left out" in caplog.text
    assert "3 .heic" in caplog.text
    assert "1 .nef" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING
    caplog.clear()
    with caplog.at_level(logging.INFO, "xattn"):
        assert names(str(tmp_path / "*")) == ["a.jpg", "b.photo", "download"]
    assert "5 files are left out" in caplog.text
    with caplog.at_level(logging.INFO, "xattn"):
        assert names(str(tmp_path / "a.*")) == ["a.jpg"]
    assert "next to the pictures: 1 .xml (a.xml)" in caplog.text
    (tmp_path / "IMG_0.HEIC").rename(tmp_path / "a.heic")
    with caplog.at_level(logging.INFO, "xattn"):
        assert names(str(tmp_path / "a.*")) == ["a.jpg"]
    assert "1 file is left out, as it is no picture in a format that is read: 1 .heic (a.heic)" in caplog.text


def test_files_beside_pictures_are_counted_without_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "notes.txt").write_text("x")
    with caplog.at_level(logging.INFO, "xattn"):
        ImageSource(folder)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert "1 .txt (notes.txt)" in caplog.text


def test_links_count_no_picture_twice(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "z").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    for place in (photos / "1.png", photos / "z" / "2.png", tmp_path / "far" / "3.png"):
        place.write_bytes(picture("red"))
    (photos / "here").symlink_to(".")
    (photos / "above").symlink_to("..")
    (photos / "a").symlink_to("z")  # to a folder beside it
    (photos / "b").symlink_to("a")
    (photos / "far").symlink_to(tmp_path / "far")
    (photos / "4.png").symlink_to("1.png")
    assert names(photos) == ["1.png", "above/far/3.png", "z/2.png"]
    assert len(ImageSource([photos, os.path.relpath(photos), photos / "here"])) == 3


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such names")
def test_a_name_that_is_no_utf8_is_shown_by_its_bytes_and_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("red"))
    os.link(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    source = ImageSource(tmp_path)
    assert [image.name for image in source.images] == ["a.png", r"caf\xe9.png"]
    assert corners(source) == [[255, 0, 0]] * 2
    assert source.digest()


def test_only_the_listed_formats_are_opened_whatever_a_file_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refused)
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "EPS")
    (tmp_path / "cat.png").write_bytes(content.getvalue())
    with pytest.raises(ImageError, match="an EPS, which is not read"):
        read_picture(tmp_path / "cat.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="a pipe or a device"):
        read_picture(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=f"{UNREACHED}No such file"):
        read_picture(tmp_path / "none.png")


def test_a_picture_larger_than_allowed_names_the_option_and_is_read_with_it(tmp_path: Path) -> None:
    Image.new("RGB", (60, 50)).save(tmp_path / "large.png")
    small = ImageSource(tmp_path, max_pixels=2999)
    assert "60×50 pixels, more than 2,999" in next(iter(small.batches(TINY, 2))).failed[0][1]
    assert "--max-pixels" in next(iter(small.batches(TINY, 2))).failed[0][1]
    assert len(next(iter(ImageSource(tmp_path, max_pixels=3000).batches(TINY, 2))).images) == 1
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 100  # Pillow's own would refuse it
    try:
        assert len(next(iter(ImageSource(tmp_path, max_pixels=200_000_000).batches(TINY, 2))).images) == 1
        assert Image.MAX_IMAGE_PIXELS == 100
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def shard(path: Path, mode: str = "w") -> None:
    """A shard of webdataset: three samples of a picture, a mask, a class and more."""
    with tarfile.open(path, mode) as tar:
        for number, colour in enumerate(COLOURS):
            files = {"png": picture(colour), "mask.png": picture("white"), "cls": str(number + 4).encode(), "json": b"{}"}
            for ending, content in files.items():
                about = tarfile.TarInfo(f"{number:04d}.{ending}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_of_webdataset_are_pictures_with_their_classes(tmp_path: Path, workers: int) -> None:
    shard(tmp_path / "a.tar")
    shard(tmp_path / "b.tar.gz", "w:gz")
    for place in (tmp_path / "a.tar", tmp_path / "b.tar.gz", f"tar://::{tmp_path}/a.tar"):
        source = ImageSource(place)
        assert [(image.name, image.label) for image in source.images] == [("0000.png", 4), ("0001.png", 5), ("0002.png", 6)]
        assert source.labelled
        assert corners(source, workers) == list(COLOURS.values())
    assert names(str(tmp_path / "*.tar*")) == [f"{file}/000{n}.png" for file in ("a.tar", "b.tar.gz") for n in range(3)]


def test_an_archive_is_opened_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    reached = urls._reached
    monkeypatch.setattr(urls, "_reached", lambda url: opened.append(url) or reached(url))
    shard(tmp_path / "a.tar")
    assert corners(ImageSource(tmp_path / "a.tar")) == list(COLOURS.values())
    assert len(opened) == 1
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.add(__file__, "more.txt")
    assert corners(ImageSource(tmp_path / "a.tar")) == list(COLOURS.values())
    assert len(opened) == 2


def test_zip_files_are_folders_and_urls_of_fsspec_lead_into_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        for number, colour in enumerate(COLOURS):
            file.writestr(f"p/{number}.png", picture(colour))
        file.writestr("a.png", picture("blue"))
        file.writestr("list.csv", "image,label\np/1.png,3\na.png,2\n")
    here = f"{tmp_path}/z.zip"
    assert names(here) == ["a.png", "p/0.png", "p/1.png", "p/2.png"]
    assert names(f"zip://*.png::{here}") == ["a.png"]
    assert names(f"zip://p::{here}") == ["0.png", "1.png", "2.png"]
    assert corners(ImageSource(f"zip://p::{here}")) == list(COLOURS.values())
    assert [(image.name, image.label) for image in ImageSource(f"zip://list.csv::{here}").images] == [("p/1.png", "3"), ("a.png", "2")]
    files = fsspec.filesystem("memory")
    files.put(here, "/z.zip")
    assert corners(ImageSource("zip://p::memory://z.zip")) == list(COLOURS.values())
    files.rm("/z.zip")
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    for bad in ("bad.zip", "bad.tar"):
        with pytest.raises(InputError, match="could not be read"):
            ImageSource(tmp_path / bad)
    with pytest.raises(InputError, match="not a file, not a folder, and not a pattern"):
        ImageSource(f"zip://x*.png::{here}")


@pytest.mark.parametrize("workers", [0, 1])
def test_parquet_files_are_pictures_with_labels(tmp_path: Path, workers: int) -> None:
    content = [picture(colour) for colour in COLOURS]
    structs = pa.table({"image": [{"bytes": each, "path": "x.png"} for each in content], "label": [4, 5, 6]})
    pq.write_table(structs, tmp_path / "structs.parquet", row_group_size=2)
    pq.write_table(pa.table({"jpg": content, "cls": ["a", "b", "c"]}), tmp_path / "bytes.parquet")
    for file, labels in (("structs", [4, 5, 6]), ("bytes", ["a", "b", "c"])):
        source = ImageSource(tmp_path / f"{file}.parquet")
        assert corners(source, workers) == list(COLOURS.values())
        assert [image.label for batch in source.batches(TINY, 2) for image in batch.images] == labels
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(InputError, match="no column of pictures.*it has text"):
        ImageSource(tmp_path / "text.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="could not be read as Parquet"):
        ImageSource(tmp_path / "bad.parquet")


def test_data_sets_of_hugging_face_are_sources_in_memory_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    made = library.Dataset.from_dict({"image": [Image.new("RGB", (8, 8), colour) for colour in COLOURS], "label": [0, 1, 2]})
    splits = library.DatasetDict(train=made, test=made.select([2]))
    made.save_to_disk(tmp_path / "one")
    splits.save_to_disk(tmp_path / "two")
    for images in (made, f"datasets:{tmp_path}/one", f"datasets:{tmp_path}/two:train"):
        source = ImageSource(images)
        assert source.labelled
        assert corners(source) == list(COLOURS.values())
    assert len(ImageSource(f"datasets:{tmp_path}/two:test")) == 1
    with pytest.raises(InputError, match="has the splits train, test: name one"):
        ImageSource(f"datasets:{tmp_path}/two")
    with pytest.raises(InputError, match="got a dict with train, test: pass one of its values"):
        ImageSource(splits)
    with pytest.raises(InputError, match="IterableDataset gives its items only in order"):
        ImageSource(made.to_iterable_dataset())
    with pytest.raises(InputError, match="cannot be mixed"):
        ImageSource([f"datasets:{tmp_path}/one", str(tmp_path)])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'xattn\[datasets\]'"):
        ImageSource(f"datasets:{tmp_path}/one")


class Stream(IterableDataset):
    def __iter__(self) -> object:
        return iter([])


class Endless(Dataset):
    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(3, 8, 8)


def test_data_sets_without_a_length_are_refused_with_what_to_pass_instead() -> None:
    for images in (Stream(), Endless(), iter([picture("red")])):
        with pytest.raises(InputError, match=r"gives its items only in order. Pass list\(dataset\).*shards"):
            ImageSource(images)  # type: ignore[arg-type]


RED = Image.new("RGB", (8, 8), "red")


@pytest.mark.parametrize(
    "item",
    [
        {"image": RED, "label": 3},
        {"pixel_values": torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8), "labels": 3},
        {"jpg": picture("red"), "cls": 3, "__key__": "a"},
        {"image": {"bytes": picture("red"), "path": None}, "label": 3},
        (RED, 3),
        (picture("red"), 3),
        (torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 8, 8), 3),
    ],
)
def test_items_are_pairs_or_dicts_of_pictures_tensors_or_bytes(item: object) -> None:
    source = ImageSource([item] * 2)  # type: ignore[list-item]  # a list is a data set too
    assert source.labelled
    batch = next(iter(source.batches(TINY, 2)))
    assert (batch.failed, [image.label for image in batch.images]) == ([], [3, 3])
    assert corners(source) == [[255, 0, 0]] * 2


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.full((3, 8, 8), -0.5), r"reach from -0.5 to -0.5.*\[0, 1\]. Leave out its normalisation"),
        (torch.full((3, 8, 8), 200.0), "reach from 200 to 200.*Divide by 255"),
        (torch.full((3, 8, 8), 1.5), "Divide by 255"),
        (torch.full((3, 8, 8), float("nan")), "reach from nan"),
        (torch.full((3, 8, 8), 200), "a tensor of int64 is given: uint8, or floats"),
    ],
)
def test_tensors_in_another_range_are_refused_with_what_to_do(picture: torch.Tensor, message: str) -> None:
    source = ImageSource([(picture, 1)] * 2)  # type: ignore[list-item]
    with pytest.raises(InputError, match=f"item 0 of the data set: .*{message}"):
        source.refuse_wrong_values(8)
    with pytest.raises(ImageError, match=message):
        source.decode(source.images[0], TINY)


def test_items_without_a_picture_are_errors_of_their_images() -> None:
    batch = next(iter(ImageSource([{"image": RED, "label": 1}, {"text": "x", "label": 1}]).batches(TINY, 2)))  # type: ignore[list-item]
    assert len(batch.images) == 1
    assert "got the keys text, label" in batch.failed[0][1]


def test_a_text_file_is_a_list_of_paths_and_perhaps_labels(tmp_path: Path) -> None:
    for name in ("a.png", "b c.png"):
        (tmp_path / name).write_bytes(picture("red"))
    place = tmp_path / "list.txt"
    place.write_text("a.png\nb c.png\nnone.png\n")
    assert names(place) == ["a.png", "b c.png", "none.png"]
    place.write_text("a.png 3\n")
    assert [(image.name, image.label) for image in ImageSource(place).images] == [("a.png", "3")]
    place.write_text("To be, or not to be\n")
    with pytest.raises(InputError, match="names no existing picture.*'To be, or not to be'"):
        ImageSource(place)


def test_a_tar_file_that_was_cut_off_is_not_taken_for_a_shorter_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard(tmp_path / "a.tar")
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        second = tar.getmembers()[1].offset
    for size, message in ((second + 100, "cut off or damaged after the first 1 file"), (second - 100, "could not be read")):
        (tmp_path / "b.tar").write_bytes(whole[:size])
        with pytest.raises(InputError, match=message):
            ImageSource(tmp_path / "b.tar")
    (tmp_path / "c.tar").write_bytes(whole[:second])
    assert names(tmp_path / "c.tar") == ["0000.png"]
    assert "no end marker: it may have been cut off after its 1 file" in caplog.text


def test_arrays_and_other_things_are_named(tmp_path: Path) -> None:
    import numpy as np

    assert corners(ImageSource([np.full((8, 8, 3), 9, np.uint8)] * 2)) == [[9, 9, 9]] * 2  # type: ignore[list-item]
    batch = next(iter(ImageSource([np.zeros((8, 8, 3))]).batches(TINY, 1)))  # type: ignore[list-item]
    assert "got an array (8, 8, 3) of float64" in batch.failed[0][1]
    for images, message in ((torch.rand(2, 3, 8, 8), r"A run takes it as list\(images\)"), (None, "got NoneType"), ([], "no images")):
        with pytest.raises(InputError, match=message):
            ImageSource(images)  # type: ignore[arg-type]
