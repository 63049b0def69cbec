"""Chooses which points of a curve to evaluate: first a few, then points in between where the curve bends most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xattn.deferred import torch

if TYPE_CHECKING:
    from torch import Tensor


FALLING, RISING = (1 / 16, 1 / 8, 1 / 4, 1 / 2), (1 / 8, 1 / 4, 1 / 2, 3 / 4)


def first_points(count: int, *, early: bool) -> Tensor:
    """The steps to evaluate first, of `count` including the ends, which are left out: the quarters and an eighth, since most curves rise at
    first; with `early`, halves towards the beginning, since the target's probability falls with the first removed pixels."""
    last = count - 1
    points: Tensor = torch.tensor([int(last * share) for share in (FALLING if early else RISING)]).unique()
    return points[(points > 0) & (points < last)]


def interpolated(p: Tensor, shares: Tensor) -> Tensor:
    """Interpolates a curve with monotone cubic pieces between the evaluated points (Fritsch and Butland 1984; SciPy's `PchipInterpolator`).

    Straight lines cut off the bends, all on the same side; a cubic that stays between its neighbouring values adds no bend of its own.

    Args:
        p: `(B, T + 1)`, NaN where it is not known; both ends are known.
        shares: `(B, T + 1)`.

    Returns:
        `(B, T + 1)`, the known values unchanged, NaN where an evaluation gave no number.
    """
    known = ~p.isnan()
    before, after = _neighbours(known)
    slope, width, _ = _chord(p, shares, before, after)
    tangents = _tangents(p, shares, before, after)
    part = (shares - shares.gather(1, before)) / width
    bend = (1 - part) * (tangents.gather(1, before) - slope) - part * (tangents.gather(1, after) - slope)
    cubic = torch.lerp(p.gather(1, before), p.gather(1, after), part) + width * part * (1 - part) * bend
    found = torch.where(known, p, cubic)
    return found.masked_fill(~found.isfinite(), torch.nan)


def _tangents(p: Tensor, shares: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The curve's slope at each known point: the harmonic mean of the chords on both sides, 0 where their signs differ. Meaningless
    elsewhere."""
    last = p.shape[1] - 1
    places = torch.arange(last + 1, device=p.device).expand_as(p)
    previous, following = before.gather(1, (places - 1).clamp(min=0)), after.gather(1, (places + 1).clamp(max=last))
    left, left_width, _ = _chord(p, shares, previous, places)
    right, right_width, _ = _chord(p, shares, places, following)
    heavy, light = 2 * right_width + left_width, right_width + 2 * left_width
    tangents = torch.where(left * right > 0, (heavy + light) / (heavy / left + light / right), 0.0)
    second, second_last = following[:, :1], previous[:, -1:]
    tangents[:, :1] = _at_end(right[:, :1], right_width[:, :1], right.gather(1, second), right_width.gather(1, second))
    tangents[:, -1:] = _at_end(left[:, -1:], left_width[:, -1:], left.gather(1, second_last), left_width.gather(1, second_last))
    return tangents


def _at_end(first: Tensor, width: Tensor, second: Tensor, second_width: Tensor) -> Tensor:
    """The slope at an end: that of a parabola through three points, limited so that the piece stays monotone; with two points, that of the
    line."""
    parabola = ((2 * width + second_width) * first - width * second) / (width + second_width)
    held = torch.where((first * second < 0) & (parabola.abs() > 3 * first.abs()), 3 * first, parabola)
    return torch.where(second.isnan(), first, torch.where(held * first > 0, held, 0.0))


def next_points(p: Tensor, shares: Tensor, tolerance: float) -> Tensor:
    """The next step of each curve to evaluate: `(B, T + 1)` bool, at most one per curve, none if the area is known well enough.

    Between two known points a and b, the error of a straight line's area is estimated by the geometric mean of two guesses: the area
    between the line and a parabola through the neighbours (where the curve bends), and half of the rectangle from a to b, which no monotone
    curve exceeds.

    Args:
        p: `(B, T + 1)`, NaN where it is not known; both ends are known.
        shares: `(B, T + 1)`.
        tolerance: percent of area; the errors may add up to this.
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
    """Slope, width and rise between two points; the slope is NaN where they coincide."""
    width = shares.gather(1, stop) - shares.gather(1, start)
    rise = p.gather(1, stop) - p.gather(1, start)
    return rise / width, width, rise


def _neighbours(known: Tensor) -> tuple[Tensor, Tensor]:
    """For each point, the last known one at or before it and the first known one at or after it; both ends are known."""
    places = torch.arange(known.shape[1], device=known.device).expand_as(known)
    before = torch.where(known, places, 0).cummax(dim=1).values
    after = torch.where(known, places, known.shape[1] - 1).flip(1).cummin(dim=1).values.flip(1)
    return before, after
