"""Overlays of maps in colour on a photograph, at the photograph's own size and where the network saw it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from xattn.data.preprocessing import Region
from xattn.errors import InputError, NameUnknownError
from xattn.metrics.perturbations import FLAT
from xattn.text import shown as printable

__all__ = [
    "CMAP",
    "SIGNED_CMAP",
    "OverlayStyle",
    "blended",
    "coloured",
    "contact_sheet",
    "is_signed",
    "laid_over",
    "mask_of_map",
    "overlay",
    "shown_values",
]

Floats = NDArray[np.floating[Any]]
"""Finished maps and pictures are NumPy arrays: drawing them does not need torch, whose import takes seconds."""

CMAP = "inferno"
SIGNED_CMAP = "RdBu_r"  # white at 0, blue below
STRIP = 2**20  # pixels to colour at once
LINE = 400  # a contour's width is the shorter side divided by this

Interpolation = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class OverlayStyle:
    """How a map is drawn over a photograph; settings have the names that matplotlib uses.

    Attributes:
        cmap: name of one of matplotlib's colour maps; None: inferno, and RdBu_r for signed maps.
        alpha: opacity of the colours, from 0 (only the photograph) to 1 (only the colours).
        interpolation: "bilinear", like the resizing of the scored mask; "nearest" shows the map's cells.
        contour: levels in [0, 1] at which the mask is outlined.

    Raises:
        NameUnknownError: no such colour map or interpolation.
        InputError: an opacity or level outside [0, 1].
    """

    cmap: str | None = None
    alpha: float = 0.5
    interpolation: Interpolation = "bilinear"
    contour: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(level, (int, float)) for level in (self.alpha, *self.contour)):
            raise InputError(f"alpha and contour are numbers from 0 to 1; got {self.alpha!r:.40} and {self.contour!r:.40}.")
        if self.cmap is not None:
            if not isinstance(self.cmap, str):
                raise InputError(f"a colour map is named by a text, such as 'viridis'; got {type(self.cmap).__name__}.")
            table(self.cmap)
        if self.interpolation not in get_args(Interpolation):
            raise NameUnknownError("interpolation", str(self.interpolation), get_args(Interpolation))
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is an opacity from 0 to 1; got {self.alpha}.")
        if wrong := [level for level in self.contour if not 0 < level < 1]:
            raise InputError(f"a contour's level lies between 0 and 1, where the mask does; got {wrong[0]}.")


def is_signed(method: str) -> bool:
    """Whether a method, named as in the rows, has a signed map: negative where there is evidence against the target.

    Its mask is made of the positive part.

    >>> is_signed("grad-cam:signed=true"), is_signed("grad-cam")
    (True, False)
    """
    return "signed=true" in method.rpartition(":")[2].split(",")


def mask_of_map(raw: Floats) -> Floats:
    """The mask of a finished map `(h, w)` at its own resolution, as `xattn.metrics.masking.to_masks` computes it for a batch of tensors."""
    low, high = raw.min(), raw.max()
    if not np.isfinite(raw).all() or not high - low > FLAT * np.abs(raw).max():
        return np.zeros_like(raw)
    found: Floats = ((raw - low) / (high - low)).clip(0, 1)
    return found


def shown_values(raw: Floats, *, direct: bool, signed: bool, limits: tuple[float, float] | None = None) -> Floats:
    """The values to draw for a raw map, at its own resolution: its mask, or a signed map divided by its largest magnitude, with 0 at 0.5.

    Args:
        raw: `(h, w)` float32.
        direct: whether it is already a mask.
        signed: whether it is a signed map.
        limits: the values that become 0 and 1; None: the map's own.

    Returns:
        `(h, w)` float32 in [0, 1].
    """
    if direct:
        return raw
    if signed:
        most = limits[1] if limits else float(np.abs(raw).max())
        return ((raw / max(most, float(np.finfo(np.float32).tiny))).clip(-1, 1) + 1) / 2
    if limits is None or limits[0] == limits[1]:
        return mask_of_map(raw)
    found: Floats = ((raw - limits[0]) / (limits[1] - limits[0])).clip(0, 1)
    return found


@functools.lru_cache(maxsize=16)
def table(cmap: str) -> Floats:
    """The colours of one of matplotlib's colour maps, from the lowest value to the highest: `(N, 3)` float32 in [0, 1].

    Raises:
        NameUnknownError: there is no such colour map.
    """
    from matplotlib import colormaps

    if cmap not in colormaps:
        raise NameUnknownError("colour map", cmap, colormaps)
    found = colormaps[cmap]
    return np.array([found(place)[:3] for place in range(found.N)], dtype=np.float32)


def coloured(values: Floats, cmap: str) -> Floats:
    """Values in [0, 1] of any shape as colours of one of matplotlib's colour maps: `(…, 3)` float32 in [0, 1]."""
    colours = table(cmap)
    finite = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0)  # a damaged file may hold other values
    found: Floats = colours[(finite * len(colours)).astype(np.int64).clip(0, len(colours) - 1)]
    return found


def blended(picture: Floats, values: Floats, cmap: str, alpha: float) -> Floats:
    """The colours of values `(H, W)` in [0, 1] over a picture `(H, W, 3)` in [0, 1]: `(H, W, 3)` in [0, 1]."""
    return (1 - alpha) * picture + alpha * coloured(values, cmap)


class _Axis(NamedTuple):
    """The pixels along a side of a picture whose centres lie in a region, and the cells of a map around each.

    Attributes:
        first: the first of the pixels.
        cells: for each pixel, the cell at or before it.
        after: for each pixel, the next cell.
        weight: of the next cell.
    """

    first: int
    cells: NDArray[np.int64]
    after: NDArray[np.int64]
    weight: Floats


def _axis(cells: int, low: float, high: float, pixels: int, interpolation: Interpolation) -> _Axis:
    first, stop = max(0, math.ceil(low - 0.5)), min(pixels, math.ceil(high - 0.5))
    places = (np.arange(first, stop, dtype=np.float64) + 0.5 - low) / (high - low) * cells
    if interpolation == "nearest":
        nearest = np.floor(places).clip(0, cells - 1).astype(np.int64)
        return _Axis(first, nearest, nearest, np.zeros(len(places), dtype=np.float32))
    places = (places - 0.5).clip(0, cells - 1)
    before = places.astype(np.int64)
    return _Axis(first, before, (before + 1).clip(max=cells - 1), (places - before).astype(np.float32))


def _sampled(values: Floats, down: _Axis, across: _Axis, rows: slice) -> Floats:
    """The values at some rows of pixels."""
    up, low, share = down.cells[rows], down.after[rows], down.weight[rows, None]
    of_rows = values[up] * (1 - share) + values[low] * share
    return of_rows[:, across.cells] * (1 - across.weight) + of_rows[:, across.after] * across.weight


def _axes(values: Floats, size: tuple[int, int], region: Region, interpolation: Interpolation) -> tuple[_Axis, _Axis]:
    down = _axis(values.shape[0], region.top, region.bottom, size[0], interpolation)
    return down, _axis(values.shape[1], region.left, region.right, size[1], interpolation)


def laid_over(values: Floats, size: tuple[int, int], region: Region, interpolation: Interpolation = "bilinear") -> Floats:
    """A map at the size of the photograph, where the network saw it: the inverse of its resize and crop.

    Args:
        values: the map at its own resolution, `(h, w)`.
        size: height and width of the photograph.
        region: of the photograph, over which the map's cells lie.
        interpolation: between the cells.

    Returns:
        `(H, W)` float32; NaN for pixels whose centres the network did not see.

    >>> laid_over(np.array([[0.0, 1.0]], dtype=np.float32), (1, 6), Region(1, 0, 5, 1), "nearest")
    array([[nan,  0.,  0.,  1.,  1., nan]], dtype=float32)
    """
    down, across = _axes(values, size, region, interpolation)
    found = np.full(size, np.nan, dtype=np.float32)
    found[_span(down), _span(across)] = _sampled(values, down, across, slice(None))
    return found


def _span(axis: _Axis) -> slice:
    return slice(axis.first, axis.first + len(axis.cells))


def overlay(picture: Image.Image, values: Floats, region: Region, style: OverlayStyle, cmap: str = CMAP) -> Image.Image:
    """Overlays a map in colour on a photograph, at its size; pixels that the network did not see are not changed.

    Args:
        picture: the photograph, in RGB.
        values: the map at its own resolution, `(h, w)` in [0, 1].
        region: of the photograph, over which the map's cells lie.
        style: how it is drawn.
        cmap: the colour map, if the style names none.
    """
    values, found = values.clip(0, 1), np.array(picture)
    height, width = found.shape[:2]
    down, across = _axes(values, (height, width), region, style.interpolation)
    thick = max(1, round(min(height, width) / LINE))
    for rows in _strips(len(down.cells), len(across.cells)):
        pixels = found[_span(down), _span(across)][rows]
        seen = _sampled(values, down, across, rows)
        shown = blended(pixels.astype(np.float32) / 255, seen, style.cmap or cmap, style.alpha)
        for level in style.contour:
            around = slice(max(0, rows.start - thick), rows.stop + thick)  # a line reaches into the next strip
            inner, outer = _lines(_sampled(values, down, across, around) >= level, thick)
            kept = slice(rows.start - around.start, rows.start - around.start + len(pixels))
            shown[outer[kept]], shown[inner[kept]] = 0.0, 1.0
        pixels[...] = (shown * 255).round().clip(0, 255)
    return Image.fromarray(found)


def _strips(rows: int, width: int) -> Iterator[slice]:
    step = max(1, STRIP // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _lines(inside: NDArray[np.bool_], thick: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The line just within a region, and the one just outside it: two of `(H, W)` bool. The picture's edge is not a line."""
    return inside & _grown(~inside, thick), _grown(inside, thick) & ~inside


def _grown(inside: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """A region and all pixels within a distance of it along both axes."""
    for axis in (0, 1):
        padded = np.pad(inside, [(by, by) if side == axis else (0, 0) for side in (0, 1)])
        inside = np.asarray(np.lib.stride_tricks.sliding_window_view(padded, 2 * by + 1, axis=axis).any(axis=-1))
    return inside


def contact_sheet(rows: Sequence[Sequence[Image.Image]], headers: Sequence[str], side: int) -> Image.Image:
    """Pictures in rows, each fitted into a square, below the names of their columns.

    Args:
        rows: of pictures, as many in each as there are headers.
        headers: names of the columns.
        side: of a square, in pixels.
    """
    gap, above = 4, 16
    sheet = Image.new("RGB", (len(headers) * (side + gap) - gap, above + len(rows) * (side + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, header in enumerate(headers):
        text = printable(header, keep="")
        while len(text) > 1 and draw.textlength(text) > side:
            text = f"{text.rstrip('…')[:-1]}…"
        draw.text((column * (side + gap), 2), text, fill="black")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            fitted = ImageOps.contain(picture, (side, side))
            place = column * (side + gap) + (side - fitted.width) // 2, above + row * (side + gap) + (side - fitted.height) // 2
            sheet.paste(fitted, place)
    return sheet
