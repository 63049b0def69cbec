"""DICOM files, and files whose names do not match their content, of a picture whose values are known."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
from input_files import Values, dicom, png
from input_ramps import GREY, GREY12, GREY16, HEIGHT, HOUNSFIELD, LOSSY, RGB, WIDTH, Encoding, saved, with_palette
from PIL import Image


def heif(values: Values, mode: str) -> bytes:
    """Encodes a HEIC with pillow-heif."""
    import pillow_heif

    content = io.BytesIO()
    pillow_heif.encode(mode, (WIDTH, HEIGHT), np.ascontiguousarray(values).tobytes(), content, quality=100, chroma=444)
    return content.getvalue()


def dicoms() -> list[Encoding]:
    """Lists DICOM encodings of each kind of pixels."""
    hounsfield = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
    window = {"WindowCenter": "40", "WindowWidth": "400"}
    units = GREY12.astype(np.float64) - 1024
    seen = np.clip((units - 39.5) / 399 + 0.5, 0, 1)
    frames = np.stack([GREY, GREY * 0])
    return [
        Encoding("DICOM, 8 bits", "8.dcm", lambda: dicom(GREY, 8), GREY),
        Encoding("DICOM, 12 bits", "12.dcm", lambda: dicom(GREY12, 12), GREY12, 4095, 0.51),
        Encoding("DICOM, 16 bits", "16.dcm", lambda: dicom(GREY16, 16), GREY16, 65535, 0.51),
        Encoding("DICOM, 12 bits, without an ending", "12dcm", lambda: dicom(GREY12, 12), GREY12, 4095, 0.51),
        Encoding("DICOM, 12 bits, without preamble", "bare.dcm", lambda: dicom(GREY12, 12, preamble=False), GREY12, 4095, 0.51),
        Encoding("DICOM, signed 16 bits", "i16.dcm", lambda: dicom(HOUNSFIELD, 16, signed=True), HOUNSFIELD + 32768.0, 65535, 0.51),
        Encoding(
            "DICOM, signed 16 bits, of which 12 used, no window",
            "i12.dcm",
            lambda: dicom(HOUNSFIELD, 16, signed=True),
            GREY12,
            4095,
            0.51,
            "nearly one grey",
        ),
        Encoding("DICOM, 12 bits, run lengths", "rle.dcm", lambda: dicom(GREY12, 12, compressed=True), GREY12, 4095, 0.51),
        Encoding("DICOM, MONOCHROME1", "m1.dcm", lambda: dicom(4095 - GREY12, 12, kind="MONOCHROME1"), GREY12, 4095, 0.51),
        Encoding("DICOM, rescaled, window of the file", "window.dcm", lambda: dicom(GREY12, 12, **hounsfield, **window), seen, 1, 0.51),
        Encoding(
            "DICOM, rescaled, --window -160,240",
            "given.dcm",
            lambda: dicom(GREY12, 12, **hounsfield),
            np.clip((units + 160) / 400, 0, 1),
            1,
            0.51,
            given={"window": (-160, 240)},
        ),
        Encoding("DICOM, RGB", "rgb.dcm", lambda: dicom(RGB, 8, kind="RGB"), RGB),
        Encoding(
            "DICOM, YBR_FULL", "ybr.dcm", lambda: dicom(np.asarray(Image.fromarray(RGB).convert("YCbCr")), 8, kind="YBR_FULL"), RGB, 255, 3
        ),
        Encoding("DICOM, several frames", "frames.dcm", lambda: dicom(frames, 8, NumberOfFrames="2"), GREY, says="first"),
        Encoding("DICOM without pixels", "none.dcm", lambda: dicom(GREY, 8)[:300], GREY),
    ]


def strange() -> list[Encoding]:
    """Lists files whose names do not match their content."""
    whole = {form: (lambda form=form: saved(RGB, form)) for form in ("PNG", "TIFF", "BMP", "EPS", "DDS", "PCX", "SGI")}
    cut = {
        "PNG": "png",
        "JPEG": "jpg",
        "TIFF": "tif",
        "WEBP": "webp",
        "GIF": "gif",
        "BMP": "bmp",
        "JPEG2000": "jp2",
        "AVIF": "avif",
        "PPM": "ppm",
        "TGA": "tga",
    }
    return [
        Encoding("PNG without an ending", "bare", whole["PNG"], RGB),
        Encoding("PNG called .jpg", "p.jpg", whole["PNG"], RGB),
        Encoding("JPEG called .png", "j.png", lambda: saved(RGB, "JPEG", quality=95, subsampling=0), RGB, 255, LOSSY),
        Encoding("PNG called .txt", "p.txt", whole["PNG"], RGB),
        Encoding("HEIC called .jpg", "h.jpg", lambda: heif(RGB, "RGB"), RGB, 255, LOSSY),
        Encoding("DICOM called .png", "d.png", lambda: dicom(GREY, 8), GREY),
        *[Encoding(f"{form} called .png", f"{form}.png", whole[form], RGB) for form in ("EPS", "DDS", "PCX", "SGI")],
        Encoding("OpenEXR called .png", "exr.png", lambda: b"\x76\x2f\x31\x01\x02\0\0\0" + bytes(64), RGB),
        Encoding("JPEG XL called .jpg", "jxl.jpg", lambda: imagecodecs.jpegxl_encode(RGB, lossless=True), RGB),
        Encoding("text called .png", "text.png", lambda: b"<html>404</html>\n" * 9, RGB),
        Encoding("zeros called .png", "zeros.png", lambda: bytes(6000), RGB),
        Encoding("empty", "empty.png", lambda: b"", RGB),
        *[Encoding(f"{form}, truncated", f"cut.{ending}", lambda form=form: truncated(form), RGB) for form, ending in cut.items()],
        Encoding("PNG with a wrong checksum", "crc.png", lambda: damaged(), RGB),
        Encoding("PNG of 20,000×20,000", "bomb.png", lambda: saved(Image.new("1", (20000, 20000)), "PNG"), RGB),
    ]


def truncated(form: str) -> bytes:
    """Returns the first three fifths of a file."""
    content = saved(with_palette() if form == "GIF" else RGB, form)
    return content[: len(content) * 3 // 5]


def damaged() -> bytes:
    """Encodes a PNG in which one bit of the compressed values is flipped."""
    content = bytearray(png(RGB, 8))
    content[content.index(b"IDAT") + 40] ^= 4
    return bytes(content)
