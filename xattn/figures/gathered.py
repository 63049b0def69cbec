"""What figures have in common: maps, crops and labels of runs, and how they are put on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from xattn.classifiers.preprocessing import Preprocessing
from xattn.errors import ImageError, InputError, NameUnknownError
from xattn.explainers.facts import methods as registry
from xattn.images import ImageSource
from xattn.metrics.masking import to_masks
from xattn.study.compare import shown_names
from xattn.study.scoring import run_key
from xattn.study.store import Store, StoredMap

COLOURS = "inferno"
COVER = 0.6  # how much of the colour covers the picture
CELL_INCHES = 1.15
FORMATS = (".pdf", ".svg", ".png")
MOST_IMAGES = 6
LUMINANCE = (0.299, 0.587, 0.114)

Column = tuple[str, str, str]


@dataclass(frozen=True)
class Gathered:
    """What some runs hold of some images.

    Attributes:
        names: of the images.
        maps: raw maps by image, model, head and method.
        ranked: ranked maps by image, model and head.
        crops: uint8 `(3, H, W)` by image, model and head.
        paths: files of the images.
        preprocessing: by model and head.
        labels: class names by model and head.
    """

    names: list[str]
    maps: dict[tuple[str, str, str, str], StoredMap]
    ranked: dict[tuple[str, str, str], StoredMap]
    crops: dict[tuple[str, str, str], Tensor]
    paths: dict[str, Path | str | None]
    preprocessing: dict[tuple[str, str], Preprocessing]
    labels: dict[tuple[str, str], Sequence[str] | None]

    @property
    def columns(self) -> list[Column]:
        """Model, head and method of the maps."""
        return list(dict.fromkeys(key[1:] for key in self.maps))


def gathered(runs: Sequence[str | Path], images: Sequence[str] | None, methods: Sequence[str] | None) -> Gathered:
    """Opens runs for a figure.

    Args:
        runs: run folders.
        images: names as in the rows; the first six if None.
        methods: names as in the rows; all if None.

    Raises:
        InputError: pictures that are no longer where the run found them.
        NameUnknownError: an image or method that is not in the runs.
    """
    stores = [Store(run) for run in runs]
    about = [store.read_run() for store in stores]
    sources = [_source(store, run) for store, run in zip(stores, about, strict=True)]
    names = _chosen_images(sources, images)
    maps: dict[tuple[str, str, str, str], StoredMap] = {}
    ranked: dict[tuple[str, str, str], StoredMap] = {}
    shown = shown_names(stores)
    for store, called in zip(stores, shown, strict=True):
        for (image, model, head, method), found in store.maps(names, methods).items():
            maps[image, called[model, head], head, method] = found
        for (image, model, head), found in store.ranked(names).items():
            ranked[image, called[model, head], head] = found
    if missing := set(methods or ()) - {method for _, _, _, method in maps}:
        raise NameUnknownError(
            "method in these runs", min(missing), sorted({method for run in about for method in run["settings"]["methods"]})
        )
    names = [name for name in names if any(key[0] == name for key in maps)]
    if not names:
        raise InputError("none of the chosen images has maps in these runs.")
    models: dict[tuple[str, str], tuple[dict[str, Any], int]] = {}
    labels: dict[tuple[str, str], Sequence[str] | None] = {}
    for number, run in enumerate(about):
        for model in run["settings"]["models"]:
            key = (shown[number][model["name"], model["head"]], model["head"])
            models[key] = (model, number)
            labels[key] = run["labels"][run_key(model["name"], model["head"])]
    preprocessing = {key: Preprocessing.from_json(settings["preprocessing"]) for key, (settings, _) in models.items()}
    crops = {(name, *key): _crop(sources[number], name, preprocessing[key]) for name in names for key, (_, number) in models.items()}
    paths = {name: _named(sources[0], name).path for name in names}
    return Gathered(names, maps, ranked, crops, paths, preprocessing, labels)


def format_of(out: str | Path) -> Path:
    """The file to write.

    Raises:
        InputError: an ending that is no format.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"a figure ends in {', '.join(FORMATS)}; got '{out.name}'.")
    return out


def on_paper() -> Any:
    """Fonts as papers want them, for as long as a figure is drawn and saved."""
    return matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "path", "font.size": 7, "font.family": "DejaVu Sans"})


def save(figure: Figure, out: Path, dpi: int) -> None:
    """Writes a figure, the same bytes for the same figure."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=dpi, bbox_inches="tight", metadata={"Date": None} if out.suffix == ".svg" else None)


def grey(crop: Tensor) -> Tensor:
    """Luminance `(H, W)` in [0, 1] of a uint8 crop `(3, H, W)`."""
    return (crop.float() / 255 * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(dim=0)


def mask_of(stored: StoredMap, method: str, size: tuple[int, int] | None = None) -> Tensor:
    """The mask of a stored map, of the image's size, or of its own as it was computed: `(H, W)` in [0, 1]."""
    own = (stored.raw.shape[0], stored.raw.shape[1])
    if method not in registry.entries or not registry.entries[method].facts.direct:
        return to_masks(stored.raw[None], size or own).masks[0]
    return functional.interpolate(stored.raw[None, None], size=size or own, mode="bilinear", align_corners=False)[0, 0]


def overlay(crop: Tensor, mask: Tensor) -> Tensor:
    """A mask in colour over the grey picture.

    Args:
        crop: uint8 `(3, H, W)`.
        mask: `(H, W)` in [0, 1].

    Returns:
        `(H, W, 3)` in [0, 1].
    """
    colour = torch.as_tensor(colormaps[COLOURS](mask.numpy())[..., :3], dtype=torch.float32)
    return (1 - COVER) * grey(crop)[..., None] + COVER * colour


def show(axis: Any, picture: Tensor) -> None:
    """A picture `(H, W, 3)` without a frame, each pixel sharp."""
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
    """What the classifiers said of an image: together where all were asked for one class, else each."""
    said: dict[tuple[str, str], dict[str, Any]] = {}
    for (image, model, head, _), found in maps.items():
        if image == name and (model, head) in {column[:2] for column in columns}:
            said.setdefault((model, head), found.about)
    named = {key: _class(about["target"], labels.get(key)) for key, about in said.items()}
    if len(set(named.values())) == 1:
        shares = sorted(f"{about['probability']:.2f}" for about in said.values())
        lines = [f"{next(iter(named.values()))}, p = {' to '.join(dict.fromkeys((shares[0], shares[-1])))}"]
    else:
        lines = []
    for key, about in said.items():
        heading = " · ".join(called(*key, columns))
        if len(set(named.values())) > 1:
            lines.append("\n".join(filter(None, [heading, f"{named[key]}, p = {about['probability']:.2f}"])))
        if about["predicted"] != about["target"]:
            lines.append(f"({heading + ' ' if len(said) > 1 else ''}predicted {_class(about['predicted'], labels.get(key))})")
    return "\n".join(lines)


def _class(index: int, classes: Sequence[str] | None) -> str:
    return f"class {index}" if classes is None else classes[index]


def called(model: str, head: str, columns: Sequence[Column]) -> list[str]:
    """What tells a column's classifier from the others': its model, its head, both or neither; a head that the model is called by, once."""
    models, heads = ({column[place] for column in columns} for place in (0, 1))
    shown = [_short(model)] * (len(models) > 1)
    return shown if shown and head in shown[0] else shown + [broken(head)] * (len(heads) > 1)


def broken(method: str) -> str:
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


def _crop(source: ImageSource, name: str, preprocessing: Preprocessing) -> Tensor:
    try:
        return source.decode(_named(source, name), preprocessing)[1]
    except ImageError as error:
        raise ImageError(f"'{name}': {error}") from error
