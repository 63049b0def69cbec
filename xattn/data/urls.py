"""Files at URLs (s3://, gs://, memory://, …) through fsspec.

Filesystems are requested each time: fsspec caches one per process and thread, and one that is inherited by a fork does not work. It does
not cache archives (zip, tar): those are cached here, in the same way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xattn.errors import InputError, XattnError
from xattn.text import counted

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")
_LOCAL = ("file://", "local://")
ARCHIVES = {".zip": "zip", ".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".tar.bz2": "tar", ".tar.xz": "tar"}
ARCHIVES_KEPT = 4
BLOCK = 512  # bytes of a tar block
LISTED = "listed "
"""Prefix of a digest of a URL file's folder entry, which is not a digest of its content."""
VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "crc32c",
    "content_md5",
    "CRC",
    "chksum",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "created",
)
"""Fields that storages and archives list about a file's content or last change, the most reliable first."""

_opened = threading.local()
logger = logging.getLogger("xattn")


def is_url(place: object) -> bool:
    """Checks whether a place is a URL of remote files."""
    return isinstance(place, str) and _URL.match(place) is not None and not place.startswith(_LOCAL)


def without_file_scheme(place: str) -> str:
    """Converts `file:///a/b` to a plain path; other places are unchanged."""
    return place.partition("://")[2] if place.startswith(_LOCAL) else place


def joined(url: str, name: str) -> str:
    """Returns the URL of a file named relative to a URL, without `..`."""
    scheme, rest, archive = _split(url)
    return f"{scheme}://{posixpath.normpath(posixpath.join(rest, name))}{archive}"


def parent(url: str) -> str:
    """Returns the folder of a file at a URL."""
    scheme, rest, archive = _split(url)
    return f"{scheme}://{posixpath.dirname(rest)}{archive}"


def below(url: str, folder: str) -> bool:
    """Checks whether a URL is a file below a folder at another URL."""
    (scheme, rest, archive), (other, root, its_archive) = _split(url), _split(folder)
    return (scheme, archive) == (other, its_archive) and (not root or rest.startswith(f"{root}/"))


def as_path(url: str) -> str:
    """Converts a URL to a path for naming only: a file in an archive is below the archive."""
    _, rest, archive = _split(url)
    return posixpath.join("/", archive.removeprefix("::").partition("://")[2] or archive.removeprefix("::"), rest).replace("//", "/")


def in_archive(path: str) -> str | None:
    """Returns the URL of the top folder of a local archive, by its extension; None if it is not an archive."""
    kind = next((kind for ending, kind in ARCHIVES.items() if path.lower().endswith(ending)), None)
    return None if kind is None else f"{kind}://::{os.path.abspath(path)}"


def _split(url: str) -> tuple[str, str, str]:
    """Returns the scheme, the path, and `::` with the archive that contains the path; empty if there is none."""
    first, mark, archive = url.partition("::")
    scheme, _, rest = first.partition("://")
    return scheme, rest, mark + archive


@contextlib.contextmanager
def filesystem(url: str) -> Iterator[tuple[Any, str]]:
    """Returns the filesystem of a URL and the path on it; any error inside becomes an OSError.

    Raises:
        InputError: no installed package supports such URLs.
        OSError: the storage refuses or does not respond.
    """
    try:
        found = _archive(url) if "::" in url else _reached(url)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"'{url}' cannot be reached: {str(error).rstrip('.')}. Install the package that fsspec uses for it: s3fs for s3://, gcsfs "
            "for gs://, adlfs for az://."
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged archive, for example
        raise OSError(f"{type(error).__name__}: {error}") from error
    try:
        yield found
    except (XattnError, OSError):
        raise
    except Exception as error:  # errors of storage libraries have no common base class
        raise OSError(f"{type(error).__name__}: {error}") from error


def _reached(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    found: tuple[Any, str] = url_to_fs(url)
    return found


def _archive(url: str) -> tuple[Any, str]:
    """Does the same as `_reached` for a file in an archive; fsspec would read the archive's directory again for each file.

    An opened archive is cached by its thread and process, as long as it does not change.
    """
    scheme, path, archive = _split(url)
    place = without_file_scheme(archive.removeprefix("::"))
    about = os.stat(place) if os.path.exists(place) else None
    key = (os.getpid(), scheme, archive, None if about is None else (about.st_mtime_ns, about.st_size))
    kept: dict[tuple[Any, ...], Any] = _opened.__dict__.setdefault("archives", {})
    if key not in kept:
        while len(kept) >= ARCHIVES_KEPT:
            kept.pop(next(iter(kept)))
        found = _reached(f"{scheme}://{archive}")[0]
        _refuse_cut(found, place)
        kept[key] = found
    return kept[key], path


def _refuse_cut(files: Any, place: str) -> None:
    """Raises if a tar file continues, or ends, where none of its files begins: Python would treat that as its end."""
    tar = getattr(files, "tar", None)
    if tar is None:
        return
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(BLOCK)
    if 0 < len(end) < BLOCK or end.strip(b"\0"):
        raise OSError(f"it is cut off or damaged after the first {counted(len(tar.getmembers()), 'file')}")
    if not end:
        logger.warning("%s has no end marker: it may have been cut off after its %s.", place, counted(len(tar.getmembers()), "file"))


def read(url: str) -> bytes:
    """Reads the whole content of a file.

    Raises:
        OSError: the file does not exist or cannot be read.
    """
    with filesystem(url) as (files, path):
        content: bytes = files.cat_file(path)
    return content


def put(file: Path, url: str) -> None:
    """Copies a local file to a URL; object stores show it only when it is complete.

    Raises:
        OSError: the file cannot be written.
    """
    with filesystem(url) as (files, path):
        files.put_file(str(file), path)


@dataclass(frozen=True)
class Found:
    """A file at a URL.

    Attributes:
        name: its path below the listed folder, or below the folder that all matches of a pattern share.
        url: URL of the file.
        size: size in bytes, if the storage lists it.
        version: changes with the content, if the storage lists such a thing.
    """

    name: str
    url: str
    size: int | None
    version: str | None = None


def found(url: str) -> list[Found]:
    """Lists the file at a URL, all files below a folder, or all that match a pattern; sorted.

    Raises:
        OSError: the storage refused or did not respond.
    """
    scheme, rest, archive = _split(url)
    rest = rest.rstrip("/")
    url = f"{scheme}://{rest}{archive}"
    with filesystem(url) as (files, path):
        files.invalidate_cache()  # other processes write there too, and a cached listing would not show it
        listed = files.glob(path, detail=True) if has_pattern(url) else files.find(path, detail=True)
        about = {
            place: info for place, info in sorted(listed.items()) if info.get("type", "file") == "file"
        }  # http:// lists the type of only some files
        if archive:
            urls = {place: f"{scheme}://{place}{archive}" for place in about}
        else:
            before = url.removesuffix(path) if url.endswith(path) else None  # scheme, and host if there is one
            urls = {place: files.unstrip_protocol(place) if before is None else before + place for place in about}
    root = posixpath.commonpath([posixpath.dirname(place) for place in about]) if about and has_pattern(url) else path
    names = {place: posixpath.basename(place) if place == root else posixpath.relpath(place, root or ".") for place in about}
    return [Found(names[place], urls[place], info.get("size"), _version(info)) for place, info in about.items()]


def _version(info: dict[str, Any]) -> str | None:
    found = next((key for key in VERSIONS if info.get(key)), None)
    return None if found is None else f"{found} {info[found]}"


def has_pattern(url: str) -> bool:
    """Checks whether a URL is a pattern for several files."""
    return any(character in _split(url)[1] for character in "*?[")
