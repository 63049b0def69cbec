"""`xattn app` as a user types it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import xattn.app
from tests.test_package import modules_after
from xattn.app import serving
from xattn.cli import main
from xattn.models.sources import torchvision_names_on_disk


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else found(name, *rest))
    result = CliRunner().invoke(main, ["app"])
    assert result.exit_code == 1
    assert result.stderr == "error: xattn app needs the package 'gradio', which is not installed: pip install 'xattn[app]'\n"


def test_the_command_serves_what_it_is_given_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    @contextmanager
    def stopped(*arguments: Any, **options: Any) -> Iterator[str]:
        asked.append((arguments, options))
        raise KeyboardInterrupt
        yield ""

    monkeypatch.setattr(xattn.app, "served", stopped)
    arguments = ["app", "--model", "birds:gap", "--method", "rise:masks=20", "--device", "cpu", "--host", "0.0.0.0", "--port", "7861"]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stderr) == (0, "stopped.\n")
    assert asked == [((("birds:gap",), ("rise:masks=20",)), {"device": "cpu", "host": "0.0.0.0", "port": 7861})]


def test_the_help_loads_neither_torch_nor_gradio() -> None:
    loaded = modules_after("from xattn.cli import main; main(['app', '--help'], standalone_mode=False)")
    assert not loaded & {"torch", "gradio", "numpy", "PIL"}


def test_networks_of_torchvision_whose_weights_are_on_the_disk_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert torchvision_names_on_disk() == []
    kept = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-7ebf99e0.pth"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert torchvision_names_on_disk() == ["torchvision:mobilenet_v2"]


def test_there_are_pictures_to_try(tmp_path: Path) -> None:
    photographs_first, birds_first = (serving._examples(tmp_path, birds_first=first) for first in (False, True))
    assert birds_first[0] == photographs_first[-1] == tmp_path / "bird.png"
    assert sorted(birds_first) == sorted(photographs_first)
    assert len(birds_first) == 4
