"""Channel depths of a JPEG 2000 file, which Pillow reads but does not report."""

from __future__ import annotations

import struct
from typing import NamedTuple

MARKS = b"\xff\x4f\xff\x51"  # start markers of the codestream and of its sizes
CHANNELS_AT = 40  # offset of the number of channels from the first marker (ISO/IEC 15444-1, A.5.1)
VARIOUS = 255


class Depth(NamedTuple):
    """Depth of a channel: number of bits, and whether its values are signed."""

    bits: int
    signed: bool

    def __str__(self) -> str:
        return f"{self.bits} {'signed ' * self.signed}bits"


def depths(head: bytes) -> list[Depth]:
    """Returns the depth of each channel, or one for all; empty if the beginning of the file does not state it.

    Args:
        head: the beginning of the file.
    """
    if (place := head.find(MARKS)) >= 0 and len(head) >= place + CHANNELS_AT + 2:
        (count,) = struct.unpack(">H", head[place + CHANNELS_AT : place + CHANNELS_AT + 2])
        start = place + CHANNELS_AT + 2
        return [_depth(code) for code in head[start : start + 3 * count : 3]]
    if (place := head.find(b"ihdr")) >= 0 and len(head) >= place + 15 and head[place + 14] != VARIOUS:
        return [_depth(head[place + 14])]
    if (place := head.find(b"bpcc")) >= 4:
        (length,) = struct.unpack(">I", head[place - 4 : place])
        return [_depth(code) for code in head[place + 4 : place - 4 + length]]
    return []


def _depth(code: int) -> Depth:
    return Depth((code & 127) + 1, code >= 128)
