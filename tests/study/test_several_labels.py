"""Every label that a multi-label classifier predicts is a row of its own; an image without any says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.cli import main
from xattn.errors import InputError, RunError
from xattn.models import Classifier
from xattn.study.compare import compare_runs

THRESHOLD = 0.545
METRICS = ["average-drop", "sparsity"]


def balanced() -> nn.Module:
    """Logits of several signs: some labels are predicted for an image, none for another."""
    network = networks.small()
    with torch.no_grad():
        logits = network((networks.pictures(7) - torch.tensor((0.485, 0.456, 0.406))[:, None, None]) / 0.225)
        network[-1].weight.mul_(60)
        network[-1].bias.copy_(-60 * (logits - network[-1].bias).mean(dim=0))
    return network


@pytest.fixture
def several() -> Classifier:
    labels = ["a", "b", "c", "d", "e"]
    return xattn.attach(balanced(), input_size=32, resize=32, multi_label=True, name="several", labels=labels)


def predicted(clf: Classifier, images: Tensor, threshold: float) -> list[list[int]]:
    return [[k for k, p in enumerate(row) if p >= threshold] for row in clf.predict(images).double().sigmoid().tolist()]


def test_every_label_above_the_threshold_is_explained_each_for_itself(
    several: Classifier, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = predicted(several, images, THRESHOLD)
    assert [] in wanted
    assert max(map(len, wanted)) > 1
    with caplog.at_level(logging.WARNING, "xattn"):
        maps = xattn.explain(several, images, ["grad-cam", "random"], threshold=THRESHOLD, batch_size=2)
    pairs = [(str(number), k) for number, row in enumerate(wanted) for k in row]
    assert list(zip(maps.names, maps.target.names(), strict=True)) == [(name, str(k)) for name, k in pairs]
    for place, (name, k) in enumerate(pairs):
        alone = xattn.explain(several, images[int(name)][None], ["grad-cam"], target=k)
        assert torch.allclose(maps.raw["grad-cam"][place], alone.raw["grad-cam"][0], atol=1e-6)
    for number, row in enumerate(wanted):
        said = f"{number} has no map. Of its labels none has a probability of 0.545 or more; the highest is" in caplog.text
        assert said == (not row)
    rows = xattn.evaluate(several, images, maps, METRICS)
    assert len(rows) == 2 * 2 * len(pairs)
    assert (rows["probability"] >= THRESHOLD).all()
    assert set(rows["target_rule"]) == {"predicted labels, p ≥ 0.545"}


def test_the_threshold_is_a_half_and_for_several_labels_alone(several: Classifier, tiny: Classifier, images: Tensor) -> None:
    assert len(xattn.explain(several, images, ["random"])["random"]) == sum(map(len, predicted(several, images, 0.5)))
    with pytest.raises(InputError, match="threshold is for target 'predicted' of a multi-label classifier"):
        xattn.explain(tiny, images, ["random"], threshold=0.3)
    with pytest.raises(InputError, match="threshold is for target 'predicted' of a multi-label classifier"):
        xattn.explain(several, images, ["random"], target=1, threshold=0.3)
    with pytest.raises(InputError, match=r"probability in \[0, 1\]; got 50"):
        xattn.explain(several, images, ["random"], threshold=50)
    with pytest.raises(InputError, match="no image has one: .* a lower threshold"):
        xattn.explain(several, images, ["random"], threshold=1)


def test_a_run_has_a_row_for_each_and_one_for_an_image_without_any(several: Classifier, images: Tensor, tmp_path: Path) -> None:
    wanted = predicted(several, images, THRESHOLD)
    data = torch.utils.data.TensorDataset(images, torch.arange(7) % 5)
    options = {"target": "predicted", "threshold": THRESHOLD, "batch_size": 3, "workers": 0, "save_maps": True, "progress": False}
    study = xattn.Study([several], ["grad-cam"], METRICS, data, tmp_path / "run", **options)
    outcome = study.run()
    pictures = (images * 255).round() / 255  # a run keeps crops in 8 bits
    assert wanted == predicted(several, pictures, THRESHOLD)
    rows = study.scores()
    assert sorted(zip(rows["image"].astype(int), rows["target"], strict=True)) == sorted(
        (number, k) for number, row in enumerate(wanted) for k in row for _ in METRICS
    )
    assert (rows["label"] == rows["image"].astype(int) % 5).all()
    assert dict(outcome.failed).keys() == {str(number) for number, row in enumerate(wanted) if not row}
    assert all("label: none has a probability of 0.545 or more; the highest is" in reason for _, reason in outcome.failed)
    assert "accuracy" not in study.table()
    assert study.table()["n"].to_list() == [sum(map(len, wanted))]
    assert len(list((tmp_path / "run").rglob("*.png"))) == sum(map(len, wanted))
    table = compare_runs([tmp_path / "run"])
    assert "n counts pairs of image and label." in " ".join(table.notes)
    assert "accuracy" not in table.frame
    options["threshold"] = 0.5
    with pytest.raises(RunError, match=r"threshold was 0.545, is 0.5"):
        xattn.Study([several], ["grad-cam"], METRICS, data, tmp_path / "run", **options).run()


def test_the_command_line_takes_the_threshold(folder: Path, tmp_path: Path) -> None:
    base = ["explain", str(folder), "--model", f"{__file__}:balanced", "--input-size", "32", "--resize", "36", "--device", "cpu"]
    base += ["--workers", "0", "--method", "grad-cam", "--metric", "sparsity", "--target", "predicted", "--threshold", "0.545"]
    done = CliRunner().invoke(main, [*base, "--multi-label", "--out", str(tmp_path / "run")])
    rows = pd.read_csv(tmp_path / "run" / "scores.csv")
    scored = rows[rows["metric"].notna()]
    assert len(scored)
    assert (scored["probability"] >= 0.545).all()
    assert done.exit_code == (3 if rows["error"].notna().any() else 0), done.output
    assert set(rows["image"]) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["threshold"] == 0.545
    refused = CliRunner().invoke(main, [*base, "--out", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "a threshold is for target 'predicted' of a multi-label classifier (--multi-label)" in refused.output
