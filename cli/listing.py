"""What `xattn list` lists."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from xattn.cache import keep, kept
from xattn.catalogue import REGISTRIES, adapters, declarations, digest
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
        from xattn.models.names import model_names

        return [{"name": name} for name in model_names()]
    if kind == "protocols":
        from xattn.metrics import PROTOCOLS

        return [{"name": name, "summary": protocol.summary} for name, protocol in PROTOCOLS.items()]
    entries = [{"name": name, **entry} for name, entry in declarations(kind).items()]
    return entries + [{"name": name, "summary": summary, "settings": {}} for name, summary in _adapted(kind, pattern)]


def _adapted(kind: str, pattern: str) -> list[tuple[str, str]]:
    """Names and summaries of the components of installed libraries that a pattern asks for, and one entry for each other library."""
    library, colon, _ = pattern.lower().partition(":")
    installed = [name for name, package in adapters(kind).items() if importlib.util.find_spec(package) is not None]
    asked = [name for name in installed if colon and fnmatch.fnmatchcase(name, library)]
    return [
        *(pair for name in sorted(asked) for pair in _names_of(kind, name)),
        *(
            (f"{name}:NAME", f"those of {name}, by its own names: xattn list {kind} {name}:")
            for name in sorted(installed)
            if name not in asked
        ),
    ]


def _names_of(kind: str, library: str) -> list[tuple[str, str]]:
    """Names and summaries of a library's components, kept until xattn or a package changes: to import the library takes seconds."""
    packages = sorted(path.name for place in sys.path for path in Path(place).glob("*.dist-info"))
    key = hashlib.blake2b(
        "\n".join([kind, library, sys.version, digest(), *packages]).encode(errors="surrogateescape"), digest_size=12
    ).hexdigest()
    found: list[tuple[str, str]] | None = kept("lists", key)
    if found is None:
        package, name = REGISTRIES[kind]
        keep("lists", key, found := sorted(getattr(importlib.import_module(package), name).adapted_names([library]).items()))
    return [(name, summary) for name, summary in found]
