"""Writers of picture files that no available library writes: PNG of any kind, uncompressed BMP and TIFF, DICOM, HDR."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
KINDS = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG colour types by number of channels."""

Values = np.ndarray[Any, np.dtype[Any]]


def chunk(name: bytes, data: bytes) -> bytes:
    """Encodes a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: Values, bits: int, kind: int | None = None, *, interlaced: bool = False, chunks: bytes = b"") -> bytes:
    """Encodes a PNG.

    Args:
        values: `(H, W)` or `(H, W, C)`.
        bits: bits per value, 1 to 16.
        kind: colour type; None: by the number of channels.
        interlaced: whether to interlace with Adam7.
        chunks: chunks before the pixel data.
    """
    values = values[..., None] if values.ndim == 2 else values
    header = struct.pack(
        ">IIBBBBB", values.shape[1], values.shape[0], bits, KINDS[values.shape[2]] if kind is None else kind, 0, 0, interlaced
    )
    passes = [values[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [values]
    rows = b"".join(b"\0" + packed(row.reshape(-1), bits) for each in passes if each.size for row in each)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def packed(values: Values, bits: int) -> bytes:
    """Packs a row of values, the first in the highest bits."""
    if bits == 16:
        return values.astype(">u2").tobytes()
    places = ((values.astype(np.uint16)[:, None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)
    return np.packbits(places.reshape(-1)).tobytes()


def palette(colours: Values) -> bytes:
    """Encodes the PNG chunk of a palette `(N, 3)`."""
    return chunk(b"PLTE", colours.astype(np.uint8).tobytes())


def bmp(
    rows: Sequence[bytes], width: int, bits: int, colours: Values | None = None, masks: Sequence[int] = (), compression: int = 0
) -> bytes:
    """Encodes a BMP of rows from top to bottom; compressed rows are stored unchanged."""
    stored = [row + bytes(-len(row) % 4) if compression in (0, 3) else row for row in rows]
    data = b"".join(stored[::-1])
    table = b"" if colours is None else np.pad(colours[:, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
    size = 40 + 4 * len(masks)
    table = struct.pack(f"<{len(masks)}I", *masks) + table
    about = struct.pack(
        "<IiiHHIIiiII", size, width, len(rows), 1, bits, compression, len(data), 2835, 2835, 0 if colours is None else len(colours), 0
    )
    return b"BM" + struct.pack("<IHHI", 54 + len(table) + len(data), 0, 0, 54 + len(table)) + about + table + data


def tiff(data: bytes, width: int, height: int, tags: dict[int, Any], order: str = "<") -> bytes:
    """Encodes a TIFF of one strip.

    Args:
        data: content of the strip.
        width: width of the picture.
        height: height of the picture.
        tags: additional tags by number: an integer, or several of 16 bits.
        order: "<" for little-endian.
    """
    entries = {256: width, 257: height, 259: 1, 273: 0, 278: height, 279: len(data), **tags}
    behind, place, written = b"", 8 + 2 + 12 * len(entries) + 4, []
    for number, value in sorted(entries.items()):
        if isinstance(value, int):
            written.append([number, 4, 1, struct.pack(f"{order}I", value)])
            continue
        content = struct.pack(f"{order}{len(value)}H", *value)
        if len(content) > 4:
            written.append([number, 3, len(value), struct.pack(f"{order}I", place + len(behind))])
            behind += content
        else:
            written.append([number, 3, len(value), content.ljust(4, b"\0")])
    for entry in written:
        if entry[0] == 273:
            entry[3] = struct.pack(f"{order}I", place + len(behind))
    directory = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in written)
    top = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return top + directory + bytes(4) + behind + data


def dicom(
    values: Values,
    bits: int,
    *,
    preamble: bool = True,
    compressed: bool = False,
    signed: bool = False,
    kind: str = "MONOCHROME2",
    **more: Any,
) -> bytes:
    """Encodes a DICOM file, little-endian with explicit types."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = (
        CTImageStorage,
        generate_uid(),
        ExplicitVRLittleEndian,
    )
    file = io.BytesIO()
    about = FileDataset(file, {}, file_meta=meta, preamble=bytes(128))
    about.SOPClassUID, about.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    about.Rows, about.Columns = values.shape[1:3] if "NumberOfFrames" in more else values.shape[:2]
    about.SamplesPerPixel = 3 if kind in ("RGB", "YBR_FULL") else 1
    about.PhotometricInterpretation = kind
    if about.SamplesPerPixel == 3:
        about.PlanarConfiguration = 0
    about.BitsAllocated = 8 * values.dtype.itemsize
    about.BitsStored, about.HighBit, about.PixelRepresentation = bits, bits - 1, int(signed)
    for name, value in more.items():
        setattr(about, name, value)
    about.PixelData = values.tobytes()
    if compressed:
        about.compress(RLELossless)
    about.save_as(file, enforce_file_format=True)
    return file.getvalue() if preamble else file.getvalue()[132:]


def display_p3() -> bytes:
    """Encodes an ICC profile with the primaries of Display P3 and gamma 2.2."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 8) + b"Wide P3\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": _xyz(0.5151, 0.2412, -0.0011),
        b"gXYZ": _xyz(0.2920, 0.6922, 0.0419),
        b"bXYZ": _xyz(0.1571, 0.0666, 0.7841),
        **{name: b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2) for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    place, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", place + len(data), len(content))
        data += content
    size = 128 + 4 + len(table) + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"\0" * 4, 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    head += _xyz(0.9642, 1.0, 0.8249)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))
