"""Kinds of figure, and how one is drawn from runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xattn.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xattn.figures.run_data import RunData


@dataclass(frozen=True)
class FigureMetadata:
    """What a kind of figure declares.

    Attributes:
        source: where such a figure was published; "" if it is common.
    """

    source: str = ""


Draw = Callable[["RunData"], "Figure"]
"""What runs hold for some images → a figure."""

kinds: Registry[FigureMetadata, Draw] = Registry("figure")


def register(name: str, *, source: str = "") -> Callable[[Draw], Draw]:
    """Decorator that registers a kind of figure: a function of what runs hold."""
    return kinds.register(name, FigureMetadata(source))


def figure(
    runs: Sequence[str | Path],
    out: str | Path,
    kind: str = "grid",
    *,
    images: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    moved_to: str | Path | Sequence[str | Path] | None = None,
    dpi: int = 200,
) -> None:
    """Draws a figure from one or several runs.

    Args:
        runs: run folders.
        out: `.pdf` (vector, fonts embedded), `.svg` or `.png`.
        kind: "grid", "parts", …; `xattn list figures` shows all.
        images: names as in the rows; the first six if None.
        methods: names as in the rows; all if None.
        moved_to: where the pictures are now, a folder, a glob or files; they are told by name and content. None: where the runs found them.
        dpi: resolution of a PNG.

    Raises:
        InputError: a file ending that is not a format, pictures that are not there or are others, or runs that lack what the
            kind shows.
        NameUnknownError: there is no such kind, image or method.
    """
    from xattn.figures.canvas import format_of, on_paper, save
    from xattn.figures.run_data import read_runs

    draw = kinds.create(kind).instance
    file = format_of(out)
    found = read_runs(runs, images, methods, moved_to)
    with on_paper():
        save(draw(found), file, dpi)
