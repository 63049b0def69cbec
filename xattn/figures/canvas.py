"""How figures are drawn: fonts, overlays, captions, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor
from torch.nn import functional

from xattn.errors import InputError
from xattn.explainers.base import is_signed
from xattn.explainers.base import methods as registry
from xattn.figures.run_data import Column
from xattn.metrics.masking import to_masks
from xattn.metrics.values import is_value
from xattn.study.schema import StoredMap
from xattn.text import shown

COLOURS = "inferno"
SIGNED_COLOURS = "RdBu_r"  # white at 0, blue below
COVER = 0.6  # opacity of the colour over the picture
CELL_INCHES = 1.15
FORMATS = (".pdf", ".svg", ".png")
LUMINANCE = (0.299, 0.587, 0.114)


def format_of(out: str | Path) -> Path:
    """The path of the file to write.

    Raises:
        InputError: its ending is not a format.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"a figure ends in {', '.join(FORMATS)}; got '{out.name}'.")
    return out


def on_paper() -> Any:
    """Fonts for papers, while a figure is drawn and saved."""
    return matplotlib.rc_context(
        {
            "pdf.fonttype": 42,
            "svg.fonttype": "path",
            "svg.hashsalt": "xattn",  # ids that are the same every time
            "font.size": 7,
            "font.family": "DejaVu Sans",
            "text.parse_math": False,  # a name with $ is a name
        }
    )


def save(figure: Figure, out: Path, dpi: int) -> None:
    """Writes a figure; the same figure gives the same bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for text in figure.findobj(Text):
        text.set_text(shown(text.get_text()))
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same data give the same bytes
    figure.savefig(out, dpi=dpi, bbox_inches="tight", metadata=undated.get(out.suffix))


def shown_crop(crop: Tensor) -> Tensor:
    """A uint8 crop `(C, H, W)` as a picture `(H, W, 3)`: of more than three channels the first three, else the first in grey."""
    return (crop[:3] if len(crop) >= 3 else crop[:1].expand(3, -1, -1)).permute(1, 2, 0)


def shown_title(crop: Tensor) -> str:
    """The title of a crop `(C, H, W)`, which names the channels if some are not shown."""
    shown = 3 if len(crop) >= 3 else 1
    return "input" if len(crop) == shown else f"input, channels 1 to {shown} of {len(crop)}" if shown > 1 else "input, channel 1 of 2"


def grey(crop: Tensor) -> Tensor:
    """Luminance `(H, W)` in [0, 1] of a uint8 crop `(C, H, W)` as it is shown."""
    return (shown_crop(crop).float() / 255 * torch.tensor(LUMINANCE)).sum(dim=2)


def mask_of(stored: StoredMap, method: str, size: tuple[int, int] | None = None) -> Tensor:
    """The mask of a stored map, at the image's size or at its own: `(H, W)` in [0, 1]."""
    own = (stored.raw.shape[0], stored.raw.shape[1])
    if method not in registry.entries or not registry.entries[method].metadata.direct:
        return to_masks(stored.raw[None], size or own).masks[0]
    return functional.interpolate(stored.raw[None, None], size=size or own, mode="bilinear", align_corners=False)[0, 0]


def overlay(crop: Tensor, mask: Tensor, colours: str = COLOURS) -> Tensor:
    """A mask in colour over the grey picture.

    Args:
        crop: uint8 `(C, H, W)`.
        mask: `(H, W)` in [0, 1].
        colours: name of matplotlib's colour map.

    Returns:
        `(H, W, 3)` in [0, 1].
    """
    colour = torch.as_tensor(colormaps[colours](mask.numpy())[..., :3], dtype=torch.float32)
    return (1 - COVER) * grey(crop)[..., None] + COVER * colour


def shown_map(crop: Tensor, stored: StoredMap, method: str, *, smooth: bool = True) -> Tensor:
    """A stored map in colour over the grey picture: its mask, or of a signed method the map around zero, over its largest magnitude.

    Args:
        crop: uint8 `(C, H, W)`.
        stored: the map.
        method: as in the rows.
        smooth: enlarge it bilinearly; else each cell is one colour.

    Returns:
        `(H, W, 3)` in [0, 1].
    """
    size = (crop.shape[1], crop.shape[2])
    if not is_signed(method):
        own = mask_of(stored, method, size if smooth else None)
        return overlay(crop, own if smooth else sharp(own[..., None], size)[..., 0])
    around = stored.raw / stored.raw.abs().max().clamp(min=torch.finfo(stored.raw.dtype).tiny)
    mode = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest-exact"}
    enlarged = functional.interpolate(around[None, None], size=size, **mode)[0, 0]
    return overlay(crop, (enlarged + 1) / 2, SIGNED_COLOURS)


def sharp(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture `(h, w, C)` enlarged without smoothing."""
    return functional.interpolate(picture.permute(2, 0, 1)[None], size=size, mode="nearest-exact")[0].permute(1, 2, 0)


def note_below(stored: StoredMap, method: str) -> str:
    """What is written below a map that is flagged; "" for another."""
    if not stored.about["degenerate"]:
        return ""
    return "nowhere positive" if is_signed(method) and bool(stored.raw.any()) else "no contrast"


def show(axis: Any, picture: Tensor) -> None:
    """Shows a picture `(H, W, 3)` without a frame and without smoothing."""
    axis.imshow(picture.numpy(), interpolation="none")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def caption(
    name: str,
    columns: Sequence[Column],
    maps: dict[tuple[str, str, str, str], StoredMap],
    labels: dict[tuple[str, str], Sequence[str] | None],
) -> str:
    """The classifiers' answers for an image: in one line if all explain the same class, else one line each."""
    answers: dict[tuple[str, str], dict[str, Any]] = {}
    for (image, model, head, _), found in maps.items():
        if image == name and (model, head) in {column[:2] for column in columns}:
            answers.setdefault((model, head), found.about)
    named = {key: _named(about, labels.get(key)) for key, about in answers.items()}
    shares = sorted(f"{about['probability']:.2f}" for about in answers.values() if about["probability"] is not None)
    if len(set(named.values())) == 1:
        lines = [_with_probability(next(iter(named.values())), " to ".join(dict.fromkeys((shares[0], shares[-1]))) if shares else None)]
    else:
        lines = []
    for key, about in answers.items():
        heading = " · ".join(called(*key, columns))
        if len(set(named.values())) > 1:
            share = None if about["probability"] is None else f"{about['probability']:.2f}"
            lines.append("\n".join(filter(None, [heading, _with_probability(named[key], share)])))
        if about["predicted"] is not None and str(about["target"]).isdecimal() and str(about["predicted"]) != str(about["target"]):
            lines.append(f"({heading + ' ' if len(answers) > 1 else ''}predicted {_class(about['predicted'], labels.get(key))})")
    return "\n".join(lines)


def _with_probability(name: str, share: str | None) -> str:
    return name if share is None else f"{name}, p = {share}"


def _named(about: dict[str, Any], classes: Sequence[str] | None) -> str:
    """The name of a target, with the value that a regression gives."""
    if is_value(about["target"]) and about["predicted"] is not None:
        return f"{about['target']}: {about['predicted']:.3g}"
    return _class(about["target"], classes)


def _class(index: int | str | None, classes: Sequence[str] | None) -> str:
    """The name of a target's class; a target that is not a class keeps its own text."""
    if index is None or not str(index).isdecimal():
        return str(index)
    return f"class {index}" if classes is None else classes[int(index)]


def called(model: str, head: str, columns: Sequence[Column]) -> list[str]:
    """What distinguishes a column's classifier: its model, its head, both or neither; a head in the model's name is not repeated."""
    models, heads = ({column[place] for column in columns} for place in (0, 1))
    shown = [_short(model)] * (len(models) > 1)
    return shown if shown and head in shown[0] else shown + [broken(head)] * (len(heads) > 1)


def broken(method: str) -> str:
    """A method with its settings, broken into several lines."""
    return method.replace(":", ":\n").replace(",", ",\n")


def _short(model: str) -> str:
    return model.rpartition(":")[2]
