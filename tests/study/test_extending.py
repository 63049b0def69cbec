"""Methods and metrics added to a run: only their rows are computed, and the run is as if it had had them from the start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import Tensor, nn

import xattn
from tests import networks
from tests.study.test_resume import environment
from xattn.errors import RunError, UnsupportedError
from xattn.figures import figure
from xattn.figures.score_data import read_scores
from xattn.inference import Predictor
from xattn.models import Classifier
from xattn.study import Store, Study
from xattn.study.compare import compare_runs

PROBE = 1
KEYS = ["image", "head", "method", "metric"]
PARTS = ["image", "model", "head", "method", "metric", "target", "error", "map"]
METHODS, METRICS = ["grad-cam", "random"], ["average-drop", "insertion"]
MORE_METHODS, MORE_METRICS = ["score-cam", "centre"], ["insertion-correlation", "sparsity", "coherency"]


def study(classifiers: Classifier | list[Classifier], images: object, out: Path, **settings: object) -> Study:
    given = classifiers if isinstance(classifiers, list) else [classifiers]
    return Study(given, images=images, out=out, **{"batch_size": 4, "workers": 0, "progress": False, "tune": "off", **settings})  # type: ignore[arg-type]


def scores(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "scores.csv")


def about(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Study], int]:
    """The number of images in the forwards of a run: those of traces, of perturbed images, and a probe where forwards are planned anew."""
    seen: list[int] = []
    run, forward = Predictor.__call__, Classifier.forward

    def predicted(self: Predictor, images: Tensor) -> Tensor:
        seen.append(len(images))
        return run(self, images)

    def forwarded(self: Classifier, images: Tensor) -> Tensor:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Predictor, "__call__", predicted)
    monkeypatch.setattr(Classifier, "forward", forwarded)

    def count(made: Study) -> int:
        seen.clear()
        made.run()
        return sum(seen)

    return count


def test_methods_and_metrics_added_one_after_the_other_give_the_run_that_had_them_from_the_start(
    tiny: Classifier, folder: Path, tmp_path: Path
) -> None:
    for number in range(4, 8):
        (folder / f"{number}.png").write_bytes(b"")
    run, whole = tmp_path / "run", tmp_path / "whole"
    study(tiny, folder, run, methods=METHODS, metrics=METRICS).run()
    before = scores(run)
    study(tiny, folder, run, methods=MORE_METHODS, metrics=METRICS).run()
    study(tiny, folder, run, methods=["random"], metrics=MORE_METRICS).run()
    made = study(tiny, folder, whole, methods=[*METHODS, *MORE_METHODS], metrics=[*METRICS, *MORE_METRICS])
    made.run()
    found, expected = scores(run), scores(whole)
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-3)  # in the same order too
    same = found.merge(before, on=KEYS, suffixes=("", " before"))
    assert len(same) == len(before)
    assert (same["value"].dropna() == same["value before"].dropna()).all()
    settings, fresh = about(run)["settings"], about(whole)["settings"]
    assert settings == fresh
    assert about(run)["protocol"] == about(whole)["protocol"]
    assert [entry.get("methods") for entry in about(run)["added"]] == [MORE_METHODS, None]
    assert about(run)["added"][1]["metrics"] == MORE_METRICS
    for one, other in zip(*(sorted((out / "parts").iterdir()) for out in (run, whole)), strict=True):  # maps and failures too
        assert pq.read_table(one, columns=PARTS).equals(pq.read_table(other, columns=PARTS))
    curves, others = (Store(out).curves() for out in (run, whole))
    assert curves.keys() == others.keys()
    pd.testing.assert_frame_equal(compare_runs([run], "random").frame, compare_runs([whole], "random").frame, rtol=0, atol=1e-2)
    figure([run], tmp_path / "grid.png", methods=["score-cam"])
    assert list(Store(run).maps(["0.png"])) == list(Store(whole).maps(["0.png"]))


def test_controls_stand_last_in_every_table_though_a_method_was_added_after_them(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    study(tiny, folder, run, methods=["random", "grad-cam", "centre"], metrics=["complexity"]).run()
    study(tiny, folder, run, methods=["activation-map"], metrics=["complexity"]).run()
    order = ["grad-cam", "activation-map", "random", "centre"]
    assert Store(run).table()["method"].tolist() == order
    assert compare_runs([run]).frame["method"].tolist() == order
    study(tiny, folder, other, methods=["layer-cam", "uniform"], metrics=["complexity"]).run()
    assert compare_runs([run, other]).frame["method"].tolist() == ["grad-cam", "activation-map", "layer-cam", "random", "centre", "uniform"]
    assert read_scores([run, other]).methods == ["grad-cam", "activation-map", "layer-cam", "random", "centre", "uniform"]
    second = xattn.attach(tiny.network, input_size=32, resize=36, name="second")
    study(second, folder, tmp_path / "second", methods=["random", "grad-cam"], metrics=["complexity"]).run()
    frame = compare_runs([run, tmp_path / "second", other]).frame
    assert list(zip(frame["model"], frame["method"], strict=True)) == [
        *(("tiny", method) for method in ("grad-cam", "activation-map", "layer-cam", "random", "centre", "uniform")),
        *(("second", method) for method in ("grad-cam", "random")),
    ]


def test_only_what_is_missing_is_computed(tiny: Classifier, folder: Path, tmp_path: Path, counted: Callable[[Study], int]) -> None:
    run = tmp_path / "run"
    counted(study(tiny, folder, run, methods=METHODS, metrics=METRICS))
    assert counted(study(tiny, folder, run, methods=METHODS, metrics=METRICS)) == 0
    alone = counted(study(tiny, folder, tmp_path / "alone", methods=["centre"], metrics=METRICS))
    assert counted(study(tiny, folder, run, methods=["centre"])) == alone - PROBE  # no metrics are named: those of the run
    alone = counted(study(tiny, folder, tmp_path / "metric", methods=[*METHODS, "centre"], metrics=["deletion"]))
    assert counted(study(tiny, folder, run, methods=["random"], metrics=["deletion"])) == alone - PROBE
    of_maps = counted(study(tiny, folder, tmp_path / "maps", methods=[*METHODS, "centre"], metrics=["sparsity"]))
    assert counted(study(tiny, folder, run, metrics=["sparsity"])) == of_maps - PROBE
    assert set(scores(run)["metric"]) == {*METRICS, "deletion", "sparsity"}
    parts = {path: path.stat().st_mtime_ns for path in (run / "parts").iterdir()}
    assert counted(study(tiny, folder, run)) == 0  # nor methods: nothing is added
    assert {path: path.stat().st_mtime_ns for path in (run / "parts").iterdir()} == parts


def test_a_method_that_some_heads_lack_is_added_to_the_others(folder: Path, tmp_path: Path) -> None:
    heads = [xattn.attach(networks.small(), input_size=32, resize=36, name="small", head=head) for head in ("gap", "br-npa:n=3")]
    for out, rounds in ((tmp_path / "run", [["grad-cam"], ["raw-attention"]]), (tmp_path / "whole", [["grad-cam", "raw-attention"]])):
        for methods in rounds:
            study(heads, folder, out, methods=methods, metrics=["average-drop", "sparsity"], untrained=True).run()
    pd.testing.assert_frame_equal(scores(tmp_path / "run"), scores(tmp_path / "whole"), rtol=0, atol=1e-3)
    assert set(scores(tmp_path / "run").query("method == 'raw-attention'")["head"]) == {"br-npa"}
    with pytest.raises(UnsupportedError, match="raw-attention shows a head's attention"):
        study(heads[:1], folder, tmp_path / "other", methods=["raw-attention"], metrics=["sparsity"])


def test_a_method_is_added_for_every_label_of_an_image(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label\n0.png,1|3\n1.png,2\n")
    given = [folder / "0.png", folder / "1.png"]
    settings = {"labels_csv": tmp_path / "labels.csv", "target": "labels", "metrics": ["average-drop"], "save_maps": True}
    study(tiny, given, tmp_path / "run", methods=["grad-cam"], **settings).run()
    study(tiny, given, tmp_path / "run", methods=["random"], **settings).run()
    study(tiny, given, tmp_path / "whole", methods=["grad-cam", "random"], **settings).run()
    pd.testing.assert_frame_equal(scores(tmp_path / "run"), scores(tmp_path / "whole"), rtol=0, atol=1e-3)
    written, expected = (
        sorted(str(p.relative_to(tmp_path / out)) for p in (tmp_path / out).rglob("maps/**/*.png")) for out in ("run", "whole")
    )
    assert written == expected


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"seed": 3}, "seed was 0, is 3"),
        ({"target": "class 1"}, "target was 'predicted', is 'class 1'"),
        ({"stage": "2"}, r"models\[0\].stage was '3', is '2'"),
        ({"batch_size": 5}, "batch_size was 4, is 5"),
    ],
)
def test_what_asks_another_question_is_refused_whatever_methods_it_has(
    tiny: Classifier, folder: Path, tmp_path: Path, changed: dict[str, object], difference: str
) -> None:
    study(tiny, folder, tmp_path / "run", methods=["grad-cam"], metrics=["sparsity"]).run()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=f"{difference}.*Only methods and metrics can be added"):
        study(tiny, folder, tmp_path / "run", methods=["random"], metrics=["sparsity"], **changed).run()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_whose_version_had_fewer_settings_goes_on(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study(tiny, folder, tmp_path / "run", methods=["grad-cam"], metrics=["insertion"]).run()
    run = about(tmp_path / "run")
    del run["protocol"]["grad-cam"]["settings"]["signed"], run["protocol"]["insertion"]["settings"]["blur"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    study(tiny, folder, tmp_path / "run", methods=["grad-cam", "random"], metrics=["insertion"]).run()
    assert set(scores(tmp_path / "run")["method"]) == {"grad-cam", "random"}


def test_other_settings_under_the_same_name_are_another_protocol(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study(tiny, folder, tmp_path / "run", methods=["grad-cam"], metrics=["insertion"]).run()
    found = about(tmp_path / "run")
    found["protocol"]["insertion"]["settings"]["steps"] = "7"  # what another version took by default
    (tmp_path / "run" / "run.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match=r"protocol\.insertion\.settings\.steps was '7', is"):
        study(tiny, folder, tmp_path / "run", methods=["random"], metrics=["insertion"]).run()
    study(tiny, folder, tmp_path / "other", methods=["grad-cam"], metrics=["sparsity"]).run()
    found = about(tmp_path / "other")
    found["settings"]["methods"] = ["my-own-cam"]
    (tmp_path / "other" / "run.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match="holds a run with a method or metric that is not known here: .*my-own-cam"):
        study(tiny, folder, tmp_path / "other", methods=["random"], metrics=["sparsity"])


class Flickering(nn.Module):
    """`small`, whose logits of some classes trade places when it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.turned = networks.small(), False

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return logits.flip(1) if self.turned else logits


def test_an_image_that_is_explained_for_another_target_than_before_is_named(folder: Path, tmp_path: Path) -> None:
    network = Flickering().eval()
    clf = xattn.attach(network, input_size=32, resize=36, name="flickering")
    study(clf, folder, tmp_path / "run", methods=["grad-cam"], metrics=["sparsity"]).run()
    before = scores(tmp_path / "run")
    network.turned = True
    outcome = study(clf, folder, tmp_path / "run", methods=["random"], metrics=["sparsity"]).run()
    changed = set(before[before["target"] != 2]["image"])  # the third of five stays where it is
    assert changed
    assert {name for name, _ in outcome.failed} == changed
    assert all("the network answers differently than it did" in reason for _, reason in outcome.failed)
    after = scores(tmp_path / "run")
    kept = after[after["method"] == "grad-cam"].reset_index(drop=True)
    columns = [*KEYS, "value", "target"]
    pd.testing.assert_frame_equal(kept[columns], before[columns], check_dtype=False)
    assert set(after[after["method"] == "random"]["image"]) == set(before["image"]) - changed


def test_a_run_that_is_extended_is_not_finished_until_all_rows_are_there(
    tiny: Classifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    study(tiny, folder, run, methods=["grad-cam"], metrics=["sparsity"]).run()
    table = (run / "table.csv").read_bytes()
    write, written = Store.write_part, []

    def once(self: Store, name: str, part: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(name)
        write(self, name, part)

    monkeypatch.setattr(Store, "write_part", once)
    with pytest.raises(KeyboardInterrupt):
        study(tiny, folder, run, methods=["random"], metrics=["sparsity"]).run()
    monkeypatch.undo()
    assert (run / "table.csv").read_bytes() == table
    assert not Store(run).finished
    assert any("is not finished" in note for note in compare_runs([run]).notes)
    study(tiny, folder, run, methods=["grad-cam"], metrics=["sparsity"]).run()  # the run's command as it was: it has random too
    assert Store(run).finished
    assert set(pd.read_csv(run / "table.csv")["method"]) == {"grad-cam", "random"}
    study(tiny, folder, tmp_path / "whole", methods=["grad-cam", "random"], metrics=["sparsity"]).run()
    assert (run / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()


def test_what_is_added_with_a_short_cut_has_its_deviation_measured(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    study(tiny, folder, run, methods=["grad-cam"], metrics=["average-drop"]).run()
    first = about(run)["forwards"]["tiny · gap"]
    study(tiny, folder, run, metrics=["insertion:tolerance=1.0"]).run()
    after = about(run)["forwards"]["tiny · gap"]
    assert first["deviation"] is None
    assert set(after["deviation"]) == {"insertion:tolerance=1.0"}
    assert {**after, "deviation": None} == first


def test_a_run_of_one_image_has_a_deviation_without_an_interval(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    made = study(tiny, folder / "0.png", tmp_path / "run", methods=["grad-cam"], metrics=["insertion:tolerance=1"])
    made.run()
    assert about(tmp_path / "run")["forwards"]["tiny · gap"]["deviation"]["insertion:tolerance=1.0"][1:3] == [None, None]
    made.run()
    assert any(
        "insertion:tolerance=1.0 differs from exact by" in note and "n = 1" in note for note in compare_runs([tmp_path / "run"]).notes
    )


def test_a_run_killed_while_methods_are_added_goes_on_and_ends_as_if_it_had_them_from_the_start(tmp_path: Path) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    for number, picture in enumerate(networks.pictures(12, size=40)):
        Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(images / f"{number:03d}.png")
    model = f"{networks.__file__}:slow"
    clf = xattn.load(model, input_size=32, resize=36, device="cpu")
    metrics = ["average-drop", "sparsity"]
    study(clf, images, run, methods=["grad-cam"], metrics=metrics[:1], batch_size=2).run()
    before = scores(run)
    sizes = {path.name: path.stat().st_size for path in (run / "parts").iterdir()}
    options = "--input-size 32 --resize 36 --batch-size 2 --workers 0 --device cpu --tune off --method random --metric sparsity"
    command = [sys.executable, "-m", "xattn.cli", "explain", str(images), "--model", model, "--out", str(run), *options.split()]
    process = subprocess.Popen(command, env=environment(0.1), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if sum(path.stat().st_size != sizes[path.name] for path in (run / "parts").glob("*.parquet")) >= 2:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    held = [set(pq.read_table(path)["method"].drop_null().to_pylist()) for path in sorted((run / "parts").glob("*.parquet"))]
    assert {"grad-cam"} in held, "the kill came before the end"
    assert {"grad-cam", "random"} in held
    rows = Store(run).rows()
    kept = rows[(rows["method"] == "grad-cam") & (rows["metric"] == "average-drop")]
    assert kept["value"].tolist() == before["value"].tolist(), "nothing is lost"
    study(clf, images, run, batch_size=2).run()  # nothing is named: what the run has
    study(clf, images, tmp_path / "whole", methods=["grad-cam", "random"], metrics=metrics, batch_size=2).run()
    pd.testing.assert_frame_equal(scores(run), scores(tmp_path / "whole"), rtol=0, atol=1e-3)
