"""A map in colour over a photograph at the photograph's own size, where the network saw it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torch.nn import functional

from xattn.data.preprocessing import Region, channels_first, rgb_picture
from xattn.errors import InputError, NameUnknownError
from xattn.text import shown as printable

__all__ = ["CMAP", "SIGNED_CMAP", "OverlayStyle", "blended", "coloured", "contact_sheet", "laid_over", "overlay"]

CMAP = "inferno"
SIGNED_CMAP = "RdBu_r"  # white at 0, blue below
STRIP = 2**20  # pixels that are coloured at once
LINE = 400  # a contour is as wide as the shorter side over this

Interpolation = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class OverlayStyle:
    """How a map is drawn over a photograph; settings are called as in matplotlib.

    Attributes:
        cmap: name of one of matplotlib's colour maps; None: inferno, and RdBu_r for signed maps.
        alpha: opacity of the colours, from 0 (the photograph alone) to 1 (the colours alone).
        interpolation: "bilinear", as the mask that is scored is resized; "nearest" shows the map's cells.
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
                raise InputError(f"a colour map is named by a text, as 'viridis'; {type(self.cmap).__name__} came.")
            table(self.cmap)
        if self.interpolation not in get_args(Interpolation):
            raise NameUnknownError("interpolation", str(self.interpolation), get_args(Interpolation))
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is an opacity from 0 to 1; got {self.alpha}.")
        if wrong := [level for level in self.contour if not 0 < level < 1]:
            raise InputError(f"a contour's level lies between 0 and 1, where the mask does; got {wrong[0]}.")


@functools.lru_cache(maxsize=16)
def table(cmap: str) -> Tensor:
    """The colours of one of matplotlib's colour maps, from the lowest value to the highest: `(N, 3)` float32 in [0, 1].

    Raises:
        NameUnknownError: there is no such colour map.
    """
    from matplotlib import colormaps

    if cmap not in colormaps:
        raise NameUnknownError("colour map", cmap, colormaps)
    found = colormaps[cmap]
    return torch.tensor([found(place)[:3] for place in range(found.N)], dtype=torch.float32)


def coloured(values: Tensor, cmap: str) -> Tensor:
    """Values in [0, 1] of any shape as colours: `(…, 3)` float32 in [0, 1], as matplotlib's colour map gives them."""
    colours = table(cmap).to(values.device)
    return colours[(values * len(colours)).long().clamp(0, len(colours) - 1)]


def blended(picture: Tensor, values: Tensor, cmap: str, alpha: float) -> Tensor:
    """The colours of values `(H, W)` in [0, 1] over a picture `(H, W, 3)` in [0, 1]: `(H, W, 3)` in [0, 1]."""
    return (1 - alpha) * picture + alpha * coloured(values, cmap)


class _Axis(NamedTuple):
    """The pixels along a side of a picture whose centres lie in a region, and the cells of a map around each.

    Attributes:
        first: the first of the pixels.
        cells: for each pixel, the cell at or before it.
        after: the one after it.
        weight: of the one after it.
    """

    first: int
    cells: Tensor
    after: Tensor
    weight: Tensor


def _axis(cells: int, low: float, high: float, pixels: int, interpolation: Interpolation) -> _Axis:
    first, stop = max(0, math.ceil(low - 0.5)), min(pixels, math.ceil(high - 0.5))
    places = (torch.arange(first, stop, dtype=torch.float64) + 0.5 - low) / (high - low) * cells
    if interpolation == "nearest":
        nearest = places.floor().clamp(0, cells - 1).long()
        return _Axis(first, nearest, nearest, torch.zeros(len(places)))
    places = (places - 0.5).clamp(0, cells - 1)
    before = places.floor()
    return _Axis(first, before.long(), (before.long() + 1).clamp(max=cells - 1), (places - before).float())


def _sampled(values: Tensor, down: _Axis, across: _Axis, rows: slice) -> Tensor:
    """The values at some rows of pixels."""
    up, low, share = down.cells[rows], down.after[rows], down.weight[rows, None]
    of_rows = values[up] * (1 - share) + values[low] * share
    return of_rows[:, across.cells] * (1 - across.weight) + of_rows[:, across.after] * across.weight


def _axes(values: Tensor, size: tuple[int, int], region: Region, interpolation: Interpolation) -> tuple[_Axis, _Axis]:
    down = _axis(values.shape[0], region.top, region.bottom, size[0], interpolation)
    return down, _axis(values.shape[1], region.left, region.right, size[1], interpolation)


def laid_over(values: Tensor, size: tuple[int, int], region: Region, interpolation: Interpolation = "bilinear") -> Tensor:
    """A map at the size of the photograph, where the network saw it: the inverse of its resize and crop.

    Args:
        values: the map at its own resolution, `(h, w)`.
        size: height and width of the photograph.
        region: of the photograph, over which the map's cells lie.
        interpolation: between the cells.

    Returns:
        `(H, W)` float32; NaN for pixels whose centres the network did not see.

    >>> laid_over(torch.tensor([[0.0, 1.0]]), (1, 6), Region(1, 0, 5, 1), "nearest")
    tensor([[nan, 0., 0., 1., 1., nan]])
    """
    values = values.detach().float().cpu()
    down, across = _axes(values, size, region, interpolation)
    found = torch.full(size, torch.nan)
    found[_span(down), _span(across)] = _sampled(values, down, across, slice(None))
    return found


def _span(axis: _Axis) -> slice:
    return slice(axis.first, axis.first + len(axis.cells))


def overlay(picture: Image.Image, values: Tensor, region: Region, style: OverlayStyle, cmap: str = CMAP) -> Image.Image:
    """A map in colour over a photograph, at its size; what the network did not see is left as it is.

    Args:
        picture: the photograph, in RGB.
        values: the map at its own resolution, `(h, w)` in [0, 1].
        region: of the photograph, over which the map's cells lie.
        style: how it is drawn.
        cmap: the colour map, if the style names none.
    """
    values = values.detach().float().cpu().clamp(0, 1)
    found = channels_first(picture).permute(1, 2, 0).contiguous()
    height, width = found.shape[:2]
    down, across = _axes(values, (height, width), region, style.interpolation)
    thick = max(1, round(min(height, width) / LINE))
    for rows in _strips(len(down.cells), len(across.cells)):
        pixels = found[_span(down), _span(across)][rows]
        seen = _sampled(values, down, across, rows)
        shown = blended(pixels.float() / 255, seen, style.cmap or cmap, style.alpha)
        for level in style.contour:
            around = slice(max(0, rows.start - thick), rows.stop + thick)  # a line reaches into the next strip
            inner, outer = _lines(_sampled(values, down, across, around) >= level, thick)
            kept = slice(rows.start - around.start, rows.start - around.start + len(pixels))
            shown[outer[kept]], shown[inner[kept]] = 0.0, 1.0
        pixels.copy_((shown * 255).round().clamp(0, 255))
    return rgb_picture(found)


def _strips(rows: int, width: int) -> Iterator[slice]:
    step = max(1, STRIP // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _lines(inside: Tensor, thick: int) -> tuple[Tensor, Tensor]:
    """The line just within a region, and the one just outside it: two of `(H, W)` bool. The picture's edge is no line."""
    area = inside[None].float()
    grown = functional.max_pool2d(area, 2 * thick + 1, 1, thick)[0] > 0
    shrunk = functional.max_pool2d(1 - area, 2 * thick + 1, 1, thick)[0] == 0
    return inside & ~shrunk, grown & ~inside


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
