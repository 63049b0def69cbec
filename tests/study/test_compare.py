"""Tables of several runs, and what keeps runs from being compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import xattn
from tests import networks
from tests.study.test_study import METHODS, study
from xattn.cli import main
from xattn.errors import InputError, RunError, UnsupportedError
from xattn.figures import figure
from xattn.models import Classifier
from xattn.study import Study
from xattn.study.compare import compare_runs

QUICK: dict[str, Any] = {"methods": ["grad-cam", "random"], "metrics": ["average-drop"]}


def test_compare_tests_every_method_against_one_on_the_same_images(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "a").run()
    study([tiny], folder, tmp_path / "b", methods=["centre"]).run()
    table = compare_runs([tmp_path / "a", tmp_path / "b"], against="random")
    assert set(table.frame["method"]) == {*METHODS, "centre"}
    row = table.frame.set_index("method").loc["uniform"]
    assert row["average-drop p"] < 0.05
    assert row["average-drop low"] == row["average-drop"] == 0
    markdown = table.text("markdown")
    assert "AD ↓" in markdown
    assert "△ better, ▽ worse than random on the same images" in markdown
    assert "deletion-correlation: undefined for" in markdown
    assert r"\begin{tabular}" in table.text("latex")
    assert table.text("csv").startswith("model,head,method,average-drop,average-drop low,average-drop high")


def test_models_of_other_weights_are_told_apart_and_a_folder_that_is_no_run_is_refused(
    tiny: Classifier, folder: Path, tmp_path: Path
) -> None:
    study([tiny], folder, tmp_path / "a", **QUICK).run()
    other = xattn.attach(networks.seeded(networks.small, seed=1), input_size=32, resize=36, name="tiny")
    study([other], folder, tmp_path / "c", **QUICK).run()
    assert set(compare_runs([tmp_path / "a", tmp_path / "c"]).frame["model"]) == {"tiny", f"tiny ({tmp_path / 'c'})"}
    with pytest.raises(RunError, match="is not a run"):
        compare_runs([folder])


@pytest.mark.parametrize(
    ("network", "settings", "names"),
    [
        ({}, {"target": "class 1"}, {"tiny (target predicted)", "tiny (target class 1)"}),
        ({}, {"stage": "2"}, {"tiny (stage 3)", "tiny (stage 2)"}),
        ({}, {"seed": 3}, {"tiny (seed 0)", "tiny (seed 3)"}),
        ({}, {"level": "fast"}, {"tiny (level exact)", "tiny (level fast)"}),
        ({"input_size": 24, "resize": 36}, {}, {"tiny (input size 32×32)", "tiny (input size 24×24)"}),
        ({"mean": [0.5] * 3}, {"target": 2}, {"tiny (target predicted, mean 0.485/0.456/0.406)", "tiny (target 2, mean 0.5/0.5/0.5)"}),
    ],
)
def test_runs_of_different_questions_have_rows_of_their_own_named_by_what_differs(
    tiny: Classifier, folder: Path, tmp_path: Path, network: dict[str, Any], settings: dict[str, Any], names: set[str]
) -> None:
    study([tiny], folder, tmp_path / "a", **QUICK).run()
    other = xattn.attach(networks.small(), **{"input_size": 32, "resize": 36, "name": "tiny", **network}) if network else tiny
    study([other], folder, tmp_path / "b", **{**QUICK, **settings}).run()
    frame = compare_runs([tmp_path / "a", tmp_path / "b"]).frame
    assert set(frame["model"]) == names
    assert frame["n"].tolist() == [10] * 4
    alone = [compare_runs([tmp_path / run]).frame["average-drop"].tolist() for run in "ab"]
    assert frame["average-drop"].tolist() == [*alone[0], *alone[1]]


def test_a_setting_whose_default_changed_between_runs_is_another_question(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    for run in "ab":
        study([tiny], folder, tmp_path / run, methods=["random"], metrics=["insertion"]).run()
    about = json.loads((tmp_path / "b" / "run.json").read_text())
    about["protocol"]["insertion"]["settings"]["protocol"] = "rise"
    (tmp_path / "b" / "run.json").write_text(json.dumps(about))
    frame = compare_runs([tmp_path / "a", tmp_path / "b"]).frame
    assert frame["model"].tolist() == ["tiny (insertion protocol ca-stream)", "tiny (insertion protocol rise)"]


def test_runs_of_two_protocols_have_a_column_for_each(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    for run, metric in (("a", "insertion"), ("b", "insertion:protocol=br-npa")):
        study([tiny], folder, tmp_path / run, methods=["grad-cam"], metrics=[metric]).run()
    table = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert table.metrics == ("insertion", "insertion:protocol=br-npa")
    assert len(table.frame) == 1  # one method of one classifier
    assert abs(table.frame["insertion"][0] - table.frame["insertion:protocol=br-npa"][0]) > 1e-3


def test_pictures_are_known_by_name_and_content(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    shutil.copytree(folder, same)
    shutil.copytree(folder, other)
    for number in range(8):
        shutil.copyfile(folder / f"{7 - number}.png", other / f"{number}.png")
    for name, images in (("a", folder), ("b", same), ("c", other)):
        study([tiny], images, tmp_path / name, **QUICK).run()
    assert compare_runs([tmp_path / "a", tmp_path / "b"]).frame["n"].tolist() == [10, 10]
    table = compare_runs([tmp_path / "a", tmp_path / "c"])
    assert table.frame["n"].tolist() == [18, 18]  # the two in a folder below are the same
    with pytest.raises(InputError, match=r"'0.png' of '.*c' is not the same picture as in the runs before it"):
        figure([tmp_path / "a", tmp_path / "c"], tmp_path / "grid.png")
    for run in "ab":  # as runs of a version that kept no digests: pictures of one place are the same
        (tmp_path / run / "images.json").unlink()
    assert compare_runs([tmp_path / "a", tmp_path / "a"]).frame["n"].tolist() == [10, 10]
    assert compare_runs([tmp_path / "a", tmp_path / "b"]).frame["n"].tolist() == [20, 20]


def test_values_that_differ_between_batch_sizes_are_noted_and_between_versions_refused(
    tiny: Classifier, folder: Path, tmp_path: Path
) -> None:
    study([tiny], folder, tmp_path / "a", **QUICK).run()
    study([tiny], folder, tmp_path / "b", **QUICK, batch_size=7).run()
    first = compare_runs([tmp_path / "a"]).frame
    part = sorted((tmp_path / "b" / "parts").iterdir())[0]
    table = pq.read_table(part)
    shifted = pa.array([None if value is None else value + 1.5 for value in table["value"].to_pylist()], pa.float64())
    pq.write_table(table.set_column(table.column_names.index("value"), "value", shifted), part)
    joint = compare_runs([tmp_path / "a", tmp_path / "b"])
    pd.testing.assert_frame_equal(joint.frame, first)
    assert "14 of 20 values that several runs hold differ by more than 0.01, at most by 1.5 (batch size 3 and 7)" in joint.text("markdown")
    about = json.loads((tmp_path / "b" / "run.json").read_text())
    about["settings"]["xattn"] = "0.1.0"
    (tmp_path / "b" / "run.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"different versions of xattn \(0\.1\.0, "):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_an_image_whose_prediction_ties_keeps_its_rows_of_the_first_run(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    for run, size in (("a", 3), ("b", 7)):
        study([tiny], folder, tmp_path / run, methods=["random"], metrics=["average-drop"], batch_size=size).run()
    part = sorted((tmp_path / "b" / "parts").iterdir())[0]
    table = pq.read_table(part)
    moved = ["9" if name == "0.png" else target for name, target in zip(*(table[c].to_pylist() for c in ("image", "target")), strict=True)]
    pq.write_table(table.set_column(table.column_names.index("target"), "target", pa.array(moved)), part)
    joint = compare_runs([tmp_path / "a", tmp_path / "b"])
    pd.testing.assert_frame_equal(joint.frame, compare_runs([tmp_path / "a"]).frame)
    assert "the runs explain 1 image for different targets" in joint.text("markdown")


def test_runs_of_other_labels_are_refused(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    for run, label in (("a", 0), ("b", 1)):
        labels = tmp_path / f"{run}.csv"
        labels.write_text("image,label\n" + "".join(f"{name.relative_to(folder)},{label}\n" for name in folder.rglob("*.png")))
        study([tiny], folder, tmp_path / run, **QUICK, labels_csv=labels).run()
    with pytest.raises(InputError, match=r"different targets \(0, 1 on 0.png\), though all for label: their labels differ"):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_runs_of_other_batch_sizes_and_methods_are_one_table(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "a", methods=["grad-cam"]).run()
    study([tiny], folder, tmp_path / "b", methods=["grad-cam", "edges"], batch_size=7).run()
    table = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert table.frame["n"].tolist() == [10, 10]
    (tmp_path / "b" / "table.csv").unlink()
    assert "is not finished" in compare_runs([tmp_path / "a", tmp_path / "b"]).text("markdown")


def test_two_heads_on_one_network_are_one_run_with_a_row_each(folder: Path, tmp_path: Path) -> None:
    network = networks.small()
    pair = [xattn.attach(network, head=head, input_size=32, resize=36, name="tiny") for head in ("gap", "br-npa:n=2")]
    done = Study(pair, ["grad-cam", "raw-attention"], ["sparsity"], folder, tmp_path / "run", workers=0, progress=False, save_maps=True)
    done.run()
    table = done.table()
    assert list(zip(table["head"], table["method"], strict=True)) == [
        ("gap", "grad-cam"),
        ("br-npa:n=2", "grad-cam"),
        ("br-npa:n=2", "raw-attention"),
    ]
    shown = compare_runs([tmp_path / "run"]).frame
    assert set(shown["model"]) == {"tiny"}  # other weights of another head do not make it another model
    figure([tmp_path / "run"], tmp_path / "grid.svg", images=["3.png"])
    drawn = (tmp_path / "grid.svg").read_text()
    assert "svg" in drawn
    assert (tmp_path / "run" / "maps" / "tiny" / "br-npa_n=2" / "grad-cam" / "3.png.png").exists()
    with pytest.raises(UnsupportedError, match="raw-attention shows a head's attention, and tiny · gap has none"):
        Study(pair[:1], ["grad-cam", "raw-attention"], ["sparsity"], folder, tmp_path / "other")
    pair[1].trained = False
    with pytest.raises(UnsupportedError, match="never trained"):
        Study(pair, ["grad-cam"], ["sparsity"], folder, tmp_path / "other")
    Study(pair, ["grad-cam"], ["sparsity"], folder, tmp_path / "other", untrained=True)


def test_runs_of_networks_of_other_seeds_are_one_row_by_what_names_the_seed(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    seeds = [xattn.attach(networks.seeded(networks.small, seed=seed), input_size=32, resize=36, name="tiny") for seed in range(3)]
    for number, network in enumerate(seeds):
        study([network], folder, tmp_path / f"s{number}", **QUICK).run()
    runs = [tmp_path / f"s{number}" for number in range(3)]
    seed = re.escape(str(tmp_path)) + r"/s\d"
    apart, joined = compare_runs(runs), compare_runs(runs, against="random", seeds=seed)
    assert list(joined.frame["model"].unique()) == ["tiny"]
    assert set(joined.frame["seeds"]) == {3}
    means = apart.frame.groupby("method", sort=False)["average-drop"].mean()
    assert joined.frame.set_index("method")["average-drop"].to_dict() == pytest.approx(means.to_dict())
    said = CliRunner().invoke(main, ["compare", *map(str, runs), "--seeds", seed])
    assert " seeds |" in said.stdout
    assert "Each classifier is explained for its own prediction" in said.stdout
    refused = CliRunner().invoke(main, ["compare", *map(str, runs), "--seeds", "@seed"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "no two models have the same name without '@seed'" in refused.stderr
    tested = CliRunner().invoke(main, ["compare", *map(str, runs), "--tests", "--seeds", seed])
    assert tested.exit_code == 0, tested.output
    assert f"and 3 seeds of tiny · {seeds[0].head_name}: this speaks of networks trained like these." in tested.stdout
    assert any("has 3 rows of different weights or seeds, and the interval of each is over images alone" in note for note in apart.notes)
    assert not any("other weights or seeds" in note or "the same weights" in note for note in joined.notes)


def test_seeds_of_one_network_are_no_seeds_of_training_and_a_row_of_one_seed_says_so(
    tiny: Classifier, folder: Path, tmp_path: Path
) -> None:
    for seed in range(2):
        study([tiny], folder, tmp_path / f"s{seed}", **{**QUICK, "seed": seed}).run()
    runs = [tmp_path / f"s{seed}" for seed in range(2)]
    assert "has 2 rows of different weights or seeds" in compare_runs(runs).text("markdown")
    table = compare_runs(runs, seeds=r"seed \d")
    assert list(table.frame["seeds"].unique()) == [2]
    assert any("tiny · gap: 2 seeds have the same weights. Equal networks show the spread" in note for note in table.notes)
    other = xattn.attach(networks.seeded(networks.small, seed=1), input_size=32, resize=36, name="other")
    study([other], folder, tmp_path / "other", **QUICK).run()
    assert "Rows of 1 seed are of that network alone" in compare_runs([*runs, tmp_path / "other"], seeds=r"seed \d").text("markdown")
