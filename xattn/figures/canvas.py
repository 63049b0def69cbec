"""Elements of figures of maps: coloured maps over grey crops, captions, names of columns, files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xattn.catalogue import is_direct
from xattn.data.preprocessing import Region
from xattn.errors import InputError
from xattn.figures.fonts import lettered
from xattn.figures.style import FigureStyle
from xattn.metrics.values import is_value
from xattn.overlays import CMAP, SIGNED_CMAP, Floats, Interpolation, blended, is_signed, laid_over, shown_values
from xattn.study.schema import StoredMap

COLOURS, SIGNED_COLOURS = CMAP, SIGNED_CMAP
COVER = 0.6  # opacity of the colour over the picture
FORMATS = (".pdf", ".svg", ".png")
LUMINANCE = (0.299, 0.587, 0.114)
Bytes = NDArray[np.uint8]
UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same data produce the same bytes


def format_of(out: str | Path) -> Path:
    """Checks and returns the path of the file to write.

    Raises:
        InputError: its extension is not a supported format.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"a figure ends in {', '.join(FORMATS)}; got '{out.name}'.")
    return out


def save(pages: Figure | Sequence[Figure], out: str | Path, dpi: int = 300) -> list[Path]:
    """Writes the pages of a figure at their own size; the same figure produces the same bytes.

    Args:
        pages: from `pages` or `figure`.
        out: `.pdf` (vector, fonts embedded, all pages in one file), `.svg` or `.png`; several pages become one file each: `name.png`,
            `name-2.png`, ….
        dpi: resolution of a PNG, and of raster content in a vector format.

    Returns:
        The written files.
    """
    file, several = format_of(out), [pages] if isinstance(pages, Figure) else list(pages)
    ending = file.suffix.lower()
    file.parent.mkdir(parents=True, exist_ok=True)
    for page in several:
        lettered(page)
    with matplotlib.rc_context(FigureStyle().rc()):
        if ending == ".pdf":
            from matplotlib.backends.backend_pdf import PdfPages

            with PdfPages(file, metadata=UNDATED[ending]) as document:
                for page in several:
                    document.savefig(page, dpi=dpi)
            return [file]
        files = [file, *(file.with_name(f"{file.stem}-{number}{file.suffix}") for number in range(2, len(several) + 1))]
        for page, place in zip(several, files, strict=True):
            page.savefig(place, dpi=dpi, metadata=UNDATED.get(ending))
    return files


def shown_crop(crop: Bytes) -> Bytes:
    """Converts a crop `(C, H, W)` to a picture `(H, W, 3)`: the first three of more than three channels, else the first in grey."""
    return (crop[:3] if len(crop) >= 3 else crop[[0, 0, 0]]).transpose(1, 2, 0)


def shown_title(crop: Bytes) -> str:
    """Returns the title of a crop `(C, H, W)`, which names the channels if some are not shown."""
    shown = 3 if len(crop) >= 3 else 1
    return "input" if len(crop) == shown else f"input, channels 1 to {shown} of {len(crop)}" if shown > 1 else "input, channel 1 of 2"


def grey(crop: Bytes) -> Floats:
    """Returns the luminance `(H, W)` in [0, 1] of a crop `(C, H, W)` as displayed."""
    found: Floats = (shown_crop(crop).astype(np.float32) / 255 * np.array(LUMINANCE, dtype=np.float32)).sum(axis=2)
    return found


def mask_of(stored: StoredMap, method: str, size: tuple[int, int] | None = None) -> Floats:
    """Returns the mask of a stored map, at the image's size or at its own: `(H, W)` in [0, 1]."""
    mask = shown_values(stored.raw, direct=is_direct(method), signed=False)
    return mask if size is None else enlarged(mask, size)


def enlarged(values: Floats, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> Floats:
    """Resizes values `(h, w)` to another height and width."""
    return values if values.shape == size else laid_over(values, size, Region(0, 0, size[1], size[0]), interpolation)


def overlay(crop: Bytes, mask: Floats, colours: str = COLOURS) -> Floats:
    """Overlays a mask in colour on the grey picture.

    Args:
        crop: uint8 `(C, H, W)`.
        mask: `(H, W)` in [0, 1].
        colours: name of a matplotlib colour map.

    Returns:
        `(H, W, 3)` in [0, 1].
    """
    return blended(grey(crop)[..., None], mask, colours, COVER)


def shown_map(
    crop: Bytes,
    stored: StoredMap,
    method: str,
    *,
    smooth: bool = True,
    limits: tuple[float, float] | None = None,
    colours: str | None = None,
) -> Floats:
    """Overlays a stored map in colour on the grey picture: its mask, or for a signed method the map around zero, over its largest
    magnitude.

    Args:
        crop: uint8 `(C, H, W)`.
        stored: the map.
        method: name as in the rows.
        smooth: enlarge the map bilinearly; else each cell has one colour.
        limits: values of the first and the last colour; None: the map's own.
        colours: name of a matplotlib colour map; None: the method's own.

    Returns:
        `(H, W, 3)` in [0, 1].
    """
    values = shown_values(stored.raw, direct=is_direct(method), signed=is_signed(method), limits=limits)
    values = enlarged(values, (crop.shape[1], crop.shape[2]), "bilinear" if smooth else "nearest")
    return overlay(crop, values, colours or (SIGNED_COLOURS if is_signed(method) else COLOURS))


def common_limits(found: Iterable[StoredMap]) -> tuple[float, float]:
    """Returns the lowest and the highest value of some maps."""
    maps = [stored.raw for stored in found]
    return min(float(raw.min()) for raw in maps), max(float(raw.max()) for raw in maps)


def sharp(picture: Floats, size: tuple[int, int]) -> Floats:
    """Enlarges a picture `(h, w, C)` without smoothing."""
    return np.stack([enlarged(channel, size, "nearest") for channel in picture.transpose(2, 0, 1)], axis=2)


def note_below(stored: StoredMap, method: str) -> str:
    """Returns the text over a flagged map; "" for other maps."""
    if not stored.about["degenerate"]:
        return ""
    return "nowhere positive" if is_signed(method) and bool(stored.raw.any()) else "no contrast"


def caption(about: dict[str, Any], classes: Sequence[str] | None) -> str:
    """Describes a classifier's output for an image: the explained class with its probability, and the predicted class if it is another one.

    Args:
        about: facts of a stored map.
        classes: the classifier's class names.
    """
    if is_value(about["target"]) and about["predicted"] is not None:
        return f"{about['target']}: {about['predicted']:.3g}"
    name = _class(about["target"], classes)
    share = None if about["probability"] is None else probability(about["probability"])
    is_class = about["predicted"] is not None and str(about["target"]).isdecimal()
    if is_class and str(about["predicted"]) != str(about["target"]):
        answer = f"{name}, {share}" if share else name
        return f"{answer} (predicted: {_class(about['predicted'], classes)})"
    name = f"predicted: {name}" if is_class else name
    return f"{name}, {share}" if share else name


def probability(p: float) -> str:
    """Formats a probability with two decimals and no-break spaces.

    >>> probability(0.831).replace("\u00a0", " "), probability(0.9999).replace("\u00a0", " ")
    ('p = 0.83', 'p > 0.99')
    """
    text = "p > 0.99" if p > 0.995 else "p < 0.01" if p < 0.005 else f"p = {p:.2f}"
    return text.replace(" ", "\u00a0")


def _class(index: int | str | None, classes: Sequence[str] | None) -> str:
    """Returns the name of a target's class; a target that is not a class keeps its own text."""
    if index is None or not str(index).isdecimal():
        return str(index)
    return f"class {index}" if classes is None else classes[int(index)]


def called(model: str, head: str, others: Iterable[tuple[str, ...]]) -> str:
    """Returns what distinguishes a classifier from others: its model, its head, both or neither; a head in the model's name is not
    repeated.

    Args:
        model: name of the model.
        head: name of the head.
        others: model and head of all classifiers, including this one; further entries are ignored.
    """
    keys = {other[:2] for other in others}
    several_models, several_heads = (len({key[place] for key in keys}) > 1 for place in (0, 1))
    short = model.rpartition(":")[2]
    parts = [short] * several_models + [head] * (several_heads and not (several_models and head in short))
    return " · ".join(parts)
