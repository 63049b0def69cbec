"""kill -9 at random moments of a run, then the same command again: nothing is lost and nothing changes.

One kill as the folder appears and three later; XATTN_KILLS=20 for twenty.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tests import networks

KILLS = int(os.environ.get("XATTN_KILLS", "3"))


def command(images: Path, out: Path) -> list[str]:
    options = "--input-size 32 --resize 36 --batch-size 2 --workers 1 --device cpu --method grad-cam --method random --method edges"
    metrics = "--metric average-drop --metric insertion --metric deletion-correlation --metric sparsity"
    model = f"{networks.__file__}:slow"
    return [sys.executable, "-m", "xattn.cli", "explain", str(images), "--model", model, "--out", str(out), *f"{options} {metrics}".split()]


def environment(pause: float) -> dict[str, str]:
    root = str(Path(networks.__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "XATTN_TEST_SLEEP": str(pause)}


def test_a_run_that_is_killed_again_and_again_ends_with_the_scores_of_one_that_was_not(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, picture in enumerate(networks.pictures(8 * KILLS, size=40)):
        Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(images / f"{number:03d}.png")
    (images / "bad.png").write_bytes(b"")
    whole = subprocess.run(command(images, tmp_path / "whole"), env=environment(0), capture_output=True, text=True, check=False)
    assert whole.returncode == 3, whole.stderr

    out, chance = tmp_path / "killed", random.Random(0)
    early = subprocess.Popen(command(images, out), env=environment(0.02), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while early.poll() is None and not out.exists():  # as soon as there is a folder
        time.sleep(0.001)
    os.kill(early.pid, signal.SIGKILL)
    early.communicate()
    counts = [0]
    for _ in range(KILLS):
        run = subprocess.Popen(command(images, out), env=environment(0.02), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while run.poll() is None and time.monotonic() < deadline and len(list(out.glob("parts/*.parquet"))) <= counts[-1]:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        counts.append(len(list(out.glob("parts/*.parquet"))))
    assert counts == sorted(set(counts)), "every run did something that the next one kept"
    assert counts[-1] < -(-(8 * KILLS + 1) // 2), "the last kill came before the end"

    last = subprocess.run(command(images, out), env=environment(0), capture_output=True, text=True, check=False)
    assert last.returncode == 3, last.stderr
    assert f"done already: {2 * counts[-1]} of {8 * KILLS + 1} images" in last.stderr
    assert (out / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()
    assert (out / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()
