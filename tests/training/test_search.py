"""The search of settings: continued, pruned, its best saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import xattn
from tests.training.conftest import fresh
from xattn.cli import main
from xattn.errors import DivergedError, InputError, RunError, UnsupportedError
from xattn.training import Recipe
from xattn.training.fit import Fitted
from xattn.training.search import TEMPERATURES, search

SHAPE = {"input_size": 32, "resize": 36, "device": "cpu"}
QUICK = Recipe(backbone=True, epochs=2, batch_size=8)


def test_a_search_goes_on_keeps_the_best_and_leaves_the_classifier(
    painted: Path, tmp_path: Path, factory: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xattn")
    clf = xattn.load(factory, head="br-npa:n=2", **SHAPE)
    teacher = xattn.load(factory, head="br-npa:n=2", **SHAPE)
    before = {key: value.clone() for key, value in clf.state_dict().items()}
    out = tmp_path / "best.safetensors"
    options = {"recipe": QUICK, "teacher": teacher, "workers": 0, "accelerator": "cpu"}
    first = search(clf, painted, out, 2, **options)
    assert first.trials == 2
    found = search(clf, painted, out, 5, **options)
    assert found.trials == 5
    assert len([line for line in caplog.messages if line.startswith("trial ")]) == 5  # those of the first call not again
    assert capfd.readouterr().err == ""
    assert all(torch.equal(clf.state_dict()[key], value) for key, value in before.items())
    stored = json.loads((tmp_path / "best.json").read_text())
    assert stored["accuracy"] == found.score
    assert Recipe.from_json(stored["recipe"]) == found.recipe
    assert found.recipe.epochs == 2
    assert found.recipe.dropout is not None
    assert found.recipe.temperature in TEMPERATURES
    assert 0 <= found.recipe.alpha <= 0.9
    assert xattn.load(str(out), device="cpu", trust_code=True).trained
    with pytest.raises(RunError, match="holds another training"):
        search(clf, painted, out, 6, **{**options, "recipe": QUICK.with_(epochs=3)})


def test_trials_behind_the_median_are_pruned_and_diverged_ones_do_not_end_the_search(
    painted: Path, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = iter([60.0, 70.0, 80.0, -1.0, 10.0])

    def pretended(clf: object, data: object, out: Path, *, on_epoch, **_: object) -> Fitted:
        level = next(levels)
        if level < 0:
            raise DivergedError("the loss is nan")
        for epoch in (1, 2, 3):
            on_epoch(epoch, level + epoch)
        Path(out).write_bytes(b"weights")
        return Fitted(3, 3, 0.1, level, 6, Path(out).parent)

    monkeypatch.setattr("xattn.training.search.fit", pretended)
    clf = xattn.load(factory, head="ca-stream", **SHAPE)
    found = search(clf, painted, tmp_path / "best.safetensors", 5, recipe=Recipe(epochs=3), progress=False)
    assert (found.trials, found.pruned, found.score) == (5, 1, 80.0)
    assert found.recipe.dropout is None  # ca-stream has none
    assert [file.name for file in (tmp_path / "best.search").glob("*.safetensors")] == ["trial-002.safetensors"]


def pretend(monkeypatch: pytest.MonkeyPatch, **cut: BaseException) -> list[Path]:
    """Replaces the training of a trial by one that ends at once; returns the files of the calls.

    Args:
        monkeypatch: of the test.
        cut: what the first or second call raises: `first_at_end`, once its weights are written, or `second`.
    """
    calls: list[Path] = []

    def fit(clf: object, data: object, out: Path, **_: object) -> Fitted:
        calls.append(out)
        if len(calls) == 2 and "second" in cut:
            raise cut["second"]
        out.write_bytes(b"weights")
        if len(calls) == 1 and "first_at_end" in cut:
            raise cut["first_at_end"]
        return Fitted(1, 1, 0.1, 50.0, 6, out.parent)

    monkeypatch.setattr("xattn.training.search.fit", fit)
    return calls


def test_a_trial_that_was_cut_off_does_not_count(painted: Path, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, second=KeyboardInterrupt())
    clf = xattn.load(factory, head="ca-stream", **SHAPE)
    out = tmp_path / "best.safetensors"
    with pytest.raises(KeyboardInterrupt):
        search(clf, painted, out, 3, progress=False)
    assert search(clf, painted, out, 3, progress=False).trials == 3
    assert len(calls) == 4
    with pytest.raises(InputError, match="trials on one device"):
        search(clf, painted, out, 3, devices=2)


def test_weights_of_a_trial_that_was_cut_off_are_removed_even_before_any_other_ends(
    painted: Path, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, first_at_end=KeyboardInterrupt(), second=DivergedError("the loss is nan"))
    clf = xattn.load(factory, head="ca-stream", **SHAPE)
    out = tmp_path / "best.safetensors"
    with pytest.raises(KeyboardInterrupt):
        search(clf, painted, out, 2, progress=False)
    assert search(clf, painted, out, 2, progress=False).trials == 2
    assert [file.name for file in out.with_suffix(".search").glob("*.safetensors")] == ["trial-002.safetensors"]


def test_trials_of_a_module_in_hand_are_refused(painted: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="trials are saved by name: load it by a name"):
        search(fresh(), painted, tmp_path / "x.safetensors", 2)


def test_the_command_line_trains_searches_and_explains(
    painted: Path, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    shape = ["--input-size", "32", "--resize", "36"]
    base = ["train", "--model", factory, "--data", str(painted), "--accelerator", "cpu", "--workers", "0", *shape]

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, list(arguments))
        assert done.exit_code == code, done.output
        return done.output

    full = ["--head", "br-npa:n=2", "--epochs", "3", "--batch-size", "8", "--lr", "0.01"]
    said = run(*base, *full, "--out", "low.safetensors")
    assert "head and network" in said
    assert "reads 3 (16 × 8 × 8)" in said
    assert "kept epoch" in said
    assert "on 3 pictures" in said
    taught = run(*base, *full, "--high-res", "3", "--teacher", "low.safetensors", "--alpha", "0.3", "--out", "high.safetensors")
    assert "high.safetensors" in taught
    assert "starts from the weights of low.safetensors" in taught
    assert "reads 3 (16 × 16 × 16)" in taught
    (tmp_path / "five.py").write_text("from tests import networks\n\n\ndef build():\n    return networks.small(5)\n")
    fresh = run(*base, "--head", "b-cnn", "--epochs", "1", "--out", "b.safetensors", "--model", "five.py:build")
    assert "UserWarning" not in fresh
    note = run(*base, "--head", "br-npa", "--epochs", "1", "--out", "n.safetensors", "--model", "five.py:build")
    assert "note: br-npa on five.py:build starts with a fresh classifier of 3 classes: its own has 5 classes" in note
    assert xattn.load("high.safetensors", device="cpu", trust_code=True).stages[-1].size == (16, 16)
    assert "best of 2 trials" in run(*base, "--head", "ca-stream", "--epochs", "1", "--search", "2", "--out", "ca.safetensors")
    more = run(
        *base, "--epochs", "1", "--batch-size", "8", "--out", "more.safetensors", "--model", "low.safetensors", "--trust-code"
    )  # its own head goes on
    assert "br-npa:n=2" in more
    assert "head and network" in more
    assert "has its own head" in run(*base, "--head", "b-cnn", "--out", "x.safetensors", "--model", "low.safetensors", code=2)
    assert "has its own high_res" in run(*base, "--high-res", "3", "--out", "x.safetensors", "--model", "low.safetensors", code=2)
    assert "--trust-code" in run(*base, "--out", "x.safetensors", "--model", "low.safetensors", code=2)
    assert "must be a .safetensors file" in run(*base, "--out", "low.pth", code=2)
    assert "never trained" in run("explain", str(painted), "--model", factory, "--head", "ca-stream", *shape, "--out", "x", code=1)
    cheap = ["--metric", "sparsity", "--metric", "average-drop", "--workers", "0", "--device", "cpu"]
    both = ["--model", factory, "--model", "ca.safetensors", "--trust-code", "--method", "raw-attention", "--method", "grad-cam"]
    said = run("explain", str(painted), *both, *shape, *cheap, "--out", "run")
    assert "without raw-attention: this head has no attention" in said
    table = (tmp_path / "run" / "table.csv").read_text()
    assert table.count("ca-stream") == 2
    assert table.count(",gap,") == 1
    refused = run("explain", str(painted), "--model", factory, "--method", "raw-attention", *shape, "--out", "y", code=1)
    assert "shows a head's attention" in refused
    run("explain", str(painted), "--model", factory, "--head", "ca-stream", "--untrained", *shape, *cheap, "--out", "z")
