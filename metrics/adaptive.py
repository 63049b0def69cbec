"""Where a curve is worth looking at: at a few points first, then between those where it bends the most."""

from __future__ import annotations

import torch
from torch import Tensor

QUARTERS, HALVINGS = (1 / 4, 1 / 2, 3 / 4), (1 / 2, 1 / 4, 1 / 8, 1 / 16)


def first_points(count: int, *, early: bool) -> Tensor:
    """The steps to begin with, of `count` with the ends, which are left out: the quarters; or halves towards the beginning where most
    happens there, as a network forgets its target with the first pixels that are taken from it."""
    last = count - 1
    points: Tensor = torch.tensor([round(last * share) for share in (HALVINGS if early else QUARTERS)]).unique()
    return points[(points > 0) & (points < last)]


def spanned(p: Tensor, shares: Tensor) -> Tensor:
    """A curve with straight lines where it was not looked at: `(B, T + 1)`, NaN there, → `(B, T + 1)`, NaN where no number came."""
    before, after = _neighbours(~p.isnan())
    start, stop = shares.gather(1, before), shares.gather(1, after)
    part = torch.where(stop > start, (shares - start) / (stop - start), 0.0)
    line = torch.lerp(p.gather(1, before), p.gather(1, after), part)
    return line.masked_fill(~line.isfinite(), torch.nan)


def next_points(p: Tensor, shares: Tensor, tolerance: float) -> Tensor:
    """Which step of each curve to look at next: `(B, T + 1)` bool, at most one a curve, none where the area is known well enough.

    Between two known points a and b the area's error is estimated by the geometric mean of two guesses: what a parabola through the
    neighbours would leave out (where the curve bends), and half of the rectangle from a to b, which no monotone curve exceeds.

    Args:
        p: `(B, T + 1)`, NaN where it is not known; both ends are.
        shares: `(B, T + 1)`.
        tolerance: percent of area that the errors may add up to.
    """
    known = ~p.isnan()
    before, after = _neighbours(known)
    places = torch.arange(p.shape[1], device=p.device).expand_as(p)
    middle = ~known & (places == (before + after) // 2)
    slope, width, rise = _chord(p, shares, before, after)
    left, left_width, _ = _chord(p, shares, before.gather(1, (before - 1).clamp(min=0)), before)
    right, right_width, _ = _chord(p, shares, after, after.gather(1, (after + 1).clamp(max=p.shape[1] - 1)))
    bends = [(slope - left).abs() / (width + left_width), (slope - right).abs() / (width + right_width)]
    parabola = width**3 / 6 * torch.stack([bend.nan_to_num(0.0) for bend in bends]).amax(dim=0)
    error = torch.where(middle, 100 * (parabola * rise.abs() * width / 2).sqrt(), 0.0)
    worst = error.argmax(dim=1, keepdim=True)
    wanted = (error.sum(dim=1, keepdim=True) > tolerance) & (error.gather(1, worst) > 0)
    return torch.zeros_like(known).scatter_(1, worst, wanted)


def _chord(p: Tensor, shares: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope, width and rise between two points; the slope is NaN where they are one."""
    width = shares.gather(1, stop) - shares.gather(1, start)
    rise = p.gather(1, stop) - p.gather(1, start)
    return rise / width, width, rise


def _neighbours(known: Tensor) -> tuple[Tensor, Tensor]:
    """For each point the last known one up to it and the first known one from it on; both ends are known."""
    places = torch.arange(known.shape[1], device=known.device).expand_as(known)
    before = torch.where(known, places, 0).cummax(dim=1).values
    after = torch.where(known, places, known.shape[1] - 1).flip(1).cummin(dim=1).values.flip(1)
    return before, after
