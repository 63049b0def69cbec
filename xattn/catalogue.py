"""Metadata of components, available without importing torch, which the modules that define them need and which takes seconds.

`catalogue.json` holds it for the source files that it was made from (`python .ci/tables.py`). If these have changed since, or a component
was registered in this process, the registries themselves are read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from xattn.cache import keep, kept

__all__ = [
    "FILE",
    "REGISTRIES",
    "adapters",
    "current",
    "declaration",
    "declarations",
    "digest",
    "is_bound",
    "is_control",
    "is_direct",
    "written",
]

REGISTRIES = {
    "alignments": ("xattn.attention", "alignments"),
    "distributions": ("xattn.attention", "distributions"),
    "figures": ("xattn.figures", "kinds"),
    "heads": ("xattn.heads", "heads"),
    "methods": ("xattn.explainers", "methods"),
    "metrics": ("xattn.metrics", "metrics"),
    "patches": ("xattn.patches", "finders"),
    "tasks": ("xattn.tasks", "tasks"),
}
"""Package and name of the registry of each kind."""

FILE = Path(__file__).with_name("catalogue.json")
REGISTERS = re.compile(rb"\bregister(_adapter)?\(|\bRegistry\b")  # a file that registers components, or a registry with its metadata
ABOVE = ("app", "cli", "report", "study", "training")  # packages that nothing which registers components imports

Entries = dict[str, dict[str, Any]]


def declarations(kind: str) -> Entries:
    """Declarations of the components of a kind, by name: summary, settings with their defaults, and metadata, in JSON types."""
    live = _live(kind)
    return dict(_found()[kind]["entries"]) if live is None else _entries(live)


def declaration(kind: str, name: str) -> dict[str, Any] | None:
    """The declaration of one component; None if there is none of that name."""
    live = _live(kind)
    if live is None:
        found: dict[str, Any] | None = _found()[kind]["entries"].get(name)
        return found
    return _entry(live.entries[name]) if name in live.entries else None


def is_control(method: str) -> bool:
    """Whether a method, named as in the rows, is a control that does not use the network."""
    return _declares(method, "control")


def is_planted(method: str) -> bool:
    """Whether a method, named as in the rows, is wrong on purpose (a control or a misplaced map): a metric should rank it last."""
    return is_control(method) or _declares(method, "planted")


def is_bound(method: str) -> bool:
    """Whether a method, named as in the rows, searches for the best score that a map can have."""
    return _declares(method, "bound")


def is_direct(method: str) -> bool:
    """Whether the raw map of a method, named as in the rows, is already its mask."""
    return _declares(method, "direct")


def _declares(method: str, what: str) -> bool:
    name, live = method.partition(":")[0], _live("methods")
    if live is not None:
        return name in live.entries and bool(getattr(live.entries[name].metadata, what))
    declared = declaration("methods", name)
    return declared is not None and bool(declared[what])


def adapters(kind: str) -> dict[str, str]:
    """The package that each adapter of a kind needs, by the adapter's name."""
    live = _live(kind)
    return dict(_found()[kind]["adapters"]) if live is None else _adapters(live)


def written() -> str:
    """The content of `catalogue.json` for the current source files; imports every package that registers components."""
    return json.dumps({"sources": digest(), **_read()}, indent=1, ensure_ascii=False) + "\n"


def current() -> bool:
    """Whether `catalogue.json` was made from the current source files."""
    return _shipped() is not None


def _live(kind: str) -> Any:
    """The registry of a kind if its package is already imported, so that components of the user's own code are included; else None."""
    package, name = REGISTRIES[kind]
    return getattr(sys.modules[package], name) if package in sys.modules else None


@functools.cache
def _found() -> dict[str, Any]:
    shipped = _shipped()
    if shipped is not None:
        return shipped
    key = digest()
    found: dict[str, Any] | None = kept("catalogue", key)
    if found is None:
        keep("catalogue", key, found := _read())
    return found


def _shipped() -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
        return found if found["sources"] == digest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@functools.cache
def digest() -> str:
    """A digest of all files that register components or define a registry."""
    found = hashlib.blake2b(digest_size=12)
    for name, content in sorted(_sources().items()):
        found.update(f"{name} ".encode() + hashlib.blake2b(content).digest())
    return found.hexdigest()


def _sources() -> dict[str, bytes]:
    """The content of these files, by their name in an installed package."""
    found = {}
    for package in ("xattn", "xattn.metrics"):  # in a checkout, `metrics/` is outside `xattn/`
        home = Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]
        for path in home.rglob("*.py"):
            place = (*package.split(".")[1:], *path.relative_to(home).parts)
            if place[0] not in ABOVE and REGISTERS.search(content := path.read_bytes()):
                found["/".join(place)] = content
    return found


def _read() -> dict[str, Any]:
    registries = {kind: getattr(importlib.import_module(package), name) for kind, (package, name) in REGISTRIES.items()}
    return {kind: {"entries": _entries(registry), "adapters": _adapters(registry)} for kind, registry in registries.items()}


def _entries(registry: Any) -> Entries:
    return {name: _entry(entry) for name, entry in sorted(registry.entries.items())}


def _entry(entry: Any) -> dict[str, Any]:
    metadata = {key: _json(value) for key, value in dataclasses.asdict(entry.metadata).items()}
    settings = {name: default for name, default in entry.settings.items() if default is not dataclasses.MISSING}
    found: dict[str, Any] = json.loads(json.dumps({"summary": entry.summary, "settings": settings, **metadata}, default=str))
    return found


def _adapters(registry: Any) -> dict[str, str]:
    return {name: adapter.package for name, adapter in registry.adapters.items()}


def _json(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(getattr(item, "value", item) for item in value)
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
