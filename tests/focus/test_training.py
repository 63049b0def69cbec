"""A two-stream network is trained on one patch of each picture, and a training that is killed ends in the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import xattn
from tests.focus import tiny
from tests.training.conftest import paint
from xattn.boxes import crop
from xattn.cli import main
from xattn.errors import InputError
from xattn.focus import TwoStreams
from xattn.models import Classifier
from xattn.patches.file import write_patches
from xattn.training import Recipe, fit, open_data
from xattn.training.module import optimiser_of
from xattn.training.recipe import PRESETS, default_preset
from xattn.training.streams import loss_of_streams, parameter_groups, training_boxes, two_stream_loss

QUICK = Recipe(backbone=True, epochs=3, batch_size=8, lr=0.02, local_lr=0.05, optimiser="sgd", smallest_crop=None)
KILLED = """
import sys, torch
torch.set_num_threads(1)
from tests.focus.test_training import QUICK, trained
trained(sys.argv[1], sys.argv[2])
"""


def trained(painted: str | Path, out: str | Path) -> tuple[Classifier, float]:
    clf = tiny.classifier()
    found = fit(clf, painted, out, recipe=QUICK.with_(epochs=5), workers=0, progress=False)
    return clf, found.score


@pytest.fixture
def painted(tmp_path: Path) -> Path:
    return paint(tmp_path / "painted")


def test_a_training_that_is_killed_ends_in_the_same_weights(painted: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(painted), str(tmp_path / "cut.safetensors")]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    last, deadline = tmp_path / "cut.training" / "last.ckpt", time.monotonic() + 240
    while not last.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert last.exists()
    (cut, _), (whole, accuracy) = trained(painted, tmp_path / "cut.safetensors"), trained(painted, tmp_path / "whole.safetensors")
    mine, theirs = cut.state_dict(), whole.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert accuracy == 100
    before = tiny.classifier().state_dict()
    assert not any(torch.equal(before[key], theirs[key]) for key in theirs if key.endswith("weight"))  # every part of it learnt


def test_the_loss_is_of_one_patch_of_each_picture() -> None:
    clf = tiny.classifier().train()
    network = clf.network
    assert isinstance(network, TwoStreams)
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    boxes = torch.tensor([[[0.0, 0, 16, 16], [8, 4, 20, 28], [10, 10, 32, 30]]]).expand(4, -1, -1)
    torch.manual_seed(3)
    found = loss_of_streams(clf, images, boxes, labels, QUICK)
    torch.manual_seed(3)
    drawn = boxes[torch.arange(4), torch.randint(3, (4,))][:, None]
    network.boxes.register_forward_hook(lambda _module, _given, seen: torch.testing.assert_close(seen, drawn))
    normalised = clf.normalise(images)
    local = network.local_stream(crop(normalised, drawn, 16)[:, 0]).logits
    whole = network.global_stream(normalised)[1]
    cross = torch.nn.functional.cross_entropy
    surer = whole.softmax(dim=1)[torch.arange(4), labels] - local.softmax(dim=1)[torch.arange(4), labels] + 0.5
    torch.testing.assert_close(found, cross(whole, labels) + cross(local, labels) + 0.5 * surer.relu().mean())
    torch.testing.assert_close(two_stream_loss(network, network.streams(normalised, drawn), labels, ranking=0.5, margin=0.5), found)


def stored(path: Path, count: int, classes: Tensor | None = None) -> Path:
    boxes = torch.tensor([[4.0, 8, 20, 30], [0, 0, 16, 16]]).expand(count, -1, -1)
    write_patches(path, boxes, (32, 32), None if classes is None else classes[:, None].expand(-1, 2))
    return path


def test_boxes_of_a_file_are_those_of_the_pictures(painted: Path, tmp_path: Path) -> None:
    clf, data = tiny.classifier(), open_data(painted)
    file = stored(tmp_path / "own.npy", 36, torch.tensor(data.targets))
    boxes = training_boxes(file, data, clf, QUICK)
    torch.testing.assert_close(boxes[5], torch.tensor([[4.0, 8, 20, 30], [0, 0, 16, 16]]))
    seen: list[Tensor] = []
    clf.network.boxes.register_forward_hook(lambda module, _given, found: seen.append(found) if clf.network.training else None)
    fit(clf, painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=1), patches=file, workers=0, progress=False)
    of_training = {tuple(box) for found in seen for box in found[:, 0].round().tolist()}
    assert of_training == {(4, 8, 20, 30), (0, 0, 16, 16)}
    other = stored(tmp_path / "other.npy", 36, torch.tensor(data.targets).flip(0))
    for wrong, recipe, said in (
        (other, QUICK, "which has label 0: it belongs to other pictures"),
        (stored(tmp_path / "few.npy", 35), QUICK, "boxes for 35 pictures, but the data set has 36"),
        (file, QUICK.with_(smallest_crop=0.5), "without random crops"),
    ):
        with pytest.raises(InputError, match=said):
            training_boxes(wrong, data, clf, recipe)


def test_the_streams_have_learning_rates_of_their_own() -> None:
    clf, preset = tiny.classifier(), PRESETS["focus"]
    assert default_preset("gap", "focus:vgg19") == "focus"
    optimiser = optimiser_of(preset, parameter_groups(clf, preset, list(clf.parameters())))
    rates = {parameter: group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    network = clf.network
    assert {rates[parameter] for parameter in network.global_stream.parameters()} == {0.001}
    assert {rates[parameter] for parameter in network.local_stream.parameters()} == {0.01}
    assert len(rates) == len(list(clf.parameters()))
    assert all(group["weight_decay"] == 5e-4 for group in optimiser.param_groups)


def test_what_does_not_fit_a_training_of_streams_is_told(painted: Path, tmp_path: Path) -> None:
    from tests.training.conftest import fresh

    with pytest.raises(InputError, match="without its backbones"):
        fit(tiny.classifier(), painted, tmp_path / "a.safetensors", recipe=QUICK.with_(backbone=False))
    with pytest.raises(InputError, match="from a teacher"):
        fit(tiny.classifier(), painted, tmp_path / "a.safetensors", recipe=QUICK, teacher=tiny.classifier())
    with pytest.raises(InputError, match="has no local stream"):
        fit(fresh(), painted, tmp_path / "a.safetensors", recipe=QUICK)
    with pytest.raises(InputError, match="takes whole pictures"):
        fit(fresh(), painted, tmp_path / "a.safetensors", recipe=Recipe(backbone=True), patches=stored(tmp_path / "own.npy", 36))


def test_the_command_line_trains_it_for_the_classes_of_the_data(painted: Path, tmp_path: Path) -> None:
    file, out = stored(tmp_path / "own.npy", 36, torch.tensor(open_data(painted).targets)), tmp_path / "two.safetensors"
    name = "focus:birds:gap:steps=2,patches=2,side=8"
    options = ["--input-size", "16", "--epochs", "1", "--batch-size", "12", "--workers", "0", "--accelerator", "cpu", "--ranking", "0"]
    done = CliRunner().invoke(main, ["train", "--model", name, "--data", str(painted), "--patches", str(file), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    clf = xattn.load(str(out), device="cpu")
    assert (clf.labels, clf.trained, clf.preprocessing.resize) == (("blue", "green", "red"), True, (16, 16))
    kept = json.loads((tmp_path / "two.training" / "training.json").read_text())
    assert (kept["recipe"]["local_lr"], kept["recipe"]["ranking"], kept["recipe"]["epochs"]) == (0.01, 0, 1)
    assert len(kept["patches"]) == 16
