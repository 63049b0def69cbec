"""How the forwards of a plan are run: decided once, reported, kept, and without effect on the rows."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import xattn
from tests import networks
from tests.own_methods import OF_ANY_HEAD
from tests.study.test_study import study
from xattn.errors import InputError
from xattn.inference import Tuning
from xattn.inference import tuning as tuning_module
from xattn.inference.memory import peak_bytes
from xattn.metrics import metrics
from xattn.models import Classifier
from xattn.study.compare import compare_runs
from xattn.study.execution import _sample, forwards_per_image
from xattn.study.executor import Executor
from xattn.study.schema import Deviation

CAMS = ["grad-cam", "score-cam", "activation-map"]
OF_ANY_PICTURE = [name for name in metrics.entries if metrics.create(name).metadata.kind not in ("region", "parts")]
PERTURBING = ["average-drop", "average-gain", "insertion", "deletion"]


def values(run: Path) -> pd.Series:
    return pd.read_csv(run / "scores.csv").set_index(["image", "method", "metric"])["value"]


def kept(run: Path) -> dict[str, object]:
    return json.loads((run / "run.json").read_text())["forwards"]["tiny · gap"]


@pytest.mark.parametrize("tune", ["chunk=1", "chunk=5,memory_format=contiguous", "chunk=64,folded=true", "auto", "off"])
def test_no_tuning_changes_a_value_beyond_the_tolerance_of_a_batch(tiny: Classifier, folder: Path, tmp_path: Path, tune: str) -> None:
    study([tiny], folder, tmp_path / "plain", methods=CAMS, metrics=PERTURBING, tune="chunk=8").run()
    study([tiny], folder, tmp_path / "tuned", methods=CAMS, metrics=PERTURBING, tune=tune, batch_size=4).run()
    assert (values(tmp_path / "plain") - values(tmp_path / "tuned")).abs().max() <= 0.01


def test_exact_gives_the_plain_networks_values_of_every_method_by_every_metric(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    settings = {"methods": OF_ANY_HEAD, "metrics": OF_ANY_PICTURE}
    study([tiny], folder, tmp_path / "plain", tune="off", **settings).run()
    study([tiny], folder, tmp_path / "quick", tune="chunk=13,folded=true", **settings).run()
    plain, quick = values(tmp_path / "plain"), values(tmp_path / "quick")
    assert len(plain) == 10 * len(OF_ANY_HEAD) * len(OF_ANY_PICTURE)
    is_percent = plain.index.get_level_values("metric").map(lambda name: metrics.entries[name].metadata.unit == "%")
    assert (plain - quick)[is_percent].abs().max() <= 0.01
    assert (plain - quick)[~is_percent].abs().max() <= 1e-3
    assert (plain.isna() == quick.isna()).all()


def test_how_forwards_are_run_is_kept_and_used_again_by_a_run_that_goes_on(
    tiny: Classifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_module, "WORTH_MEASURING_S", 0.0)
    monkeypatch.setattr(tuning_module, "WORTH_COMPILING_S", float("inf"))
    study([tiny], folder, tmp_path / "run").run()
    first = kept(tmp_path / "run")
    assert first["origin"] == "measured"
    assert first["images_a_second"]
    whole = (tmp_path / "run" / "scores.csv").read_bytes()
    sorted((tmp_path / "run" / "parts").glob("*.parquet"))[1].unlink()
    monkeypatch.setattr("xattn.study.execution.tuned", lambda *_args, **_kwargs: pytest.fail("tuned again"))
    study([tiny], folder, tmp_path / "run", tune="full").run()
    assert kept(tmp_path / "run") == first
    assert (tmp_path / "run" / "scores.csv").read_bytes() == whole


def test_a_run_that_goes_on_with_other_memory_is_planned_again(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "run").run()
    sorted((tmp_path / "run" / "parts").glob("*.parquet"))[1].unlink()
    study([tiny], folder, tmp_path / "run", memory="20MB").run()
    assert kept(tmp_path / "run")["memory"] == 20 * 2**20


def test_a_run_says_how_its_forwards_go(tiny: Classifier, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "xattn"):
        study([tiny], folder, tmp_path / "run", tune="chunk=16,folded=true").run()
    assert "tiny · gap: chunks of 16, channels-last, batch norms folded (by hand)" in caplog.text


def test_fast_reports_and_keeps_by_how_much_its_values_differ(
    tiny: Classifier, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"methods": CAMS, "metrics": PERTURBING, "batch_size": 10}
    study([tiny], folder, tmp_path / "exact", **settings).run()
    assert kept(tmp_path / "exact")["deviation"] is None
    with caplog.at_level("INFO", "xattn"):
        study([tiny], folder, tmp_path / "fast", level="fast", tune="precision=bfloat16", **settings).run()
    deviation = kept(tmp_path / "fast")["deviation"]
    assert set(deviation) == set(PERTURBING)
    assert "differs from exact by" in caplog.text
    sample = [f"{number}.png" for number in range(8)]
    apart = (values(tmp_path / "exact") - values(tmp_path / "fast")).loc[sample].abs()
    assert deviation["insertion"][0] > 0
    for metric in PERTURBING:
        mean, low, high, most, n = deviation[metric]
        assert n == 8
        assert 0 <= low <= mean <= high
        assert mean <= most
        assert apart.xs(metric, level="metric").max() == pytest.approx(most, rel=0.2, abs=0.02)
        assert apart.xs(metric, level="metric").mean() == pytest.approx(mean, rel=0.2, abs=0.02)
    notes = compare_runs([tmp_path / "fast"]).text("markdown")
    assert f"insertion differs from exact by {Deviation(*deviation['insertion'])}" in notes


def test_a_sample_comes_from_all_over_a_run_whatever_its_batches(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    for size, pieces in ((1, [1] * 8), (3, [2, 2, 2, 1]), (10, [8])):
        made = study([tiny], folder, tmp_path / str(size), batch_size=size)
        assert [len(piece) for piece in _sample(made.plan, tiny, 8)] == pieces


def test_a_short_cut_by_name_reports_by_how_much_it_deviates(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    made = study([tiny], folder, tmp_path / "run", methods=["score-cam:top=4", "grad-cam"], metrics=["insertion:tolerance=20", "sparsity"])
    made.run()
    deviation = kept(tmp_path / "run")["deviation"]
    assert set(deviation) == {"insertion:tolerance=20.0", "sparsity"}
    assert deviation["sparsity"][1] > 0
    assert set(made.table()["method"]) == {"score-cam:top=4", "grad-cam"}


def test_exact_and_fast_are_two_runs(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "run").run()
    with pytest.raises(xattn.errors.RunError, match="level was 'exact', is 'fast'"):
        study([tiny], folder, tmp_path / "run", level="fast").run()


def test_the_work_of_an_image_is_counted(tiny: Classifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study([tiny], folder, tmp_path / "run", methods=["grad-cam", "score-cam:top=7"], metrics=PERTURBING)
    assert forwards_per_image(made.plan, tiny) == 1 + 7 + 2 * (1 + 2 * 3)  # four steps, three of them between the ends


@pytest.mark.parametrize("methods", [["grad-cam", "score-cam"], ["guided-backprop", "random", "centre", "edges"]])
def test_what_a_batch_holds_stays_under_the_budget(tiny: Classifier, folder: Path, tmp_path: Path, methods: list[str]) -> None:
    def peak(memory: int | None) -> int:
        made = study([tiny], folder, tmp_path / f"run {memory}", methods=methods, metrics=PERTURBING, memory=memory, batch_size=10)
        return peak_bytes(made.run)

    free = peak(None)
    budget = free // 2
    assert peak(budget) <= budget
    assert (values(tmp_path / "run None") - values(tmp_path / f"run {budget}")).abs().max() <= 0.01


def test_a_budget_that_no_image_fits_says_what_is_needed(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tiny .*needs .* MB"):
        study([tiny], folder, tmp_path / "run", memory=300_000).run()


def test_memory_that_runs_out_in_a_batch_is_met_with_smaller_ones(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Cramped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = networks.small()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return self.inner(images)

    cramped = xattn.attach(Cramped(), input_size=32, resize=36, name="tiny")
    wide = xattn.attach(networks.small(), input_size=32, resize=36, name="tiny")
    outcome = study([cramped], folder, tmp_path / "cramped", batch_size=10, tune="chunk=2").run()
    assert "memory ran out: tiny continues with 2 images at once" in caplog.text
    assert outcome.failed == []
    study([wide], folder, tmp_path / "wide", batch_size=10).run()
    assert (values(tmp_path / "cramped") - values(tmp_path / "wide")).abs().max() <= 0.01


def test_an_executor_builds_its_predictors_as_the_plan_has_them(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    made = study([tiny], folder, tmp_path / "run", tune="chunk=16,folded=true")
    made.run()
    assert Executor(made.plan, made.store).predictor(tiny).tuning == Tuning(16, folded=True)
