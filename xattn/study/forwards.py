"""How a study's forwards are run: tuned for its work once, in the memory that it is given, and how far short cuts lead off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xattn.classifiers.classifier import Classifier
from xattn.classifiers.forwards import Predictor, Tuning
from xattn.classifiers.preprocessing import pixels
from xattn.classifiers.tuning import Tuned, tuned
from xattn.errors import InputError
from xattn.explainers.facts import MethodFacts
from xattn.explainers.maps import Maps, maps_of_batch, resolve_targets
from xattn.memory import peak_bytes, shown
from xattn.metrics.looks import passes
from xattn.registry import Part
from xattn.study.scoring import score

if TYPE_CHECKING:
    from xattn.study.study import Study

COMPARED_AT_MOST, COMPARED_OF = 8, 50
STUB_CHUNK = 4
SMALL = 8


@dataclass(frozen=True)
class Forwards:
    """What was settled for one classifier of a study; `run.json` keeps it, and a run that goes on uses it again.

    Attributes:
        tuned: how its forwards are run.
        at_once: images of a batch that are explained and scored together.
        off: how far the values lie from those of level exact without short cuts, by metric, as mean and largest difference on a
            sample; None where nothing is cut short.
        memory: bytes that it was settled for; None: most of what was free.
    """

    tuned: Tuned
    at_once: int
    off: dict[str, tuple[float, float]] | None = None
    memory: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**self.tuned.as_dict(), "images_at_once": self.at_once, "off": self.off, "memory": self.memory}

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Forwards:
        off = None if kept["off"] is None else {metric: (float(mean), float(most)) for metric, (mean, most) in kept["off"].items()}
        return cls(Tuned.of(kept, "as the run began"), int(kept["images_at_once"]), off, kept["memory"])


def settle(study: Study, classifier: Classifier) -> Forwards:
    """Tunes one classifier for what the study asks of it.

    Raises:
        InputError: the memory given is too little for one image.
    """
    crops = _some_crops(study, classifier)
    forwards = len(study.images) * passes_an_image(study, classifier)
    room = None if study.memory is None else study.memory // 2
    found = tuned(classifier, study.level, study.tune, forwards=forwards, sample=crops, memory=room)
    # A chunk larger than what a batch has to run would be mostly padding.
    most = max(SMALL, study.batch_size * passes_an_image(study, classifier))
    found = replace(found, tuning=replace(found.tuning, chunk=min(found.tuning.chunk, most)))
    at_once = study.batch_size
    if room is not None and crops is not None:
        each = _bytes_an_image(study, classifier, crops[:1])
        if each > room:
            raise InputError(
                f"{classifier.name} with these methods and metrics needs {shown(2 * each)} for one image; memory={shown(2 * room)} came. "
                "Allow more, or take fewer methods; guided methods keep a whole forward's features."
            )
        at_once = min(at_once, room // each)
    return Forwards(found, at_once, None if crops is None else _off(study, classifier, found, crops), study.memory)


def passes_an_image(study: Study, classifier: Classifier) -> int:
    """Forwards that an image costs, methods of other libraries apart."""
    looks = {look for part in study.metrics if "masks" in part.facts.takes for look in part.run.looks}  # type: ignore[attr-defined]
    methods = study.methods_of(classifier)
    each = sum(passes(look, classifier.input_size) for look in looks)
    own: int = sum(part.run.forwards(study.stage_of(classifier).channels) for part in methods if hasattr(part.run, "forwards"))
    return 1 + each * len(methods) + own


def _some_crops(study: Study, classifier: Classifier) -> Tensor | None:
    """The first batch that can be read, in pixel space; None where none can."""
    for number in range(-(-len(study.source) // study.batch_size)):
        for batch in study.source.batches(classifier.preprocessing, study.batch_size, workers=0, wanted=[number]):
            if len(batch.crops):
                return pixels(batch.crops, classifier.device)
    return None


def _bytes_an_image(study: Study, classifier: Classifier, image: Tensor) -> int:
    """What an image's maps, masks, ranks and gradients hold at the peak, forwards of changed images apart."""
    stub = _Stub(classifier)

    def work() -> None:
        score(classifier, _maps(study, classifier, image, study.methods_of(classifier), stub), study.metrics, stub)

    return peak_bytes(work)


class _Stub(Predictor):
    """Logits at once, of nothing."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier, Tuning(STUB_CHUNK))

    def __call__(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), self.classifier.class_count)


def _maps(
    study: Study,
    classifier: Classifier,
    images: Tensor,
    methods: Sequence[Part[MethodFacts]],
    predictor: Predictor,
    like: Maps | None = None,
) -> Maps:
    target = study.target if study.target != "label" else "predicted"
    targets, rule = resolve_targets(classifier, target if like is None else like.targets, None, len(images))
    names = [str(number) for number in range(len(images))]
    return maps_of_batch(classifier, images, methods, targets, rule, names, study.stage_of(classifier), predictor, study.seed)


def _off(study: Study, classifier: Classifier, found: Tuned, crops: Tensor) -> dict[str, tuple[float, float]] | None:
    """By metric, the mean and the largest difference from level exact without short cuts, on some images, over all methods."""
    methods, metrics = study.methods_of(classifier), study.metrics
    cut = [part for part in methods if _exact(part) is not part], [part for part in metrics if _exact(part) is not part]
    is_rounded = found.level == "fast" and (found.tuning.precision != "own" or classifier.device.type == "cuda")
    if not is_rounded and not any(cut):
        return None
    if not is_rounded:
        methods = cut[0] if not cut[1] else methods
        metrics = cut[1] if not cut[0] else metrics
    images = crops[: min(COMPARED_AT_MOST, max(1, len(study.images) // COMPARED_OF))]
    quick = Predictor(classifier, found.tuning, found.level)
    plain = Predictor(classifier)
    near = _maps(study, classifier, images, methods, quick)
    true = _maps(study, classifier, images, [_exact(part) for part in methods], plain, like=near)
    a = score(classifier, near, metrics, quick).values
    b = score(classifier, true, [_exact(part) for part in metrics], plain).values
    off: dict[str, list[Tensor]] = {}
    for (key, one), other in zip(a.items(), b.values(), strict=True):
        difference = (torch.tensor(one) - torch.tensor(other)).abs()
        off.setdefault(key[1], []).append(difference[torch.isfinite(difference)])
    together = {metric: torch.cat(found) for metric, found in off.items()}
    return {metric: (float(values.mean()), float(values.max())) for metric, values in together.items() if len(values)}


def _exact(part: Part[Any]) -> Part[Any]:
    """The same without its short cut."""
    exact = getattr(part.run, "exact", part.run)
    return part if exact == part.run else Part(part.spec, exact, part.facts)
