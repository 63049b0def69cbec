"""Style of figures on paper: width, font, colours and arrangement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from xattn.errors import InputError, NameUnknownError
from xattn.overlays import table

MM = 25.4  # per inch
WIDTHS = {"column": 3.5 * MM, "page": 7.16 * MM}  # of the IEEE's two-column layout; other journals differ by a few millimetres
NARROWEST, WIDEST = 30.0, 1000.0
FALLBACK = "DejaVu Sans"  # is included in matplotlib, and has the arrows

Scale = Literal["each", "common"]


@dataclass(frozen=True)
class FigureStyle:
    """Style of a figure.

    Attributes:
        width: "column" (88.9 mm), "page" (181.9 mm), or millimetres. Text is 6 to 8 points at this width.
        font: font family of the text; missing characters are taken from DejaVu Sans.
        cmap: name of a matplotlib colour map; None: the kind's own.
        scale: "each", colours of every map, panel or column range from its own lowest to its highest value; "common", comparable items
            share one scale: the maps of one classifier and method, the panels of a row, the classifiers of a column.
        transpose: swap rows and columns.
        title: title above the figure.

    Raises:
        InputError: the width is not valid.
        NameUnknownError: the font, colour map or scale does not exist.
    """

    width: str | float = "page"
    font: str = FALLBACK
    cmap: str | None = None
    scale: Scale = "each"
    transpose: bool = False
    title: str = ""

    def __post_init__(self) -> None:
        if not NARROWEST <= self.millimetres <= WIDEST:
            raise InputError(f"a width is 'column', 'page' or millimetres from {NARROWEST:g} to {WIDEST:g}; got {str(self.width)[:40]!r}.")
        if self.cmap is not None:
            table(self.cmap)
        if self.scale not in get_args(Scale):
            raise NameUnknownError("scale", str(self.scale), get_args(Scale))
        self._refuse_unknown_font()

    @property
    def millimetres(self) -> float:
        """Returns the width in millimetres; NaN if it is not valid."""
        if isinstance(self.width, str):
            try:
                return WIDTHS[self.width] if self.width in WIDTHS else float(self.width)
            except ValueError:
                return math.nan
        return float(self.width)

    def _refuse_unknown_font(self) -> None:
        from matplotlib import font_manager

        generic = {"serif", "sans-serif", "monospace", "cursive", "fantasy"}
        if self.font in generic:
            return
        try:
            font_manager.findfont(self.font, fallback_to_default=False)
        except ValueError as error:
            known = {font.name for font in font_manager.fontManager.ttflist} | generic
            raise NameUnknownError("font on this machine", self.font, known) from error

    def rc(self) -> Any:
        """Returns matplotlib's settings for figures on paper, by name; fonts are embedded as TrueType, and bytes are reproducible."""
        return {
            "pdf.fonttype": 42,
            "svg.fonttype": "path",
            "svg.hashsalt": "xattn",  # reproducible ids
            "font.family": [self.font, FALLBACK] if self.font != FALLBACK else [FALLBACK],
            "font.size": 7,
            "axes.titlesize": 7,
            "axes.labelsize": 7,
            "xtick.labelsize": 6,
            "ytick.labelsize": 6,
            "legend.fontsize": 6.5,
            "legend.title_fontsize": 6,
            "legend.frameon": False,
            "figure.titlesize": 8,
            "axes.linewidth": 0.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.major.width": 0.5,
            "ytick.major.width": 0.5,
            "xtick.major.size": 2,
            "ytick.major.size": 2,
            "lines.linewidth": 1.0,
            "image.composite_image": False,  # each picture keeps its own pixels in a vector format
            "figure.constrained_layout.w_pad": 0.02,
            "figure.constrained_layout.h_pad": 0.02,
            "text.hinting": "none",  # letters are not shifted in a vector format, and lines are as wide as measured
            "text.parse_math": False,  # a $ in a name is not markup
        }
