"""Base classes of heads: their place in a network, their result, and their metadata.

A head has two parts: a frozen dataclass of settings, which is registered, names the stages that it reads and builds the module; and the
module, a `Head`. Most heads read one stage and are a `ClassifierHead` (features → logits) or a `PoolingHead` (features → the vector that
replaces the pooled one and enters the network's own classifier), with one method, `attend`. A head that reads several stages overrides
`start` and `read`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from xattn.attention import alignments
from xattn.errors import SettingError, UnsupportedError
from xattn.registry import Registry

Replaces = Literal["nothing", "pooling", "classifier"]

VECTORS = "vectors"  # the output of a classifier whose head returns vectors

MOST_WEIGHTS = 2**31


@dataclass(frozen=True)
class HeadMetadata:
    """Metadata that a head is registered with.

    Attributes:
        source: where it was published.
        replaces: "pooling": its vector enters the network's own classifier; "classifier": it computes the logits; "nothing".
        attention: whether it has attention maps.
        vectors: whether it can return vectors for comparing pictures instead of logits, see `VECTORS`.
    """

    source: str
    replaces: Replaces
    attention: bool = True
    vectors: bool = False


class StageInfo(NamedTuple):
    """Information for heads about a stage of the network.

    Attributes:
        name: of the stage.
        channels: of its map.
        stride: height of the image over that of the map.
        tokens: whether its map consists of tokens.
        kind: class name of the module whose output it is.
    """

    name: str
    channels: int
    stride: int
    tokens: bool = False
    kind: str = ""


@dataclass(frozen=True)
class NetworkInfo:
    """Information for heads about the network.

    Attributes:
        name: of the network in messages.
        stages: its stages in forward order; the last is the input of the pooling.
        kinds: class names of its modules.
        modules: dotted names of its modules.
        takes_vector: whether its classifier takes the pooled vector of the last stage.
        sizes: height and width of the map of each stage that the head reads, at the classifier's input size.
    """

    name: str
    stages: tuple[StageInfo, ...]
    kinds: frozenset[str]
    modules: frozenset[str]
    takes_vector: bool
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass
class Attended:
    """The result of a head for a batch, filled in when the forward reaches its stages.

    Attributes:
        output: logits `(B, K)`, or the vector `(B, C)` for the network's own classifier.
        attention: maps `(B, N, h, w)` by stage.
        scores: inputs of the softmax, or other distribution, from which the attention was computed, in the same form; empty for heads
            without one.
        probes: logits `(B, K)` of auxiliary classifiers, by name.
        penalty: scalar that the head adds to the loss if the labels are known; None: nothing.
    """

    output: Tensor
    attention: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    probes: dict[str, Tensor] = field(default_factory=dict)
    penalty: Tensor | None = None


Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Iterates over all training pictures: features `(B, C, h, w)` of the stage that a head reads, and labels `(B,)`."""


class HeadSettings(ABC):
    """Base class of registered heads: frozen dataclasses of settings that build the module."""

    def stages(self, info: NetworkInfo) -> tuple[str, ...]:
        """Names of the stages that the head reads, in order; by default the input of the pooling."""
        return (info.stages[-1].name,)

    def unnamed_stages(self, info: NetworkInfo) -> tuple[str, ...]:
        """The stages that the head reads in an older file, which does not name them."""
        return self.stages(info)

    @abstractmethod
    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> Head:
        """The module, with new weights.

        Args:
            channels: of each stage that the head reads.
            classes: K.
            info: of the network.
        """

    def built(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> Head:
        """The module, built after a check of its size that needs no memory.

        Raises:
            SettingError: the module would have more weights than fit into any memory.
        """
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            size = sum(parameter.numel() for parameter in self.build(channels, classes, info).parameters())
        if size > MOST_WEIGHTS:
            raise SettingError(
                f"{self} for {classes:,} classes of {info.name} would have {size:,} weights: at most {MOST_WEIGHTS:,} are built."
            )
        return self.build(channels, classes, info)


class Head(nn.Module, ABC):
    """Base class of a head's module.

    Attributes:
        grafts: whether it can be initialised as the network's own classifier, by `graft`.
        gives_vectors: whether it returns vectors `(B, D)` instead of logits; for heads with a `vector_length`.
    """

    grafts: bool = False
    gives_vectors: bool = False

    @property
    def vector_length(self) -> int:
        """Length D of the vectors for comparing pictures; 0: the head has none."""
        return 0

    @property
    def is_random(self) -> bool:
        """Whether the head draws random numbers in eval mode: it then gets one seed per image, and a separate forward."""
        return False

    @property
    def asks_class(self) -> bool:
        """Whether the head needs each image's class before the forward: it then gets the network's own prediction, and a separate
        forward."""
        return False

    @property
    def fixed_size(self) -> str:
        """The reason why the head takes maps of only one size, for the message that weights do not fit; empty: it takes any."""
        return ""

    @property
    def ranks(self) -> int:
        """Number of maps that are ordered by strength, the strongest first; 0: one map, or several without an order."""
        return 0

    @property
    def push_every(self) -> int:
        """Number of epochs after which, and after the last one, `push` sets weights from the training pictures; 0: never."""
        return 0

    def push(self, batches: Batches) -> None:
        """Sets weights from the training pictures, for a head with `push_every` > 0.

        Args:
            batches: iterates over the pictures, without augmentation, each time that it is called.
        """
        raise UnsupportedError(f"{type(self).__name__} sets no weights from the training pictures.")

    def start(self, batch: int, classes: Tensor | None = None) -> Attended:
        """The state before the first stage.

        Args:
            batch: B.
            classes: `(B,)`, for a head that needs the class.
        """
        return Attended(torch.empty(0))

    @abstractmethod
    def read(self, attended: Attended, stage: str, features: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Processes the features of one stage.

        Args:
            attended: the result of `start`, which is filled in.
            stage: its name, under which maps are stored.
            features: `(B, C, h, w)`.
            seeds: one per image, for randomness; None: torch's generator.
        """

    @abstractmethod
    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """One map of the head.

        Args:
            features: `(B, C, h, w)`.
            maps: its attention `(B, N, h, w)` at that stage.

        Returns:
            `(B, h, w)`, ≥ 0.
        """

    def head_maps(self, features: Tensor, maps: Tensor) -> HeadMaps | None:
        """The maps of a head with several; None for a head with one."""
        return None

    def graft(self, linear: nn.Linear) -> None:
        """Initialises it as the network's own classifier on the pooled vector `(C → K)`, for a head that supports this."""
        raise UnsupportedError(f"{type(self).__name__} cannot start as the network's own classifier.")

    def fitted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of another head, converted so that this one can start from it; by default unchanged."""
        return dict(weights)

    def dropouts(self) -> list[nn.Dropout]:
        """The dropout layers that training may set; empty if there are none."""
        return [module for module in self.modules() if isinstance(module, nn.Dropout)]


class HeadMaps(NamedTuple):
    """The maps of a head with several, in their order.

    Attributes:
        weighted: `(B, N, h, w)`, each times the norm of the features over their largest norm.
        shown: `(B, N, h, w)`, for display: each times the norm of the features, min-maxed per image.
    """

    weighted: Tensor
    shown: Tensor


class SingleStageHead(Head):
    """A head that reads one stage.

    The saliency is the mean of its maps times the norm of the features.
    """

    @abstractmethod
    def attend(self, features: Tensor, stage: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Output and attention maps.

        Args:
            features: `(B, C, h, w)`.
            stage: name under which the maps are returned.
            seeds: one per image, for randomness; None: torch's generator.
        """

    def read(self, attended: Attended, stage: str, features: Tensor, seeds: Sequence[int] | None = None) -> None:
        found = self.attend(features, stage, seeds)
        attended.output, attended.attention, attended.scores, attended.probes = found.output, found.attention, found.scores, found.probes

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(B, K)`, or the vector `(B, C)`, for features `(B, C, h, w)`."""
        return self.attend(features).output

    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """The mean of its maps `(B, N, h, w)` times the norm of the features `(B, C, h, w)`: `(B, h, w)`, ≥ 0."""
        norms: Tensor = torch.linalg.vector_norm(features, dim=1)
        return maps.mean(dim=1) * norms


class ClassifierHead(SingleStageHead):
    """A head that computes logits `(B, K)` from the input of the pooling."""

    def head_maps(self, features: Tensor, maps: Tensor) -> HeadMaps | None:
        norms: Tensor = torch.linalg.vector_norm(features, dim=1)
        low, high = norms.amin(dim=(1, 2), keepdim=True), norms.amax(dim=(1, 2), keepdim=True)
        shown = (norms - low) / (high - low).clamp(min=torch.finfo(norms.dtype).tiny)
        relative = norms / high.clamp(min=torch.finfo(norms.dtype).tiny)
        return HeadMaps(maps * relative[:, None], maps * shown[:, None])


class PoolingHead(SingleStageHead):
    """A head that computes, from the input of the pooling, the vector `(B, C)` that replaces the pooled one."""


def fixed_size(align: str) -> str:
    """`Head.fixed_size` of a head with this alignment."""
    if not alignments.create(align).metadata.fixed:
        return ""
    return f"Its alignment {align} has weights for each position: load it at the input size and resolution that it was trained at."


heads: Registry[HeadMetadata, HeadSettings] = Registry("head")
