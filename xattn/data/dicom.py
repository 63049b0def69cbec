"""Reads the first frame of DICOM files with pydicom, using the window that they state."""

from __future__ import annotations

import importlib
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from xattn.data.depth import DARK, Reading, Samples, Scaling, eight_bits, joined
from xattn.deferred import torch
from xattn.errors import ImageError, MissingPackageError

if TYPE_CHECKING:
    from torch import Tensor

MARK_AT, MARK = 128, b"DICM"
FILE_WINDOW = "the window of the file"
SUFFIXES = frozenset([".dcm", ".dicom"])


def is_dicom(head: bytes) -> bool:
    """Checks whether the beginning of a file is that of a DICOM file."""
    return head[MARK_AT : MARK_AT + len(MARK)] == MARK


def read_dicom(file: IO[bytes], reading: Reading) -> tuple[Image.Image, Scaling | None]:
    """Reads the first frame: grey by its rescale slope and window, with MONOCHROME1 inverted; colours unchanged.

    The window is the given one, else the first one of the file, else the range of the stored bits.

    Raises:
        ImageError: pydicom is not installed, or cannot decode the file; the reason says which.
    """
    try:
        pydicom, pixels = importlib.import_module("pydicom"), importlib.import_module("pydicom.pixels")
    except ImportError as error:
        raise ImageError(str(MissingPackageError("pydicom", "dicom", "a DICOM file"))) from error
    about = pydicom.dcmread(file, force=True)
    if "PixelData" not in about:
        raise ImageError("a DICOM file without a picture, or none")
    width, height = int(about.Columns), int(about.Rows)
    if width * height > reading.max_pixels:
        raise ImageError(f"{width}×{height} pixels, more than {reading.max_pixels:,}: give --max-pixels (in Python max_pixels)")
    stored = pixels.pixel_array(about, index=0)
    picture, scaling = _picture(pixels, about, stored, reading)
    more = Scaling("the first of several pictures in the file") if _first(about.get("NumberOfFrames") or 1) != 1 else None
    return picture, joined([scaling, more])


def _picture(pixels: Any, about: Any, stored: Any, reading: Reading) -> tuple[Image.Image, Scaling | None]:
    kind = str(about.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        stored = pixels.apply_color_lut(stored, about)
        return eight_bits(_colours(torch.from_numpy(stored.astype("int64")), 8 * stored.dtype.itemsize), Reading())[0], None
    if stored.ndim == 3:
        bits = int(about.BitsStored)
        picture, scaling = eight_bits(_colours(torch.from_numpy(stored.astype("int64")), bits), Reading())
        return picture, None if bits == 8 else scaling
    values = torch.from_numpy(pixels.apply_modality_lut(stored, about).astype("float64"))[..., None]
    return _grey(about, values, reading)


def _colours(values: Tensor, bits: int) -> Samples:
    return Samples((values.shape[1], values.shape[0]), "RGB", lambda top, bottom: values[top:bottom, :, :3], f"{bits}-bit", bits)


def _grey(about: Any, values: Tensor, reading: Reading) -> tuple[Image.Image, Scaling]:
    stated = (*_stored_range(about), "the range of the bits stored")
    if reading.window is None and (window := _window(about)) is not None:
        centre, width, function = window
        values = _windowed(values, centre, width, function)
        stated = (0.0, 1.0, FILE_WINDOW)
    samples = Samples(
        (values.shape[1], values.shape[0]),
        "L",
        lambda top, bottom: values[top:bottom],
        "DICOM",
        stated=stated,
        is_float=True,  # its range is known, so no depth is needed
        inverted=about.PhotometricInterpretation == "MONOCHROME1",
    )
    picture, scaling = eight_bits(samples, Reading(window=reading.window))
    least, most = float(values.amin()), float(values.amax())
    if reading.window is None and most - least < (stated[1] - stated[0]) / DARK and stated[2] != FILE_WINDOW:
        doubt = f"all values lie in 1/{DARK} of that, nearly one grey: give --window LOW,HIGH, such as -160,240"
        return picture, Scaling(scaling.rule, doubt)
    if stated[2] == FILE_WINDOW:
        return picture, Scaling("DICOM values: black to white by the window of each file" + (", inverted" if samples.inverted else ""))
    return picture, scaling


def _stored_range(about: Any) -> tuple[float, float]:
    """Returns the range of values of the stored bits after the rescale slope."""
    bits, signed = int(about.BitsStored), int(about.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(about.get("RescaleSlope", 1) or 1), float(about.get("RescaleIntercept", 0) or 0)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return ends[0], ends[1]


def _window(about: Any) -> tuple[float, float, str] | None:
    """Returns centre, width and function of the first window of a file."""
    centre, width = (_first(about.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width < 1:
        return None
    return centre, width, str(about.get("VOILUTFunction", "LINEAR") or "LINEAR")


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float)) else value[0])


def _windowed(values: Tensor, centre: float, width: float, function: str) -> Tensor:
    """Maps values to [0, 1] with a window (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return torch.sigmoid(4 * (values - centre) / width)
    if function == "LINEAR_EXACT" or width == 1:
        return ((values - centre) / width + 0.5).clamp(0, 1)
    return ((values - (centre - 0.5)) / (width - 1) + 0.5).clamp(0, 1)
