"""State of a perturbation curve while its steps are evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xattn.deferred import torch
from xattn.metrics.adaptive import first_points, next_points
from xattn.metrics.stream import PerturbedImages, of_rows

if TYPE_CHECKING:
    from torch import Tensor

    from xattn.metrics.fills import Fill
    from xattn.metrics.perturbations import Curve, RankedPixels


class Reply(NamedTuple):
    """Values read from the network's output for each perturbed image, `(n,)` float64.

    Attributes:
        p: the target's probability.
        rest: its complement.
        answers: 1 where the network's answer is the target, else 0.
        score: the target's score; NaN if no perturbation needs it.
        margin: the target's probability minus that of its contrast; NaN if no perturbation needs it.
    """

    p: Tensor
    rest: Tensor
    answers: Tensor
    score: Tensor
    margin: Tensor


class CurveState:
    """The known part of a curve, for the images of a batch under one mask.

    Attributes:
        p: `(B, T + 1)` float64, NaN where nothing was evaluated.
        answers: `(B, T + 1)` float64, 1 where the network's answer is the target, else 0; NaN where nothing was evaluated.
    """

    def __init__(self, curve: Curve, ranked: RankedPixels, fill: Fill, rows: Tensor) -> None:
        self.curve, self.ranked, self.fill, self.rows = curve, ranked, fill, rows
        self.p = self.answers = torch.empty(0)
        self.shares = ranked.shares.expand(len(fill.images), -1)
        self.asked: tuple[Tensor, Tensor] | None = None

    def begin(self) -> PerturbedImages | None:
        """The first steps to evaluate: all between the ends, or some."""
        steps = torch.arange(1, len(self.ranked.cuts) - 1, device=self.rows.device)
        if self.curve.tolerance is not None:
            steps = first_points(len(self.ranked.cuts), early=not self.curve.insertion).to(steps)
        rows, steps = self.rows.repeat_interleave(len(steps)), steps.repeat(len(self.rows))
        if self.ranked.counts is not None:
            left = self.ranked.cuts[steps] < self.ranked.counts[rows]
            rows, steps = rows[left], steps[left]
        return self._at(rows, steps)

    def more(self) -> PerturbedImages | None:
        """The next steps to evaluate; None if the curve is known accurately enough."""
        if self.curve.tolerance is None:
            return None
        rows = self.rows.to(self.p.device)
        wanted = next_points(self.p[rows], self.shares[rows], self.curve.tolerance)
        row, step = wanted.nonzero(as_tuple=True)
        return self._at(self.rows[row.to(self.rows.device)], step.to(self.rows.device))

    def end(self, base: Reply, original: Reply) -> None:
        """Sets the values at the two ends."""
        self.shares = self.shares.to(base.p.device)
        first, last = (base, original) if self.curve.insertion else (original, base)
        self.p, self.answers = (torch.full_like(self.shares, torch.nan) for _ in range(2))
        for known, start, stop in ((self.p, first.p, last.p), (self.answers, first.answers, last.answers)):
            known[:, 0], known[:, -1] = start, stop
            if self.ranked.counts is not None:
                known.copy_(torch.where(self.shares < 1, known, stop[:, None]))

    def take(self, found: Reply | None) -> None:
        """Sets the values at the steps that were requested last."""
        if found is not None and self.asked is not None:
            index, step = (which.to(self.p.device) for which in self.asked)
            self.p[index, step] = found.p.nan_to_num(nan=torch.inf)  # evaluated, but no number; NaN marks what was not evaluated
            self.answers[index, step] = found.answers

    def _at(self, index: Tensor, step: Tensor) -> PerturbedImages | None:
        self.asked = (index, step)

        def make(part: slice) -> tuple[Tensor, Tensor]:
            chosen = index[part]
            changed = of_rows(self.ranked.ranks, chosen) < self.ranked.cuts[step[part]][:, None, None]
            return self.fill(chosen, ~changed if self.curve.insertion else changed), chosen

        return PerturbedImages(len(index), make) if len(index) else None
