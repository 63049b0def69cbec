"""PNG and all other encodings of a picture whose values are known."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
from input_files import Values, bmp, chunk, palette, png
from input_jpegs import jpegs
from input_ramps import (
    ALPHA,
    ALPHA16,
    COLOURS,
    GREY,
    GREY01,
    GREY12,
    GREY16,
    HEIGHT,
    LOSSY,
    RGB,
    RGB01,
    RGB12,
    RGB16,
    STEPS,
    WIDTH,
    Encoding,
    animated,
    levels,
    saved,
    white_behind,
    with_palette,
)
from input_strange import dicoms, heif, strange
from input_tiffs import tiffs


def encodings() -> list[Encoding]:
    """Lists all encodings, under different file names."""
    return [*pngs(), *tiffs(), *jpegs(), *others(), *dicoms(), *strange()]


def pngs() -> list[Encoding]:
    """Lists PNG encodings of each colour type and depth."""
    two, four, sixteen = levels(GREY01, 1), levels(GREY01, 3), levels(GREY01, 15)
    clear = chunk(b"tRNS", bytes(range(256)))
    with_alpha = np.concatenate([RGB, ALPHA[..., None]], axis=-1)
    deep_alpha = np.concatenate([RGB16, ALPHA16[..., None]], axis=-1)
    grey_alpha, deep_grey_alpha = np.stack([GREY, ALPHA], axis=-1), np.stack([GREY16, ALPHA16], axis=-1)
    blue = np.where((RGB[5, 7] == RGB).all(axis=-1)[..., None], 255, RGB)
    return [
        Encoding("PNG, 1 bit", "png1.png", lambda: png(two, 1), two, 1),
        Encoding("PNG, 2 bits", "png2.png", lambda: png(four, 2), four, 3),
        Encoding("PNG, 4 bits", "png4.png", lambda: png(sixteen, 4), sixteen, 15),
        Encoding("PNG, 8 bits, grey", "png8.png", lambda: png(GREY, 8), GREY),
        Encoding("PNG, 16 bits, grey", "png16.png", lambda: png(GREY16, 16), GREY16, 65535, 0.5),
        Encoding("PNG, 16 bits, grey, of which 12 used, unstated", "png12.png", lambda: png(GREY12, 16), GREY12, 4095, says="nearly black"),
        Encoding(
            "PNG, 16 bits, grey, of which 14 used, unstated",
            "png14.png",
            lambda: png(levels(GREY01, 16383), 16),
            levels(GREY01, 16383),
            16383,
            says="the range of their type",
        ),
        Encoding(
            "PNG, 16 bits, grey, of which 12 used, sBIT",
            "png12s.png",
            lambda: png(GREY12, 16, chunks=chunk(b"sBIT", b"\x0c")),
            GREY12,
            4095,
            0.5,
        ),
        Encoding(
            "PNG, 16 bits, grey, of which 12 used, --depth 12",
            "png12d.png",
            lambda: png(GREY12, 16),
            GREY12,
            4095,
            0.5,
            given={"depth": 12},
        ),
        Encoding("PNG, 8 bits, grey and alpha", "pngla.png", lambda: png(grey_alpha, 8), white_behind(GREY, ALPHA), 255, 1),
        Encoding(
            "PNG, 16 bits, grey and alpha",
            "pngla16.png",
            lambda: png(deep_grey_alpha, 16),
            white_behind(GREY16, ALPHA16, 65535),
            65535,
            1.5,
        ),
        Encoding("PNG, 8 bits, RGB", "pngrgb.png", lambda: png(RGB, 8), RGB),
        Encoding("PNG, 8 bits, RGB, interlaced", "pngrgbi.png", lambda: png(RGB, 8, interlaced=True), RGB),
        Encoding("PNG, 16 bits, RGB", "pngrgb16.png", lambda: png(RGB16, 16), RGB16, 65535, 0.5),
        Encoding("PNG, 16 bits, RGB, interlaced", "pngrgb16i.png", lambda: png(RGB16, 16, interlaced=True), RGB16, 65535, 0.5),
        Encoding("PNG, 8 bits, RGBA", "pngrgba.png", lambda: png(with_alpha, 8), white_behind(RGB, ALPHA), 255, 1),
        Encoding("PNG, 16 bits, RGBA", "pngrgba16.png", lambda: png(deep_alpha, 16), white_behind(RGB16, ALPHA16, 65535), 65535, 1.5),
        Encoding("PNG, palette, 8 bits", "pngp8.png", lambda: png(STEPS, 8, 3, chunks=palette(COLOURS)), COLOURS[STEPS]),
        Encoding("PNG, palette, 4 bits", "pngp4.png", lambda: png(STEPS // 16, 4, 3, chunks=palette(COLOURS[:16])), COLOURS[STEPS // 16]),
        Encoding("PNG, palette, 2 bits", "pngp2.png", lambda: png(STEPS // 64, 2, 3, chunks=palette(COLOURS[:4])), COLOURS[STEPS // 64]),
        Encoding("PNG, palette, 1 bit", "pngp1.png", lambda: png(STEPS // 128, 1, 3, chunks=palette(COLOURS[:2])), COLOURS[STEPS // 128]),
        Encoding(
            "PNG, palette with transparency",
            "pngpt.png",
            lambda: png(STEPS, 8, 3, chunks=palette(COLOURS) + clear),
            white_behind(COLOURS[STEPS], STEPS),
            255,
            1,
        ),
        Encoding(
            "PNG, 8 bits, RGB, one colour transparent",
            "pngt.png",
            lambda: png(RGB, 8, chunks=chunk(b"tRNS", RGB[5, 7].astype(">u2").tobytes())),
            blue,
        ),
        Encoding(
            "PNG, 16 bits, grey, one level transparent",
            "pngt16.png",
            lambda: png(GREY16, 16, chunks=chunk(b"tRNS", int(GREY16[5, 7]).to_bytes(2))),
            np.where(GREY16[5, 7] == GREY16, 65535, GREY16),
            65535,
            0.5,
        ),
        Encoding("PNG, animated", "apng.png", lambda: animated("PNG"), RGB, says="first"),
        Encoding(
            "PNG, gamma 1", "pnggamma.png", lambda: png(RGB, 8, chunks=chunk(b"gAMA", (100000).to_bytes(4))), linear(RGB01), 1, 1, "gamma"
        ),
        Encoding(
            "PNG, cICP of BT.2020 with PQ",
            "pngpq.png",
            lambda: png(RGB16, 16, chunks=chunk(b"cICP", bytes([9, 16, 0, 1]))),
            RGB16,
            65535,
            0,
            "BT.2020",
        ),
    ]


def linear(light: Values) -> Values:
    """Converts linear light to sRGB."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def text_pnm(kind: int, values: Values, largest: int | None) -> bytes:
    """Encodes a PBM, PGM or PPM in digits."""
    size = f"P{kind}\n# a comment\n{WIDTH} {HEIGHT}\n" + ("" if largest is None else f"{largest}\n")
    return (size + "\n".join(" ".join(map(str, row.reshape(-1))) for row in values) + "\n").encode()


def pnm(kind: int, data: bytes, largest: int | None) -> bytes:
    """Encodes a PBM, PGM or PPM in bytes."""
    return f"P{kind}\n{WIDTH} {HEIGHT}\n".encode() + (b"" if largest is None else b"%d\n" % largest) + data


def others() -> list[Encoding]:
    """Lists encodings in formats other than PNG, TIFF and JPEG."""
    alpha = np.concatenate([RGB, ALPHA[..., None]], axis=-1)
    sixteen, two = STEPS // 16, STEPS // 128
    five = levels(RGB01, 31)
    rows565 = [
        (five[y, :, 0].astype("<u2") << 10 | five[y, :, 1].astype("<u2") << 5 | five[y, :, 2]).astype("<u2").tobytes()
        for y in range(HEIGHT)
    ]
    rle = b"".join(b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in STEPS[::-1]) + b"\0\1"
    lossless = {"lossless": True, "exact": True}
    return [
        Encoding("WebP, lossy", "lossy.webp", lambda: saved(RGB, "WEBP", quality=95), RGB, 255, 2 * LOSSY),
        Encoding("WebP, lossless", "lossless.webp", lambda: saved(RGB, "WEBP", **lossless), RGB),
        Encoding("WebP, lossless, alpha", "alpha.webp", lambda: saved(alpha, "WEBP", "RGBA", **lossless), white_behind(RGB, ALPHA), 255, 1),
        Encoding("WebP, animated", "animated.webp", lambda: animated("WEBP", **lossless), RGB, says="first"),
        Encoding("GIF", "still.gif", lambda: saved(with_palette(), "GIF"), COLOURS[STEPS]),
        Encoding(
            "GIF, transparency",
            "clear.gif",
            lambda: saved(with_palette(), "GIF", transparency=3),
            np.where((STEPS == 3)[..., None], 255, COLOURS[STEPS]),
        ),
        Encoding("GIF, animated", "animated.gif", lambda: animated("GIF"), COLOURS[STEPS], says="first"),
        Encoding("BMP, 1 bit", "1.bmp", lambda: bmp([bits_of(row, 1) for row in two], WIDTH, 1, COLOURS[:2]), COLOURS[two]),
        Encoding("BMP, 4 bits", "4.bmp", lambda: bmp([bits_of(row, 4) for row in sixteen], WIDTH, 4, COLOURS[:16]), COLOURS[sixteen]),
        Encoding("BMP, 8 bits, palette", "8.bmp", lambda: bmp([row.tobytes() for row in STEPS], WIDTH, 8, COLOURS), COLOURS[STEPS]),
        Encoding(
            "BMP, 8 bits, run lengths",
            "8r.bmp",
            lambda: bmp([*[b""] * (HEIGHT - 1), rle], WIDTH, 8, COLOURS, compression=1),
            COLOURS[STEPS],
        ),
        Encoding("BMP, 16 bits", "16.bmp", lambda: bmp(rows565, WIDTH, 16), five, 31, 1),
        Encoding("BMP, 24 bits", "24.bmp", lambda: saved(RGB, "BMP"), RGB),
        Encoding(
            "BMP, 32 bits, without alpha",
            "32.bmp",
            lambda: bmp([np.pad(row[:, ::-1], ((0, 0), (0, 1))).tobytes() for row in RGB], WIDTH, 32),
            RGB,
        ),
        Encoding("BMP, 32 bits, fourth byte unused", "32x.bmp", lambda: saved(alpha, "BMP", "RGBA"), RGB),
        Encoding(
            "BMP, 32 bits, alpha",
            "32a.bmp",
            lambda: bmp(
                [row[:, [2, 1, 0, 3]].tobytes() for row in alpha], WIDTH, 32, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000), compression=3
            ),
            white_behind(RGB, ALPHA),
            255,
            1,
        ),
        Encoding("PBM, digits", "p1.pbm", lambda: text_pnm(1, 1 - two, None), two, 1),
        Encoding("PGM, digits", "p2.pgm", lambda: text_pnm(2, GREY, 255), GREY),
        Encoding("PGM, digits, to 4095", "p2d.pgm", lambda: text_pnm(2, GREY12, 4095), GREY12, 4095, 0.51),
        Encoding("PPM, digits", "p3.ppm", lambda: text_pnm(3, RGB, 255), RGB),
        Encoding("PPM, digits, to 4095", "p3d.ppm", lambda: text_pnm(3, RGB12, 4095), RGB12, 4095, 0.51),
        Encoding("PBM, bytes", "p4.pbm", lambda: pnm(4, b"".join(bits_of(1 - row, 1) for row in two), None), two, 1),
        Encoding("PGM, bytes", "p5.pgm", lambda: pnm(5, GREY.tobytes(), 255), GREY),
        Encoding("PGM, bytes, to 100", "p5c.pgm", lambda: pnm(5, levels(GREY01, 100).tobytes(), 100), levels(GREY01, 100), 100, 0.51),
        Encoding("PGM, bytes, to 4095", "p5d.pgm", lambda: pnm(5, GREY12.astype(">u2").tobytes(), 4095), GREY12, 4095, 0.51),
        Encoding("PGM, bytes, to 65535", "p5e.pgm", lambda: pnm(5, GREY16.astype(">u2").tobytes(), 65535), GREY16, 65535, 0.51),
        Encoding("PPM, bytes", "p6.ppm", lambda: pnm(6, RGB.tobytes(), 255), RGB),
        Encoding("PPM, bytes, to 4095", "p6d.ppm", lambda: pnm(6, RGB12.astype(">u2").tobytes(), 4095), RGB12, 4095, 0.51),
        Encoding("PPM, bytes, to 65535", "p6e.ppm", lambda: pnm(6, RGB16.astype(">u2").tobytes(), 65535), RGB16, 65535, 0.51),
        Encoding(
            "PPM, bytes, to 65535, of which 12 bits used",
            "p6f.ppm",
            lambda: pnm(6, RGB12.astype(">u2").tobytes(), 65535),
            RGB12,
            4095,
            0.51,
            "nearly black",
        ),
        Encoding(
            "PPM, bytes, to 65535, --depth 12",
            "p6g.ppm",
            lambda: pnm(6, RGB12.astype(">u2").tobytes(), 65535),
            RGB12,
            4095,
            0.51,
            given={"depth": 12},
        ),
        Encoding(
            "PGM, bytes, to 65535, --depth 12",
            "p5g.pgm",
            lambda: pnm(5, GREY12.astype(">u2").tobytes(), 65535),
            GREY12,
            4095,
            0.51,
            given={"depth": 12},
        ),
        Encoding(
            "PGM, bytes, to 1000",
            "p5h.pgm",
            lambda: pnm(5, levels(GREY01, 1000).astype(">u2").tobytes(), 1000),
            levels(GREY01, 1000),
            1000,
            0.51,
        ),
        Encoding(
            "PFM, grey", "grey.pfm", lambda: b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + GREY01[::-1].astype("<f4").tobytes(), GREY01, 1, 0.51
        ),
        Encoding(
            "PFM, RGB", "colour.pfm", lambda: b"PF\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + RGB01[::-1].astype("<f4").tobytes(), RGB01, 1, 0.51
        ),
        Encoding("ICO", "a.ico", lambda: saved(alpha, "ICO", "RGBA", sizes=[(WIDTH, HEIGHT)]), white_behind(RGB, ALPHA), 255, 1),
        Encoding("TGA", "a.tga", lambda: saved(RGB, "TGA"), RGB),
        Encoding(
            "TGA, run lengths, alpha", "r.tga", lambda: saved(alpha, "TGA", "RGBA", compression="tga_rle"), white_behind(RGB, ALPHA), 255, 1
        ),
        Encoding("AVIF", "a.avif", lambda: saved(RGB, "AVIF", quality=95, subsampling="4:4:4"), RGB, 255, LOSSY),
        Encoding(
            "AVIF, 10 bits",
            "deep.avif",
            lambda: bytes(imagecodecs.avif_encode(levels(RGB01, 1023), 100, bitspersample=10)),
            levels(RGB01, 1023),
            1023,
            LOSSY,
        ),
        Encoding(
            "AVIF, animated", "animated.avif", lambda: animated("AVIF", quality=95, subsampling="4:4:4"), RGB, 255, LOSSY, says="first"
        ),
        Encoding("HEIC", "a.heic", lambda: heif(RGB, "RGB"), RGB, 255, LOSSY),
        Encoding("HEIC, 10 bits", "deep.heic", lambda: heif(RGB16, "RGB;16"), RGB16, 65535, LOSSY),
        Encoding("HEIC, alpha", "alpha.heic", lambda: heif(alpha, "RGBA"), white_behind(RGB, ALPHA), 255, LOSSY),
        Encoding("DDS", "a.dds", lambda: saved(RGB, "DDS"), RGB),
        Encoding("EPS", "a.eps", lambda: saved(RGB, "EPS"), RGB),
        Encoding("PDF", "a.pdf", lambda: saved(RGB, "PDF"), RGB),
        Encoding(
            "SVG",
            "a.svg",
            lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="48" height="32"><rect width="48" height="32"/></svg>',
            RGB * 0,
        ),
        Encoding("Radiance HDR", "a.hdr", lambda: bytes(imagecodecs.rgbe_encode(RGB01.astype(np.float32), header=True)), RGB01, 1),
        Encoding("OpenEXR", "a.exr", lambda: b"\x76\x2f\x31\x01\x02\0\0\0" + bytes(64), RGB),
        Encoding(
            "PSD",
            "a.psd",
            lambda: (
                b"8BPS\0\x01"
                + bytes(6)
                + b"\0\x03"
                + HEIGHT.to_bytes(4)
                + WIDTH.to_bytes(4)
                + b"\0\x08\0\x03"
                + bytes(14)
                + np.moveaxis(RGB, 2, 0).tobytes()
            ),
            RGB,
        ),
        Encoding("PCX", "a.pcx", lambda: saved(RGB, "PCX"), RGB),
        Encoding("QOI", "a.qoi", lambda: bytes(imagecodecs.qoi_encode(RGB)), RGB),
        Encoding("SGI", "a.sgi", lambda: saved(RGB, "SGI"), RGB),
        Encoding("NumPy's .npy", "a.npy", lambda: npy(RGB), RGB),
    ]


def bits_of(row: Values, count: int) -> bytes:
    """Packs a row of values with a given number of bits each."""
    places = ((row.astype(np.uint16)[:, None] >> np.arange(count - 1, -1, -1)) & 1).astype(np.uint8)
    return np.packbits(places.reshape(-1)).tobytes()


def npy(values: Values) -> bytes:
    """Encodes an array in NumPy's format."""
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()
