"""Scores maps: every metric of every method on one batch, with shared forwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.explainers.base import FILES, MethodComponent, methods
from xattn.explainers.maps import Maps, explainer_of
from xattn.inference.predictor import Predictor
from xattn.metrics.base import CurveMetric, Evidence, refuse_without_probability
from xattn.metrics.parts_base import PartsMetric
from xattn.metrics.perturbations import Curve, Kept, Noised, Perturbation, Removed, noised_images
from xattn.metrics.probability import widened
from xattn.metrics.responses import Responses, evaluate_for_all, shown_share
from xattn.metrics.seeds import content_seeds
from xattn.metrics.stream import Forwards
from xattn.metrics.targets import ClassTarget, Contrast
from xattn.models.classifier import Classifier
from xattn.overlays import is_signed
from xattn.study.known_parts import PartsOfBatch
from xattn.study.plan import MetricComponent
from xattn.study.regions import Regions
from xattn.study.schema import Row, with_map

NO_CONTRAST = "the target is a class less itself in this picture, and 0 whatever the network gives"
MOST_PROBABLE = 5  # number of classes that a run keeps per image

ByMethod = Mapping[str, Responses]


@dataclass(frozen=True)
class Scores:
    """Scores of one batch, on the CPU.

    Attributes:
        values: by method and metric, one per image.
        curves: by method and metric, shares and probabilities along the metric's curve, one pair per image.
        reasons: by metric, why an image has no value of it, or None.
        undefined: by metric, why a map has no value in an image that can have one.
        predicted: class index or value per image; None if the output is not one row of classes per image.
        probability: probability of the target for the unmasked image, per image; None if the target has none.
        errors: the error of each image, or None.
    """

    values: dict[tuple[str, str], list[float]]
    predicted: list[float | None]
    probability: list[float | None]
    errors: list[str | None]
    curves: dict[tuple[str, str], list[tuple[list[float], list[float]]]] = field(default_factory=dict)
    reasons: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)


def perturbations_of(metrics: Sequence[MetricComponent]) -> list[Perturbation]:
    """Returns the perturbations that the metrics need, each once."""
    return list(dict.fromkeys(asked for metric in metrics for asked in metric.instance.perturbations))


def score_group(
    classifiers: Sequence[Classifier],
    maps: Sequence[Maps],
    metrics: Sequence[MetricComponent],
    predictors: Sequence[Predictor],
    together: Forwards | None,
    regions: Sequence[Regions | None] | None = None,
    parts: Sequence[PartsOfBatch | None] | None = None,
) -> list[Scores]:
    """Scores the maps of several heads on one backbone; masks that all heads share are applied to the images only once.

    Args:
        classifiers: backbone and head of each.
        maps: maps of each classifier.
        metrics: to compute.
        predictors: one per classifier, for perturbed images.
        together: runs all heads at once; None: each head runs alone.
        regions: regions of each classifier's targets, if a metric needs them.
        parts: parts of the images, for each classifier, if a metric needs them.
    """
    asked = perturbations_of(metrics)
    shared = [] if together is None or not asked else _common_methods(maps, asked)
    found: Sequence[ByMethod] = [{} for _ in maps]
    if shared and together is not None:
        first = maps[0]
        found = evaluate_for_all(
            together,
            first.images,
            [each.target for each in maps],
            {method: first.masks[method] for method in shared},
            asked,
            low_res_masks={method: first.low_res_masks[method] for method in shared},
            mean=classifiers[0].mean,
        )
    nothing = [None] * len(maps)
    rows = zip(classifiers, maps, predictors, found, regions or nothing, parts or nothing, strict=True)
    return [score(classifier, each, metrics, *more) for classifier, each, *more in rows]


def _common_methods(maps: Sequence[Maps], asked: Sequence[Perturbation]) -> list[str]:
    """Returns the methods whose masks are the same for all heads; none if a curve's next steps depend on each head's responses."""
    if any(isinstance(perturbation, Curve) and perturbation.tolerance is not None for perturbation in asked):
        return []
    first = maps[0]

    def same(a: dict[str, Tensor], b: dict[str, Tensor], method: str) -> bool:
        return method in b and torch.equal(a[method], b[method])

    return [
        method
        for method in first
        if all(same(first.masks, other.masks, method) and same(first.low_res_masks, other.low_res_masks, method) for other in maps)
    ]


def score(
    classifier: Classifier,
    maps: Maps,
    metrics: Sequence[MetricComponent],
    predictor: Predictor,
    responses: ByMethod | None = None,
    regions: Regions | None = None,
    parts: PartsOfBatch | None = None,
) -> Scores:
    """Computes every metric of every method's maps, on the maps' own targets; the unmasked images are run once for all metrics.

    Args:
        classifier: the explained classifier.
        maps: maps of a batch.
        metrics: metrics to compute.
        predictor: predictor for perturbed images.
        responses: responses to methods that were already evaluated.
        regions: regions of the maps' targets, if a metric needs them.
        parts: parts of the images, for the maps' targets, if a metric needs them.

    Raises:
        UnsupportedError: a metric needs a probability, and the target has none.
    """
    target = maps.target
    for metric in metrics:
        refuse_without_probability(metric.spec, metric.instance, target.has_probability, target.kind)
    asked, known = perturbations_of(metrics), dict(responses or {})
    left = [method for method in maps if method not in known]
    if left:
        known |= evaluate_for_all(
            predictor.forwards,
            maps.images,
            [target],
            {method: maps.masks[method] for method in left},
            asked,
            low_res_masks={method: maps.low_res_masks[method] for method in left},
            mean=classifier.mean,
        )[0]
    evidence = {method: _evidence(classifier, maps, method, metrics, predictor, known[method], regions, parts) for method in maps}
    columns = {(method, metric.spec): metric.instance.value(evidence[method]) for method in maps for metric in metrics}
    original = target.probability(maps.output).p if target.has_probability else None
    whole = torch.isfinite(original if original is not None else target.score(maps.output))
    changed = torch.ones_like(whole)
    for found in known.values():
        finite = found.finite()
        changed = changed if finite is None else changed & finite.to(changed.device)
    cancelled = (target.cancels() if isinstance(target, Contrast) else torch.zeros(1, dtype=torch.bool)).to(whole.device).expand_as(whole)
    stacked = torch.stack([column.to(whole.device).masked_fill(cancelled, torch.nan) for column in columns.values()]) if columns else None
    table = [] if stacked is None else stacked.cpu().tolist()
    errors = [
        None if fine and stays else "the network gave a non-finite value" + ("" if not fine else " on a changed image")
        for fine, stays in zip(whole.tolist(), changed.tolist(), strict=True)
    ]
    predicted = target.predicted(maps.output)
    return Scores(
        dict(zip(columns, table, strict=True)),
        [None] * len(whole) if predicted is None else predicted.tolist(),
        [None] * len(whole) if original is None else original.tolist(),
        errors,
        _curves(metrics, known),
        _reasons(metrics, regions, parts, cancelled.tolist()),
        {metric.spec: f"undefined: {metric.instance.undefined}" for metric in metrics},
    )


def _reasons(
    metrics: Sequence[MetricComponent], regions: Regions | None, parts: PartsOfBatch | None, cancelled: Sequence[bool]
) -> dict[str, Sequence[str | None]]:
    """Returns by metric why an image cannot have a value of it, regardless of the map."""
    found: dict[str, Sequence[str | None]] = {}
    if any(cancelled):
        found = {metric.spec: [NO_CONTRAST if each else None for each in cancelled] for metric in metrics}
    for metric in metrics:
        if regions is not None and metric.instance.needs_regions:
            found[metric.spec] = _first_of(found.get(metric.spec), regions.reasons)
        if parts is not None and isinstance(metric.instance, PartsMetric):
            found[metric.spec] = _first_of(found.get(metric.spec), parts.reasons_of(metric.instance))
    return found


def _first_of(some: Sequence[str | None] | None, others: Sequence[str | None]) -> Sequence[str | None]:
    return others if some is None else [one or other for one, other in zip(some, others, strict=True)]


def _evidence(
    classifier: Classifier,
    maps: Maps,
    method: str,
    metrics: Sequence[MetricComponent],
    predictor: Predictor,
    responses: Responses,
    regions: Regions | None,
    parts: PartsOfBatch | None,
) -> Evidence:
    is_ours = not method.startswith(f"{FILES}:")
    head_maps = _head_maps(maps.head_maps.weighted, methods.create(method)) if maps.head_maps is not None and is_ours else None
    size = (maps.images.shape[2], maps.images.shape[3])
    explanations: dict[Perturbation, Tensor] = {}
    for perturbation in dict.fromkeys(asked for metric in metrics for asked in metric.instance.explained):
        explain = explainer_of(classifier, maps, methods.create(method), predictor)
        if isinstance(perturbation, Noised):
            explanations[perturbation] = explain(noised_images(maps.images, perturbation, content_seeds(maps.images, maps.seed)))
            continue
        if not isinstance(perturbation, Kept | Removed):
            raise InputError(f"images can be explained again where a mask is kept or removed, or with noise; got {perturbation}.")
        shown = shown_share(perturbation, maps.masks[method], maps.low_res_masks[method], size)
        explanations[perturbation] = explain(maps.images * shown.to(maps.images)[:, None])
    rivals = None
    if parts is not None and parts.known.rivals is not None and any(metric.instance.needs_rivals for metric in metrics):
        rivals = _of_rivals(classifier, maps, methods.create(method), predictor, parts.known.rivals)
    raw = maps.raw[method].relu() if is_signed(method) else maps.raw[method]
    where = None if regions is None else regions.masks
    known = None if parts is None else parts.known
    return Evidence(maps.masks[method], raw, head_maps, responses, explanations, where, maps.raw[method], known, rivals)


def _of_rivals(classifier: Classifier, maps: Maps, method: MethodComponent, predictor: Predictor, rivals: Tensor) -> Tensor:
    """Computes a method's masks for two other classes per image, `(B, 2, H, W)`; images without such rivals use arbitrary classes."""
    found = []
    for classes in rivals.clamp(min=0).to(maps.images.device).unbind(dim=1):
        other = replace(maps, target=ClassTarget(classes, classifier.multi_label))
        found.append(explainer_of(classifier, other, method, predictor)(maps.images))
    return torch.stack(found, dim=1)


def _head_maps(several: Tensor, method: MethodComponent) -> Tensor | None:
    """Returns the maps that a method shows of a head's maps `(B, N, h, w)`: all, or the one of its rank; None if it shows none."""
    if not method.metadata.shows_head:
        return None
    rank = getattr(method.instance, "rank", "mean")
    return several[:, rank - 1, None] if isinstance(rank, int) else several


def curve_owners(metrics: Sequence[MetricComponent]) -> dict[Curve, str]:
    """Returns for each curve the first metric that follows it; the curve is stored with that metric."""
    owners: dict[Curve, str] = {}
    for metric in metrics:
        if isinstance(metric.instance, CurveMetric):
            owners.setdefault(metric.instance.curve, metric.spec)
    return owners


def _curves(metrics: Sequence[MetricComponent], known: ByMethod) -> dict[tuple[str, str], list[tuple[list[float], list[float]]]]:
    """Returns the curves that metrics follow, each stored with the first metric that follows it."""
    owners = curve_owners(metrics)
    found = {}
    for method, responses in known.items():
        for curve, spec in owners.items():
            response = responses.curve(curve)
            found[method, spec] = list(zip(response.shares.tolist(), response.p.tolist(), strict=True))
    return found


def rows_of(classifier: Classifier, maps: Maps, scores: Scores, labels: Sequence[float | None]) -> list[Row]:
    """Builds the tidy rows of a batch, image by image; an image with an error has a single row."""
    targets = maps.target.names()
    flags = {method: found.tolist() for method, found in maps.degenerate.items()}
    rows: list[Row] = []
    absent = [None] * len(maps.names)
    for i, name in enumerate(maps.names):
        about = Row(name, classifier.name, classifier.head_name, target_rule=maps.target_rule, label=labels[i], seed=maps.seed)
        if scores.errors[i] is not None:
            rows.append(replace(about, error=scores.errors[i]))
            continue
        about = replace(about, target=targets[i], predicted=scores.predicted[i], probability=scores.probability[i])
        for (method, metric), values in scores.values.items():
            row = replace(about, method=method, metric=metric, value=values[i], degenerate=flags[method][i])
            reason = scores.reasons.get(metric, absent)[i] or maps.reasons[method][i]
            row = replace(row, reason=reason or (scores.undefined[metric] if math.isnan(values[i]) else None))
            kept = scores.curves.get((method, metric))
            rows.append(row if kept is None else replace(row, shares=kept[i][0], curve=kept[i][1]))
    return rows


def map_rows_of(classifier: Classifier, maps: Maps, scores: Scores, labels: Sequence[float | None], *, whole: bool) -> list[Row]:
    """Builds rows with the raw maps of each method, and with the maps of a head that has several.

    Args:
        classifier: the classifier of the maps.
        maps: maps of a batch.
        scores: scores of the batch.
        labels: labels of the images.
        whole: store maps of the image's size in full.
    """
    targets, size = maps.target.names(), (maps.images.shape[2], maps.images.shape[3])
    first = _most_probable(classifier, maps)
    found: dict[str | None, Tensor] = {method: raw[:, None].cpu() for method, raw in maps.raw.items()}
    if maps.ranked is not None:
        found[None] = maps.ranked.cpu()
    rows: list[Row] = []
    for number, (method, kept) in enumerate(found.items()):
        flags = [False] * len(kept) if method is None else maps.degenerate[method].tolist()
        for i, name in enumerate(maps.names):
            if scores.errors[i] is None:
                about = Row(
                    name,
                    classifier.name,
                    classifier.head_name,
                    method,
                    target=targets[i],
                    target_rule=maps.target_rule,
                    label=labels[i],
                    predicted=scores.predicted[i],
                    probability=scores.probability[i],
                    degenerate=flags[i],
                    seed=maps.seed,
                )
                if first is not None and number == 0:
                    about = replace(about, classes=first.indices[i].tolist(), probabilities=first.values[i].tolist())
                if maps.boxes is not None and maps.alpha is not None and number == 0:
                    about = replace(about, boxes=maps.boxes[i].flatten().tolist(), alpha=maps.alpha[i].mean(dim=0).tolist())
                rows.append(with_map(about, kept[i], size, whole=whole))
    return rows


def _most_probable(classifier: Classifier, maps: Maps) -> torch.return_types.topk | None:
    """Returns the most probable classes of each image; None if the output is not one row of classes."""
    if classifier.regression or not isinstance(maps.target, ClassTarget | Contrast):
        return None
    return most_probable(classifier, maps.output)


def most_probable(classifier: Classifier, output: Tensor) -> torch.return_types.topk:
    """Returns probabilities and indices of each image's most probable classes, `(B, 5)`, on the CPU.

    Args:
        classifier: the classifier of the output.
        output: logits `(B, K)`.
    """
    wide = widened(output)
    probabilities = wide.sigmoid() if classifier.multi_label else wide.softmax(dim=1)
    return probabilities.cpu().topk(min(MOST_PROBABLE, wide.shape[1]), dim=1)
