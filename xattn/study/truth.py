"""Agreement of the maps of a run over SketchBirds with the true effects of each bird's parts on the target's logit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from xattn.birds import Scene, scene_of
from xattn.birds.ground_truth import known_parts
from xattn.catalogue import is_direct
from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError, UnsupportedError, XattnError
from xattn.metrics.known_parts import KnownParts
from xattn.metrics.masking import to_masks
from xattn.metrics.parts import parts_shapley
from xattn.models.classifier import Classifier
from xattn.models.loading import load
from xattn.overlays import is_signed
from xattn.study.moved import moved_pictures, picture_names_of, run_pictures
from xattn.study.schema import StoredMap
from xattn.study.store import Store


def bird_truth(run: str | Path, places: str | Path | Sequence[str | Path] | None = None, *, device: str | None = None) -> pd.DataFrame:
    """Computes the agreement of each stored map with the parts' effects: the metric `parts-shapley`, which the run need not include.

    The run's networks are loaded by name and run on renders of all subsets of each bird's parts, and on renders without each piece of its
    clutter: about 40 forwards per picture.

    Args:
        run: a run folder over an exported SketchBirds.
        places: where the pictures are now; None: where the run found them.
        device: device of the networks; None: a GPU if there is one.

    Returns:
        Columns image, model, head, method, target and value, in [-1, 1]; NaN for a map without contrast, or for a bird with fewer than
        three parts.

    Raises:
        InputError: the pictures are not SketchBirds, or are not found.
        UnsupportedError: a network cannot be loaded by its name or has other weights than when the run was made, or the target is not a
            class.
    """
    store = Store(run)
    names = picture_names_of(store)
    scenes = _scenes(store, names, places)
    lines: list[dict[str, object]] = []
    for model in store.read_run()["settings"]["models"]:
        classifier = _loaded(model["name"], model["head"], model["weights"], device)
        given = Preprocessing.from_json(model["preprocessing"])
        for name in names:
            kept = {key[1::3]: found for key, found in store.maps_by_target([name]).items() if key[2:4] == (model["name"], model["head"])}
            for target, maps in _by_target(kept).items():
                values = _agreement(classifier, given, scenes[name], target, maps)
                about = {"image": name, "model": model["name"], "head": model["head"], "target": target}
                lines += [{**about, "method": method, "value": value} for method, value in values.items()]
    return pd.DataFrame(lines, columns=["image", "model", "head", "method", "target", "value"])


def _scenes(store: Store, names: Sequence[str], places: str | Path | Sequence[str | Path] | None) -> dict[str, Scene]:
    """Returns the scene of each picture."""
    settings = store.read_run()["settings"]["images"]
    if places is None and not settings["origin"]:
        raise InputError(f"'{store.folder}' was run on a data set in memory: give the folder of the exported birds (--images FOLDER).")
    source = run_pictures(settings) if places is None else moved_pictures(store, places, names)
    paths = {image.name: image.path for image in source.images}
    found: dict[str, Scene] = {}
    for name in names:
        path = paths.get(name)
        scene = None if path is None else scene_of(path)
        if scene is None:
            raise InputError(f"'{name}' is not an exported SketchBird, so its true parts are unknown: leave out --truth.")
        found[name] = scene
    return found


def _loaded(name: str, head: str, weights: str, device: str | None) -> Classifier:
    """Loads a network of the run."""
    try:
        classifier = load(name, device=device)
    except XattnError as error:
        raise UnsupportedError(f"the truth needs the run's network, but '{name}' cannot be loaded by its name: {error}") from error
    if classifier.head_name != head or classifier.digest() != weights:
        raise UnsupportedError(
            f"'{name}' has another head or other weights than when the run was made, so the maps belong to another network."
        )
    return classifier


def _by_target(maps: dict[tuple[str, str], StoredMap]) -> dict[str, dict[str, StoredMap]]:
    found: dict[str, dict[str, StoredMap]] = {}
    for (target, method), kept in maps.items():
        found.setdefault(target, {})[method] = kept
    return found


def _agreement(
    classifier: Classifier, preprocessing: Preprocessing, scene: Scene, target: str, maps: dict[str, StoredMap]
) -> dict[str, float]:
    """Computes the agreement of each method's map with the effects of the parts."""
    if not target.isdecimal():
        raise UnsupportedError(f"the truth is known only for a class; this run explains {target}.")
    true = known_parts(classifier.predict, [scene], [int(target)], preprocessing=preprocessing)
    visible = true.visible[0]
    size = (visible.shape[1], visible.shape[2])
    shown = []
    for method, kept in maps.items():
        raw = torch.from_numpy(kept.raw)[None]
        raw = raw.relu() if is_signed(method) else raw
        shown.append(raw if is_direct(method) and raw.shape[1:] == visible.shape[1:] else to_masks(raw, size).masks)
    every = [0] * len(shown)  # the same bird for each method
    found = parts_shapley(torch.cat(shown), KnownParts(true.visible[every], true.logits[every], true.targets[every]))
    return dict(zip(maps, found.tolist(), strict=True))
