"""Heads saved and loaded: beside a frozen network the head alone, else the whole."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

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
