"""Confidence sequences: intervals of a mean that are valid for all numbers of values at once, so that one may stop at any time."""

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
"""Shares of the capital to bet, from those for large spreads and small differences to those for the opposite."""
HALVINGS = 40  # steps of the bisection for an end of an interval


def sequence_interval(values: Sequence[float], limits: tuple[float, float], confidence: float = CONFIDENCE) -> Interval:
    """The interval of a mean from a confidence sequence: with this confidence, the intervals for all n contain the mean simultaneously.

    For each candidate mean m, one gambler bets that the true mean is larger and another that it is smaller. Each divides the capital
    equally over five constant bet sizes. If m is true, the capital is a martingale, and by Ville's inequality the probability that it ever
    grows by a factor of 2 / (1 − confidence) is at most half the error. The interval contains the means against which no gambler ever
    reached this factor. Only the limits of the values are assumed, not their distribution. NaNs are left out.

    Source: Waudby-Smith and Ramdas 2024, the hedged capital process, with a mixture of constant bets.
    **Differs** from their default, bets of a predicted size that shrink with n: these are as short at a hundred values, and shorter at
    thousands. The interval is intersected with those of fewer values, so that the mean of the values may lie outside after a drift.

    Args:
        values: `(n,)`, in the order in which they came.
        limits: lowest and highest value that there can be, finite.
        confidence: coverage at all n together.

    Raises:
        InputError: the limits are not finite, or the confidence is not a valid one.

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
    """Number of differences after which their confidence sequence first excludes 0, or lies within ± a margin; infinity if it never does.

    Args:
        differences: `(n,)`, in the order in which they came; NaNs are left out and not counted.
        span: largest magnitude that there can be.
        margin: positive; the largest difference that does not matter; None: pairs end only when 0 is excluded.
        confidence: of the sequence.
        ahead: repeat the same differences, up to 100,000: an estimate of the number needed if later differences are like these.

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
    """Logarithm of the capital at which a mean is rejected, for each of the two gamblers."""
    return math.log(2 / (1 - confidence))


def _log_capital(unit: Array, mean: float) -> Array:
    """Log capital after each value, `(n,)`, of the gambler who bets that the true mean is above this one. It decreases with the mean."""
    import numpy as np

    of_bets = np.stack([np.cumsum(np.log1p(bet * (unit / mean - 1))) for bet in BETS])
    found: Array = np.logaddexp.reduce(of_bets, axis=0) - math.log(len(BETS))
    return found


def _first(unit: Array, mean: float, needed: float) -> float:
    """Number of values after which the capital is first large enough; infinity if it never is."""
    won = _log_capital(unit, mean) >= needed
    return int(won.argmax()) + 1 if won.any() else math.inf


def _end(unit: Array, needed: float) -> float:
    """The largest mean that is too low, by bisection; 0 if none is."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _log_capital(unit, middle).max() >= needed else (low, middle)
    return low
