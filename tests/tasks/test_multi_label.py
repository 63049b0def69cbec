"""Several labels: the loss, the score, a training from pictures in VOC's layout to its score and maps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import average_precision_score
from torch import nn

import xattn
from tests.data import published
from xattn.birds import export_voc
from xattn.cli import main
from xattn.data.images import read_picture
from xattn.data.published import open_published
from xattn.errors import InputError
from xattn.tasks import score, tasks
from xattn.tasks.multi_label import precisions, resampled_precisions
from xattn.training import Fitted, Recipe, fit
from xattn.training.checks import in_classes_of

TASK = tasks.create("multi-label").instance


def slow_precision(scores: list[float], labels: list[int]) -> float:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores, from the highest; objects that are ignored are not there at all."""
    kept = [(value, label) for value, label in zip(scores, labels, strict=True) if label >= 0]
    positives = sum(label for _, label in kept)
    total, recall = 0.0, 0.0
    for threshold in sorted({value for value, _ in kept}, reverse=True):
        above = [label for value, label in kept if value >= threshold]
        total += (sum(above) / positives - recall) * sum(above) / len(above)
        recall = sum(above) / positives
    return 100 * total


def test_average_precision_by_hand_with_ties_and_difficult_objects() -> None:
    output = torch.tensor([[9.0, 1.0, 0.0], [8.0, 1.0, 0.0], [7.0, 0.0, 0.0], [7.0, 5.0, 1.0], [1.0, -3.0, 0.0]])
    targets = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [-1, -1, 0], [1, 1, -1]])
    # Class 0: 1 of 1, 2 of 3, 3 of 4, the difficult one among the ties being left out. Class 1: of two equal ones one is right; 2 of 4.
    expected = [100 * (1 + 2 / 3 + 3 / 4) / 3, 100 * (1 / 2 * 1 / 2 + 1 / 2 * 2 / 4), math.nan]
    assert precisions(output, targets).tolist() == pytest.approx(expected, nan_ok=True)


def test_average_precision_is_that_of_a_slow_count_and_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randint(-6, 6, (70, 5), generator=generator).float() * 4
    targets = torch.randint(-1, 2, (70, 5), generator=generator)
    found = precisions(output, targets).tolist()
    for k in range(5):
        scores, labels = output[:, k].tolist(), targets[:, k].tolist()
        assert found[k] == pytest.approx(slow_precision(scores, labels))
        known = targets[:, k] >= 0
        theirs = average_precision_score(targets[known, k].numpy(), output[known, k].numpy())
        assert found[k] == pytest.approx(100 * theirs)
    meter = TASK.validation(xattn.load("birds:gap", multi_label=True, device="cpu"))
    for part in (slice(0, 30), slice(30, 70)):
        meter.update(output[part], targets[part])
    assert float(meter.compute()) == pytest.approx(sum(found) / 5 / 100)


def test_high_logits_are_ranked_too() -> None:
    output, targets = torch.tensor([[40.0], [50.0], [60.0]]), torch.tensor([[0], [1], [1]])  # sigmoid is 1 for all, in float64 too
    assert precisions(output, targets).tolist() == [100]
    assert resampled_precisions(output, targets, torch.arange(3)[None]).tolist() == [[100]]


def test_classes_that_the_data_never_mention_are_ignored_whether_they_have_names_or_indices(tmp_path: Path) -> None:
    published.voc(tmp_path)
    classifier = xattn.attach(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), input_size=32, labels=list("abcde"))
    for first, second in (("b|d", "b"), ("1|3", "1")):
        table = f"image,label\nJPEGImages/2007_000000.jpg,{first}\nJPEGImages/2007_000001.jpg,{second}\n"
        (tmp_path / "labels.csv").write_text(table)
        assert in_classes_of(classifier, TASK.open(tmp_path / "labels.csv")).targets == ((-1, 1, -1, 1, -1), (-1, 1, -1, 0, -1))


def test_resampled_precisions_are_those_of_the_pictures_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randint(-4, 4, (30, 4), generator=generator).float()
    targets = torch.randint(-1, 2, (30, 4), generator=generator)
    targets[3:, 2] = 0
    targets[:, 3] = 0
    draws = torch.randint(30, (20, 30), generator=generator)
    found = resampled_precisions(output, targets, draws)
    expected = torch.stack([precisions(output[draw], targets[draw]) for draw in draws])
    assert torch.allclose(found, expected, equal_nan=True)
    assert found[:, 3].isnan().all()


def test_the_loss_is_the_mean_over_labels_that_are_not_ignored() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(-1, 2, (4, 6), generator=generator)
    terms = []
    for row, wanted in zip(output.tolist(), targets.tolist(), strict=True):
        for logit, label in zip(row, wanted, strict=True):
            if label >= 0:
                p = 1 / (1 + math.exp(-logit))
                terms.append(-math.log(p if label else 1 - p))
    loss = TASK.loss(output, targets)
    assert loss.item() == pytest.approx(sum(terms) / len(terms))
    (gradient,) = torch.autograd.grad(loss, output)
    assert (gradient[targets == -1] == 0).all()
    assert (gradient[targets != -1] != 0).all()
    assert TASK.loss(output, torch.full((4, 6), -1)).item() == 0


def test_what_has_one_class_per_picture_is_refused(tmp_path: Path) -> None:
    root = published.voc(tmp_path / "voc")
    out = tmp_path / "out.safetensors"
    single, several = (xattn.load("birds:gap", multi_label=flag, device="cpu") for flag in (False, True))
    with pytest.raises(InputError, match="task multi-label needs independent labels: load it with multi_label"):
        fit(single, f"voc:{root}", out, task="multi-label")
    with pytest.raises(InputError, match=r"voc:.* has several labels per picture, but classification needs one"):
        fit(single, f"voc:{root}", out)
    with pytest.raises(InputError, match="gap keeps the classifier of birds:gap, which knows no class 'aeroplane'"):
        fit(several, f"voc:{root}", out)
    with pytest.raises(InputError, match="a teacher's answers are learnt with one class per picture"):
        fit(several, f"voc:{root}", out, teacher=single)
    per_class = xattn.load("birds:gap", head="ca-stream:per_class=true", multi_label=True, device="cpu")
    with pytest.raises(InputError, match="per_class=true is learnt with one class per picture"):
        fit(per_class, f"voc:{root}", out)


def test_a_csv_of_several_labels_is_opened(tmp_path: Path) -> None:
    root = published.voc(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label\nJPEGImages/2007_000000.jpg,b|a\nJPEGImages/2007_000001.jpg,a\n")
    data = TASK.open(tmp_path / "labels.csv")
    assert (data.names, data.targets) == (("a", "b"), ((1, 1), (1, 0)))
    (tmp_path / "labels.csv").write_text("image,label\nJPEGImages/2007_000000.jpg,0|3\nJPEGImages/2007_000001.jpg,1\n")
    data = TASK.open(tmp_path / "labels.csv")
    assert (data.names, data.targets) == (None, ((1, 0, 0, 1), (0, 1, 0, 0)))
    assert (root / "JPEGImages").is_dir()


def test_the_score_is_of_all_pictures_difficult_ones_included(tmp_path: Path) -> None:
    root = published.voc(tmp_path)
    found_in = open_published("voc", root, "trainval")
    network = nn.Sequential(nn.Conv2d(3, 20, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = xattn.attach(network, input_size=32, labels=found_in.classes[::-1], multi_label=True)
    found = score(classifier, f"voc:{root}:trainval", workers=0, progress=False, batch_size=2)
    assert found.n == 5
    crops = [classifier.preprocessing.crop(read_picture(path)).float() / 255 for path in found_in.paths]
    output = classifier.predict(torch.stack(crops))
    places = [found_in.classes.index(name) for name in ("cat", "dog", "person")]
    targets = torch.tensor(found_in.targets)
    own = [slow_precision(output[:, 19 - k].tolist(), targets[:, k].tolist()) for k in places]
    assert [found.classes[name].mean for name in ("cat", "dog", "person")] == pytest.approx(own)
    assert found.scores["mAP"].mean == pytest.approx(sum(own) / 3)
    assert found.scores["mAP"].low <= found.scores["mAP"].mean <= found.scores["mAP"].high
    assert math.isnan(found.classes["bird"].mean)
    for given in ({"labels_csv": tmp_path / "none.csv"}, {"labels_from": "folders"}):
        with pytest.raises(InputError, match="has labels of its own: leave out labels_csv and labels_from"):
            score(classifier, f"voc:{root}", workers=0, progress=False, **given)


def test_two_classes_of_one_name_have_a_line_each(tmp_path: Path) -> None:
    published.voc(tmp_path)
    rows = "JPEGImages/2007_000000.jpg,0|2\nJPEGImages/2007_000001.jpg,1\nJPEGImages/2007_000002.jpg,2\n"
    (tmp_path / "labels.csv").write_text(f"image,label\n{rows}")
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = xattn.attach(network, input_size=32, labels=["crane", "wren", "crane"], multi_label=True)
    found = score(classifier, tmp_path / "labels.csv", workers=0, progress=False)
    assert list(found.classes) == ["crane (0)", "wren", "crane (2)"]


def test_from_pictures_of_several_birds_to_a_stream_its_score_and_a_row_for_each_positive(tmp_path: Path) -> None:
    root = export_voc(tmp_path / "birds", train=24, validation=8)
    net, stream, run = (str(tmp_path / name) for name in ("net.safetensors", "stream.safetensors", "run"))

    def command(*arguments: str) -> str:
        done = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    data = ("--data", f"voc:{root}", "--task", "multi-label")
    shared = (*data, "--epochs", "1", "--batch-size", "8", "--workers", "0", "--accelerator", "cpu")
    said = command("train", "--model", "birds:gap", "--head", "gap", *shared, "--out", net)
    assert "24 pictures of 16 classes" in said
    assert "mAP" in said
    command("train", "--model", net, "--head", "ca-stream", *shared, "--out", stream)
    pooled, streamed = (xattn.load(file, device="cpu") for file in (net, stream))
    assert (streamed.multi_label, streamed.head_name) == (True, "ca-stream")
    assert all(torch.equal(value, pooled.network.state_dict()[key]) for key, value in streamed.network.state_dict().items())
    out = command("evaluate", stream, "--data", f"voc:{root}", "--workers", "0", "--device", "cpu", "--out", str(tmp_path / "scores.json"))
    assert "mAP " in out
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["task"] == "multi-label"
    assert written["data"] == f"voc:{root}:val"
    assert written["n"] == 8
    asked = ("--target", "labels", "--method", "grad-cam", "--metric", "average-drop")
    options = (*asked, "--workers", "0", "--device", "cpu", "--tune", "off")
    command("explain", f"voc:{root}:val", "--model", stream, *options, "--out", run)
    rows = pd.read_csv(f"{run}/scores.csv")
    val = open_published("voc", root, "val")
    positives = (torch.tensor(val.targets) == 1).nonzero().tolist()
    expected = {(val.files[number], val.classes[k]) for number, k in positives}
    assert {(image, streamed.label(int(target))) for image, target in zip(rows["image"], rows["target"], strict=True)} == expected
    assert len(rows) == len(expected)


def test_resumed_equals_uninterrupted_and_the_epoch_of_the_highest_score_is_kept(tmp_path: Path) -> None:
    root = export_voc(tmp_path / "birds", train=16, validation=6)
    recipe = Recipe(backbone=True, epochs=3, batch_size=8, lr=3e-3, smallest_crop=None)

    class Cut(Exception):
        pass

    scores: dict[int, float] = {}

    def cut(epoch: int, value: float) -> None:
        if epoch == 1:
            raise Cut

    def train(name: str, on_epoch: Any) -> tuple[xattn.Classifier, Fitted]:
        classifier = xattn.load("birds:gap", multi_label=True, device="cpu")
        options: dict[str, Any] = {"recipe": recipe, "workers": 0, "progress": False, "on_epoch": on_epoch}
        return classifier, fit(classifier, f"voc:{root}", tmp_path / name, **options)

    whole, expected = train("whole.safetensors", scores.__setitem__)
    with pytest.raises(Cut):
        train("cut.safetensors", cut)
    resumed, found = train("cut.safetensors", None)
    assert resumed.digest() == whole.digest()
    assert (found.best, found.score) == (expected.best, expected.score)
    assert expected.best == max(scores, key=lambda epoch: scores[epoch])
    assert expected.score == max(scores.values())
