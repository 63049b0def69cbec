"""Explainers that show a stage's features directly: their mean over the channels, and Eigen-CAM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.explainers.base import Need, register
from xattn.explainers.trace import Trace
from xattn.metrics.probability import widened


@register("activation-map", needs={Need.FEATURES}, source="the features, without a target")
def activation_map(trace: Trace) -> Tensor:
    """Mean over the channels of the feature maps; the same for every target.

    Returns:
        Raw map `(B, h, w)` at the stage's resolution; ≥ 0 after a rectifier.
    """
    return trace.features.mean(dim=1)


@register("eigen-cam", needs={Need.FEATURES}, source="Muhammad and Yeasin 2020")
@dataclass(frozen=True)
class EigenCAM:
    """Feature vectors projected on their first right singular vector; the same for every target.

    Attributes:
        centred: subtract each channel's mean first, as pytorch-grad-cam does: the vector is then the first principal component.

    Differs: the sign of a singular vector is arbitrary; here the cell of the largest magnitude is positive. For features after a rectifier,
    the map is then ≥ 0. Computed in float64, from the eigenvectors of the smaller of the two Gram matrices.
    """

    centred: bool = False

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)`, signed, at the stage's resolution; NaN for an image whose features are not finite."""
        vectors = widened(trace.features).flatten(2).transpose(1, 2)  # (B, cells, channels)
        if self.centred:
            vectors = vectors - vectors.mean(dim=1, keepdim=True)
        finite = vectors.isfinite().all(dim=2).all(dim=1)
        vectors = torch.where(finite[:, None, None], vectors, 0)
        cells, channels = vectors.shape[1:]
        if cells <= channels:
            values, left = torch.linalg.eigh(vectors @ vectors.mT)  # eigenvalues ascend
            projected = left[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
        else:
            right = torch.linalg.eigh(vectors.mT @ vectors).eigenvectors[:, :, -1:]
            projected = (vectors @ right)[:, :, 0]
        strongest = projected.gather(1, projected.abs().argmax(dim=1, keepdim=True))
        projected = torch.where(strongest < 0, -projected, projected).masked_fill(~finite[:, None], torch.nan)
        return projected.view(-1, *trace.features.shape[2:]).to(trace.features)
