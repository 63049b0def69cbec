"""Confidence sequences, by known answers, a slow replica and simulation."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from xattn.metrics.confidence_sequences import BETS, decided_after, sequence_interval


def _capital(values: list[float], mean: float) -> list[float]:
    """The capital of who bets on a larger mean, value by value, in plain arithmetic."""
    of_bets, found = [1.0] * len(BETS), []
    for value in values:
        of_bets = [own * (1 - bet + bet * value / mean) for own, bet in zip(of_bets, BETS, strict=True)]
        found.append(sum(of_bets) / len(BETS))
    return found


def test_an_interval_holds_the_means_that_no_gambler_ever_won_against() -> None:
    draw = random.Random(3)
    values = [draw.betavariate(0.5, 2) for _ in range(60)]
    found = sequence_interval(values, (0, 1), confidence=0.9)
    for mean in (number / 200 for number in range(1, 200)):
        above, below = max(_capital(values, mean)), max(_capital([1 - value for value in values], 1 - mean))
        assert (found.low <= mean <= found.high) == (above < 20 and below < 20), mean
    assert found.n == 60
    assert found.mean == pytest.approx(sum(values) / 60)


def test_a_true_mean_leaves_the_expected_capital_at_one() -> None:
    one, other = 0.1, 0.7
    share = (0.3 - other) / (one - other)  # of the first, for a mean of 0.3
    expected = share * _capital([one], 0.3)[-1] + (1 - share) * _capital([other], 0.3)[-1]
    assert expected == pytest.approx(1)
    twice = sum(
        (share if first == one else 1 - share) * (share if second == one else 1 - share) * _capital([first, second], 0.3)[-1]
        for first in (one, other)
        for second in (one, other)
    )
    assert twice == pytest.approx(1)


def test_constant_differences_are_decided_when_the_best_share_has_won_enough() -> None:
    after = decided_after([0.2] * 100, 1.0)
    won = [sum((1 + bet * 0.2) ** n for bet in BETS) / len(BETS) for n in range(101)]
    assert after == next(n for n in range(101) if won[n] >= 40)
    assert decided_after([-0.2] * 100, 1.0) == after == decided_after([-20.0] * 100, 100.0)
    assert decided_after([0.2] * (int(after) - 1), 1.0) == math.inf
    assert decided_after([math.nan, 0.2] * 100, 1.0) == after
    assert decided_after([0.2] * 100, 1.0, confidence=0.999) > after


def test_what_decides_is_that_the_interval_leaves_0_or_lies_within_the_margin() -> None:
    draw = random.Random(5)
    for shift, margin in ((0.1, None), (0.0, 0.15), (0.05, 0.3)):
        values = [draw.uniform(-0.5, 0.5) + shift for _ in range(400)]
        after = decided_after(values, 1.0, margin)
        assert 1 < after < 400
        for n, decided in ((int(after) - 1, False), (int(after), True)):
            low, high = sequence_interval(values[:n], (-1, 1))[1:3]
            assert (low > 0 or high < 0 or (margin is not None and -margin < low and high < margin)) == decided


def test_equal_methods_are_decided_by_a_margin_alone_and_looking_ahead_says_when() -> None:
    same = [0.0] * 30
    assert decided_after(same, 1.0) == decided_after(same, 1.0, ahead=True) == math.inf
    assert decided_after(same, 1.0, margin=0.05) == math.inf
    assert decided_after(same, 1.0, margin=0.05, ahead=True) == decided_after([0.0] * 300, 1.0, margin=0.05) < 300
    assert decided_after([], 1.0, ahead=True) == math.inf


def test_more_values_never_widen_an_interval_and_none_gives_the_limits() -> None:
    draw = random.Random(6)
    values = [draw.random() * 100 for _ in range(80)]
    found = [sequence_interval(values[:n], (0, 100)) for n in range(5, 80, 5)]
    assert all(before.low <= after.low and after.high <= before.high for before, after in itertools.pairwise(found))
    nothing = sequence_interval([], (0, 100))
    assert (nothing.low, nothing.high, nothing.n) == (0, 100, 0)


def test_equal_methods_are_ordered_at_any_time_in_fewer_than_5_percent_of_runs() -> None:
    draw = random.Random(7)
    wrong = sum(math.isfinite(decided_after([draw.choice((-1.0, 0.0, 0.0, 1.0)) for _ in range(400)], 1.0)) for _ in range(300))
    assert wrong <= 15
