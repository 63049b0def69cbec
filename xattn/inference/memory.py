"""Measures the peak memory of a computation and the free memory, and provides an allocator that keeps its pages."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xattn.errors import InputError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # glibc: malloc.h
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
# Any setting ends glibc's own adaptation permanently, and with the initial thresholds all other code of the process would be two to three
# times slower from then on. So the values are finally set to those that the adaptation reaches at its limit, once 32 MiB are freed at once.
ADAPTED = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_TOP_PAD: 2**17}
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(text: str | int) -> int:
    """Parses a size such as `2GB`, `500M`, `1.5GiB` or a number into bytes; units are powers of 1024.

    Raises:
        InputError: the text is not a size, or the size is not above zero.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)(i?b)?\s*", str(text).lower())
    try:
        size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    except (ValueError, OverflowError):
        size = 0
    if not 0 < size < 2**60:
        raise InputError(f"a memory size is a number with a unit, such as 500MB or 2GB; got '{str(text)[:80]}'.")
    return size


def shown(size: float) -> str:
    """Formats bytes for reading."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"


def free_memory(device: torch.device) -> int:
    """Returns the free bytes of a device; those of the machine for the CPU, or if the device does not report them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo)[1]) * 1024  # type: ignore[index]  # TypeError where it is not told
    except (OSError, TypeError):
        return 4 * 2**30  # no portable call reports it; any current machine has this much


class _Held(TorchDispatchMode):
    """Counts, after every operation, the bytes of all tensors that were created inside and are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def peak_bytes(compute: Callable[[], object]) -> int:
    """Measures the peak bytes of tensors that `compute` holds at one time, on any device, without an operation's own scratch memory."""
    held = _Held()
    with held:
        compute()
    return held.peak


def is_out_of_memory(error: RuntimeError) -> bool:
    """Checks whether an error means that a device or the machine is out of memory."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


@functools.lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


_depth = 0
_lock = threading.Lock()


@contextlib.contextmanager
def kept_pages() -> Iterator[None]:
    """Keeps freed memory in the process for reuse while the context is open, because a forward's tensors recur in the same sizes.

    glibc takes fresh pages from the system for every tensor of more than 32 MiB and returns them at once; the page faults cost a third to a
    half of the time of a forward of many images. At the end the kept pages are returned, and the allocator is left in the state that its
    own adaptation would reach. Without glibc nothing changes.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    _deeper(libc, 1)
    try:
        yield
    finally:
        _deeper(libc, -1)


def _deeper(libc: ctypes.CDLL, step: int) -> None:
    """Keeps pages from the first entry until the last exit, across all threads."""
    global _depth
    with _lock:
        was, _depth = _depth, _depth + step
        if 0 in (was, _depth):
            for option, value in (KEEPING if _depth else ADAPTED).items():
                libc.mallopt(option, value)
            if not _depth:
                libc.malloc_trim(0)
