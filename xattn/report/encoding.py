"""Compact encoding of a report's maps, curves and pictures, in base64."""

from __future__ import annotations

import base64
import io
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from xattn.catalogue import is_direct
from xattn.metrics.masking import to_masks
from xattn.overlays import is_signed
from xattn.study.schema import PREVIEW

FINE, COARSE = 65535, 255  # largest integers of 16 and of 8 bits
NO_VALUE = 65535  # marks missing values of a curve, whose probabilities go up to 65534
FLAT = 1e-9  # norm of a mask without contrast
GRID = 14  # cells per side on which masks are compared
QUALITY = 80  # of WebP


@dataclass(frozen=True)
class EncodedMap:
    """A raw map as integers from its lowest to its highest value.

    Attributes:
        height: in cells.
        width: in cells.
        low: lowest value.
        high: highest value.
        data: little-endian 16-bit integers of a map as the run stores it, or 8-bit integers of a map that was reduced here.
        reduced: the map was larger, and each cell is the mean of several.
    """

    height: int
    width: int
    low: float
    high: float
    data: bytes
    reduced: bool = False


def encoded_map(raw: Tensor) -> EncodedMap:
    """Encodes a finite raw map `(h, w)` in 16 bits."""
    return _encoded(raw, FINE, reduced=False)


def reduced_map(raw: Tensor) -> EncodedMap:
    """Encodes a finite raw map `(h, w)` in 8 bits, as cell means, at most `PREVIEW` per side."""
    size = (min(raw.shape[0], PREVIEW), min(raw.shape[1], PREVIEW))
    return _encoded(functional.adaptive_avg_pool2d(raw[None], size)[0], COARSE, reduced=True)


def decoded_map(found: EncodedMap) -> Tensor:
    """Decodes the raw map `(h, w)`, up to rounding."""
    data = bytearray(found.data)
    if found.reduced:
        whole = torch.frombuffer(data, dtype=torch.uint8).double() / COARSE
    else:
        whole = (torch.frombuffer(data, dtype=torch.int16).to(torch.int32) & FINE).double() / FINE
    return (whole * (found.high - found.low) + found.low).float().view(found.height, found.width)


def _encoded(raw: Tensor, largest: int, *, reduced: bool) -> EncodedMap:
    low, high = (float(end) for end in raw.aminmax())
    whole = ((raw.double() - low) / ((high - low) or 1.0) * largest).round().to(torch.int32)
    data = whole.numpy().astype("<u2" if largest == FINE else "u1").tobytes()
    return EncodedMap(raw.shape[0], raw.shape[1], low, high, data, reduced)


def encoded_curve(p: Sequence[float | None]) -> bytes:
    """Encodes probabilities along a curve in 16 bits; NaN has its own code."""
    whole = array("H", [NO_VALUE if v is None or v != v else round(min(1.0, max(0.0, v)) * (NO_VALUE - 1)) for v in p])
    if sys.byteorder == "big":
        whole.byteswap()
    return whole.tobytes()


def kind_of(method: str) -> str:
    """Returns how a method's raw map becomes its mask: "signed", from the positive part; "direct", unchanged; else "mask"."""
    if is_signed(method):
        return "signed"
    return "direct" if is_direct(method) else "mask"


def comparable(raw: Tensor, kind: str) -> Tensor:
    """Computes masks of raw maps `(B, h, w)` on a coarse grid, `(B, GRID²)`; masks on one grid are compared cell by cell."""
    raw = raw.relu() if kind == "signed" else raw
    if max(raw.shape[1:]) > GRID:
        raw = functional.adaptive_avg_pool2d(raw, (GRID, GRID))
    if kind == "direct":
        return functional.interpolate(raw[:, None], size=(GRID, GRID), mode="bilinear", align_corners=False).flatten(1)
    return to_masks(raw, (GRID, GRID)).masks.flatten(1)


def disagreements(masks: Tensor) -> Tensor:
    """Computes 1 − Pearson's r of each pair of masks, in 254ths of 2; 255 if one is constant or missing.

    Args:
        masks: `(B, C, N)`; all NaN for a missing mask.

    Returns:
        `(B, C·(C − 1)/2)` uint8, for the pairs (0, 1), (0, 2), …, (1, 2), ….
    """
    centred = masks.double() - masks.double().mean(dim=2, keepdim=True)
    size = centred.norm(dim=2, keepdim=True)
    unit = centred / torch.where(size > FLAT, size, torch.nan)
    r = (unit @ unit.mT).clamp(-1, 1)
    first, second = torch.triu_indices(masks.shape[1], masks.shape[1], offset=1)
    return ((1 - r[:, first, second]) / 2 * (COARSE - 1)).round().nan_to_num(COARSE).to(torch.uint8)


def encoded_picture(crop: Tensor, side: int) -> str:
    """Encodes a uint8 crop `(C, H, W)` as a data URI of WebP, its longer side at most `side` pixels."""
    shown = crop[:3] if len(crop) >= 3 else crop[:1].expand(3, -1, -1)
    picture = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy(), "RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="WEBP", quality=QUALITY, method=2)
    return f"data:image/webp;base64,{base64_of(file.getvalue())}"


def base64_of(content: bytes) -> str:
    """Encodes bytes as base64 text."""
    return base64.b64encode(content).decode("ascii")


UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def script_json(content: Any) -> str:
    """Returns JSON that is safe in a script element: nothing in it ends the element or begins another, in HTML or in JavaScript.

    >>> script_json("</script><img src=x>")
    '"\\\\u003c/script\\\\u003e\\\\u003cimg src=x\\\\u003e"'
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(UNSAFE)
