"""Bootstrap intervals and tests of pairs, by known answers, outside references and simulation."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from scipy import stats

from xattn.metrics.paired_tests import (
    better_share,
    bootstrap_interval,
    bootstrap_intervals,
    difference_of_proportions,
    equivalence,
    mcnemar,
)
from xattn.metrics.statistics import holm, mean_interval, signed_rank

# Of 21 children, before and after a transplantation hyper-responsive (Bentur et al. 2009): both 1, before alone 1, after alone 7.
BEFORE = [True, True, *[False] * 7, *[False] * 12]
AFTER = [True, False, *[True] * 7, *[False] * 12]


def test_mcnemar_s_exact_test_of_the_transplantations_is_0_07() -> None:
    assert mcnemar(BEFORE, AFTER) == pytest.approx(0.0703, abs=5e-5)  # Fagerland et al. 2013, exact conditional test
    assert mcnemar(BEFORE, BEFORE) == 1.0


def test_mcnemar_s_test_is_statsmodels_exact_one() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    one, other = [True] * 150 + [False] * 86 + [True] * 9, [False] * 150 + [True] * 86 + [True] * 9
    assert mcnemar(one, other) == pytest.approx(tables.mcnemar([[9, 150], [86, 0]], exact=True).pvalue)


def test_the_interval_of_a_difference_of_proportions_is_bonett_and_price_s() -> None:
    found = difference_of_proportions(BEFORE, AFTER)
    one, other, z = 2 / 23, 8 / 23, stats.norm.ppf(0.975)
    half = z * math.sqrt((one + other - (one - other) ** 2) / 23)
    assert found == pytest.approx((-6 / 21, one - other - half, one - other + half, 21))
    assert difference_of_proportions(AFTER, BEFORE)[:3] == pytest.approx((6 / 21, -found.high, -found.low))
    same = difference_of_proportions(BEFORE, BEFORE)
    assert same.low < 0 == same.mean < same.high


def test_the_bootstrap_is_scipy_s_and_the_same_at_every_call() -> None:
    draw = random.Random(2)
    values = [draw.expovariate(1) for _ in range(40)]
    found = bootstrap_interval(values)
    wanted = stats.bootstrap((values,), lambda x, axis: x.mean(axis=axis), n_resamples=9999, random_state=1).confidence_interval
    assert found.name == "BCa"
    assert (found.interval.low, found.interval.high) == pytest.approx((wanted.low, wanted.high), abs=0.02)
    assert bootstrap_interval(values) == found
    assert bootstrap_interval(values, (1, 1.5)).interval[1:3] == (1, 1.5)


def test_several_intervals_are_those_of_each_whatever_is_beside_them() -> None:
    draw = random.Random(0)
    several = [[draw.gauss(0, 1) ** (1 + number % 3) for _ in range(25 + number % 2)] for number in range(11)]
    several[3:3] = [[2.0] * 25, [1.0], [0.0] * 24 + [5.0]]  # where it degenerates
    for found, values in zip(bootstrap_intervals(iter(several), (-9, 9)), several, strict=True):
        alone = bootstrap_interval(values, (-9, 9))
        assert found.name == alone.name
        assert found.interval == pytest.approx(alone.interval, rel=1e-12, nan_ok=True)
    assert list(bootstrap_intervals([])) == []


def test_several_intervals_of_values_that_tie_are_to_the_last_digit_those_of_each() -> None:
    draw = random.Random(0)
    several = [[round(2 * draw.gauss(0, 1)) / 10 for _ in range(20)] for _ in range(6)]  # resamples tie with the mean up to rounding
    several += [[draw.gauss(0, 1) if number % 9 == 0 else 0.0 for number in range(50)] for _ in range(6)]
    assert list(bootstrap_intervals(several)) == [bootstrap_interval(values) for values in several]


def test_the_bootstrap_survives_ties_and_is_student_s_where_it_degenerates() -> None:
    mostly_zero = bootstrap_interval([0.0] * 37 + [1.0, 2.0, 4.0])
    assert mostly_zero.name == "BCa"
    assert 0 <= mostly_zero.interval.low < mostly_zero.interval.mean < mostly_zero.interval.high
    for values in ([3.0] * 30, [1.0, 2.0, 4.0, 8.0]):
        assert bootstrap_interval(values) == (mean_interval(values), "Student")
    assert bootstrap_interval([1.0]).name == ""


@pytest.mark.parametrize("seed", range(3))
def test_pratt_s_test_counts_all_signs_of_the_ranks_that_zeros_share_in(seed: int) -> None:
    draw = random.Random(seed)
    difference = [float(draw.randrange(-2, 4)) for _ in range(12)]
    ranks = stats.rankdata([abs(value) for value in difference])
    kept = [(rank, value) for rank, value in zip(ranks, difference, strict=True) if value != 0]
    observed = sum(rank for rank, value in kept if value > 0) - sum(rank for rank, value in kept if value < 0)
    sums = [sum(sign * rank for sign, (rank, _) in zip(signs, kept, strict=True)) for signs in itertools.product((-1, 1), repeat=len(kept))]
    wanted = sum(abs(each) >= abs(observed) - 1e-9 for each in sums) / len(sums)
    assert signed_rank(difference, zeros="pratt") == pytest.approx(wanted)


def test_pratt_s_test_of_many_is_scipy_s() -> None:
    draw = random.Random(3)
    many = [round(draw.gauss(0.1, 1), 1) for _ in range(600)]
    assert 0 in many
    assert signed_rank(many, zeros="pratt") == pytest.approx(stats.wilcoxon(many, zero_method="pratt", method="asymptotic").pvalue)


def test_equivalence_is_statsmodels_two_one_sided_tests() -> None:
    weights = pytest.importorskip("statsmodels.stats.weightstats")
    draw = random.Random(4)
    values = [draw.gauss(0.3, 1) for _ in range(30)]
    assert equivalence(values, 0.8) == pytest.approx(weights.DescrStatsW(values).ttost_mean(-0.8, 0.8)[0])
    assert math.isnan(equivalence([0.1] * 5, 0.2))
    assert equivalence([-0.3] * 5, 0.2) == 1.0


def test_the_share_of_pictures_that_are_better_counts_ties_half() -> None:
    assert better_share([-1.0, -2.0, 3.0, 0.0], higher=False) == 0.625
    assert better_share([0.0, 0.0], higher=True) == 0.5


def test_holm_s_adjustment_follows_its_steps() -> None:
    p = [0.011, 0.02, 0.005, 0.9, float("nan")]
    assert holm(p) == pytest.approx([0.044, 0.06, 0.025, 1.0, 1.0])


def test_the_bootstrap_of_skewed_values_covers_their_mean_more_often_than_student_s() -> None:
    """Three of ten values are exponential, the others 0, as of an average gain."""
    draw = random.Random(5)
    bca = student = 0
    for _ in range(400):
        values = [draw.expovariate(1) if draw.random() < 0.3 else 0.0 for _ in range(25)]
        found, plain = bootstrap_interval(values, (0, math.inf)).interval, mean_interval(values, (0, math.inf))
        bca, student = bca + (found.low <= 0.3 <= found.high), student + (plain.low <= 0.3 <= plain.high)
    assert bca / 400 > 0.87
    assert bca > student


def test_tests_of_pairs_that_do_not_differ_err_five_times_in_a_hundred_at_most() -> None:
    draw = random.Random(6)
    errors = {"pratt": 0, "mcnemar": 0, "equivalence": 0}
    for _ in range(600):
        errors["pratt"] += signed_rank([float(round(draw.gauss(0, 1))) for _ in range(30)], zeros="pratt") < 0.05
        drawn = [(draw.random() < 0.4, draw.random() < 0.4) for _ in range(60)]
        errors["mcnemar"] += mcnemar([one for one, _ in drawn], [other for _, other in drawn]) < 0.05
        errors["equivalence"] += equivalence([draw.gauss(0.5, 1) for _ in range(60)], 0.5) < 0.05  # the mean is at the margin
    assert errors["pratt"] / 600 == pytest.approx(0.05, abs=0.022)
    assert errors["equivalence"] / 600 == pytest.approx(0.05, abs=0.022)
    assert errors["mcnemar"] / 600 < 0.06
