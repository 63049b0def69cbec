"""Maps, crops and class names of some images in runs, for figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn.data.images import ImageSource
from xattn.data.preprocessing import Preprocessing
from xattn.errors import ImageError, InputError, NameUnknownError, RunError
from xattn.study.moved import moved_pictures, picture_names_of, run_pictures
from xattn.study.questions import picture_names, shown_names
from xattn.study.schema import StoredLooks, StoredMap, run_key
from xattn.study.store import Store

Column = tuple[str, str, str]


@dataclass(frozen=True)
class RunData:
    """Data of some images in runs.

    Attributes:
        names: names of the images.
        maps: raw maps by image, model, head and method.
        ranked: ranked maps by image, model and head.
        crops: uint8 `(C, H, W)` by image, model and head.
        paths: files of the images.
        preprocessing: preprocessing by model and head.
        labels: class names by model and head.
        looks: patches and step weights of two-stream networks, by image, model and head.
        nearest: for runs with a gallery, name and cosine of a query's nearest picture, by query, model and head.
        pair_maps: raw maps of these queries and pictures, by image, the other image, model, head and method. `ranked` and `crops` also
            contain these pictures.
    """

    names: list[str]
    maps: dict[tuple[str, str, str, str], StoredMap]
    ranked: dict[tuple[str, str, str], StoredMap]
    crops: dict[tuple[str, str, str], NDArray[np.uint8]]
    paths: dict[str, Path | str | None]
    preprocessing: dict[tuple[str, str], Preprocessing]
    labels: dict[tuple[str, str], Sequence[str] | None]
    looks: dict[tuple[str, str, str], StoredLooks] = field(default_factory=dict)
    nearest: dict[tuple[str, str, str], tuple[str, float]] = field(default_factory=dict)
    pair_maps: dict[tuple[str, str, str, str, str], StoredMap] = field(default_factory=dict)

    @property
    def columns(self) -> list[Column]:
        """Returns model, head and method of the maps."""
        return list(dict.fromkeys(key[1:] for key in self.maps))


def read_runs(
    runs: Sequence[str | Path],
    images: Sequence[str] | None,
    methods: Sequence[str] | None,
    count: int = 6,
    moved_to: str | Path | Sequence[str | Path] | None = None,
) -> RunData:
    """Reads the data of a figure from runs.

    Args:
        runs: run folders.
        images: names as in the rows; the first ones if None.
        methods: names as in the rows; all if None.
        count: number of images, if no names are given.
        moved_to: where the pictures are now; None: where the runs found them.

    Raises:
        RunError: a run folder is damaged.
        InputError: pictures are no longer where the run found them, or differ between runs.
        NameUnknownError: an image or method is not in the runs.
    """
    stores = [Store(run) for run in runs]
    about = [store.read_run() for store in stores]
    if moved_to is None:
        sources = [source_of(store, run) for store, run in zip(stores, about, strict=True)]
        names = _chosen_images([[image.name for image in source.images] for source in sources], images, count)
    else:
        names = _chosen_images([picture_names_of(store) for store in stores], images, count)
        every = [[*dict.fromkeys([*names, *_partners(run, names)])] for run in about]
        sources = [moved_pictures(store, moved_to, wanted) for store, wanted in zip(stores, every, strict=True)]
    _refuse_other_pictures(stores, names)
    maps: dict[tuple[str, str, str, str], StoredMap] = {}
    ranked: dict[tuple[str, str, str], StoredMap] = {}
    looks: dict[tuple[str, str, str], StoredLooks] = {}
    nearest: dict[tuple[str, str, str], tuple[str, float]] = {}
    pair_maps: dict[tuple[str, str, str, str, str], StoredMap] = {}
    shown = shown_names(stores)
    for store, run, called in zip(stores, about, shown, strict=True):
        for (model, head), name in called.items():
            known = run.get("pairs", {}).get(run_key(model, head), {})
            nearest |= {(query, name, head): (known[query][0], known[query][1]) for query in names if query in known}
        if partners := _partners(run, names):
            for (image, other, model, head, method), found in store.maps_by_target([*names, *partners], methods).items():
                name = called[model, head]
                if any(nearest.get((a, name, head), ("", 0.0))[0] == b for a, b in ((image, other), (other, image))):
                    pair_maps[image, other, name, head, method] = found
            ranked |= {(image, called[model, head], head): found for (image, model, head), found in store.ranked(partners).items()}
        for (image, model, head, method), found in store.maps(names, methods).items():
            if (model, head) not in called:
                raise RunError(f"the maps in '{store.folder}' are of {model} · {head}, which its run.json does not name: it is damaged.")
            maps[image, called[model, head], head, method] = found
        for (image, model, head), found in store.ranked(names).items():
            ranked[image, called[model, head], head] = found
        looks |= {(image, called[model, head], head): found for (image, model, head), found in store.looks(names).items()}
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
            labels[key] = run.get("labels", {}).get(run_key(model["name"], model["head"]))
    preprocessing = {key: Preprocessing.from_json(settings["preprocessing"]) for key, (settings, _) in models.items()}
    crops = {(name, *key): _crop(sources[number], name, preprocessing[key]) for name in names for key, (_, number) in models.items()}
    for (_, model_name, head), (other, _) in nearest.items():
        key = (model_name, head)
        crops[other, model_name, head] = _crop(sources[models[key][1]], other, preprocessing[key])
    paths = {name: _named(sources[0], name).path for name in names}
    return RunData(names, maps, ranked, crops, paths, preprocessing, labels, looks, nearest, pair_maps)


def _partners(run: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Returns the nearest pictures of some queries of a run with a gallery, by any of its models."""
    return list(dict.fromkeys(known[name][0] for known in run.get("pairs", {}).values() for name in names if name in known))


def source_of(store: Store, run: dict[str, Any]) -> ImageSource:
    """Returns the pictures of a run.

    Raises:
        InputError: they were in memory, or are no longer where the run found them.
    """
    settings = run["settings"]["images"]
    if not settings["origin"]:
        raise InputError(f"'{store.folder}' was run on a data set in memory, so its pictures are not available for a figure.")
    try:
        return run_pictures(settings)
    except InputError as error:
        raise InputError(
            f"the pictures of '{store.folder}' are no longer where the run found them: {error} If they have moved, give their new "
            f"place: --images "
            "(moved_to=…)."
        ) from error


def _chosen_images(of_runs: Sequence[Sequence[str]], asked: Sequence[str] | None, count: int) -> list[str]:
    known = list(of_runs[0])
    for others in map(set, of_runs[1:]):
        known = [name for name in known if name in others]
    if not known:
        raise InputError("no image is in all of these runs: draw them separately, or choose runs of the same images.")
    if asked is None:
        return known[:count]
    for name in asked:
        if name not in known:
            raise NameUnknownError("image in these runs", name, known)
    return list(asked)


def _refuse_other_pictures(stores: Sequence[Store], names: Sequence[str]) -> None:
    for store, renamed in zip(stores, picture_names(stores, [set(names)] * len(stores)), strict=True):
        if renamed:
            raise InputError(
                f"'{min(renamed)}' of '{store.folder}' is not the same picture as in the runs before it: draw them separately, or choose "
                "other images."
            )


def _named(source: ImageSource, name: str) -> Any:
    found = next((image for image in source.images if image.name == name), None)
    if found is None:
        raise ImageError(
            f"'{name}' is no longer among the pictures of the run. If it has moved, give its new place: --images (moved_to=…)."
        )
    return found


def _crop(source: ImageSource, name: str, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    try:
        values = np.asarray(source.cropped(_named(source, name), preprocessing))
    except ImageError as error:
        raise ImageError(f"'{name}': {error}") from error
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
