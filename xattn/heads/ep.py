"""Efficient probing: several learnt queries on the features themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from xattn.attention import check_names, distribution
from xattn.errors import SettingError
from xattn.heads.base import Attended, ClassifierHead, HeadMetadata, HeadSettings, NetworkInfo, heads
from xattn.registry import AtMost


@heads.register("ep", HeadMetadata(source="Psomas et al. 2025", replaces="classifier"))
@dataclass(frozen=True)
class EfficientProbing(HeadSettings):
    """Learnt queries attend to the features without a key projection; each weights its own slice of projected values; → linear.

    The scores are products with the features themselves, which saves parameters: there is no setting for the alignment.

    Attributes:
        queries: number of queries, and of attention maps.
        d_out: divisor of the number of channels in the value projection.
        distribution: how weights are computed from the scores, `xattn list distributions`; the paper's is softmax.
    """

    queries: Annotated[int, AtMost(4_096)] = 32
    d_out: Annotated[int, AtMost(4_096)] = 1
    distribution: str = "softmax"

    def __post_init__(self) -> None:
        check_names(None, self.distribution)
        if self.queries < 1 or self.d_out < 1:
            raise SettingError(f"ep takes queries and d_out of at least 1; got queries={self.queries}, d_out={self.d_out}.")

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> EfficientProbingHead:
        """The module, with new weights."""
        return EfficientProbingHead(channels[-1], classes, self)


class EfficientProbingHead(ClassifierHead):
    """Efficient probing as a module: features `(B, C, h, w)` → logits `(B, K)`.

    α_m = softmax(q_m · x / √C); the m-th slice of the vector is Σ α_m v_m, where v_m is the m-th slice of W_v x. A batch normalisation
    without weights precedes the linear layer, as in the released probes.

    Args:
        channels: C.
        classes: K.
        settings: of the head.

    Differs: if C / d_out is not a multiple of the number of queries, slices are rounded down, to at least one channel; the released code
    takes only multiples.
    """

    def __init__(self, channels: int, classes: int, settings: EfficientProbing | None = None) -> None:
        super().__init__()
        self.settings = settings or EfficientProbing()
        width = max(1, channels // self.settings.d_out // self.settings.queries) * self.settings.queries
        self.distribution = distribution(self.settings.distribution)
        self.queries = nn.Parameter(torch.randn(self.settings.queries, channels) * 0.02)
        self.value = nn.Linear(channels, width, bias=False)
        self.norm = nn.BatchNorm1d(width, eps=1e-6, affine=False)
        self.linear = nn.Linear(width, classes)

    def attend(self, features: Tensor, stage: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Logits, maps and scores.

        Args:
            features: `(B, C, h, w)`.
            stage: name under which the maps are returned.
            seeds: not used; nothing is random.
        """
        flat = features.flatten(2)
        queries = self.queries / math.sqrt(flat.shape[1])  # scaled before the product, which could overflow in half precision
        scores = queries.to(flat.dtype) @ flat
        attention = self.distribution(scores)
        values = self.value(flat.transpose(1, 2)).unflatten(2, (self.settings.queries, -1))
        vectors = torch.einsum("bmp,bpmd->bmd", attention.to(values.dtype), values).flatten(1)
        shape = (len(features), self.settings.queries, *features.shape[2:])
        return Attended(self.linear(self.norm(vectors)), {stage: attention.view(shape)}, {stage: scores.view(shape)})

    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """The mean of its maps, `(B, h, w)`; the features are not used."""
        return maps.mean(dim=1)
