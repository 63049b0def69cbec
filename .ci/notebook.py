"""Executes docs/notebook.ipynb from its beginning and writes it back with its outputs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
SECONDS = 600  # a cell may take, on a slow machine


def executed(file: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel, which starts in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an exception.
    """
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}, record_timing=False).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:  # PIL also gives a JPEG
                output["data"] = {kind: data[kind] for kind in ("image/png", "text/plain") if kind in data}
    notebook.metadata["language_info"] = {"name": "python"}  # the version of Python would change with the machine
    return notebook


def main() -> None:
    nbformat.write(executed(), NOTEBOOK)
    sys.stderr.write(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
