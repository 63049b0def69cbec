"""The network's own pooling and classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xattn.heads import HeadFacts, heads


@heads.register("gap", HeadFacts(source="the network's own", trained=False))
class Gap(nn.Module):
    """The network's own pooling and classifier, untouched."""

    def saliency(self, features: Tensor) -> Tensor:
        """What the head looks at: the norm of each feature vector.

        Args:
            features: `(B, C, h, w)`.

        Returns:
            `(B, h, w)`, ≥ 0.
        """
        norms: Tensor = torch.linalg.vector_norm(features, dim=1)
        return norms
