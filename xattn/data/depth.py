"""Reduces pictures with more than 8 bits to 8 bits: which of their values are black and white."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from xattn.deferred import torch
from xattn.errors import ImageError, InputError

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 100_000_000  # a larger picture, before or after the resize, is treated as a decompression bomb
DARK = 8  # a picture is doubtful if its largest value is below the range divided by this
STRIP = 1 << 21  # pixels that are converted in one step: a conversion needs little memory compared with the picture

logger = logging.getLogger("xattn")


@dataclass(frozen=True)
class Reading:
    """How pictures are read.

    Attributes:
        depth: number of bits in use, 1 to 32, in the integer values of pictures with more than 8: `0` is black, `2**depth - 1` white. It
            overrides what a file states; DICOM files always state it.
        window: the values of black and white in pictures with more than 8 bits; values outside are clipped. For DICOM files they are in the
            units after the rescale slope, such as Hounsfield units. It overrides `depth` and what a file states.
        max_pixels: number of pixels of the largest picture that is decoded.

    Raises:
        InputError: the depth is outside 1 to 32, the window has no contrast, or the number of pixels is not positive.
    """

    depth: int | None = None
    window: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.depth is not None and not 1 <= self.depth <= 32:
            raise InputError(f"depth is the number of bits that a picture's values use, 1 to 32; got {self.depth}.")
        if self.window is not None and not _is_window(self.window):
            raise InputError(f"window is two finite values, black and a larger one for white, such as -160,240; got {self.window}.")
        if self.max_pixels < 1:
            raise InputError(f"max_pixels is a number of pixels, 1 or more; got {self.max_pixels}.")
        if self.depth is not None and self.window is not None:
            raise InputError("depth and window both set the white value: give one of them.")

    def given(self) -> dict[str, Any]:
        """Returns the settings that differ from the defaults, in the form that `ImageSource` accepts."""
        values = {"depth": self.depth, "window": self.window and list(self.window), "max_pixels": self.max_pixels}
        return {name: value for name, value in values.items() if value != getattr(Reading, name)}


def _is_window(window: tuple[float, float]) -> bool:
    return len(window) == 2 and all(map(math.isfinite, window)) and window[0] < window[1]


@dataclass(frozen=True)
class Scaling:
    """How the values of a picture were reduced to 8 bits, and what in its file was ignored.

    Attributes:
        rule: which values are black and white, and where that is stated; or what was ignored.
        doubt: why the rule may be wrong, and which setting to give; empty if there is no doubt.
    """

    rule: str
    doubt: str = ""

    def __str__(self) -> str:
        return f"{self.rule}; {self.doubt}" if self.doubt else self.rule

    def log(self, name: str) -> None:
        """Logs it with the name of one picture; as a warning if there is a doubt."""
        logger.log(logging.WARNING if self.doubt else logging.INFO, "%s: %s", name, self)


def joined(scalings: Iterable[Scaling | None]) -> Scaling | None:
    """Merges several into one; None if there is none."""
    found = [scaling for scaling in scalings if scaling is not None]
    if len(found) < 2:
        return found[0] if found else None
    return Scaling("; ".join(each.rule for each in found), "; ".join(each.doubt for each in found if each.doubt))


class _Rule(NamedTuple):
    text: str
    stated: bool


@dataclass(frozen=True)
class Samples:
    """Values of a picture before scaling.

    Attributes:
        size: width and height.
        mode: mode of the resulting 8-bit picture: "L", "RGB", "RGBA", "CMYK".
        rows: returns the rows from one number to another, `(rows, width, channels)`, integers as int64, others as float64.
        kind: description, such as "16-bit".
        bits: bits of an unsigned integer type whose whole range pictures use; None for signed integers, 32-bit integers and floats.
        stated: the range that the file states, and the place where it does; None if it states none.
        significant: bits that the file calls significant; values that were scaled to the type's range exceed them.
        is_float: whether they are floats.
        inverted: the lowest value is white.
        clear: the values of transparent pixels, if the file defines them.
    """

    size: tuple[int, int]
    mode: str
    rows: Callable[[int, int], Tensor]
    kind: str
    bits: int | None = None
    stated: tuple[float, float, str] | None = None
    significant: int | None = None
    is_float: bool = False
    inverted: bool = False
    clear: tuple[int, ...] | None = None

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the first row and the values of each strip of rows."""
        step = max(1, STRIP // self.size[0])
        for top in range(0, self.size[1], step):
            yield top, self.rows(top, min(top + step, self.size[1]))


def eight_bits(samples: Samples, reading: Reading) -> tuple[Image.Image, Scaling]:
    """Converts a picture to 8 bits, by a rule that depends on this picture alone.

    The first of these that exists defines the range: the given window; the given depth; the file's statement; the range of an unsigned type
    of up to 16 bits; [0, 1] for floats within it. Other pictures are refused, because it is unknown which of their values is white.

    Raises:
        ImageError: no range is known, values are outside a range that is not a window, or values are not finite.
    """
    colours = len(samples.mode) - samples.mode.endswith("A")
    extremes = torch.stack([torch.stack(_extremes(strip, colours)) for _, strip in samples.strips()])
    least, most, most_alpha = float(extremes[:, 0].amin()), float(extremes[:, 1].amax()), float(extremes[:, 2].amax())
    if not math.isfinite(least) or not math.isfinite(most):
        raise ImageError("its values are not all finite numbers")
    low, high, rule = _range(samples, reading, least, most)
    doubt = "" if rule.stated else _doubt(samples, most, most_alpha, high)
    ranges = torch.tensor(
        [[low, high]] * colours + [[0.0, high if most_alpha <= high else 2.0**16 - 1]] * (len(samples.mode) - colours)
    ).double()
    picture = Image.new(samples.mode, samples.size)
    for top, strip in samples.strips():
        level = ((strip.double() - ranges[:, 0]) / (ranges[:, 1] - ranges[:, 0])).clamp(0, 1)
        level = (255 * (1 - level if samples.inverted else level)).round().to(torch.uint8)
        if samples.clear is not None:
            level[(strip == torch.tensor(samples.clear)).all(dim=-1)] = 255
        shown = Image.frombytes(samples.mode, (strip.shape[1], strip.shape[0]), bytes(level.contiguous().untyped_storage()))
        picture.paste(shown, (0, top))
    return picture, Scaling(rule.text + (", inverted" if samples.inverted else ""), doubt)


def _extremes(strip: Tensor, colours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the smallest and largest value of the colours, and the largest of the channels after them."""
    values = strip[..., :colours]
    return values.amin(), values.amax(), strip[..., colours:].amax() if strip.shape[-1] > colours else values.new_zeros(())


def _range(samples: Samples, reading: Reading, least: float, most: float) -> tuple[float, float, _Rule]:
    """Returns the values of black and white, and the rule in words."""
    kind, is_stated = samples.kind, True
    if reading.window is not None:
        low, high = reading.window
        return low, high, _Rule(f"{kind} values: {low:g} to {high:g} are black to white, the window that was given", True)
    if reading.depth is not None and not samples.is_float:
        found = 0.0, 2.0**reading.depth - 1, "the depth that was given"
    elif samples.stated is not None:
        found = samples.stated
    elif samples.significant is not None and most < 2**samples.significant:
        found = 0.0, 2.0**samples.significant - 1, f"the {samples.significant} significant bits of the file (sBIT)"
    elif samples.bits is not None:
        found, is_stated = (0.0, 2.0**samples.bits - 1, "the range of their type"), False
    elif samples.is_float and least >= 0 and most <= 1:
        found, is_stated = (0.0, 1.0, "as in images of floats"), False
    else:
        raise ImageError(
            f"{kind} values from {least:g} to {most:g}, and nothing says which of them are black and white: give --window LOW,HIGH (in "
            f"Python window=(LOW, HIGH)), such as {least:g},{most:g}, for all pictures alike"
        )
    low, high, source = found
    if least < low or most > high:
        raise ImageError(
            f"{kind} values from {least:g} to {most:g} lie outside {low:g} to {high:g}, {source}: give --window LOW,HIGH (in Python "
            "window=(LOW, HIGH)), the values that are black and white in all pictures"
        )
    return low, high, _Rule(f"{kind} values: {low:g} to {high:g} are black to white, {source}", is_stated)


def _doubt(samples: Samples, most: float, most_alpha: float, high: float) -> str:
    """Returns a reason to doubt a range that nobody stated."""
    if most >= high / DARK:
        is_clear = samples.mode.endswith("A") and most_alpha < high / DARK
        return f"alpha is below 1/{DARK} of that, nearly transparent: laid on white, little is seen" if is_clear else ""
    remedy = f"--window 0,{most:.3g}" if samples.is_float else f"--depth {max(8, 2 * -(-int(most).bit_length() // 2))}"
    return f"all values are below 1/{DARK} of that, nearly black: if they use less of the range, say so, as with {remedy}"
