"""Regions through a run: the values, what has none, and resuming."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import xattn
from tests import networks
from xattn import metrics as m
from xattn.birds import SketchBirds
from xattn.cli import main
from xattn.errors import InputError, RunError, XattnError
from xattn.models import Classifier
from xattn.study import Study

METRICS = ["pointing-game:tolerance=2", "energy-pointing", "relevance-mass", "relevance-rank", "segmentation-ap", "box-accuracy"]
METHODS = ["grad-cam", "uniform"]


def study(classifier: Classifier, images: object, out: Path, **settings: object) -> Study:
    given = {"methods": METHODS, "metrics": METRICS, "batch_size": 3, "workers": 0, "progress": False, "tune": "off", **settings}
    return Study([classifier], images=images, out=out, **given)  # type: ignore[arg-type]


def boxes(path: Path, rows: list[str], label: bool = False) -> Path:
    path.write_text("\n".join([f"image,x0,y0,x1,y1{',label' * label}", *rows]) + "\n")
    return path


NAMES = [*(f"{number}.png" for number in range(8)), "below/8.png", "below/9.png"]


def test_values_are_those_of_the_functions_on_the_regions_of_the_crops(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    edges = {name: (4 + 2 * number, 6, 20 + 2 * number, 30) for number, name in enumerate(NAMES)}
    given = boxes(tmp_path / "b.csv", [f"{name},{','.join(map(str, of))}" for name, of in edges.items()])
    run = study(tiny, folder, tmp_path / "run", regions=given)
    assert run.run().failed == []
    assert pickle.loads(pickle.dumps(run.plan)).settings() == run.plan.settings()
    rows = run.scores()
    maps = xattn.explain(tiny, folder, METHODS, progress=False)
    regions = torch.zeros(10, 32, 32, dtype=torch.bool)
    scale = 40 / 36  # a picture of 40 is resized to 36, of which 32 are kept
    centres = (torch.arange(32) + 0.5 + 2) * scale
    for number, name in enumerate(maps.names):
        left, top, right, bottom = edges[name]
        rows_in, columns_in = (centres >= top) & (centres < bottom), (centres >= left) & (centres < right)
        regions[number] = rows_in[:, None] & columns_in
    for method in METHODS:
        expected = {
            "pointing-game:tolerance=2": m.pointing_game(maps[method], regions, tolerance=2),
            "energy-pointing": m.energy_pointing(maps[method], regions),
            "relevance-mass": m.relevance_mass(maps.raw[method], regions),
            "box-accuracy": m.box_accuracy(maps[method], regions),
        }
        for metric, values in expected.items():
            found = rows[(rows["method"] == method) & (rows["metric"] == metric)].set_index("image")["value"]
            assert [found[name] for name in maps.names] == pytest.approx(values.tolist(), abs=1e-3)
    shares = rows[(rows["method"] == "uniform") & (rows["metric"] == "segmentation-ap")].set_index("image")["value"]
    assert [shares[name] for name in maps.names] == pytest.approx((100 * regions.double().mean(dim=(1, 2))).tolist())
    again = xattn.evaluate(tiny, maps.images, maps, METRICS, regions=regions, progress=False)
    assert again["value"].to_list() == pytest.approx(rows["value"].to_list(), abs=1e-3)


def test_objects_of_another_class_than_the_row_s_target_do_not_count_and_what_has_no_region_is_named(
    tiny: Classifier, folder: Path, tmp_path: Path
) -> None:
    rows = ["0.png,5,5,20,20,class 1", "0.png,21,21,30,30,class 2", "1.png,5,5,20,20,class 2", "2.png,0,0,1,1,class 1"]
    given = boxes(tmp_path / "b.csv", rows, label=True)
    run = study(tiny, folder, tmp_path / "run", regions=given, target="class 1", metrics=["segmentation-ap", "average-drop"])
    assert run.run().failed == []
    found = run.scores().query("metric == 'segmentation-ap' and method == 'uniform'").set_index("image")
    side = int((((torch.arange(32) + 2.5) * 40 / 36 >= 5) & ((torch.arange(32) + 2.5) * 40 / 36 < 20)).sum())
    assert found["value"]["0.png"] == pytest.approx(100 * side**2 / 32**2)
    assert found["value"].notna().sum() == 1
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["without_region"] == {
        "no region: the crop shows no object of the target": ["1.png", "2.png"],
        "no region: the picture has no annotated object": [name for name in sorted(NAMES) if name > "2.png"],
    }
    assert run.scores().query("metric == 'average-drop'")["value"].notna().all()
    with pytest.raises(InputError, match=r"classes of the regions in .* \(dgo, …\) are none of tiny"):
        study(tiny, folder, tmp_path / "other", regions=boxes(tmp_path / "c.csv", ["0.png,1,1,9,9,dgo"], label=True))


def test_labels_of_regions_that_are_no_class_are_named(
    tiny: Classifier, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = boxes(tmp_path / "b.csv", ["0.png,5,5,20,20,class 1", "0.png,1,1,9,9,dgo", "1.png,1,1,9,9,cat"], label=True)
    study(tiny, folder, tmp_path / "run", regions=given)
    said = [record.getMessage() for record in caplog.records if "labels" in record.getMessage()]
    assert said == [f"tiny: 2 of 3 labels of the regions in {given} name no class of it, and their regions are left out: cat, dgo"]


def test_a_metric_of_regions_without_regions_is_refused_in_one_sentence(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^pointing-game:tolerance=2 compares maps with where the object is: give the regions of objects"):
        study(tiny, folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    images = networks.pictures(2)
    with pytest.raises(InputError, match=r"^energy-pointing needs the regions of objects: pass regions="):
        xattn.evaluate(tiny, images, xattn.explain(tiny, images), ["energy-pointing"])


def test_a_run_takes_metrics_of_regions_later_and_refuses_other_regions(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    first = boxes(tmp_path / "first.csv", [f"{name},5,5,20,20" for name in NAMES])
    other = boxes(tmp_path / "other.csv", [f"{name},5,5,20,21" for name in NAMES])
    out = tmp_path / "run"
    study(tiny, folder, out, metrics=["sparsity"]).run()
    run = study(tiny, folder, out, metrics=["energy-pointing"], regions=first)
    run.run()
    assert set(run.scores()["metric"]) == {"sparsity", "energy-pointing"}
    with pytest.raises(RunError, match=r"holds a run with other settings.*regions was"):
        study(tiny, folder, out, metrics=["energy-pointing"], regions=other).run()
    study(tiny, folder, out, metrics=["segmentation-ap"], regions=first).run()
    assert len(run.scores()) == 3 * len(METHODS) * len(NAMES)


def test_sketchbirds_bring_their_own_regions(tmp_path: Path) -> None:
    birds = SketchBirds("test", 3)
    run = study(xattn.load("birds:gap", device="cpu"), birds, tmp_path / "run", methods=["uniform"], metrics=["relevance-mass"])
    run.run()
    assert run.scores()["value"].to_list() == pytest.approx([float(birds.region(index).double().mean()) for index in range(3)])


def test_the_command_takes_regions_and_names_pictures_without_one(tmp_path: Path) -> None:
    saved = tmp_path / "birds"
    SketchBirds("test", 2).export(saved)
    name = next(path.relative_to(saved).as_posix() for path in sorted(saved.rglob("*.png")))
    given = boxes(tmp_path / "b.csv", [f"{name},10,10,50,50"])
    call = [
        "explain",
        str(saved),
        "--model",
        "birds:gap",
        "--method",
        "uniform",
        "--metric",
        "energy-pointing",
        "--out",
        str(tmp_path / "run"),
    ]
    done = CliRunner().invoke(main, [*call, "--regions", str(given), "--workers", "0", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "1 picture, no region: the picture has no annotated object" in done.stderr
    refused = CliRunner().invoke(main, [*call[:-1], str(tmp_path / "other"), "--workers", "0"])
    assert refused.exit_code == 2


@pytest.mark.parametrize("multi_label", [False, True])
def test_regions_of_classes_serve_networks_of_maps_of_logits_in_bounded_memory(multi_label: bool, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1)).eval()
    network[2].bias.data = torch.tensor([-1e3, 1e3])  # no pixel is of class 0
    classifier = xattn.attach(network, input_size=32, resize=36, labels=["none", "all"], multi_label=multi_label, name="dense")
    given = boxes(tmp_path / "b.csv", [f"{name},4,6,20,30,all" for name in NAMES], label=True)
    chosen = {"target": "all", "regions": given, "memory": "2GB", "methods": ["uniform"], "metrics": ["energy-pointing", "average-drop"]}
    run = study(classifier, folder, tmp_path / "run", **chosen)
    assert run.run().failed == []
    rows = run.scores()
    values = rows[rows["metric"] == "energy-pointing"]["value"]
    assert len(values) == 10
    assert values.notna().all()


def test_a_threshold_that_is_none_is_refused_before_anything_runs(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(XattnError, match="threshold"):
        study(tiny, folder, tmp_path / "run", metrics=["box-accuracy:threshold=2"])
    with pytest.raises(XattnError, match=r"in \[0, 1\], or 'oracle'; got 'orac'"):
        m.box_accuracy(torch.ones(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool), threshold="orac")
    assert m.box_accuracy(torch.ones(1, 4, 4), torch.ones(1, 0, 4, 4, dtype=torch.bool)).isnan().all()
