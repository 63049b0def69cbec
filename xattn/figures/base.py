"""Figure kinds: their interface and registry, and functions that draw figures from runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from xattn.errors import InputError
from xattn.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xattn.figures.style import FigureStyle

Data = Literal["maps", "scores"]
MOST_IMAGES = 6


@dataclass(frozen=True)
class FigureMetadata:
    """Properties that a figure kind declares.

    Attributes:
        source: publication of such a figure; "" if it is common.
        data: the data that it shows: "maps", a `RunData` of some images; or "scores", a `ScoreData` of all images.
    """

    source: str = ""
    data: Data = "maps"


Draw = Callable[..., "Figure | list[Figure]"]
"""A function from data of runs and a style to a figure, or its pages."""

Registered = TypeVar("Registered", bound=Callable[..., Any])

kinds: Registry[FigureMetadata, Draw] = Registry("figure")


def register(name: str, *, source: str = "", data: Data = "maps") -> Callable[[Registered], Registered]:
    """Decorator that registers a figure kind: a function of the data of runs and a style, or a frozen dataclass of settings with one
    `__call__(shown, style)`."""
    return kinds.register(name, FigureMetadata(source, data))


def pages(
    runs: Sequence[str | Path],
    kind: str = "grid",
    *,
    images: Sequence[str] | None = None,
    count: int | None = None,
    methods: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    style: FigureStyle | None = None,
    moved_to: str | Path | Sequence[str | Path] | None = None,
) -> list[Figure]:
    """Draws a figure from one or several runs; several pages for many pictures.

    Args:
        runs: run folders.
        kind: "grid", "curves", …, with settings as `name:key=value`; `xattn list figures` shows all.
        images: names as in the rows; None: the first six for kinds of maps, all for kinds of scores.
        count: number of images, from the first, if no names are given.
        methods: names as in the rows; all if None.
        metrics: for kinds of scores, names as in the rows; all if None.
        style: width, font, colours, orientation, title; None: the default style.
        moved_to: where the pictures are now, a folder, a glob or files; matched by name and content. None: where the runs found them.

    Raises:
        InputError: pictures are missing or have changed, or runs lack the data of this kind.
        NameUnknownError: the kind, image, method or metric does not exist.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from xattn.figures.run_data import read_runs
    from xattn.figures.score_data import read_scores
    from xattn.figures.style import FigureStyle

    component, look = kinds.create(kind), style or FigureStyle()
    if images is not None and count is not None:
        raise InputError("give either the names of images or their count, not both.")
    if component.metadata.data == "maps":
        if metrics is not None:
            raise InputError(f"a figure of kind '{kind}' shows maps, not metrics: leave the metrics out.")
        found: Any = read_runs(runs, images, methods, count or MOST_IMAGES, moved_to)
    else:
        found = read_scores(runs, images, methods, metrics, count)
    with matplotlib.rc_context(look.rc()):
        drawn = component.instance(found, look)
    return [drawn] if isinstance(drawn, Figure) else drawn


def figure(runs: Sequence[str | Path], out: str | Path | None = None, kind: str = "grid", *, dpi: int = 300, **options: Any) -> Figure:
    """Draws a figure from one or several runs, and writes it to a file.

    Args:
        runs: run folders.
        out: `.pdf` (vector, fonts embedded), `.svg` or `.png`; None: nothing is written.
        kind: "grid", "curves", …; `xattn list figures` shows all.
        dpi: resolution of a PNG.
        options: options of `pages`: `images`, `count`, `methods`, `metrics`, `style`.

    Returns:
        The figure; if there are several pages, the first.

    Raises:
        InputError: the file extension is not a supported format, or as for `pages`.
        NameUnknownError: as for `pages`.
    """
    from xattn.figures.canvas import format_of, save

    if out is not None:
        format_of(out)
    drawn = pages(runs, kind, **options)
    if out is not None:
        save(drawn, out, dpi)
    return drawn[0]
