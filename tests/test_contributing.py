"""The components that CONTRIBUTING.md shows are picked up by everything, each from its one file.

As a command, `python tests/test_contributing.py` also writes what each took into that page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
LISTED = """
import json, runpy, sys
from xattn.birds import SketchBirds
from xattn.cli.listing import listing
print(json.dumps({kind: [entry["name"] for entry in listing(kind)] for kind in sys.argv[1:]}))
runpy.run_path(".ci/tables.py", run_name="__main__")
SketchBirds("test", 2).export("birds")
"""
KINDS = {"xattn/explainers": "methods", "metrics": "metrics", "xattn/heads": "heads", "xattn/figures": "figures"}


@dataclass(frozen=True)
class Addition:
    """A component of the page: its file and its code."""

    file: str
    code: str

    @property
    def name(self) -> str:
        return Path(self.file).stem.replace("_", "-")

    @property
    def kind(self) -> str:
        return KINDS[str(Path(self.file).parent)]

    @property
    def lines(self) -> int:
        """Lines of code and docstring, without imports, blank lines and the module's own docstring."""
        body = self.code.split("\n", 1)[1]
        return sum(bool(line.strip()) and not re.match(r"(from|import) ", line) for line in body.splitlines())


def additions() -> list[Addition]:
    found = re.findall(r"^`([\w/]+\.py)`\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Addition(file, code) for file, code in found]


class Copy:
    """The package in a folder as it is installed, with its tests and its documentation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        skipped = shutil.ignore_patterns("__pycache__", ".mypy_cache")
        shutil.copytree(ROOT / "xattn", folder / "xattn", ignore=skipped)
        for name in ("metrics", "cli"):
            shutil.copytree(ROOT / name, folder / "xattn" / name, ignore=skipped)
        for name in ("tests", ".ci", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=skipped)
        for name in ("README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)

    def add(self, addition: Addition) -> None:
        place = addition.file if addition.file.startswith("xattn/") else f"xattn/{addition.file}"
        (self.folder / place).write_text(addition.code, encoding="utf-8")

    def run(self, *command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def check(self, additions: list[Addition]) -> None:
        """Whether the lists, the documentation's tables, a run, a figure and the contract tests have seen them."""
        listed = json.loads(self.run("-c", LISTED, *KINDS.values()))
        assert [addition.name for addition in additions if addition.name not in listed[addition.kind]] == []
        page = "".join(file.read_text(encoding="utf-8") for file in sorted((self.folder / "docs").glob("*.md")))
        assert all(f"| `{addition.name}` |" in page for addition in additions)
        by_kind = {kind: [addition.name for addition in additions if addition.kind == kind] for kind in KINDS.values()}
        chosen = [*(f"--method={name}" for name in ["grad-cam", *by_kind["methods"]]), *(f"--metric={name}" for name in by_kind["metrics"])]
        chosen += [f"--head={name}" for name in ("gap", *by_kind["heads"])]
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        self.run("-m", "xattn.cli", "explain", "birds", "--model=birds:gap", *chosen, "--untrained", "--workers=0", "--out=run")
        scores = (self.folder / "run" / "scores.csv").read_text(encoding="utf-8")
        missing = [name for kind, names in by_kind.items() if kind != "figures" for name in names if f'"{name}"' not in scores]
        assert not missing
        for name in by_kind["figures"]:
            self.run("-m", "xattn.cli", "figure", "run", f"--kind={name}", "--out=figure.png")
            assert (self.folder / "figure.png").stat().st_size > 5000
        names = " or ".join(name for addition in additions for name in (addition.name, Path(addition.file).stem))
        tests = [f"tests/{name}.py" for name in ("explainers/test_contract", "metrics/test_contract", "test_packages")]
        wanted = f"({names}) and not 500_calls"
        outcome = self.run("-m", "pytest", "-vv", "-n", "0", "-p", "no:cacheprovider", *tests, "-k", wanted)
        assert [addition.name for addition in additions if addition.kind != "figures" and addition.name not in outcome] == []


def test_every_kind_of_component_is_shown() -> None:
    assert [(addition.kind, addition.name) for addition in additions()] == [
        ("methods", "gradient-times-image"),
        ("metrics", "gini"),
        ("metrics", "steadiness"),
        ("heads", "norm-pool"),
        ("figures", "mean-masks"),
    ]
    lines = {addition.name: addition.lines for addition in additions()}
    assert lines["gradient-times-image"] <= 10
    assert lines["gini"] <= 15


def test_what_the_page_shows_is_picked_up_by_everything(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy")
    for addition in additions():
        copy.add(addition)
    copy.check(additions())


def test_a_component_that_is_not_there_is_not_picked_up(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy")
    with pytest.raises(AssertionError):
        copy.check(additions()[:1])


def main() -> None:
    """Adds one after the other, and writes the table."""
    import tempfile

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, addition in enumerate(additions()):
            copy = Copy(Path(folder) / str(number))
            start = time.perf_counter()
            copy.add(addition)
            copy.check([addition])
            rows.append(f"| `{addition.name}` | `{addition.file}` | {addition.lines} | {time.perf_counter() - start:.0f} |")
    table = "\n".join(["| component | file | lines | seconds |", "|---|---|---|---|", *rows])
    text = re.sub(
        "<!-- additions -->.*?<!-- /additions -->",
        f"<!-- additions -->\n{table}\n<!-- /additions -->",
        PAGE.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    PAGE.write_text(text, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
