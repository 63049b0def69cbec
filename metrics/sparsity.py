"""Sparsity of a raw map: how small its peaks are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xattn.deferred import torch
from xattn.metrics.base import Aggregation, RawMapMetric, register
from xattn.metrics.inputs import as_maps
from xattn.metrics.probability import widened

if TYPE_CHECKING:
    from torch import Tensor

RELEASED_EPSILON = 1e-5

Definition = Literal["max-over-mean", "minmax", "released"]


@register("sparsity", symbol="S", better="higher", limits=(1, float("inf")), unit="1", source="Gomez et al. 2021, Sec. 4.2")
@dataclass(frozen=True)
class Sparsity(RawMapMetric):
    """Peak of the raw map over its mean.

    Attributes:
        definition: "max-over-mean"; "minmax": 1 / mean of the min-maxed map; "released": BR-NPA's code, see `sparsity`.
    """

    definition: Definition = "max-over-mean"

    @property
    def aggregation(self) -> Aggregation:
        """For "released", a table's cell is the inverse of the mean over images, not the mean of the inverses."""
        return "harmonic mean" if self.definition == "released" else "mean"

    def of_raw_maps(self, raw_maps: Tensor, head_maps: Tensor | None = None) -> Tensor:
        several = self.definition == "released" and head_maps is not None
        return sparsity(head_maps if several and head_maps is not None else raw_maps, definition=self.definition)


def sparsity(raw_maps: Tensor, *, definition: Definition = "max-over-mean") -> Tensor:
    """a_max / a_mean of each raw map at its own resolution, negatives set to 0. Definitions, Metrics.

    Args:
        raw_maps: `(B, h, w)`; with "released" also `(B, N, h, w)`, a head's N maps, each times the norm of the features over their
            largest norm.
        definition: "max-over-mean"; "minmax": 1 / mean of the min-maxed map; "released": the inverse of the mean over all maps, each
            divided by its own maximum, as in BR-NPA's code; one of several maps that is all zeros counts as 0. A mean over images is then
            harmonic. 1e-5 is added to the maximum of each of N maps, whose scale is known, as in that code.

    Returns:
        `(B,)` float64, ≥ 1, unitless: n/k for k equal peaks among n cells; NaN for a map without a positive value, or not finite.
        Higher is better.

    >>> import torch
    >>> sparsity(torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]))
    tensor([4., 1.], dtype=torch.float64)
    """
    if definition != "released" or not isinstance(raw_maps, torch.Tensor) or raw_maps.dim() != 4:
        raw_maps = as_maps(raw_maps, "raw maps")
    values = widened(raw_maps)
    if definition == "released":
        several = raw_maps.dim() == 4
        values = values.clamp(min=0).flatten(2) if several else values.clamp(min=0).flatten(1)[:, None]
        peaks = values.amax(2, keepdim=True) + (RELEASED_EPSILON if several else 0)
        peak, mean = torch.ones_like(values[:, 0, 0]), (values / torch.where(peaks == 0, 1, peaks)).mean(dim=(1, 2))
    else:
        values = values.flatten(1)
        if definition == "minmax":
            low, high = values.aminmax(dim=1, keepdim=True)
            values = (values - low) / (high - low)
        values = values.clamp(min=0)
        peak, mean = values.amax(1), values.mean(1)
    return torch.where(torch.isfinite(mean) & (mean > 0), peak / mean, torch.nan)
