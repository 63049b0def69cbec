"""What runs ask of a model and a head, and of which pictures: rows of different questions are not one row."""

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
    """Names of each run's models for a joint table, by model and head.

    Where runs ask different questions of a model (its target, stage, preprocessing, level, seed, a setting of a metric or method), what
    differs is added to its name; where the weights differ, the run's path.
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
    """What a run asks of a model, by the words that name it. Of a setting that only one run records, nothing is known of the other."""
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
    """A setting as it is written in a name: whole, or a digest of it."""
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
    """What tells a picture from another of the same name.

    Attributes:
        content: its digest; None if the run keeps none.
        origin: what the run was given; empty for a data set in memory.
        source: digest of the run's images.
    """

    content: str | None
    origin: Any
    source: str

    def same(self, other: _Picture) -> bool:
        if self.content is not None and other.content is not None:
            if self.content.startswith(LISTED) != other.content.startswith(LISTED):
                return True  # a file and a URL: neither says that they differ
            return self.content == other.content
        if self.origin and other.origin:
            return bool(self.origin == other.origin)
        return not self.origin and not other.origin and self.source == other.source


def picture_names(stores: Sequence[Store], images: Sequence[set[str]]) -> list[dict[str, str]]:
    """New names of each run's pictures, where another run has another picture of the same name; other pictures keep theirs.

    Pictures are the same if their names and contents are; where a run keeps no digests of contents, if both came from the same place.

    Args:
        stores: of the runs.
        images: names in the rows of each.
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
