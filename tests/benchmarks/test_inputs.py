"""The cases of `benchmarks/inputs.py`: none is wrong in silence, and each ends as the committed page says."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("imagecodecs", "tifffile", "pydicom", "pillow_heif", "datasets", "aiohttp"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import inputs

    return inputs


@pytest.mark.parametrize("kind", ["encodings", "labels", "sources"])
def test_each_case_ends_as_in_the_committed_page(inputs: Any, kind: str) -> None:
    cases = [case for case in inputs.cases()[kind] if getattr(case, "classes", 0) != 1000]  # those take timm's list of classes
    found = [inputs.attempt(case) for case in cases]
    assert [result for result in found if result.outcome in inputs.WRONG] == []
    page = (BENCHMARKS / "results" / "inputs.md").read_text(encoding="utf-8")
    if f"pillow {version('pillow')}," in page:  # another Pillow may read more, or refuse it
        kept = inputs.outcomes_of(page)
        assert {result.name: result.outcome for result in found if kept.get(inputs.cell(result.name)) != result.outcome} == {}


def test_a_deviation_that_no_line_tells_is_silently_wrong(inputs: Any) -> None:
    said = ["a.png: nearly black"]
    assert [inputs.verdict(True, "", []), inputs.verdict(True, "black", said), inputs.verdict(False, "black", said)] == [
        "right",
        "right",
        "said",
    ]
    assert {inputs.verdict(False, "", said), inputs.verdict(False, "black", []), inputs.verdict(True, "black", [])} == {"SILENT"}
