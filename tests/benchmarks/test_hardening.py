"""A small part of `benchmarks/hardening.py`: hostile files end in an error of xattn and run nothing, and nothing is lost or wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest


def test_damaged_headers_and_run_folders_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import hardening
    import hostile

    cases = [*hostile.headers(3, 12), *hostile.run_folders(3, 16, tmp_path), *hostile.pictures(3, 12)]
    results = [hardening.attempt(case) for case in cases]
    assert [result for result in results if result.outcome in hardening.WRONG] == []
    assert sum(result.outcome == "refused" for result in results) > len(results) // 3


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[Any]], list[Any]]:
    """Tries cases."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import hardening

    return lambda cases: [hardening.attempt(case) for case in cases]


def test_no_pickle_that_runs_where_it_is_trusted_runs_here(attempt: Any, tmp_path: Path) -> None:
    import hostile_pickles

    running = hostile_pickles.ran(tmp_path)
    assert len(running) >= 24
    count = len(hostile_pickles.payloads(""))
    for container in range(len(hostile_pickles.CONTAINERS)):  # each payload once, in one container or another
        cases = islice(hostile_pickles.pickles(10**6), container * count, (container + 1) * count)
        chosen = [case for number, case in enumerate(cases) if number % len(hostile_pickles.CONTAINERS) == container]
        assert {result.outcome for result in attempt(chosen)} == {"refused"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_run_that_is_killed_or_meets_another_loses_nothing(attempt: Any, tmp_path: Path) -> None:
    import hostile
    import hostile_processes

    run, whole, seconds, events = hostile_processes.undisturbed("whole-run", tmp_path, hostile_processes.running)
    assert events > 20
    moments = hostile_processes.killed(run, whole, [seconds / 2, seconds / 3], hostile_processes.RUN)
    assert attempt([hostile.Case("killed", moments)])[0].outcome == "done"
