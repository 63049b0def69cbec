"""TIFF of each sample format and layout, of a picture whose values are known."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from input_files import Values, tiff
from input_ramps import (
    ALPHA,
    ALPHA16,
    CMYK,
    COLOURS,
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
    STEPS,
    WIDTH,
    Encoding,
    levels,
    saved,
    white_behind,
    with_palette,
)
from PIL import Image, ImageCms


def tif(values: Values, **more: Any) -> bytes:
    """Encodes a TIFF with tifffile."""
    content = io.BytesIO()
    tifffile.imwrite(content, values, **more)
    return content.getvalue()


def tiffs() -> list[Encoding]:
    """Lists TIFF encodings of each sample format and layout."""
    four = levels(GREY01, 15)
    alpha = np.concatenate([RGB, ALPHA[..., None]], axis=-1)
    premultiplied = np.round(alpha.astype(np.float64) * [1, 1, 1, 0] * ALPHA[..., None] / 255 + alpha * [0, 0, 0, 1]).astype(np.uint8)
    alpha16 = np.concatenate([RGB16, ALPHA16[..., None]], axis=-1)
    premultiplied16 = np.round(alpha16.astype(np.float64) * [1, 1, 1, 0] * ALPHA16[..., None] / 65535 + alpha16 * [0, 0, 0, 1]).astype(
        np.uint16
    )
    wide = {"window": (-1024, 3071)}
    f32, f64, f16 = GREY01.astype(np.float32), GREY01.astype(np.float64), GREY01.astype(np.float16)
    return [
        Encoding("TIFF, uint8, grey", "t8.tif", lambda: tif(GREY, photometric="minisblack"), GREY),
        Encoding("TIFF, uint8, min-is-white", "t8w.tif", lambda: tif(255 - GREY, photometric="miniswhite"), GREY),
        Encoding("TIFF, 1 bit", "t1.tif", lambda: tif(GREY > 127, photometric="minisblack"), GREY > 127, 1),
        Encoding(
            "TIFF, 1 bit, min-is-white, CCITT group 4",
            "t1g4.tif",
            lambda: saved(Image.fromarray(GREY > 127), "TIFF", compression="group4"),
            GREY > 127,
            1,
        ),
        Encoding("TIFF, 4 bits", "t4.tif", lambda: tiff(bits(four, 4), WIDTH, HEIGHT, {258: 4, 262: 1, 277: 1}), four, 15),
        Encoding(
            "TIFF, 12 bits packed", "t12p.tif", lambda: tiff(bits(GREY12, 12), WIDTH, HEIGHT, {258: 12, 262: 1, 277: 1}), GREY12, 4095, 0.5
        ),
        Encoding("TIFF, uint16, grey", "t16.tif", lambda: tif(GREY16, photometric="minisblack"), GREY16, 65535, 0.5),
        Encoding("TIFF, uint16, big-endian", "t16b.tif", lambda: tif(GREY16, photometric="minisblack", byteorder=">"), GREY16, 65535, 0.5),
        Encoding("TIFF, uint16, min-is-white", "t16w.tif", lambda: tif(65535 - GREY16, photometric="miniswhite"), GREY16, 65535, 0.5),
        Encoding("TIFF, uint16 of which 12 bits used, unstated", "t12.tif", lambda: tif(GREY12), GREY12, 4095, says="nearly black"),
        Encoding(
            "TIFF, uint16 of which 12 bits used, SMaxSampleValue",
            "t12s.tif",
            lambda: tif(GREY12, extratags=[(341, 3, 1, 4095, True)]),
            GREY12,
            4095,
            0.5,
        ),
        Encoding(
            "TIFF, uint16 of which 12 bits used, MaxSampleValue",
            "t12m.tif",
            lambda: tif(GREY12, extratags=[(281, 3, 1, 4095, True)]),
            GREY12,
            4095,
            0.5,
            "nearly black",
        ),
        Encoding("TIFF, int8", "ti8.tif", lambda: tif(GREY.astype(np.int16).__sub__(128).astype(np.int8)), GREY, 255),
        Encoding(
            "TIFF, int8, --window -128,127",
            "ti8w.tif",
            lambda: tif((GREY.astype(np.int16) - 128).astype(np.int8)),
            GREY,
            255,
            given={"window": (-128, 127)},
        ),
        Encoding("TIFF, int16", "ti16.tif", lambda: tif(HOUNSFIELD), GREY12, 4095),
        Encoding("TIFF, int16, --window -1024,3071", "ti16w.tif", lambda: tif(HOUNSFIELD), GREY12, 4095, 0.5, given=wide),
        Encoding("TIFF, int32", "ti32.tif", lambda: tif(HOUNSFIELD.astype(np.int32)), GREY12, 4095),
        Encoding("TIFF, int32, --window -1024,3071", "ti32w.tif", lambda: tif(HOUNSFIELD.astype(np.int32)), GREY12, 4095, 0.5, given=wide),
        Encoding("TIFF, uint32", "tu32.tif", lambda: tif(GREY16.astype(np.uint32)), GREY16, 65535),
        Encoding(
            "TIFF, uint32, --window 0,65535",
            "tu32w.tif",
            lambda: tif(GREY16.astype(np.uint32)),
            GREY16,
            65535,
            0.5,
            given={"window": (0, 65535)},
        ),
        Encoding("TIFF, float32 in [0, 1]", "tf32.tif", lambda: tif(f32), GREY01, 1, 0.51),
        Encoding("TIFF, float32 to 4095", "tf32w.tif", lambda: tif(f32 * 4095), GREY01, 1, 0.51),
        Encoding("TIFF, float64 in [0, 1]", "tf64.tif", lambda: tif(f64), GREY01, 1, 0.51),
        Encoding("TIFF, float16 in [0, 1]", "tf16.tif", lambda: tif(f16), GREY01, 1, 0.75),
        Encoding("TIFF, float32, RGB in [0, 1]", "tf32c.tif", lambda: tif(RGB01.astype(np.float32), photometric="rgb"), RGB01, 1, 0.51),
        Encoding("TIFF, complex64", "tc64.tif", lambda: tif(f32.astype(np.complex64)), GREY01, 1, 0.51),
        Encoding("TIFF, RGB", "trgb.tif", lambda: tif(RGB, photometric="rgb"), RGB),
        Encoding("TIFF, RGB, int8", "trgbi8.tif", lambda: tif((RGB.astype(np.int16) - 128).astype(np.int8), photometric="rgb"), RGB),
        Encoding("TIFF, RGB, LZW with predictor", "tlzw.tif", lambda: tif(RGB, photometric="rgb", compression="lzw", predictor=True), RGB),
        Encoding("TIFF, RGB, zstd", "tzstd.tif", lambda: tif(RGB, photometric="rgb", compression="zstd"), RGB),
        Encoding(
            "TIFF, RGB, JPEG",
            "tjpeg.tif",
            lambda: tif(RGB, photometric="rgb", compression="jpeg", compressionargs={"level": 95}),
            RGB,
            255,
            LOSSY,
        ),
        Encoding("TIFF, RGB, uint16", "trgb16.tif", lambda: tif(RGB16, photometric="rgb"), RGB16, 65535, 0.5),
        Encoding(
            "TIFF, RGB, uint16, deflate with predictor",
            "trgb16z.tif",
            lambda: tif(RGB16, photometric="rgb", compression="zlib", predictor=True),
            RGB16,
            65535,
            0.5,
        ),
        Encoding("TIFF, RGB, uint16, big-endian", "trgb16b.tif", lambda: tif(RGB16, photometric="rgb", byteorder=">"), RGB16, 65535, 0.5),
        Encoding(
            "TIFF, RGB, planes apart", "tplanes.tif", lambda: tif(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"), RGB
        ),
        Encoding(
            "TIFF, RGB, uint16, planes apart",
            "tplanes16.tif",
            lambda: tif(np.moveaxis(RGB16, 2, 0), photometric="rgb", planarconfig="separate"),
            RGB16,
            65535,
            0.5,
        ),
        Encoding(
            "TIFF, CMYK, uint16, planes apart",
            "tcplanes16.tif",
            lambda: tif(np.moveaxis(CMYK.astype(np.uint16) * 257, 2, 0), photometric="separated", planarconfig="separate"),
            PLAIN,
            255,
            1,
        ),
        Encoding(
            "TIFF, RGB, uint16 of which 12 bits used, planes apart, big-endian, --depth 12",
            "tplanes12.tif",
            lambda: tif(np.moveaxis(RGB12, 2, 0), photometric="rgb", planarconfig="separate", byteorder=">"),
            RGB12,
            4095,
            0.51,
            given={"depth": 12},
        ),
        Encoding(
            "TIFF, RGB, uint16 of which 12 bits used, several strips, --depth 12",
            "tstrips12.tif",
            lambda: tif(RGB12, photometric="rgb", rowsperstrip=8),
            RGB12,
            4095,
            0.51,
            given={"depth": 12},
        ),
        Encoding(
            "TIFF, RGB and an unspecified channel, uint16",
            "trgbx16.tif",
            lambda: tif(alpha16, photometric="rgb", extrasamples=["unspecified"]),
            RGB16,
            65535,
            0.51,
        ),
        Encoding(
            "TIFF, grey and alpha, uint16",
            "tla16.tif",
            lambda: tif(np.stack([GREY16, ALPHA16], axis=-1), photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig"),
            white_behind(GREY16, ALPHA16, 65535),
            65535,
            1.5,
        ),
        Encoding(
            "TIFF, RGBa (premultiplied), uint16 of which 12 bits used",
            "trgbpre12.tif",
            lambda: tif(premultiplied16 // 16, photometric="rgb", extrasamples=["assocalpha"]),
            white_behind(RGB16, ALPHA16, 65535),
            65535,
            2,
            "nearly transparent",
        ),
        Encoding("TIFF, RGB, tiles", "ttiles.tif", lambda: tif(RGB, photometric="rgb", tile=(16, 16)), RGB),
        Encoding("TIFF, uint16, tiles", "ttiles16.tif", lambda: tif(GREY16, tile=(16, 16)), GREY16, 65535, 0.5),
        Encoding("TIFF, RGB, several pages", "tpages.tif", lambda: tif(np.stack([RGB, RGB * 0]), photometric="rgb"), RGB, says="first"),
        Encoding(
            "TIFF, several grey planes as pages",
            "tstack.tif",
            lambda: tif(np.stack([GREY, GREY * 0, GREY * 0]), photometric="minisblack"),
            GREY,
            says="first",
        ),
        Encoding("TIFF, BigTIFF", "tbig.tif", lambda: tif(RGB, photometric="rgb", bigtiff=True), RGB),
        Encoding("TIFF, BigTIFF, without an ending", "tbig", lambda: tif(RGB, photometric="rgb", bigtiff=True), RGB),
        Encoding("TIFF, palette", "tpal.tif", lambda: saved(with_palette(), "TIFF"), COLOURS[STEPS]),
        Encoding(
            "TIFF, RGBA", "trgba.tif", lambda: tif(alpha, photometric="rgb", extrasamples=["unassalpha"]), white_behind(RGB, ALPHA), 255, 1
        ),
        Encoding(
            "TIFF, RGBa (premultiplied)",
            "trgbpre.tif",
            lambda: tif(premultiplied, photometric="rgb", extrasamples=["assocalpha"]),
            white_behind(RGB, ALPHA),
            255,
            2,
        ),
        Encoding(
            "TIFF, RGBA, uint16",
            "trgba16.tif",
            lambda: tif(alpha16, photometric="rgb", extrasamples=["unassalpha"]),
            white_behind(RGB16, ALPHA16, 65535),
            65535,
            1.5,
        ),
        Encoding(
            "TIFF, RGBa (premultiplied), uint16",
            "trgbpre16.tif",
            lambda: tif(premultiplied16, photometric="rgb", extrasamples=["assocalpha"]),
            white_behind(RGB16, ALPHA16, 65535),
            65535,
            1.25,
        ),
        Encoding(
            "TIFF, RGB and an unspecified channel", "trgbx.tif", lambda: tif(alpha, photometric="rgb", extrasamples=["unspecified"]), RGB
        ),
        Encoding(
            "TIFF, grey and alpha",
            "tla.tif",
            lambda: tif(np.stack([GREY, ALPHA], axis=-1), photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig"),
            white_behind(GREY, ALPHA),
            255,
            1,
        ),
        Encoding("TIFF, CMYK", "tcmyk.tif", lambda: tif(CMYK, photometric="separated"), PLAIN, 255, 1),
        Encoding("TIFF, CMYK, uint16", "tcmyk16.tif", lambda: tif(CMYK.astype(np.uint16) * 257, photometric="separated"), PLAIN, 255, 1),
        Encoding("TIFF, LAB", "tlab.tif", lab, MUTED, 255, LOSSY),
        Encoding("TIFF, YCbCr, uncompressed", "tycc.tif", lambda: ycbcr((1, 1)), RGB, 255, 3),
        Encoding("TIFF, YCbCr, uncompressed, subsampled", "tycc22.tif", lambda: ycbcr((2, 2)), RGB, 255, LOSSY),
        Encoding("TIFF, YCbCr, JPEG", "tyccj.tif", lambda: saved(RGB, "TIFF", compression="jpeg", quality=95), RGB, 255, LOSSY),
        Encoding(
            "TIFF, multispectral, 5 channels",
            "t5.tif",
            lambda: tif(np.concatenate([RGB, RGB[..., :2]], axis=-1), photometric="minisblack", planarconfig="contig"),
            RGB,
        ),
        Encoding("TIFF, orientation 6", "tori.tif", lambda: tif(np.rot90(RGB), photometric="rgb", extratags=[(274, 3, 1, 6, True)]), RGB),
        Encoding(
            "TIFF, uint16, orientation 6", "tori16.tif", lambda: tif(np.rot90(GREY16), extratags=[(274, 3, 1, 6, True)]), GREY16, 65535, 0.5
        ),
    ]


MUTED = RGB // 2 + 64
"""Colours that 8-bit CIELAB preserves."""


def bits(values: Values, count: int) -> bytes:
    """Packs rows of values with a given number of bits each."""
    places = ((values.astype(np.uint16)[..., None] >> np.arange(count - 1, -1, -1)) & 1).astype(np.uint8)
    return np.packbits(places.reshape(len(values), -1), axis=1).tobytes()


def lab() -> bytes:
    """Encodes a TIFF of CIELAB under D50."""
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    found = ImageCms.profileToProfile(Image.fromarray(MUTED), *profiles, outputMode="LAB")
    return saved(found, "TIFF")


def ycbcr(subsampling: tuple[int, int]) -> bytes:
    """Encodes a TIFF of YCbCr, without compression; chroma is that of the first pixel of each block."""
    values = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    across, down = subsampling
    blocks = values.reshape(HEIGHT // down, down, WIDTH // across, across, 3).swapaxes(1, 2)
    luma = blocks[..., 0].reshape(*blocks.shape[:2], -1)
    chroma = blocks[..., 1:].reshape(*blocks.shape[:2], -1, 2).mean(axis=2).round().astype(np.uint8)
    data = np.concatenate([luma, chroma], axis=-1).tobytes()
    return tiff(data, WIDTH, HEIGHT, {258: (8, 8, 8), 262: 6, 277: 3, 530: subsampling})
