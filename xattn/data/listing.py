"""Which images a folder, glob, file, CSV or URL names, and their labels."""

from __future__ import annotations

import csv
import glob
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from xattn.data import urls
from xattn.errors import InputError

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".jp2",
        ".tga",
        ".ico",
    ]
)


@dataclass(frozen=True)
class NamedImage:
    """One image before it is decoded.

    Attributes:
        name: as in the rows: the path relative to the given folder, or the index in a dataset.
        path: the file, a string if it is a URL; None for an item of a dataset.
        label: class index or name from the label file or the dataset, several as a tuple, or as a text separated by `|`; or a value.
        index: position in a dataset.
        size: bytes of a file at a URL, if its folder lists them.
    """

    name: str
    path: Path | str | None = None
    label: int | float | str | tuple[int | str, ...] | None = None
    index: int | None = None
    size: int | None = None


def listed(place: str) -> list[NamedImage]:
    """The images of a folder (read recursively), a glob, a file, or a CSV with columns `image` and `label`, by path or URL.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    return _at_url(place) if urls.is_url(place) else _files(place)


def _files(given: str) -> list[NamedImage]:
    path = Path(given)
    if path.is_dir():
        return [NamedImage(file.relative_to(path).as_posix(), file) for file in _walk(path)]
    if path.suffix.lower() == ".csv" and path.is_file():
        rows = [NamedImage(name, path.parent / name, label) for name, label in _read_csv(given).items()]
        inside = all(os.path.abspath(image.path or "").startswith(os.path.abspath(path.parent) + os.sep) for image in rows)
        return rows if inside else _by_common_root(rows)
    if path.is_file():
        return [NamedImage(path.name, path)]
    matches = sorted(Path(match) for match in glob.glob(given, recursive=True)) if glob.has_magic(given) else []
    if not matches:
        raise InputError(f"'{given}' is not a file, not a folder, and not a pattern that matches one.")
    root = Path(os.path.commonpath([match.parent for match in matches]))
    return [NamedImage(file.relative_to(root).as_posix(), file) for file in matches if file.suffix.lower() in SUFFIXES]


def _at_url(given: str) -> list[NamedImage]:
    """`_files` for a URL."""
    try:
        found = urls.found(given)
    except OSError as error:
        raise InputError(f"'{given}' could not be read ({error}).") from error
    if not found:
        raise InputError(f"'{given}' is not a file, not a folder, and not a pattern that matches one.")
    if given.lower().endswith(".csv") and found[0].name == PurePosixPath(given).name:
        below = urls.parent(given)
        rows = [NamedImage(name, urls.joined(below, name), label) for name, label in _read_csv(given).items()]
        return rows if all(str(image.path).startswith(f"{below}/") for image in rows) else _by_common_root(rows)
    shown = [file for file in found if not any(part.startswith(".") for part in file.name.split("/"))]
    return [NamedImage(file.name, file.url, size=file.size) for file in shown if PurePosixPath(file.name).suffix.lower() in SUFFIXES]


def _walk(folder: Path) -> list[Path]:
    found, seen = [], set()
    for parent, below, names in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if os.path.realpath(os.path.join(parent, name)) not in seen]  # a link back is not followed
        seen.add(os.path.realpath(parent))
        found += [Path(parent) / name for name in names if Path(name).suffix.lower() in SUFFIXES]
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def unique(images: list[NamedImage]) -> list[NamedImage]:
    """Each file once, each under a unique name: files with the same name are named by their paths below the folder that all share."""
    images = list({image.path: image for image in images}.values())
    if len({image.name for image in images}) == len(images):
        return images
    return _by_common_root(images)


def _by_common_root(images: list[NamedImage]) -> list[NamedImage]:
    paths = [_absolute(image.path) for image in images if image.path is not None]
    under = [Path(f"/{path}") if isinstance(path, str) else path for path in paths]  # a URL is treated as a path, only to name it
    root = os.path.commonpath([path.parent for path in under])
    return [
        replace(image, name=here.relative_to(root).as_posix(), path=path) for image, path, here in zip(images, paths, under, strict=True)
    ]


def _absolute(path: Path | str) -> Path | str:
    return path if isinstance(path, str) else Path(os.path.abspath(path))


def _read_csv(path: str) -> dict[str, int | str | None]:
    try:
        content = urls.read(path) if urls.is_url(path) else Path(path).read_bytes()
        with io.TextIOWrapper(io.BytesIO(content), newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if "image" not in columns:
                raise InputError(f"{path} needs the columns 'image' and 'label'; it has {', '.join(columns) or 'none'}.")
            return {row["image"]: _label(row.get("label")) for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} could not be read as CSV ({error}).") from error


def _label(text: str | None) -> int | str | None:
    if text is None or not text.strip():
        return None
    return int(text) if text.strip().isdigit() else text.strip()


def labelled(images: list[NamedImage], path: str) -> list[NamedImage]:
    """The images with their labels from a CSV.

    Raises:
        InputError: it cannot be read, or lacks a label for some image.
    """
    labels = _read_csv(path)
    without = [image.name for image in images if labels.get(image.name) is None]
    if without:
        shown = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
        known = ", ".join(list(labels)[:3])
        raise InputError(
            f"{len(without)} of {len(images)} images have no label in {path} ({shown}). Its column 'image' holds {known}, …: "
            "paths relative to the given folder are needed."
        )
    return [replace(image, label=labels[image.name]) for image in images]
