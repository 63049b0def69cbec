"""Execution settings of a plan: tunes its forwards within the given memory, and measures how much shortcuts change the values."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xattn.data.preprocessing import Frame, pixels
from xattn.errors import InputError
from xattn.explainers.base import MethodComponent, RunsNetworkAgain
from xattn.explainers.maps import Maps, maps_of_trace, needs_of
from xattn.explainers.trace import Trace
from xattn.inference.memory import peak_bytes, shown
from xattn.inference.predictor import Predictor
from xattn.inference.settings import Tuning
from xattn.inference.tuning import Tuned, tuned
from xattn.metrics.base import Metric
from xattn.metrics.perturbations import forwards, ignores_masks
from xattn.metrics.statistics import mean_interval
from xattn.metrics.targets import Region
from xattn.models.asked_targets import target_rule
from xattn.models.classifier import Classifier
from xattn.models.target_rules import Given, TargetRule
from xattn.registry import Component
from xattn.study.pairs import Pairs
from xattn.study.plan import Execution, MetricComponent, Plan, key_of
from xattn.study.schema import Deviation
from xattn.study.scoring import perturbations_of, score

logger = logging.getLogger("xattn")

COMPARED_AT_LEAST, COMPARED_AT_MOST, COMPARED_OF = 8, 32, 20  # one image in so many is compared, within these bounds
SPREAD = 4  # number of batches from which they are taken, if there are as many
STUB_CHUNK = 4
PARTS_FORWARDS = 40  # approximately: 32 subsets of a bird's parts, and a few pieces of clutter
SMALL = 8


def _plan_execution(plan: Plan, classifier: Classifier, kept: Tuned | None = None) -> Execution:
    """Tunes one classifier for the work of the plan.

    Args:
        plan: the run's plan.
        classifier: one of the plan's classifiers.
        kept: the tuning of the rows that the run already holds, so that new rows are comparable with them.

    Raises:
        InputError: the given memory is too small for one image.
    """
    crops = _some_crops(plan, classifier)
    each = forwards_per_image(plan, classifier)
    room = None if plan.memory is None else plan.memory // 2
    if kept is None:
        found = tuned(
            classifier, plan.level, plan.tune, forwards=len(plan.images) * each, sample=None if crops is None else crops.images, memory=room
        )
        # A chunk larger than the forwards of one batch would be mostly padding.
        most = max(SMALL, plan.batch_size * each)
        found = replace(found, tuning=replace(found.tuning, chunk=min(found.tuning.chunk, most)))
    else:
        found = kept
    at_once = plan.batch_size
    if room is not None and crops is not None:
        needed = _bytes_per_image(plan, classifier, crops.part(slice(1)))
        if needed > room:
            raise InputError(
                f"{classifier.name} with these methods and metrics needs {shown(2 * needed)} for one image; got "
                f"memory={shown(2 * room)}. Allow more, or use fewer methods; guided methods keep the features of a whole forward."
            )
        at_once = min(at_once, room // needed)
    return Execution(found, at_once, _deviation(plan, classifier, found, at_once), plan.memory)


def executions(plan: Plan, kept: Mapping[str, Any], *, extended: bool) -> dict[str, Execution]:
    """Returns the execution settings of each classifier: those stored when the run began, or new ones.

    A run that is extended keeps its tuning; how many images fit into memory and how much shortcuts change values is measured again.

    Args:
        plan: the run's plan.
        kept: the content of `run.json`, by `key_of` of the classifiers.
        extended: whether methods or metrics are being added.
    """
    found: dict[str, Execution] = {}
    for classifier in plan.classifiers:
        key = key_of(classifier)
        before = Execution.of(kept[key]) if key in kept else None
        if before is None or before.memory != plan.memory:
            before = _plan_execution(plan, classifier)
        elif extended:
            tuned = replace(before.tuned, origin=kept[key].get("origin", before.tuned.origin))
            before = _plan_execution(plan, classifier, tuned)
        found[key] = before
        logger.info("%s: %s", key, before.tuned)
        for metric, deviation in (before.deviation or {}).items():
            logger.info("  %s differs from exact by %s", metric, deviation)
    return found


def seconds_expected(plan: Plan, classifier: Classifier) -> float | None:
    """Estimates the time of a classifier's forwards on this machine from one timed, untuned batch; None if no image can be read.

    The estimate does not include reading pictures, gradients and methods of other libraries.
    """
    crops = _some_crops(plan, classifier)
    if crops is None:
        return None
    predictor = Predictor(classifier)
    batch = crops.images.repeat(-(-predictor.chunk // len(crops)), 1, 1, 1)[: predictor.chunk]
    seconds = []
    for _ in range(3):  # the first warms up
        start = time.perf_counter()
        predictor(batch).cpu()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / len(batch) * forwards_per_image(plan, classifier) * len(plan.images)


def forwards_per_image(plan: Plan, classifier: Classifier) -> int:
    """Returns the number of forwards per image, without methods of other libraries."""
    methods, stage = plan.methods_of(classifier), plan.stage_of(classifier)
    channels = 0 if stage is None else stage.channels
    cells = 0 if stage is None else stage.size[0] * stage.size[1]
    asked = perturbations_of(plan.metrics)
    known = PARTS_FORWARDS if any(metric.instance.needs_parts for metric in plan.metrics) else 0
    once, each = (
        sum(forwards(one, classifier.input_size, cells) for one in asked if ignores_masks(one) == ignored) for ignored in (True, False)
    )
    again = len({one for metric in plan.metrics for one in metric.instance.explained})
    again += 2 * any(metric.instance.needs_rivals for metric in plan.metrics)
    own = [
        method.instance.forwards(channels, classifier.input_size) if isinstance(method.instance, RunsNetworkAgain) else 0
        for method in methods
    ]
    explained = sum(bool(method.metadata.needs) + more for method, more in zip(methods, own, strict=True))
    return 1 + once + known + each * len(methods) + sum(own) + again * explained


@dataclass(frozen=True)
class _Crops:
    """Images in pixel space, with the data that methods of stored maps need."""

    images: Tensor
    names: list[str]
    frames: list[Frame]

    def part(self, part: slice) -> _Crops:
        return _Crops(self.images[part], self.names[part], self.frames[part])

    def __len__(self) -> int:
        return len(self.names)


def _some_crops(plan: Plan, classifier: Classifier) -> _Crops | None:
    """Returns the first batch that can be read; None if none can."""
    return next(_crops(plan, classifier, range(-(-len(plan.source) // plan.batch_size))), None)


def _crops(plan: Plan, classifier: Classifier, numbers: Sequence[int]) -> Iterator[_Crops]:
    """Yields the readable images of some batches, batch by batch."""
    for number in numbers:
        for batch in plan.source.batches(classifier.preprocessing, plan.batch_size, workers=0, wanted=[number]):
            if len(batch.crops):
                yield _Crops(pixels(batch.crops, classifier.device), [image.name for image in batch.images], batch.frames)


def _sample(plan: Plan, classifier: Classifier, count: int) -> Iterator[_Crops]:
    """Yields images sampled evenly from the whole run, in pieces of at most one batch."""
    batches = -(-len(plan.source) // plan.batch_size)
    wanted = min(batches, max(SPREAD, -(-count // plan.batch_size)))
    spread = dict.fromkeys(place * batches // wanted for place in range(wanted))
    share, left = -(-count // wanted), count
    for crops in _crops(plan, classifier, [*spread, *(number for number in range(batches) if number not in spread)]):
        taken = crops.part(slice(min(share, left)))
        yield taken
        left -= len(taken)
        if left == 0:
            return


def _bytes_per_image(plan: Plan, classifier: Classifier, image: _Crops) -> int:
    """Estimates peak memory in bytes of one image's maps, masks, ranks and gradients, without the forwards of perturbed images."""
    stub = _Stub(classifier)

    def work() -> None:
        score(classifier, _maps(plan, classifier, image, plan.methods_of(classifier), stub), _of_maps(plan), stub)

    return peak_bytes(work)


class _Stub(Predictor):
    """A predictor that returns zeros without computing."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier, Tuning(STUB_CHUNK))
        with torch.no_grad():
            self.shape = classifier.predict(classifier.probe()).shape[1:]

    def __call__(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), *self.shape)


def _maps(
    plan: Plan,
    classifier: Classifier,
    crops: _Crops,
    methods: Sequence[MethodComponent],
    predictor: Predictor,
    like: Maps | None = None,
) -> Maps:
    """Computes the maps of some images for the targets of `like`, or for those of the plan's rule without labels."""
    rule = _without_labels(classifier, plan.rule_of(classifier)) if like is None else Given(like.target_rule, like.target)
    stage, needs = plan.stage_of(classifier), needs_of(methods)
    trace = Trace(
        classifier,
        crops.images,
        rule,
        stage=stage,
        needs=needs,
        predictor=predictor,
        seed=plan.seed,
        names=crops.names,
        frames=crops.frames,
    )
    return maps_of_trace(trace, methods, crops.names, crops.images)


def _of_maps(plan: Plan) -> list[MetricComponent]:
    """Returns the metrics that need neither regions nor parts, as those of the sampled pictures are not read."""
    return [metric for metric in plan.metrics if not (metric.instance.needs_regions or metric.instance.needs_parts)]


def _without_labels(classifier: Classifier, rule: TargetRule) -> TargetRule:
    if isinstance(rule, Pairs):
        return Given(rule.text, rule.any_target(classifier))
    if classifier.reader.dense:
        return Given(rule.text, Region(torch.zeros(1), torch.ones(1, 1), classifier.multi_label))  # all pixels, regardless of their class
    return target_rule(classifier, "predicted") if rule.needs_labels or rule.per_label else rule


def _deviation(plan: Plan, classifier: Classifier, found: Tuned, at_once: int) -> dict[str, Deviation] | None:
    """Measures by metric the difference from exact values on some images, over all methods; None without a shortcut."""
    methods: Sequence[MethodComponent] = plan.methods_of(classifier)
    metrics: Sequence[MetricComponent] = _of_maps(plan)
    short_methods = [method for method in methods if _exact(method) is not method]
    short_metrics = [metric for metric in metrics if _exact(metric) is not metric]
    is_rounded = found.level == "fast" and (found.tuning.precision != "own" or classifier.device.type == "cuda")
    if not (is_rounded or short_methods or short_metrics):
        return None
    if not is_rounded:
        methods = methods if short_metrics else short_methods
        metrics = metrics if short_methods else short_metrics
    quick, plain = Predictor(classifier, found.tuning, found.level), Predictor(classifier)
    exact_methods, exact_metrics = [_exact(method) for method in methods], [_exact(metric) for metric in metrics]
    of_images: dict[str, list[Tensor]] = {}  # by metric and piece, (methods, images)
    count = min(COMPARED_AT_MOST, max(COMPARED_AT_LEAST, len(plan.images) // COMPARED_OF))
    for batch in _sample(plan, classifier, count):
        for start in range(0, len(batch), at_once):
            crops = batch.part(slice(start, start + at_once))
            near = _maps(plan, classifier, crops, methods, quick)
            exact = _maps(plan, classifier, crops, exact_methods, plain, like=near)
            a = score(classifier, near, metrics, quick).values
            b = score(classifier, exact, exact_metrics, plain).values
            apart: dict[str, list[Tensor]] = {}
            for (key, one), other in zip(a.items(), b.values(), strict=True):
                apart.setdefault(key[1], []).append((torch.tensor(one) - torch.tensor(other)).abs())
            for metric, rows in apart.items():
                of_images.setdefault(metric, []).append(torch.stack(rows))
    deviations = {}
    for metric, pieces in of_images.items():
        values = torch.cat(pieces, dim=1)
        values = torch.where(torch.isfinite(values), values, torch.nan)
        if (interval := mean_interval(values.nanmean(dim=0), (0, math.inf))).n:
            most = float(values.nan_to_num(0).max())
            deviations[metric] = Deviation(interval.mean, interval.low, interval.high, most, interval.n)
    return deviations


def _exact(component: Component[Any, Any]) -> Component[Any, Any]:
    """The component without its shortcut; itself if it has none."""
    instance = component.instance
    if not isinstance(instance, RunsNetworkAgain | Metric) or instance.exact == instance:
        return component
    return replace(component, instance=instance.exact)
