"""A training of each task that is killed goes on to the weights of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import xattn
from tests.training.killing import CUT, WHOLE, trained_with_and_without_a_kill
from xattn.birds import export_individuals, export_parts, export_voc
from xattn.cli import main

PERSON = ["--model", "birds:gap", "--high-res", "layer4", "--head", "dg-net:width=8", "--input-size", "64,32", "--resize", "64,32"]
STREET = ["--model", "ocr:birds:gap:width=8,keys=4", "--input-size", "16", "--resize", "16", "--preset", "ocr"]
LABELS = ["--model", "birds:gap", "--head", "gap", "--input-size", "32", "--resize", "32", "--preset", "voc"]


def data_of(task: str, folder: Path) -> str:
    if task == "re-identification":
        return f"market:{export_individuals(folder, train=3, test=2, cameras=2, each=3, distractors=1, junk=1)}"
    if task == "multi-label":
        return f"voc:{export_voc(folder, train=16, validation=4)}"
    return f"cityscapes:{export_parts(folder, train=12, validation=2)}"


@pytest.mark.parametrize(("task", "network"), [("re-identification", PERSON), ("multi-label", LABELS), ("segmentation", STREET)])
def test_a_training_that_is_killed_goes_on_to_the_same_weights_and_is_scored(
    task: str, network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = data_of(task, tmp_path / "birds")

    def arguments(out: str) -> list[str]:
        options = ["--epochs", "12", "--batch-size", "4", "--accelerator", "cpu", "--workers", "0", "--seed", "3"]
        return ["train", "--task", task, "--data", place, "--out", out, *network, *options]

    monkeypatch.chdir(tmp_path)
    trained_with_and_without_a_kill(arguments)
    whole, cut = (xattn.load(name, device="cpu").state_dict() for name in (WHOLE, CUT))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(cut[key], value) for key, value in whole.items())
    vectors = ["--output", "vectors"] if task == "re-identification" else []
    scored = CliRunner().invoke(
        main, ["evaluate", "cut.safetensors", *vectors, "--task", task, "--data", place, "--workers", "0", "--device", "cpu"]
    )
    assert scored.exit_code == 0, scored.output
    assert {"re-identification": "rank-1 ", "multi-label": "mAP ", "segmentation": "mIoU "}[task] in scored.stdout
