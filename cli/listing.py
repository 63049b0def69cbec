"""What `xattn list` lists: read from the registries."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

from xattn.cache import keep, kept
from xattn.errors import InputError


def listing(kind: str, pattern: str = "") -> list[dict[str, Any]]:
    """The components of a kind with their summary, settings and metadata, ready for JSON.

    Of other libraries, whose import takes seconds, there is one entry each, unless the pattern asks for theirs (`captum:`).

    Args:
        kind: of component.
        pattern: a glob of names, or a part of them; upper and lower case are the same.

    Raises:
        InputError: no name matches.
    """
    wanted = pattern.lower() if any(sign in pattern for sign in "*?[") else f"*{pattern.lower()}*"
    found = [entry for entry in _kept(kind, pattern) if fnmatch.fnmatchcase(entry["name"].lower(), wanted)]
    if not found:
        raise InputError(f"none of the {kind} matches '{pattern}': give a part of a name, or a glob such as '*{pattern.strip('*')[:3]}*'.")
    return found


def _kept(kind: str, pattern: str) -> list[dict[str, Any]]:
    """The entries, kept for as long as xattn's files and the installed packages are the same: to import them takes seconds."""
    key = _key(kind, pattern)
    found: list[dict[str, Any]] | None = kept("lists", key)
    if found is None:
        keep("lists", key, found := _all(kind, pattern))
    return found


def _key(kind: str, pattern: str) -> str:
    folders = [Path(str(importlib.util.find_spec(name).origin)).parent for name in ("xattn", "xattn.metrics")]  # type: ignore[union-attr]
    files = [f"{path} {about.st_size} {about.st_mtime_ns}" for each in folders for path in each.rglob("*.py") for about in [path.stat()]]
    packages = [path.name for place in sys.path for path in Path(place).glob("*.dist-info")]
    library = pattern.lower().partition(":")[0] if ":" in pattern else ""
    depends = "\n".join([kind, library, sys.version, *sorted(files), *sorted(packages)])
    return hashlib.blake2b(depends.encode(errors="surrogateescape"), digest_size=12).hexdigest()


def _all(kind: str, pattern: str) -> list[dict[str, Any]]:
    if kind == "models":
        from xattn.models.sources import model_names

        return [{"name": name} for name in model_names()]
    if kind == "protocols":
        from xattn.metrics import PROTOCOLS

        return [{"name": name, "summary": protocol.summary} for name, protocol in PROTOCOLS.items()]
    registry = _registry(kind)
    entries = [
        {"name": entry.name, "summary": entry.summary, "settings": entry.settings, **_plain(dataclasses.asdict(entry.metadata))}
        for _, entry in sorted(registry.entries.items())
    ]
    return entries + [{"name": name, "summary": summary, "settings": {}} for name, summary in _adapted(registry, kind, pattern)]


def _adapted(registry: Any, kind: str, pattern: str) -> list[tuple[str, str]]:
    """Names and summaries of the components of installed libraries that a pattern asks for, and one entry for each other library."""
    library, colon, _ = pattern.lower().partition(":")
    asked = [name for name in registry.adapters if colon and fnmatch.fnmatchcase(name, library)]
    others = [name for name in registry.installed() if name not in asked]
    return [
        *sorted(registry.adapted_names(asked).items()),
        *((f"{name}:NAME", f"those of {name}, by its own names: xattn list {kind} {name}:") for name in sorted(others)),
    ]


def _registry(kind: str) -> Any:
    if kind == "heads":
        from xattn.heads import heads

        return heads
    if kind in ("alignments", "distributions"):
        from xattn import attention

        return getattr(attention, kind)
    if kind == "metrics":
        from xattn.metrics import metrics

        return metrics
    if kind == "figures":
        from xattn.figures import kinds

        return kinds
    if kind == "tasks":
        from xattn.tasks import tasks

        return tasks
    if kind == "patches":
        from xattn.patches import finders

        return finders
    from xattn.explainers import methods

    return methods


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: _json(value) for key, value in metadata.items()}


def _json(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(getattr(item, "value", item) for item in value)
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
