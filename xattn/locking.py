"""A lock that lets only one process write to a folder at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from xattn.errors import RunError

LOCK, HOLDER = ".lock", ".lock.holder"
ORPHANS_S = 20.0

logger = logging.getLogger("xattn")


@contextlib.contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """Locks an existing folder against other processes. A process that is killed releases its lock.

    Raises:
        RunError: another process, which the message names, holds the lock.
        PermissionError: the folder cannot be written.
    """
    import filelock  # imported only to write a folder, so that reading runs starts quickly

    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        # The decoding processes of a killed process keep its lock for a few seconds, until they notice.
        lock.acquire(timeout=0 if lives(_holder(folder)) else ORPHANS_S)
    except filelock.Timeout as error:
        holder = _holder(folder)
        raise RunError(
            f"'{folder}' is in use: {holder or 'another process'} writes to it. Wait for it, stop it, or give another folder."
        ) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, PermissionError):
            raise
        logger.warning("%s: cannot be locked (%s); do not let two runs write to it at once.", folder, error)
        yield
        return
    try:
        with contextlib.suppress(OSError):
            (folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            lock.release()


def _holder(folder: Path) -> str:
    """The holder of the lock, as `process 123 on machine`; empty if it is unknown."""
    with contextlib.suppress(OSError):
        return (folder / HOLDER).read_text(encoding="utf-8", errors="replace")[:200].strip()
    return ""


def lives(holder: str) -> bool:
    """Whether another process, given as `process 123 on machine`, is running; a process on another machine is assumed to be."""
    found = re.fullmatch(r"process ([0-9]{1,9}) on (.+)", holder)
    if found is None:
        return False
    process, machine = int(found[1]), found[2]
    if machine != socket.gethostname():
        return True
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return process != os.getpid()
