"""A training on the command line that is killed and resumed, and the same one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from xattn.cli import main

CUT, WHOLE = "cut.safetensors", "whole.safetensors"


def trained_with_and_without_a_kill(arguments: Callable[[str], list[str]]) -> None:
    """Trains `CUT` in a process that is killed after its first epoch or later, resumes it, and trains `WHOLE`, in the current folder.

    Args:
        arguments: of the command line, for the file that it writes.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, "-m", "xattn.cli", *arguments(CUT)], env=environment, stderr=subprocess.DEVNULL)
    last, deadline = Path(CUT).with_suffix(".training") / "last.ckpt", time.monotonic() + 240
    while not last.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL  # it was in the middle
    assert last.exists()
    for name in (CUT, WHOLE):
        done = CliRunner().invoke(main, arguments(name))
        assert done.exit_code == 0, done.output
        assert done.stdout == f"{name}\n"
