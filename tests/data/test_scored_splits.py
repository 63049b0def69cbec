"""Pictures for scores: nothing is fitted to those of any layout, whichever command or function is asked to."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import xattn
from tests import networks
from tests.data import published
from xattn.birds import export_few_shot
from xattn.cli import main
from xattn.data.labelled import open_data, open_split
from xattn.data.published import KNOWN, refuse_scored
from xattn.data.torchvision_sets import PUBLISHED
from xattn.errors import InputError
from xattn.tasks import tasks

SCORED = {
    **{name: {"test"} for name in ("cub", "dogs", "mit67", "cifar-fs", *PUBLISHED)},
    "voc": {"val", "trainval"},
    "market": {"query", "gallery"},
    "cityscapes": {"val"},
}
PLACES = sorted((name, split) for name, splits in SCORED.items() for split in splits)


def test_each_layout_says_which_of_its_splits_hold_pictures_for_scores() -> None:
    layouts = {**KNOWN, **PUBLISHED}
    assert layouts.keys() == SCORED.keys()
    for name, about in layouts.items():
        for split in about.splits:
            place = f"{name}:/data/{name}:{split}"
            if split not in SCORED[name]:
                refuse_scored([place])
                continue
            train = "trainval" if name == "oxford-pets" else "train"
            said = f"^{place} holds pictures for scores, to which nothing is fitted: give {name}:/data/{name}:{train}.$"
            with pytest.raises(InputError, match=said):
                refuse_scored(["photos", place])


def test_of_hugging_face_it_is_the_split_test_and_of_other_places_nothing_is_known() -> None:
    with pytest.raises(InputError, match=r"^datasets:beans:test holds pictures for scores.*: give datasets:beans:train"):
        refuse_scored(["datasets:beans:test"])
    refuse_scored(["datasets:beans:validation", "datasets:test", "photos:test", "cub://bucket:test", "test", "cub:test"])


@pytest.mark.parametrize(("name", "split"), PLACES)
def test_they_are_neither_trained_on_nor_adapted_to_nor_searched_for_boxes(name: str, split: str, tmp_path: Path) -> None:
    place = f"{name}:{tmp_path}/gone:{split}"
    with pytest.raises(InputError, match="holds pictures for scores, to which nothing is fitted"):
        open_data(place)
    if name in KNOWN:
        with pytest.raises(InputError, match="holds pictures for scores"):
            open_split(name, f"{tmp_path}/gone", split)
    out = str(tmp_path / "out.safetensors")
    for line in (
        ["adapt", "nowhere.py:none", "--data", place, "--out", out],
        ["patches", place, "--model", "nowhere.py:none", "--out", "boxes.csv"],
        ["patches", place, "--model", "nowhere.py:none", "--target", "label", "--out", "boxes.csv"],
    ):
        done = CliRunner().invoke(main, line)
        assert done.exit_code == 2
        assert f"{place} holds pictures for scores, to which nothing is fitted: give {name}:{tmp_path}/gone:train" in done.stderr


@pytest.mark.parametrize(
    ("task", "place"),
    [
        ("classification", "cub:/gone:test"),
        ("classification", "cifar10:/gone:test"),
        ("few-shot", "cifar-fs:/gone:test"),
        ("multi-label", "voc:/gone:trainval"),
        ("re-identification", "market:/gone:gallery"),
        ("segmentation", "cityscapes:/gone:val"),
    ],
)
def test_no_task_opens_them_for_training(task: str, place: str) -> None:
    with pytest.raises(InputError, match=r"holds pictures for scores|got split test: give only ROOT"):
        tasks.create(task).instance.open(place)


def test_a_classifier_is_adapted_to_training_pictures_alone(tmp_path: Path) -> None:
    birds = export_few_shot(tmp_path, 1)
    tiny = xattn.attach(networks.small(3), input_size=32, resize=32, name="tiny")
    with pytest.raises(InputError, match=rf"cifar-fs:{tmp_path}:test holds pictures for scores"):
        xattn.adapt(tiny, f"cifar-fs:{birds}:test")
    assert xattn.adapt(tiny, f"cifar-fs:{birds}:val", steps=1).class_count == 4
    root = published.cub(tmp_path / "cub")
    with pytest.raises(InputError, match=r"cub:.*:test holds pictures for scores"):
        xattn.adapt(tiny, [f"cub:{root}:train", f"cub:{root}:test"])


def test_help_of_evaluate_names_the_split_of_every_layout_that_has_no_test() -> None:
    text = " ".join(CliRunner().invoke(main, ["evaluate", "--help"]).output.split())
    said = text[text.index("Default split:") :].partition(".")[0]
    for name, about in KNOWN.items():
        if about.test != "test":
            assert f"{name}" in said
            assert about.test in said[said.index(name) :]
