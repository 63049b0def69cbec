"""Known parts of a run's pictures: finds the SketchBirds scene of each, and runs the network on renders without its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from xattn.birds import CLASSES, Scene, scene_of
from xattn.birds.ground_truth import known_parts, seen_by
from xattn.data.images import ImageSource
from xattn.data.listing import NamedImage
from xattn.errors import XattnError
from xattn.explainers.maps import Maps
from xattn.inference.predictor import Predictor
from xattn.metrics.known_parts import KnownParts
from xattn.metrics.parts_base import PartsMetric
from xattn.metrics.targets import ClassTarget
from xattn.models.classifier import Classifier
from xattn.study.schema import NO_PARTS

NO_SCENE = f"{NO_PARTS}the picture is no SketchBird, and its parts are not known"
NOT_DRAWN = f"{NO_PARTS}the picture is not what its scene of SketchBirds shows, so that its parts cannot be removed (a transform?)"
NO_CLASS = f"{NO_PARTS}the effects of parts are those on a class, and the target is none"
NOT_FINITE = f"{NO_PARTS}the network's output for the picture without some of its parts is not finite"
SEVERAL = f"{NO_PARTS}the network gives several labels, and its answer is no single class"
SAME = 1.5 / 255  # largest difference between pixels of the same picture


@dataclass(frozen=True)
class PartsOfBatch:
    """Known parts of the birds in a batch's pictures.

    Attributes:
        known: the parts of all pictures; a picture whose parts are unknown has none.
        reasons: why a picture's parts are unknown; None if they are known.
    """

    known: KnownParts
    reasons: tuple[str | None, ...]

    def part(self, part: slice) -> PartsOfBatch:
        """Returns the parts of a slice of the pictures."""
        return PartsOfBatch(self.known.part(part), self.reasons[part])

    def reasons_of(self, metric: PartsMetric) -> tuple[str | None, ...]:
        """Returns why each picture cannot have a value of a metric, regardless of the map; None where it can."""
        if not bool(self.known.known.any()):
            return self.reasons
        own = metric.reasons(self.known)
        return tuple(known or (None if lacks is None else f"{NO_PARTS}{lacks}") for known, lacks in zip(self.reasons, own, strict=True))


def scene_in(source: ImageSource, image: NamedImage) -> Scene | None:
    """Returns the scene that a picture shows: of an exported file, or of a data set with a method `scene(index)`; None if there is none."""
    if image.path is not None:
        try:
            return scene_of(image.path)
        except (OSError, ValueError, TypeError, SyntaxError, XattnError):  # unreadable files are reported elsewhere
            return None
    scene = getattr(source.dataset, "scene", None)
    found = scene(image.index) if callable(scene) and image.index is not None else None
    return found if isinstance(found, Scene) else None


def parts_of(pictures: Sequence[Scene | None], classifier: Classifier, predictor: Predictor, maps: Maps) -> PartsOfBatch:
    """Computes the effects of the parts of a batch's pictures on a network's output for the maps' targets.

    Args:
        pictures: the scene of each picture, from `scene_in`.
        classifier: the explained network.
        predictor: predictor of that network, for the renders.
        maps: maps of the batch.
    """
    target, count = maps.target, len(maps.names)
    is_class = isinstance(target, ClassTarget) and maps.output.dim() == 2
    if not isinstance(target, ClassTarget) or not is_class or target.multi_label:
        none = known_parts(predictor, [None] * count, [0] * count)
        return PartsOfBatch(_at_size(none, maps), (SEVERAL if is_class else NO_CLASS,) * count)
    scenes: list[Scene | None] = []
    reasons: list[str | None] = []
    for picture, shown in zip(pictures, maps.images, strict=True):
        scene, reason = picture, NO_SCENE if picture is None else None
        if scene is not None:
            drawn = seen_by(scene, classifier.preprocessing).subsets[-1].to(shown.device)
            if drawn.shape != shown.shape or float((shown - drawn / 255).abs().max()) > SAME:
                scene, reason = None, NOT_DRAWN
        scenes.append(scene)
        reasons.append(reason)

    def predict(renders: torch.Tensor) -> torch.Tensor:
        return predictor(renders.to(maps.images.device))

    known = known_parts(
        predict, scenes, target.classes.tolist(), preprocessing=classifier.preprocessing, classes=_bird_classes(classifier.labels)
    )
    for place, (scene, is_known) in enumerate(zip(scenes, known.known.tolist(), strict=True)):
        if scene is not None and not is_known and bool(known.visible[place].any()):
            reasons[place] = NOT_FINITE
    return PartsOfBatch(_at_size(known, maps), tuple(reasons))


def _at_size(known: KnownParts, maps: Maps) -> KnownParts:
    """Returns parts at the size of the maps' images; parts of another size count as unknown."""
    size = maps.images.shape[2:]
    if known.visible.shape[2:] == size or known.objects is None:
        return known
    empty = {"visible": known.visible.shape[:2], "objects": known.objects.shape[:2]}
    return replace(known, **{name: torch.zeros(*count, *size, dtype=torch.bool) for name, count in empty.items()})


def _bird_classes(labels: Sequence[str] | None) -> list[int] | None:
    """Returns the index of each SketchBirds class among a network's labels; None if one is missing."""
    if labels is None or any(name not in labels for name in CLASSES):
        return None
    return [labels.index(name) for name in CLASSES]
