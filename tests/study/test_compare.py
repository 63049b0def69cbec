"""Tables of several runs, and what keeps runs from being compared."""

from __future__ import annotations

from pathlib import Path

import pytest

import xattn
from tests import networks
from tests.study.test_study import METHODS, study
from xattn.errors import InputError, RunError, UnsupportedError
from xattn.figures import figure
from xattn.models import Classifier
from xattn.study import Study
from xattn.study.compare import compare_runs


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
    assert "* differs from random on the same images" in markdown
    assert "deletion-correlation: undefined for" in markdown
    assert r"\begin{tabular}" in table.text("latex")
    assert table.text("csv").startswith("model,head,method,average-drop,average-drop low,average-drop high")


def test_compare_refuses_runs_that_disagree_and_tells_models_of_other_weights_apart(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "a").run()
    study([tiny], folder, tmp_path / "b", target="class 1").run()
    with pytest.raises(InputError, match=r"explain tiny · gap for different targets \(given, predicted\)"):
        compare_runs([tmp_path / "a", tmp_path / "b"])
    study([tiny], folder, tmp_path / "d", target="class 2").run()
    with pytest.raises(InputError, match=r"explain tiny · gap for different targets \(1, 2 on 0.png\)"):
        compare_runs([tmp_path / "b", tmp_path / "d"])
    other = xattn.attach(networks.seeded(networks.small, seed=1), input_size=32, resize=36, name="tiny")
    study([other], folder, tmp_path / "c").run()
    assert set(compare_runs([tmp_path / "a", tmp_path / "c"]).frame["model"]) == {"tiny", f"tiny ({tmp_path / 'c'})"}
    with pytest.raises(RunError, match="is not a run"):
        compare_runs([folder])


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
