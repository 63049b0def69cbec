"""Predicted against expected."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

import xattn
from xattn.birds import SketchBirds
from xattn.cli import main
from xattn.errors import InputError, NameUnknownError, UnsupportedError
from xattn.figures.why import why_figure
from xattn.study.expectation import why


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    return sorted(SketchBirds("test", 2).export(tmp_path_factory.mktemp("birds")).rglob("*.png"))


@pytest.fixture(scope="module")
def bird(birds):
    return birds[0]


@pytest.fixture(scope="module")
def clf():
    return xattn.load("birds:gap", device="cpu")


def test_contrast_is_of_predicted_and_expected(clf, bird):
    found = why(clf, bird, "duskspoon", methods=["grad-cam", "layer-cam"], progress=False)
    (predicted, first), (expected, second), (both, contrast) = found.maps.items()
    best = int(first.output.argmax())
    assert (predicted, expected, both) == (clf.label(best), "duskspoon", f"{clf.label(best)} - duskspoon")
    p = first.output.softmax(dim=1)[0]
    assert found.probabilities["p"].tolist()[:2] == pytest.approx([float(p[best]), float(p[clf.class_index("duskspoon")])], rel=1e-5)
    asked = xattn.explain(clf, bird, ["grad-cam"], target=f"{predicted} - duskspoon", progress=False)
    assert torch.equal(contrast["grad-cam"], asked["grad-cam"])
    assert torch.equal(second["grad-cam"], xattn.explain(clf, bird, ["grad-cam"], target="duskspoon", progress=False)["grad-cam"])


def test_scores_stand_beside_controls(clf, bird):
    found = why(clf, bird, methods=["grad-cam", "layer-cam"], progress=False)
    assert set(found.rows["method"]) == {"grad-cam", "layer-cam", "random", "centre"}
    own = xattn.explain(clf, bird, ["grad-cam"], progress=False)
    value = xattn.evaluate(clf, own.images, own, ["insertion"], progress=False)["value"].item()
    here = found.rows[(found.rows["method"] == "grad-cam") & (found.rows["metric"] == "insertion")]["value"].item()
    assert here == pytest.approx(value, abs=1e-4)


def test_second_class_stands_for_none_expected(clf, bird):
    found = why(clf, bird, methods=["grad-cam", "layer-cam"], progress=False)
    predicted, second, _ = found.maps
    assert found.probabilities["rank"].tolist()[:2] == [1, 2]
    assert any("no class was expected" in warning for warning in found.warnings)
    again = why(clf, bird, predicted, methods=["grad-cam", "layer-cam"], progress=False)
    assert list(again.maps)[1] == second
    assert any("is expected, and predicted" in warning for warning in again.warnings)


def test_methods_that_agree_and_blank_maps_are_told(clf, bird):
    found = why(clf, bird, "duskspoon", methods=["grad-cam", "hires-cam", "uniform"], progress=False)
    pairs = found.agreement.set_index("methods")[next(iter(found.maps))]
    assert pairs["grad-cam, hires-cam"] == pytest.approx(1)
    assert pairs.isna().sum() == 2  # uniform orders nothing


def test_page_is_short_and_the_figure_drawn(clf, bird):
    found = why(clf, bird, "duskspoon", methods=["grad-cam", "layer-cam"], progress=False)
    text = found.text()
    assert len(text.splitlines()) < 60
    assert "duskspoon" in text.splitlines()[0]
    assert "nan" not in text
    assert len(why_figure(found)) == 1


def test_what_cannot_be_asked_is_refused(clf, birds, bird):
    with pytest.raises(NameUnknownError):
        why(clf, bird, "eagle", progress=False)
    with pytest.raises(InputError, match="two or more"):
        why(clf, bird, methods=["grad-cam"], progress=False)
    with pytest.raises(InputError, match="one picture; got 2"):
        why(clf, bird.parents[1], methods=["grad-cam", "layer-cam"], progress=False)
    with pytest.raises(UnsupportedError, match="one class of several"):
        why(xattn.load("birds:gap", multi_label=True, device="cpu"), bird, progress=False)


def test_command_writes_page_and_figure(bird, tmp_path):
    line = ["why", str(bird), "--model", "birds:gap", "--device", "cpu", "--expected", "3", "--method", "grad-cam", "--method", "layer-cam"]
    result = CliRunner().invoke(main, [*line, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "why.md").read_text(encoding="utf-8") in result.output
    assert (tmp_path / "out" / "why.png").stat().st_size > 1000
