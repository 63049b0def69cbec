"""Index of a report's page, which is loaded at the start, and blocks of items, which are loaded when they are viewed."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import colormaps

from xattn import __version__
from xattn.errors import XattnError
from xattn.explainers.base import methods as method_registry
from xattn.metrics.base import CurveMetric, metrics
from xattn.metrics.fills import Baseline, baseline_images
from xattn.metrics.perturbations import ranks
from xattn.report.contents import Column, Contents, Item
from xattn.report.encoding import NO_VALUE, base64_of, kind_of
from xattn.report.pictures import Pictures
from xattn.text import shown

BLOCK = 16  # items that are loaded together
PALETTES = ("inferno", "viridis", "turbo", "gray")
AROUND_ZERO = "RdBu_r"
CONTRAST = re.compile(r"[-+*. 0-9e]+")
CLASS = re.compile(r"(?<![\d.])\d{1,9}(?![\d.*e])")  # not a weight
NOT_THERE = 2  # of a map


def name_of(text: object) -> str:
    """Returns untrusted text on one line, with control characters escaped."""
    return shown(str(text), keep="")


def index_of(contents: Contents, pictures: Pictures, title: str, table: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the index of a report, ready for JSON."""
    classifiers = list(contents.classifiers)
    return {
        "title": title,
        "version": __version__,
        "runs": [_run(contents, number) for number in range(len(contents.stores))],
        "classifiers": [_classifier(contents, pictures, key) for key in classifiers],
        "columns": [
            {
                "classifier": classifiers.index(column.classifier),
                "method": name_of(column.method),
                "kind": kind_of(column.method),
                "control": column.method in method_registry.entries and method_registry.entries[column.method].metadata.control,
            }
            for column in contents.columns
        ],
        "metrics": [_metric(contents, metric) for metric in contents.metrics],
        "shares": [list(map(_rounded, shares)) for shares in contents.shares],
        "names": [name_of(item.image) for item in contents.items],
        "answers": [_answers(contents.items, key) for key in classifiers],
        "scores": base64_of(_scores(contents)),
        "flags": base64_of(_flags(contents)),
        "reasons": _reasons(contents),
        "disagreement": base64_of(b"".join(item.disagreement for item in contents.items)),
        "means": mean_curves(contents),
        "table": table,
        "failed": [[name_of(image), name_of(error)] for image, error in contents.failed.items()],
        "wholeMaps": contents.whole_maps,
        "palettes": {name: _palette(name) for name in (*PALETTES, AROUND_ZERO)},
        "block": BLOCK,
        "orders": order_counts(contents),
    }


def _run(contents: Contents, number: int) -> dict[str, Any]:
    run, store = contents.settings[number], contents.stores[number]
    settings = run["settings"]
    return {
        "folder": name_of(store.folder),
        "finished": store.finished,
        "images": settings["images"]["count"],
        "target": name_of(settings.get("target", "")),
        "xattn": name_of(settings.get("xattn", "")),
        "torch": name_of(settings.get("torch", "")),
        "device": name_of(settings.get("device", "")),
        "seed": settings.get("seed") if isinstance(settings.get("seed"), int) else None,
    }


def _classifier(contents: Contents, pictures: Pictures, key: tuple[str, str]) -> dict[str, Any]:
    about = contents.classifiers[key]
    preprocessing = about.preprocessing
    used: set[int] = set()
    for item in contents.items:
        answer = item.answers.get(key)
        if answer is not None:
            used |= {int(value) for value in (answer.label, answer.predicted) if value is not None and value >= 0 and value.is_integer()}
            used |= _classes_in(answer.target or "")
        used |= {index for index, _ in item.classes.get(key, ())}
    labels = about.labels or ()
    return {
        "model": name_of(key[0]),
        "head": name_of(key[1]),
        "crop": pictures.crops.index(preprocessing),
        "size": list(preprocessing.input_size),
        "mean": _three(preprocessing.mean),
        "preprocessing": name_of(preprocessing),
        "weights": name_of(about.weights),
        "stage": None if about.stage is None else name_of(about.stage),
        "classes": {str(index): name_of(labels[index]) for index in sorted(used) if 0 <= index < len(labels)},
    }


def _classes_in(target: str) -> set[int]:
    """Returns the classes in a target of the rows, `7` or `3 - 0.6*7`; none in a value or a similarity."""
    return {int(index) for index in CLASS.findall(target)} if CONTRAST.fullmatch(target) else set()


def _three(mean: Sequence[float]) -> list[float]:
    """Returns the mean colour of the displayed channels."""
    return list(mean[:3]) if len(mean) >= 3 else [mean[0]] * 3


def _metric(contents: Contents, metric: str) -> dict[str, Any]:
    about: dict[str, Any] = {"name": name_of(metric), "symbol": name_of(metric), "better": None, "unit": "", "curve": None}
    try:
        component = metrics.create(metric)
    except XattnError:  # a metric that is registered elsewhere
        return about
    about |= {"symbol": component.metadata.symbol, "better": component.metadata.better, "unit": component.metadata.unit}
    followed = any(metric == name for item in contents.items for _, name in item.curves)
    if isinstance(component.instance, CurveMetric) and followed:
        curve = component.instance.curve
        about["curve"] = {
            "insertion": curve.insertion,
            "kind": curve.baseline.kind,
            "colour": curve.baseline.colour,
            "kernels": _kernels(contents, curve.baseline),
            "step": curve.step,
            "lowRes": curve.low_res,
            "asBytes": curve.as_bytes,
            "tolerance": curve.tolerance,
        }
    return about


def _kernels(contents: Contents, baseline: Baseline) -> dict[str, list[float]]:
    """Returns one line of the blur's kernel, by the height of the crop."""
    found: dict[str, list[float]] = {}
    for about in contents.classifiers.values() if baseline.kind in ("gaussian", "box") else ():
        height = about.preprocessing.input_size[0]
        if str(height) not in found:
            side = baseline.side if baseline.side is not None else max(height // 5, 9) // 2 * 2 + 1
            impulse = torch.zeros(1, 1, side, side, dtype=torch.float64)
            impulse[0, 0, side // 2, side // 2] = 1
            blurred = baseline_images(impulse, Baseline(baseline.kind, "black", side), None)
            found[str(height)] = [_rounded(value) for value in blurred[0, 0].sum(dim=0).tolist()]
    return found


def order_counts(contents: Contents) -> list[int]:
    """Returns the numbers of pixels or cells for which curves need an order of ties: of crops, and of maps whose cells are ranked."""
    found: set[int] = set()
    for name in contents.metrics:
        try:
            instance = metrics.create(name).instance
        except XattnError:
            continue
        if not isinstance(instance, CurveMetric) or not any(metric == name for item in contents.items for _, metric in item.curves):
            continue
        if instance.curve.low_res:
            found |= {each.height * each.width for item in contents.items for each in item.maps.values() if not each.reduced}
        else:
            found |= {about.preprocessing.input_size[0] * about.preprocessing.input_size[1] for about in contents.classifiers.values()}
    return sorted(found)


def order_of(count: int) -> str:
    """Returns the order in which equal pixels are changed: the pixel at each rank, as little-endian 32-bit integers in base64."""
    equal = ranks(torch.zeros(1, 1, count)).flatten()
    return base64_of(equal.argsort().to(torch.int32).numpy().astype("<i4").tobytes())


def _answers(items: Sequence[Item], key: tuple[str, str]) -> dict[str, list[Any]]:
    found = [item.answers.get(key) for item in items]
    return {
        "target": [None if answer is None or answer.target is None else name_of(answer.target) for answer in found],
        "label": [None if answer is None else _finite(answer.label) for answer in found],
        "predicted": [None if answer is None else _finite(answer.predicted) for answer in found],
        "probability": [None if answer is None else _finite(answer.probability) for answer in found],
    }


def _scores(contents: Contents) -> bytes:
    """Returns scores as float32 `(columns, metrics, items)`; NaN for missing ones."""
    found = torch.full((len(contents.columns), len(contents.metrics), len(contents.items)), torch.nan)
    column_of = {column: number for number, column in enumerate(contents.columns)}
    metric_of = {metric: number for number, metric in enumerate(contents.metrics)}
    for number, item in enumerate(contents.items):
        for (column, metric), value in item.scores.items():
            found[column_of[column], metric_of[metric], number] = value
    return bytes(found.numpy().astype("<f4").tobytes())


def _flags(contents: Contents) -> bytes:
    """Returns one byte per map `(columns, items)`: 0 a map, 1 a map that shows nothing, 2 no map."""
    found = bytearray()
    for column in contents.columns:
        for item in contents.items:
            found.append(int(item.degenerate[column]) if column in item.degenerate else NOT_THERE)
    return bytes(found)


def _reasons(contents: Contents) -> dict[str, Any]:
    """Returns why maps show nothing: the texts, and for each column the index of the text by item."""
    texts: dict[str, int] = {}
    of: list[dict[str, int]] = [
        {
            str(number): texts.setdefault(name_of(item.reasons[column]), len(texts))
            for number, item in enumerate(contents.items)
            if column in item.reasons
        }
        for column in contents.columns
    ]
    return {"texts": list(texts), "of": of}


def mean_curves(contents: Contents) -> list[dict[str, Any]]:
    """Returns the mean over the pictures of each curve, by column and metric, if the curves have the same steps."""
    sums: dict[tuple[Column, str, int], list[bytes]] = defaultdict(list)
    for item in contents.items:
        for (column, metric), (shares, p) in item.curves.items():
            sums[column, metric, shares].append(p)
    found = []
    for (column, metric, shares), curves in sums.items():
        whole = torch.frombuffer(bytearray(b"".join(curves)), dtype=torch.int16).to(torch.int32) & NO_VALUE
        values = whole.double().view(len(curves), -1)
        values = values.masked_fill(values == NO_VALUE, torch.nan) / (NO_VALUE - 1)
        mean = [None if math.isnan(value) else _rounded(value) for value in values.nanmean(dim=0).tolist()]
        place = {"column": contents.columns.index(column), "metric": contents.metrics.index(metric), "shares": shares}
        found.append(place | {"p": mean, "n": len(curves)})
    return found


def block_of(contents: Contents, items: Sequence[Item], uris: Sequence[list[str | None]], classifiers: Sequence[tuple[str, str]]) -> Any:
    """Returns the data that the page loads for some items, ready for JSON."""
    return [
        {
            "pictures": pictures,
            "classes": [[[index, _rounded(p)] for index, p in item.classes.get(key, ()) if math.isfinite(p)] for key in classifiers],
            "maps": [_map(item, column) for column in contents.columns],
            "curves": [
                [contents.columns.index(column), contents.metrics.index(metric), shares, base64_of(p)]
                for (column, metric), (shares, p) in item.curves.items()
            ],
        }
        for item, pictures in zip(items, uris, strict=True)
    ]


def _map(item: Item, column: Column) -> list[Any] | None:
    found = item.maps.get(column)
    if found is None:
        return None
    return [found.height, found.width, found.low, found.high, int(found.reduced), base64_of(found.data)]


def _palette(name: str) -> str:
    """Returns 256 colours as bytes of red, green and blue."""
    colours = torch.as_tensor(colormaps[name](range(256), bytes=True))[:, :3]
    return base64_of(colours.contiguous().numpy().tobytes())


def _finite(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(value)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
