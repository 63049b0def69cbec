"""The benchmark of a GPU, where there is none: that it runs at toy size, refuses what it cannot do, and leaves out who cannot take part."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    for package in ("quantus", "torchcam"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("gpu")


def test_a_smoke_run_measures_all_jobs_on_a_transformer_and_makes_the_page(gpu: Any, tmp_path: Path) -> None:
    given = ["--device", "cpu", "--smoke", "--networks", "tiny_vit", "--data", str(tmp_path), "--out", str(tmp_path)]
    ran = CliRunner().invoke(gpu.main, [*given, "--page", "--results", str(tmp_path / "results")], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    entries = json.loads((tmp_path / "gpu.json").read_text())["entries"]
    assert [entry["job"] for entry in entries] == list(gpu.NAMES)
    assert not any(name.startswith(gpu.OF_OTHERS) for entry in entries for name in entry["contenders"])
    assert "legrad" in entries[2]["contenders"]["all at once"]["note"]
    page = (tmp_path / "results" / "README.md").read_text()
    assert "toy size" in page
    assert page.count("## ") == len(gpu.NAMES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(gpu: Any) -> None:
    said = CliRunner().invoke(gpu.main, [])
    assert said.exit_code == 2
    assert "no CUDA device here" in said.output
    assert "--smoke" in CliRunner().invoke(gpu.main, ["--device", "cpu"]).output
