"""Scores of classifiers on pictures with labels: the values, the labels, the command."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from scipy.stats import binomtest
from torch import nn
from torchvision.datasets import CIFAR10

import xattn
from xattn.birds import CLASSES, SketchBirds
from xattn.cli import main
from xattn.data.published import with_split
from xattn.errors import ImageError, InputError, NameUnknownError, UnsupportedError
from xattn.tasks import score, tasks
from xattn.tasks.classification import right


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SketchBirds("test", 24).export(tmp_path_factory.mktemp("birds"))


@pytest.fixture(scope="module")
def blurred() -> xattn.Classifier:
    """A classifier that is right on some birds alone."""
    classifier = xattn.load("birds:gap", device="cpu")
    with torch.no_grad():
        classifier.network.fc.weight += 0.7 * torch.randn(classifier.network.fc.weight.shape, generator=torch.Generator().manual_seed(0))
    return classifier


def slow_top(row: list[float], label: int, top: int) -> bool:
    order = sorted(range(len(row)), key=lambda index: (-row[index], index))
    return label in order[:top]


def test_top_k_is_that_of_a_stable_sort_ties_included() -> None:
    output = torch.randint(0, 4, (200, 9), generator=torch.Generator().manual_seed(0)).float()
    targets = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(1))
    for top in (1, 2, 5, 9):
        expected = [slow_top(row, label, top) for row, label in zip(output.tolist(), targets.tolist(), strict=True)]
        assert right(output, targets, top).tolist() == expected
    assert not right(torch.full((1, 9), torch.nan), targets[:1], 9).any()


def test_accuracy_and_its_interval_are_those_of_a_slow_count(blurred: xattn.Classifier, birds: Path) -> None:
    found = score(blurred, birds, workers=0, progress=False, batch_size=5)
    source = xattn.data.images.ImageSource(str(birds))
    hits = {1: 0, 5: 0}
    for image in source.images:
        _, crop = source.decode(image, blurred.preprocessing)
        row = blurred.predict(crop[None].float() / 255)[0].tolist()
        for top in hits:
            hits[top] += slow_top(row, list(CLASSES).index(image.name.split("/")[0]), top)
    assert 0 < hits[1] < 24
    for name, top in (("accuracy", 1), ("top-5 accuracy", 5)):
        interval = binomtest(hits[top], 24).proportion_ci(method="wilson")
        expected = (100 * hits[top] / 24, 100 * interval.low, 100 * interval.high)
        assert found.scores[name][:3] == pytest.approx(expected)
    assert found.n == 24


def test_labels_are_those_that_explain_takes(birds: Path, tmp_path: Path) -> None:
    classifier = xattn.load("birds:gap", device="cpu")
    whole = score(classifier, birds, workers=0, progress=False).scores
    assert score(classifier, birds / "labels.csv", workers=0, progress=False).scores == whole
    shutil.copytree(birds / "mosscone", tmp_path / "unheard-of")
    with pytest.raises(InputError, match=r"a score needs a label for each picture, and .* in '.*' has none"):
        score(classifier, tmp_path, workers=0, progress=False)
    with pytest.raises(NameUnknownError, match=r"Unknown class 'unheard-of'"):
        score(classifier, tmp_path, workers=0, progress=False, labels_from="folders")
    rows = "".join(f"unheard-of/{path.name},mosscone|fernhook\n" for path in (tmp_path / "unheard-of").iterdir())
    (tmp_path / "two.csv").write_text(f"image,label\n{rows}")
    with pytest.raises(InputError, match=r"label of unheard-of/.*: accuracy needs one class per picture, but it has 2"):
        score(classifier, tmp_path, workers=0, progress=False, labels_csv=tmp_path / "two.csv")


def test_a_split_of_a_published_data_set_is_opened_and_test_is_the_default(tmp_path: Path) -> None:
    assert with_split("cub:/a/b") == "cub:/a/b:test"
    assert with_split("cub:/a/b:train") == "cub:/a/b:train"
    assert with_split("cifar10:a") == "cifar10:a:test"
    assert with_split("s3://cub/a") == "s3://cub/a"
    assert with_split("cub") == "cub"
    classifier = xattn.attach(nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), input_size=32)
    with pytest.raises(InputError, match=r"cifar10:.* could not be opened \(Dataset not found"):
        score(classifier, f"cifar10:{tmp_path}", workers=0, progress=False)
    assert CIFAR10.base_folder not in {path.name for path in tmp_path.iterdir()}


def test_networks_without_classes_are_refused(birds: Path) -> None:
    with pytest.raises(InputError, match=r"gives values, but classification needs classes"):
        score(xattn.load("birds:gap", regression=True, device="cpu"), birds, progress=False)
    maps = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))
    with pytest.raises(UnsupportedError, match=r"gives an output \(24, 16, 64, 64\); one logit per class"):
        score(xattn.attach(maps, input_size=64, labels=list(CLASSES)), birds, workers=0, progress=False)
    with pytest.raises(NameUnknownError, match="Unknown task 'clasification'. Did you mean 'classification'"):
        score(xattn.load("birds:gap", device="cpu"), birds, task="clasification")
    assert tasks.create("classification").spec == "classification"


def test_the_command_prints_and_writes_scores_and_names_pictures_that_it_cannot_read(birds: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(main, ["evaluate", "birds:gap", "--workers", "0", "--device", "cpu", *arguments])
        return done.exit_code, done.stdout, done.stderr

    assert run("--data", str(birds), "--out", "scores.txt")[0] == 2
    code, out, _ = run("--data", str(birds), "--out", str(tmp_path / "scores.json"))
    assert code == 0
    assert out.splitlines()[1] == "accuracy 100.00 %, 95 % [86.20, 100.00]"
    assert json.loads((tmp_path / "scores.json").read_text())["scores"]["accuracy"]["n"] == 24
    folder = shutil.copytree(birds, tmp_path / "birds")
    torn = next(folder.glob("*/*.png"))
    torn.write_bytes(torn.read_bytes()[:200])
    code, _, said = run("--data", str(folder), "--out", str(tmp_path / "scores.csv"))
    assert code == 3
    assert "left out because they cannot be read: 1 of 24 pictures:" in said
    with open(tmp_path / "scores.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["score"], row["n"], row["task"]) for row in rows] == [
        (name, "23", "classification") for name in ("accuracy", "top-5 accuracy")
    ]
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="none of 24 pictures"):
        score(xattn.load("birds:gap", device="cpu"), folder, workers=0, progress=False)
