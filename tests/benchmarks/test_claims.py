"""Verdicts follow from estimates and adjusted p-values alone; errors over seeds and birds are neither too small nor much too large."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module(name)


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _module("claims", monkeypatch)


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _module("estimates", monkeypatch)


@pytest.mark.parametrize(
    ("mean", "p", "way", "said"),
    [
        (2.0, [0.01], 1, "reproduced"),
        (2.0, [0.01], -1, "not reproduced: it is the other way round"),
        (-2.0, [0.01], -1, "reproduced"),
        (2.0, [0.06], 1, "not decided"),
        (2.0, [0.06, 0.5], 0, "not decided"),
        (0.1, [0.8, 0.01], 0, "reproduced, within 1"),
        (0.3, [0.01, 0.01], 0, "reproduced, within 1"),
        (2.0, [0.01, 0.9], 0, "not reproduced: they differ"),
    ],
)
def test_a_claim_is_decided_by_its_adjusted_p_values_and_the_sign_of_the_difference(
    claims: ModuleType, mean: float, p: list[float], way: int, said: str
) -> None:
    made = claims.claim("c", claims.Estimate(mean, 0.5, 9, "10 birds"), way, margin=1.0)
    assert claims.verdict(made, p) == said


def test_what_has_no_spread_is_not_testable(claims: ModuleType) -> None:
    for values in ([1.0], [1.0, 1.0]):
        assert "**not testable here**" in claims.verdicts([claims.claim("c", claims.estimate(torch.tensor(values), "seeds"), 1)])
    assert "q? **no difference at all**" in claims.verdicts([claims.question("q?", claims.estimate(torch.zeros(3), "seeds"))])


def test_the_verdicts_of_a_page_are_one_family_and_an_equality_has_two_tests(claims: ModuleType) -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    p = stats.ttest_1samp(values.numpy(), 0).pvalue  # 0.030: one claim is decided, two are not
    made = claims.claim("it rises", claims.estimate(values, "seeds"), 1)
    alone, both = claims.verdicts([made]), claims.verdicts([made, made])
    assert f"- it rises: **reproduced** (+2.50, 95 % [+0.45, +4.55], 4 seeds, p = {p:.2g})" in alone
    assert f"- it rises: **not decided** (+2.50, 95 % [+0.45, +4.55], 4 seeds, p = {2 * p:.2g})" in both
    assert "Holm over the 2 tests of this page" in both
    same = claims.claim("the same", claims.estimate(values, "seeds"), 0, margin=9)
    assert "Holm over the 3 tests of this page" in claims.verdicts([made, same])
    noted = claims.claim("it falls", claims.estimate(values - 2, "seeds"), -1, note="a note", undecided="more seeds")
    assert claims.verdicts([noted]).splitlines()[0].endswith("; a note; more seeds)")


def test_p_values_are_those_of_scipy_and_statsmodels(estimates: ModuleType) -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 30)
    found = estimates.estimate(torch.tensor(values))
    assert found.differs() == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert found.within(0.5) == pytest.approx(ttost_paired(values, np.zeros(30), -0.5, 0.5)[0])
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(stats.t.interval(0.95, 29, values.mean(), stats.sem(values)))
    p = [0.01, 0.04, 0.03, 0.2]
    assert importlib.import_module("xattn.metrics.statistics").holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_means_are_shown_with_half_their_interval(claims: ModuleType) -> None:
    assert claims.over_seeds([1.0, 2.0, 3.0]) == "2.00 ± 2.48"  # Student's t of 2 degrees, 4.303, times 1/√3
    assert claims.over_seeds([1.5]) == "1.50"
    assert claims.over_seeds([math.nan]) == "–"
    one = torch.tensor([[1.0, 2.0, 3.0]])
    assert claims.cell(one) == claims.cell(one[0]) == "2.00 ± 2.48"


def test_the_error_over_seeds_and_birds_is_the_root_of_the_sum_of_their_mean_squares(estimates: ModuleType) -> None:
    rng = np.random.default_rng(1)
    seeds, birds = 4, 30
    table = 5 + rng.normal(0, 2, (seeds, 1)) + rng.normal(0, 3, (1, birds)) + rng.normal(0, 1, (seeds, birds))
    rows, columns, mean = table.mean(1), table.mean(0), table.mean()
    rest = sum((table[s, b] - rows[s] - columns[b] + mean) ** 2 for s in range(seeds) for b in range(birds))
    squares = [birds * rows.var(ddof=1), seeds * columns.var(ddof=1), rest / (seeds - 1) / (birds - 1)]
    found = estimates.estimate(torch.tensor(table))
    assert found.mean == pytest.approx(mean)
    assert found.error == pytest.approx(math.sqrt(sum(squares) / seeds / birds), rel=0.03)
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / 3 + squares[1] ** 2 / 29 + squares[2] ** 2 / 87)
    assert found.freedom == pytest.approx(freedom)
    assert found.over == "4 seeds × 30 birds"


def test_where_one_axis_alone_varies_the_error_is_students_over_that_axis(estimates: ModuleType) -> None:
    seeds = torch.tensor([1.0, 2.0, 4.0])
    for table, axis in ((seeds[:, None].expand(3, 40), seeds), (seeds.repeat(12)[None].expand(3, 36), seeds.repeat(12))):
        found, alone = estimates.estimate(table), estimates.estimate(axis)
        assert found.error == pytest.approx(alone.error, rel=0.03)
        assert found.freedom == pytest.approx(alone.freedom)


def test_unknown_values_are_left_out(estimates: ModuleType) -> None:
    table = torch.tensor([[1.0, 2.0, math.nan, 4.0, math.nan], [2.0, 2.5, 3.0, 5.0, math.nan], [1.5, 2.0, 2.0, 4.0, math.nan]])
    found = estimates.estimate(table)
    assert found.mean == pytest.approx(float(table.nanmean()))
    assert found.over == "3 seeds × 4 birds"
    assert 0 < found.error < 2
    assert math.isnan(estimates.estimate(table[:, 4:]).mean)
    assert math.isnan(estimates.estimate(torch.full((2, 0), 1.0)).error)


def test_what_differs_by_rounding_does_not_differ(estimates: ModuleType) -> None:
    before = torch.tensor([100.0, 50.0, 25.0])
    assert estimates.apart(before + 1e-5, before).differs() == 1
    assert estimates.apart(before + torch.tensor([1.0, 2.0, 3.0]), before).mean == pytest.approx(2)
    assert estimates.apart(before.expand(2, 3) + torch.tensor([[1.0], [3.0]]), before).over == "2 seeds × 3 birds"


@pytest.mark.parametrize(("of_seeds", "of_birds", "of_both"), [(1, 0.2, 1), (0.1, 3, 1), (0, 1, 3), (0.5, 3, 3)])
def test_intervals_over_three_seeds_cover_the_truth_as_often_as_they_say(
    estimates: ModuleType, of_seeds: float, of_birds: float, of_both: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "RESAMPLES", 999)
    rng, runs = np.random.default_rng(2), 300
    hits = one_net = 0
    for _ in range(runs):
        table = rng.normal(0, of_seeds, (3, 1)) + rng.normal(0, of_birds, (1, 40)) + rng.normal(0, of_both, (3, 40))
        both, alone = estimates.estimate(torch.tensor(table)), estimates.estimate(torch.tensor(table[0]))
        hits += abs(both.mean) <= both.half
        one_net += abs(alone.mean) <= alone.half
    assert hits / runs > 0.92  # 0.95 less three standard errors of 300 runs, and few degrees of freedom
    if of_seeds == 1:
        assert one_net / runs < 0.6  # what one network's birds say of the method
