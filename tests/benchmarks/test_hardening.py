"""A small part of `benchmarks/hardening.py`: hostile files end in an error of xattn, and run nothing."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_damaged_headers_and_run_folders_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import hardening
    import hostile

    cases = [*hostile.headers(3, 12), *hostile.run_folders(3, 16, tmp_path), *hostile.pictures(3, 12)]
    results = [hardening.attempt(case) for case in cases]
    assert [result for result in results if result.outcome in hardening.WRONG] == []
    assert sum(result.outcome == "refused" for result in results) > len(results) // 3
