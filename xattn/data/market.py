"""Market-1501 as it is published: pictures of persons whose file names say who is seen, and by which camera."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from xattn.data.pictures import SUFFIXES
from xattn.errors import InputError

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
"""Folder of each split."""
JUNK, DISTRACTOR = -1, 0
NAME = re.compile(r"(-1|\d{4})_c(\d)s(\d)_(\d{6})_(\d{2})\.jpg")


class Sighting(NamedTuple):
    """Who a picture shows, and who saw them.

    Attributes:
        identity: number of the person; `DISTRACTOR`: somebody who is never searched; `JUNK`: a bad detection, which counts neither way.
        camera: number of the camera.
    """

    identity: int
    camera: int


def sighting_of(file: str) -> Sighting:
    """What a picture's file name says.

    Args:
        file: `ID_cCAMERAsSEQUENCE_FRAME_BOX.jpg`, perhaps in folders.

    Raises:
        InputError: it is no such name.

    >>> sighting_of("query/0002_c1s1_000451_03.jpg")
    Sighting(identity=2, camera=1)
    """
    found = NAME.fullmatch(file.rpartition("/")[2])
    if found is None:
        raise InputError(
            f"'{file}' is not a file name of Market-1501, such as 0002_c1s1_000451_03.jpg: id, camera and sequence, frame, box."
        )
    return Sighting(int(found[1]), int(found[2]))


def read_market(where: str, folder: Path, split: str) -> tuple[Path, Mapping[str, int | tuple[int, ...]], tuple[str, ...]]:
    """Folder, class index of each picture, and classes of a split.

    The classes of the training split are its identities, as in the file names. Identities of the other splits are other persons, so that
    pictures there have no class, (); this is checked where the folder of the training split is there, too.

    Args:
        where: as in messages.
        folder: holds the folders of the splits.
        split: one of `FOLDERS`.

    Raises:
        InputError: the folder is missing or cannot be read, or a picture has another name, is none of a person, or is of an identity of
            training in another split.
    """
    pictures, training = folder / FOLDERS[split], folder / FOLDERS["train"]
    identities = _identities(where, pictures)
    files = list(identities)
    if empty := [file for file in files if (pictures / file).is_file() and os.path.getsize(pictures / file) == 0]:
        raise InputError(f"{where}: {pictures / empty[0]} is empty: unpack the archive again.")
    least = {"gallery": JUNK}.get(split, 1)
    if other := [file for file, identity in identities.items() if identity < least]:
        raise InputError(f"{where}: {pictures / other[0]} is junk or a distractor, which only {FOLDERS['gallery']} may contain.")
    if split != "train":
        trained = set(_identities(where, training).values()) if training.is_dir() else set()  # training opens no other folder
        if both := [file for file, identity in identities.items() if identity in trained]:
            raise InputError(
                f"{where}: {pictures / both[0]} is of identity {identities[both[0]]:04d}, which is in {training.name}, too: the persons of "
                "query and gallery are none of training's."
            )
        return pictures, dict.fromkeys(files, ()), ()
    persons = sorted(set(identities.values()))
    return pictures, {file: persons.index(identity) for file, identity in identities.items()}, tuple(f"{person:04d}" for person in persons)


def _identities(where: str, pictures: Path) -> dict[str, int]:
    """The identity that each picture of a folder shows, by its file, in order.

    Raises:
        InputError: the folder cannot be read, or a picture has another name.
    """
    try:
        files = sorted(name for name in os.listdir(pictures) if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."))
    except OSError as error:
        raise InputError(f"{where} needs {pictures}, as in Market-1501-v15.09.15.zip ({error.strerror}).") from error
    try:
        return {file: sighting_of(file).identity for file in files}
    except InputError as error:
        raise InputError(f"{where}: in {pictures}, {error}") from error
