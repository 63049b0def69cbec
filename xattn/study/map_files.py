"""Maps that other tools wrote, as methods of a run: checks that every picture has them, and that they have not changed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xattn.data.images import ImageSource
from xattn.data.map_files import Covers, MapFiles, find_maps
from xattn.errors import ImageError, InputError, RunError
from xattn.explainers.base import FILES, MethodComponent, created, of_files
from xattn.models.classifier import Classifier
from xattn.text import counted

SHOWN = 3

logger = logging.getLogger("xattn")

Places = str | Path | Sequence[str | Path] | Mapping[str, str | Path]


def with_maps(
    source: ImageSource, places: Places, classifiers: Sequence[Classifier], covers: Covers | None, signed: bool
) -> tuple[ImageSource, list[MethodComponent]]:
    """Keeps the pictures that have a map by every method in the given folders; returns them and these methods, and logs what is left out.

    Args:
        source: the pictures.
        places: folders or files of the maps, see `find_maps`.
        classifiers: the run's classifiers.
        covers: the area that the maps show.
        signed: values below 0 speak against the target.

    Raises:
        InputError: there are no maps of these pictures, some files are not maps, or no picture has a map by every method.
    """
    names = [image.name for image in source.images]
    found = find_maps([places] if isinstance(places, (str, Path)) else places, names, covers=covers, signed=signed)
    if found.unknown:
        logger.warning(
            "left out, since they belong to none of the pictures: %s (%s)", counted(len(found.unknown), "map"), _some(found.unknown)
        )
    for maps in found.maps:
        if without := [name for name in names if name not in maps.files]:
            logger.warning("no map by '%s' of %d of %s: %s", maps.name, len(without), counted(len(names), "picture"), _some(without))
        sizes = ", ".join(f"{height}×{width}" for height, width in maps.sizes[:SHOWN])
        more = ", …" if len(maps.sizes) > SHOWN else ""
        logger.info(
            "%s: %s of %s%s%s", of_files(maps).spec, counted(len(maps.files), "map"), sizes, more, ", signed" if maps.signed else ""
        )
    common = set(names).intersection(*(maps.files for maps in found.maps))
    if not common:
        raise InputError(
            f"no picture has a map by each of {', '.join(maps.name for maps in found.maps)}: score them in separate runs, and "
            f"compare these."
        )
    left = copy.copy(source)
    left.images = [image for image in source.images if image.name in common]
    if len(common) < len(names):
        logger.warning("scored, since they have a map by each method: %d of %s.", len(common), counted(len(names), "picture"))
    chosen = [maps.only(common) for maps in found.maps]
    for maps in chosen:
        _read_first(left, maps, classifiers)
    return left, [of_files(maps) for maps in chosen]


def _read_first(source: ImageSource, maps: MapFiles, classifiers: Sequence[Classifier]) -> None:
    """Reads the map of the first readable picture, so that an error in it appears now and not later in the run."""
    for image in source.images:
        try:
            frames = [source.decode_scaled(image, classifier.preprocessing)[3] for classifier in classifiers]
        except ImageError:
            continue
        for frame, classifier in zip(frames, classifiers, strict=True):
            maps.shown(image.name, frame, classifier.input_size)
        return


def kept_maps(methods: Sequence[MethodComponent]) -> dict[str, dict[str, Any]]:
    """Returns what `run.json` keeps of maps in files, by method: enough to find them again."""
    return {
        method.spec: {"place": maps.place, "name": maps.name, "covers": maps.covers}
        for method in methods
        if isinstance(maps := method.instance, MapFiles)
    }


def method_of_run(spec: str, more: Sequence[MethodComponent], run: Mapping[str, Any], names: Sequence[str]) -> MethodComponent:
    """Returns a method of a run; for maps in files, with the files given now, or those of the run.

    Args:
        spec: the method with its settings.
        more: methods that are given now.
        run: the content of `run.json`.
        names: names of the pictures.

    Raises:
        NameUnknownError: the method does not exist.
        RunError: the maps are missing or have changed.
    """
    if not spec.startswith(f"{FILES}:"):
        return created([spec])[0]
    if now := [method for method in more if method.spec == spec]:
        return now[0]
    kept, was = run.get("maps", {}).get(spec), run.get("protocol", {}).get(spec, {}).get("settings", {}).get("digest")
    place = "" if kept is None else str(kept["place"])
    try:
        found = [] if kept is None else find_maps({str(kept["name"]): place}, names, covers=kept["covers"], signed=True).maps
        chosen = [maps.only(names) for maps in found]
    except (InputError, KeyError):
        chosen = []
    if not chosen or chosen[0].digest != was:
        raise RunError(
            f"the run holds scores of the maps {spec}, but those in {place} are gone or have changed: put them back, or give "
            "another run folder."
        )
    return of_files(chosen[0])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
