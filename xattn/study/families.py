"""A batch explained and scored by several heads on one backbone: what they look at in common is run once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xattn.classifiers.bench import strays
from xattn.classifiers.classifier import Classifier
from xattn.classifiers.forwards import Level, Predictor, Tuning
from xattn.classifiers.stages import Stage
from xattn.classifiers.together import Together
from xattn.explainers.facts import MethodFacts
from xattn.explainers.maps import Maps, maps_of_trace, trace_of_batch
from xattn.explainers.trace import TargetRule, Trace
from xattn.metrics.facts import MetricFacts
from xattn.metrics.looks import Curve
from xattn.metrics.probability import Predict
from xattn.registry import Part
from xattn.study.scoring import Common, Scores, score

PROBES = 3


@dataclass(frozen=True)
class Member:
    """One head's side of a batch.

    Attributes:
        classifier: backbone and head.
        methods: that it can take.
        targets: `(B,)`; None: its own prediction.
        rule: that the targets follow.
        labels: of the images, for the rows.
        stage: where its features are taken.
        predictor: of changed images.
    """

    classifier: Classifier
    methods: Sequence[Part[MethodFacts]]
    targets: Tensor | None
    rule: TargetRule
    labels: Sequence[int | None]
    stage: Stage
    predictor: Predictor

    def some(self, part: slice) -> Member:
        """The same of some of the images."""
        return replace(self, targets=None if self.targets is None else self.targets[part], labels=self.labels[part])


def joint_of(classifiers: Sequence[Classifier], tuning: Tuning, level: Level) -> Callable[[Tensor], list[Tensor]] | None:
    """What gives the logits of all heads from one pass; None where it would not give what each gives alone."""
    together = Together(classifiers)
    noise = torch.rand((PROBES, 3, *classifiers[0].input_size), generator=torch.Generator().manual_seed(1)).to(classifiers[0].device)
    try:
        found = together.split(Predictor(together, Tuning(PROBES))(noise))
        for classifier, logits in zip(classifiers, found, strict=True):
            if strays(logits, classifier.predict(noise)) is not None:
                return None
        predictor = Predictor(together, tuning, level)
        predictor(noise[:1].expand(tuning.chunk, -1, -1, -1))
    except Exception:  # what follows the pooling may not take a batch of vectors, and says so in its own way: each head runs alone
        return None

    def joint(images: Tensor) -> list[Tensor]:
        return together.split(predictor(images))

    return joint


def explained(
    family: Sequence[Member],
    images: Tensor,
    names: Sequence[str],
    seed: int,
    joint: Callable[[Tensor], list[Tensor]] | None,
) -> list[Maps]:
    """The maps of each head."""
    traces = [trace_of_batch(each.classifier, images, each.methods, each.targets, each.stage, each.predictor, seed) for each in family]
    alike = all(traced.features.shape == traces[0].features.shape and torch.equal(traced.features, traces[0].features) for traced in traces)
    if joint is None or not alike:
        return [maps_of_trace(traced, each.methods, each.rule, names, images) for traced, each in zip(traces, family, strict=True)]
    together: list[Trace] = []
    together += (replace(traced, family=together, joint=joint) for traced in traces)
    try:
        return [maps_of_trace(traced, each.methods, each.rule, names, images) for traced, each in zip(together, family, strict=True)]
    finally:
        together.clear()  # traces that know each other would hold their graphs until the collector comes


def scored(
    family: Sequence[Member],
    maps: Sequence[Maps],
    metrics: Sequence[Part[MetricFacts]],
    joint: Callable[[Tensor], list[Tensor]] | None,
) -> list[Scores]:
    """The values of each head; masks that all have in common are laid on the images once."""
    methods = [] if joint is None else _common(maps, metrics)
    if joint is None or not methods:
        return [score(each.classifier, found, metrics, each.predictor) for each, found in zip(family, maps, strict=True)]
    relay = _Relay(joint, len(family))
    commons = [Common(methods, relay.of(number), family[0].predictor.chunk) for number in range(len(family))]
    return [
        score(each.classifier, found, metrics, each.predictor, common) for each, found, common in zip(family, maps, commons, strict=True)
    ]


def _common(maps: Sequence[Maps], metrics: Sequence[Part[MetricFacts]]) -> Collection[str]:
    """Methods whose masks are the same for all heads; none where a curve goes on by what each head says."""
    looks = [look for part in metrics if "masks" in part.facts.takes for look in part.run.looks]  # type: ignore[attr-defined]
    if any(isinstance(look, Curve) and look.tolerance is not None for look in looks):
        return []

    def same(a: dict[str, Tensor], b: dict[str, Tensor], method: str) -> bool:
        return method in b and torch.equal(a[method], b[method])

    def alike(method: str) -> bool:
        first = maps[0]
        return all(same(first.masks, other.masks, method) and same(first.cells, other.cells, method) for other in maps)

    return [method for method in maps[0] if alike(method)]


class _Relay:
    """Runs the images for the first head, and gives the others what was said of them, chunk by chunk in the same order."""

    def __init__(self, joint: Callable[[Tensor], list[Tensor]], count: int) -> None:
        self.joint = joint
        self.left: list[deque[Tensor]] = [deque() for _ in range(count)]

    def of(self, number: int) -> Predict:
        def first(images: Tensor) -> Tensor:
            own, *others = self.joint(images)
            for queue, logits in zip(self.left[1:], others, strict=True):
                queue.append(logits)
            return own

        return first if number == 0 else lambda _images: self.left[number].popleft()
