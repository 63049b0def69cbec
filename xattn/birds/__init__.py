"""SketchBirds: drawn birds whose parts are known, and small pretrained classifiers of them."""

from xattn.birds.data import SketchBirds, scene_of
from xattn.birds.drawing import Masks, masks, pixels, render, subsets
from xattn.birds.few_shot import export_few_shot
from xattn.birds.flock import Flock, export_voc, flock, flock_of
from xattn.birds.ground_truth import Effects, effects, in_parts, rank_correlation, share_inside
from xattn.birds.network import SmallResNet, small_resnet, small_vit
from xattn.birds.pretrained import pretrained_names
from xattn.birds.scene import CLASSES, PARTS, Scene, scene, sufficient

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
    "export_voc",
    "flock",
    "flock_of",
    "in_parts",
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
