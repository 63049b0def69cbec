"""The files of a run, in a local folder (or one that several machines mount) or at a URL.

Writes are atomic in both cases: a local file is written under another name and then renamed; at a URL a file is one upload, which object
stores show only when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from xattn.data import urls
from xattn.errors import RunError
from xattn.locking import HOLDER, LOCK, lives, one_process

UNFINISHED = ".unfinished"


class LocalFolder:
    """Files below a path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self, name: str) -> bool:
        """Checks whether a file of that name exists."""
        return (self.path / name).exists()

    def top(self) -> list[str]:
        """Returns the names of the files and folders in it, without unfinished files."""
        found = list(self.path.iterdir()) if self.path.exists() else []
        return [path.name for path in found if not path.name.endswith(UNFINISHED) and path.name not in (LOCK, HOLDER)]

    def listed(self, folder: str, suffix: str) -> list[str]:
        """Returns the names of the files in one of its subfolders, sorted."""
        return [f"{folder}/{path.name}" for path in sorted((self.path / folder).glob(f"*{suffix}"))]

    def read(self, name: str) -> bytes:
        """Returns the whole content of a file."""
        return (self.path / name).read_bytes()

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """Opens a file for pyarrow."""
        yield self.path / name

    @contextlib.contextmanager
    def whole(self, name: Path) -> Iterator[Path]:
        """Yields a path to write to; the file becomes `name` in the folder when it is complete."""
        target = self.path / name
        if not Path(os.path.abspath(target)).is_relative_to(os.path.abspath(self.path)):
            raise RunError(f"'{name}' lies outside the run folder '{self.path}'.")
        # A digest, because the name itself may already have the maximum length.
        key = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
        unfinished = target.with_name(f".{key}.{os.getpid()}{UNFINISHED}")
        try:
            with _writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                yield unfinished
                with open(unfinished, "rb") as written:
                    os.fsync(written.fileno())
                os.replace(unfinished, target)
                _sync(target.parent)
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Removes unfinished files that killed processes left; keeps those of processes that still run on this machine."""
        for unfinished in self.path.rglob(f".*{UNFINISHED}"):
            if not lives(f"process {unfinished.name.split('.')[-2]} on {socket.gethostname()}"):
                unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing a run into this folder. A killed process does not keep its lock.

        Raises:
            RunError: another process, named in the message, holds the lock; or the folder cannot be written.
        """
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with _writing(self.path):
                stack.enter_context(one_process(self.path))
            yield


class UrlFolder:
    """Files below a URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}"

    def exists(self, name: str) -> bool:
        """Checks whether a file of that name exists."""
        with _reached(self.url), urls.filesystem(self._at(name)) as (files, path):
            files.invalidate_cache()
            return bool(files.exists(path))

    def top(self) -> list[str]:
        """Returns the names of the files and folders in it."""
        with _reached(self.url), urls.filesystem(self.url) as (files, path):
            files.invalidate_cache()
            return [posixpath.basename(found.rstrip("/")) for found in files.ls(path, detail=False)] if files.isdir(path) else []

    def listed(self, folder: str, suffix: str) -> list[str]:
        """Returns the names of the files in one of its subfolders, sorted."""
        with _reached(self.url):
            return [f"{folder}/{found.name}" for found in urls.found(self._at(folder)) if found.name.endswith(suffix)]

    def read(self, name: str) -> bytes:
        """Returns the whole content of a file."""
        return urls.read(self._at(name))

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """Opens a file for pyarrow."""
        with urls.filesystem(self._at(name)) as (files, path), files.open(path, "rb") as file:
            yield file

    @contextlib.contextmanager
    def whole(self, name: Path) -> Iterator[Path]:
        """Yields a local path to write to; the file is uploaded as `name` when it is complete."""
        inside = posixpath.normpath(name.as_posix())
        if inside.startswith(("../", "/")):
            raise RunError(f"'{name}' lies outside the run folder '{self.url}'.")
        with _writing(self._at(inside)), tempfile.TemporaryDirectory(prefix="xattn-") as folder:
            file = Path(folder) / f"file{name.suffix}"
            yield file
            urls.put(file, self._at(inside))

    def tidy(self) -> None:
        """Does nothing: a URL holds no unfinished files."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Does nothing: every upload is complete, and two processes would write the same parts."""
        return contextlib.nullcontext()


def _sync(folder: Path) -> None:
    """Syncs a folder to disk, so that a rename survives a crash, where the system supports it."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def folder_at(place: str | Path) -> LocalFolder | UrlFolder:
    """Returns the files of a run from its path or URL."""
    if isinstance(place, str) and urls.is_url(place):
        return UrlFolder(place.rstrip("/"))
    return LocalFolder(Path(urls.without_file_scheme(str(place))))


@contextlib.contextmanager
def _reached(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"'{url}' could not be read ({error}). What was finished is kept: run the same command to continue.") from error


@contextlib.contextmanager
def _writing(place: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"'{place}' could not be written ({getattr(error, 'strerror', None) or error}). What was finished is kept: "
            "free space or fix the folder, and run the same command to resume."
        ) from error
