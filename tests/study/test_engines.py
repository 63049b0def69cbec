"""Engines by name, and what travels between processes."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path

import pytest
import torch

import xattn
from xattn import errors
from xattn.errors import InputError, MissingPackageError, NameUnknownError
from xattn.models import Classifier


def test_ray_that_is_not_installed_says_how_to_install_it(
    tiny: Classifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(MissingPackageError, match=r"engine 'ray' needs the package 'ray', .* pip install 'xattn\[ray\]'"):
        xattn.Study([tiny], images=folder, out=tmp_path / "run", engine="ray")
    assert not (tmp_path / "run").exists()


def test_an_unknown_engine_and_actors_without_ray_are_refused(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NameUnknownError, match="Did you mean 'ray'"):
        xattn.Study([tiny], images=folder, out=tmp_path / "run", engine="rya")
    with pytest.raises(InputError, match="actors are the processes of engine 'ray'.*got 2 for engine 'local'"):
        xattn.Study([tiny], images=folder, out=tmp_path / "run", actors=2)


def test_run_json_tells_the_engine_and_its_threads(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    xattn.Study([tiny], ["random"], ["sparsity"], folder, tmp_path / "run", workers=0, progress=False).run()
    used = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (used["engine"], used["threads"]) == ("local", torch.get_num_threads())


@pytest.mark.parametrize("kind", [getattr(errors, name) for name in errors.__all__])
def test_every_error_is_itself_after_a_way_between_processes(kind: type[errors.XattnError]) -> None:
    arguments = {NameUnknownError: ("method", "grad", ["grad-cam"]), MissingPackageError: ("timm", "timm", "'timm:x'")}
    made = kind(*arguments.get(kind, ("what is wrong",)))
    made.add_note("where")
    sent = pickle.loads(pickle.dumps(made))
    assert type(sent) is kind
    assert str(sent) == str(made)
    assert (sent.exit_code, sent.__notes__) == (made.exit_code, ["where"])
