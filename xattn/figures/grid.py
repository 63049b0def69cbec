"""Images × methods, each mask laid over the crop that the network saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor
from torch.nn import functional

from xattn.classifiers.preprocessing import Preprocessing
from xattn.errors import ImageError, InputError, NameUnknownError
from xattn.explainers.facts import methods
from xattn.images import ImageSource
from xattn.metrics.masking import to_masks
from xattn.study.compare import shown_names
from xattn.study.store import Store, StoredMap, labels_key

COLOURS = "inferno"
COVER = 0.6  # how much of the colour covers the picture
CELL_INCHES = 1.15
FORMATS = (".pdf", ".svg", ".png")
MOST_IMAGES = 6
LUMINANCE = (0.299, 0.587, 0.114)

Column = tuple[str, str, str]


def grid(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    images: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    dpi: int = 200,
) -> None:
    """Draws images × methods of one or several runs.

    Args:
        runs: run folders.
        out: `.pdf` (vector, fonts embedded), `.svg` or `.png`.
        images: names as in the rows; the first six if None.
        methods: names as in the rows; all if None.
        dpi: of a PNG.

    Raises:
        InputError: an ending that is no format, or pictures that are no longer where the run found them.
        NameUnknownError: an image or method that is not in the runs.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"a figure ends in {', '.join(FORMATS)}; got '{out.name}'.")
    stores = [Store(run) for run in runs]
    about = [store.read_run() for store in stores]
    sources = [_source(store, run) for store, run in zip(stores, about, strict=True)]
    names = _chosen_images(sources, images)
    maps: dict[tuple[str, str, str, str], StoredMap] = {}
    shown = shown_names(stores)
    for store, called in zip(stores, shown, strict=True):
        maps |= {
            (image, called[model, head], head, method): found for (image, model, head, method), found in store.maps(names, methods).items()
        }
    names = [name for name in names if any(key[0] == name for key in maps)]
    columns = list(dict.fromkeys(key[1:] for key in maps))
    if missing := set(methods or ()) - {column[2] for column in columns}:
        raise NameUnknownError(
            "method in these runs", min(missing), sorted({method for run in about for method in run["settings"]["methods"]})
        )
    if not names:
        raise InputError("none of the chosen images has maps in these runs.")
    models: dict[tuple[str, str], tuple[dict[str, Any], int]] = {}
    labels: dict[tuple[str, str], Sequence[str] | None] = {}
    for number, run in enumerate(about):
        for model in run["settings"]["models"]:
            key = (shown[number][model["name"], model["head"]], model["head"])
            models[key] = (model, number)
            labels[key] = run["labels"][labels_key(model["name"], model["head"])]
    crops = {
        (name, *key): sources[number].decode(_named(sources[number], name), Preprocessing.from_json(settings["preprocessing"]))[1]
        for name in names
        for key, (settings, number) in models.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "path", "font.size": 7, "font.family": "DejaVu Sans"}):
        figure = _draw(names, columns, maps, crops, labels)
        figure.savefig(out, dpi=dpi, bbox_inches="tight", metadata={"Date": None} if out.suffix == ".svg" else None)


def _resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def overlay(crop: Tensor, mask: Tensor) -> Tensor:
    """A mask in colour over the grey picture.

    Args:
        crop: uint8 `(3, H, W)`.
        mask: `(H, W)` in [0, 1].

    Returns:
        `(H, W, 3)` in [0, 1].
    """
    grey = (crop.float() / 255 * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(dim=0)
    colour = torch.as_tensor(colormaps[COLOURS](mask.numpy())[..., :3], dtype=torch.float32)
    return (1 - COVER) * grey[..., None] + COVER * colour


def _draw(
    names: Sequence[str],
    columns: Sequence[Column],
    maps: dict[tuple[str, str, str, str], StoredMap],
    crops: dict[tuple[str, str, str], Tensor],
    labels: dict[tuple[str, str], Sequence[str] | None],
) -> Figure:
    lines = 2 * len({column[:2] for column in columns})
    figure = Figure(
        figsize=(CELL_INCHES * (len(columns) + 1) + 0.4, (CELL_INCHES + 0.13 * lines) * len(names) + 0.2),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.0),
    )
    axes = figure.subplots(len(names), len(columns) + 1, squeeze=False)
    for row, name in enumerate(names):
        first = next(key for key in maps if key[0] == name)
        _show(axes[row][0], crops[name, first[1], first[2]].permute(1, 2, 0))
        axes[row][0].set_xlabel(_caption(name, columns, maps, labels), fontsize=6, labelpad=2)
        for place, (model, head, method) in enumerate(columns, start=1):
            axis = axes[row][place]
            found = maps.get((name, model, head, method))
            if found is None:
                axis.set_axis_off()
                continue
            crop = crops[name, model, head]
            size = (crop.shape[1], crop.shape[2])
            direct = method in methods.entries and methods.entries[method].facts.direct
            mask = _resized(found.raw, size) if direct else to_masks(found.raw[None], size).masks[0]
            _show(axis, overlay(crop, mask))
            if found.about["degenerate"]:
                axis.set_xlabel("no contrast", fontsize=6, labelpad=2)
            if row == 0:
                axis.set_title("\n".join([*_called(model, head, columns), _broken(method)]), fontsize=7)
    axes[0][0].set_title("input", fontsize=7)
    bar = figure.colorbar(ScalarMappable(cmap=COLOURS), ax=axes, fraction=0.012, pad=0.01, aspect=40)
    bar.set_label("mask, 0 to 1 within each map", fontsize=6)
    bar.ax.tick_params(labelsize=6)
    return figure


def _show(axis: Any, picture: Tensor) -> None:
    axis.imshow(picture.numpy(), interpolation="none")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _caption(
    name: str,
    columns: Sequence[Column],
    maps: dict[tuple[str, str, str, str], StoredMap],
    labels: dict[tuple[str, str], Sequence[str] | None],
) -> str:
    lines = []
    for model, head in dict.fromkeys(column[:2] for column in columns):
        about = next((found.about for key, found in maps.items() if key[:3] == (name, model, head)), None)
        if about is None:
            continue
        classes = labels.get((model, head))
        target = about["target"]
        named = classes[target] if classes is not None else f"class {target}"
        predicted = about["predicted"]
        other = f"\n(predicted {classes[predicted] if classes is not None else predicted})" if predicted != target else ""
        called = [" · ".join(found)] if (found := _called(model, head, columns)) else []
        lines.append("\n".join([*called, f"{named}, p = {about['probability']:.2f}{other}"]))
    return "\n".join(dict.fromkeys(lines))


def _called(model: str, head: str, columns: Sequence[Column]) -> list[str]:
    """What tells a column's classifier from the others': its model, its head, both or neither."""
    models, heads = ({column[place] for column in columns} for place in (0, 1))
    return [_short(model)] * (len(models) > 1) + [_broken(head)] * (len(heads) > 1)


def _broken(method: str) -> str:
    """A method with its settings, over several lines."""
    return method.replace(":", ":\n").replace(",", ",\n")


def _short(model: str) -> str:
    return model.rpartition(":")[2]


def _source(store: Store, run: dict[str, Any]) -> ImageSource:
    origin = run["settings"]["images"]["origin"]
    if not origin:
        raise InputError(f"'{store.folder}' was run on a data set in memory: its pictures cannot be found again for a figure.")
    try:
        return ImageSource(origin)
    except InputError as error:
        raise InputError(f"the pictures of '{store.folder}' are no longer where it found them: {error}") from error


def _chosen_images(sources: Sequence[ImageSource], asked: Sequence[str] | None) -> list[str]:
    known = [image.name for image in sources[0].images]
    for source in sources[1:]:
        others = {image.name for image in source.images}
        known = [name for name in known if name in others]
    if not known:
        raise InputError("no image is in all of these runs: draw them apart, or choose runs of the same images.")
    if asked is None:
        return known[:MOST_IMAGES]
    for name in asked:
        if name not in known:
            raise NameUnknownError("image in these runs", name, known)
    return list(asked)


def _named(source: ImageSource, name: str) -> Any:
    found = next((image for image in source.images if image.name == name), None)
    if found is None:
        raise ImageError(f"'{name}' is no longer among the pictures of the run.")
    return found
