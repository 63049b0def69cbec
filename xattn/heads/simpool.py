"""SimPool: attention pooling whose query is the average of the features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xattn.attention import align, check_names, distribution
from xattn.errors import SettingError
from xattn.heads.base import Attended, HeadMetadata, HeadSettings, NetworkInfo, PoolingHead, fixed_size, heads

EPSILON = 1e-6


@heads.register("simpool", HeadMetadata(source="Psomas et al. 2023, Alg. 1", replaces="pooling"))
@dataclass(frozen=True)
class SimPool(HeadSettings):
    """The average of the features attends to the normalised features; their weighted power mean replaces the pooled vector.

    Attributes:
        gamma: exponent of the power mean; the paper's for convolutional networks is 2, for transformers 1.25. None: the weighted mean of
            the normalised features.
        align: how the query scores the features, `xattn list alignments`; one setting can follow, as in `align=additive:hidden=64`. The
            paper's is scaled-dot.
        distribution: how weights are computed from the scores, `xattn list distributions`; generalised-kernel takes only "sum".
    """

    gamma: float | None = 2.0
    align: str = "scaled-dot"
    distribution: str = "softmax"

    def __post_init__(self) -> None:
        check_names(self.align, self.distribution)
        if self.gamma is not None and not 0 < self.gamma < math.inf:
            raise SettingError(f"simpool takes a gamma above 0, or none; got gamma={self.gamma}.")

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> SimPoolHead:
        """The module, with new weights."""
        return SimPoolHead(channels[-1], self, math.prod(info.sizes[-1]) if info.sizes else None)


class SimPoolHead(PoolingHead):
    """SimPool as a module: features `(B, C, h, w)` → vectors `(B, C)`.

    With x the layer-normalised features and q the projected average of the features: α = softmax(q · W_k x / √C), and the vector is
    (Σ α (x − min x)^γ)^(1/γ). With another alignment, q and W_k x are its query and keys.

    Args:
        channels: C.
        settings: of the head.
        positions: h · w, for an alignment whose number of positions is fixed.

    Differs: the minimum is over each image; the released code uses that of the batch, so that an image's vector depends on the others.
    """

    def __init__(self, channels: int, settings: SimPool | None = None, positions: int | None = None) -> None:
        super().__init__()
        self.settings = settings or SimPool()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.align = align(self.settings.align, channels, channels, positions)
        self.distribution = distribution(self.settings.distribution)

    @property
    def fixed_size(self) -> str:
        return fixed_size(self.settings.align)

    def attend(self, features: Tensor, stage: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Vector, map and scores.

        Args:
            features: `(B, C, h, w)`.
            stage: name under which the map is returned.
            seeds: not used; nothing is random.
        """
        flat = features.flatten(2).transpose(1, 2)
        values = self.norm(flat)
        keys = self.key(values)
        scores = self.align(self.query(flat.mean(dim=1)), keys)[:, None]
        attention = self.distribution(scores)
        values = values.to(attention.dtype)
        gamma = self.settings.gamma
        with torch.autocast(features.device.type, enabled=False):
            if gamma is None:
                vectors = torch.bmm(attention, values)[:, 0]
            else:
                powers = (values - values.amin(dim=(1, 2), keepdim=True) + EPSILON) ** gamma
                vectors = torch.bmm(attention, powers)[:, 0] ** (1 / gamma)
        shape = (len(features), 1, *features.shape[2:])
        return Attended(vectors.to(flat.dtype), {stage: attention.view(shape)}, {stage: scores.view(shape)})

    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """The unchanged attention, `(B, h, w)`; the features are not used."""
        return maps[:, 0]
