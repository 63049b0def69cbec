"""Scores at matched confidence: temperatures change confidence alone, and each forward is run once."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

import xattn
from xattn.errors import UnsupportedError


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("confidence")


@pytest.fixture
def classifier() -> xattn.Classifier:
    return xattn.load("birds:ca-stream", device="cpu")


@pytest.fixture
def birds() -> tuple[torch.Tensor, torch.Tensor]:
    data = xattn.birds.SketchBirds("test", 3)
    images = torch.stack([xattn.birds.pixels(data.scene(number)) for number in range(3)]).float() / 255
    return images, torch.tensor(data.targets)


def test_the_temperature_that_matches_two_logits_has_a_closed_form(module: ModuleType) -> None:
    logits, labels = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1])
    wanted = 1 / (1 + math.exp(-1))  # of logits that differ by 1
    assert module.matching(logits, labels, wanted) == pytest.approx(4, abs=1e-4)
    assert module.confidence(logits, labels, 4.0) == pytest.approx(wanted)
    assert module.matching(logits, labels, module.confidence(logits, labels)) == 1
    assert math.isnan(module.matching(logits, 1 - labels, wanted))  # none makes it right


def test_logits_are_divided_and_the_classifier_stays_as_it_is(
    module: ModuleType, classifier: xattn.Classifier, birds: tuple[torch.Tensor, torch.Tensor]
) -> None:
    before = classifier.predict(birds[0])
    assert torch.equal(module.tempered(classifier, 4.0).predict(birds[0]), before / 4)
    assert torch.equal(classifier.predict(birds[0]), before)
    with pytest.raises(UnsupportedError, match=r"br-npa gives the logits of birds:br-npa itself: it has no temperature here"):
        module.tempered(xattn.load("birds:br-npa", device="cpu"), 2.0)


def test_scores_at_a_temperature_are_those_of_its_probabilities_on_the_same_maps(
    module: ModuleType, classifier: xattn.Classifier, birds: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    images, labels = birds
    rows = module.scores_at(tmp_path / "a.csv", classifier, images, labels, ["grad-cam"], ["average-drop", "average-gain"], 3.0)
    masks = xattn.explain(classifier, images, ["grad-cam"], target=labels, progress=False)["grad-cam"]
    for matched, temperature in ((False, 1.0), (True, 3.0)):
        whole, kept = (
            (classifier.predict(some).double() / temperature).softmax(1).gather(1, labels[:, None])[:, 0]
            for some in (images, images * masks[:, None])
        )
        found = rows[(rows["metric"] == "average-drop") & (rows["matched"] == matched)].sort_values("image")["value"]
        assert found.tolist() == pytest.approx((100 * (whole - kept).clamp(min=0) / whole).tolist(), abs=1e-3)
    again = module.scores_at(tmp_path / "a.csv", classifier, images[:0], labels[:0], [], [], 3.0)
    pd.testing.assert_frame_equal(again, rows.reset_index(drop=True))


def test_rows_without_a_temperature_have_no_value(
    module: ModuleType, classifier: xattn.Classifier, birds: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    images, labels = birds
    rows = module.scores_at(tmp_path / "n.csv", classifier, images, labels, ["grad-cam"], ["average-drop"], math.nan)
    assert rows[rows["matched"]]["value"].isna().all()
    same = module.scores_at(tmp_path / "one.csv", classifier, images, labels, ["grad-cam"], ["average-drop"], 1.0)
    assert same[same["matched"]]["value"].tolist() == same[~same["matched"]]["value"].tolist() == rows[~rows["matched"]]["value"].tolist()


def test_a_forward_is_run_once_for_all_temperatures(
    module: ModuleType, classifier: xattn.Classifier, birds: tuple[torch.Tensor, torch.Tensor]
) -> None:
    known: dict[bytes, torch.Tensor] = {}
    runs = [module.AtTemperature(classifier, temperature, known) for temperature in (1.0, 2.0)]
    calls: list[int] = []
    handle = classifier.network.register_forward_hook(lambda *_: calls.append(1))
    first, second = (run(birds[0]) for run in runs)
    handle.remove()
    assert len(calls) == 1
    assert torch.equal(first / 2, second)


def test_values_are_paired_by_network_and_picture_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    rows = pd.DataFrame({"model": [*"bbbaaa"], "image": [*"yxxxyy"], "value": [1.0, 2.0, 4.0, 5.0, math.nan, math.nan]})
    found = importlib.import_module("trained").by_net(rows)
    assert torch.allclose(found, torch.tensor([[5.0, math.nan], [3.0, 1.0]], dtype=torch.float64), equal_nan=True)
