"""Makes pages of the site of what the repository keeps outside docs/, the results, how to contribute, the changes, and of the notebook."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/NOTES.md", "benchmarks/results/**/*.*")
LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds them, those outside docs/ at their paths from the root of the repository."""
    for pattern in OUTSIDE:
        for found in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, found.relative_to(ROOT).as_posix(), abs_src_path=str(found)))
    markdown, pictures = page_of(json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8")))
    files.append(File.generated(config, "notebook.md", content=markdown))
    for name, png in pictures.items():
        files.append(File.generated(config, name, content=png))
    return files


def page_of(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their names: it is read as the other pages are, with no script of its own."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"notebook-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![output of the cell above]({name})")
            elif "text/html" in data:
                parts.append("".join(data["text/html"]).replace('<table border="1" class="dataframe">', "<table>"))
            else:
                parts.append("```text\n" + "".join(data["text/plain"]).rstrip("\n") + "\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turns links as they hold in the repository into those of the site; what the site does not have keeps its name alone."""
    here = page.file.src_uri
    outside = not (ROOT / "docs" / here).exists() and (ROOT / here).exists()
    in_repository = here if outside else f"docs/{here}"

    def moved(found: re.Match[str]) -> str:
        place = normpath(join(dirname(in_repository), found[2]))
        place = f"{place}/README.md" if (ROOT / place).is_dir() else place
        target = "index.md" if place == "README.md" else place.removeprefix("docs/").replace(".ipynb", ".md")
        if files.get_file_from_path(target) is None:
            return found[1]
        return f"[{found[1]}]({relpath(target, dirname(here) or '.')}{found[3] or ''})"

    return LINK.sub(moved, markdown)
