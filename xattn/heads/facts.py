"""What a head declares of itself, and what it is told of the network it is put on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from xattn.registry import Registry

Replaces = Literal["nothing", "pooling", "classifier"]


@dataclass(frozen=True)
class HeadFacts:
    """Facts of a head.

    Attributes:
        source: where it was published.
        replaces: "pooling": its vector enters the network's own classifier; "classifier": it gives the logits; "nothing".
        attention: whether it has attention maps.
    """

    source: str
    replaces: Replaces
    attention: bool = True


class Place(NamedTuple):
    """A stage of the network, as far as heads need to know it."""

    name: str
    channels: int
    stride: int


@dataclass(frozen=True)
class Site:
    """What a head is told of the network.

    Attributes:
        name: how messages call the network.
        places: its stages in the order of the forward; the last is what enters the pooling.
        kinds: class names of its modules.
        modules: dotted names of its modules.
        takes_vector: whether its classifier takes the pooled vector of the last place.
    """

    name: str
    places: tuple[Place, ...]
    kinds: frozenset[str]
    modules: frozenset[str]
    takes_vector: bool


@dataclass(frozen=True)
class Attended:
    """What a head gave for a batch.

    Attributes:
        output: logits `(B, K)`, or the vector `(B, C)` for the network's own classifier.
        attention: maps `(B, N, h, w)` by place.
        scores: what the attention was made of by a softmax, likewise; empty for heads without one.
        probes: logits `(B, K)` of classifiers on the side, by name.
    """

    output: Tensor
    attention: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    probes: dict[str, Tensor] = field(default_factory=dict)


class Head(nn.Module, ABC):
    """A head's module; abstract."""

    @abstractmethod
    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """One map of the head.

        Args:
            features: `(B, C, h, w)`.
            maps: its attention `(B, N, h, w)` there.

        Returns:
            `(B, h, w)`, ≥ 0.
        """


class ClassifierHead(Head):
    """A head that gives logits from what enters the pooling; abstract."""

    @abstractmethod
    def attend(self, features: Tensor, place: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Logits and attention maps.

        Args:
            features: `(B, C, h, w)`.
            place: under which name the maps are given.
            seeds: one an image, for what is random; None: torch's generator.
        """

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(B, K)` of features `(B, C, h, w)`."""
        return self.attend(features).output

    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """The mean of its maps `(B, N, h, w)` times the norm of the features `(B, C, h, w)`: `(B, h, w)`, ≥ 0."""
        norms: Tensor = torch.linalg.vector_norm(features, dim=1)
        return maps.mean(dim=1) * norms

    def ranked(self, features: Tensor, maps: Tensor) -> Tensor:
        """Its maps as a picture shows them: each times the norm of the features, min-maxed per image; `(B, N, h, w)`, ≥ 0."""
        norms: Tensor = torch.linalg.vector_norm(features, dim=1)
        low, high = norms.amin(dim=(1, 2), keepdim=True), norms.amax(dim=(1, 2), keepdim=True)
        return maps * ((norms - low) / (high - low).clamp(min=torch.finfo(norms.dtype).tiny))[:, None]


class HeadSettings(Protocol):
    """A registered head: a frozen dataclass of settings that builds the module."""

    def places(self, site: Site) -> tuple[str, ...]:
        """Names of the stages that the head reads, in order."""

    def build(self, channels: Sequence[int], classes: int) -> Head:
        """The module for places of these channel counts."""


heads: Registry[HeadFacts] = Registry("head")
