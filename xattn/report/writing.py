"""Writes a report: one HTML file, or a folder if one file is too small."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from xattn.errors import InputError, RunError
from xattn.progress import Progress
from xattn.report.comparisons import compared
from xattn.report.contents import Contents, read_contents, too_large
from xattn.report.encoding import script_json
from xattn.report.index import BLOCK, block_of, index_of, order_of
from xattn.report.pictures import Pictures

LARGEST_FILE = 150 * 2**20  # bytes of one HTML file, which a browser opens in a few seconds
SIDE, SMALLEST_SIDE, LARGEST_SIDE = 224, 32, 1024
SCRIPTS = ("dom", "state", "data", "maps", "perturbing", "chart", "controls", "table", "filters", "gallery", "picture", "about", "app")
ARRIVED = "xattnBlock()"
DELAY_S = 2.0


def report(
    runs: Sequence[str | Path], out: str | Path, *, folder: bool = False, title: str | None = None, side: int = SIDE, progress: bool = True
) -> Path:
    """Writes an HTML report of runs: their table, pictures, maps and curves.

    It needs no network connection and no server. No model is run: the page holds what the runs store, and the networks' input crops, which
    are decoded again from where the runs found the pictures.

    Args:
        runs: run folders.
        out: the HTML file, or with `folder` a folder that is new, empty or holds a report.
        folder: write `index.html` and data files next to it, which the page loads when they are viewed. One file holds about 10,000
            pictures with six methods of 7 × 7 cells.
        title: title of the page; None: the names of the runs' folders.
        side: largest length of the pictures' longer side, in pixels.
        progress: after two seconds, show a progress bar if stderr is a terminal, log lines otherwise.

    Returns:
        The page.

    Raises:
        InputError: the runs hold no finished picture, or one file would be too large for a browser.
        RunError: a run folder is damaged, or the page cannot be written.
    """
    if not runs:
        raise InputError("a report needs at least one run folder; got none.")
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise InputError(f"the side of the pictures is from {SMALLEST_SIDE} to {LARGEST_SIDE} pixels; got {side}.")
    contents = read_contents(runs, None if folder else LARGEST_FILE)
    pictures = Pictures(contents, side)
    index = index_of(contents, pictures, title or _title(contents), compared(runs, contents.columns))
    out = Path(out)
    try:
        with Progress(len(contents.items), progress, DELAY_S) as shown:
            if folder:
                return _write_folder(out, contents, pictures, index, shown)
            return _write_file(out, contents, pictures, index, shown)
    except OSError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"the report could not be written to '{out}' ({error.strerror or error}). Give another --out.") from error


def _title(contents: Contents) -> str:
    return ", ".join(Path(str(store.folder)).name for store in contents.stores)


def _blocks(contents: Contents, pictures: Pictures, shown: Progress) -> Iterator[tuple[str, Any]]:
    """Yields names and contents of the files that the page loads on demand."""
    classifiers = list(contents.classifiers)
    for number, start in enumerate(range(0, len(contents.items), BLOCK)):
        items = contents.items[start : start + BLOCK]
        yield f"items-{number}", block_of(contents, items, list(pictures.of(start, items)), classifiers)
        shown.add(len(items))


def _last_blocks(index: dict[str, Any], pictures: Pictures) -> Iterator[tuple[str, Any]]:
    yield "missing", [[reason, count] for reason, count in pictures.missing.items()]
    for count in index["orders"]:
        yield f"order-{count}", order_of(count)


def _write_file(out: Path, contents: Contents, pictures: Pictures, index: dict[str, Any], shown: Progress) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    size = 0

    def blocks() -> Iterator[tuple[str, str]]:
        nonlocal size
        for several in (_blocks(contents, pictures, shown), _last_blocks(index, pictures)):
            for name, content in several:
                text = script_json(content)
                size += len(text)
                if size > LARGEST_FILE:
                    raise too_large(f"one file of {len(contents.items):,} pictures", LARGEST_FILE, "smaller pictures (--side, side=)")
                yield name, text

    handle, name = tempfile.mkstemp(dir=out.parent, suffix=".html.part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(_page(index, blocks(), "").generate())
        os.chmod(name, 0o644)
        os.replace(name, out)
    except BaseException:
        os.unlink(name)
        raise
    return out


def _write_folder(out: Path, contents: Contents, pictures: Pictures, index: dict[str, Any], shown: Progress) -> Path:
    page, data = out / "index.html", out / "data"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (page.is_file() and data.is_dir()))):
        raise InputError(f"'{out}' is neither a report nor empty: give a new or empty folder.")
    data.mkdir(parents=True, exist_ok=True)
    kept = set()
    for several in (_blocks(contents, pictures, shown), _last_blocks(index, pictures)):
        for name, content in several:
            kept.add(f"{name}.js")
            (data / f"{name}.js").write_text(f'xattnBlock("{name}", {script_json(content)});\n', encoding="utf-8")
    for old in data.glob("*.js"):
        if old.name not in kept:
            old.unlink()
    with open(page, "w", encoding="utf-8") as file:
        file.writelines(_page(index, iter(()), "data").generate())
    return page


class _Page:
    """Fills the page's template."""

    def __init__(self, **content: Any) -> None:
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self.template, self.content = environment.from_string(_file("page.html.j2")), content

    def generate(self) -> Iterator[str]:
        """Yields the page, piece by piece."""
        return self.template.generate(**self.content)


def _page(index: dict[str, Any], blocks: Iterator[tuple[str, str]], data: str) -> _Page:
    style, script = _file("style.css"), _script()
    scripts = [_hash(script), _hash(ARRIVED)] + ["'self'", "file:"] * bool(data)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {' '.join(scripts)}; base-uri 'none'; form-action 'none'"
    )
    return _Page(
        title=index["title"], policy=policy, style=style, script=script, index=script_json(index), blocks=blocks, arrived=ARRIVED, data=data
    )


def _script() -> str:
    return "\n".join(['"use strict";', "(() => {", *(_file(f"{name}.js") for name in SCRIPTS), "})();"])


def _file(name: str) -> str:
    return (resources.files("xattn.report") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Returns the hash by which a content security policy identifies an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
