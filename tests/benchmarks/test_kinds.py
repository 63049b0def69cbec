"""Ranks by kinds of evidence, and where kinds contradict each other, on scores whose answer is known."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def kinds() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kinds", Path(__file__).parents[2] / "benchmarks" / "kinds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kinds"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def rows(metric: str, of: dict[str, float | None], count: int = 12) -> pd.DataFrame:
    """Scores of some methods on pictures that differ in a constant."""
    lines = [
        (f"{image}.png", method, metric, None if value is None else value + image) for image in range(count) for method, value in of.items()
    ]
    return pd.DataFrame(lines, columns=["image", "method", "metric", "value"])


def test_methods_are_ranked_in_the_better_direction_without_controls_and_a_map_without_a_value_is_last(kinds: ModuleType) -> None:
    scores = pd.concat(
        [rows("deletion:step=9", {"a": 1, "b": 2, "c": None, "random": 0}), rows("insertion", {"a": 2, "b": 3, "c": 4, "random": 9})]
    )
    found = kinds.ranks_of(scores, "faithfulness", "photographs", "net")
    assert found.ranks.mean().to_dict() == {"a": 2.0, "b": 2.0, "c": 2.0}  # 1, 2, 3 by deletion, 3, 2, 1 by insertion
    only = kinds.ranks_of(scores[scores["metric"] != "insertion"], "faithfulness", "photographs", "net")
    assert only.best == "a"
    assert only.interval("a").mean == 1
    assert only.decided() == {("a", "b"): 1.0, ("a", "c"): 2.0, ("b", "c"): 1.0}


def test_background_independence_ranks_nothing(kinds: ModuleType) -> None:
    scores = pd.concat([rows("parts-shapley", {"a": 0.5, "b": 0.1}), rows("background-independence", {"a": 9, "b": 9})])
    assert kinds.ranks_of(scores, "true parts", "birds", "net").ranks.mean().to_dict() == {"a": 1.0, "b": 2.0}


def test_kinds_that_order_methods_the_other_way_round_contradict_each_other(kinds: ModuleType) -> None:
    one = kinds.ranks_of(rows("deletion", {"a": 1, "b": 2, "c": 3}), "faithfulness", "birds", "net")
    other = kinds.ranks_of(rows("parts-shapley", {"a": 1, "b": 2, "c": 3}), "true parts", "birds", "net")
    table = kinds.tau_table([one, other]).iloc[0]
    assert (table["τ"], table["low"], table["high"]) == (-1, -1, -1)
    assert (table["decided by both"], table["contradict"]) == ("3", "3")
    assert table["the widest"] == "a before c by faithfulness, behind it by true parts"
    same = kinds.tau_table([one, kinds.ranks_of(rows("energy-pointing", {"a": 3, "b": 2, "c": 1}), "localisation", "boxes", "net")]).iloc[0]
    assert (same["τ"], same["contradict"]) == (1, "0")
    assert kinds.pairs_of([one, kinds.ranks_of(rows("deletion", {"a": 1}), "faithfulness", "birds", "other")]) == []


def test_questions_of_heads_attention_are_asked_of_scores_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    evidence = importlib.import_module("evidence")
    scores = rows("parts-shapley", {"raw-attention": 1.0, "grad-cam": 0.5, "layer-cam": 1.1, "random": 9.0})
    asked = evidence.of_attention({("birds", "net"): scores, ("birds", "other"): scores[scores["method"] != "raw-attention"]})
    assert [claim.text.partition("?")[0] for claim in asked] == [
        "net: does its attention rank the parts better than grad-cam",
        "net: does its attention rank the parts better than layer-cam, the best of the others on these birds",
    ]
    assert [round(claim.difference.mean, 6) for claim in asked] == [0.5, -0.1]
    assert "p is adjusted by Holm" in evidence.verdicts(asked)
