"""The ladder of forwards: what is measured beside the speed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> Any:
    for package in ("quantus", "torchcam"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("ladder")


def test_errors_are_those_of_the_probability_of_the_predicted_class_in_points(ladder: Any, tmp_path: Path) -> None:
    one = ladder.subject("tiny", tmp_path, torch.device("cpu"))
    images = ladder.masked(torch.rand(3, 3, 64, 64))
    assert len(images) == 6
    assert (images[3:] <= images[:3]).all()
    plain = one.classifier.predict(images).softmax(dim=1)
    first = plain.argmax(dim=1)
    moved = plain.log()
    moved[0, first[0]] += 1.0
    expected = 100 * abs(moved.softmax(dim=1)[0, first[0]] - plain[0, first[0]])
    ways = {"as it is": (one.classifier.predict, 8, False), "moved": (lambda given: moved[: len(given)], 8, False)}
    found = ladder.errors(one, ways, images)
    assert found["as it is"] == [0.0, 0.0]
    assert found["moved"] == pytest.approx([float(expected) / 6, float(expected)], rel=1e-4)


def test_int8_differs_from_the_network_by_its_rounding_alone(ladder: Any, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    pytest.importorskip("openvino.frontend")
    one = ladder.subject("tiny", tmp_path, torch.device("cpu"))
    images = torch.rand(ladder.CHUNK, 3, 64, 64)
    logits, plain = ladder.quantised(one, images)(images), one.classifier.predict(images)
    assert 0 < float((logits - plain).abs().max()) < 0.3 * float(plain.abs().max())
