"""What `xattn list` lists: read from the registries."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from typing import Any

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
    found = [entry for entry in _all(kind, pattern) if fnmatch.fnmatchcase(entry["name"].lower(), wanted)]
    if not found:
        raise InputError(f"none of the {kind} matches '{pattern}': give a part of a name, or a glob such as '*{pattern.strip('*')[:3]}*'.")
    return found


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
    if kind == "metrics":
        from xattn.metrics import metrics

        return metrics
    if kind == "figures":
        from xattn.figures import kinds

        return kinds
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
