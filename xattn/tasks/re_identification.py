"""Re-identification: a gallery is ranked for each query by the network's vectors; cumulative matching and mean average precision."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xattn.data.images import ImageSource
from xattn.data.labelled import Classes, Labelled, open_data
from xattn.data.labels import Label
from xattn.data.market import Sighting, sighting_of
from xattn.data.published import parsed_place
from xattn.errors import InputError
from xattn.metrics.retrieval import rank_gallery
from xattn.metrics.statistics import Interval
from xattn.models import Classifier
from xattn.tasks.base import Data, Scored, TaskMetadata, tasks
from xattn.tasks.classification import Classification
from xattn.tasks.scoring import answers
from xattn.text import counted

logger = logging.getLogger("xattn")

DATA = "market"
PRESET = "re-identification"


@tasks.register("re-identification", TaskMetadata("accuracy", "loss", "Zheng et al. 2015, Sec. 3.2", head="dg-net", preset=PRESET))
@dataclass(frozen=True)
class ReIdentification(Classification):
    """The same individual before another camera: cross-entropy over the identities of training; CMC rank-1, 5 and 10 and mAP of others.

    Pictures are compared by the cosine of the network's outputs. Identities of the test are none of training's, so that validation gives
    the accuracy on held-out pictures of these, and the weights of the lowest validation loss are kept.

    Attributes:
        flip: the vector of a picture is the sum of its output and that of the picture flipped left to right, each with norm 1.

    Differs: with flip, the released code of DG-Net brings each half of its vectors to norm 1 again after the sum; here the whole.
    """

    flip: bool = False

    def open(self, data: Any, classes: Classes = "folders") -> Labelled:
        """Opens the training split of market:ROOT, or other pictures whose classes are identities.

        Raises:
            InputError: as for `xattn.data.labelled.open_data`, or pictures with several labels.
        """
        found = open_data(data, classes)
        if found.several:
            raise InputError(f"{found.name} has several labels per picture, but re-identification needs exactly one identity.")
        return found

    def check(self, classifier: Classifier) -> None:
        """Checks that the output is a vector, which may also be logits of identities.

        Raises:
            InputError: labels stand alone.
        """
        if classifier.multi_label:
            raise InputError(f"{classifier.name} is multi-label, but re-identification compares vectors: load it without multi_label.")

    def check_training(self, classifier: Classifier, taught: bool) -> None:
        """Checks that no setting of the score is given.

        Raises:
            InputError: flip is.
        """
        if self.flip:
            raise InputError("flip is for the score of re-identification, and not used in training: leave it out.")

    def score(self, classifier: Classifier, data: Data) -> Scored:
        """CMC rank-1, 5 and 10 (Wilson's intervals) and mAP (the bootstrap's) on the queries and the gallery of market:ROOT.

        Queries without a match in the gallery are left out, and how many these are is logged as a warning.

        Raises:
            InputError: another place, labels from elsewhere, or logits of a head that has vectors.
        """
        if classifier.head.vector_length and not classifier.head.gives_vectors:
            raise InputError(
                f"{classifier.head_name} compares pictures by vectors, but gives the logits of the training identities: load it "
                f"with output='vectors' (--output vectors)."
            )
        parsed = parsed_place(data.place)
        if parsed is None or parsed[0] != DATA or parsed[2] != "query" or data.labels_csv is not None or data.labels_from is not None:
            raise InputError(f"re-identification is scored on {DATA}:ROOT, whose file names give the identity; got '{data.place}'.")
        place = data.place.removesuffix("query")

        def vectors(images: Tensor) -> Tensor:
            found = classifier.predict(images)
            return found if not self.flip else _unit(found) + _unit(classifier.predict(images.flip(3)))

        sides = [answers(classifier, data, _seen, ImageSource(f"{place}{split}"), vectors) for split in ("query", "gallery")]
        query, gallery = (_unit(side.output) for side in sides)
        (persons, cameras), (others, theirs) = (torch.tensor(side.labels).unbind(dim=1) for side in sides)
        ranking = rank_gallery(query @ gallery.T, persons, others, cameras, theirs)
        if bare := [name for name, first in zip(sides[0].names, ranking.first.tolist(), strict=True) if not first]:
            logger.warning(
                "%s: left out, without a match in the gallery: %d of %s (%s)",
                data.place,
                len(bare),
                counted(len(persons), "query", "queries"),
                bare[0],
            )
        scores = {name: _percent(interval) for name, interval in ranking.scores().items()}
        failed = tuple(one for side in sides for one in side.failed)
        network = f"{classifier.name} · {classifier.head_name}"
        read = sum(len(side.labels) for side in sides)
        task = f"re-identification{':flip=true' * self.flip}"
        return Scored(task, network, data.place, scores["mAP"].n, scores, failed=failed, pictures=read)


def _seen(name: str, _label: Label | None) -> Sighting:
    return sighting_of(name)


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=1)


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high, interval.n)
