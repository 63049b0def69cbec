"""Reports colour information or further pictures in a file that are ignored when it is read."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from PIL import Image

from xattn.data.depth import Scaling

PRIMARIES: Mapping[bytes, tuple[float, float, float]] = {
    b"rXYZ": (0.4360, 0.2225, 0.0139),
    b"gXYZ": (0.3851, 0.7169, 0.0971),
    b"bXYZ": (0.1431, 0.0606, 0.7141),
}
"""Primaries of sRGB in ICC profiles, adapted to D50."""
HALF = 0.2140  # linear light of the level 1/2 in sRGB
NEAR = 0.02  # differences of primaries and light that are not reported
GAMMA, GAMMA_NEAR = 1 / 2.2, 0.02
CODED = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3", 16: "PQ", 18: "HLG", 8: "linear light"}
"""Code points of ITU-T H.273 for primaries and curves other than sRGB's."""
ADOBE = b"\xff\xee\x00\x0eAdobe"


def notes_of(picture: Image.Image, head: bytes = b"") -> list[Scaling]:
    """Lists what is ignored in a picture that is not loaded yet, in words.

    Stored values are used unchanged, as in the training of networks: a viewer that applies a profile displays other colours.

    Args:
        picture: the opened picture.
        head: the beginning of its file; empty for a picture in memory, whose frame the user selected.
    """
    notes = []
    if head and _has_more(picture):
        notes.append(Scaling("the first of several pictures in the file"))
    if picture.mode == "CMYK":
        is_doubted = picture.format == "JPEG" and bool(head) and "adobe_transform" not in picture.info
        doubt = "nothing says whether its values are inverted: they are taken so, as Adobe's programs write them" if is_doubted else ""
        notes.append(Scaling("CMYK becomes RGB as (1 - C)(1 - K), without a colour profile", doubt))
    elif (profile := picture.info.get("icc_profile")) and picture.mode != "LAB" and not is_srgb(profile):
        notes.append(Scaling("the colour profile of the file, which is not sRGB's, is not applied"))
    elif coded := _coded(head):
        notes.append(Scaling(f"colours of {' and '.join(coded)} are taken as sRGB's"))
    gamma = picture.info.get("gamma")
    if isinstance(gamma, float) and abs(gamma - GAMMA) > GAMMA_NEAR and not {"srgb", "icc_profile"} & set(picture.info):
        notes.append(Scaling(f"the gamma of the file, {gamma:.3g}, is not applied"))
    return notes


def _has_more(picture: Image.Image) -> bool:
    """Checks for frames or pages after the first; the second picture of a phone's JPEG (MPO) does not count."""
    try:
        return picture.format != "MPO" and bool(getattr(picture, "is_animated", False))
    except Exception:  # the second frame is damaged; only the first one is read
        return True
    finally:
        picture.seek(0)


def is_srgb(profile: bytes) -> bool:
    """Checks whether an ICC profile has approximately sRGB's primaries and curve; for a grey profile, only the curve."""
    try:
        found = _tags(profile)
        curves = [_light_at_half(content) for name, content in found.items() if name in (b"rTRC", b"gTRC", b"bTRC", b"kTRC")]
        if not curves or any(abs(light - HALF) > NEAR for light in curves):
            return False
        if profile[16:20] == b"GRAY":
            return True
        return all(
            abs(number / 65536 - wanted) <= NEAR
            for name, values in PRIMARIES.items()
            for number, wanted in zip(struct.unpack(">3i", found[name][8:20]), values, strict=True)
        )
    except (struct.error, KeyError, ValueError, OverflowError):
        return False


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack(">I", profile[128:132])
    entries = [struct.unpack(">4sII", profile[place : place + 12]) for place in range(132, 132 + 12 * min(count, 100), 12)]
    return {name: profile[start : start + size] for name, start, size in entries}


def _light_at_half(curve: bytes) -> float:
    """Returns the value of an ICC profile's curve at 1/2."""
    if curve.startswith(b"para"):
        (kind,) = struct.unpack(">H", curve[8:10])
        numbers = [number / 65536 for number in struct.unpack(f">{(len(curve) - 12) // 4}i", curve[12 : 12 + (len(curve) - 12) // 4 * 4])]
        return float((0.5 if kind == 0 else 0.5 * numbers[1] + numbers[2]) ** numbers[0])
    (count,) = struct.unpack(">I", curve[8:12])
    if count == 0:
        return 0.5
    if count == 1:
        return float(0.5 ** (struct.unpack(">H", curve[12:14])[0] / 256))
    below = 12 + 2 * ((count - 1) // 2)
    return float(struct.unpack(">H", curve[below : below + 2])[0] / 65535)


def _coded(head: bytes) -> list[str]:
    """Names the primaries and curve that code points in a PNG, AVIF or HEIC file select, if they are not sRGB's."""
    for mark, form in ((b"colrnclx", ">HH"), (b"cICP", ">BB")):
        place = head.find(mark)
        codes = head[place + len(mark) : place + len(mark) + struct.calcsize(form)]
        if place >= 0 and len(codes) == struct.calcsize(form):
            primaries, curve = struct.unpack(form, codes)
            return [CODED[code] for code, known in ((primaries, (9, 11, 12)), (curve, (8, 16, 18))) if code in known]
    return []
