"""From maps to rows: every metric of every method on one batch, from one stream of forwards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from xattn.classifiers.classifier import Classifier
from xattn.classifiers.forwards import Predictor
from xattn.errors import InputError
from xattn.explainers.maps import Images, Maps
from xattn.memory import kept_pages
from xattn.metrics.facts import MetricFacts, metrics
from xattn.metrics.perturbation import Seen, look_at
from xattn.metrics.probability import Predict, probability
from xattn.registry import Part

COLUMNS = (
    "image",
    "model",
    "head",
    "method",
    "metric",
    "value",
    "target",
    "target_rule",
    "label",
    "predicted",
    "probability",
    "degenerate",
    "seed",
    "error",
)


@dataclass(frozen=True)
class Scores:
    """Values of one batch, on the CPU.

    Attributes:
        values: by method and metric, one an image.
        predicted: class index an image.
        probability: of the target, unmasked, an image.
        errors: what is wrong with an image, or None.
    """

    values: dict[tuple[str, str], list[float]]
    predicted: list[int]
    probability: list[float]
    errors: list[str | None]


@dataclass(frozen=True)
class Common:
    """Methods whose masks are looked at in one stream.

    Attributes:
        methods: by their names in the maps.
        predict: images in pixel space → logits.
        chunk: images a forward.
    """

    methods: Collection[str]
    predict: Predict
    chunk: int


def run_key(name: str, head: str) -> str:
    """What `run.json` calls a classifier."""
    return f"{name} · {head}"


def key_of(classifier: Classifier) -> str:
    """What a study and its `run.json` call a classifier."""
    return run_key(classifier.name, classifier.head_name)


def metric_parts(specs: Sequence[str]) -> list[Part[MetricFacts]]:
    """The metrics that specs name, each once."""
    if isinstance(specs, str):
        raise InputError(f"metrics are a list: write metrics=['{specs}'].")
    return list({part.spec: part for part in (metrics.part(spec) for spec in specs)}.values())


def score(
    classifier: Classifier,
    maps: Maps,
    parts: Sequence[Part[MetricFacts]],
    predictor: Predictor,
    common: Common | None = None,
) -> Scores:
    """Every metric of every method's maps, on the maps' own targets; the unmasked images are looked at once for all.

    Args:
        classifier: whose maps.
        maps: of a batch.
        parts: the metrics.
        predictor: of changed images.
        common: what several heads on one backbone have in common; None where there is none.
    """
    looks = list(dict.fromkeys(look for part in parts if "masks" in part.facts.takes for look in part.run.looks))  # type: ignore[attr-defined]
    original = probability(maps.logits, maps.targets, multi_label=classifier.multi_label)
    finite = torch.isfinite(original.p)
    changed_finite = torch.ones_like(finite)
    seen: dict[str, Seen] = {}
    alone = Common([method for method in maps if common is None or method not in common.methods], predictor, predictor.chunk)
    for stream in (alone, common) if looks else ():
        if stream is not None and stream.methods:
            seen |= look_at(
                stream.predict,
                maps.images,
                maps.targets,
                {method: maps.masks[method] for method in stream.methods},
                looks,
                cells={method: maps.cells[method] for method in stream.methods},
                mean=classifier.mean,
                multi_label=classifier.multi_label,
                chunk=stream.chunk,
            )
    for found in seen.values():
        changed_finite = changed_finite & found.finite().to(finite.device)
    columns: dict[tuple[str, str], Tensor] = {}
    for method in maps:
        for part in parts:
            value = part.run.value(seen[method]) if "masks" in part.facts.takes else part.run.of_maps(maps.raw[method])  # type: ignore[attr-defined]
            columns[method, part.spec] = value
    table = torch.stack([column.to(original.p.device) for column in columns.values()]).cpu().tolist() if columns else []
    errors = [
        None if whole and changed else "the network gave a non-finite value" + ("" if not whole else " on a changed image")
        for whole, changed in zip(finite.tolist(), changed_finite.tolist(), strict=True)
    ]
    return Scores(dict(zip(columns, table, strict=True)), maps.logits.argmax(dim=1).tolist(), original.p.tolist(), errors)


def evaluate(
    classifier: Classifier,
    images: Images,
    maps: Maps,
    metrics: Sequence[str] = ("average-drop", "average-gain", "average-increase", "insertion", "deletion", "sparsity"),
    *,
    batch_size: int = 8,
    predictor: Predictor | None = None,
) -> pd.DataFrame:
    """Scores maps on their own targets.

    Args:
        classifier: from `xattn.load` or `xattn.attach`.
        images: what was explained: `(B, 3, H, W)` in pixel space, or the files, which `maps` holds decoded.
        maps: what `explain` gave.
        metrics: names with settings, `name[:key=value,…]`.
        batch_size: images scored at once.
        predictor: of changed images, from `xattn.classifiers.fastest`; the default one, unmeasured, if None.

    Returns:
        A row a value, with the columns of a run's `scores.csv`.
    """
    if not isinstance(maps, Maps):
        raise InputError("evaluate scores what explain gave; masks of your own go to the functions of xattn.metrics.")
    images = images.to(maps.images.device) if isinstance(images, Tensor) else maps.images
    if images.shape != maps.images.shape:
        raise InputError(
            f"maps are of images {tuple(maps.images.shape)}; got images {tuple(images.shape)}. Pass the images that were explained."
        )
    parts = metric_parts(metrics)
    runs = predictor or Predictor(classifier)
    frames = []
    with kept_pages():
        for start in range(0, len(images), batch_size):
            piece = maps.part(start, start + batch_size, images)
            scores = score(classifier, piece, parts, runs)
            frames.append(pd.DataFrame(rows_of(classifier, piece, scores, [None] * len(piece.names), maps.seed), columns=list(COLUMNS)))
    rows = pd.concat(frames, ignore_index=True)
    return rows.astype({"label": "Int64", "target": "Int64", "predicted": "Int64"})


def rows_of(classifier: Classifier, maps: Maps, scores: Scores, labels: Sequence[int | None], seed: int) -> list[tuple[object, ...]]:
    """Tidy rows of a batch, image by image; an image with an error has one."""
    targets = maps.targets.tolist()
    flags = {method: found.tolist() for method, found in maps.degenerate.items()}
    model, head = classifier.name, classifier.head_name
    rows: list[tuple[object, ...]] = []
    for i, name in enumerate(maps.names):
        if scores.errors[i] is not None:
            rows.append((name, model, head, None, None, None, None, maps.target_rule, labels[i], None, None, None, seed, scores.errors[i]))
            continue
        about = (targets[i], maps.target_rule, labels[i], scores.predicted[i], scores.probability[i])
        for (method, metric), values in scores.values.items():
            rows.append((name, model, head, method, metric, values[i], *about, flags[method][i], seed, None))
    return rows
