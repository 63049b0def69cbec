"""Maps that another tool wrote: finds the file of each picture's map, and crops the map like the network's input."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from xattn.data.labels import file_content
from xattn.data.map_arrays import CONTAINERS, SUFFIXES, TAKEN, arrays_in, as_map
from xattn.data.preprocessing import Frame
from xattn.deferred import torch
from xattn.errors import InputError
from xattn.text import counted, shown

if TYPE_CHECKING:
    from torch import Tensor

Covers = Literal["crop", "picture"]
COLUMNS = ("image", "map")
LAYOUTS = (
    "MAPS is a folder with a map per picture, named as the picture; a folder of such folders, one per method; a file with maps by the "
    "pictures' names (.npz, .safetensors, .pt); or a CSV with columns image, map and perhaps method"
)


class MapFile(NamedTuple):
    """Location of a picture's map.

    Attributes:
        path: path of the file.
        array: name of the array in the file; empty if the file holds only one.
        digest: digest of the picture's name and the map's values and shape, once they are read.
        size: height and width of the map, once it is read.
    """

    path: str
    array: str = ""
    digest: str = ""
    size: tuple[int, int] = (0, 0)


class Pictures(Protocol):
    """Interface of a batch whose maps are read: a `Trace`."""

    names: Sequence[str]
    frames: Sequence[Frame]
    images: Tensor


@dataclass(frozen=True)
class MapFiles:
    """One method's maps in files, used as a method: a batch → its raw maps.

    Attributes:
        name: name of the method.
        place: the folder or file that holds them.
        files: files by name of the picture.
        covers: the area that a map shows: "crop", the network's input; "picture", the whole picture. None: "picture" for a map of its
            picture's own size, else "crop".
        signed: values below 0 are evidence against the target.
        digest: digest of the maps' values and their pictures.
    """

    name: str
    place: str = field(repr=False)
    files: Mapping[str, MapFile] = field(repr=False)
    covers: Covers | None
    signed: bool
    digest: str

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Returns the different heights and widths of the maps."""
        return sorted({file.size for file in self.files.values()})

    def only(self, names: Collection[str]) -> MapFiles:
        """Returns the maps of some of the pictures."""
        files = {name: self.files[name] for name in sorted(names)}
        digest = hashlib.sha256("".join(file.digest for file in files.values()).encode()).hexdigest()[:16]
        return replace(self, files=files, digest=digest)

    def __call__(self, batch: Pictures) -> Tensor:
        """Reads the raw maps of a batch, `(B, h, w)`, onto its device."""
        size = (batch.images.shape[2], batch.images.shape[3])
        found = [self.shown(name, frame, size) for name, frame in zip(batch.names, batch.frames, strict=True)]
        return torch.stack(found).to(batch.images.device)

    def shown(self, name: str, frame: Frame, size: tuple[int, int]) -> Tensor:
        """Reads the map of a picture for the crop: `(h, w)` at its own resolution, or at the crop's if the map covers the whole picture.

        Args:
            name: name of the picture.
            frame: size of the picture, and the region that the crop keeps.
            size: height and width of the crop.

        Raises:
            InputError: the map cannot be read, or it is unclear which area it covers.
        """
        values = _map_in(self.files[name])
        own, of_picture = (values.shape[0], values.shape[1]), (frame.size[1], frame.size[0])
        is_whole = all(abs(edge - whole) < 1e-6 for edge, whole in zip(frame.kept, (0, 0, *frame.size), strict=True))
        covers = self.covers or ("picture" if own == of_picture else "crop")
        if self.covers is None and own == of_picture == size and not is_whole:
            raise InputError(
                f"the map of {name} by '{self.name}' is {own[0]}×{own[1]}, the size of both the picture and the network's input, "
                f"and the network sees only a part of the picture: set which of the two the maps show (--covers picture or crop)."
            )
        if covers == "crop" and len(sizes := self.sizes) > 1:
            some = ", ".join(f"{height}×{width}" for height, width in sizes[:3])
            raise InputError(
                f"the maps by '{self.name}' have different sizes ({some}): give all maps one size, or each the size of its picture."
            )
        return values if covers == "crop" else cropped(values, frame, size)


def cropped(values: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
    """Crops a map of the whole picture: resized bilinearly, antialiased when reduced, and cropped like the picture.

    Args:
        values: `(h, w)`, over the whole picture.
        frame: size of the picture, and the region that the crop keeps.
        size: height and width of the crop.

    Returns:
        `(H, W)`; 0 where the crop extends beyond the picture.
    """
    kept, (height, width) = frame.kept, size
    down, across = (kept.bottom - kept.top) / height, (kept.right - kept.left) / width
    whole = (max(1, round(frame.size[1] / down)), max(1, round(frame.size[0] / across)))
    if whole != tuple(values.shape):
        values = torch.nn.functional.interpolate(values[None, None], size=whole, mode="bilinear", antialias=True)[0, 0]
    top, left = round(kept.top / down), round(kept.left / across)
    result = values.new_zeros(size)
    rows, columns = (slice(max(0, -start), max(0, min(side, full - start))) for start, side, full in _spans(top, left, size, whole))
    result[rows, columns] = values[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    return result


def _spans(top: int, left: int, size: tuple[int, int], whole: tuple[int, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    return (top, size[0], whole[0]), (left, size[1], whole[1])


class Found(NamedTuple):
    """Result of a search for maps.

    Attributes:
        maps: maps of each method.
        unknown: files and arrays that belong to none of the pictures.
    """

    maps: list[MapFiles]
    unknown: list[str]


def find_maps(
    places: Sequence[str | Path] | Mapping[str, str | Path],
    names: Sequence[str],
    *,
    covers: Covers | None = None,
    signed: bool = False,
) -> Found:
    """Finds the maps of some pictures that other tools wrote.

    A map belongs to the picture with the same path below its folder, with or without the picture's extension: `a/b.npy` and `a/b.jpg.npy`
    belong to `a/b.jpg`. A method is named after its folder or file.

    Args:
        places: folders, containers and CSVs; keyed by the names of their methods, or named automatically.
        names: names of the pictures.
        covers: the area that maps show, see `MapFiles`.
        signed: values below 0 are evidence against the target; if false, they are refused.

    Raises:
        InputError: there are no maps of these pictures, or some cannot be read or are not maps.
    """
    known = _Names(names)
    found: dict[str, MapFiles] = {}
    unknown: list[str] = []
    given = places.items() if isinstance(places, Mapping) else [(None, place) for place in places]
    for wanted, place in given:
        for name, (where, candidates) in _named(_methods_in(Path(place), known), wanted, place).items():
            if name in found:
                raise InputError(f"two places have maps of a method '{name}', {found[name].place} and {where}: rename a folder.")
            files: dict[str, MapFile] = {}
            for stem, file in candidates:
                picture = known.of(stem)
                if picture is None:
                    unknown.append(f"{file.path}{f' [{file.array}]' if file.array else ''}")
                elif picture in files:
                    raise InputError(f"two maps by '{name}' are of {picture}, {files[picture].path} and {file.path}: leave one.")
                else:
                    files[picture] = file
            if files:
                found[name] = _checked(name, where, files, covers, signed)
    if not found:
        some = f", as {shown(unknown[0])} is not" if unknown else f"; {TAKEN} are read"
        raise InputError(
            f"{', '.join(str(place) for _, place in given)} has no map of any of {counted(len(names), 'picture')} "
            f"({', '.join(names[:3])}, …){some}. {LAYOUTS}."
        )
    return Found(list(found.values()), unknown)


class _Names:
    """Index of the pictures by the possible names of their maps' files."""

    def __init__(self, names: Sequence[str]) -> None:
        self.exact = set(names)
        self.by_stem: dict[str, str | None] = {}
        for name in names:
            stem = PurePosixPath(name).with_suffix("").as_posix()
            self.by_stem[stem] = None if stem in self.by_stem else name  # belongs to two pictures, so it is used for neither

    def of(self, stem: str) -> str | None:
        """Returns the picture of a map; None if there is none."""
        return stem if stem in self.exact else self.by_stem.get(stem)


Candidates = list[tuple[str, MapFile]]


def _methods_in(place: Path, known: _Names) -> dict[str, tuple[str, Candidates]]:
    """Returns the methods in a place, by name, with their location and the pictures and files of their maps.

    Raises:
        InputError: the place does not hold maps, or cannot be read.
    """
    try:
        return _found_in(place, known)
    except OSError as error:
        where = error.filename or place
        raise InputError(f"'{where}' could not be read ({error.strerror}): allow reading it, or give another place.") from error


def _found_in(place: Path, known: _Names) -> dict[str, tuple[str, Candidates]]:
    if place.is_file():
        if place.suffix == ".csv":
            return _manifest(place)
        if place.suffix not in CONTAINERS:
            raise InputError(f"'{place}' is a single file, not a container of maps: {LAYOUTS}.")
        return {place.stem: (str(place), [(name, MapFile(str(place), name)) for name in arrays_in(place)])}
    if not place.is_dir():
        raise InputError(f"there is no '{place}': {LAYOUTS}.")
    own = _folder(place)
    if own and any(known.of(stem) is not None for stem, _ in own):
        return {place.resolve().name: (str(place), own)}
    if (manifest := place / "manifest.csv").is_file():
        return _manifest(manifest)
    found: dict[str, tuple[str, Candidates]] = {}
    for entry in sorted(entry for entry in place.iterdir() if not entry.name.startswith(".")):
        if entry.is_dir() and (files := _folder(entry)):
            found[entry.name] = str(entry), files
        elif entry.suffix in CONTAINERS:
            found |= _methods_in(entry, known)
    return found


def _named(methods: dict[str, tuple[str, Candidates]], wanted: str | None, place: str | Path) -> dict[str, tuple[str, Candidates]]:
    """Returns the methods in a place under the name given for it.

    Raises:
        InputError: a name is given, and there are several methods, none of which has it.
    """
    if wanted is None or wanted in methods:
        return methods if wanted is None else {wanted: methods[wanted]}
    if len(methods) > 1:
        raise InputError(f"'{place}' has maps by {', '.join(methods)}: give it without the name '{wanted}', or give only one of these.")
    return dict.fromkeys([wanted], next(iter(methods.values()))) if methods else {}


def _folder(folder: Path) -> Candidates:
    """Finds the files of maps in a folder and below, by their path relative to it without the extension."""
    files = sorted(Path(parent) / name for parent, _, names in os.walk(folder, onerror=_refuse) for name in names)
    inside = [(file.relative_to(folder), file) for file in files if file.suffix in SUFFIXES]
    kept = [(path, file) for path, file in inside if not any(part.startswith(".") for part in path.parts)]
    return [(path.with_suffix("").as_posix(), MapFile(str(file))) for path, file in kept]


def _refuse(error: OSError) -> None:
    raise error  # an unreadable folder is not an empty one


def _manifest(path: Path) -> dict[str, tuple[str, Candidates]]:
    """Finds the maps that a CSV names, with paths relative to it."""
    found: dict[str, tuple[str, Candidates]] = {}
    try:
        reader = csv.DictReader(io.StringIO(file_content(str(path)).decode("utf-8-sig"), newline=""))
        columns = {column.strip().lower(): column for column in reader.fieldnames or []}
        if not all(column in columns for column in COLUMNS):
            has = shown(", ".join(columns)[:80], keep="") or "none"
            raise InputError(f"{path} needs the columns 'image' and 'map', and optionally 'method', in its first line; it has {has}.")
        for row in reader:
            picture, file = (str(row[columns[column]] or "").strip() for column in COLUMNS)
            method = (row[columns["method"]] or "").strip() if "method" in columns else path.resolve().parent.name
            target = path.parent / file
            if not picture or target.suffix not in SUFFIXES or not target.is_file():
                raise InputError(f"{path}, line {reader.line_num}: a picture and the file of its map are needed; got '{shown(file[:80])}'.")
            found.setdefault(method, (str(path), []))[1].append((picture.removeprefix("./"), MapFile(str(target))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} could not be read as CSV ({error}).") from error
    return found


def _checked(name: str, place: str, files: Mapping[str, MapFile], covers: Covers | None, signed: bool) -> MapFiles:
    """Reads each map of a method once: a run that continues needs the same values.

    Raises:
        InputError: the name cannot be shown in a table, a file holds no map, or there are values below 0 whose meaning is not given.
    """
    if not name or any(sign in name for sign in ":,=") or name != shown(name, keep=""):
        raise InputError(
            f"a method named '{shown(name, keep='')}' would be ambiguous in a table: rename '{place}', without ':', ',' and '='."
        )
    read: dict[str, MapFile] = {}
    negative: list[tuple[str, float]] = []
    for picture, values in _each(files):
        if bool((values < 0).any()):
            negative.append((picture, float(values.nan_to_num().min())))
        about = f"{picture}\0{tuple(values.shape)}\0".encode(errors="surrogateescape")
        digest = hashlib.sha256(about + values.contiguous().numpy().tobytes()).hexdigest()
        read[picture] = files[picture]._replace(digest=digest, size=(values.shape[0], values.shape[1]))
    if negative and not signed:
        picture, least = min(negative, key=lambda each: each[1])
        raise InputError(
            f"of {counted(len(files), 'map')} by '{name}', {counted(len(negative), 'has', 'have')} values below 0, down to {least:.3g} "
            f"({picture}): give --signed (signed=True) if these speak against the target, so that masks use the positive part; "
            f"otherwise shift or clip them."
        )
    return MapFiles(name, os.path.abspath(place), read, covers, bool(negative), "").only(read)


def _each(files: Mapping[str, MapFile]) -> Iterable[tuple[str, Tensor]]:
    """Yields all maps with their pictures, in the order of their files; each file is read once."""
    last: tuple[str, dict[str, Tensor]] = ("", {})
    for picture, file in sorted(files.items(), key=lambda item: (item[1].path, item[0])):
        if last[0] != file.path:
            last = file.path, arrays_in(Path(file.path))
        yield picture, as_map(_array(file, last[1]), _said(file))


def _map_in(file: MapFile) -> Tensor:
    return as_map(_array(file, arrays_in(Path(file.path))), _said(file))


def _array(file: MapFile, arrays: Mapping[str, Tensor]) -> Tensor:
    if file.array in arrays:
        return arrays[file.array]
    if len(arrays) == 1 and not file.array:
        return next(iter(arrays.values()))
    some = shown(", ".join(arrays)[:60], keep="")
    raise InputError(f"{_said(file)} holds {counted(len(arrays), 'array')} ({some}): exactly one, the picture's map, is needed.")


def _said(file: MapFile) -> str:
    return f"'{file.path}'{f', {shown(file.array[:60])},' if file.array else ''}"
