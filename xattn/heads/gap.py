"""The network's own pooling and classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.heads.facts import Head, HeadFacts, Site, heads


@heads.register("gap", HeadFacts(source="the network's own", replaces="nothing", attention=False))
@dataclass(frozen=True)
class Gap:
    """The network's own pooling and classifier, untouched."""

    def places(self, site: Site) -> tuple[str, ...]:
        """None: the network runs as it is."""
        return ()

    def build(self, channels: Sequence[int], classes: int) -> GapHead:
        """A module without weights."""
        return GapHead()


class GapHead(Head):
    """Stands where other heads have weights."""

    def saliency(self, features: Tensor, maps: Tensor | None = None) -> Tensor:
        """What the head looks at: the norm of each feature vector.

        Args:
            features: `(B, C, h, w)`.
            maps: none.

        Returns:
            `(B, h, w)`, ≥ 0.
        """
        norms: Tensor = torch.linalg.vector_norm(features, dim=1)
        return norms
