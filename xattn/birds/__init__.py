"""SketchBirds: drawn birds whose parts are known, and the small classifiers that are shipped with them."""

from xattn.birds.box import shipped
from xattn.birds.data import SketchBirds, scene_of
from xattn.birds.drawing import Masks, masks, pixels, render, subsets
from xattn.birds.network import SmallResNet, small_resnet
from xattn.birds.scene import CLASSES, PARTS, Scene, scene, sufficient
from xattn.birds.truth import Effects, effects, in_parts, rank_correlation, share_inside

__all__ = [
    "CLASSES",
    "PARTS",
    "Effects",
    "Masks",
    "Scene",
    "SketchBirds",
    "SmallResNet",
    "effects",
    "in_parts",
    "masks",
    "pixels",
    "rank_correlation",
    "render",
    "scene",
    "scene_of",
    "share_inside",
    "shipped",
    "small_resnet",
    "subsets",
    "sufficient",
]
