"""A plan is one frozen value: it travels, it takes every target, and what a run keeps of it is enough to go on or to refuse."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from tests.own_methods import OF_ANY_HEAD
from xattn.errors import InputError, RunError, UnsupportedError
from xattn.metrics import average_drop, deletion, insertion, metrics, sparsity
from xattn.metrics.target_base import Target
from xattn.metrics.targets import Contrast, OutputFunction, Region, Similarity
from xattn.models import Classifier
from xattn.study.plan import Plan
from xattn.study.store import Store

OF_ANY_PICTURE = [name for name in sorted(metrics.entries) if metrics.create(name).metadata.kind not in ("region", "parts")]


def study(classifier: Classifier, images: object, out: Path, method: list[str], metric: list[str], **settings: object) -> xattn.Study:
    return xattn.Study(
        [classifier], method, metric, images, out, **{"batch_size": 4, "workers": 0, "progress": False, "tune": "off", **settings}
    )


class Vectors(nn.Module):
    """`small` without its last layer: vectors of 16 values."""

    def __init__(self) -> None:
        super().__init__()
        self.network = networks.small()

    def forward(self, images: Tensor) -> Tensor:
        return self.network[:-1](images)


class Segmentation(nn.Module):
    """A map of logits of 5 classes, at the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.features = networks.small()[:4]
        self.classify = networks.seeded(lambda: nn.Conv2d(16, 5, 1))
        self.enlarge = nn.Upsample(scale_factor=4, mode="bilinear")

    def forward(self, images: Tensor) -> Tensor:
        return self.enlarge(self.classify(self.features(images)))


def most(output: Tensor) -> Tensor:
    return output.flatten(1).amax(dim=1)


def subject(kind: str) -> tuple[Classifier, Target | str]:
    """A network and a target that goes with it."""
    half = torch.zeros(32, 32)
    half[:, :16] = 1
    return {
        "similarity": (Vectors(), Similarity(torch.randn(16, generator=torch.Generator().manual_seed(0)), name="to a person")),
        "region": (Segmentation(), Region(torch.tensor([2]), half, name="left")),
        "contrast": (networks.small(), Contrast([3, 1], [1.0, -0.6])),
        "contrast in words": (networks.small(), "predicted - second"),
        "function": (networks.small(), OutputFunction(most)),
    }[kind]


def attached(kind: str) -> tuple[Classifier, Target | str]:
    network, target = subject(kind)
    return xattn.attach(network.eval(), input_size=32, resize=36, name=kind), target


WITHOUT_PROBABILITY = ("similarity", "function")
BY_SCORE = {"score-cam": "weighting=logit-softmax", "rise": "response=score", "occlusion": "response=score"}
TARGETS = ["similarity", "region", "contrast", "contrast in words", "function"]


def test_a_plan_is_frozen_and_travels_with_every_metric_and_method(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    adapted = ["captum:Saliency", "grad-cam:LayerCAM"]
    plan = study(tiny, folder, tmp_path / "run", [*OF_ANY_HEAD, *adapted], OF_ANY_PICTURE).plan
    again: Plan = pickle.loads(pickle.dumps(plan))
    assert [part.spec for part in again.methods] == [part.spec for part in plan.methods]
    assert [part.instance for part in again.metrics] == [part.instance for part in plan.metrics]
    assert again.settings() == plan.settings()
    assert again.units() == plan.units()
    with pytest.raises(FrozenInstanceError):
        plan.seed = 3  # type: ignore[misc]  # that is what is tested


@pytest.mark.parametrize("method", OF_ANY_HEAD)
@pytest.mark.parametrize("kind", TARGETS)
def test_every_method_takes_every_target_or_says_why_not(method: str, kind: str, images: Tensor) -> None:
    classifier, target = attached(kind)
    if method == "finer-cam" and kind in (*WITHOUT_PROBABILITY, "region"):
        with pytest.raises(UnsupportedError, match="finer-cam compares a class with similar ones, and .* has none. Use grad-cam"):
            xattn.explain(classifier, images, [method], target=target)
        return
    if method.startswith("greedy") and kind in WITHOUT_PROBABILITY:
        with pytest.raises(UnsupportedError, match="greedy follows the target's probability, and .* has none: leave it out"):
            xattn.explain(classifier, images, [method], target=target)
        return
    name = method.partition(":")[0]
    if name in BY_SCORE and kind in WITHOUT_PROBABILITY:
        with pytest.raises(UnsupportedError, match=f"has none: use {name}:{BY_SCORE[name]}"):
            xattn.explain(classifier, images, [method], target=target)
        method = f"{method}{',' if ':' in method else ':'}{BY_SCORE[name]}"
    maps = xattn.explain(classifier, images, [method], target=target)
    (mask,) = maps.values()
    assert mask.shape == (7, 32, 32)
    assert torch.isfinite(mask).all()
    assert len(maps.target.names()) == 7


@pytest.mark.parametrize("spec", ["captum:Saliency", "captum:Occlusion", "grad-cam:GradCAM"])
@pytest.mark.parametrize("kind", TARGETS)
def test_other_libraries_follow_any_target(spec: str, kind: str, images: Tensor) -> None:
    classifier, target = attached(kind)
    maps = xattn.explain(classifier, images[:2], [spec], target=target)
    assert torch.isfinite(next(iter(maps.raw.values()))).all()


@pytest.mark.parametrize("kind", TARGETS)
def test_a_gradient_method_follows_the_target_s_score(kind: str, images: Tensor) -> None:
    """Grad-CAM written out on the features of the last stage."""
    classifier, target = attached(kind)
    maps = xattn.explain(classifier, images[:2], ["grad-cam"], target=target)
    trunk = (
        classifier.network.features
        if kind == "region"
        else (classifier.network.network if kind == "similarity" else classifier.network)[:4]
    )
    features = trunk((images[:2] - classifier.mean) / classifier.std).detach().requires_grad_()
    rest = {
        "region": lambda found: classifier.network.enlarge(classifier.network.classify(found)),
        "similarity": lambda found: found.mean(dim=(2, 3)),
    }.get(kind, lambda found: classifier.network[4:](found))
    gradients = torch.autograd.grad(maps.target.score(rest(features)).sum(), features)[0]
    expected = (gradients.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu().detach()
    assert torch.allclose(maps.raw["grad-cam"], expected, atol=1e-6)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_run_takes_every_target_and_its_rows_say_which(kind: str, folder: Path, tmp_path: Path) -> None:
    classifier, target = attached(kind)
    chosen = ["complexity", "sparsity", "coherency"]
    followed = kind not in WITHOUT_PROBABILITY
    if not followed:
        with pytest.raises(UnsupportedError, match=r"average-drop follows the target's probability, and .* has none"):
            study(classifier, folder, tmp_path / "refused", ["grad-cam"], ["average-drop"], target=target)
        assert not (tmp_path / "refused").exists()
    else:
        chosen += ["average-drop", "deletion"]
    made = study(classifier, folder, tmp_path / "run", ["grad-cam", "random"], chosen, target=target)
    assert made.run().failed == []
    rows = made.scores()
    assert set(rows["metric"]) == set(chosen)
    assert rows["value"].notna().all()
    assert rows["probability"].notna().all() == followed
    maps = xattn.explain(classifier, folder, ["grad-cam", "random"], target=target)
    named = dict(zip(maps.names, maps.target.names(), strict=True))
    assert all(row.target == named[row.image] for row in rows.itertuples())
    alone = xattn.evaluate(classifier, folder, maps, chosen)
    order = ["image", "method", "metric"]
    one, other = (frame.sort_values(order).reset_index(drop=True)["value"] for frame in (rows, alone))
    pd.testing.assert_series_equal(one, other, rtol=1e-4, atol=1e-3)
    with pytest.raises(RunError, match="target"):
        study(classifier, folder, tmp_path / "run", ["grad-cam", "random"], chosen, target=other_than(target)).run()


def other_than(target: Target | str) -> Target | str:
    """A target of the same kind that asks for something else."""
    if isinstance(target, str):
        return "second - predicted"
    if isinstance(target, Similarity):
        return Similarity(-target.reference, name=target.name)
    if isinstance(target, Region):
        return Region(target.classes, 1 - target.masks, name=target.name)
    if isinstance(target, Contrast):
        return Contrast(target.classes, -target.weights)
    return OutputFunction(torch.Tensor.sum)


def test_every_label_of_an_image_is_a_row_of_its_own(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "image,label\n"
        + "\n".join(f"{name},{labels}" for name, labels in [("0.png", "class 1|class 3"), ("1.png", "class 2"), ("2.png", "0|4")])
    )
    given = [folder / f"{number}.png" for number in range(3)]
    made = study(
        tiny, given, tmp_path / "run", ["grad-cam"], ["average-drop"], labels_csv=tmp_path / "labels.csv", target="labels", save_maps=True
    )
    made.run()
    rows = made.scores()
    assert list(zip(rows["image"], rows["target"], strict=True)) == [("0.png", 1), ("0.png", 3), ("1.png", 2), ("2.png", 0), ("2.png", 4)]
    assert set(rows["target_rule"]) == {"labels"}
    for row in rows.itertuples():
        alone = xattn.explain(tiny, folder / row.image, ["grad-cam"], target=int(row.target))
        value = xattn.evaluate(tiny, folder / row.image, alone, ["average-drop"])["value"].item()
        assert row.value == pytest.approx(value, abs=1e-4)
    written = sorted(path.name for path in (tmp_path / "run" / "maps").rglob("*.png"))
    assert written == ["0.png@1.png", "0.png@3.png", "1.png@2.png", "2.png@0.png", "2.png@4.png"]
    xattn.figures.figure([tmp_path / "run"], tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 10_000


def test_a_target_for_each_image_belongs_to_explain_not_to_a_run(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a study takes one target for all images; got 10"):
        study(tiny, folder, tmp_path / "run", ["grad-cam"], ["average-drop"], target=list(range(5)) * 2)


def test_a_run_keeps_its_curves_and_their_areas_are_its_values(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    chosen = ["insertion", "deletion", "insertion-correlation", "average-drop", "deletion:protocol=gomez"]
    study(tiny, folder, tmp_path / "run", ["grad-cam", "random"], chosen).run()
    store = Store(tmp_path / "run")
    curves = store.curves()
    assert {key[4] for key in curves} == {"insertion", "deletion", "deletion:protocol=gomez"}  # the correlation follows insertion's
    rows = store.rows().set_index(["image", "method", "metric"])["value"]
    for (image, _, _, method, metric, _), curve in curves.items():
        shares, p = torch.tensor(curve.shares, dtype=torch.float64), torch.tensor(curve.p, dtype=torch.float64)
        area = 100 * torch.trapezoid(p, shares)
        assert rows[image, method, metric] == pytest.approx(area.item(), abs=1e-3)
    assert set(store.curves(["3.png"])) == {key for key in curves if key[0] == "3.png"}
    maps = xattn.explain(tiny, folder / "3.png", ["grad-cam"])
    for function, metric in ((insertion, "insertion"), (deletion, "deletion")):
        value = function(tiny, maps.images, maps["grad-cam"], maps.targets, fill=tiny.mean).item()
        assert rows["3.png", "grad-cam", metric] == pytest.approx(value, abs=1e-2)


def test_released_sparsity_of_a_run_is_that_of_the_head_s_several_maps(folder: Path, tmp_path: Path) -> None:
    clf = xattn.attach(networks.small(), head="br-npa:n=3", input_size=32, resize=36, name="tiny")
    made = study(clf, folder, tmp_path / "run", ["raw-attention", "grad-cam"], ["sparsity", "sparsity:definition=released"])
    made.run()
    maps = xattn.explain(clf, folder, ["raw-attention", "grad-cam"])
    assert maps.head_maps is not None
    expected = {
        ("raw-attention", "sparsity"): sparsity(maps.raw["raw-attention"]),
        ("raw-attention", "sparsity:definition=released"): sparsity(maps.head_maps.weighted, definition="released"),
        ("grad-cam", "sparsity:definition=released"): sparsity(maps.raw["grad-cam"], definition="released"),
    }
    rows = made.scores()
    for (method, metric), values in expected.items():
        found = rows[(rows["method"] == method) & (rows["metric"] == metric)].set_index("image")["value"]
        assert torch.allclose(torch.tensor([found[name] for name in maps.names]), values, rtol=1e-4)
    table = made.table().set_index("method")
    released = expected["raw-attention", "sparsity:definition=released"]
    assert not torch.allclose(released, expected["raw-attention", "sparsity"], rtol=1e-2)
    assert table.loc["raw-attention", "sparsity:definition=released"] == pytest.approx(float(1 / (1 / released).mean()), rel=1e-4)


def test_one_of_several_maps_that_is_all_zeros_counts_0_in_released_sparsity() -> None:
    maps = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    assert sparsity(maps, definition="released").item() == pytest.approx(8, rel=1e-4)  # the mean of all eight cells is 1/8
    assert torch.isnan(sparsity(torch.zeros(1, 2, 2, 2), definition="released"))


def test_parts_of_an_earlier_version_are_read(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study(tiny, folder, tmp_path / "run", ["grad-cam"], ["average-drop", "insertion"]).run()
    scores = (tmp_path / "run" / "scores.csv").read_bytes()
    for path in (tmp_path / "run" / "parts").glob("*.parquet"):
        table = pq.read_table(path)
        table = table.drop_columns(["shares", "curve"])
        position = table.column_names.index("target")
        pq.write_table(table.set_column(position, "target", table["target"].cast("int32")), path)
    store = Store(tmp_path / "run")
    assert store.curves() == {}
    store.finish(["average-drop", "insertion"])
    assert (tmp_path / "run" / "scores.csv").read_bytes() == scores


def test_a_run_of_an_earlier_version_is_refused_by_name(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study(tiny, folder, tmp_path / "run", ["grad-cam"], ["average-drop"]).run()
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "settings": {**about["settings"], "xattn": "0.1.0"}}))
    with pytest.raises(RunError, match=r"xattn was '0\.1\.0', is '0\.2\.0'"):
        study(tiny, folder, tmp_path / "run", ["grad-cam"], ["average-drop"]).run()


def test_evaluate_scores_each_label_of_an_image_on_that_image(tiny: Classifier, images: Tensor) -> None:
    """Images without a label are left out, so that as many maps as images need not be one for each."""
    maps = xattn.explain(tiny, images[:2], ["grad-cam"], target="labels", labels=[[0, 1], []])
    rows = xattn.evaluate(tiny, images[:2], maps, ["deletion"])
    assert rows["image"].tolist() == ["0", "0"]
    alone = [xattn.explain(tiny, images[:1], ["grad-cam"], target=label) for label in (0, 1)]
    expected = [xattn.evaluate(tiny, images[:1], found, ["deletion"])["value"].item() for found in alone]
    assert rows["value"].tolist() == pytest.approx(expected, abs=1e-4)


def test_maps_of_a_classifier_of_several_labels_go_to_the_functions_with_their_sigmoid(images: Tensor) -> None:
    clf = xattn.attach(networks.small(), input_size=32, resize=36, multi_label=True)
    maps = xattn.explain(clf, images, ["grad-cam"])
    rows = xattn.evaluate(clf, images, maps, ["average-drop"])
    assert rows["value"].tolist() == pytest.approx(
        average_drop(clf.predict, maps.images, maps["grad-cam"], maps.targets).tolist(), abs=1e-4
    )


def test_images_whose_labels_do_not_fit_the_target_are_errors_of_their_own(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label\n0.png,class 1\n1.png,2|3\n2.png,4|4\n")
    given = [folder / f"{number}.png" for number in range(3)]
    one = study(tiny, given, tmp_path / "one", ["grad-cam"], ["average-drop"], labels_csv=tmp_path / "labels.csv", target="label")
    assert one.run().failed == [("1.png", "label: target 'label' needs a label, and the image has 2: give target 'labels'")]
    assert one.scores()["image"].tolist() == ["0.png", "2.png"]
    every = study(tiny, given, tmp_path / "every", ["grad-cam"], ["average-drop"], labels_csv=tmp_path / "labels.csv", target="labels")
    every.run()
    assert list(zip(every.scores()["image"], every.scores()["target"], strict=True)) == [
        ("0.png", 1),
        ("1.png", 2),
        ("1.png", 3),
        ("2.png", 4),
    ]


def test_a_target_may_be_a_tensor_of_one_index(tiny: Classifier, images: Tensor) -> None:
    assert xattn.explain(tiny, images, ["grad-cam"], target=torch.tensor(3)).targets.tolist() == [3] * 7
