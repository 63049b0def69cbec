"""xattn's side of every job, in one place: what a user would write."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from torch import Tensor

import xattn
from xattn.explainers import Maps

METRICS = ("average-drop", "average-gain", "average-increase", "insertion", "deletion")
CAMS = ("grad-cam", "grad-cam++", "score-cam")
LEVELS = ("exact",)


def predict(classifier: xattn.Classifier, level: str) -> Callable[[Tensor], Tensor]:
    """The network alone, as a level runs it."""
    return classifier.predict


def maps(classifier: xattn.Classifier, images: Tensor, targets: Tensor, methods: Sequence[str], level: str, chunk: int) -> Maps:
    """Maps of a batch by several methods."""
    return xattn.explain(classifier, images, methods, target=targets, batch_size=len(images), chunk=chunk, untrained=True)


def table(
    classifier: xattn.Classifier,
    images: Tensor,
    targets: Tensor,
    level: str,
    chunk: int,
    methods: Sequence[str] = CAMS,
    metrics: Sequence[str] = METRICS,
) -> pd.DataFrame:
    """Maps by several methods, and every metric of them."""
    found = maps(classifier, images, targets, methods, level, chunk)
    return xattn.evaluate(classifier, images, found, metrics, batch_size=len(images), chunk=chunk)
