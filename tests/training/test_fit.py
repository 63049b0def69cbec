"""Training: what moves, what may not, and what happens when it is cut off or goes wrong."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import xattn
from tests import networks
from tests.training.conftest import fresh, paint
from tests.training.killing import CUT, WHOLE, trained_with_and_without_a_kill
from xattn.errors import ImageError, InputError, NameUnknownError, RunError, SettingError
from xattn.models import Classifier
from xattn.training import PRESETS, DivergedError, Recipe, distillation, fit, gradient_norms, open_data
from xattn.training.checks import in_classes_of
from xattn.training.module import optimiser_of, schedule_of

QUICK = Recipe(backbone=True, epochs=3, batch_size=8, lr=0.01, optimiser="sgd")


def state(clf: Classifier) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in clf.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_colours_are_learnt_and_the_best_epoch_is_kept(
    painted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xattn")
    clf = fresh("br-npa:n=3,rank_probes=true")
    fitted = fit(clf, painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=6), workers=0, log_gradients=True)
    assert fitted.score == 100
    assert clf.trained
    assert clf.labels == ("blue", "green", "red")
    text = capfd.readouterr()
    assert text.out == text.err == ""  # a library does not print
    assert "epoch 6 of 6: loss" in caplog.text
    for word in ("Tip", "litlogger", "available", "Lightning", "https"):  # no advertising, no announcements
        assert word not in caplog.text
    log = pd.read_csv(fitted.folder / "version_0" / "metrics.csv")
    assert log["val_loss"].min() == pytest.approx(fitted.loss)
    assert (log["gradient_norm/network.3.0"].dropna() > 0).sum() == log["loss_step"].count()
    assert list((fitted.folder / "tensorboard_0").glob("events*"))


@pytest.mark.parametrize("head", ["ca-stream", "ca-stream:per_class=true", "br-npa", "b-cnn"])
def test_a_frozen_network_is_bit_identical_after_training_statistics_included(head: str, painted: Path, tmp_path: Path) -> None:
    clf = fresh(head)
    clf.network.train()
    clf.network[0].weight.grad = torch.full_like(clf.network[0].weight, 7.0)
    clf.network[2][0].weight.requires_grad_(False)
    before, flags = state(clf), [p.requires_grad for p in clf.parameters()]
    modes = [m.training for m in clf.modules()]
    fit(clf, painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=2, backbone=False), workers=0, progress=False)
    after = state(clf)
    assert all(torch.equal(after[key], value) for key, value in before.items() if key.startswith("network."))
    assert not all(torch.equal(after[key], value) for key, value in before.items() if key.startswith("head."))
    assert [p.requires_grad for p in clf.parameters()] == flags
    assert [m.training for m in clf.modules()] == modes


def test_with_its_network_everything_that_has_part_in_the_logits_is_trained(painted: Path, tmp_path: Path) -> None:
    clf = fresh()
    before = state(clf)
    fit(clf, painted, tmp_path / "out.safetensors", recipe=QUICK.with_(weight_decay=0.1), workers=0, progress=False)
    after = state(clf)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    unused = {"network.6.weight", "network.6.bias"}  # the classifier that br-npa replaces
    assert moved == set(before) - unused


class Cut(Exception):
    """Ends a training after an epoch."""


def cut(epoch: int, accuracy: float) -> None:
    raise Cut


def test_resumed_equals_uninterrupted(painted: Path, tmp_path: Path) -> None:
    recipe = QUICK.with_(epochs=4, dropout=0.3)
    whole = fresh()
    expected = fit(whole, painted, tmp_path / "whole.safetensors", recipe=recipe, workers=0, progress=False)
    for _ in range(3):
        clf = fresh()
        with pytest.raises(Cut):
            fit(clf, painted, tmp_path / "cut.safetensors", recipe=recipe, workers=1, progress=False, on_epoch=cut)
    clf = fresh()
    found = fit(clf, painted, tmp_path / "cut.safetensors", recipe=recipe, workers=0, progress=False)
    assert same(state(clf), state(whole))
    assert (found.best, found.loss) == (expected.best, expected.loss)
    again = fresh()  # a training that is finished is not run again, and ends in the same weights
    fit(again, painted, tmp_path / "cut.safetensors", recipe=recipe, workers=0, progress=False)
    assert same(state(again), state(whole))


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_torn_checkpoint_is_reported_before_any_further_epoch(name: str, painted: Path, tmp_path: Path) -> None:
    recipe, out = QUICK.with_(epochs=2), tmp_path / "torn.safetensors"
    with pytest.raises(Cut):
        fit(fresh(), painted, out, recipe=recipe, workers=0, progress=False, on_epoch=cut)
    file = out.with_suffix(".training") / name
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(RunError, match=rf"{name}' is damaged .*: give another --out, or remove the folder"):
        fit(fresh(), painted, out, recipe=recipe, workers=0, progress=False, on_epoch=cut)
    file.unlink()
    if name == "best.ckpt":
        with pytest.raises(RunError, match=r"best.ckpt' is damaged .*No such file"):
            fit(fresh(), painted, out, recipe=recipe, workers=0, progress=False, on_epoch=cut)


def test_kill_9_loses_no_finished_epoch_and_ends_in_the_same_weights(
    painted: Path, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arguments(out: str) -> list[str]:
        options = [
            "--preset",
            "full",
            "--epochs",
            "12",
            "--batch-size",
            "8",
            "--optimiser",
            "sgd",
            "--accelerator",
            "cpu",
            "--workers",
            "0",
        ]
        shape = ["--input-size", "32", "--resize", "36", "--head", "ca-stream", "--seed", "3"]
        return ["train", "--model", factory, "--data", str(painted), "--out", out, *options, *shape]

    monkeypatch.chdir(tmp_path)
    trained_with_and_without_a_kill(arguments)
    whole, cut = (xattn.load(name, device="cpu", trust_code=True) for name in (WHOLE, CUT))
    assert same(state(whole), state(cut))


def test_distillation_with_alpha_1_is_plain_training(painted: Path, tmp_path: Path) -> None:
    teacher = fresh()
    with torch.no_grad():
        teacher.head.linear.bias.add_(1)
    teacher_before = state(teacher)
    plain, taught, learnt = fresh(), fresh(), fresh()
    fit(plain, painted, tmp_path / "plain.safetensors", recipe=QUICK, workers=0, progress=False)
    fit(taught, painted, tmp_path / "taught.safetensors", recipe=QUICK.with_(alpha=1.0), teacher=teacher, workers=0, progress=False)
    fit(learnt, painted, tmp_path / "learnt.safetensors", recipe=QUICK.with_(alpha=0.2), teacher=teacher, workers=0, progress=False)
    assert same(state(plain), state(taught))
    assert not same(state(plain), state(learnt))
    assert same(state(teacher), teacher_before)


def test_the_distillation_loss_is_equation_1() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn((4, 5), generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 3, 2, 2])
    for alpha, temperature in ((0.5, 1.0), (0.3, 6.0), (0.0, 2.0)):
        total = 0.0
        for s, t, y in zip(student, teacher, labels, strict=True):
            p_t, p_s = (t / temperature).softmax(0), (s / temperature).softmax(0)
            total += float(alpha * -s.log_softmax(0)[y] + (1 - alpha) * temperature**2 * (p_t * (p_t / p_s).log()).sum())
        assert float(distillation(student, teacher, labels, alpha=alpha, temperature=temperature)) == pytest.approx(total / 4)
    assert float(distillation(student, teacher, labels, alpha=1.0)) == float(functional.cross_entropy(student, labels))


def test_a_diverging_loss_is_told_and_the_best_epoch_before_it_is_kept(painted: Path, tmp_path: Path, factory: str) -> None:
    clf = xattn.load(factory, head="br-npa:n=2", input_size=32, resize=36, device="cpu")
    generator = torch.random.get_rng_state()

    def spoil(epoch: int, accuracy: float) -> None:
        if epoch == 2:
            with torch.no_grad():
                clf.network[0].weight.mul_(torch.nan)

    out = tmp_path / "out.safetensors"
    with pytest.raises(
        DivergedError, match=r"loss is nan in epoch 3, step 1: .* lower learning rate .* The best epoch before it, \d, is in"
    ):
        fit(clf, painted, out, recipe=QUICK.with_(epochs=5), workers=0, progress=False, on_epoch=spoil)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.isfinite(xattn.load(str(out), device="cpu", trust_code=True).predict(networks.pictures(1))).all()
    assert torch.isfinite(clf.predict(networks.pictures(1))).all()
    assert all(p.grad is None for p in clf.parameters())
    with pytest.raises(DivergedError, match=r"(nan|inf)"):  # at once: nothing was finished, and nothing is written
        fit(fresh(), painted, tmp_path / "other.safetensors", recipe=QUICK.with_(epochs=1, lr=1e30), workers=0, progress=False)
    assert not (tmp_path / "other.training" / "best.ckpt").exists()
    fit(fresh(), painted, tmp_path / "other.safetensors", recipe=QUICK.with_(epochs=1), workers=0, progress=False)  # the folder is free


def test_another_training_in_the_same_folder_is_refused(painted: Path, tmp_path: Path) -> None:
    fit(fresh(), painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=1), workers=0, progress=False)
    with pytest.raises(RunError, match=r"holds another training \(recipe: epochs was 1, is 2\): give another --out"):
        fit(fresh(), painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=2), workers=0, progress=False)
    with pytest.raises(RunError, match="seed was 0, is 1"):
        fit(fresh(), painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=1), seed=1, workers=0, progress=False)


def test_a_training_that_an_earlier_version_began_goes_on(painted: Path, tmp_path: Path) -> None:
    fit(fresh(), painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=1), workers=0, progress=False)
    path = tmp_path / "out.training" / "training.json"
    settings = json.loads(path.read_text())
    for name in ("ranking", "margin", "local_lr"):
        del settings["recipe"][name]
    del settings["patches"]
    path.write_text(json.dumps(settings))
    fit(fresh(), painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=1), workers=0, progress=False)
    settings["patches"] = "those of a file"
    path.write_text(json.dumps(settings))
    with pytest.raises(RunError, match="patches was those of a file, is None"):
        fit(fresh(), painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=1), workers=0, progress=False)


def test_early_stop_looks_at_the_validation_loss_and_is_the_end(painted: Path, tmp_path: Path) -> None:
    recipe = QUICK.with_(epochs=50, lr=1e-12, patience=2)
    fitted = fit(fresh(), painted, tmp_path / "out.safetensors", recipe=recipe, workers=0, progress=False)
    assert fitted.epochs < 10
    again = fit(fresh(), painted, tmp_path / "out.safetensors", recipe=recipe, workers=0, progress=False)
    assert again == fitted
    better = fit(fresh(), painted, tmp_path / "better.safetensors", recipe=recipe.with_(epochs=6, lr=0.01), workers=0, progress=False)
    assert better.best == better.epochs == 6  # a loss that falls does not stop it


def test_statistics_stay_where_they_are_to_stay(painted: Path, tmp_path: Path) -> None:
    clf = fresh()
    before = state(clf)
    fit(clf, painted, tmp_path / "out.safetensors", recipe=QUICK.with_(freeze_statistics=True), workers=0, progress=False)
    after = state(clf)
    assert all(torch.equal(after[key], before[key]) for key in before if "running" in key or "batches" in key)
    assert not torch.equal(after["network.2.1.weight"], before["network.2.1.weight"])


def test_folders_called_as_the_classifier_s_classes_are_these_classes(painted: Path, tmp_path: Path) -> None:
    clf = xattn.attach(networks.small(4), head="ca-stream", input_size=32, resize=36, labels=["red", "grey", "green", "blue"])
    assert in_classes_of(clf, open_data(painted)).targets == (3,) * 12 + (2,) * 12 + (0,) * 12  # blue, green, red
    fit(clf, painted, tmp_path / "out.safetensors", recipe=Recipe(epochs=1), workers=0, progress=False)
    assert clf.labels == ("red", "grey", "green", "blue")
    other = xattn.attach(networks.small(3), head="ca-stream", input_size=32, resize=36, labels=["a", "b", "c"])
    with pytest.raises(InputError, match=r"which knows no class 'blue' of .*painted. Name the folders after its classes \(a, b, c"):
        fit(other, painted, tmp_path / "other.safetensors")


def test_what_cannot_be_trained_so_is_told_before_a_folder_is_made(painted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        InputError, match=r"precision 'bf16-true' would convert the weights of small from torch.float32 .* including frozen ones"
    ):
        fit(fresh(), painted, out, precision="bf16-true")
    clf = fresh("ca-stream")
    clf.multi_label = True
    with pytest.raises(InputError, match="is multi-label"):
        fit(clf, painted, out, task="classification")
    with pytest.raises(InputError, match="one picture per class: nothing can be held out"):
        fit(fresh(), paint(tmp_path / "few", count=1), out)
    assert not (tmp_path / "out.training").exists()


def test_a_setting_that_changes_the_crop_is_another_training(painted: Path, tmp_path: Path) -> None:
    fit(fresh(), painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=1), workers=0, progress=False)
    clf = xattn.attach(networks.small(5), head="br-npa:n=2", classes=5, input_size=32, resize=40, name="small")
    clf.head = fresh().head
    clf.class_count = 3
    with pytest.raises(RunError, match="preprocessing: resize was 36, is 40"):
        fit(clf, painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=1), workers=0, progress=False)


def test_two_processes_train_one_head(painted: Path, tmp_path: Path, factory: str) -> None:
    options = ["--preset", "full", "--epochs", "2", "--batch-size", "28", "--accelerator", "cpu", "--devices", "2", "--workers", "0"]
    shape = ["--input-size", "32", "--resize", "36", "--head", "br-npa:n=2", "--model", factory, "--data", str(painted)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "xattn.cli", "train", *options, *shape, "--out", "two.safetensors"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "two.safetensors\n"
    assert done.stderr.count("\nepoch 2 of 2: ") == 1
    assert xattn.load(str(tmp_path / "two.safetensors"), device="cpu", trust_code=True).trained


def test_gradient_norms_are_those_of_each_layer() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    layers(torch.ones(2, 3)).square().sum().backward()
    norms = gradient_norms(layers)
    assert list(norms) == ["0", "2"]
    both = torch.cat([layers[2].weight.grad.flatten(), layers[2].bias.grad])
    assert norms["2"] == pytest.approx(float(both.norm()))


def test_the_paper_s_schedule_divides_by_ten_every_thirty_epochs() -> None:
    factor = schedule_of(Recipe(epochs=90, schedule="step"), 90 * 7)
    assert [factor(step) for step in (0, 30 * 7 - 1, 30 * 7, 60 * 7, 90 * 7 - 1)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    cosine = schedule_of(Recipe(epochs=2), 10)
    assert [cosine(0), cosine(5), cosine(10)] == pytest.approx([1, 0.5, 0], abs=1e-12)
    optimiser = optimiser_of(Recipe(optimiser="sgd", lr=0.1), [nn.Parameter(torch.ones(1))])
    assert {key: optimiser.defaults[key] for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
    assert not optimiser.defaults["nesterov"]


def test_the_momentum_is_nesterov_s_where_it_is_published_so() -> None:
    for preset in ("re-identification", "few-shot-base"):
        weight = nn.Parameter(torch.ones(1))
        recipe = PRESETS[preset].with_(lr=0.1, weight_decay=0.0)
        optimiser = optimiser_of(recipe, [weight])
        for _ in range(2):
            weight.grad = torch.ones(1)
            optimiser.step()
        expected = 1 - 0.1 * (1 + 0.9) - 0.1 * (1 + 0.9 * (1 + 0.9))  # g + µ·v with v = µ·v + g
        assert float(weight.detach()) == pytest.approx(expected)
    with pytest.raises(SettingError, match=r"nesterov=True needs a momentum above 0: give one, or nesterov=False \(--no-nesterov\)"):
        Recipe(optimiser="sgd", nesterov=True, momentum=0.0)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train(precision: str, painted: Path, tmp_path: Path) -> None:
    clf = fresh("ca-stream")
    if precision == "64-true":
        clf = clf.double()
    fitted = fit(
        clf, painted, tmp_path / "out.safetensors", recipe=Recipe(epochs=2, batch_size=8), workers=0, progress=False, precision=precision
    )
    assert 0 < fitted.loss < 3
    assert next(clf.parameters()).dtype == (torch.float64 if precision == "64-true" else torch.float32)


def test_gap_is_trained_with_its_network_and_refused_alone(painted: Path, tmp_path: Path) -> None:
    clf = fresh("gap")
    assert fit(clf, painted, tmp_path / "out.safetensors", recipe=QUICK, workers=0, progress=False).epochs == 3
    with pytest.raises(InputError, match="gap has no weights of its own"):
        fit(clf, painted, tmp_path / "other.safetensors", recipe=Recipe(), workers=0, progress=False)


def test_wrong_labels_teachers_and_settings_are_told(painted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match=r"has 3 classes, small · ca-stream 5: .* \(--classes wnid"):
        fit(fresh("ca-stream", classes=5), painted, out)
    (tmp_path / "labels.csv").write_text("image,label\npainted/red/00.png,1\npainted/red/01.png,7\n")
    with pytest.raises(InputError, match=r"painted/red/01.png has label 7, outside the 3 classes of small · ca-stream"):
        fit(fresh("ca-stream"), tmp_path / "labels.csv", out)
    with pytest.raises(InputError, match="the teacher has 5 classes, small 3"):
        fit(fresh(), painted, out, teacher=xattn.attach(networks.small(), input_size=32, resize=36))
    with pytest.raises(InputError, match="ca-stream has no dropout to set"):
        fit(fresh("ca-stream"), painted, tmp_path / "b.safetensors", recipe=Recipe(dropout=0.1))
    with pytest.raises(NameUnknownError, match="Did you mean 'head'"):
        fit(fresh(), painted, out, recipe="heads")
    with pytest.raises(SettingError, match=r"cannot have lr=-1.0, alpha=2.0"):
        Recipe(lr=-1.0, alpha=2.0)
    (painted / "red" / "03.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"training picture .*red/03.png: .* Replace it with an intact file and run the same command"):
        fit(fresh(), painted, tmp_path / "c.safetensors", recipe=QUICK, workers=0, progress=False)


def test_a_copy_is_trained_apart(painted: Path, tmp_path: Path) -> None:
    clf = fresh()
    before = state(clf)
    fit(copy.deepcopy(clf), painted, tmp_path / "out.safetensors", recipe=QUICK.with_(epochs=1), workers=0, progress=False)
    assert same(state(clf), before)
