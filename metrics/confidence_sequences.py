"""Confidence sequences: intervals of a mean that hold at every number of values at once, so that the values may say when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xattn.errors import InputError
from xattn.metrics.statistics import CONFIDENCE, MOST_NEEDED, Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

BETS = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 0.95)
"""Shares of the capital that are bet, from those for large spreads and small differences to those for the opposite."""
HALVINGS = 40  # of an end of an interval


def sequence_interval(values: Sequence[float], limits: tuple[float, float], confidence: float = CONFIDENCE) -> Interval:
    """The interval of a mean from a confidence sequence: with this confidence, all intervals of all first n values hold together.

    A gambler bets against each mean m that the true one is larger, and another that it is smaller, each with a fifth of the capital on
    each of five constant shares of it. If m is true, the capital is a martingale, and by Ville's inequality ever grows 2 / (1 − confidence)
    fold with a probability of at most half the error; the interval holds the means against which nobody ever won as much. Nothing but the
    limits is assumed of the values' distribution. NaNs are left out.

    Source: Waudby-Smith and Ramdas 2024, the hedged capital process, with a mixture of constant bets.
    **Differs** from their default, bets of a predicted size that shrink with n: these are as short at a hundred values, and shorter at
    thousands. The interval is intersected with those of fewer values, so that the mean of the values may lie outside after a drift.

    Args:
        values: `(n,)`, in the order in which they came.
        limits: lowest and highest value that there can be, finite.
        confidence: coverage at all n together.

    Raises:
        InputError: limits that are not finite, or a confidence that is none.

    >>> found = sequence_interval([0.0, 1.0] * 50, (0, 1))
    >>> found.mean, round(found.low, 2), round(found.high, 2)
    (0.5, 0.35, 0.65)
    """
    if not all(map(math.isfinite, limits)) or not limits[0] < limits[1] or not 0 < confidence < 1:
        raise InputError(f"a confidence sequence needs two finite limits and a confidence between 0 and 1; got {limits} and {confidence}.")
    unit = _unit(values, limits)
    n = len(unit)
    if n == 0:
        return Interval(math.nan, *limits, 0)
    needed = _threshold(confidence)
    low = _end(unit, needed)
    high = 1 - _end(1 - unit, needed)
    mean, low, high = (limits[0] + (limits[1] - limits[0]) * share for share in (float(unit.mean()), low, high))
    return Interval(mean, low, high, n)


def decided_after(
    differences: Sequence[float], span: float, margin: float | None = None, confidence: float = CONFIDENCE, *, ahead: bool = False
) -> float:
    """After how many differences their confidence sequence first excludes 0, or lies within ± a margin; infinity if it never does.

    Args:
        differences: `(n,)`, in the order in which they came; NaNs are left out and not counted.
        span: largest magnitude that there can be.
        margin: positive; the largest difference that does not matter; None: pairs end by excluding 0 alone.
        confidence: of the sequence.
        ahead: go on with the same differences again and again, to 100,000: about how many it will take, if those to come are like these.

    >>> decided_after([0.2] * 100, 1.0), decided_after([0.0] * 100, 1.0), decided_after([0.0] * 100, 1.0, margin=0.1)
    (30, inf, 52)
    """
    import numpy as np

    unit = _unit(differences, (-span, span))
    if ahead and len(unit):
        unit = np.tile(unit, max(1, MOST_NEEDED // len(unit)))
    needed = _threshold(confidence)
    found = min(_first(unit, 0.5, needed), _first(1 - unit, 0.5, needed))
    if margin is not None and margin < span:
        half = margin / span / 2
        found = min(found, max(_first(unit, 0.5 - half, needed), _first(1 - unit, 0.5 - half, needed)))
    return found


def _unit(values: Sequence[float], limits: tuple[float, float]) -> Array:
    """The finite values, from 0 at the lower limit to 1 at the upper."""
    import numpy as np

    given = np.asarray(values, dtype=np.float64)
    return np.clip((given[np.isfinite(given)] - limits[0]) / (limits[1] - limits[0]), 0, 1)


def _threshold(confidence: float) -> float:
    """Logarithm of the capital that speaks against a mean, of either of two gamblers."""
    return math.log(2 / (1 - confidence))


def _log_capital(unit: Array, mean: float) -> Array:
    """Logarithm of the capital after each value, `(n,)`, of who bets that the true mean is above this one. It falls with the mean."""
    import numpy as np

    of_bets = np.stack([np.cumsum(np.log1p(bet * (unit / mean - 1))) for bet in BETS])
    found: Array = np.logaddexp.reduce(of_bets, axis=0) - math.log(len(BETS))
    return found


def _first(unit: Array, mean: float, needed: float) -> float:
    """After how many values the capital first is large enough; infinity if it never is."""
    won = _log_capital(unit, mean) >= needed
    return int(won.argmax()) + 1 if won.any() else math.inf


def _end(unit: Array, needed: float) -> float:
    """The largest mean that is too low, by bisection; 0 if none is."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _log_capital(unit, middle).max() >= needed else (low, middle)
    return low
