"""Encodings of a picture whose values are known: the values that a file must yield, or why it may not be read."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from input_files import Values
from PIL import Image

HEIGHT, WIDTH = 32, 48
LOSSY = 8  # levels by which a lossy encoding of these smooth ramps may differ


@dataclass(frozen=True)
class Encoding:
    """A file and its right result.

    Attributes:
        name: name of the encoding.
        file: its name in the folder.
        make: returns its content.
        values: the encoded values, `(H, W)` or `(H, W, 3)`, from 0 to `white`.
        white: the largest value.
        tolerance: levels of 255 by which the decoded values may differ.
        says: what a log line must contain if the decoded values differ: how they were chosen, or why they are doubtful.
        given: options of the source.
    """

    name: str
    file: str
    make: Callable[[], bytes]
    values: Values
    white: float = 255
    tolerance: float = 0
    says: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)

    def right(self) -> Values:
        """Returns the values in levels of 255, `(H, W, 3)`, not rounded."""
        level = self.values.astype(np.float64) * 255 / self.white
        return level if level.ndim == 3 else np.stack([level] * 3, axis=-1)


Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
PLACE = Y * WIDTH + X
RED, GREEN, BLUE = X / (WIDTH - 1), Y / (HEIGHT - 1), (X + Y) / (WIDTH + HEIGHT - 2)
RGB01 = np.stack([RED, GREEN, BLUE], axis=-1)
GREY01 = PLACE / PLACE.max()
ALPHA01 = RED[:, ::-1]
STEPS = (PLACE * 256 // PLACE.size).astype(np.uint8)
"""Indices of 256 colours."""
COLOURS = np.stack([np.arange(256), np.arange(256)[::-1], np.arange(256) * 7 % 256], axis=-1).astype(np.uint8)


def levels(values: Values, white: int) -> Values:
    """Converts values in [0, 1] to integers up to `white`."""
    return np.round(values * white).astype(np.uint8 if white < 256 else np.uint16 if white < 65536 else np.uint32)


RGB, GREY, ALPHA = levels(RGB01, 255), levels(GREY01, 255), levels(ALPHA01, 255)
RGB16, GREY16, ALPHA16 = levels(RGB01, 65535), levels(GREY01, 65535), levels(ALPHA01, 65535)
RGB12, GREY12 = levels(RGB01, 4095), levels(GREY01, 4095)
HOUNSFIELD = (GREY12.astype(np.int32) - 1024).astype(np.int16)
SMOOTH = levels((RED + GREEN) / 2, 255)
"""Grey values that lossy encodings preserve."""
CMYK = np.concatenate([255 - RGB, levels((GREEN / 2)[..., None], 255)], axis=-1)
PLAIN = np.round((255.0 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255)
"""The colours of `CMYK` by the simple formula."""


def white_behind(colours: Values, alpha: Values, white: float = 255) -> Values:
    """Composites colours with an alpha on white."""
    alpha = alpha[..., None] if colours.ndim == 3 else alpha
    return (colours.astype(np.float64) * alpha + white * (white - alpha.astype(np.float64))) / white


def saved(picture: Values | Image.Image, form: str, mode: str | None = None, **more: Any) -> bytes:
    """Encodes a file with Pillow."""
    content = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture) if mode is None else as_mode(picture, mode)
    picture.save(content, form, **more)
    return content.getvalue()


def as_mode(values: Values, mode: str) -> Image.Image:
    """Makes a picture of any 8-bit Pillow mode."""
    return Image.frombytes(mode, (values.shape[1], values.shape[0]), np.ascontiguousarray(values).tobytes())


def animated(form: str, **more: Any) -> bytes:
    """Returns the picture followed by a black one."""
    first = with_palette() if form == "GIF" else Image.fromarray(RGB)
    return saved(first, form, save_all=True, append_images=[Image.new(first.mode, first.size)], **more)


def with_palette() -> Image.Image:
    """Returns a ramp of 256 colours."""
    picture = as_mode(STEPS, "P")
    picture.putpalette(COLOURS.tobytes())
    return picture
