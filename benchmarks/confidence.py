"""Scores of maps at matched confidence, so that a more confident classifier does not seem to have better maps.

The classifiers are compared at one mean confidence, that of the least confident one: the logits of each are divided by the temperature at
which its mean probability of the label, on held-out pictures, equals that confidence. Maps are those of the unchanged classifiers,
predictions do not change, and all pictures count. Comparing only pictures on which all classifiers are equally confident would keep the few
on which all are unsure, and show nothing about the others.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

import xattn
from xattn.errors import UnsupportedError
from xattn.inference import Predictor

LIMITS = (0.02, 50.0)
CHUNK = 20


def tempered(classifier: xattn.Classifier, temperature: float) -> xattn.Classifier:
    """Copies a classifier; the copy's logits, the network's output, are divided by a temperature.

    Raises:
        UnsupportedError: the head outputs the logits, not the network.
    """
    if classifier.attachment.replaces == "classifier":
        raise UnsupportedError(f"{classifier.head_name} gives the logits of {classifier.name} itself: it has no temperature here.")
    made = copy.deepcopy(classifier)
    made.network.register_forward_hook(lambda _network, _given, logits: logits / temperature)
    return made


class AtTemperature(Predictor):
    """A classifier's logits divided by a temperature, computed once for all temperatures.

    Args:
        classifier: the unchanged classifier.
        temperature: divisor of its logits.
        known: logits by a digest of the images, shared by several of these objects.
    """

    def __init__(self, classifier: xattn.Classifier, temperature: float, known: dict[bytes, Tensor]) -> None:
        super().__init__(classifier)
        self.temperature = temperature
        self.known = known

    def __call__(self, images: Tensor) -> Tensor:
        key = hashlib.blake2b(images.cpu().numpy().tobytes()).digest()
        if key not in self.known:
            self.known[key] = super().__call__(images)
        return self.known[key] / self.temperature


def confidence(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Returns the mean probability of the labels, for logits `(n, K)` divided by a temperature.

    Args:
        logits: logits of some pictures.
        labels: class indices `(n,)`, with probabilities by softmax; or label vectors `(n, K)` of several labels, by sigmoid.
        temperature: above 0.
    """
    scaled = logits.double() / temperature
    if labels.dim() == 2:
        return float(scaled.sigmoid()[labels == 1].mean())
    return float(scaled.softmax(dim=1).gather(1, labels[:, None]).mean())


def matching(logits: Tensor, labels: Tensor, wanted: float) -> float:
    """Returns the temperature from 0.02 to 50 at which the mean probability of the labels is as wanted; NaN if there is none.

    Args:
        logits: `(n, K)`, logits of held-out pictures.
        labels: `(n,)` or `(n, K)`, as for `confidence`.
        wanted: in (0, 1).
    """
    if confidence(logits, labels) == wanted:
        return 1.0
    ends = [confidence(logits, labels, temperature) - wanted for temperature in LIMITS]
    if ends[0] * ends[1] > 0:
        return math.nan
    return float(brentq(lambda temperature: confidence(logits, labels, temperature) - wanted, *LIMITS, xtol=1e-6))


def logits_of(classifier: xattn.Classifier, images: Tensor) -> Tensor:
    """Computes logits `(n, K)` of images in pixel space, on the CPU."""
    return torch.cat([classifier.predict(some.to(classifier.device)).cpu() for some in images.split(CHUNK)])


def scores_at(
    file: Path,
    classifier: xattn.Classifier,
    images: Tensor,
    labels: Tensor,
    methods: Sequence[str],
    metrics: Sequence[str],
    temperature: float,
) -> pd.DataFrame:
    """Scores maps for the labels, at temperature 1 and at another one: rows with `method`, `metric`, `image`, `value`, `matched`.

    Args:
        file: a CSV that stores the scores.
        classifier: the classifier with its head.
        images: `(n, 3, H, W)` in pixel space.
        labels: `(n,)` class indices.
        methods: methods to score.
        metrics: metrics to compute.
        temperature: temperature of the rows that are `matched`; 1: they equal the other rows; NaN: they have no value.
    """
    if file.exists():
        return pd.read_csv(file)
    rows = []
    at = [
        (False, classifier, 1.0),
        *([] if temperature == 1 or math.isnan(temperature) else [(True, tempered(classifier, temperature), temperature)]),
    ]
    for start in range(0, len(images), CHUNK):
        some, of = images[start : start + CHUNK], labels[start : start + CHUNK]
        masks = dict(xattn.explain(classifier, some, methods, target=of, progress=False).masks)
        known: dict[bytes, Tensor] = {}
        for matched, scored, divided in at:
            runs = AtTemperature(classifier, divided, known)
            found = xattn.evaluate(scored, some, masks, metrics, target=of, predictor=runs, progress=False)
            number = start + found.groupby(["method", "metric"]).cumcount()
            rows.append(found[["method", "metric", "value"]].assign(image=number, matched=matched))
    scores = pd.concat(rows)
    if temperature == 1:
        scores = pd.concat([scores, scores.assign(matched=True)])
    if math.isnan(temperature):
        scores = pd.concat([scores, scores.assign(matched=True, value=math.nan)])
    file.parent.mkdir(parents=True, exist_ok=True)
    scores.to_csv(file, index=False)
    return scores
