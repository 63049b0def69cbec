"""Reads and writes NumPy's file format without NumPy; nothing in a file is executed."""

from __future__ import annotations

import ast
import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from xattn.errors import InputError

MAGIC = b"\x93NUMPY"
DTYPES = {"<f4": torch.float32, "<f8": torch.float64, "<i4": torch.int32, "<i8": torch.int64}
READ = {
    **DTYPES,
    **{"<f2": torch.float16, "<i2": torch.int16, "<u2": torch.uint16, "|i1": torch.int8, "|u1": torch.uint8, "|b1": torch.bool},
}


def npy(values: Tensor, dtype: torch.dtype = torch.float32) -> bytes:
    """Returns a tensor as the content of a NumPy file, format 1.0.

    Args:
        values: a tensor of any shape.
        dtype: float32, float64, int32 or int64.
    """
    descr = next(name for name, known in DTYPES.items() if known == dtype)
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple(values.shape)}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    content: bytes = values.to(dtype).cpu().contiguous().numpy().astype(descr).tobytes()
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(header)) + header.encode("ascii") + content


def read_npy(path: str | Path) -> Tensor:
    """Reads an array of numbers from a NumPy file, format 1.0 to 3.0: little-endian floats, integers up to 64 bits, or bool.

    Raises:
        InputError: the file cannot be read, is not in this format, has another type of values, or is truncated.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' could not be read ({error.strerror}).") from error
    return npy_values(content, path)


def npy_values(content: bytes, path: str | Path) -> Tensor:
    """Parses the array in the content of a NumPy file.

    Args:
        content: content of the file.
        path: its name in messages.

    Raises:
        InputError: as for `read_npy`.
    """
    try:
        major, shape, descr, fortran, start = _header(content)
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error, RecursionError, MemoryError) as error:
        raise InputError(f"'{path}' is not a NumPy file, or its header is damaged: a .npy is needed.") from error
    if major > 3 or descr not in READ:
        raise InputError(f"'{path}' holds values of type {descr!r:.40}; {', '.join(READ)} are read. Write it with array.astype('<f8').")
    dtype = READ[descr]
    needed = math.prod(shape) * dtype.itemsize
    if len(content) - start != needed:
        raise InputError(f"'{path}' has {len(content) - start} bytes of values where {shape} of {descr} take {needed}: it is cut off.")
    values = torch.frombuffer(bytearray(content[start:]), dtype=dtype) if needed else torch.empty(0, dtype=dtype)
    return values.view(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous() if fortran else values.view(shape)


def _header(content: bytes) -> tuple[int, tuple[int, ...], str, bool, int]:
    """Parses version, shape, type, column order, and the offset of the values."""
    if content[:6] != MAGIC:
        raise ValueError("magic")
    major = content[6]
    size = struct.calcsize("<H" if major == 1 else "<I")
    length = struct.unpack_from("<H" if major == 1 else "<I", content, 8)[0]
    start = 8 + size + length
    if start > len(content) or length > 10_000:
        raise ValueError("header")
    about = ast.literal_eval(content[8 + size : start].decode("latin-1").strip())
    shape, descr, fortran = about["shape"], about["descr"], about["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("shape")
    if not isinstance(fortran, bool):
        raise ValueError("order")
    return major, shape, str(descr), fortran, start
