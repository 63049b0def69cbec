"""Values of Pillow pictures with more than 8 bits, and the range that their files state."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

from PIL import Image, TiffImagePlugin

from xattn.data.depth import DARK, Reading, Samples, Scaling
from xattn.data.jpeg2000 import Depth, depths
from xattn.deferred import torch
from xattn.errors import ImageError
from xattn.text import counted

if TYPE_CHECKING:
    from torch import Tensor

BITS_PER_SAMPLE, PHOTOMETRIC, PLANES, SAMPLE_FORMAT, LEAST, MOST = 258, 262, 284, 339, 340, 341  # tags of TIFF
APART = 2  # one of TIFF's planar configurations
FULL = 2**16 - 1
SIGNED = 2  # one of TIFF's sample formats
KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex numbers"}  # by sample format
BIG = 43  # the version of BigTIFF
Rows: TypeAlias = "Callable[[int, int], Tensor]"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class Stored(NamedTuple):
    """How a file stores its samples, determined before Pillow loads them.

    Attributes:
        raw: Pillow's raw mode; empty if it has none.
        head: the beginning of the file.
        is_premultiplied: whether colours are multiplied by alpha.
        largest: the value of white in a PPM, by which Pillow scales.
        channels: depths of the channels of JPEG 2000.
    """

    raw: str
    head: bytes = b""
    is_premultiplied: bool = False
    largest: int | None = None
    channels: list[Depth] = []  # noqa: RUF012  # never changed


def stored(picture: Image.Image, head: bytes = b"") -> Stored:
    """Determines how a picture that is not loaded yet is stored; corrects what Pillow would unpack wrongly.

    Raises:
        ImageError: Pillow unpacks its kind of samples wrongly.
    """
    tile = getattr(picture, "tile", None) or [("", (), 0, "")]
    raw, first = raw_mode(picture), tile[0][3]
    bits = max(_numbers(_tag(picture, BITS_PER_SAMPLE, whole=True)), default=8)
    if bits > 8 and picture.mode[0] not in "IF" and ";16" not in raw and (raw or _tag(picture, PLANES) == APART):
        # separate planes, which Pillow reads as if they had 8 bits
        if bits != 16 or raw not in tuple(picture.mode) or picture.mode not in ("RGB", "RGBA"):
            raise ImageError(
                f"a TIFF of {bits:g} bits per sample in this layout is read wrongly by Pillow: save it with 8 or 16 bits, planes together"
            )
        order = "B" if getattr(picture, "tag_v2").prefix == b"MM" else "L"  # noqa: B009  # TIFF alone
        _unpack(picture, lambda kept: f"{kept};16{order}")
    is_premultiplied = raw.startswith("RGBa;16")
    if is_premultiplied:  # here divided by alpha, in 16 bits
        _unpack(picture, lambda kept: kept.replace("RGBa", "RGBA"))
    is_scaled = picture.format == "PPM" and str(tile[0][0]).startswith("ppm") and isinstance(first, tuple) and len(first) > 1
    channels = depths(head) if picture.format == "JPEG2000" else []
    _refuse_channels(picture, channels)
    return Stored(raw_mode(picture), head, is_premultiplied, int(first[1]) if is_scaled else None, channels)


def _refuse_channels(picture: Image.Image, channels: list[Depth]) -> None:
    """Raises for JPEG 2000 depths that Pillow unpacks wrongly: several channels, or a palette, with other than 8 bits."""
    kinds = {*channels}
    if kinds <= {Depth(8, False)}:
        return
    first, several = channels[0], len(picture.getbands()) > 1
    if len(kinds) == 1 and picture.mode != "P" and (not several or (first.bits < 8 and not first.signed)):
        return
    shown = ", ".join(map(str, channels if len(kinds) > 1 else [first]))
    raise ImageError(
        f"JPEG 2000 with a palette or several channels of {shown} is read wrongly by Pillow: save it as a PNG or TIFF of 16 bits"
    )


def raw_mode(picture: Image.Image) -> str:
    """Returns how Pillow will unpack the samples of a file that is not loaded yet; empty for other pictures."""
    tile = getattr(picture, "tile", None)
    return _raw(tile[0]) if tile else ""


def _raw(tile: Any) -> str:
    arguments = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
    return arguments if isinstance(arguments, str) else ""


def _unpack(picture: Image.Image, changed: Callable[[str], str]) -> None:
    """Changes the raw mode of all tiles of a picture that is not loaded yet."""
    found = []
    for tile in getattr(picture, "tile"):  # noqa: B009  # only pictures of files have it
        arguments = (changed(_raw(tile)), *tile[3][1:]) if isinstance(tile[3], tuple) else changed(_raw(tile))
        found.append(tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments))
    setattr(picture, "tile", found)  # noqa: B010


def is_deep(picture: Image.Image, how: Stored) -> bool:
    """Checks whether a picture that is not loaded yet has samples other than 8 unsigned bits."""
    is_odd = any(channel != Depth(8, False) for channel in how.channels)
    return picture.mode[0] in "IF" or ";16" in how.raw or _tag(picture, SAMPLE_FORMAT) == SIGNED or is_odd or (how.largest or 0) > 255


def has_low_bytes(picture: Image.Image, how: Stored) -> bool:
    """Checks whether Pillow keeps only the high byte of several 16-bit channels, and can be made to unpack the low byte."""
    return picture.mode[0] not in "IF" and ";16" in how.raw


def take_low_bytes(picture: Image.Image) -> None:
    """Makes Pillow, which keeps only the high byte of pictures with several 16-bit channels, unpack the low byte instead.

    Pillow has no such mode for grey with alpha, so it is unpacked as four channels: high and low byte of grey, then of alpha.
    """
    _unpack(picture, lambda kept: "RGBA" if kept.startswith("LA;") else kept[:-1] + OTHER_BYTE[kept[-1]])


def high_bytes(picture: Image.Image, how: Stored, reading: Reading) -> tuple[Image.Image, Scaling] | None:
    """Reads a colour PPM with more than 8 bits, which Pillow reduces to 8; None for other pictures.

    Raises:
        ImageError: the depth or window cannot be applied.
    """
    if how.largest is None or len(picture.getbands()) < 2:
        return None
    if reading.depth is not None or reading.window is not None:
        raise ImageError(
            "depth and window cannot be applied to a colour PPM, which Pillow reads with 8 bits: save it as a PNG or TIFF of 16 bits"
        )
    doubt = f"all values are below 1/{DARK} of that, nearly black: if they use less of the range, save it as a PNG and give --depth"
    kind = f"{how.largest.bit_length()}-bit"
    rule = f"{kind} values: 0 to {how.largest} are black to white, the largest value of the file, read in 8 bits"
    return picture, Scaling(rule, doubt if _largest_of(picture) < 256 // DARK else "")


def _largest_of(picture: Image.Image) -> int:
    """Returns the largest colour value of a picture with several channels."""
    names = picture.getbands()
    return max(int(picture.getchannel(name).getextrema()[1]) for name in names if name != "A")  # type: ignore[arg-type]  # a number each


def samples_of(picture: Image.Image, low: Image.Image | None, how: Stored) -> Samples:
    """Returns the values of a loaded picture.

    Args:
        picture: the loaded picture.
        low: the same picture with the low bytes, for several channels of 16 bits.
        how: how it was stored.
    """
    if how.channels:
        return _of_jpeg2000(picture, how.channels[0])
    raw = how.raw
    given = picture.info.get("transparency")
    clear = (given,) if isinstance(given, int) else tuple(given) if isinstance(given, tuple) else None
    stated, size = _stated(picture), picture.size
    if low is not None:
        mode = "LA" if raw.startswith("LA;") else picture.mode
        rows = _grey_and_alpha(low) if mode == "LA" else _both_bytes(picture, low)
        rows = _divided(rows) if how.is_premultiplied else rows
        return Samples(size, mode, rows, "16-bit", 16, stated, significant_bits(how.head), clear=clear)
    inverted = _tag(picture, PHOTOMETRIC) == 0 and picture.mode[0] in "IF"  # Pillow inverts 8-bit pictures itself
    if picture.mode == "F":
        return Samples(size, "L", _rows(picture, torch.float32), "float", stated=stated, is_float=True, inverted=inverted)
    if how.largest is not None and how.largest < FULL:
        rows, most = _scaled_back(_rows(picture, torch.int32), how.largest), (0.0, float(how.largest), "the largest value of the file")
        return Samples(size, "L", rows, f"{how.largest.bit_length()}-bit", stated=most)
    bits, signed = _bits(picture, raw), _tag(picture, SAMPLE_FORMAT) == SIGNED
    if picture.mode == "L":
        rows = _rows(picture, torch.int8)
    elif picture.mode == "I;16":
        rows = _rows(picture, torch.uint16)
    else:
        is_unsigned = bits == 32 and not signed and picture.format == "TIFF"
        rows = _rows(picture if picture.mode == "I" else picture.convert("I"), torch.int32, unsigned=is_unsigned)
    kind, own = f"{'signed ' if signed else ''}{bits}-bit", None if signed or bits > 16 else bits
    return Samples(size, "L", rows, kind, own, stated, significant_bits(how.head), inverted=inverted, clear=clear)


def _bits(picture: Image.Image, raw: str) -> int:
    stated = _tag(picture, BITS_PER_SAMPLE)
    if stated is not None:
        return int(stated)
    if picture.format in ("PNG", "PPM", "JPEG2000") or picture.mode.startswith("I;16") or raw.startswith("I;16"):
        return 16
    return 32


def _rows(picture: Image.Image, dtype: torch.dtype, *, unsigned: bool = False) -> Rows:
    def rows(top: int, bottom: int) -> Tensor:
        strip = picture.crop((0, top, picture.width, bottom))
        values = torch.frombuffer(bytearray(strip.tobytes()), dtype=dtype).view(bottom - top, picture.width, 1)
        if dtype.is_floating_point:
            return values.double()
        return values.long() & 0xFFFFFFFF if unsigned else values.long()

    return rows


def _of_jpeg2000(picture: Image.Image, depth: Depth) -> Samples:
    """Restores values as in the file: Pillow shifts them to the highest of 8 or 16 bits, and signed ones above 0."""
    moved = (8 if depth.bits <= 8 else 16) - depth.bits
    below = 2 ** (depth.bits - 1) if depth.signed else 0
    grey = _rows(picture, torch.uint16) if picture.mode == "I;16" else lambda top, bottom: _bytes(picture, top, bottom)
    kind = f"{'signed ' if depth.signed else ''}{depth.bits}-bit"
    mode = "L" if picture.mode == "I;16" else picture.mode
    return Samples(picture.size, mode, lambda top, bottom: (grey(top, bottom) >> moved) - below, kind, None if depth.signed else depth.bits)


def _scaled_back(rows: Rows, largest: int) -> Rows:
    """Restores values up to the largest of a PPM, which Pillow scales to 16 bits."""
    return lambda top, bottom: (rows(top, bottom).double() * largest / FULL).round().long()


def _divided(rows: Rows) -> Rows:
    """Divides 16-bit colours by their alpha; colours of a transparent pixel are 0."""

    def divided(top: int, bottom: int) -> Tensor:
        values = rows(top, bottom)
        alpha = values[..., 3:]
        colours = (values[..., :3].double() * FULL / alpha.clamp(min=1)).round().clamp(max=FULL).long()
        return torch.cat([colours * (alpha > 0), alpha], dim=-1)

    return divided


def _bytes(picture: Image.Image, top: int, bottom: int) -> Tensor:
    strip = picture.crop((0, top, picture.width, bottom))
    return torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8).view(bottom - top, picture.width, -1).long()


def _both_bytes(high: Image.Image, low: Image.Image) -> Rows:
    return lambda top, bottom: 256 * _bytes(high, top, bottom) + _bytes(low, top, bottom)


def _grey_and_alpha(unpacked: Image.Image) -> Rows:
    def rows(top: int, bottom: int) -> Tensor:
        found = _bytes(unpacked, top, bottom)
        return 256 * found[..., 0::2] + found[..., 1::2]

    return rows


def _stated(picture: Image.Image) -> tuple[float, float, str] | None:
    """Returns the range that a file states, and where it states it."""
    least, most = _numbers(_tag(picture, LEAST, whole=True)), _numbers(_tag(picture, MOST, whole=True))
    if most and max(most) > min(least or [0.0]):
        return min(least or [0.0]), max(most), "SMinSampleValue and SMaxSampleValue of the file"
    return None


def significant_bits(head: bytes) -> int | None:
    """Returns the largest number of significant bits of a channel, from the sBIT chunk of a PNG; None if there is none.

    Writers that follow the standard scale such values to all 16 bits, so that the number of bits carries no information; values that fit
    into fewer bits were not scaled.
    """
    place = len(SIGNATURE)
    while head.startswith(SIGNATURE) and place + 8 <= len(head):
        length, kind = struct.unpack(">I4s", head[place : place + 8])
        if kind == b"sBIT" and 0 < length <= 4:
            return max(head[place + 8 : place + 8 + length], default=None)
        if kind in (b"IDAT", b"IEND"):
            return None
        place += 12 + length
    return None


def described(file: IO[bytes], head: bytes) -> str:
    """Describes the samples of a TIFF in words, after a space; empty if the file does not state them."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if head[2] == BIG or head[3] == BIG else 8])
        file.seek(tags.next)
        tags.load(file)
        bits = [int(number) for number in _numbers(tags.get(BITS_PER_SAMPLE))]
        kind = KINDS.get(int(max(_numbers(tags.get(SAMPLE_FORMAT)), default=1)), "samples of another kind")
    except Exception:  # a damaged file can raise errors of any kind
        return ""
    return f" of {counted(len(bits), 'channel')}, {kind} of {max(bits)} bits," if bits else ""


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in (values if isinstance(values, tuple) else () if values is None else (values,))]


def _tag(picture: Image.Image, number: int, *, whole: bool = False) -> Any:
    tags = getattr(picture, "tag_v2", None)
    found = None if tags is None else tags.get(number)
    return found[0] if isinstance(found, tuple) and found and not whole else found
