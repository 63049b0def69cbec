"""JPEG, JPEG 2000 and related encodings of a picture whose values are known."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
from input_files import Values, display_p3
from input_ramps import (
    ALPHA16,
    CMYK,
    GREY,
    GREY01,
    GREY12,
    GREY16,
    HEIGHT,
    HOUNSFIELD,
    LOSSY,
    PLAIN,
    RGB,
    RGB01,
    RGB12,
    RGB16,
    SMOOTH,
    WIDTH,
    Encoding,
    levels,
    saved,
    white_behind,
)
from PIL import Image, ImageCms


def turned(number: int) -> bytes:
    """Encodes a JPEG whose EXIF orientation rotates it, so that the displayed result is the picture."""
    back = {2: "flip_lr", 3: "180", 4: "flip_ud", 5: "transpose", 6: "90", 7: "transverse", 8: "270"}
    ways = {"flip_lr": Image.Transpose.FLIP_LEFT_RIGHT, "flip_ud": Image.Transpose.FLIP_TOP_BOTTOM, "180": Image.Transpose.ROTATE_180}
    ways |= {"90": Image.Transpose.ROTATE_90, "270": Image.Transpose.ROTATE_270}
    ways |= {"transpose": Image.Transpose.TRANSPOSE, "transverse": Image.Transpose.TRANSVERSE}
    picture = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = number
    stored = picture if number == 1 else picture.transpose(ways[back[number]])
    return saved(stored, "JPEG", quality=95, subsampling=0, exif=exif)


def jpegs() -> list[Encoding]:
    """Lists encodings as JPEG, JPEG 2000 and related formats."""
    found = [
        Encoding("JPEG, grey", "grey.jpg", lambda: saved(SMOOTH, "JPEG", quality=95), SMOOTH, 255, LOSSY),
        Encoding("JPEG, RGB, 4:4:4", "rgb.jpg", lambda: saved(RGB, "JPEG", quality=95, subsampling=0), RGB, 255, LOSSY),
        Encoding("JPEG, RGB, 4:2:0", "rgb420.jpg", lambda: saved(RGB, "JPEG", quality=95, subsampling=2), RGB, 255, LOSSY),
        Encoding(
            "JPEG, progressive", "progressive.jpg", lambda: saved(RGB, "JPEG", quality=95, subsampling=0, progressive=True), RGB, 255, LOSSY
        ),
        Encoding(
            "JPEG, stored as RGB",
            "storedrgb.jpg",
            lambda: imagecodecs.jpeg8_encode(RGB, 95, colorspace="RGB", outcolorspace="RGB"),
            RGB,
            255,
            LOSSY,
        ),
        Encoding(
            "JPEG, CMYK, Adobe (inverted)", "cmyk.jpg", lambda: saved(CMYK, "JPEG", "CMYK", quality=95, subsampling=0), PLAIN, 255, LOSSY
        ),
        Encoding(
            "JPEG, YCCK, Adobe (inverted)",
            "ycck.jpg",
            lambda: imagecodecs.jpeg8_encode(255 - CMYK, 95, colorspace="CMYK", outcolorspace="YCCK"),
            PLAIN,
            255,
            LOSSY,
        ),
        Encoding(
            "JPEG, CMYK, without Adobe's marker",
            "cmykplain.jpg",
            lambda: without_adobe(imagecodecs.jpeg8_encode(CMYK, 95, colorspace="CMYK", outcolorspace="CMYK")),
            PLAIN,
            255,
            LOSSY,
            "inverted",
        ),
        Encoding(
            "JPEG, 12 bits",
            "deep.jpg",
            lambda: imagecodecs.jpeg8_encode(levels(RGB01[..., 0] / 2 + RGB01[..., 1] / 2, 4095), 95, bitspersample=12),
            SMOOTH,
            255,
            LOSSY,
        ),
        Encoding("JPEG, lossless", "lossless.jpg", lambda: imagecodecs.jpeg8_encode(GREY, lossless=True), GREY),
        Encoding(
            "JPEG, profile of a wide gamut",
            "wide.jpg",
            lambda: saved(RGB, "JPEG", quality=95, subsampling=0, icc_profile=display_p3()),
            wide_gamut(),
            255,
            LOSSY,
            "profile",
        ),
        Encoding(
            "JPEG, profile of sRGB", "srgb.jpg", lambda: saved(RGB, "JPEG", quality=95, subsampling=0, icc_profile=srgb()), RGB, 255, LOSSY
        ),
        Encoding(
            "MPO",
            "two.mpo",
            lambda: saved(
                Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], quality=95, subsampling=0
            ),
            RGB,
            255,
            LOSSY,
        ),
        Encoding(
            "MPO called .jpg",
            "mpo.jpg",
            lambda: saved(
                Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], quality=95, subsampling=0
            ),
            RGB,
            255,
            LOSSY,
        ),
        Encoding("JPEG 2000, 8 bits", "j8.jp2", lambda: saved(RGB, "JPEG2000"), RGB),
        Encoding("JPEG 2000, 8 bits, grey", "j8g.jp2", lambda: saved(GREY, "JPEG2000"), GREY),
        Encoding(
            "JPEG 2000, lossy",
            "j8l.jp2",
            lambda: saved(RGB, "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[55]),
            RGB,
            255,
            LOSSY,
        ),
        Encoding("JPEG 2000, codestream", "j8.j2k", lambda: saved(RGB, "JPEG2000", no_jp2=True), RGB),
        Encoding("JPEG 2000, 12 bits, grey", "j12g.jp2", lambda: jpeg2000(GREY12, 12), GREY12, 4095, 0.5),
        Encoding("JPEG 2000, 16 bits, grey", "j16g.jp2", lambda: jpeg2000(GREY16, 16), GREY16, 65535, 0.5),
        Encoding("JPEG 2000, 12 bits, RGB", "j12.jp2", lambda: jpeg2000(RGB12, 12), RGB12, 4095, 0.51),
        Encoding("JPEG 2000, 16 bits, RGB", "j16.jp2", lambda: jpeg2000(RGB16, 16), RGB16, 65535, 0.51),
        Encoding("JPEG 2000, 16 bits, RGB, --depth 12", "j16d.jp2", lambda: jpeg2000(RGB12, 16), RGB12, 4095, 0.51, given={"depth": 12}),
        Encoding("JPEG 2000, signed, 16 bits", "ji16.jp2", lambda: jpeg2000(HOUNSFIELD, 16), GREY12, 4095, 0.5),
        Encoding("JPEG 2000, 4 bits", "j4.jp2", lambda: jpeg2000(levels(GREY01, 15), 4), levels(GREY01, 15), 15, 0.5),
        Encoding("JPEG 2000, 4 bits, RGB", "j4c.jp2", lambda: jpeg2000(levels(RGB01, 15), 4), levels(RGB01, 15), 15, 0.5),
        Encoding(
            "JPEG 2000, signed, --window -1024,3071",
            "ji16w.jp2",
            lambda: jpeg2000(HOUNSFIELD, 16),
            GREY12,
            4095,
            0.5,
            given={"window": (-1024, 3071)},
        ),
        Encoding(
            "JPEG 2000, grey and alpha, 16 bits",
            "j16a.jp2",
            lambda: jpeg2000(np.stack([GREY16, ALPHA16], axis=-1), 16),
            white_behind(GREY16, ALPHA16, 65535),
            65535,
            2,
        ),
        Encoding("JPEG XL", "a.jxl", lambda: imagecodecs.jpegxl_encode(RGB, lossless=True), RGB),
        Encoding("JPEG XR", "a.jxr", lambda: imagecodecs.jpegxr_encode(RGB), RGB),
        Encoding("JPEG-LS", "a.jls", lambda: imagecodecs.jpegls_encode(RGB), RGB),
    ]
    return found + [Encoding(f"JPEG, EXIF orientation {n}", f"turn{n}.jpg", lambda n=n: turned(n), RGB, 255, LOSSY) for n in range(1, 9)]  # type: ignore[misc]


def jpeg2000(values: Values, depth: int) -> bytes:
    """Encodes a lossless JP2 of values with a given number of bits."""
    return bytes(imagecodecs.jpeg2k_encode(values, codecformat="jp2", bitspersample=depth))


def without_adobe(content: bytes) -> bytes:
    """Removes the APP14 segment of a JPEG."""
    place = content.find(b"\xff\xee")
    return content if place < 0 else content[:place] + content[place + 2 + int.from_bytes(content[place + 2 : place + 4]) :]


def srgb() -> bytes:
    """Returns the profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def wide_gamut() -> Values:
    """Returns the picture's colours in sRGB if its values are of Display P3."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(display_p3()))
    return np.asarray(ImageCms.profileToProfile(Image.fromarray(RGB), profile, ImageCms.createProfile("sRGB")))
