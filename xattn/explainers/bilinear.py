"""Bilinear interpolation of many small maps, and the pixels that hold its extremes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Interpolation(NamedTuple):
    """Linear interpolation along one side: for each pixel, the two cells that it lies between, and the weight of the second."""

    lower: Tensor
    upper: Tensor
    weight: Tensor

    @classmethod
    def between(cls, cells: int, pixels: int, like: Tensor, align_corners: bool) -> Interpolation:
        """That of `torch.nn.functional.interpolate`, which takes several times as long on a CPU for a few maps of one channel."""
        steps = torch.arange(pixels, dtype=torch.float64)
        at = steps * (cells - 1) / max(pixels - 1, 1) if align_corners else ((steps + 0.5) * cells / pixels - 0.5).clamp(min=0)
        lower = at.floor()
        upper = (lower + 1).clamp(max=cells - 1)
        return cls(lower.long().to(like.device), upper.long().to(like.device), (at - lower).to(like))

    def outermost(self) -> Interpolation:
        """That of the first and last pixel between the centres of each two cells.

        There, a bilinear map is linear along each side, so these pixels hold its extremes.
        """
        changes = self.lower.diff() != 0
        ends = torch.ones_like(self.lower[:1], dtype=torch.bool)
        chosen = torch.cat([ends, changes]) | torch.cat([changes, ends])
        return Interpolation(*(values[chosen] for values in self))


def interpolated(maps: Tensor, sides: Sequence[Interpolation]) -> Tensor:
    """Maps `(n, h, w)` interpolated along their height and width."""
    down, across = sides
    lines = torch.lerp(maps.index_select(2, across.lower), maps.index_select(2, across.upper), across.weight)
    return torch.lerp(lines.index_select(1, down.lower), lines.index_select(1, down.upper), down.weight[:, None])
