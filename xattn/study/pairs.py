"""Explains why a query and its nearest picture in a gallery are similar, in each of the two pictures."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from xattn.data.images import ImageSource
from xattn.data.listing import places_of, unique
from xattn.data.market import sighting_of
from xattn.data.preprocessing import pixels
from xattn.data.workers import each_output
from xattn.errors import InputError, UnsupportedError
from xattn.inference.predictor import Predictor
from xattn.metrics.retrieval import comparable
from xattn.metrics.target_base import PER_LABEL
from xattn.metrics.targets import Similarity
from xattn.models.classifier import Classifier
from xattn.models.target_rules import TargetRule
from xattn.study.schema import run_key
from xattn.text import counted

PAIRS = PER_LABEL[2]
MARKET = "market:"
SIMILARITY = "a similarity"
"""What the target of a pair is, in messages."""
AT_ONCE = 1024  # queries that are compared with the gallery in one step


@dataclass(frozen=True, eq=False)
class PairSimilarity(Similarity):
    """Cosine similarity of the network's vector with the vector of the other picture of the pair.

    Args:
        reference: `(B, D)`.
        numbers: indices of the other pictures in `pictures`, `(B,)`.
        pictures: names, as in the rows.
    """

    numbers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    pictures: tuple[str, ...] = ()

    def names(self) -> list[str]:
        return [self.pictures[number] for number in self.numbers.tolist()]


@dataclass(frozen=True, eq=False)
class Pairs(TargetRule):
    """Targets of pairs: the similarity of each query with its nearest picture in the gallery, and of that picture with each query for which
    it is the nearest.

    Attributes:
        gallery: digest of the whole gallery.
        pictures: names of the pictures that are part of a pair.
        vectors: `(N, D)`, the network's vectors of these pictures, by `run_key`; NaN for a picture that cannot be read.
        nearest: name and cosine of each query's nearest picture, by `run_key`.
        others: indices of the pictures that each picture is paired with, by `run_key` and name; empty for a query without a nearest
            picture.
    """

    gallery: str
    pictures: tuple[str, ...]
    vectors: Mapping[str, Tensor]
    nearest: Mapping[str, Mapping[str, tuple[str, float]]]
    others: Mapping[str, Mapping[str, tuple[int, ...]]]

    @property
    def per_label(self) -> bool:
        return True

    @property
    def without_probability(self) -> str:
        return SIMILARITY

    def described(self) -> dict[str, Any]:
        return {"kind": "Pairs", "gallery": self.gallery}

    def others_of(self, key: str, picture: str) -> tuple[int, ...]:
        """Returns the indices of the pictures that a picture is paired with.

        Args:
            key: `run_key` of the classifier.
            picture: its name.

        Raises:
            InputError: the picture is a query, and the gallery has no picture that it may be compared with.
        """
        found = self.others[key].get(picture)
        if found == ():
            raise InputError("the gallery has no picture that it may be compared with")
        return found or ()

    def bind(self, classifier: Classifier, output: Tensor, labels: Sequence[int | None]) -> PairSimilarity:
        numbers = torch.tensor([-1 if label is None else label for label in labels])
        vectors = self.vectors[run_key(classifier.name, classifier.head_name)]
        return PairSimilarity(vectors[numbers].to(output), rule=PAIRS, numbers=numbers, pictures=self.pictures)

    def any_target(self, classifier: Classifier) -> Similarity:
        """Returns a target of the same kind for any image: the cost of a run does not depend on the target."""
        vectors = self.vectors[run_key(classifier.name, classifier.head_name)]
        return Similarity(vectors[~vectors.isnan().any(dim=1)][0].to(classifier.device))


def paired(
    classifiers: Sequence[Classifier], queries: ImageSource, gallery: ImageSource, *, batch_size: int, workers: int, progress: bool
) -> tuple[ImageSource, Pairs]:
    """Returns the pictures of all pairs, queries first, and the target rule that compares them.

    The nearest picture is the one with the largest cosine (the first one on ties), and never the query itself. If queries and gallery are
    `market:ROOT:…`, the rules of Market-1501 decide which pictures are compared, see `xattn.metrics.retrieval.comparable`.

    Args:
        classifiers: networks whose output is a vector `(B, D)`.
        queries: pictures in files.
        gallery: pictures in files; may include the queries.
        batch_size: images per forward.
        workers: decoding processes.
        progress: whether to show progress.

    Raises:
        InputError: pictures are in memory, or no picture in the gallery can be compared with any query.
        UnsupportedError: the output of a network is not a vector.
    """
    if queries.dataset is not None or gallery.dataset is not None:
        raise InputError("pairs need pictures in files: give folders, globs or market:ROOT:SPLIT for the images and the gallery.")
    images = [replace(image, label=None) for image in unique([*queries.images, *gallery.images])]
    known = {place: number for number, place in enumerate(places_of(images))}
    own, others = ([known[place] for place in places_of(side.images)] for side in (queries, gallery))
    source = copy.copy(queries)
    source.images, source.origin = images, [*queries.origin, *gallery.origin]
    source.labels_csv, source.labels_from = None, "none"
    counts = _comparable(source, own, others)
    vectors: dict[str, Tensor] = {}
    nearest: dict[str, dict[int, tuple[int, float]]] = {}
    for classifier in classifiers:
        key = run_key(classifier.name, classifier.head_name)
        vectors[key] = embedded(classifier, source, batch_size=batch_size, workers=workers, progress=progress)
        nearest[key] = _nearest(vectors[key], own, others, counts)
    if not any(nearest.values()):
        raise InputError(f"none of {counted(len(gallery), 'picture')} of the gallery can be compared with a query: give another --gallery.")
    chosen = list(dict.fromkeys([*own, *sorted(other for found in nearest.values() for other, _ in found.values())]))
    source.images = [images[number] for number in chosen]
    place = {number: position for position, number in enumerate(chosen)}
    named: dict[str, dict[str, tuple[str, float]]] = {}
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, found in nearest.items():
        named[key] = {images[query].name: (images[other].name, cosine) for query, (other, cosine) in found.items()}
        partners: dict[int, dict[int, None]] = {query: {} for query in own}  # dicts keep the order
        for query, (other, _) in found.items():
            partners[query][place[other]] = None
            partners.setdefault(other, {})[place[query]] = None
        sides[key] = {images[number].name: tuple(several) for number, several in partners.items()}
    kept = {key: found[chosen] for key, found in vectors.items()}
    return source, Pairs(PAIRS, gallery.digest(), tuple(image.name for image in source.images), kept, named, sides)


def embedded(classifier: Classifier, source: ImageSource, *, batch_size: int, workers: int, progress: bool) -> Tensor:
    """Returns the network's vectors of a source's pictures, `(N, D)` float32 on the CPU; NaN for a picture that cannot be read.

    Raises:
        UnsupportedError: the network's output is not a vector.
    """
    predictor, place = Predictor(classifier), {image.name: number for number, image in enumerate(source.images)}

    def run(crops: Tensor) -> Tensor:
        output = predictor(pixels(crops, classifier.device))
        if output.dim() != 2:
            raise UnsupportedError(
                f"a gallery is compared by vectors, one per image (batch, values); {classifier.name} gives {tuple(output.shape)}. "
                "Give a network whose output is a vector, or select that output by --output."
            )
        return output

    images, vectors, _ = each_output(source, classifier.preprocessing, batch_size, workers, progress, run)
    found = torch.full((len(source), classifier.class_count), torch.nan)
    if images:
        found[[place[image.name] for image in images]] = vectors
    return found


def _comparable(source: ImageSource, queries: Sequence[int], gallery: Sequence[int]) -> Tensor:
    """Returns which pictures of the gallery may be compared with which query, `(Q, G)` bool."""
    own, others = torch.tensor(queries), torch.tensor(gallery)
    counts = own[:, None] != others
    if not all(place.startswith(MARKET) for place in source.origin):
        return counts
    seen = torch.tensor([tuple(sighting_of(image.name)) for image in source.images])
    return counts & comparable(seen[own, 0], seen[own, 1], seen[others, 0], seen[others, 1])


def _nearest(vectors: Tensor, queries: Sequence[int], gallery: Sequence[int], counts: Tensor) -> dict[int, tuple[int, float]]:
    """Returns each query's nearest picture of the gallery and its cosine; queries without a picture to compare with are left out."""
    unit = normalize(vectors, dim=1)
    own, others = torch.tensor(queries), torch.tensor(gallery)
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(own), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        cosines = (unit[own[part]] @ unit[others].T).masked_fill(~counts[part], -torch.inf).nan_to_num(-torch.inf, neginf=-torch.inf)
        best = cosines.max(dim=1)
        for query, cosine, other in zip(own[part].tolist(), best.values.tolist(), others[best.indices].tolist(), strict=True):
            if cosine > -torch.inf:
                found[query] = (other, cosine)
    return found
