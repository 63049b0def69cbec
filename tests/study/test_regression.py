"""Labels of a regression are values: rows keep them, and tables say the mean absolute error."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import xattn
from tests import networks
from xattn.cli import main
from xattn.errors import InputError, UnsupportedError
from xattn.figures.canvas import caption
from xattn.models import Classifier
from xattn.study.compare import compare_runs
from xattn.study.store import Store

VALUES = [0.25, -1.5, 3.0, 2e-4, 7.0, 0.0, -2.0]


@pytest.fixture
def regression() -> Classifier:
    return xattn.attach(networks.small(1), input_size=32, resize=36, regression=True, name="it")


def test_a_run_keeps_the_values_and_says_the_mean_absolute_error(regression: Classifier, images: Tensor, tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(images, torch.tensor(VALUES, dtype=torch.float64))
    study = xattn.Study([regression], ["grad-cam", "random"], ["sparsity", "complexity"], data, tmp_path / "run", workers=0, progress=False)
    assert study.plan.target == "predicted"
    study.run()
    found = regression.predict((images * 255).round() / 255)[:, 0].double()
    rows = study.scores()
    assert set(rows["target"]) == {"value 0"}
    for number, (label, value) in enumerate(zip(VALUES, found.tolist(), strict=True)):
        own = rows[rows["image"] == str(number)]
        assert own["label"].to_list() == [label] * 4
        assert own["predicted"].to_list() == pytest.approx([value] * 4, abs=1e-5)
    error = float((found - torch.tensor(VALUES, dtype=torch.float64)).abs().mean())
    table = study.table()
    assert table["mean_absolute_error"].to_list() == pytest.approx([error] * 2, abs=1e-5)
    assert "accuracy" not in table
    compared = compare_runs([tmp_path / "run"])
    assert compared.frame["mean_absolute_error"].to_list() == pytest.approx([error] * 2, abs=1e-5)
    assert f"{error:.3g}" in compared.text("markdown")
    assert "MAE: mean absolute error" in " ".join(compared.notes)
    assert pd.read_csv(tmp_path / "run" / "scores.csv")["label"].to_list() == rows["label"].to_list()
    maps = Store(tmp_path / "run").maps(["2"])
    about = next(iter(maps.values())).about
    assert (about["label"], about["target"]) == (3.0, "value 0")
    assert caption(about, None) == f"value 0: {about['predicted']:.3g}"


def test_what_a_regression_does_not_have_is_refused_by_name(regression: Classifier, images: Tensor, tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(images, torch.tensor(VALUES))
    with pytest.raises(UnsupportedError, match="average-drop follows the target's probability, and a value of it, a regression, has none"):
        xattn.Study([regression], ["grad-cam"], ["average-drop", "sparsity"], data, tmp_path / "a", workers=0)
    for target in ("label", "labels", "predicted - second", "label - predicted"):
        with pytest.raises(InputError, match=rf"target '{target}' names a class, but it gives values"):
            xattn.explain(regression, images, target=target, labels=VALUES)
    assert len(xattn.explain(regression, images, ["random"], labels=VALUES).names) == 7
    with pytest.raises(InputError, match=r"label 'high' is not a number, but it gives values"):
        xattn.explain(regression, images, labels=["high", *VALUES[1:]])
    with pytest.raises(InputError, match=r"label nan is not a number"):
        xattn.explain(regression, images, labels=[float("nan"), *VALUES[1:]])


def test_a_value_is_no_label_of_a_class(tiny: Classifier, images: Tensor, tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(images[:2], torch.tensor([0.25, 1.0]))
    study = xattn.Study([tiny], ["random"], ["complexity"], data, tmp_path / "run", workers=0, progress=False)
    assert study.run().failed == [
        ("0", "label: label 0.25 is not a class index. If tiny gives values, set regression=True (--regression).")
    ]
    assert study.scores()["label"].to_list() == [1]


def test_of_several_values_the_label_is_compared_with_the_one_that_is_explained(images: Tensor, tmp_path: Path) -> None:
    clf = xattn.attach(networks.small(3), input_size=32, resize=36, regression=True)
    data = torch.utils.data.TensorDataset(images, torch.tensor(VALUES))
    study = xattn.Study([clf], ["grad-cam"], ["sparsity"], data, tmp_path / "run", target=2, workers=0, progress=False)
    study.run()
    found = clf.predict((images * 255).round() / 255)[:, 2]
    assert study.table()["mean_absolute_error"].item() == pytest.approx(float((found - torch.tensor(VALUES)).abs().mean()), abs=1e-4)
    assert set(study.scores()["target"]) == {"value 2"}


def test_the_command_line_reads_values_from_the_csv(folder: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"{name},{number / 4}\n" for number, name in enumerate(names)))
    (tmp_path / "net.py").write_text("from tests import networks\n\n\ndef build():\n    return networks.small(1)\n")
    base = ["explain", str(folder), "--model", f"{tmp_path / 'net.py'}:build", "--input-size", "32", "--resize", "36", "--device", "cpu"]
    base += ["--workers", "0", "--method", "grad-cam", "--regression"]
    done = CliRunner().invoke(main, [*base, "--labels-csv", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "mean_absolute_error" in done.stdout
    rows = pd.read_csv(tmp_path / "run" / "scores.csv").drop_duplicates("image").set_index("image")
    assert rows["label"].to_dict() == {name: number / 4 for number, name in enumerate(names)}
    (tmp_path / "words.csv").write_text("image,label\n" + "".join(f"{name},high\n" for name in names))
    refused = CliRunner().invoke(main, [*base, "--labels-csv", str(tmp_path / "words.csv"), "--out", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "label 'high' is not a number" in refused.output
