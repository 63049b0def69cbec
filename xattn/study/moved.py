"""Finds the pictures of a run, at their original place or at another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xattn.data.images import ImageSource
from xattn.data.listing import NamedImage
from xattn.data.urls import LISTED
from xattn.errors import InputError
from xattn.study.store import Store
from xattn.text import counted


def picture_names_of(store: Store) -> list[str]:
    """Returns the names of a run's pictures, as in its rows."""
    return list(store.contents()) or list(store.values()["image"].unique())


def run_pictures(settings: Mapping[str, Any], places: str | Path | Sequence[str | Path] | None = None) -> ImageSource:
    """Finds the pictures of a run again; messages about them that the run already logged are not repeated.

    Args:
        settings: the settings of its pictures, as in `run.json`.
        places: where the pictures are now; None: where the run found them.

    Raises:
        InputError: there are no pictures.
    """
    reading = {name: value for name, value in settings.items() if name in ("depth", "window", "max_pixels")}
    return ImageSource(settings["origin"] if places is None else places, labels_from="none", quiet=True, **reading)


def moved_pictures(store: Store, places: str | Path | Sequence[str | Path], names: Sequence[str]) -> ImageSource:
    """Finds a run's pictures at another place, and gives them the names that they have in its rows.

    A picture matches if its name and the digest of its content match; otherwise, any picture with that content matches. If the run keeps no
    digest, as for pictures at URLs, the name alone decides.

    Args:
        store: the run folder.
        places: where the pictures are now: a folder, a glob or a file, or several, as paths or URLs.
        names: names of the wanted pictures.

    Raises:
        InputError: a picture is missing, or its content has changed since the run began.
    """
    source = run_pictures(store.read_run()["settings"]["images"], places)
    if source.dataset is not None:
        raise InputError(f"pictures that have moved are files; {places} is a data set. Give a folder of them, a glob, or files.")
    digests, here = store.contents(), source.images
    of_name = {image.name: image for image in here}
    of_content: dict[str | None, NamedImage] | None = None
    found: list[NamedImage] = []
    missing: list[str] = []
    other: list[str] = []
    for name in names:
        wanted, image = digests.get(name), of_name.get(name)
        if image is None or not _same(wanted, source.digests([image])[0]):
            of_content = of_content or dict(zip(source.digests(here), here, strict=True))
            if (same := None if wanted is None else of_content.get(wanted)) is None:
                (missing if image is None else other).append(name)
                continue
            image = same
        found.append(replace(image, name=name))
    if other:
        raise InputError(
            f"{_shown(other)} in {places} {'has' if len(other) == 1 else 'have'} other content than when the run in "
            f"'{store.folder}' began: give the place of the pictures that it explained."
        )
    if missing:
        raise InputError(
            f"of {counted(len(names), 'picture')} of '{store.folder}', {counted(len(missing), 'is', 'are')} not in {places}, neither by "
            f"name nor by content: {_shown(missing)}. Give the place that holds them, or choose other images."
        )
    source.images = found
    return source


def _same(before: str | None, now: str | None) -> bool:
    """Checks whether two digests may be of the same content; digests of a URL and of a file cannot be compared."""
    if before is None or now is None or before.startswith(LISTED) != now.startswith(LISTED):
        return True
    return before == now


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
