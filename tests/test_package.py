"""What importing costs, and that the public names are there."""

from __future__ import annotations

import enum
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import xattn
from xattn import catalogue, explainers
from xattn.catalogue import is_control, is_direct
from xattn.cli.listing import listing
from xattn.explainers import methods
from xattn.heads import heads
from xattn.models import Classifier


def modules_after(code: str) -> set[str]:
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys, json; print(json.dumps(sorted(sys.modules)))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(json.loads(found.stdout.splitlines()[-1]))


HEAVY = {"torch", "torchvision", "numpy", "pandas", "matplotlib", "scipy", "captum", "timm", "pytorch_grad_cam", "PIL", "lightning"}


@pytest.mark.parametrize(
    "code",
    [
        "import xattn",
        "import xattn.errors, xattn.registry",
        "from xattn.cli import main; main(['--help'], standalone_mode=False)",
        "from xattn.cli import main; main(['explain', '--help'], standalone_mode=False)",
        "from xattn.cli import main; main(['train', '--help'], standalone_mode=False)",
    ],
)
def test_neither_the_package_nor_the_command_s_help_loads_torch_or_anything_heavy(code: str) -> None:
    loaded = modules_after(code)
    assert not loaded & HEAVY
    assert len(loaded) < 400


def test_explaining_loads_neither_matplotlib_nor_the_other_libraries() -> None:
    loaded = modules_after("import xattn; xattn.explain, xattn.load")
    assert "torch" in loaded
    assert not loaded & {"matplotlib", "captum", "timm", "pytorch_grad_cam", "lightning", "optuna"}


OF_ANY_RUN = ("grid", "heat", "ranks", "scatter")
NETWORKS = {
    "torch",
    "torchvision",
    "timm",
    "open_clip",
    "transformers",
    "lightning",
    "optuna",
    "captum",
    "pytorch_grad_cam",
    "scipy.stats",
    "sympy",
}


def test_what_needs_no_network_loads_none(tmp_path: Path, tiny: Classifier, folder: Path) -> None:
    out = tmp_path / "run"
    xattn.Study([tiny], ["grad-cam", "random"], ["average-drop", "sparsity"], folder, out, workers=0, progress=False).run()
    command = "from xattn.cli import main; main({}, standalone_mode=False)"
    for arguments in (
        ["compare", str(out), "--against", "random"],
        *(["figure", str(out), "--kind", kind, "--out", str(tmp_path / f"{kind}.pdf")] for kind in OF_ANY_RUN),
        ["overlay", str(out), "--out", str(tmp_path / "over"), "--maps", "--contour", "0.5"],
        *(["list", kind] for kind in (*catalogue.REGISTRIES, "models", "protocols")),
    ):
        loaded = modules_after(command.format(arguments))
        assert not loaded & NETWORKS, arguments
        assert ("matplotlib" in loaded) == (arguments[0] in ("figure", "overlay")), arguments
        assert arguments[0] != "list" or not loaded & HEAVY - {"PIL"}, arguments


def test_the_catalogue_is_that_of_the_sources() -> None:
    assert catalogue.current(), "xattn/catalogue.json is of other sources: run python .ci/tables.py"
    assert json.loads(catalogue.FILE.read_text(encoding="utf-8")) == json.loads(catalogue.written())


def test_the_catalogue_follows_every_file_that_registers_a_component() -> None:
    home = Path(str(importlib.util.find_spec("xattn").origin)).parent  # type: ignore[union-attr]
    for package, name in catalogue.REGISTRIES.values():
        for entry in getattr(importlib.import_module(package), name).entries.values():
            path = Path(inspect.getsourcefile(entry.obj) or "")
            place = path.relative_to(home) if path.is_relative_to(home) else path.relative_to(home.parent)
            if path.is_relative_to(home.parent):  # not a component of another test's
                assert place.as_posix() in catalogue._sources()


def test_without_a_catalogue_of_these_sources_the_registries_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stale = json.loads(catalogue.FILE.read_text(encoding="utf-8")) | {"sources": "others"}
    stale["heads"]["entries"] = {}
    (tmp_path / "catalogue.json").write_text(json.dumps(stale))
    code = f"""
import sys; from pathlib import Path; from xattn import catalogue
catalogue.FILE = Path({str(tmp_path)!r}) / "catalogue.json"
print(sorted(catalogue.declarations("heads")), "torch" in sys.modules)"""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for is_kept in (False, True):  # what was read is kept: the second time nothing is imported
        found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        assert found == f"{sorted(heads.entries)} {not is_kept}\n"


def test_a_component_of_the_user_s_own_module_is_listed_and_drawn_as_what_it_declares() -> None:
    name = "of-the-user-s-own"
    explainers.register(name, source="the user", control=True, direct=True)(lambda trace: trace.images.mean(dim=1))
    try:
        assert name in [entry["name"] for entry in listing("methods")]
        assert is_control(name)
        assert is_direct(name)
    finally:
        del methods.entries[name]
    assert not is_control(name)


class Mode(enum.Enum):
    ONE = 1


@dataclass(frozen=True)
class OfTheUser:
    """A method with settings that JSON has no word for."""

    needed: int
    mode: Mode = Mode.ONE
    names: list[str] = field(default_factory=list)

    def __call__(self, trace: explainers.Trace) -> torch.Tensor:
        return trace.images.mean(dim=1) * self.needed


def test_settings_that_json_has_no_word_for_are_declared_all_the_same() -> None:
    explainers.register("of-the-user", source="the user")(OfTheUser)
    try:
        assert not is_control("of-the-user:needed=2")
        (found,) = [entry for entry in listing("methods") if entry["name"] == "of-the-user"]
        assert found["settings"] == {"mode": "Mode.ONE"}
    finally:
        del methods.entries["of-the-user"]


@pytest.mark.parametrize(("command", "limit"), [(["-c", "import xattn"], 0.1), (["-m", "xattn.cli", "--help"], 0.3)])
def test_starting_is_quick(command: list[str], limit: float) -> None:
    def best(arguments: list[str]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(command) - best(["-c", "pass"]) < limit


def test_all_is_complete_and_every_name_loads() -> None:
    for name in xattn.__all__:
        assert getattr(xattn, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'explane'"):
        _ = xattn.explane
    assert set(xattn.__all__) <= set(dir(xattn))


def test_the_version_is_the_same_everywhere() -> None:
    root = Path(__file__).parents[1]
    assert f"version: {xattn.__version__}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{xattn.__version__}]" in (root / "CHANGELOG.md").read_text(encoding="utf-8")
