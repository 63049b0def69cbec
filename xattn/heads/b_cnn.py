"""B-CNN: attention maps from convolutions, the parametric baseline of BR-NPA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from xattn.errors import SettingError
from xattn.heads.base import Attended, ClassifierHead, HeadMetadata, HeadSettings, NetworkInfo, heads
from xattn.hidden import Width, check_width, last_layers
from xattn.registry import AtMost


@heads.register("b-cnn", HeadMetadata(source="Gomez et al. 2021, Sec. 4.1", replaces="classifier"))
@dataclass(frozen=True)
class BCNN(HeadSettings):
    """Attention maps from a residual block and a 1×1 convolution; each weights the features before average pooling; → linear.

    Attributes:
        n: number of attention maps.
        dropout: share of the concatenated vector that is dropped in training.
        hidden: width of a hidden layer before the logits, as for br-npa.
    """

    n: Annotated[int, AtMost(1_024)] = 3
    dropout: float = 0.0
    hidden: Width = 0

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.dropout < 1:
            raise SettingError(f"b-cnn takes n of at least 1 and dropout in [0, 1); got n={self.n}, dropout={self.dropout}.")
        check_width(self.hidden, "b-cnn")

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> BCNNHead:
        """The module, with new weights."""
        return BCNNHead(channels[-1], classes, self)


def attention_layers(channels: int, n: int) -> tuple[nn.Module, nn.Conv2d]:
    """The residual block and the convolution that compute n attention maps, before the ReLU, from features with `channels` channels."""
    from torchvision.models.resnet import BasicBlock

    return BasicBlock(channels, channels), nn.Conv2d(channels, n, kernel_size=1, bias=False)


def weighted_means(features: Tensor, maps: Tensor) -> Tensor:
    """Means over the positions of features `(B, C, h, w)`, each times maps `(B, N, h, w)`: `(B, N, C)`."""
    shares = maps.flatten(2) / (maps.shape[2] * maps.shape[3])  # divided before the sum, which could overflow in half precision
    return torch.bmm(shares, features.to(maps.dtype).flatten(2).transpose(1, 2))


class BCNNHead(ClassifierHead):
    """B-CNN as a module: features `(B, C, h, w)` → logits `(B, K)`.

    Args:
        channels: C.
        classes: K.
        settings: of the head.

    Differs: the released CUB code computes one map more than it uses.
    """

    def __init__(self, channels: int, classes: int, settings: BCNN | None = None) -> None:
        super().__init__()
        self.settings = settings or BCNN()
        self.block, self.attention = attention_layers(channels, self.settings.n)
        self.dropout = nn.Dropout(self.settings.dropout)
        self.linear = last_layers(self.settings.n * channels, classes, self.settings.hidden)

    def attend(self, features: Tensor, stage: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Logits and maps.

        Args:
            features: `(B, C, h, w)`.
            stage: name under which the maps are returned.
            seeds: not used; nothing is random.
        """
        maps = self.attention(self.block(features)).relu()
        vectors = weighted_means(features, maps)
        return Attended(self.linear(self.dropout(vectors.flatten(1))), {stage: maps})
