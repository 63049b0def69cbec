"""Names of models and pictures in a joint table: rows that answer different questions get different names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xattn.data.urls import LISTED
from xattn.study.store import Store

Key = tuple[str, str]


def shown_names(stores: Sequence[Store]) -> list[dict[Key, str]]:
    """Returns the names of each run's models for a joint table, by model and head.

    If runs ask different questions of a model (its target, stage, preprocessing, level, seed, a setting of a metric or method), the
    difference is added to its name; if the weights differ, the run's path is added.
    """
    runs = [store.read_run() for store in stores]
    asked = [{(model["name"], model["head"]): dict(_question(run, model)) for model in run["settings"]["models"]} for run in runs]
    digests: dict[Key, str] = {}
    shown = []
    for store, run, questions in zip(stores, runs, asked, strict=True):
        names = {}
        for model in run["settings"]["models"]:
            key = (model["name"], model["head"])
            others = [of[key] for of in asked if key in of]
            parts = [f"{what} {value}" for what, value in questions[key].items() if any(of.get(what, value) != value for of in others)]
            if digests.setdefault(key, model["weights"]) != model["weights"]:
                parts.insert(0, str(store.folder))
            names[key] = f"{key[0]} ({', '.join(parts)})" if parts else key[0]
        shown.append(names)
    return shown


def _question(run: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what a run asks of a model, with the words that name it. If only one run records a setting, the other's value is unknown."""
    settings = run["settings"]
    yield "target", _written(settings.get("target"))
    yield "threshold", _written(settings.get("threshold"))
    yield "stage", _written(model.get("stage"))
    for setting in ("multi_label", "regression"):
        yield setting.replace("_", "-"), _written(model.get(setting, False))
    yield "output", _written(model.get("output"))
    for setting, value in model["preprocessing"].items():
        yield setting.replace("_", " "), _written(value)
    for setting in ("depth", "window"):
        yield setting, _written(settings["images"].get(setting))
    for setting in ("level", "seed"):
        yield setting, _written(settings.get(setting))
    for spec, about in run.get("protocol", {}).items():
        for setting, value in about["settings"].items():
            yield f"{spec} {setting}", _written(value)


def _written(value: Any) -> str:
    """Formats a setting for a name: in full, or as a digest."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, (int, float)) for item in value):
        return "×".join(map(str, value)) if all(isinstance(item, int) for item in value) else "/".join(f"{item:g}" for item in value)
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
    return f"{value['kind']} {digest}" if isinstance(value, dict) and "kind" in value else digest


@dataclass(frozen=True)
class _Picture:
    """Distinguishes pictures that have the same name.

    Attributes:
        content: its digest; None if the run keeps none.
        origin: the source that was given to the run; empty for a data set in memory.
        source: digest of the run's images.
    """

    content: str | None
    origin: Any
    source: str

    def same(self, other: _Picture) -> bool:
        if self.content is not None and other.content is not None:
            if self.content.startswith(LISTED) != other.content.startswith(LISTED):
                return True  # a file and a URL: nothing shows that they differ
            return self.content == other.content
        if self.origin and other.origin:
            return bool(self.origin == other.origin)
        return not self.origin and not other.origin and self.source == other.source


def picture_names(stores: Sequence[Store], images: Sequence[set[str]]) -> list[dict[str, str]]:
    """Returns new names of each run's pictures if another run has another picture with the same name; other pictures keep their names.

    Pictures are the same if their names and contents are; if a run keeps no digests of contents, if both came from the same place.

    Args:
        stores: the runs.
        images: names in the rows of each run.
    """
    known: dict[str, list[tuple[_Picture, str]]] = {}
    renamed: list[dict[str, str]] = []
    for store, names in zip(stores, images, strict=True):
        about, contents = store.read_run()["settings"]["images"], store.contents()
        renamed.append({})
        for name in names:
            picture = _Picture(contents.get(name), about["origin"], about["digest"])
            others = known.setdefault(name, [])
            shown = next((called for other, called in others if picture.same(other)), None)
            if shown is None:
                shown = f"{name} ({store.folder})" if others else name
                others.append((picture, shown))
            if shown != name:
                renamed[-1][name] = shown
    return renamed
