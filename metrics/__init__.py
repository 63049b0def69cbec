"""Metrics of saliency maps, as functions in pixel space.

Most take `predict` (any callable from images to the network's logits, before any softmax or sigmoid), images, masks and targets (class
indices, or a target of `xattn.metrics.targets`). If `predict` returns probabilities, pass `outputs="probabilities"`. Some take only raw
maps or masks. Each returns one value per image, `(B,)` float64. Nothing here depends on a classifier or an explainer.
"""

import sys

from xattn.metrics.base import (
    CurveMetric,
    Evidence,
    ExplanationMetric,
    MaskMetric,
    Metric,
    MetricMetadata,
    RawMapMetric,
    RegionMetric,
    ResponseMetric,
    metrics,
)
from xattn.metrics.box_accuracy import box_accuracy, box_overlaps, box_threshold
from xattn.metrics.curves import deletion, deletion_correlation, insertion, insertion_correlation
from xattn.metrics.explanation import adcc, coherency
from xattn.metrics.known_parts import Effects, KnownParts
from xattn.metrics.localisation import energy_pointing, pointing_game, relevance_mass, relevance_rank, segmentation_ap
from xattn.metrics.masking import (
    average_drop,
    average_drop_deletion,
    average_gain,
    average_increase,
    complexity,
    degenerate,
    to_masks,
)
from xattn.metrics.perturbations import ranks
from xattn.metrics.probability import Probability
from xattn.metrics.protocols import PROTOCOLS
from xattn.metrics.responses import evaluate_perturbations
from xattn.metrics.robustness import average_sensitivity, max_sensitivity
from xattn.metrics.sparsity import sparsity
from xattn.metrics.target_base import Target
from xattn.metrics.targets import ClassTarget, Contrast, OutputFunction, Predict, Region, Similarity
from xattn.registry import import_modules

import_modules(__name__, __path__)  # modules of this folder register themselves and need not be listed here

__all__ = [
    "PROTOCOLS",
    "ClassTarget",
    "Contrast",
    "CurveMetric",
    "Effects",
    "Evidence",
    "ExplanationMetric",
    "KnownParts",
    "MaskMetric",
    "Metric",
    "MetricMetadata",
    "OutputFunction",
    "Predict",
    "Probability",
    "RawMapMetric",
    "Region",
    "RegionMetric",
    "ResponseMetric",
    "Similarity",
    "Target",
    "adcc",
    "average_drop",
    "average_drop_deletion",
    "average_gain",
    "average_increase",
    "average_sensitivity",
    "box_accuracy",
    "box_overlaps",
    "box_threshold",
    "coherency",
    "complexity",
    "degenerate",
    "deletion",
    "deletion_correlation",
    "energy_pointing",
    "evaluate_perturbations",
    "insertion",
    "insertion_correlation",
    "max_sensitivity",
    "metrics",
    "pointing_game",
    "ranks",
    "relevance_mass",
    "relevance_rank",
    "segmentation_ap",
    "sparsity",
    "to_masks",
]
# Functions of metrics whose modules are not named above; bound here, since a function may have the same name as its module.
_others = {name.replace("-", "_"): sys.modules[entry.obj.__module__] for name, entry in metrics.entries.items()}
_functions = {name: getattr(module, name) for name, module in _others.items() if name not in __all__ and hasattr(module, name)}
globals().update(_functions)
__all__ += sorted(_functions)
