"""Maps and curves from a share of their passes: samples are kept, the page says what they say, areas of all points are exact."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from xattn.metrics import metrics


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


def sample(picture: str, r: float, **more: float) -> dict[str, Any]:
    quality = {"r": r, "covered": 0.9, "error": 0.03, "predicted": 0.04, "expected": r}
    return {
        "network": "a",
        "method": "score-cam",
        "setting": "tolerance=0.05",
        "picture": picture,
        "passes": 10,
        "of": 100,
        **quality,
        **more,
    }


def test_a_map_beside_itself_and_beside_its_negative(module: Any) -> None:
    budget: ModuleType = module("budget")
    exact = torch.arange(9.0).view(3, 3)
    same = budget.compared(exact, torch.zeros(3, 3), exact)
    assert same == {"r": pytest.approx(1), "covered": 1, "error": 0, "predicted": 0, "expected": 1}
    other = budget.compared(8 - exact, torch.full((3, 3), 2.1), exact)  # off by 8, 6, 4, 2, 0, 2, …; 1.96 standard errors are 4.1
    assert other["r"] == pytest.approx(-1)
    assert other["covered"] == pytest.approx(5 / 9)
    assert other["predicted"] == pytest.approx(2.1 / 8)
    assert budget.similarity(torch.zeros(3, 3), exact) == 0


def test_samples_are_kept_a_line_each(module: Any, tmp_path: Path) -> None:
    budget: ModuleType = module("budget")
    kept = {"conditions": {"a": {}}, "samples": [sample("x", 0.123456789), sample("y", 1.0)]}
    budget.keep(kept, tmp_path / "budget.json")
    found = budget.kept_samples(tmp_path / "budget.json")
    assert [row["r"] for row in found["samples"]] == [0.12346, 1.0]
    assert budget.kept_samples(tmp_path / "none.json") == {"conditions": {}, "samples": []}
    assert [path.name for path in tmp_path.iterdir()] == ["budget.json"]


def test_the_page_says_what_the_samples_say(module: Any, tmp_path: Path) -> None:
    clocked = {"seconds": 1.0, "exact_seconds": 4.0, "table": 2.0, "exact_table": 7.0, "adaptive_table": 1.0, "adaptive_insertion": 0.5}
    samples = [sample("x", 0.8), sample("y", 1.0, **clocked), sample("z", 0.99, error=0.06, insertion=2.0, deletion=-1.0)]
    module("budget_page").write({"conditions": {}, "samples": samples}, tmp_path / "budget.md")
    (row,) = [line for line in (tmp_path / "budget.md").read_text().splitlines() if line.startswith("| a ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:9] == ["a", "`tolerance=0.05`", "3", "10 %", "0.930", "0.800", "1", "1; 0", "90 %"]
    assert cells[10] == "3.0 %; held 67 %"
    assert cells[-7:] == ["+2.00", "-1.00", "4.0", "3.5", "7.0", "+0.50", "–"]


def test_the_adaptive_curves_are_found_in_the_scores_by_their_names(module: Any) -> None:
    for spec in module("budget").ADAPTIVE.values():
        assert metrics.create(spec).spec == spec


def test_areas_by_regression_over_all_points_are_those_of_the_curves(module: Any) -> None:
    curves: ModuleType = module("curve_regression")
    generator = torch.Generator().manual_seed(0)
    shares = torch.linspace(0, 1, 9).double().expand(2, 9)
    p = torch.rand(2, 9, generator=generator).double()
    p[:, [0, -1]] = p[:1, [0, -1]]  # all curves of a game share their ends
    changed = shares[:, :, None].expand(2, 9, 49)
    area, error = curves.regressed(p, shares, changed, 14, 1.0)
    torch.testing.assert_close(area, torch.trapezoid(p, shares, dim=1))
    assert not error.any()
    line = p[:1] * 0 + 0.2 + 0.5 * shares[:1]
    near, error = curves.regressed(line, shares[:1], changed[:1], 6, 1.0)
    assert float(near) == pytest.approx(0.45, abs=2e-3)
