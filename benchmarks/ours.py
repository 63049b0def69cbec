"""xattn's side of every job, in one place, as a user would write it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import pandas as pd
from torch import Tensor

import xattn
from xattn.explainers import Maps
from xattn.inference import Predictor, Tuning, fastest

METRICS = ("average-drop", "average-gain", "average-increase", "insertion", "deletion")
CAMS = ("grad-cam", "grad-cam++", "score-cam")
effort = "full"  # "auto" uses earlier measurements; settings by hand measure nothing
LEVELS: tuple[Literal["exact", "fast"], ...] = ("exact", "fast")


@cache
def predictor(classifier: xattn.Classifier, level: Literal["exact", "fast"]) -> Predictor:
    """Returns the network as a level runs it here, measured once."""
    return fastest(classifier, level, effort)


def ways(classifier: xattn.Classifier, level: Literal["exact", "fast"], chunks: Sequence[int]) -> list[Predictor]:
    """Returns the network as a level runs it, and with other forward sizes, among which is the best throughput."""
    own = predictor(classifier, level)
    return [own] + [Predictor(classifier, Tuning(**own.tuning.as_dict() | {"chunk": chunk, "compiled": False}), level) for chunk in chunks]


def maps(classifier: xattn.Classifier, images: Tensor, targets: Tensor, methods: Sequence[str], level: Literal["exact", "fast"]) -> Maps:
    """Computes maps of a batch by several methods."""
    runs = predictor(classifier, level) if "score-cam" in " ".join(methods) else None
    return xattn.explain(classifier, images, methods, target=targets, batch_size=len(images), predictor=runs, untrained=True)


def table(
    classifier: xattn.Classifier,
    images: Tensor,
    targets: Tensor,
    level: Literal["exact", "fast"],
    methods: Sequence[str] = CAMS,
    metrics: Sequence[str] = METRICS,
) -> pd.DataFrame:
    """Computes maps by several methods, and every metric of them."""
    found = maps(classifier, images, targets, methods, level)
    return xattn.evaluate(classifier, images, found, metrics, batch_size=len(images), predictor=predictor(classifier, level))
