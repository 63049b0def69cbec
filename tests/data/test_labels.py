"""Labels in every form that files and data sets give them: read as what they are, or refused with the reason."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from xattn.data.images import ImageSource
from xattn.data.labels import HotLabel, class_names_of, is_index, label_of, labels_in, read_table
from xattn.errors import InputError, NameUnknownError

HOT = torch.eye(4)[2]


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (3, 3),
        (torch.tensor(3), 3),
        (torch.tensor([3]), 3),
        (2.0, 2),
        (0.5, 0.5),
        (True, 1),
        ("cat", "cat"),
        (None, None),
        ((1, "dog"), (1, "dog")),
        ([3, 7], (3, 7)),
        (torch.tensor([3, 7]), (3, 7)),
        (HOT, HotLabel((2,), 4)),
        (HOT.long().numpy(), HotLabel((2,), 4)),
        (HOT.tolist(), HotLabel((2,), 4)),
        (HOT.long().tolist(), HotLabel((2,), 4)),
        (torch.tensor([1.0, 0.0, 1.0]), HotLabel((0, 2), 3)),
        (torch.zeros(3), HotLabel((), 3)),
    ],
)
def test_labels_of_data_sets_are_read_as_what_they_are(given: Any, label: Any) -> None:
    assert label_of(given) == label


@pytest.mark.parametrize("given", [{"boxes": 1}, object(), torch.zeros(4, 4), torch.full((4,), 0.25), [[1]], (1, 2.5)])
def test_what_is_no_label_says_which_forms_are(given: Any) -> None:
    with pytest.raises(InputError, match="a label is a class index or name, a list of these, a vector of zeros and ones"):
        label_of(given)


def written(folder: Path, text: str, name: str = "labels.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_table_keeps_numbers_as_texts_and_commas_in_names(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, "image,label\na.png,5\nb.png,\n")) == {"a.png": "5", "b.png": None}
    assert read_table(written(tmp_path, 'image,label\na.png,"tench, Tinca"\nb.png,tench, Tinca\n')) == dict.fromkeys(
        ("a.png", "b.png"), "tench, Tinca"
    )
    assert read_table(written(tmp_path, "file_name,label\na.png,cat\n")) == {"a.png": "cat"}
    assert read_table(written(tmp_path, "ImageId,PredictionString\nILSVRC2012_val_1,n01440764 1 2 3 4 n01440764 1 2 3 4\n")) == {
        "ILSVRC2012_val_1.JPEG": "n01440764"
    }
    with pytest.raises(InputError, match="more fields than columns"):
        read_table(written(tmp_path, "label,image\ntench, Tinca,a.png\n"))
    with pytest.raises(InputError, match=r"gives a.png two labels, cat and dog \(line 3\).*cat\|dog"):
        read_table(written(tmp_path, "image,label\na.png,cat\na.png,dog\n"))
    assert read_table(written(tmp_path, "image,label\na.png,cat\na.png,cat\n")) == {"a.png": "cat"}


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,label,Label\na.png,1,2\n")
    with pytest.raises(InputError, match="has 2 columns 'label' in its first line: rename all but one"):
        read_table(str(tmp_path / "l.csv"))


def test_text_files_hold_a_path_and_a_label_per_line_or_ilsvrc_s_ground_truth(tmp_path: Path) -> None:
    from scipy.io import savemat

    assert labels_in(written(tmp_path, "a/b.JPEG 65\nc.JPEG 970\n", "val.txt"), []) == {"a/b.JPEG": "65", "c.JPEG": "970"}
    with pytest.raises(InputError, match="line 2: a line is an image's path"):
        labels_in(written(tmp_path, "a.png 1\nb.png\n", "val.txt"), [])
    truth = written(tmp_path, "2\n1\n", "truth.txt")
    names = ["val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG"]
    with pytest.raises(InputError, match=r"follow an order of their own: put meta.mat"):
        labels_in(truth, names)
    rows = np.array([(1, "n02119789"), (2, "n02100735")], dtype=[("ILSVRC2012_ID", int), ("WNID", object)])
    savemat(tmp_path / "meta.mat", {"synsets": rows})
    found = labels_in(truth, names)
    assert found == {names[0]: "n02100735", names[1]: "n02119789"}
    with pytest.raises(InputError, match="a.png is not one of them"):
        labels_in(truth, ["a.png"])


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def found(source: ImageSource) -> list[Any]:
    return [image.label for image in source.images]


def test_labels_come_from_where_one_says(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert found(ImageSource(folders)) == [None, None]
    assert found(ImageSource(folders, labels_from="folders")) == ["cat", "dog"]
    with pytest.raises(InputError, match="needs a label file"):
        ImageSource(folders, labels_from="csv")
    with pytest.raises(NameUnknownError, match="Did you mean 'folders'"):
        ImageSource(folders, labels_from="folder")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="(lie|lies) in no folder"):
        ImageSource(folders / "cat", labels_from="folders")
    table = written(folders, "file_name,label\ncat/a.png,1\ndog/b.png,0\n", "metadata.csv")
    with caplog.at_level(logging.INFO, "xattn"):
        assert found(ImageSource(folders)) == ["1", "0"]
    assert f"labels: from {table}" in caplog.text
    assert found(ImageSource(folders, labels_from="none")) == [None, None]
    with pytest.raises(InputError, match="exclude each other"):
        ImageSource(folders, table, labels_from="none")
    written(folders, "file_name,label\ncat/a.png,1\n", "metadata.csv")
    assert found(ImageSource(folders)) == [None, None]  # it lacks one
    (folders / "cat").rename(folders / "cat|kitten")
    assert found(ImageSource(folders, labels_from="folders")) == [("cat|kitten",), "dog"]  # one class, which a text would not be


class Named:
    """A data set with names of classes, as torchvision's."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, 8, 8), index


def test_names_of_classes_are_those_of_the_data_set_inside_a_subset() -> None:
    assert class_names_of(torch.utils.data.Subset(Named(), [1])) == ("cat", "dog")  # type: ignore[arg-type]
    assert class_names_of([1, 2]) is None
    assert [is_index(each) for each in ("12", 3, "²", "cat")] == [True, True, False, False]


def test_separators_and_spaces_of_a_header_do_not_matter(tmp_path: Path) -> None:
    wanted = {"a.png": "cat, small", "b.png": "1"}
    for text in (
        "image;label\na.png;cat, small\n./b.png;1\n",
        "image\tlabel\na.png\tcat, small\nb.png\t1\n",
        'Image, Label\na.png,"cat, small"\nb.png,1\n',
        "\ufefffile_name,label\na.png,cat, small\nb.png,1\n",
    ):
        assert read_table(written(tmp_path, text)) == wanted
    with pytest.raises(InputError, match="needs the columns 'image' and 'label'.*in its first line; it has a.png, cat"):
        read_table(written(tmp_path, "a.png,cat\n"))
    (tmp_path / "labels.csv").write_bytes("image,label\n".encode("utf-16"))
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_table(str(tmp_path / "labels.csv"))


def test_json_lines_keep_numbers_as_indices_and_texts_as_names(tmp_path: Path) -> None:
    text = (
        '{"file_name": "a.png", "label": 3}\n\n{"image": "b.png", "label": "3"}\n{"image": "c.png", "label": [1, 2]}\n{"image": "d.png"}\n'
    )
    assert labels_in(written(tmp_path, text, "l.jsonl"), []) == {"a.png": 3, "b.png": "3", "c.png": (1, 2), "d.png": None}
    for line, message in (
        ("{", "line 1 could not be read as JSON"),
        ("[" * 100_000, "line 1 could not be read as JSON"),
        ("[1]", "line 1: an object with 'image'"),
        ('{"image": "a", "label": {"x": 1}}', "line 1: a label is"),
        ('{"image": "a", "label": 1}\n{"image": "a", "label": 2}', "line 2 gives a a second label, 2"),
    ):
        with pytest.raises(InputError, match=message):
            labels_in(written(tmp_path, line, "l.jsonl"), [])


def test_metadata_in_json_lines_labels_the_pictures_of_a_folder(folders: Path) -> None:
    written(folders, '{"file_name": "cat/a.png", "label": 1}\n{"file_name": "dog/b.png", "label": 0}\n', "metadata.jsonl")
    assert found(ImageSource(folders)) == [1, 0]


def test_pipes_devices_and_files_of_gigabytes_are_no_label_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(2**36)
    for place, message in (
        (tmp_path / "pipe.csv", "a pipe or a device"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "huge.csv", "64.0 GiB"),
    ):
        for path in (str(place), str(place).replace(".csv", ".txt")):
            if Path(path).exists():
                with pytest.raises(InputError, match=message):
                    labels_in(path, [])
