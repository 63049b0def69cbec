"""Heads saved and loaded: beside a frozen network the head alone, else the whole."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import xattn
from tests import networks
from xattn.errors import InputError, UnsupportedError, UntrustedCodeError, WeightsError
from xattn.models import checkpoints

SHAPE = {"input_size": 32, "resize": 36, "device": "cpu"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    torch.save(networks.small(7).state_dict(), path)
    return path


def factory(tmp_path: Path) -> str:
    """A file with a factory, so that a network can be built again by a name."""
    path = tmp_path / "mine.py"
    path.write_text("from tests import networks\n\n\ndef build():\n    return networks.small(7)\n")
    return f"{path}:build"


@pytest.mark.parametrize("head", ["ca-stream:start=1", "br-npa:n=2", "b-cnn"])
def test_beside_a_network_as_it_was_loaded_the_head_alone_is_saved(head: str, tmp_path: Path, weights: Path, images: Tensor) -> None:
    clf = xattn.load(factory(tmp_path), weights=weights, head=head, **SHAPE)
    clf.trained = True
    clf.save(str(tmp_path / "head.safetensors"))
    with safe_open(tmp_path / "head.safetensors", "pt") as opened:
        assert all(key.startswith("head.") for key in opened.keys())  # noqa: SIM118  # it is no dict
    again = xattn.load(str(tmp_path / "head.safetensors"), device="cpu", trust_code=True)
    assert torch.equal(again.predict(images), clf.predict(images))
    assert (again.name, again.head_name, again.trained) == (clf.name, head, True)
    assert again.preprocessing == clf.preprocessing
    weights.rename(tmp_path / "moved.pth")
    with pytest.raises(
        WeightsError, match=r"holds a head for .*mine.py:build with the weights .*net.pth, .* Give their location with weights"
    ):
        xattn.load(str(tmp_path / "head.safetensors"), device="cpu", trust_code=True)
    moved = xattn.load(str(tmp_path / "head.safetensors"), weights=tmp_path / "moved.pth", device="cpu", trust_code=True)
    assert torch.equal(moved.predict(images), clf.predict(images))


def test_a_head_is_refused_on_other_weights(tmp_path: Path, weights: Path) -> None:
    clf = xattn.load(factory(tmp_path), weights=weights, head="ca-stream", **SHAPE)
    clf.save(str(tmp_path / "head.safetensors"))
    other = networks.small(7)
    with torch.no_grad():
        other[0].weight.add_(1)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="the head was trained with other weights"):
        xattn.load(str(tmp_path / "head.safetensors"), weights=tmp_path / "other.pth", device="cpu", trust_code=True)


def test_a_network_that_was_tuned_is_saved_whole_with_its_resolution_and_classes(tmp_path: Path, weights: Path, images: Tensor) -> None:
    with pytest.warns(UserWarning, match="fresh classifier of 3 classes"):
        clf = xattn.load(factory(tmp_path), weights=weights, head="br-npa", classes=3, high_res=["3"], **SHAPE)
    assert clf.stages[-1].size == (16, 16)
    with torch.no_grad():
        clf.network[0].weight.mul_(1.5)
    clf.labels = ("a", "b", "c")
    clf.save(str(tmp_path / "whole.safetensors"))
    again = xattn.load(str(tmp_path / "whole.safetensors"), device="cpu", trust_code=True)  # nothing is said: its classifier is not fresh
    assert torch.equal(again.predict(images), clf.predict(images))
    assert again.stages[-1].size == (16, 16)
    assert again.labels == ("a", "b", "c")
    assert not again.trained
    with pytest.raises(InputError, match="holds its own weights"):
        xattn.load(str(tmp_path / "whole.safetensors"), weights=weights, device="cpu", trust_code=True)
    again.save(str(tmp_path / "again.safetensors"))
    assert torch.equal(xattn.load(str(tmp_path / "again.safetensors"), device="cpu", trust_code=True).predict(images), clf.predict(images))


def test_a_student_begins_with_its_teacher_s_weights_or_is_told_why_not(tmp_path: Path, weights: Path, images: Tensor) -> None:
    teacher = xattn.load(factory(tmp_path), weights=weights, head="br-npa", **SHAPE)
    with torch.no_grad():
        teacher.network[0].weight.mul_(1.5)
        teacher.head.linear.bias.add_(1)
    student = xattn.load(factory(tmp_path), weights=weights, head="br-npa", high_res=["3"], **SHAPE)
    student.start_from(teacher)
    assert all(torch.equal(student.state_dict()[key], value) for key, value in teacher.state_dict().items())
    other = xattn.load(factory(tmp_path), weights=weights, head="br-npa:n=2", **SHAPE)
    with pytest.raises(WeightsError, match=r"of br-npa on .* do not fit BRNPAHead: 1 shapes differ"):
        other.start_from(teacher)


def test_a_head_on_a_module_in_hand_is_not_saved(tmp_path: Path) -> None:
    clf = xattn.attach(networks.small(), head="ca-stream", input_size=32, resize=36)
    with pytest.raises(UnsupportedError, match="rebuild"):
        clf.save(str(tmp_path / "x.safetensors"))


def test_a_torn_or_foreign_file_is_told(tmp_path: Path, weights: Path) -> None:
    clf = xattn.load(factory(tmp_path), weights=weights, head="ca-stream", **SHAPE)
    path = tmp_path / "head.safetensors"
    clf.save(str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="could not be read"):
        xattn.load(str(path), device="cpu", trust_code=True)


HOSTILE = ["os:abort", "http.server:test", "code:interact", "evil.py:build", "{folder}/evil.py:build"]


def planted(folder: Path, source: str, **changes: object) -> Path:
    """A file of ours whose header was rewritten, beside code that leaves a mark when it is imported or called."""
    mark = f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).touch()\n"
    build = "def build():\n    from tests import networks\n    return networks.small(7)\n"
    (folder / "evil.py").write_text(f"{mark}\n\n{build}")
    clf = xattn.load(factory(folder), head="ca-stream", **SHAPE)
    clf.save(str(folder / "honest.safetensors"))
    with safe_open(folder / "honest.safetensors", "pt") as opened:
        header = json.loads(opened.metadata()[checkpoints.HEADER])
    header["source"]["model"] = source.format(folder=folder)
    header |= changes
    save_file(load_file(folder / "honest.safetensors"), folder / "planted.safetensors", metadata={checkpoints.HEADER: json.dumps(header)})
    return folder / "planted.safetensors"


@pytest.mark.parametrize("source", HOSTILE)
def test_a_file_that_names_code_is_refused_and_nothing_of_it_runs(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = planted(tmp_path, source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        UntrustedCodeError, match=r"would import that code and run it\. If you trust .* --trust-code, .* --weights .*planted"
    ):
        xattn.load(str(path), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_code_that_is_trusted_runs(tmp_path: Path, images: Tensor) -> None:
    path = planted(tmp_path, "{folder}/evil.py:build")
    clf = xattn.load(str(path), device="cpu", trust_code=True)
    assert (tmp_path / "ran").exists()
    assert clf.head_name == "ca-stream"
    assert str(pickle.loads(pickle.dumps(UntrustedCodeError("sent to another process")))) == "sent to another process"


@pytest.mark.parametrize("flags", [{"forward": True}, {"transform_input": "yes"}, {"training": False}, {"__class__": True}])
def test_a_header_sets_no_attribute_but_what_was_ever_written(flags: dict[str, object], tmp_path: Path) -> None:
    path = planted(tmp_path, "{folder}/evil.py:build", build=flags)
    with pytest.raises(WeightsError, match="which xattn never writes: do not trust the file|true or false is needed"):
        xattn.load(str(path), device="cpu", trust_code=True)


@pytest.mark.parametrize("head", ["ca-stream", "br-npa"])
@pytest.mark.parametrize("tuned", [False, True])
def test_the_user_names_the_network_of_a_file_without_trusting_it(head: str, tuned: bool, tmp_path: Path, images: Tensor) -> None:
    clf = xattn.load(factory(tmp_path), head=head, labels=list("abcdefg"), **SHAPE)
    if tuned:
        with torch.no_grad():
            clf.network[0].weight.mul_(1.5)
    clf.trained = True
    clf.save(str(tmp_path / "head.safetensors"))
    again = xattn.load(factory(tmp_path), weights=tmp_path / "head.safetensors", device="cpu")
    assert torch.equal(again.predict(images), clf.predict(images))
    assert (again.name, again.head_name, again.labels, again.trained) == (factory(tmp_path), head, clf.labels, True)
    assert again.preprocessing == clf.preprocessing
    with pytest.raises(InputError, match=r"head.safetensors' has its own head"):
        xattn.load(factory(tmp_path), weights=tmp_path / "head.safetensors", head="b-cnn", device="cpu")


def test_what_xattn_builds_by_name_needs_no_trust(images: Tensor, tmp_path: Path) -> None:
    clf = xattn.load("birds:gap", head="br-npa")
    clf.save(str(tmp_path / "head.safetensors"))
    again = xattn.load(str(tmp_path / "head.safetensors"), device="cpu")
    assert again.head_name == "br-npa"


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "backbone.", "_orig_mod.encoder.", "student.module."])
def test_any_wrapper_s_prefix_is_removed_and_what_is_beside_it_is_listed(
    prefix: str, tmp_path: Path, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    trained = networks.small(7)
    state = {f"{prefix}{key}": value + 1 for key, value in trained.state_dict().items()}
    beside = {"criterion.weight": torch.ones(7), "n_averaged": torch.tensor(3), "ema.1": torch.ones(1), "ema.2": torch.ones(1)}
    torch.save({"state_dict": beside | state, "epoch": 3}, tmp_path / "wrapped.ckpt")
    clf = xattn.load(factory(tmp_path), weights=tmp_path / "wrapped.ckpt", **SHAPE)
    assert all(torch.equal(value, trained.state_dict()[key] + 1) for key, value in clf.network.state_dict().items())
    assert "left out of the weights, as they are not the network's: criterion.weight, n_averaged, ema.* (2)" in caplog.text


def test_a_loss_beside_a_network_without_prefix_is_left_out_but_layers_of_another_network_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = networks.small(7).state_dict()
    torch.save({**state, "loss.weight": torch.ones(7)}, tmp_path / "loss.pth")
    xattn.load(factory(tmp_path), weights=tmp_path / "loss.pth", **SHAPE)
    assert "loss.weight" in caplog.text
    torch.save({**state, "2.9.weight": torch.ones(7)}, tmp_path / "deeper.pth")
    with pytest.raises(WeightsError, match=r"1 keys unknown \(2\.9\.weight\)"):
        xattn.load(factory(tmp_path), weights=tmp_path / "deeper.pth", **SHAPE)


@pytest.mark.parametrize(("plain", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema")])
def test_of_plain_and_averaged_weights_the_plain_ones_are_loaded_and_both_are_named(
    plain: str, averaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = networks.small(7).state_dict()
    average = {f"module.{key}": value + 1 for key, value in state.items()}
    torch.save({averaged: average, plain: state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, tmp_path / "both.pth")
    clf = xattn.load(factory(tmp_path), weights=tmp_path / "both.pth", **SHAPE)
    assert all(torch.equal(value, state[key]) for key, value in clf.network.state_dict().items())
    assert f"'{plain}' is loaded; it also holds '{averaged}'" in caplog.text
    assert f"weights_only=True)['{averaged}'], 'other.pth')" in caplog.text
    torch.save({averaged: average, "epoch": 3}, tmp_path / "averaged.pth")
    clf = xattn.load(factory(tmp_path), weights=tmp_path / "averaged.pth", **SHAPE)
    assert all(torch.equal(value, state[key] + 1) for key, value in clf.network.state_dict().items())


def test_a_copy_under_the_name_of_an_average_is_not_the_network_s(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = networks.small(7).state_dict()
    both = {f"ema_model.{key}": value + 1 for key, value in state.items()} | {f"net.{key}": value for key, value in state.items()}
    torch.save(both, tmp_path / "both.pth")
    clf = xattn.load(factory(tmp_path), weights=tmp_path / "both.pth", **SHAPE)
    assert all(torch.equal(value, state[key]) for key, value in clf.network.state_dict().items())
    assert "ema_model.* (" in caplog.text


def test_one_of_several_unnamed_state_dicts_must_be_chosen(tmp_path: Path) -> None:
    state = networks.small(7).state_dict()
    torch.save({"student": state, "teacher": state}, tmp_path / "two.pth")
    with pytest.raises(WeightsError, match=r"several state dicts: student, teacher\. Keep one: torch\.save\(.*\['student'\]"):
        xattn.load(factory(tmp_path), weights=tmp_path / "two.pth", **SHAPE)
    torch.save({"student": state, "step": 3}, tmp_path / "one.pth")
    assert xattn.load(factory(tmp_path), weights=tmp_path / "one.pth", **SHAPE).class_count == 7


class Note:
    """An object beside the weights."""


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        (lambda state: networks.small(7), "torch.nn.modules.container.Sequential"),
        (lambda state: {"state_dict": state, "note": Note()}, "tests.models.test_checkpoints.Note"),
        (lambda state: state | {"root": Path()}, "pathlib.*.PosixPath"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_object_in_the_way_is_named_with_the_two_lines_that_convert_the_file(
    kept: Any, named: str, zipped: bool, tmp_path: Path
) -> None:
    torch.save(kept(networks.small(7).state_dict()), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=rf"hold more than tensors: {named} is in the way, and reading it would run code") as caught:
        xattn.load(factory(tmp_path), weights=tmp_path / "whole.pt", **SHAPE)
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("    ")]
    assert len(lines) == 2
    if "Posix" in named:  # which the lines keep, so the reader must leave it out
        return
    exec("\n".join(lines), {"torch": torch})  # as the user would
    assert xattn.load(factory(tmp_path), weights=tmp_path / "whole.weights.pth", **SHAPE).class_count == 7


@pytest.mark.parametrize("zipped", [True, False])
def test_namespaces_and_numpy_scalars_beside_the_weights_are_skipped(zipped: bool, tmp_path: Path) -> None:
    state = networks.small(7).state_dict()
    beside = {"args": argparse.Namespace(lr=0.1, best=np.float64(2)), "acc": np.float32(1), "epoch": np.int64(3), "flag": np.bool_(True)}
    torch.save({"state_dict": state, **beside}, tmp_path / "best.pth", _use_new_zipfile_serialization=zipped)
    found = checkpoints.read_weights(tmp_path / "best.pth")
    assert all(torch.equal(found[key], value) for key, value in state.items())
    torch.save({"state_dict": state, "args": argparse.Namespace(root=Path())}, tmp_path / "path.pth")
    with pytest.raises(WeightsError, match=r"pathlib\..*PosixPath is in the way"):
        checkpoints.read_weights(tmp_path / "path.pth")
    with pytest.raises(pickle.UnpicklingError, match="argparse.Namespace"):  # allowed as long as a file is read
        torch.load(tmp_path / "path.pth", weights_only=True)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_what_is_no_file_of_tensors_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("a: 1")
    with pytest.raises(WeightsError, match="no PyTorch file, or a damaged one"):
        checkpoints.read_weights(tmp_path / "text.pth")
    torch.save({"state_dict": {}, "note": Note()}, tmp_path / "other.pth", pickle_protocol=4)
    with pytest.raises(WeightsError, match=r"are not pickled as by torch.save"):
        checkpoints.read_weights(tmp_path / "other.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_torchscript_archive_is_refused_with_the_lines_that_convert_it(tmp_path: Path) -> None:
    torch.jit.trace(networks.small(7), torch.rand(1, 3, 32, 32)).save(tmp_path / "traced.pt")
    with pytest.raises(WeightsError, match="TorchScript archive, which holds code") as caught:
        checkpoints.read_weights(tmp_path / "traced.pt")
    exec("\n".join(line.strip() for line in str(caught.value).splitlines() if line.startswith("    ")), {"torch": torch})
    assert xattn.load(factory(tmp_path), weights=tmp_path / "traced.weights.pth", **SHAPE).class_count == 7


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_without_the_counters_of_batch_norms_loads_as_old_ones_are(prefix: str, tmp_path: Path, images: Tensor) -> None:
    state = networks.small(7).state_dict()
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert counters
    torch.save({f"{prefix}{key}": value for key, value in state.items() if key not in counters}, tmp_path / "old.pth")
    clf = xattn.load(factory(tmp_path), weights=tmp_path / "old.pth", **SHAPE)
    expected = xattn.attach(networks.small(7), input_size=32, resize=36)
    assert torch.equal(clf.predict(images[:2]), expected.predict(images[:2]))
