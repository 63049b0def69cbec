"""MAP: multi-head attention pooling by one learnt query, with an MLP."""

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


@heads.register("map", HeadMetadata(source="Zhai et al. 2022 and 2023 (SigLIP); Yu et al. 2022 (CoCa)", replaces="classifier"))
@dataclass(frozen=True)
class MAP(HeadSettings):
    """A learnt query attends to the features with several attention heads; an MLP is added to the result; → linear.

    The attention is that of a transformer layer, scaled products in several attention heads: there is no setting for the alignment.

    Attributes:
        heads: number of attention heads, and of attention maps.
        mlp_ratio: hidden width of the MLP divided by the number of channels.
        distribution: how weights are computed from the scores, `xattn list distributions`; the papers' is softmax.
    """

    heads: int = 8
    mlp_ratio: Annotated[float, AtMost(1_024)] = 4.0
    distribution: str = "softmax"

    def __post_init__(self) -> None:
        check_names(None, self.distribution)
        if self.heads < 1 or not 0 < self.mlp_ratio < math.inf:
            raise SettingError(
                f"map takes heads of at least 1 and an mlp_ratio above 0; got heads={self.heads}, mlp_ratio={self.mlp_ratio}."
            )

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> MAPHead:
        """The module, with new weights.

        Raises:
            SettingError: the number of channels is not a multiple of the number of heads.
        """
        if channels[-1] % self.heads:
            raise SettingError(
                f"map splits the channels evenly over its attention heads; {info.stages[-1].name} of {info.name} has "
                f"{channels[-1]}, which is not a multiple of heads={self.heads}. Give a number of heads that divides it, such as "
                f"map:heads={math.gcd(channels[-1], 48)}."
            )
        return MAPHead(channels[-1], classes, self)


class MAPHead(ClassifierHead):
    """MAP as a module: features `(B, C, h, w)` → logits `(B, K)`.

    y = W_o · attention(W_q · latent, W_k x, W_v x); the vector is y + MLP(LayerNorm(y)). This is SigLIP's; CoCa's pooling is y.

    Args:
        channels: C, a multiple of the number of heads.
        classes: K.
        settings: of the head.
    """

    def __init__(self, channels: int, classes: int, settings: MAP | None = None) -> None:
        super().__init__()
        self.settings = settings or MAP()
        self.distribution = distribution(self.settings.distribution)
        wide = max(1, int(channels * self.settings.mlp_ratio))
        self.latent = nn.Parameter(torch.empty(1, channels))
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(channels, wide), nn.GELU(), nn.Linear(wide, channels))
        self.linear = nn.Linear(channels, classes)
        nn.init.trunc_normal_(self.latent, std=channels**-0.5)

    def attend(self, features: Tensor, stage: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Logits, maps and scores.

        Args:
            features: `(B, C, h, w)`.
            stage: name under which the maps are returned.
            seeds: not used; nothing is random.
        """
        flat = features.flatten(2).transpose(1, 2)
        several = (self.settings.heads, flat.shape[2] // self.settings.heads)
        query = self.query(self.latent).unflatten(1, several)[0] / math.sqrt(several[1])  # scaled before the product, which could overflow
        keys, values = (linear(flat).unflatten(2, several) for linear in (self.key, self.value))
        scores = torch.einsum("md,bpmd->bmp", query, keys)
        attention = self.distribution(scores)
        gathered = self.project(torch.einsum("bmp,bpmd->bmd", attention.to(values.dtype), values).flatten(1))
        vectors = gathered + self.mlp(self.norm(gathered))
        shape = (len(features), self.settings.heads, *features.shape[2:])
        return Attended(self.linear(vectors), {stage: attention.view(shape)}, {stage: scores.view(shape)})

    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """The mean of its maps, `(B, h, w)`; the features are not used."""
        return maps.mean(dim=1)
