"""DG-Net's identity branch, for re-identification: two blocks on the pooled vector, whose vectors distinguish individuals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from xattn.errors import SettingError
from xattn.heads.b_cnn import attention_layers, weighted_means
from xattn.heads.base import Attended, ClassifierHead, HeadMetadata, HeadSettings, NetworkInfo, heads
from xattn.heads.br_npa import representatives
from xattn.registry import AtMost

Pooling = Literal["max", "br-npa", "b-cnn"]

DROPOUT = (0.5, 0.75)
CLASSIFIER_DEVIATION = 0.001


@heads.register(
    "dg-net",
    HeadMetadata(source="Zheng et al. 2019, the released code; Gomez et al. 2021, Sec. 4.1", replaces="classifier", vectors=True),
)
@dataclass(frozen=True)
class DGNet(HeadSettings):
    """Two blocks of linear, batch normalisation, dropout, linear on the pooled vector, for re-identification: logits or vectors.

    Attributes:
        pooling: "max", as in DG-Net; "br-npa" or "b-cnn", whose vectors are concatenated.
        n: number of vectors, and of maps, of br-npa and b-cnn.
        width: of each block's vector.
        loss: weight of the second block's cross-entropy, relative to the first's.
        second: weight of the second block's cosine, relative to the first's, in the cosine of two vectors.
    """

    pooling: Pooling = "max"
    n: Annotated[int, AtMost(1_024)] = 3
    width: Annotated[int, AtMost(65_536)] = 512
    loss: float = 0.2
    second: float = 0.5

    def __post_init__(self) -> None:
        fine = all(0 <= weight < math.inf for weight in (self.loss, self.second))
        if self.n < 1 or self.width < 1 or not fine:
            raise SettingError(
                f"dg-net takes n and width of at least 1, and loss and second of at least 0; got n={self.n}, width={self.width}, "
                f"loss={self.loss}, second={self.second}."
            )

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> DGNetHead:
        """The module, with new weights."""
        return DGNetHead(channels[-1], classes, self)


class MaxPooling(nn.Module):
    """Global max pooling: features `(B, C, h, w)` → a vector `(B, 1, C)` and a map `(B, 1, h, w)` that sums to 1.

    The map is the share of the channels whose largest value is at that position.
    """

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        largest = features.amax(dim=(2, 3), keepdim=True)
        reached = (features.detach() == largest.detach()).float()
        shares = (reached / reached.sum(dim=(2, 3), keepdim=True)).mean(dim=1, keepdim=True)
        return largest.flatten(2).transpose(1, 2), shares


class Representatives(nn.Module):
    """br-npa's vectors `(B, N, C)` and maps `(B, N, h, w)` of features `(B, C, h, w)`, in rank order."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return representatives(features, self.n)


class ConvolutionalMaps(nn.Module):
    """b-cnn's vectors `(B, N, C)` and maps `(B, N, h, w)` of features `(B, C, h, w)`."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.block, self.attention = attention_layers(channels, n)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        maps: Tensor = self.attention(self.block(features)).relu()
        return weighted_means(features, maps), maps


class Block(nn.Module):
    """A pooled vector `(B, C)` → a vector `(B, D)` and logits `(B, K)`.

    Args:
        channels: C.
        width: D.
        classes: K.
        dropout: share of the vector that is dropped in training.
    """

    def __init__(self, channels: int, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)
        nn.init.kaiming_normal_(self.linear.weight, mode="fan_out")
        nn.init.normal_(self.classifier.weight, std=CLASSIFIER_DEVIATION)
        for layer in (self.linear, self.classifier):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        vector: Tensor = self.dropout(self.norm(self.linear(pooled)))
        return vector, self.classifier(vector)


class DGNetHead(ClassifierHead):
    """DG-Net's identity branch as a module: features `(B, C, h, w)` → the first block's logits `(B, K)`, or vectors `(B, 2·width)`.

    A vector is the first block's with norm 1, concatenated with the second block's with norm √second: the cosine of two is (c₁ + second ·
    c₂) / (1 + second), with c₁ and c₂ the cosines of the blocks' vectors. The loss is the cross-entropy of the first block plus `loss`
    times that of the second.

    Args:
        channels: C.
        classes: K.
        settings: of the head.

    Source: Zheng et al. 2019; the released code for dropout, initial weights and second = 0.5, the factor of the second half of the
    queries' vectors. A layer on N pooled vectors starts from one on a single vector, with weights W, as W repeated N times and divided by
    N, as in the released fork of Gomez et al. 2021; their text says that W is repeated.

    Differs: the blocks learn only the identities of pictures: there is no generator, and the second block gets no pictures with the
    structure of another individual. The released training gives the blocks ten times the learning rate of the backbone; here there is one
    rate.
    """

    def __init__(self, channels: int, classes: int, settings: DGNet | None = None) -> None:
        super().__init__()
        self.settings = s = settings or DGNet()
        self.pool: nn.Module = MaxPooling()
        if s.pooling == "br-npa":
            self.pool = Representatives(s.n)
        elif s.pooling == "b-cnn":
            self.pool = ConvolutionalMaps(channels, s.n)
        pooled = channels * (1 if s.pooling == "max" else s.n)
        self.first, self.second = (Block(pooled, s.width, classes, dropout) for dropout in DROPOUT)

    @property
    def ranks(self) -> int:
        return self.settings.n if self.settings.pooling == "br-npa" else 0

    @property
    def vector_length(self) -> int:
        return 2 * self.settings.width

    def fitted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another DG-Net head with fewer pooled vectors, repeated over the vectors and divided by the number of repeats; the
        layers of attention maps do not change if the other head has none."""
        own = self.state_dict()
        found = dict(weights) | {key: value for key, value in own.items() if key.startswith("pool.") and key not in weights}
        for key in {"first.linear.weight", "second.linear.weight"} & set(found):
            times, rest = divmod(own[key].shape[1], found[key].shape[1])
            if times > 1 and not rest:
                found[key] = found[key].repeat(1, times) / times
        return {key: value for key, value in found.items() if key in own or not key.startswith("pool.")}

    def start(self, batch: int, classes: Tensor | None = None) -> Attended:
        """The labels `(B,)` as the output, in training, for the loss; else nothing."""
        return Attended(torch.empty(0) if classes is None else classes)

    def read(self, attended: Attended, stage: str, features: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Logits, or vectors, and maps; if labels are known, also the second block's part of the loss."""
        labels = attended.output
        found, logits = self._attended(features, stage)
        attended.output, attended.attention = found.output, found.attention
        if labels.numel():
            attended.penalty = self.settings.loss * functional.cross_entropy(logits, labels)

    def attend(self, features: Tensor, stage: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Logits, or vectors, and maps.

        Args:
            features: `(B, C, h, w)`.
            stage: name under which the maps are returned.
            seeds: not used; nothing is random.
        """
        return self._attended(features, stage)[0]

    def _attended(self, features: Tensor, stage: str) -> tuple[Attended, Tensor]:
        """The head's result, and the second block's logits."""
        vectors, maps = self.pool(features)
        pooled = vectors.flatten(1).to(self.first.linear.weight.dtype)
        (one, logits), (other, of_second) = self.first(pooled), self.second(pooled)
        if self.gives_vectors:
            halves = functional.normalize(one, dim=1), math.sqrt(self.settings.second) * functional.normalize(other, dim=1)
            return Attended(torch.cat(halves, dim=1), {stage: maps}), of_second
        return Attended(logits, {stage: maps}), of_second
