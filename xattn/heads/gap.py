"""GAP: the network's own pooling and classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.heads.base import Attended, Head, HeadMetadata, HeadSettings, NetworkInfo, heads


@heads.register("gap", HeadMetadata(source="the network's own", replaces="nothing", attention=False))
@dataclass(frozen=True)
class Gap(HeadSettings):
    """The network's own pooling and classifier, untouched."""

    def stages(self, info: NetworkInfo) -> tuple[str, ...]:
        """No stages: the network runs unchanged."""
        return ()

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> GapHead:
        """A module without weights."""
        return GapHead()


class GapHead(Head):
    """Placeholder for the head of a network that keeps its own pooling and classifier."""

    def read(self, attended: Attended, stage: str, features: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Does nothing, since this head reads no stage."""

    def saliency(self, features: Tensor, maps: Tensor | None = None) -> Tensor:
        """The norm of each feature vector.

        Args:
            features: `(B, C, h, w)`.
            maps: not used.

        Returns:
            `(B, h, w)`, ≥ 0.
        """
        norms: Tensor = torch.linalg.vector_norm(features, dim=1)
        return norms
