"""Differences between the settings of two runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differing(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yields one line for each difference between two sets of settings: its path, the old value and the new value."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from differing(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and any(isinstance(v, dict) for v in before):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differing(old, new, f"{path}[{number}]")
    elif before != now:
        yield f"{path} was {_short(before)}, is {_short(now)}"


def known_before(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Returns what a component records, without settings that did not exist before: their defaults give the earlier behaviour."""
    return {**now, "settings": {key: value for key, value in now["settings"].items() if key in before["settings"]}}


def _short(value: Any) -> str:
    """Formats a setting on one line for a message: things with a name by their names."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = [" · ".join(str(item[key]) for key in ("name", "head") if key in item) for item in value]
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}…"
