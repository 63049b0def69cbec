"""Intervals, paired tests and ranks against scipy and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from xattn.metrics.statistics import Interval, adjusted, mean_interval, needed, paired, proportion_interval, signed_rank


def test_the_interval_is_student_s_and_leaves_undefined_values_out() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, math.nan, 8.0])
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=3.75, scale=stats.sem([1, 2, 4, 8]))
    assert found.n == 4
    assert (found.mean, found.low, found.high) == pytest.approx((3.75, low, high))


def test_an_interval_stays_within_the_range_of_the_values() -> None:
    assert mean_interval(torch.tensor([0.0, 100.0]), (0, 100))[:3] == (50, 0, 100)  # ± 635 without the range
    assert mean_interval(torch.tensor([1.0, 9.0]), (1, math.inf)).low == 1


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    assert math.isnan(mean_interval(torch.tensor([3.0])).low)
    assert mean_interval(torch.tensor([math.nan])).n == 0
    assert math.isnan(proportion_interval(torch.tensor([])).mean)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 2), (0, 6), (3, 6), (6, 6), (81, 263)])
def test_the_interval_of_a_proportion_is_wilson_s(right: int, n: int) -> None:
    values = 100.0 * (torch.arange(n) < right)
    found = proportion_interval(values, (0, 100))
    wilson = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((100 * right / n, 100 * wilson.low, 100 * wilson.high, n))


def test_a_95_percent_interval_covers_the_mean_95_times_in_100() -> None:
    generator = torch.Generator().manual_seed(0)
    intervals = [mean_interval(torch.randn(20, generator=generator)) for _ in range(2000)]
    covered = sum(found.low <= 0 <= found.high for found in intervals) / 2000
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_interval_of_a_proportion_of_six_images_covers_it(share: float) -> None:
    """Student's covers 0.1 less than half of the time."""
    generator = torch.Generator().manual_seed(1)
    draws = (torch.rand(2000, 6, generator=generator) < share).double()
    covered = sum(found.low <= share <= found.high for found in map(proportion_interval, draws)) / 2000
    assert 0.88 <= covered <= 0.99


def test_a_pair_that_never_differs_has_p_of_one_and_a_shift_a_small_one() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(1))
    assert paired(values, values).p == 1.0
    shifted = paired(values + 0.5, values)
    assert shifted.p < 1e-6
    assert shifted.difference.mean == pytest.approx(0.5)


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 1.0), (-0.5, 2.0), (0.1, 3.0), (3.0, 4.0)])
def test_so_many_pairs_as_are_needed_have_the_power_of_the_noncentral_t(mean: float, deviation: float) -> None:
    half = stats.t.ppf(0.975, 39) * deviation / math.sqrt(40)
    count = needed(Interval(mean, mean - half, mean + half, 40))

    def power(n: float) -> float:
        limit, shift = stats.t.ppf(0.975, n - 1), abs(mean) / deviation * math.sqrt(n)
        return float(stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift))

    assert count == int(count)
    assert power(count - 1) < 0.81
    assert power(count) > 0.79


def test_no_number_of_pairs_shows_what_is_not_there_or_not_known() -> None:
    assert needed(mean_interval([1.0, -1.0])) == math.inf
    assert needed(mean_interval([0.0, 0.0, 0.0])) == math.inf
    assert math.isnan(needed(mean_interval([1.0])))
    assert needed(mean_interval([2.0, 2.0, 2.0])) == 2


def test_rounding_is_no_difference() -> None:
    values = 100 * torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert paired(values + 1e-9, values) == ((0.0, 0.0, 0.0, 50), 1.0)
    assert paired(values + 0.01, values).p < 1e-9


@pytest.mark.parametrize("count", [3, 8, 25])
def test_the_signed_rank_test_is_scipy_s_exact_one(count: int) -> None:
    difference = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) + 0.3
    assert signed_rank(difference) == pytest.approx(stats.wilcoxon(difference.tolist(), method="exact").pvalue)


@pytest.mark.parametrize("seed", range(4))
def test_with_ties_the_signed_rank_test_counts_all_signs(seed: int) -> None:
    difference = torch.randint(-2, 4, (11,), generator=torch.Generator().manual_seed(seed)).double()
    differs = difference[difference != 0].tolist()
    found = stats.wilcoxon(differs, method=stats.PermutationMethod(n_resamples=math.inf)).pvalue
    assert signed_rank(difference) == pytest.approx(found)


def test_two_hundred_differences_are_tested_exactly_and_more_by_the_normal_approximation() -> None:
    generator = torch.Generator().manual_seed(3)
    many = torch.randn(600, generator=generator, dtype=torch.float64).round(decimals=1) + 0.1
    assert signed_rank(many) == pytest.approx(stats.wilcoxon(many[many != 0].tolist(), method="asymptotic").pvalue)
    most = torch.randn(200, generator=generator, dtype=torch.float64) + 0.15
    assert signed_rank(most) == pytest.approx(stats.wilcoxon(most.tolist(), method="exact").pvalue)


def test_four_or_five_differing_images_are_never_significant() -> None:
    for differing, least in ((4, 0.125), (5, 0.0625), (6, 0.03125)):
        values = torch.zeros(1000)
        values[:differing] = 50
        assert paired(values, torch.zeros(1000)).p == least


def test_adjusted_p_values_are_benjamini_and_hochberg_s_and_leave_nan_alone() -> None:
    found = adjusted([0.01, math.nan, 0.02, 0.5])
    assert found[0] == pytest.approx(0.03)
    assert math.isnan(found[1])
    assert found[2:] == pytest.approx([0.03, 0.5])
    several = torch.rand(20, generator=torch.Generator().manual_seed(4)).tolist()
    assert adjusted(several) == pytest.approx(stats.false_discovery_control(several).tolist())
