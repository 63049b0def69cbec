"""The values of Pillow's pictures of more than 8 bits, and what their files say of the range."""

from __future__ import annotations

import struct
import sys
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from xattn.data.depth import Samples

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT, LEAST, MOST = 258, 262, 339, 340, 341  # tags of TIFF
SIGNED = 2  # one of its sample formats
SIGNATURE = b"\x89PNG\r\n\x1a\n"
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def raw_mode(picture: Image.Image) -> str:
    """How Pillow will unpack the samples of a file that is not loaded yet; empty for other pictures."""
    tile = getattr(picture, "tile", None)
    arguments = tile[0][3] if tile else ""
    arguments = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return arguments if isinstance(arguments, str) else ""


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture that is not loaded yet has samples that 8 unsigned bits do not hold."""
    raw = raw_mode(picture)
    return picture.mode[0] in "IF" or (";16" in raw and not raw.startswith("RGBa")) or _tag(picture, SAMPLE_FORMAT) == SIGNED


def take_low_bytes(picture: Image.Image) -> None:
    """Makes Pillow, which keeps the high byte alone of pictures with several 16-bit channels, unpack the low byte instead.

    Grey with alpha, for which it has no such way, is unpacked as four channels: high and low byte of grey, then of alpha.
    """
    tile: Any = getattr(picture, "tile")[0]  # noqa: B009  # only pictures of files have it
    kept = raw_mode(picture)
    changed = "RGBA" if kept.startswith("LA;") else kept[:-1] + OTHER_BYTE[kept[-1]]
    arguments = (changed, *tile[3][1:]) if isinstance(tile[3], tuple) else changed
    setattr(picture, "tile", [tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)])  # noqa: B010


def samples_of(picture: Image.Image, low: Image.Image | None, raw: str, head: bytes = b"") -> Samples:
    """The values of a loaded picture.

    Args:
        picture: loaded.
        low: the same with the low bytes, for several channels of 16 bits.
        raw: its raw mode before it was loaded.
        head: the beginning of its file.
    """
    given = picture.info.get("transparency")
    clear = (given,) if isinstance(given, int) else tuple(given) if isinstance(given, tuple) else None
    stated, size = _stated(picture), picture.size
    if low is not None:
        mode = "LA" if raw.startswith("LA;") else picture.mode
        rows = _grey_and_alpha(low) if mode == "LA" else _both_bytes(picture, low)
        return Samples(size, mode, rows, "16-bit", 16, stated, significant_bits(head), clear=clear)
    inverted = _tag(picture, PHOTOMETRIC) == 0 and picture.mode[0] in "IF"  # Pillow inverts those of 8 bits itself
    if picture.mode == "F":
        return Samples(size, "L", _rows(picture, torch.float32), "float", stated=stated, is_float=True, inverted=inverted)
    bits, signed = _bits(picture, raw), _tag(picture, SAMPLE_FORMAT) == SIGNED
    if picture.mode == "L":
        rows = _rows(picture, torch.int8)
    elif picture.mode == "I;16":
        rows = _rows(picture, torch.uint16)
    else:
        is_unsigned = bits == 32 and not signed and picture.format == "TIFF"
        rows = _rows(picture if picture.mode == "I" else picture.convert("I"), torch.int32, unsigned=is_unsigned)
    kind, own = f"{'signed ' if signed else ''}{bits}-bit", None if signed or bits > 16 else bits
    return Samples(size, "L", rows, kind, own, stated, significant_bits(head), inverted=inverted, clear=clear)


def _bits(picture: Image.Image, raw: str) -> int:
    stated = _tag(picture, BITS_PER_SAMPLE)
    if stated is not None:
        return int(stated)
    if picture.format in ("PNG", "PPM", "JPEG2000") or picture.mode.startswith("I;16") or raw.startswith("I;16"):
        return 16
    return 32


def _rows(picture: Image.Image, dtype: torch.dtype, *, unsigned: bool = False) -> Any:
    def rows(top: int, bottom: int) -> Tensor:
        strip = picture.crop((0, top, picture.width, bottom))
        values = torch.frombuffer(bytearray(strip.tobytes()), dtype=dtype).view(bottom - top, picture.width, 1)
        if dtype.is_floating_point:
            return values.double()
        return values.long() & 0xFFFFFFFF if unsigned else values.long()

    return rows


def _bytes(picture: Image.Image, top: int, bottom: int) -> Tensor:
    strip = picture.crop((0, top, picture.width, bottom))
    return torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8).view(bottom - top, picture.width, -1).long()


def _both_bytes(high: Image.Image, low: Image.Image) -> Any:
    return lambda top, bottom: 256 * _bytes(high, top, bottom) + _bytes(low, top, bottom)


def _grey_and_alpha(unpacked: Image.Image) -> Any:
    def rows(top: int, bottom: int) -> Tensor:
        found = _bytes(unpacked, top, bottom)
        return 256 * found[..., 0::2] + found[..., 1::2]

    return rows


def _stated(picture: Image.Image) -> tuple[float, float, str] | None:
    """The range that a file states, and where."""
    least, most = _numbers(_tag(picture, LEAST, whole=True)), _numbers(_tag(picture, MOST, whole=True))
    if most and max(most) > min(least or [0.0]):
        return min(least or [0.0]), max(most), "SMinSampleValue and SMaxSampleValue of the file"
    return None


def significant_bits(head: bytes) -> int | None:
    """The largest number of significant bits of a channel, from the sBIT chunk of a PNG; None if there is none.

    Writers that follow the standard scale such values to all 16 bits, so that the bits say nothing; values that need no more bits were
    not scaled.
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


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in (values if isinstance(values, tuple) else () if values is None else (values,))]


def _tag(picture: Image.Image, number: int, *, whole: bool = False) -> Any:
    tags = getattr(picture, "tag_v2", None)
    found = None if tags is None else tags.get(number)
    return found[0] if isinstance(found, tuple) and found and not whole else found
