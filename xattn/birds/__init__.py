"""SketchBirds: drawn birds with known parts, and small classifiers pretrained on them.

Scenes and drawing need no torch; other names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xattn.birds.drawing import Masks, masks, pixels, render, subsets
from xattn.birds.pretrained import pretrained_names
from xattn.birds.scene import CLASSES, PARTS, Scene, scene, scene_of, sufficient
from xattn.deferred import names_of

if TYPE_CHECKING:
    from xattn.birds.data import SketchBirds
    from xattn.birds.few_shot import export_few_shot
    from xattn.birds.flocks import Flock, export_voc, flock, flock_of
    from xattn.birds.ground_truth import effects, known_parts, share_inside
    from xattn.birds.individuals import export_individuals
    from xattn.birds.network import SmallResNet, small_resnet, small_vit
    from xattn.birds.parts import export_parts
    from xattn.metrics.known_parts import Effects, in_parts, rank_correlation

__all__ = [
    "CLASSES",
    "PARTS",
    "Effects",
    "Flock",
    "Masks",
    "Scene",
    "SketchBirds",
    "SmallResNet",
    "effects",
    "export_few_shot",
    "export_individuals",
    "export_parts",
    "export_voc",
    "flock",
    "flock_of",
    "in_parts",
    "known_parts",
    "masks",
    "pixels",
    "pretrained_names",
    "rank_correlation",
    "render",
    "scene",
    "scene_of",
    "share_inside",
    "small_resnet",
    "small_vit",
    "subsets",
    "sufficient",
    "weights",
]

_HOMES = {
    "SketchBirds": "data",
    "Flock": "flocks",
    "export_voc": "flocks",
    "flock": "flocks",
    "flock_of": "flocks",
    "effects": "ground_truth",
    "known_parts": "ground_truth",
    "share_inside": "ground_truth",
    "export_few_shot": "few_shot",
    "export_individuals": "individuals",
    "export_parts": "parts",
    "SmallResNet": "network",
    "small_resnet": "network",
    "small_vit": "network",
}
_SHARED = ("Effects", "in_parts", "rank_correlation")  # shared with the metrics of parts


__getattr__ = names_of(
    __name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()} | dict.fromkeys(_SHARED, "xattn.metrics.known_parts")
)
