"""One process at a time runs into a folder, and a folder that is deleted meanwhile is noticed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import networks
from xattn.errors import RunError
from xattn.models import Classifier
from xattn.study import Study
from xattn.study.engines import local
from xattn.study.folders import HOLDER, LOCK, LocalFolder

HOLD = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs into the folder `run`."""
    (tmp_path / "run").mkdir()
    held = [sys.executable, "-c", HOLD, str(tmp_path / "run" / LOCK)]
    process = subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    (tmp_path / "run" / HOLDER).write_text(f"process {process.pid} on {socket.gethostname()}")
    yield process
    process.kill()
    process.communicate()


def study(classifier: Classifier, out: Path) -> Study:
    images = [(picture, number % 2) for number, picture in enumerate(networks.pictures(4, size=32))]
    return Study([classifier], ["random"], ["sparsity"], images, out, batch_size=2, workers=0, tune="off", progress=False)  # type: ignore[arg-type]


def test_the_second_process_says_who_the_first_is_and_leaves_its_parts(tiny: Classifier, tmp_path: Path, other: Any) -> None:
    alive = tmp_path / "run" / "parts" / f".0123.{other.pid}.unfinished"
    alive.parent.mkdir()
    alive.touch()
    with pytest.raises(RunError, match=f"in use: process {other.pid} on"):
        study(tiny, tmp_path / "run").run()
    LocalFolder(tmp_path / "run").tidy()
    assert alive.exists()
    other.kill()
    other.wait()
    assert not study(tiny, tmp_path / "run").run().failed  # a process that was killed holds nothing
    LocalFolder(tmp_path / "run").tidy()
    assert not alive.exists()
    assert not (tmp_path / "run" / HOLDER).exists()


def test_a_folder_that_is_deleted_in_mid_run_is_no_success(tiny: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = local.Executor.rows

    def rows(self: Any, group: int, batch: Any, wanted: Any) -> Any:
        if batch.number == 0:
            shutil.rmtree(tmp_path / "run")  # before the first part: all parts will be there, and run.json will not
        return whole(self, group, batch, wanted)

    monkeypatch.setattr(local.Executor, "rows", rows)
    with pytest.raises(RunError, match=r"no run\.json"):
        study(tiny, tmp_path / "run").run()


def test_a_run_and_a_load_leave_the_generator_of_torch_as_it_was(tiny: Classifier, tmp_path: Path) -> None:
    from xattn.models import load

    before = torch.random.get_rng_state()
    study(tiny, tmp_path / "run").run()
    load("birds:gap", head="b-cnn", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert os.path.exists(tmp_path / "run" / "table.csv")
