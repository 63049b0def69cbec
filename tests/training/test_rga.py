"""A ResNet with relation-aware attention is trained by the command line, and its file is explained."""

from __future__ import annotations

from pathlib import Path

import torch
from click.testing import CliRunner

import xattn
from tests import networks
from xattn.cli import main


def test_the_command_line_trains_attention_and_network_for_the_classes_of_the_data(painted: Path, tmp_path: Path) -> None:
    name, out = "rga:birds:gap:height=16,width=16", tmp_path / "rga.safetensors"
    options = ["--epochs", "1", "--batch-size", "12", "--workers", "0", "--accelerator", "cpu"]
    done = CliRunner().invoke(main, ["train", "--model", name, "--data", str(painted), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    assert "head and network" in done.output
    clf = xattn.load(str(out), device="cpu")
    assert (clf.labels, clf.trained, clf.input_size) == (("blue", "green", "red"), True, (16, 16))
    counted = {
        key: int(value) for key, value in clf.network.state_dict().items() if key.endswith("num_batches_tracked") and ".relations." in key
    }
    assert len(counted) == 4 * 2 * 6
    assert set(counted.values()) == {3}  # three steps of an epoch reached every gate
    images = networks.pictures(2, size=16)
    maps = xattn.explain(clf, images, ["raw-attention", "grad-cam"])
    assert bool(torch.isfinite(maps.raw["raw-attention"]).all())
    assert not bool(maps.degenerate["raw-attention"].any())
