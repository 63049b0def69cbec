"""Intervals, paired tests and ranks against scipy and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from xattn.metrics.statistics import adjusted, mean_interval, paired


def test_the_interval_is_student_s_and_leaves_undefined_values_out() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, math.nan, 8.0])
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=3.75, scale=stats.sem([1, 2, 4, 8]))
    assert found.n == 4
    assert (found.mean, found.low, found.high) == pytest.approx((3.75, low, high))


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    assert math.isnan(mean_interval(torch.tensor([3.0])).low)
    assert mean_interval(torch.tensor([math.nan])).n == 0


def test_a_95_percent_interval_covers_the_mean_95_times_in_100() -> None:
    generator = torch.Generator().manual_seed(0)
    intervals = [mean_interval(torch.randn(20, generator=generator)) for _ in range(2000)]
    covered = sum(found.low <= 0 <= found.high for found in intervals) / 2000
    assert covered == pytest.approx(0.95, abs=0.015)


def test_a_pair_that_never_differs_has_p_of_one_and_a_shift_a_small_one() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(1))
    assert paired(values, values).p == 1.0
    shifted = paired(values + 0.5, values)
    assert shifted.p < 1e-6
    assert shifted.difference.mean == pytest.approx(0.5)


def test_adjusted_p_values_are_benjamini_and_hochberg_s_and_leave_nan_alone() -> None:
    found = adjusted([0.01, math.nan, 0.02, 0.5])
    assert found[0] == pytest.approx(0.03)
    assert math.isnan(found[1])
    assert found[2:] == pytest.approx([0.03, 0.5])
