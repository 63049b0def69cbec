"""Metrics of known parts through a run: the values, what is not available and why, and the same in any batch."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import xattn
from tests import networks
from xattn.birds import SketchBirds, known_parts, scene_of
from xattn.cli import main
from xattn.data.preprocessing import as_picture
from xattn.errors import InputError, UnsupportedError
from xattn.metrics import metrics
from xattn.study import Study
from xattn.study.truth import bird_truth

METRICS = [name for name, entry in metrics.entries.items() if entry.metadata.kind == "parts"]
METHODS = ["grad-cam", "activation-map", "random"]


def study(images: Any, out: Path, names: Sequence[str] = ("birds:gap", "birds:ca-stream"), **settings: Any) -> Study:
    classifiers = [xattn.load(name, device="cpu") for name in names]
    given = {"methods": METHODS, "metrics": METRICS, "batch_size": 3, "workers": 0, "progress": False, "tune": "off", **settings}
    return Study(classifiers, images=images, out=out, **given)


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SketchBirds("test", 4, spurious=0.0).export(tmp_path_factory.mktemp("known") / "birds")


@pytest.fixture(scope="module")
def run(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = study(birds, tmp_path_factory.mktemp("known") / "run")
    assert made.run().failed == []
    return made.store.folder  # type: ignore[return-value]


def test_values_are_those_of_the_functions_on_the_birds_drawn_again(birds: Path, run: Path) -> None:
    rows = xattn.study.store.Store(run).rows()
    for name in ("birds:gap", "birds:ca-stream"):
        classifier = xattn.load(name, device="cpu")
        maps = xattn.explain(classifier, birds, METHODS, target="label", labels=[1, 0, 3, 2], progress=False)
        scenes = [scene_of(birds / image) for image in maps.names]
        parts = known_parts(classifier.predict, scenes, maps.targets)
        own = rows[rows["model"] == name].set_index(["image", "method", "metric"])["value"]
        again = xattn.evaluate(classifier, birds, maps, METRICS, parts=parts, progress=False)
        assert len(again) == len(own) == 4 * len(METHODS) * len(METRICS)
        for row in again.to_dict("records"):
            found = own[row["image"], row["method"], row["metric"]]
            assert found == pytest.approx(row["value"], abs=1e-9, nan_ok=True), row
        by_hand = xattn.metrics.parts_removal(maps["grad-cam"], parts)
        assert [own[image, "grad-cam", "parts-removal"] for image in maps.names] == pytest.approx(by_hand.tolist())
    assert rows.groupby("metric")["value"].apply(lambda values: values.notna().any()).all()


def test_a_picture_s_values_are_the_same_in_any_batch_and_from_a_data_set_as_from_files(run: Path, tmp_path: Path) -> None:
    alone = study(SketchBirds("test", 4, spurious=0.0), tmp_path / "run", batch_size=1)
    assert pickle.loads(pickle.dumps(alone.plan)).settings() == alone.plan.settings()
    assert alone.run().failed == []
    found, before = alone.scores(), xattn.study.store.Store(run).rows()
    keys = ["model", "method", "metric", "value"]
    one, other = (rows.sort_values(["model", "method", "metric", "label"])[keys] for rows in (found, before))
    assert one["metric"].to_list() == other["metric"].to_list()
    assert one["value"].to_list() == pytest.approx(other["value"].to_list(), abs=1e-6, nan_ok=True)


def test_a_map_with_one_value_in_all_parts_has_none_and_says_why(tmp_path: Path) -> None:
    made = study(SketchBirds("test", 2), tmp_path / "run", ["birds:gap"], metrics=["parts-removal"], methods=["uniform", "grad-cam"])
    assert made.run().failed == []
    rows = made.scores().set_index("method")
    assert rows.loc["uniform", "value"].isna().all()
    assert set(rows.loc["uniform", "reason"]) == {
        "undefined: the map has the same mean in all of the parts, or all of them have the same effect"
    }
    assert rows.loc["grad-cam", "reason"].isna().all()


def test_the_truth_of_a_run_is_its_parts_shapley(run: Path) -> None:
    rows = xattn.study.store.Store(run).rows()
    own = rows[rows["metric"] == "parts-shapley"].set_index(["model", "image", "method"])["value"]
    for row in bird_truth(run, device="cpu").to_dict("records"):
        assert row["value"] == pytest.approx(own[row["model"], row["image"], row["method"]], abs=1e-6, nan_ok=True)


def test_a_picture_that_is_no_sketchbird_is_not_available_and_says_why(birds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, path in enumerate(sorted(birds.glob("*/*.png"))[:2]):
        (folder / f"bird-{number}.png").write_bytes(path.read_bytes())
    as_picture((networks.pictures(1, size=64)[0] * 255).byte()).save(folder / "other.png")
    metrics_ = ["parts-removal", "target-sensitivity", "clever-hans", "sparsity"]
    made = study(folder, tmp_path / "run", ["birds:gap"], metrics=metrics_, target="predicted", methods=["grad-cam"])
    assert made.run().failed == []
    rows = made.scores().set_index(["image", "metric"])
    for metric in metrics_[:3]:
        assert rows["value"]["bird-0.png", metric] == rows["value"]["bird-0.png", metric]  # a number
        assert rows["value"].isna()["other.png", metric]
        assert rows["reason"]["other.png", metric] == "not available: the picture is no SketchBird, and its parts are not known"
    assert rows["value"].notna()["other.png", "sparsity"]
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["without_parts"] == {"not available: the picture is no SketchBird, and its parts are not known": ["other.png"]}


def test_what_a_bird_lacks_is_said_and_a_picture_that_was_changed_is_not_its_scene(tmp_path: Path) -> None:
    def turned(picture):
        return picture.rotate(180)

    changed = study(SketchBirds("test", 2, transform=turned), tmp_path / "a", ["birds:gap"], metrics=["parts-shapley"])
    assert changed.run().failed == []
    assert changed.scores()["value"].isna().all()
    assert changed.scores()["reason"].str.contains("not what its scene of SketchBirds shows").all()
    plain = study(SketchBirds("test", 2), tmp_path / "b", ["birds:gap"], metrics=["clever-hans"])
    assert plain.run().failed == []
    assert plain.scores()["reason"].to_list() == ["not available: the picture shows no cue"] * 2 * len(METHODS)
    contrast = study(SketchBirds("test", 2), tmp_path / "c", ["birds:gap"], metrics=["parts-removal"], target="0 - 1")
    assert contrast.run().failed == []
    assert contrast.scores()["reason"].str.contains("the effects of parts are those on a class, and the target is none").all()


def test_a_network_without_the_classes_of_sketchbirds_has_no_rivals_and_sees_crops(tiny: xattn.Classifier, tmp_path: Path) -> None:
    given = {"methods": ["grad-cam"], "metrics": ["parts-shapley", "target-sensitivity"], "batch_size": 2, "workers": 0, "tune": "off"}
    made = Study([tiny], images=SketchBirds("test", 3), out=tmp_path, target="predicted", labels_from="none", progress=False, **given)
    assert made.run().failed == []
    rows = made.scores().set_index("metric")
    assert rows["value"]["parts-shapley"].notna().any()
    assert rows["reason"]["target-sensitivity"].str.startswith("not available: the network tells no two other classes apart").all()


def test_the_command_names_pictures_without_a_value(birds: Path, tmp_path: Path) -> None:
    as_picture((networks.pictures(1, size=64)[0] * 255).byte()).save(tmp_path / "other.png")
    line = ["explain", str(tmp_path / "other.png"), str(birds / "emberquill"), "--model", "birds:gap", "--device", "cpu", "--tune", "off"]
    line += ["--method", "grad-cam", "--metric", "parts-removal", "--out", str(tmp_path / "run"), "--workers", "0"]
    said = CliRunner().invoke(main, line)
    assert said.exit_code == 0, said.output
    assert "1 picture, not available: the picture is no SketchBird, and its parts are not known: other.png" in said.output


def test_what_needs_maps_for_other_classes_refuses_maps_in_files_and_masks(birds: Path, tmp_path: Path) -> None:
    classifier = xattn.load("birds:gap", device="cpu")
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(UnsupportedError, match="target-sensitivity explains images again, which masks cannot"):
        xattn.evaluate(
            classifier,
            images,
            {"mine": torch.rand(1, 64, 64)},
            ["target-sensitivity"],
            parts=known_parts(classifier.predict, [None], [0]),
            progress=False,
        )
    maps = xattn.explain(classifier, images, ["random"], target=3, progress=False)
    with pytest.raises(InputError, match="parts-removal needs to know the parts of the images"):
        xattn.evaluate(classifier, images, maps, ["parts-removal"], progress=False)
    with pytest.raises(InputError, match="the parts are known for classes 0, …, and the maps explain 3"):
        xattn.evaluate(classifier, images, maps, ["parts-removal"], parts=known_parts(classifier.predict, [None], [0]), progress=False)
