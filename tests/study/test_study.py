"""A run: its folder, its rows, its table, and what is said when it cannot go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset

import xattn
from tests import networks
from tests.data.test_images import bad_files
from xattn.data.images import ImageSource
from xattn.errors import InputError
from xattn.metrics import average_drop, insertion
from xattn.models import Classifier
from xattn.study.compare import compare_runs
from xattn.study.schema import COLUMNS
from xattn.study.store import Store

METHODS = ["grad-cam", "random", "uniform", "fake-cam"]
METRICS = ["average-drop", "average-increase", "insertion", "deletion-correlation", "sparsity", "deletion:protocol=gomez"]


def study(classifiers: list[Classifier], images: object, out: Path, **settings: object) -> xattn.Study:
    return xattn.Study(
        **{
            "classifiers": classifiers,
            "methods": METHODS,
            "metrics": METRICS,
            "images": images,
            "out": out,
            "batch_size": 3,
            "workers": 0,
            "progress": False,
            **settings,
        }
    )


def test_a_run_leaves_tidy_scores_and_a_table_of_their_means(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    made = study([tiny], folder, tmp_path / "run")
    outcome = made.run()
    assert (outcome.images, outcome.failed) == (10, [])
    rows = pd.read_csv(tmp_path / "run" / "scores.csv")
    assert tuple(rows.columns) == COLUMNS
    assert len(rows) == 10 * len(METHODS) * len(METRICS)
    assert rows["image"].iloc[0] == "0.png"
    assert rows["error"].isna().all()
    table = made.table()
    assert list(table.columns) == ["model", "head", "method", *METRICS, "n", "degenerate_share"]
    for _, line in table.iterrows():
        for metric in METRICS:
            values = rows[(rows["method"] == line["method"]) & (rows["metric"] == metric)]["value"]
            assert line[metric] == pytest.approx(values.mean(), nan_ok=True)
        assert (line["n"], line["degenerate_share"]) == (10, 0)
    uniform = table.set_index("method").loc["uniform"]
    assert uniform["average-drop"] == 0
    assert math.isnan(uniform["deletion-correlation"])
    assert table.set_index("method").loc["fake-cam", "average-drop"] < 1


def test_a_run_gives_what_explain_and_evaluate_and_the_functions_give(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "run").run()
    rows = pd.read_csv(tmp_path / "run" / "scores.csv").set_index(["image", "method", "metric"])["value"]
    maps = xattn.explain(tiny, folder, METHODS)
    frame = xattn.evaluate(tiny, maps.images, maps, METRICS)
    assert tuple(frame.columns) == COLUMNS
    found = frame.set_index(["image", "method", "metric"])["value"]
    joined = pd.concat([rows, found], axis=1, join="inner")
    assert len(joined) == len(rows)
    assert (joined.iloc[:, 0] - joined.iloc[:, 1]).abs().max() < 0.01
    drop = average_drop(tiny.predict, maps.images, maps["grad-cam"], maps.targets)
    put_in = insertion(tiny.predict, maps.images, maps["grad-cam"], maps.targets, fill=tiny.mean)
    for i, name in enumerate(maps.names):
        assert rows[name, "grad-cam", "average-drop"] == pytest.approx(float(drop[i]), abs=0.01)
        assert rows[name, "grad-cam", "insertion"] == pytest.approx(float(put_in[i]), abs=0.01)


class Noise(Dataset):
    """35 pictures of noise."""

    def __len__(self) -> int:
        return 35

    def __getitem__(self, index: int) -> torch.Tensor:
        return networks.pictures(1, seed=index)[0]


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batches_of_1_7_and_32_agree(tmp_path: Path, batch_size: int) -> None:
    metrics = ["average-drop", "average-gain", "insertion", "deletion", "sparsity"]
    frames = []
    for size, out in ((3, "three"), (batch_size, "other")):
        clf = xattn.attach(networks.small(), input_size=32, resize=36, name="tiny")
        made = study([clf], Noise(), tmp_path / out, batch_size=size, metrics=metrics, methods=["grad-cam", "grad-cam++", "random"])
        made.run()
        frames.append(made.scores().set_index(["image", "method", "metric"]))
    one, other = (frame[["value", "probability"]].sort_index() for frame in frames)
    assert one.index.equals(other.index)
    assert (one["value"] - other["value"]).abs().max() < 0.01
    assert (one["probability"] - other["probability"]).abs().max() < 1e-5


def test_labels_set_the_target_and_give_an_accuracy(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    maps = xattn.explain(tiny, folder, ["grad-cam"])
    labels = maps.targets.clone()
    labels[0] = (labels[0] + 1) % 5
    lines = [f"{name},class {label}" for name, label in zip(maps.names, labels.tolist(), strict=True)]
    (tmp_path / "labels.csv").write_text("image,label\n" + "\n".join(lines))
    made = study([tiny], folder, tmp_path / "run", labels_csv=tmp_path / "labels.csv")
    assert made.plan.target == "label"
    made.run()
    assert made.table()["accuracy"].tolist() == [90.0] * len(METHODS)
    rows = made.scores()
    assert set(rows["target_rule"]) == {"label"}
    assert (rows["target"] == rows["label"]).all()


def test_bad_files_among_good_ones_are_named_with_their_reason_and_the_good_ones_are_scored(
    tiny: Classifier, folder: Path, tmp_path: Path
) -> None:
    bad = bad_files(folder)
    other = xattn.attach(networks.small(), input_size=24, resize=30, name="the size of a map differs")
    made = study([tiny, other], folder, tmp_path / "run", workers=1)
    outcome = made.run()
    assert {name for name, _ in outcome.failed} == set(bad)
    rows = pd.read_csv(tmp_path / "run" / "scores.csv")
    failed = rows[rows["error"].notna()]
    assert sorted(failed["image"]) == sorted(bad)  # one row each, though two classifiers wanted them
    assert failed["metric"].isna().all()
    assert len(rows) == len(bad) + 2 * 10 * len(METHODS) * len(METRICS)
    assert set(made.table()["n"]) == {10}


def test_logits_that_are_not_numbers_are_an_error_of_that_image_alone(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 40), "black").save(folder / "dark.png")
    clf = xattn.attach(networks.not_a_number(), input_size=32, resize=36, name="nan")
    made = study([clf], folder, tmp_path / "run", methods=["grad-cam"], metrics=["average-drop", "insertion"])
    outcome = made.run()
    assert ("dark.png", "the network gave a non-finite value") in outcome.failed
    rows = pd.read_csv(tmp_path / "run" / "scores.csv")
    assert len(rows[rows["image"] == "dark.png"]) == 1
    assert rows[rows["error"].isna()]["value"].notna().all()


def test_a_map_without_contrast_is_flagged_and_counted(folder: Path, tmp_path: Path) -> None:
    network = networks.small()
    with torch.no_grad():
        network[-1].weight.zero_()
    clf = xattn.attach(network, input_size=32, resize=36, name="blind")
    made = study([clf], folder, tmp_path / "run", methods=["grad-cam", "centre"])
    made.run()
    table = made.table().set_index("method")
    assert table.loc["grad-cam", "degenerate_share"] == 1
    assert table.loc["centre", "degenerate_share"] == 0
    assert math.isnan(table.loc["grad-cam", "sparsity"])
    rows = made.scores()
    assert set(rows[rows["method"] == "grad-cam"]["degenerate"]) == {True}


def test_run_json_tells_versions_settings_and_weights(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "run").run()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["settings"]["models"][0]["weights"] == tiny.digest()
    assert run["settings"]["metrics"] == METRICS
    assert {"python", "torch", "xattn"} <= set(run["versions"])


def test_raw_maps_are_kept_at_their_resolution(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "run").run()
    maps = xattn.explain(tiny, folder, ["grad-cam"])
    stored = Store(tmp_path / "run").maps(["3.png"], ["grad-cam"])["3.png", "tiny", "gap", "grad-cam"]
    raw = maps.raw["grad-cam"][maps.names.index("3.png")]
    assert stored.raw.shape == (8, 8)
    assert torch.allclose(torch.from_numpy(stored.raw), raw, atol=1e-3 * float(raw.max()))


def test_masks_are_saved_in_16_bits_when_asked_for(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    study([tiny], folder, tmp_path / "run", save_maps=True, methods=["grad-cam"]).run()
    saved = Image.open(tmp_path / "run" / "maps" / "tiny" / "gap" / "grad-cam" / "below" / "8.png.png")
    mask = xattn.explain(tiny, folder, ["grad-cam"])["grad-cam"][8]
    level = torch.as_tensor(numpy.array(saved).astype(float)) / 65535
    assert torch.allclose(level, mask.double(), atol=1e-4)


def test_two_classifiers_of_one_name_and_other_wrong_plans_are_refused(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two classifiers are named tiny"):
        study([tiny, tiny], folder, tmp_path / "run")
    with pytest.raises(InputError, match="at least one classifier and one method"):
        study([], folder, tmp_path / "run")
    with pytest.raises(InputError, match="needs a label for every image"):
        study([tiny], folder, tmp_path / "run", target="label")
    (tmp_path / "labels.csv").write_text(
        "image,label\n" + "\n".join(f"{p.name},9" for p in folder.glob("*.png")) + "\nbelow/8.png,1\nbelow/9.png,1\n"
    )
    with pytest.raises(InputError, match=r"the label of 0\.png does not fit tiny: class 9 is outside the 5 classes"):
        study([tiny], folder, tmp_path / "run", labels_csv=tmp_path / "labels.csv")


def test_a_method_that_cannot_run_says_why_and_what_was_done_before_stays(folder: Path, tmp_path: Path) -> None:
    clf = xattn.attach(networks.seeded(lambda: networks.Rectifiers("gelu")), input_size=32, resize=36, name="gelu")
    with pytest.raises(xattn.XattnError, match="gelu has none"):
        study([clf], folder, tmp_path / "run", methods=["grad-cam", "guided-backprop"]).run()


def test_an_infinite_logit_is_an_error_and_a_masked_class_is_not(folder: Path, tmp_path: Path) -> None:
    class Masked(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.network, self.value = networks.small(), value

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            unused = torch.full((len(images), 1), self.value)
            return torch.cat([self.network(images), unused], dim=1)

    overflowing, masking = (xattn.attach(Masked(v).eval(), input_size=32, resize=36, name="m") for v in (torch.inf, -torch.inf))
    assert len(study([overflowing], folder, tmp_path / "a", target=0).run().failed) == 10
    assert study([masking], folder, tmp_path / "b").run().failed == []


def test_accuracy_is_over_labelled_images(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "a").run()
    names = [image.name for image in ImageSource(folder).images]
    (tmp_path / "labels.csv").write_text("image,label\n" + "\n".join(f"{name},0" for name in names))
    other = xattn.attach(tiny.network, input_size=32, resize=36, name="labelled")
    study([other], folder, tmp_path / "b", labels_csv=tmp_path / "labels.csv").run()
    frame = compare_runs([tmp_path / "a", tmp_path / "b"]).frame.set_index("model")
    assert frame.loc["tiny", "accuracy"].isna().all()
    assert frame.loc["labelled", "accuracy"].notna().all()


def test_evaluate_takes_what_explain_took_and_tells_its_seed(tiny: Classifier, folder: Path) -> None:
    maps = xattn.explain(tiny, folder, ["random"], seed=5)
    rows = xattn.evaluate(tiny, folder, maps, ["average-drop"])
    assert set(rows["seed"]) == {5}
    assert len(rows) == 10


def test_a_label_outside_the_classes_that_a_dataset_tells_late_is_that_image_s_error(tiny: Classifier, tmp_path: Path) -> None:
    class Late(Noise):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return super().__getitem__(index), 9 if index == 3 else index % 5

    outcome = study([tiny], Late(), tmp_path / "run").run()
    assert [name for name, _ in outcome.failed] == ["03"]
    assert "class 9 is outside the 5 classes" in outcome.failed[0][1]


def test_run_json_tells_the_protocol_in_full(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "run").run()
    protocol = json.loads((tmp_path / "run" / "run.json").read_text())["protocol"]
    assert protocol["insertion"]["settings"]["protocol"] == "ca-stream"
    assert "gaussian" in protocol["insertion"]["perturbations"][0]
