"""Pictures of more than 8 bits: their values against the plain formula, by what the file says, what is given, or refused."""

from __future__ import annotations

import io
import logging
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xattn.data.depth import Reading
from xattn.data.pictures import read_picture, read_scaled
from xattn.errors import ImageError, InputError

RAMP = np.tile(np.arange(256, dtype=np.uint16) * 16, (8, 1))
"""Twelve bits: 0 to 4080 in steps of 16."""
COLOURS = np.stack([RAMP, RAMP[:, ::-1], RAMP // 2], axis=-1)
SIGNED = RAMP.astype(np.int16) - 1024


def png(values: np.ndarray, significant: list[int] | None = None) -> bytes:
    """A 16-bit PNG; Pillow writes grey ones alone."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    bits = chunk(b"sBIT", bytes(significant)) if significant else b""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + bits + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, form: int = 1, photometric: int = 1, order: str = "<") -> bytes:
    """An uncompressed TIFF of any sample format (1 unsigned, 2 signed, 3 float)."""
    samples, bits = (values.shape[2] if values.ndim == 3 else 1), 8 * values.dtype.itemsize
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape[:2]
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 0),
        (277, samples),
        (278, height),
        (279, len(data)),
        (339, form),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    behind = struct.pack(f"{order}{samples}H", *[bits] * samples) + struct.pack(f"{order}{samples}H", *[form] * samples)
    entries = b""
    for tag, value in tags:
        count = samples if tag in (258, 339) else 1
        if count > 2:
            entries += struct.pack(f"{order}HHII", tag, 3, count, start + (0 if tag == 258 else 2 * samples))
        else:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, start + len(behind) if tag == 273 else value)
    top = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return top + entries + bytes(4) + behind + data


def saved(values: np.ndarray, form: str, **more: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, form, **more)  # type: ignore[arg-type]  # by name
    return content.getvalue()


def pgm(largest: int) -> bytes:
    return b"P5\n256 8\n%d\n" % largest + RAMP.astype(">u2").tobytes()


def linear(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The rule, plainly: 8-bit levels of values from low to high, three alike for grey."""
    level = np.round(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255)
    return level if values.ndim == 3 else np.stack([level] * 3, axis=-1)


def read(folder: Path, content: bytes, **given: object) -> tuple[np.ndarray, str]:
    (folder / "picture").write_bytes(content)
    picture, scaling = read_scaled(folder / "picture", 3, Reading(**given))  # type: ignore[arg-type]  # by name
    return np.asarray(picture).astype(np.float64), str(scaling)


OPAQUE = np.full((8, 256, 1), 65535, np.uint16)
TABLE: dict[str, tuple[Callable[[], bytes], dict[str, object], np.ndarray, float, float]] = {
    # what the file says
    "png sBIT": (lambda: png(RAMP, [12]), {}, RAMP, 0, 4095),
    "png sBIT, scaled as its standard asks": (lambda: png(RAMP * 16, [12]), {}, RAMP * 16, 0, 65535),
    "png of colours, sBIT": (lambda: png(COLOURS, [12, 12, 12]), {}, COLOURS, 0, 4095),
    "tiff SMaxSampleValue": (lambda: saved(RAMP, "TIFF", tiffinfo={340: 0, 341: 4095}), {}, RAMP, 0, 4095),
    "pgm, largest value": (lambda: pgm(4095), {}, RAMP, 0, 4095),
    # the range of the type
    "png": (lambda: png(RAMP * 16), {}, RAMP * 16, 0, 65535),
    "png of colours": (lambda: png(COLOURS * 16), {}, COLOURS * 16, 0, 65535),
    "tiff": (lambda: saved(RAMP * 16, "TIFF"), {}, RAMP * 16, 0, 65535),
    "tiff of colours": (lambda: tiff(COLOURS * 16, photometric=2), {}, COLOURS * 16, 0, 65535),
    "tiff, white is zero": (lambda: tiff(RAMP * 16, photometric=0), {}, 65535 - RAMP * 16, 0, 65535),
    "tiff of floats in [0, 1]": (lambda: saved((RAMP / 4080).astype(np.float32), "TIFF"), {}, RAMP / 4080, 0, 1),
    "jpeg 2000": (lambda: saved(RAMP * 16, "JPEG2000"), {}, RAMP * 16, 0, 65535),
    # a depth or a window that is given
    "png, depth": (lambda: png(RAMP), {"depth": 12}, RAMP, 0, 4095),
    "png of colours, depth": (lambda: png(COLOURS), {"depth": 12}, COLOURS, 0, 4095),
    "png with alpha, depth": (lambda: png(np.concatenate([COLOURS, OPAQUE], axis=-1)), {"depth": 12}, COLOURS, 0, 4095),
    "png of grey and alpha, depth": (lambda: png(np.concatenate([RAMP[..., None], OPAQUE], axis=-1)), {"depth": 12}, RAMP, 0, 4095),
    "tiff, big-endian, depth": (lambda: tiff(RAMP, order=">"), {"depth": 12}, RAMP, 0, 4095),
    "tiff of colours, big-endian, depth": (lambda: tiff(COLOURS, photometric=2, order=">"), {"depth": 12}, COLOURS, 0, 4095),
    "png, window": (lambda: png(RAMP), {"window": (1000, 2000)}, RAMP, 1000, 2000),
    "tiff of int16, window": (lambda: tiff(SIGNED, 2), {"window": (-160, 240)}, SIGNED, -160, 240),
    "tiff of int16, big-endian, window": (lambda: tiff(SIGNED, 2, order=">"), {"window": (-160, 240)}, SIGNED, -160, 240),
    "tiff of int32, window": (lambda: saved(SIGNED.astype(np.int32), "TIFF"), {"window": (-160, 240)}, SIGNED, -160, 240),
    "tiff of uint32, window": (lambda: tiff(RAMP.astype(np.uint32) * 10**6), {"window": (0, 4.08e9)}, RAMP * 1e6, 0, 4.08e9),
    "tiff of int8, window": (lambda: tiff((RAMP // 16 - 128).astype(np.int8), 2), {"window": (-128, 127)}, RAMP // 16 - 128.0, -128, 127),
    "tiff of floats, window": (lambda: saved(RAMP.astype(np.float32), "TIFF"), {"window": (0, 4080)}, RAMP, 0, 4080),
}


@pytest.mark.parametrize("name", TABLE)
def test_values_are_those_of_the_plain_formula(name: str, tmp_path: Path) -> None:
    content, given, values, low, high = TABLE[name]
    found, rule = read(tmp_path, content(), **given)
    assert np.abs(found - linear(values, low, high)).max() <= (1 if name.startswith("pgm") else 0), rule
    assert "black to white" in rule


@pytest.mark.parametrize(
    "content",
    [
        lambda: tiff(SIGNED, 2),
        lambda: saved(SIGNED.astype(np.int32), "TIFF"),
        lambda: tiff(RAMP.astype(np.uint32)),
        lambda: tiff((RAMP // 16 - 128).astype(np.int8), 2),
        lambda: saved(RAMP.astype(np.float32), "TIFF"),
        lambda: saved((RAMP / 4080 - 0.1).astype(np.float32), "TIFF"),
    ],
)
def test_a_picture_that_nothing_says_the_range_of_is_refused_with_what_to_give(content: Callable[[], bytes], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nothing says which of them are black and white: give --window LOW,HIGH"):
        read(tmp_path, content())


def test_values_outside_the_depth_or_the_stated_range_are_never_clipped(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="16-bit values from 0 to 4080 lie outside 0 to 1023, the depth that was given"):
        read(tmp_path, png(RAMP), depth=10)
    with pytest.raises(ImageError, match="lie outside 0 to 2000, SMinSampleValue and SMaxSampleValue"):
        read(tmp_path, saved(RAMP, "TIFF", tiffinfo={340: 0, 341: 2000}))
    nan = RAMP.astype(np.float32)
    nan[0, 0] = np.nan
    with pytest.raises(ImageError, match="not all finite"):
        read(tmp_path, saved(nan, "TIFF"), window=(0, 1))


def test_a_nearly_black_picture_is_doubted_with_the_depth_to_give_and_its_neighbours_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dark, rule = read(tmp_path, png(RAMP))
    assert np.abs(dark - linear(RAMP, 0, 65535)).max() == 0
    assert "nearly black" in rule
    assert "--depth 12" in rule
    assert "nearly black" not in read(tmp_path, png(RAMP), depth=16)[1]
    assert "nearly black" not in read(tmp_path, png(RAMP * 16))[1]
    with caplog.at_level(logging.WARNING, "xattn"):
        (tmp_path / "x.png").write_bytes(png(RAMP))
        read_picture(tmp_path / "x.png")
    assert "--depth 12" in caplog.text


def test_a_transparent_value_of_16_bits_is_white(tmp_path: Path) -> None:
    Image.fromarray(RAMP * 16).save(tmp_path / "clear.png", transparency=16 * 16 * 100)
    found, _ = read(tmp_path, (tmp_path / "clear.png").read_bytes())
    assert found[0, 100].tolist() == [255, 255, 255]
    assert found[0, 99].tolist() == [99, 99, 99]


def test_pictures_of_8_bits_are_as_pillow_gives_them_whatever_is_given(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    for channels in (1, 3):
        plain = values[..., 0] if channels == 1 else values[..., :3]
        found, rule = read(tmp_path, saved(plain, "PNG"), window=(10, 20))
        assert rule == "None"
        assert (found == (np.stack([plain] * 3, axis=-1) if channels == 1 else plain)).all()
    on_white = Image.alpha_composite(Image.new("RGBA", (7, 9), "white"), Image.fromarray(values)).convert("RGB")
    assert (read(tmp_path, saved(values, "PNG"))[0] == np.asarray(on_white)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"depth": 0}, "1 to 32; got 0"),
        ({"depth": 33}, "1 to 32; got 33"),
        ({"window": (5, 5)}, "a larger one for white"),
        ({"window": (0, float("nan"))}, "finite"),
        ({"window": (1, 2, 3)}, "two finite values"),
        ({"max_pixels": 0}, "1 or more"),
        ({"depth": 12, "window": (0, 1)}, "give one of them"),
    ],
)
def test_a_depth_or_window_that_cannot_be_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reading(**given)  # type: ignore[arg-type]  # by name


def dicom(path: Path, values: np.ndarray, **tags: object) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    about = pydicom.Dataset()
    about.file_meta = pydicom.dataset.FileMetaDataset()
    about.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    about.file_meta.MediaStorageSOPClassUID = about.SOPClassUID = SecondaryCaptureImageStorage
    about.file_meta.MediaStorageSOPInstanceUID = about.SOPInstanceUID = "1.2.3"
    about.Rows, about.Columns = values.shape[:2]
    about.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    about.BitsAllocated = 8 * values.dtype.itemsize
    about.BitsStored, about.PhotometricInterpretation = about.BitsAllocated, "MONOCHROME2"
    about.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in tags.items():
        setattr(about, name, value)
    about.HighBit = about.BitsStored - 1
    about.PixelData = values.tobytes()
    about.save_as(path, enforce_file_format=True)


def test_dicom_files_are_shown_by_their_slope_and_window_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = tmp_path / "scan"  # no ending: the content tells
    slope = {"RescaleSlope": 2, "RescaleIntercept": -1024, "BitsStored": 12}
    units = RAMP * 2.0 - 1024
    dicom(path, RAMP, **slope, WindowCenter=40, WindowWidth=400)
    window = np.clip((units - 39.5) / 399 + 0.5, 0, 1)  # PS3.3, C.11.2.1.2.1
    grey = np.stack([np.round(255 * window)] * 3, axis=-1)
    assert (read(tmp_path, path.read_bytes())[0] == grey).all()
    assert (read(tmp_path, path.read_bytes(), window=(-160, 240))[0] == linear(units, -160, 240)).all()
    dicom(path, RAMP, **slope, WindowCenter=[40, 1], WindowWidth=[400, 2], PhotometricInterpretation="MONOCHROME1")
    assert (read(tmp_path, path.read_bytes())[0] == np.stack([np.round(255 * (1 - window))] * 3, axis=-1)).all()
    dicom(path, RAMP, **slope)
    assert (read(tmp_path, path.read_bytes())[0] == linear(units, -1024, 2 * 4095 - 1024)).all()
    dicom(path, SIGNED, WindowCenter=0, WindowWidth=200, VOILUTFunction="SIGMOID")
    assert (read(tmp_path, path.read_bytes())[0][0, :, 0] == np.round(255 / (1 + np.exp(-4 * SIGNED[0] / 200.0)))).all()
    colours = (COLOURS // 16).astype(np.uint8)
    dicom(path, colours, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    found, rule = read(tmp_path, path.read_bytes())
    assert (found == colours).all()
    assert rule == "None"


def test_dicom_without_its_package_or_without_a_picture_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydicom")
    with pytest.raises(ImageError, match="without a picture"):
        read_scaled_named(tmp_path / "x.dcm", b"no scan" * 100)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"needs the package 'pydicom'.*pip install 'xattn\[dicom\]'"):
        read(tmp_path, bytes(128) + b"DICM")


def read_scaled_named(path: Path, content: bytes) -> object:
    path.write_bytes(content)
    return read_scaled(path, 3, Reading())


def test_heic_pictures_are_read_with_their_package_and_say_what_to_install_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 60))).save(tmp_path / "photo.heic", quality=95)
    content = (tmp_path / "photo.heic").read_bytes()
    found, rule = read(tmp_path, content)
    assert found.shape == (48, 64, 3)
    assert np.abs(found - [200, 30, 60]).max() <= 4
    assert rule == "None"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"needs the package 'pillow-heif'.*pip install 'xattn\[heic\]'"):
        read(tmp_path, content)
