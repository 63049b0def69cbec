"""Lists the images of a folder, glob, file, CSV or URL, with their labels."""

from __future__ import annotations

import functools
import glob
import hashlib
import logging
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath

from xattn.data import urls
from xattn.data.labels import Label, class_of_shard, read_lines, read_table
from xattn.data.pictures import SUFFIXES, is_picture
from xattn.data.published import Target, open_published, parsed_place
from xattn.errors import InputError
from xattn.text import counted

HEIC = frozenset([".heic", ".heif", ".hif"])
RAW = frozenset([".nef", ".cr2", ".cr3", ".dng", ".arw", ".orf", ".rw2", ".pef", ".srw", ".raf", ".nrw", ".svs", ".ndpi"])
"""Extensions of files that hold a small preview, which a decoder would mistake for the picture."""
OTHER_PICTURES = (
    RAW | HEIC | frozenset(["", ".jxl", ".psd", ".svg", ".eps", ".ai", ".exr", ".hdr", ".fits", ".nii", ".bpg", ".jxr", ".wdp"])
)
"""Extensions of files that users may expect to be read; files that are not readable are reported as a warning."""
TEXTS = frozenset([".txt", ".csv", ".tsv", ".xml", ".json", ".jsonl", ".yaml", ".yml", ".md", ".html", ".py", ".ipynb", ".log", ".ini"])
"""Extensions of labels, regions, notes, …: files that nobody expects to be read as a picture."""
_DATA = ".db .pdf .zip .tar .gz .tgz .bz2 .xz .parquet .npy .npz .mat .pt .pth .safetensors .onnx .mp4 .mov .avi .mkv .wav .mp3"
_COPIES = ".bak .tmp .part .orig .swp .lock"
NOT_SNIFFED = RAW | TEXTS | set(f"{_DATA} {_COPIES}".split())
"""Extensions of files whose content is not checked: there may be one for each picture, or copies of pictures."""
HEAD = 132  # bytes that identify a picture's format

logger = logging.getLogger("xattn")


@dataclass(frozen=True)
class NamedImage:
    """One image before it is decoded.

    Attributes:
        name: name in the rows: the path relative to the given folder, or the index in a dataset.
        path: the file, a string if it is a URL; None for an item of a dataset.
        label: class index or name from the label file or the dataset, several as a tuple, or as a text separated by `|`, or as a vector of
            zeros and ones; or a value.
        index: position in a dataset.
        size: size in bytes of a file at a URL, if its folder lists it.
        version: version of a file at a URL, which changes with its content, if its folder lists one.
    """

    name: str
    path: Path | str | None = None
    label: Label | None = None
    index: int | None = None
    size: int | None = None
    version: str | None = None


def listed(place: str, *, quiet: bool = False) -> list[NamedImage]:
    """Lists the images of a folder (read recursively), a glob, a file, an archive, or a CSV with columns `image` and `label`, by path or
    URL; of a text file with one path per line, relative to it, and optionally a label; or of a split of a published data set,
    `NAME:ROOT:SPLIT`, labelled with its class names.

    Files that are left out are logged, by extension.

    Args:
        place: place of the images.
        quiet: do not log files that are left out.

    Raises:
        InputError: there are no images, or the place cannot be read.
    """
    if (published := parsed_place(place)) is not None:
        split = open_published(*published)
        rows = zip(split.files, split.paths, split.targets, strict=True)
        found = [NamedImage(printable(file), path, _names(target, split.classes)) for file, path, target in rows]
        if not split.classes:
            return [replace(image, label=None) for image in found]
        if (bare := [image.name for image in found if not image.label]) and not quiet:
            logger.info(
                "%s: %s classes only as difficult objects: left out (%s)",
                place,
                counted(len(bare), "picture shows", "pictures show"),
                bare[0],
            )
        return [image for image in found if image.label]
    return _at_url(place, quiet) if urls.is_url(place) else _files(place, quiet)


def _names(target: Target, classes: Sequence[str]) -> str | tuple[str, ...]:
    """Returns the name of a class index, or of each class of a label vector."""
    if isinstance(target, int):
        return classes[target]
    return tuple(name for name, entry in zip(classes, target, strict=True) if entry == 1)


def _files(given: str, quiet: bool) -> list[NamedImage]:
    if not given.strip() or "\0" in given:
        raise InputError(f"{given!r} is not a path: give a folder ('.' for this one), a file, a pattern or a CSV.")
    path = Path(given)
    if path.is_dir():
        return [NamedImage(printable(file.relative_to(path).as_posix()), file) for file in _walk(path, quiet)]
    if path.suffix.lower() == ".csv" and path.is_file():
        rows = [NamedImage(name, path.parent / name, label) for name, label in read_table(given).items()]
        inside = all(os.path.abspath(image.path or "").startswith(os.path.abspath(path.parent) + os.sep) for image in rows)
        return rows if inside else _by_common_root(rows)
    if path.suffix.lower() == ".txt" and path.is_file():
        return _by_common_root([NamedImage(name, path.parent / name, label) for name, label in read_lines(given).items()])
    if path.is_file():
        archive = urls.in_archive(given)
        return [NamedImage(printable(path.name), path)] if archive is None else _at_url(archive, quiet)
    matches = sorted(Path(match) for match in glob.glob(given, recursive=True)) if glob.has_magic(given) else []
    if not matches:
        raise InputError(f"'{given}' is not a file, not a folder, and not a pattern that matches one.")
    if all(urls.in_archive(str(match)) for match in matches):
        return unique([image for match in matches for image in _files(str(match), quiet)])
    root = Path(os.path.commonpath([match.parent for match in matches]))
    found = _pictures([match for match in matches if not match.is_dir()], given, quiet)
    return [NamedImage(printable(file.relative_to(root).as_posix()), file) for file in found]


def _at_url(given: str, quiet: bool) -> list[NamedImage]:
    """Does the same as `_files` for a URL."""
    try:
        found = urls.found(given)
    except OSError as error:
        raise InputError(f"'{given}' could not be read ({error}).") from error
    if not found:
        raise InputError(f"'{given}' is not a file, not a folder, and not a pattern that matches one.")
    if urls.as_path(given).lower().endswith(".csv") and found[0].name == PurePosixPath(urls.as_path(given)).name:
        below = urls.parent(given)
        rows = [NamedImage(name, urls.joined(below, name), label) for name, label in read_table(given).items()]
        return rows if all(urls.below(str(image.path), below) for image in rows) else _by_common_root(rows)
    shown = [file for file in found if not any(part.startswith(".") for part in file.name.split("/"))]
    classes = _webdataset_classes(shown)
    pictures = [file for file in shown if PurePosixPath(file.name).suffix.lower() in SUFFIXES | HEIC]
    if classes:  # of a sample's files the one with a single-word extension, such as `a.jpg` and not `a.mask.png`
        pictures = [file for file in pictures if PurePosixPath(file.name).name.count(".") == 1]
    if not quiet:
        _report_left_out([PurePosixPath(file.name) for file in shown if file not in pictures and not file.name.endswith(".cls")], given)
    return [NamedImage(printable(file.name), file.url, classes.get(_key(file.name)), None, file.size, file.version) for file in pictures]


def _webdataset_classes(found: list[urls.Found]) -> dict[str, int | str | None]:
    """Reads the class of each sample of a webdataset shard from its `.cls` file; empty for other archives."""
    try:
        return {_key(file.name): class_of_shard(urls.read(file.url).decode("utf-8")) for file in found if file.name.endswith(".cls")}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the classes of the shard could not be read ({error}).") from error


def _key(name: str) -> str:
    """Returns the common key of a sample's files: the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _walk(folder: Path, quiet: bool) -> list[Path]:
    """Finds the pictures below a folder, visiting each folder once; linked folders come last, and only if they were not visited before."""
    found: list[Path] = []
    refused: list[str] = []
    seen: set[str] = set()
    left = [str(folder)]
    while left:
        top = left.pop(0)
        if os.path.realpath(top) in seen:
            continue
        for parent, below, names in os.walk(top, onerror=lambda error: refused.append(str(error.filename))):
            seen.add(os.path.realpath(parent))
            places = {name: os.path.join(parent, name) for name in sorted(below) if not name.startswith(".")}
            left += [place for place in places.values() if os.path.islink(place)]
            below[:] = [name for name, place in places.items() if not os.path.islink(place) and os.path.realpath(place) not in seen]
            found += [Path(parent) / name for name in names if not name.startswith(".")]
    if refused and not quiet:
        logger.warning("%s: left out, as it could not be read: %s (%s)", folder, counted(len(refused), "folder"), ", ".join(refused[:3]))
    return _without_links_to_others(_pictures(sorted(found), str(folder), quiet), folder, quiet)


def _without_links_to_others(files: list[Path], folder: Path, quiet: bool) -> list[Path]:
    """Drops links to files that are themselves in the list."""
    links = {file: os.path.realpath(file) for file in files if file.is_symlink()}
    if not links:
        return files
    real = {os.path.join(os.path.realpath(file.parent), file.name) for file in files if file not in links}
    twice = [file for file, place in links.items() if place in real]
    if twice and not quiet:
        logger.info("%s: left out: %s to pictures that are also listed themselves.", folder, counted(len(twice), "link"))
    return [file for file in files if file not in set(twice)]


def _pictures(files: list[Path], place: str, quiet: bool) -> list[Path]:
    """Keeps files that are pictures by their extension or, if that is inconclusive, by their first bytes; reports the others."""
    found: list[Path] = []
    left: list[Path] = []
    for file in files:
        suffix = file.suffix.lower()
        (found if suffix in SUFFIXES or (not _is_known(suffix) and _begins_as_picture(file)) else left).append(file)
    if not quiet:
        _report_left_out(left, place)
    return found


def _is_known(suffix: str) -> bool:
    """Checks whether files with an extension are never opened to identify them."""
    return suffix in NOT_SNIFFED or suffix.endswith(("~", "_original"))


def _begins_as_picture(file: Path) -> bool:
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            return False
        with open(file, "rb") as opened:
            return is_picture(opened.read(HEAD))
    except OSError:
        return False


def _report_left_out(files: Sequence[PurePath], place: str) -> None:
    """Logs how many files are not readable pictures, by extension; as a warning if users may expect them to be read."""
    texts = [file for file in files if file.suffix.lower() in TEXTS]
    if texts:
        logger.info("%s: next to the pictures: %s", place, _by_ending(texts, texts))
    if others := [file for file in files if file.suffix.lower() not in TEXTS]:
        expected = [file for file in others if file.suffix.lower() in OTHER_PICTURES]
        what = counted(len(others), "file is left out, as it is no picture", "files are left out, as they are no pictures")
        level = logging.WARNING if expected else logging.INFO
        logger.log(level, "%s: %s in a format that is read: %s", place, what, _by_ending(others, expected or others))


def _by_ending(files: Sequence[PurePath], shown: Sequence[PurePath]) -> str:
    """Counts files by extension, with the names of some."""
    endings = Counter(file.suffix.lower() for file in files)
    counts = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in endings.most_common(8))
    return f"{counts} ({', '.join(printable(file.name) for file in shown[:3])}{', …' if len(shown) > 3 else ''})"


def printable(name: str) -> str:
    r"""Returns a file's name as text that can be stored: bytes that are not UTF-8 become `\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def unique(images: list[NamedImage]) -> list[NamedImage]:
    """Lists each file once under a unique name: files with the same name are named by their paths below their common folder."""
    images = list(dict(zip(places_of(images), images, strict=True)).values())
    if len({image.name for image in images}) == len(images):
        return images
    return _by_common_root(images)


def places_of(images: Sequence[NamedImage]) -> list[str | None]:
    """Identifies the file of each image, regardless of how its folder was given; None for an item of a data set."""
    real = functools.cache(os.path.realpath)
    return [os.path.join(real(image.path.parent), image.path.name) if isinstance(image.path, Path) else image.path for image in images]


def _by_common_root(images: list[NamedImage]) -> list[NamedImage]:
    paths = [_absolute(image.path) for image in images if image.path is not None]
    under = [Path(urls.as_path(path)) if isinstance(path, str) else path for path in paths]
    root = os.path.commonpath([path.parent for path in under])
    return [
        replace(image, name=printable(here.relative_to(root).as_posix()), path=path)
        for image, path, here in zip(images, paths, under, strict=True)
    ]


def _absolute(path: Path | str) -> Path | str:
    return path if isinstance(path, str) else Path(os.path.abspath(path))


def file_digest(image: NamedImage) -> str | None:
    """Returns a digest of an image file's content, or of its version at a URL; None if there is none."""
    if isinstance(image.path, str):
        if image.version is None:
            return None
        return urls.LISTED + hashlib.blake2b(f"{image.version} {image.size}".encode(), digest_size=8).hexdigest()
    try:
        if image.path is None or not image.path.is_file():
            return None
        with open(image.path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError:
        return None


def numbered(count: int) -> list[NamedImage]:
    """Lists the images of a data set of a given length."""
    width = len(str(max(count - 1, 0)))
    return [NamedImage(f"{index:0{width}d}", index=index) for index in range(count)]
