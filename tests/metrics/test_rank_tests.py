"""Friedman's and Nemenyi's tests against the example of Demšar 2006, scipy and scikit-posthocs."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from xattn.metrics.rank_tests import critical_difference, friedman, mean_ranks, nemenyi, range_below

# Demšar 2006, Table 6: areas under the curve of C4.5 with and without tuned m and cf on 14 data sets. His mean ranks tie the last two
# columns on one data set more than his printed values do; here that is lymphography, printed as 0.866 and 0.875.
DEMSAR = [
    (0.763, 0.768, 0.771, 0.798),
    (0.599, 0.591, 0.590, 0.569),
    (0.954, 0.971, 0.968, 0.967),
    (0.628, 0.661, 0.654, 0.657),
    (0.882, 0.888, 0.886, 0.898),
    (0.936, 0.931, 0.916, 0.931),
    (0.661, 0.668, 0.609, 0.685),
    (0.583, 0.583, 0.563, 0.625),
    (0.775, 0.838, 0.866, 0.866),
    (1.000, 1.000, 1.000, 1.000),
    (0.940, 0.962, 0.965, 0.962),
    (0.619, 0.666, 0.614, 0.669),
    (0.972, 0.981, 0.975, 0.975),
    (0.957, 0.978, 0.946, 0.970),
]
# Demšar 2006, Table 5: critical values of the two-tailed Nemenyi test at 0.05, by the number of methods.
NEMENYI = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize(("k", "q"), NEMENYI.items())
def test_critical_differences_are_those_of_demsar_s_table(k: int, q: float) -> None:
    assert critical_difference(k, 14) == pytest.approx(q * (k * (k + 1) / (6 * 14)) ** 0.5, abs=2e-3)


def test_demsar_s_example_has_his_ranks_statistic_and_critical_difference() -> None:
    ranks = mean_ranks(DEMSAR, higher=True)
    assert ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    uncorrected = 12 * 14 / (4 * 5) * (sum(rank**2 for rank in ranks) - 4 * 5**2 / 4)
    assert uncorrected == pytest.approx(9.28, abs=0.005)  # his, which does not correct for ties
    found = friedman(DEMSAR)
    assert found[:2] == pytest.approx(tuple(stats.friedmanchisquare(*zip(*DEMSAR, strict=True))))
    assert found.agreement == pytest.approx(found.statistic / (14 * 3))
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert max(ranks) - min(ranks) < critical_difference(4, 14), "the post-hoc test does not find what Friedman's does, as he says"


def test_nemenyi_s_p_is_that_of_scikit_posthocs() -> None:
    posthocs = pytest.importorskip("scikit_posthocs")
    ranks = mean_ranks(DEMSAR, higher=True)
    wanted = posthocs.posthoc_nemenyi_friedman([list(row) for row in DEMSAR]).to_numpy()
    for one in range(4):
        for other in range(4):
            assert nemenyi(ranks[one] - ranks[other], 4, 14) == pytest.approx(wanted[one, other], abs=2e-3)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_range_of_normal_variables_is_scipy_s_studentised_range(count: int) -> None:
    for q in (0.5, 2.0, 3.5):
        assert range_below(q, count) == pytest.approx(stats.studentized_range.cdf(q, count, math.inf), abs=1e-6)


@pytest.mark.parametrize("higher", [True, False])
def test_mean_ranks_share_ties_as_scipy_s_do(higher: bool) -> None:
    draw = random.Random(0)
    values = [[float(draw.randrange(4)) for _ in range(5)] for _ in range(40)]
    signed = [[-value if higher else value for value in row] for row in values]
    assert mean_ranks(values, higher) == pytest.approx(stats.rankdata(signed, axis=1).mean(axis=0).tolist())
    assert friedman(values)[:2] == pytest.approx(tuple(stats.friedmanchisquare(*zip(*values, strict=True))))


def test_methods_that_are_all_equal_do_not_differ() -> None:
    assert friedman([[1.0, 1.0, 1.0]] * 8) == (0.0, 1.0, 0.0)


def test_methods_without_a_difference_are_told_apart_five_times_in_a_hundred() -> None:
    draw = random.Random(1)
    found = [friedman([[draw.random() for _ in range(4)] for _ in range(15)]).p < 0.05 for _ in range(1500)]
    assert sum(found) / 1500 == pytest.approx(0.05, abs=0.015)
