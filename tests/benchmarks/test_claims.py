"""Verdicts follow from intervals alone."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

from xattn.metrics.statistics import Interval


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", Path(__file__).parents[2] / "benchmarks" / "claims.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("interval", "way", "said"),
    [
        (Interval(2.0, 1.0, 3.0, 9), 1, "reproduced"),
        (Interval(2.0, 1.0, 3.0, 9), -1, "not reproduced: it is the other way round"),
        (Interval(-2.0, -3.0, -1.0, 9), -1, "reproduced"),
        (Interval(2.0, -1.0, 5.0, 9), 1, "not decided: the interval holds 0"),
        (Interval(2.0, -1.0, 5.0, 9), 0, "not decided: the interval holds 0"),
        (Interval(0.1, -0.4, 0.6, 9), 0, "reproduced, within 1"),
        (Interval(0.3, 0.1, 0.6, 9), 0, "reproduced, within 1"),
        (Interval(2.0, 1.0, 3.0, 9), 0, "not reproduced: they differ"),
        (Interval(2.0, math.nan, math.nan, 1), 1, "not testable here"),
    ],
)
def test_a_claim_is_reproduced_only_if_the_interval_lies_on_its_side_of_0(
    claims: ModuleType, interval: Interval, way: int, said: str
) -> None:
    assert claims.verdict(interval, way, margin=1.0) == said


def test_a_mean_is_shown_with_half_its_interval(claims: ModuleType) -> None:
    assert claims.over_seeds([1.0, 2.0, 3.0]) == "2.00 ± 2.48"  # Student's t of 2 degrees, 4.303, times 1/√3
    assert claims.over_seeds([1.5]) == "1.50"
    assert claims.over_seeds([math.nan]) == "–"


def test_a_question_is_answered_by_yes_only_if_the_difference_is_above_0(claims: ModuleType) -> None:
    assert claims.question("higher?", Interval(2.0, 1.0, 3.0, 9)) == "higher? **yes** (+2.00, 95 % [+1.00, +3.00], n = 9)"
    assert "**no, the other way round**" in claims.question("higher?", Interval(-2.0, -3.0, -1.0, 9))
    assert "**no difference at all**" in claims.question("higher?", Interval(0.0, 0.0, 0.0, 9))
    assert claims.question("higher?", Interval(math.nan, math.nan, math.nan, 0)) == "higher? **not testable here** (n = 0)"
