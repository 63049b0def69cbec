"""Maps that other tools wrote, as methods of a run: of which pictures all of them are there, and whether they are as they were."""

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
    """The pictures that have a map by every method in some places, and these methods; what is left out is logged.

    Args:
        source: the pictures.
        places: of the maps, see `find_maps`.
        classifiers: of the run.
        covers: what maps show.
        signed: values below 0 speak against the target.

    Raises:
        InputError: there are no maps of these pictures, some are no maps, or no picture has one by every method.
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
    """Reads the map of the first picture that can be read: a run must not stop later for what this one shows."""
    for image in source.images:
        try:
            frames = [source.decode_scaled(image, classifier.preprocessing)[3] for classifier in classifiers]
        except ImageError:
            continue
        for frame, classifier in zip(frames, classifiers, strict=True):
            maps.shown(image.name, frame, classifier.input_size)
        return


def kept_maps(methods: Sequence[MethodComponent]) -> dict[str, dict[str, Any]]:
    """What `run.json` keeps of maps in files, by method: enough to find them again."""
    return {
        method.spec: {"place": maps.place, "name": maps.name, "covers": maps.covers}
        for method in methods
        if isinstance(maps := method.instance, MapFiles)
    }


def method_of_run(spec: str, more: Sequence[MethodComponent], run: Mapping[str, Any], names: Sequence[str]) -> MethodComponent:
    """A method that a run has, that of maps in files with the files where they are given now, or were.

    Args:
        spec: of the method.
        more: methods that are given now.
        run: the content of `run.json`.
        names: of the pictures.

    Raises:
        NameUnknownError: there is no such method.
        RunError: maps are gone, or others than they were.
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
