"""Weights files of others: read without executing anything in them, and fitted to a network."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import xattn
from tests import networks
from tests.models.test_checkpoints import SHAPE, factory
from xattn.errors import WeightsError
from xattn.models.weights_files import read_weights


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
        (lambda state: {"state_dict": state, "note": Note()}, "tests.models.test_weights_files.Note"),
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
    found = read_weights(tmp_path / "best.pth")
    assert all(torch.equal(found[key], value) for key, value in state.items())
    torch.save({"state_dict": state, "args": argparse.Namespace(root=Path())}, tmp_path / "path.pth")
    with pytest.raises(WeightsError, match=r"pathlib\..*PosixPath is in the way"):
        read_weights(tmp_path / "path.pth")
    with pytest.raises(pickle.UnpicklingError, match="argparse.Namespace"):  # allowed as long as a file is read
        torch.load(tmp_path / "path.pth", weights_only=True)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_what_is_no_file_of_tensors_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("a: 1")
    with pytest.raises(WeightsError, match="no PyTorch file, or a damaged one"):
        read_weights(tmp_path / "text.pth")
    torch.save({"state_dict": {}, "note": Note()}, tmp_path / "other.pth", pickle_protocol=4)
    with pytest.raises(WeightsError, match=r"are not pickled as by torch.save"):
        read_weights(tmp_path / "other.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_torchscript_archive_is_refused_with_the_lines_that_convert_it(tmp_path: Path) -> None:
    torch.jit.trace(networks.small(7), torch.rand(1, 3, 32, 32)).save(tmp_path / "traced.pt")
    with pytest.raises(WeightsError, match="TorchScript archive, which holds code") as caught:
        read_weights(tmp_path / "traced.pt")
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
