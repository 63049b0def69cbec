"""Caches results that take seconds to compute, in small files in the user's cache folder."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["keep", "kept"]


def _file(kind: str, key: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "xattn" / kind / f"{key}.json"


def kept(kind: str, key: str) -> Any:
    """Returns a cached value; None if there is none or it cannot be read.

    Args:
        kind: the folder.
        key: letters and digits, derived from everything that the value depends on.
    """
    try:
        return json.loads(_file(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep(kind: str, key: str, value: Any) -> None:
    """Caches a value if possible; if the cache cannot be written, nothing is raised and the value is computed again next time."""
    path = _file(kind, key)
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(value, indent=1), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
