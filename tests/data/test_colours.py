"""What a file says of its colours and depths, against files whose colours and depths are known."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from xattn.data.colours import is_srgb
from xattn.data.depth import Reading
from xattn.data.jpeg2000 import Depth, depths
from xattn.data.pictures import from_memory, is_picture, read_scaled
from xattn.errors import ImageError


def said(path: Path, **given: object) -> str:
    return str(read_scaled(path, 3, Reading(**given))[1])  # type: ignore[arg-type]  # by name


def icc(curve: bytes, colours: dict[bytes, tuple[float, float, float]], space: bytes = b"RGB ") -> bytes:
    """A profile of primaries and one curve."""
    tags = {name: b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * each) for each in value)) for name, value in colours.items()}
    tags |= {b"kTRC": curve} if space == b"GRAY" else dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content
    return bytes(16) + space + bytes(108) + table + data


SRGB = {b"rXYZ": (0.436, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7141)}
ADOBE = {b"rXYZ": (0.6097, 0.3111, 0.0195), b"gXYZ": (0.2053, 0.6257, 0.0609), b"bXYZ": (0.1492, 0.0632, 0.7446)}


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * value))


def test_a_profile_is_srgb_s_by_its_primaries_and_its_curve() -> None:
    assert is_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert is_srgb(icc(gamma(2.2), SRGB))
    assert not is_srgb(icc(gamma(1), SRGB))
    assert not is_srgb(icc(gamma(2.2), ADOBE))
    assert is_srgb(icc(gamma(2.2), {}, b"GRAY"))
    assert not is_srgb(icc(gamma(1.4), {}, b"GRAY"))
    steps = (np.linspace(0, 1, 1025) ** 2.2 * 65535).round().astype(">u2")
    assert is_srgb(icc(b"curv" + bytes(4) + struct.pack(">I", len(steps)) + steps.tobytes(), SRGB))
    for damaged in (b"", bytes(200), icc(gamma(2.2), SRGB)[:180]):
        assert not is_srgb(damaged)


def test_what_is_not_applied_is_said(tmp_path: Path) -> None:
    picture, other = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8))
    picture.save(tmp_path / "wide.png", icc_profile=icc(gamma(2.2), ADOBE))
    picture.save(tmp_path / "plain.png", icc_profile=icc(gamma(2.2), SRGB))
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[other])
    picture.save(tmp_path / "pages.tif", save_all=True, append_images=[other])
    picture.convert("CMYK").save(tmp_path / "print.jpg")
    assert "profile" in said(tmp_path / "wide.png")
    assert said(tmp_path / "plain.png") == "None"
    for name in ("moving.gif", "pages.tif"):
        assert said(tmp_path / name) == "the first of several pictures in the file"
    assert said(tmp_path / "print.jpg").startswith("CMYK becomes RGB")


def test_depths_of_jpeg_2000_are_those_of_its_header() -> None:
    def saved(values: np.ndarray, **more: object) -> bytes:
        content = io.BytesIO()
        Image.fromarray(values).save(content, "JPEG2000", **more)  # type: ignore[arg-type]  # by name
        return content.getvalue()

    grey, colours = np.zeros((8, 8), np.uint16), np.zeros((8, 8, 3), np.uint8)
    assert depths(saved(grey)) == [Depth(16, False)]
    assert depths(saved(colours)) == [Depth(8, False)] * 3
    assert depths(saved(colours, no_jp2=True)) == [Depth(8, False)] * 3
    boxes = saved(grey)[:100]  # the codestream may begin behind what is looked at
    assert depths(boxes[: boxes.index(b"ihdr") + 18]) == [Depth(16, False)]
    signed = b"\xff\x4f\xff\x51" + bytes(36) + struct.pack(">H", 2) + bytes([0x80 | 11, 1, 1, 7, 1, 1])
    assert depths(signed) == [Depth(12, True), Depth(8, False)]
    assert depths(b"") == []


def test_a_ppm_in_colour_of_more_than_8_bits_is_read_in_8_and_takes_no_depth(tmp_path: Path) -> None:
    values = np.arange(0, 4096, 16, dtype=np.uint16).repeat(3)
    for largest, text in ((4095, "0 to 4095 are black to white, the largest value of the file"), (65535, "nearly black")):
        (tmp_path / "a.ppm").write_bytes(b"P6\n256 1\n%d\n" % largest + values.astype(">u2").tobytes())
        picture, scaling = read_scaled(tmp_path / "a.ppm", 3, Reading())
        assert text in str(scaling)
        assert abs(np.asarray(picture, float).ravel() - values * (255 / largest)).max() <= 0.5
    with pytest.raises(ImageError, match="depth and window cannot be applied to a colour PPM"):
        said(tmp_path / "a.ppm", depth=12)


def test_a_refusal_names_what_the_first_bytes_tell(tmp_path: Path) -> None:
    for content, message in (
        (b"%PDF-1.7\n", "a PDF, which is not read"),
        (b"<svg width='8'>", "an SVG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "damaged: it begins as a picture"),
        (b"II*\0" + bytes(20), "a TIFF that Pillow does not read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"nothing at all", "not a picture in a known format"),
    ):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ImageError, match=message):
            read_scaled(tmp_path / "a.png", 3, Reading())
    assert is_picture(b"II+\0")
    assert is_picture(b"MM\0+")


def test_a_tiff_of_16_bits_that_was_loaded_before_is_read_unless_its_planes_are_apart(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    colours = np.stack([values, values.T, values], axis=-1)
    for planes, name in (("contig", "together.tif"), ("separate", "apart.tif")):
        data = colours if planes == "contig" else np.moveaxis(colours, 2, 0)
        tifffile.imwrite(tmp_path / name, data, photometric="rgb", planarconfig=planes)
        assert abs(np.asarray(read_scaled(tmp_path / name, 3, Reading())[0], float) - colours / 257).max() <= 0.5
        with Image.open(tmp_path / name) as opened:  # as a data set gives it
            assert abs(np.asarray(from_memory(opened, 3, Reading())[0], float) - colours / 257).max() <= 0.5
        with Image.open(tmp_path / name) as opened:
            opened.load()
            if planes == "contig":
                assert abs(np.asarray(from_memory(opened, 3, Reading())[0], float) - colours / 257).max() <= 1
            else:
                with pytest.raises(ImageError, match="in this layout is read wrongly by Pillow"):
                    from_memory(opened, 3, Reading())
