"""Decodes a file or its content to the picture that a viewer would display."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from xattn.data import dicom, urls
from xattn.data.colours import notes_of
from xattn.data.depth import MAX_PIXELS, Reading, Scaling, eight_bits, joined
from xattn.data.samples import described, has_low_bytes, high_bytes, is_deep, samples_of, stored, take_low_bytes
from xattn.errors import ImageError, MissingPackageError, RunError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
"""Pillow's formats that are opened, regardless of a file's name. Others call other programs, or are not photographs."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of files in these formats."""

OTHERS = {
    b"%!PS": "an EPS",
    b"\xc5\xd0\xd3\xc6": "an EPS",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"8BPS": "a PSD",
    b"DDS ": "a DDS",
    b"\x76\x2f\x31\x01": "an OpenEXR picture",
    b"#?RADIANCE": "a Radiance HDR picture",
    b"#?RGBE": "a Radiance HDR picture",
    b"Pf": "a PFM",
    b"PF": "a PFM",
    b"\xff\x0a": "a JPEG XL",
    b"JXL ": "a JPEG XL",
    b"II\xbc": "a JPEG XR",
    b"qoif": "a QOI picture",
    b"\x01\xda": "an SGI picture",
    b"\x0a\x05\x01": "a PCX",
    b"<!DOCTYPE": "a page of the web",
    b"<html": "a page of the web",
    b"<?xml": "XML, perhaps an SVG",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file",
}
"""First bytes of other kinds of files, which are not pictures in a readable format."""

SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga", ".ico", ".dcm", ".dicom"),
    ]
)
"""Endings of files that are read as pictures."""

UNREACHED = "could not be reached: "
"""The beginning of an error of a picture that may become readable later."""

HEAD = 4096
ORIENTATION = 0x0112  # a tag of EXIF
STRIP = 1 << 20  # pixels that are composited on white in one step
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_limit = threading.Lock()


def is_picture(head: bytes) -> bool:
    """Checks by a file's first bytes whether its format can be read."""
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", *TIFF, b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"))
        or (head.startswith(b"BM") and head[6:10] == bytes(4))
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", *_HEIF))
        or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace())
        or dicom.is_dicom(head)
    )


def read_picture(path: str | Path, channels: int = 3, reading: Reading | None = None) -> Image.Image:
    """Reads a picture as a viewer displays it, in RGB: EXIF orientation applied, first frame, alpha on white.

    The content determines the format, regardless of the name. Pictures with more than 8 bits are reduced to 8 by `eight_bits`; the rule is
    logged.

    Args:
        path: path or URL of the picture.
        channels: number of channels that will be used; for more than three, its own channels are unchanged.
        reading: depth, window and largest size.

    Raises:
        ImageError: the file is empty, truncated, not a picture, or larger than `Reading.max_pixels`, or it is unknown which of its values
            is white.
        RunError: the storage does not respond.
    """
    picture, scaling = read_scaled(path, channels, reading or Reading())
    if scaling is not None:
        _log_once(scaling, str(path))
    return picture


@functools.lru_cache(maxsize=256)
def _log_once(scaling: Scaling, name: str) -> None:
    scaling.log(name)


def read_scaled(path: str | Path, channels: int, reading: Reading) -> tuple[Image.Image, Scaling | None]:
    """Reads like `read_picture`; also returns the rule by which more than 8 bits were reduced to 8."""
    with _opened(path) as file:
        is_named_dicom = Path(str(path)).suffix.lower() in dicom.SUFFIXES
        return decode(file, channels, reading, is_dicom=is_named_dicom)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    if isinstance(path, str) and urls.is_url(path):
        yield io.BytesIO(_fetched(path))
        return
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise ImageError("not a regular file: a folder, a pipe or a device")
        if about.st_size == 0:
            raise ImageError("empty file (0 bytes)")
        file = open(path, "rb")  # noqa: SIM115  # closed below: errors inside are the decoder's
    except OSError as error:
        raise ImageError(f"{UNREACHED}{error.strerror or error}") from error
    with file:
        yield file


def _fetched(url: str) -> bytes:
    try:
        return urls.read(url)
    except (FileNotFoundError, PermissionError) as error:
        raise ImageError(f"{UNREACHED}{error.strerror or f'it is not there, or may not be read: {error}'}") from error
    except OSError as error:  # silent storage shows nothing about the image: the run stops, and can be resumed
        raise RunError(f"'{url}' could not be read ({error}). What was finished is kept: run the same command to continue.") from error


def decode(file: IO[bytes], channels: int, reading: Reading, *, is_dicom: bool = False) -> tuple[Image.Image, Scaling | None]:
    """Decodes the picture in an open file.

    Args:
        file: positioned at its beginning.
        channels: number of channels that will be used.
        reading: depth, window and largest size.
        is_dicom: whether it is a DICOM file even if it does not begin like one.

    Raises:
        ImageError: it cannot be decoded; gives the reason.
    """
    try:
        file.seek(0)
        head = file.read(HEAD)
        file.seek(0)
        if not head:
            raise ImageError("empty file (0 bytes)")
        if is_dicom or dicom.is_dicom(head):
            picture, scaling = dicom.read_dicom(file, reading)
            return as_rgb(picture) if channels <= 3 else picture, scaling
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked here, and Pillow's warnings about metadata are irrelevant
            with _open(file, head, reading) as opened:
                return _decoded(opened, file, head, channels, reading)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_unknown(file, head)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error} If it is not one, give --max-pixels (in Python max_pixels)") from error
    except MemoryError as error:
        raise ImageError("there is not enough memory to decode it") from error
    except OSError as error:
        raise ImageError(f"{UNREACHED}{error.strerror}" if error.strerror else f"torn or damaged: {error}") from error
    except Exception as error:  # errors of decoders on broken files have no common base class
        raise ImageError(f"damaged: {type(error).__name__} {error}") from error


def _unknown(file: IO[bytes], head: bytes) -> str:
    """Returns why a file is not opened, by the kind of file that its first bytes indicate."""
    if head.startswith(TIFF):
        return (
            f"a TIFF{described(file, head)} that Pillow does not read, or damaged: save it with 8 or 16 bits, or as floats of 32 "
            "bits in one channel"
        )
    if head.startswith(b"\xff\xd8\xff"):
        return "a JPEG that Pillow does not read, such as one of 12 bits, or damaged: save it as a PNG"
    name = next((name for mark, name in OTHERS.items() if mark in head[: len(mark) + 8]), None)
    if name is None and is_picture(head):
        return "damaged: it begins as a picture and cannot be opened as one"
    if name is None:
        return "not a picture in a known format"
    return f"{name}, which is not read: save it as a PNG"


def _open(file: IO[bytes], head: bytes, reading: Reading) -> Image.Image:
    """Opens the picture in a file without loading it; it is at most as large as allowed."""
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
        try:
            plugin = importlib.import_module("pillow_heif")
        except ImportError as error:
            raise ImageError(str(MissingPackageError("pillow-heif", "heic", "a HEIC picture"))) from error
        picture: Image.Image = plugin.HeifImageFile(file)
    else:
        with _bomb_limit(reading.max_pixels):
            picture = Image.open(file, formats=_formats())
    width, height = picture.size
    if width * height > reading.max_pixels:
        raise ImageError(
            f"{width}×{height} pixels, more than {reading.max_pixels:,}: a decompression bomb? If not, give --max-pixels (in Python "
            "max_pixels)"
        )
    return picture


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # an older Pillow lacks AVIF


@contextlib.contextmanager
def _bomb_limit(max_pixels: int) -> Iterator[None]:
    """Raises Pillow's own size limit while a file is opened, if larger pictures are allowed."""
    if max_pixels <= MAX_PIXELS:
        yield
        return
    with _limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decoded(picture: Image.Image, file: IO[bytes], head: bytes, channels: int, reading: Reading) -> tuple[Image.Image, Scaling | None]:
    picture.seek(0)
    notes, how = notes_of(picture, head), stored(picture, head)
    deep, low = is_deep(picture, how), None
    picture.load()
    if not deep:
        ImageOps.exif_transpose(picture, in_place=True)  # without a copy if there is nothing to rotate
        return picture.copy() if channels > 3 else as_rgb(picture), joined(notes)
    if has_low_bytes(picture, how):
        low = _open(file, head, reading)
        stored(low, head)
        take_low_bytes(low)
        low.load()
    scaled, scaling = high_bytes(picture, how, reading) or eight_bits(samples_of(picture, low, how), reading)
    scaled.getexif()[ORIENTATION] = picture.getexif().get(ORIENTATION, 1)
    turned = ImageOps.exif_transpose(scaled)
    return turned if channels > 3 else as_rgb(turned), joined([scaling, *notes])


def from_memory(picture: Image.Image, channels: int, reading: Reading) -> tuple[Image.Image, Scaling | None]:
    """Converts a picture of a data set in the way that `read_scaled` does for a file."""
    notes, how, scaling = notes_of(picture), stored(picture), None
    if is_deep(picture, how):
        if has_low_bytes(picture, how):  # opened but not loaded yet: only the file has its low bytes
            return decode(getattr(picture, "fp"), channels, reading)  # noqa: B009
        picture.load()
        picture, scaling = high_bytes(picture, how, reading) or eight_bits(samples_of(picture, None, how), reading)
    return picture if channels > 3 else as_rgb(picture), joined([scaling, *notes])


def as_rgb(picture: Image.Image) -> Image.Image:
    """Converts an 8-bit picture to RGB, alpha on white, strip by strip, so that there is one copy of a large picture and not four."""
    if picture.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in picture.info:
        return picture.convert("RGB")
    found = Image.new("RGB", picture.size)
    rows = max(1, STRIP // max(1, picture.width))
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height))).convert("RGBA")
        found.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return found


def content_of(item: Any) -> IO[bytes] | None:
    """Returns the content of a picture that a data set does not decode: bytes, or `{"bytes": …}`; None for others."""
    found = item.get("bytes") if isinstance(item, dict) else item
    return io.BytesIO(bytes(found)) if isinstance(found, (bytes, bytearray, memoryview)) else None
