"""Metrics of saliency maps, as functions in pixel space.

Each takes `predict` (any callable from images to logits), images, masks or raw maps, and targets, and gives a value per image, `(B,)`
float64. Nothing here knows a classifier or an explainer.
"""

from xattn.metrics.curves import PROTOCOLS, deletion, deletion_correlation, insertion, insertion_correlation
from xattn.metrics.facts import MetricFacts, metrics
from xattn.metrics.looks import ranks
from xattn.metrics.masking import average_drop, average_drop_deletion, average_gain, average_increase, degenerate, to_masks
from xattn.metrics.perturbation import look_at
from xattn.metrics.probability import Predict, Probability, probability
from xattn.metrics.sparsity import sparsity

__all__ = [
    "PROTOCOLS",
    "MetricFacts",
    "Predict",
    "Probability",
    "average_drop",
    "average_drop_deletion",
    "average_gain",
    "average_increase",
    "degenerate",
    "deletion",
    "deletion_correlation",
    "insertion",
    "insertion_correlation",
    "look_at",
    "metrics",
    "probability",
    "ranks",
    "sparsity",
    "to_masks",
]
