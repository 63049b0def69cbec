"""What holds of the package as a whole: one checkout at a time, and examples that run."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xattn

ROOT = Path(__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(xattn.__path__, "xattn.") if "__main__" not in module.name)


def checkout(folder: Path) -> Path:
    """A second checkout, with what importing needs."""
    for name in ("xattn", "metrics", "cli"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    return folder


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["xattn", "xattn.metrics", "xattn.cli.listing"])
def test_two_checkouts_are_not_mixed(module: str, tmp_path: Path) -> None:
    """This one is installed; Python run in another finds `xattn` there, and `xattn.metrics` here."""
    other = checkout(tmp_path / "other")
    mixed = run(f"import {module}", other)
    assert mixed.returncode != 0
    told = mixed.stderr.splitlines()[-1]
    assert "two checkouts of xattn are mixed" in told or "is not installed" in told
    assert f"pip install -e {other}" in told


def test_the_installed_checkout_is_taken_from_anywhere(tmp_path: Path) -> None:
    for folder in (ROOT, tmp_path, ROOT / "benchmarks"):
        found = run("import xattn, xattn.metrics, xattn.cli; print(xattn.__file__)", folder)
        assert found.returncode == 0, found.stderr
        assert Path(found.stdout.strip()) == Path(xattn.__file__)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    outcome = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.failed == 0


def test_there_are_examples() -> None:
    assert sum(">>> " in Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8") for name in MODULES) >= 7
