"""Run folders made without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from xattn.data.images import ImageSource
from xattn.data.preprocessing import Preprocessing
from xattn.metrics import metrics as metric_registry
from xattn.study.schema import Row, arrow_table, with_map
from xattn.study.store import Store

METHODS = ("grad-cam", "grad-cam++", "layer-cam", "score-cam", "grad-cam:signed=true", "random")
METRICS = ("average-drop", "insertion", "deletion", "sparsity")
CLASSES = ("bird", "<b>cat</b>", "dog", "fish", "horse")
HOSTILE = "<img src=x onerror=alert(1)>.jpg"


def write_pictures(folder: Path, names: Sequence[str], side: int) -> Path:
    """Pictures of noise."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name in names:
        noise = torch.rand(3, 8, 8, generator=generator)
        smooth = torch.nn.functional.interpolate(noise[None], size=(side, side), mode="bicubic")[0].clamp(0, 1)
        Image.fromarray((smooth * 255).byte().permute(1, 2, 0).contiguous().numpy()).save(folder / name, quality=85)
    return folder


def write_run(
    folder: Path,
    pictures: Path,
    *,
    methods: Sequence[str] = METHODS,
    metrics: Sequence[str] = METRICS,
    side: int = 64,
    cells: int = 7,
    model: str = "made:net",
    seed: int = 0,
    part: int = 64,
) -> Path:
    """A finished run over a folder of pictures, with drawn maps, scores, curves and classes.

    The third picture is degenerate under the first method; each fourth is a mistake.
    """
    source, generator = ImageSource(pictures), torch.Generator().manual_seed(seed)
    preprocessing = Preprocessing((side, side), side)
    stored = {"name": model, "head": "gap", "weights": "0" * 8, "stage": "layer4", "preprocessing": asdict(preprocessing)}
    settings: dict[str, Any] = {
        "models": [stored],
        "methods": list(methods),
        "metrics": list(metrics),
        "images": {"origin": source.origin, "count": len(source), "digest": source.digest()},
        "target": "predicted",
        "seed": seed,
        "xattn": "0",
    }
    store = Store(folder)
    store.begin(settings, {"labels": {f"{model} · gap": list(CLASSES)}})
    for number, start in enumerate(range(0, len(source), part)):
        rows: list[Row] = []
        for place, image in enumerate(source.images[start : start + part], start=start):
            rows += _rows_of(image.name, place, methods, metrics, side, cells, model, generator)
        store.write_part(f"00-{number:06d}", arrow_table(rows))
    store.finish(metrics)
    return folder


def _rows_of(
    name: str, place: int, methods: Sequence[str], metrics: Sequence[str], side: int, cells: int, model: str, generator: torch.Generator
) -> list[Row]:
    predicted, rows, maps = place % len(CLASSES), [], []
    label = predicted if place % 4 != 3 else (predicted + 1) % len(CLASSES)
    steps = side * side // (8 * side)
    for number, method in enumerate(methods):
        degenerate = place == 2 and number == 0
        about = Row(name, model, "gap", method, target=str(predicted), target_rule="predicted", label=label, predicted=predicted)
        about = _with(about, probability=0.1 + 0.8 * ((place * 7) % 11) / 11, degenerate=degenerate, seed=0)
        values = torch.rand(len(metrics), generator=generator)
        for metric, value in zip(metrics, values.tolist(), strict=True):
            row = _with(about, metric=metric, value=100 * value, reason="the map is zero everywhere" if degenerate else None)
            if metric_registry.create(metric).metadata.kind == "curve":
                shares = [step / steps for step in range(steps + 1)]
                row = _with(row, shares=shares, curve=torch.rand(steps + 1, generator=generator).tolist())
            rows.append(row)
        raw = torch.zeros(1, cells, cells) if degenerate else torch.rand(1, cells, cells, generator=generator) - 0.3 * ("signed" in method)
        if number == 0:
            order = [predicted, (predicted + 1) % len(CLASSES), (predicted + 2) % len(CLASSES)]
            about = _with(about, classes=order, probabilities=[0.7, 0.2, 0.05])
        maps.append(with_map(about, raw, (side, side), whole=False))
    return rows + maps


def _with(row: Row, **values: Any) -> Row:
    from dataclasses import replace

    return replace(row, **values)
