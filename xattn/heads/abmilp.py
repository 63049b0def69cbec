"""AbMILP: attention-based multiple-instance learning, positions as instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from xattn.attention import check_names, distribution
from xattn.errors import SettingError
from xattn.heads.base import Attended, ClassifierHead, HeadMaps, HeadMetadata, HeadSettings, NetworkInfo, heads
from xattn.registry import AtMost


@heads.register("abmilp", HeadMetadata(source="Ilse et al. 2018, Eqs. 8 and 9; Przewięźlikowski et al. 2024", replaces="classifier"))
@dataclass(frozen=True)
class AbMILP(HeadSettings):
    """A small network scores each feature vector; their mean, weighted by a softmax of the scores; → linear.

    The scoring network, which has no query, defines this head: there is no setting for the alignment.

    Attributes:
        hidden: width of the scoring network; Przewięźlikowski et al. use the number of channels.
        gated: multiply its tanh by a sigmoid gate (Eq. 9); False: only tanh (Eq. 8), as in Przewięźlikowski et al.
        distribution: how weights are computed from the scores, `xattn list distributions`; the papers' is softmax.
    """

    hidden: Annotated[int, AtMost(65_536)] = 128
    gated: bool = True
    distribution: str = "softmax"

    def __post_init__(self) -> None:
        check_names(None, self.distribution)
        if self.hidden < 1:
            raise SettingError(f"abmilp takes a hidden width of at least 1; got hidden={self.hidden}.")

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> AbMILPHead:
        """The module, with new weights."""
        return AbMILPHead(channels[-1], classes, self)


class AbMILPHead(ClassifierHead):
    """AbMILP as a module: features `(B, C, h, w)` → logits `(B, K)`.

    α = softmax(w · (tanh(V x) ⊙ σ(U x))); the vector is Σ α x.

    Args:
        channels: C.
        classes: K.
        settings: of the head.
    """

    def __init__(self, channels: int, classes: int, settings: AbMILP | None = None) -> None:
        super().__init__()
        self.settings = settings or AbMILP()
        self.distribution = distribution(self.settings.distribution)
        self.hidden = nn.Linear(channels, self.settings.hidden)
        self.gate = nn.Linear(channels, self.settings.hidden) if self.settings.gated else None
        self.score = nn.Linear(self.settings.hidden, 1)
        self.linear = nn.Linear(channels, classes)

    def attend(self, features: Tensor, stage: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Logits, map and scores.

        Args:
            features: `(B, C, h, w)`.
            stage: name under which the map is returned.
            seeds: not used; nothing is random.
        """
        flat = features.flatten(2).transpose(1, 2)
        hidden = self.hidden(flat).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(flat).sigmoid()
        scores = self.score(hidden).transpose(1, 2)
        attention = self.distribution(scores)
        vectors = torch.bmm(attention.to(flat.dtype), flat)[:, 0]
        shape = (len(features), 1, *features.shape[2:])
        return Attended(self.linear(vectors), {stage: attention.view(shape)}, {stage: scores.view(shape)})

    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """The unchanged attention, `(B, h, w)`; the features are not used."""
        return maps[:, 0]

    def head_maps(self, features: Tensor, maps: Tensor) -> HeadMaps | None:
        """None: the head has one map."""
        return None
