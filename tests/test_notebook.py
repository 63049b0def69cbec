"""The notebook of the documentation runs, shows what it says, and names nothing of the machine that made it."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
OF_A_MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|Users|usr|var|work|opt|mnt|private)/|\b[A-Z]:\\|site-packages|0x[0-9a-f]{8}")


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def text_of(notebook: Any) -> str:
    """All but the pictures."""
    kept = [{kind: data for kind, data in output.get("data", {}).items() if kind != "image/png"} for output in outputs(notebook)]
    streams = [output.get("text", "") for output in outputs(notebook)]
    return json.dumps([[cell["source"] for cell in notebook["cells"]], kept, streams, notebook["metadata"]], ensure_ascii=False)


def kinds(notebook: Any) -> list[list[str]]:
    return [sorted(output.get("data", {output["output_type"]: ""})) for output in outputs(notebook)]


@pytest.fixture(scope="module")
def committed() -> Any:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_it_runs_anywhere_and_gives_the_outputs_that_are_committed(committed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = runpy.run_path(str(ROOT / ".ci" / "notebook.py"))["executed"]()
    assert kinds(made) == kinds(committed)
    assert ["image/png", "text/plain"] in kinds(made)
    assert ["text/html", "text/plain"] in kinds(made)
    said = text_of(made)
    assert not [place for place in (tempfile.gettempdir(), str(Path.home()), sys.prefix, str(ROOT), os.getcwd()) if place + "/" in said]
    assert not OF_A_MACHINE.search(said)


def test_what_is_committed_is_small_and_names_no_machine_and_no_error(committed: Any) -> None:
    assert NOTEBOOK.stat().st_size < 1_000_000
    assert not OF_A_MACHINE.search(text_of(committed))
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs(committed))
    assert set(committed["metadata"]) == {"kernelspec", "language_info"}


def test_its_page_holds_every_cell_and_picture_and_loads_nothing(committed: Any) -> None:
    pytest.importorskip("mkdocs")
    page, pictures = runpy.run_path(str(ROOT / "docs" / "hook.py"))["page_of"](committed)
    assert all("".join(cell["source"]) in page for cell in committed["cells"])
    assert re.findall(r"!\[.*?\]\((.*?)\)", page) == list(pictures)
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())
    assert not re.search(r"<script|https?://", page)
