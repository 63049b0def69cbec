"""Metrics of finished runs on trial: from kept rows alone, and with the truth of SketchBirds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import xattn
from tests.study.test_study import study
from xattn.birds import SketchBirds, effects, in_parts, masks, rank_correlation, scene_of
from xattn.cli import main
from xattn.errors import InputError, UnsupportedError
from xattn.models import Classifier
from xattn.study.compare import compare_runs
from xattn.study.trial import trial_runs
from xattn.study.truth import bird_truth


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four birds by a trained network, two methods and two controls."""
    place = tmp_path_factory.mktemp("birds")
    birds = SketchBirds("test", 4).export(place / "birds")
    classifier = xattn.load("birds:gap", device="cpu")
    methods, metrics = ["grad-cam", "activation-map", "random", "centre"], ["average-drop", "sparsity"]
    labels = birds / "labels.csv"
    xattn.Study([classifier], methods, metrics, birds, place / "run", labels_csv=labels, workers=0, tune="off", progress=False).run()
    return place / "run"


def test_the_truth_of_a_map_is_its_agreement_with_the_effects_of_the_parts(run: Path) -> None:
    found = bird_truth(run, device="cpu")
    assert len(found) == 4 * 4
    classifier = xattn.load("birds:gap", device="cpu")
    for name, rows in found.groupby("image"):
        path = run.parent / "birds" / str(name)
        scene = scene_of(path)
        maps = xattn.explain(classifier, [path], ["grad-cam", "centre"], target=int(rows["target"].iloc[0]))
        true = effects(classifier.predict, [scene], [int(rows["target"].iloc[0])]).shapley
        for method in maps:
            expected = rank_correlation(in_parts(maps[method], masks(scene).visible[None]), true).item()
            assert rows.set_index("method").loc[method, "value"] == pytest.approx(expected, abs=1e-6)


def test_the_command_prints_a_line_per_metric_and_the_truth_where_it_is_asked_for(run: Path) -> None:
    plain = CliRunner().invoke(main, ["trial", str(run)])
    assert plain.exit_code == 0, plain.output
    assert "| average-drop |" in plain.output
    assert "truth" not in plain.output
    assert "n = 4 pictures" in plain.output
    with_truth = CliRunner().invoke(main, ["trial", str(run), "--truth", "--device", "cpu", "--format", "csv"])
    assert with_truth.exit_code == 0, with_truth.output
    assert "truth,truth low,truth high" in with_truth.output
    planted = CliRunner().invoke(main, ["trial", str(run), "--planted", "activation-map"])
    assert "Planted: activation-map, random, centre." in planted.output


def test_truth_that_is_not_known_says_why(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    text = (other / "run.json").read_text()
    (other / "run.json").write_text(text.replace("birds:gap", "birds:none"))
    with pytest.raises(UnsupportedError, match="'birds:none' cannot be loaded by its name"):
        trial_runs([other], truth=True, device="cpu")
    classifier = xattn.load("birds:gap", device="cpu")
    images = torch.utils.data.TensorDataset(torch.rand(2, 3, 64, 64))
    xattn.Study(
        [classifier], ["grad-cam", "random"], ["sparsity"], images, tmp_path / "memory", workers=0, tune="off", progress=False
    ).run()
    with pytest.raises(InputError, match="data set in memory: give the folder of the exported birds"):
        trial_runs([tmp_path / "memory"], truth=True, device="cpu")


def test_metrics_that_fail_are_marked_in_a_table_of_the_runs_with_the_reason(folder: Path, tiny: Classifier, tmp_path: Path) -> None:
    given = {"methods": ["grad-cam", "activation-map", "fake-cam", "random"], "metrics": ["average-drop", "sparsity"]}
    study([tiny], folder, tmp_path / "run", **given).run()
    plain, table = compare_runs([tmp_path / "run"]), compare_runs([tmp_path / "run"], on_trial=True)
    assert plain.failing == ()
    assert "✗" not in plain.text("markdown")
    found = trial_runs([tmp_path / "run"]).frame.set_index("metric")
    failing = [metric for metric, verdict in found["verdict"].items() if verdict == "fails"]
    assert failing
    assert list(table.failing) == failing
    for metric in failing:
        assert f"{metric}: fails its trial (✗) on {tiny.name} · {tiny.head_name}: {found.loc[metric, 'reason']}." in table.notes
    assert "AD ↓ ✗" in table.text("markdown")
    assert r"AD $\downarrow$ $\times$" in table.text("latex")
    assert not any("average-drop" in note for note in table.sheet(columns=["sparsity"]).notes)
    said = CliRunner().invoke(main, ["compare", str(tmp_path / "run"), "--trial"])
    assert "AD ↓ ✗" in said.output
    values = CliRunner().invoke(main, ["compare", str(tmp_path / "run"), "--trial", "--format", "csv"])
    assert (values.exit_code, "--trial marks printed tables" in values.output) == (2, True)
    refused = CliRunner().invoke(main, ["compare", str(tmp_path / "run"), "--trial", "--tests"])
    assert (refused.exit_code, "--trial is for the table without --tests" in refused.output) == (2, True)
