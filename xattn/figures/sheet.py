"""Pages of pictures and text, positioned in millimetres from the upper left corner."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from xattn.figures.fonts import drawable, lettered
from xattn.figures.style import MM, FigureStyle
from xattn.text import shown

POINT = MM / 72
LINE = 1.2  # line spacing, in font sizes
HEADING, TITLE, TEXT, NOTE = 8.0, 7.0, 6.5, 6.0  # points
SCREEN = 120  # dots per inch of a notebook's display
ASCENT = 0.95  # from the upper edge of a line to its baseline, in font sizes
_BREAKS = re.compile(r"(?<=[ \-:,/·])(?!\u00a0)")
_WITHIN = re.compile(r"(?<=[_.@=])|(?<=[a-z])(?=[A-Z])")


@functools.lru_cache(maxsize=4096)
def _text_width(text: str, size: float, bold: bool, family: tuple[str, ...]) -> float:
    weight = "bold" if bold else "normal"
    written, more = drawable(text, family, weight)
    font = FontProperties(family=[*family, *more], size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(written, font, False)[0]) * POINT


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Returns the width of a line of text in millimetres, in the current font."""
    return _text_width(shown(text), size, bold, tuple(matplotlib.rcParams["font.family"]))


def text_height(lines: int, size: float) -> float:
    """Returns the height of some lines of text in millimetres."""
    return lines * size * LINE * POINT


def wrapped(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Breaks text into lines of at most a width in millimetres, after spaces and signs, or within a word that is too wide for a line.

    A no-break space keeps its neighbours together.
    """
    return [line for paragraph in text.split("\n") for line in _wrapped(paragraph, width, size, bold)]


def _wrapped(text: str, width: float, size: float, bold: bool) -> Iterator[str]:
    line = ""
    for piece in _pieces(text, width, size, bold):
        if line and text_width((line + piece).rstrip(), size, bold) > width:
            yield line.rstrip()
            line = ""
        line += piece
    yield line.rstrip()


def _pieces(text: str, width: float, size: float, bold: bool) -> Iterator[str]:
    for piece in _BREAKS.split(text):
        for part in [piece] if text_width(piece.rstrip(), size, bold) <= width else _WITHIN.split(piece):
            if text_width(part.rstrip(), size, bold) <= width:
                yield part
            else:
                yield from part


def fitted(text: str, width: float, size: float, smallest: float = NOTE, bold: bool = False) -> tuple[list[str], float]:
    """Breaks text into lines, in the largest font that breaks no word, if there is one; returns the lines and the font size."""
    words = [word.rstrip() for paragraph in text.split("\n") for word in _BREAKS.split(paragraph)]
    while size > smallest and max(text_width(word, size, bold) for word in words) > width:
        size -= 0.5
    return wrapped(text, width, size, bold), size


def breaks_words(text: str, width: float, size: float = NOTE) -> bool:
    """Checks whether a word of a text is wider than a line, so that `wrapped` would break it."""
    return any(text_width(piece.rstrip(), size) > width for piece in _BREAKS.split(text))


class PaperFigure(Figure):
    """A figure with fallback fonts that a notebook displays by itself; matplotlib's own figures need pyplot for that."""

    def draw(self, renderer: Any) -> None:
        lettered(self)
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        with matplotlib.rc_context(FigureStyle().rc()):
            self.savefig(file, format="png", dpi=SCREEN)
        return file.getvalue()


class _Text(NamedTuple):
    x: float
    y: float
    text: str
    settings: dict[str, Any]


class Sheet:
    """A page that grows downwards; all lengths are in millimetres."""

    def __init__(self) -> None:
        self._pictures: list[tuple[float, float, float, float, NDArray[Any]]] = []
        self._boxes: list[Rectangle] = []
        self._texts: list[_Text] = []
        self._lines: list[tuple[float, float, float, float, float]] = []

    def picture(self, x: float, y: float, width: float, height: float, values: NDArray[Any]) -> None:
        """Places a picture `(H, W, 3)`, uint8 or in [0, 1], without smoothing."""
        self._pictures.append((x, y, width, height, values))

    def box(self, x: float, y: float, width: float, height: float, colour: Sequence[float]) -> None:
        """Fills a rectangle with a colour, red, green and blue in [0, 1]."""
        self._boxes.append(Rectangle((x, y), width, height, facecolor=tuple(colour), linewidth=0))

    def text(self, x: float, y: float, lines: list[str], size: float = NOTE, *, va: str = "top", **settings: Any) -> None:
        """Places lines of text with their upper edge, middle or lower edge at y; `ha`, `weight`, … as in matplotlib."""
        y -= {"top": 0.0, "center": 0.5, "bottom": 1.0}[va] * text_height(len(lines), size)
        for number, line in enumerate(lines):
            foot = y + (number * LINE + ASCENT) * size * POINT
            self._texts.append(_Text(x, foot, line, {"fontsize": size, "va": "baseline", **settings}))

    def turned(self, x: float, y: float, lines: list[str], size: float = NOTE, **settings: Any) -> None:
        """Places lines of text that run upwards, with their middle at y; `ha` selects the edge at x."""
        settings = {"fontsize": size, "va": "center", "rotation": 90, "multialignment": "center", "linespacing": 1.05, **settings}
        self._texts.append(_Text(x, y, "\n".join(lines), settings))

    def boxed(self, x: float, y: float, lines: list[str], size: float = NOTE) -> None:
        """Places lines of text around a point, on white."""
        box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        self._texts.append(_Text(x, y, "\n".join(lines), {"fontsize": size, "va": "center", "ha": "center", "bbox": box}))

    def line(self, x: float, y: float, to_x: float, to_y: float, width: float = 0.5) -> None:
        """Draws a line; its width is in points."""
        self._lines.append((x, y, to_x, to_y, width))

    def figure(self, width: float, height: float) -> Figure:
        """Returns the page as a figure of exactly its size."""
        figure = PaperFigure(figsize=(width / MM, height / MM))
        axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axis.set_axis_off()
        for x, y, across, down, values in self._pictures:
            axis.imshow(values, interpolation="none", aspect="auto", extent=(x, x + across, y + down, y))
        for box in self._boxes:
            axis.add_patch(box)
        for x, y, text, settings in self._texts:
            axis.text(x, y, shown(text), **settings)
        for x, y, to_x, to_y, points in self._lines:
            axis.add_line(Line2D([x, to_x], [y, to_y], linewidth=points, color="black"))
        return figure
