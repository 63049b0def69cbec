"""Verdicts, pages and arithmetic follow from the numbers alone."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from xattn.study.store import Store


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def claim(ratios: list[float], target: float, **more: Any) -> dict[str, Any]:
    return {"text": "theirs over ours", "of": ["theirs", "ours"], "ratios": ratios, "target": target, "at_least": True} | more


CHECK = {"what": "masks", "of": ["theirs"], "found": 0.5, "bound": 0.1, "at_least": False, "agrees": False}


@pytest.mark.parametrize(
    ("asked", "checks", "said"),
    [
        (claim([8.5, 9.0, 9.5], 8), [], "met"),
        (claim([7.5, 9.0, 9.5], 8), [], "met by the median, not by 1 of 3 pairs"),
        (claim([7.0, 7.5, 9.5], 8), [], "**not met**"),
        (claim([1.1, 1.1, 1.3], 1.15, at_least=False), [], "met by the median, not by 1 of 3 pairs"),
        (claim([0.1, 0.2, 0.6], 0.5, at_least=False, worst=True), [], "**not met** by 1 of 3"),
        (claim([], 8), [], "not measured"),
        (claim([9.0], 8), [CHECK], "not comparable: masks"),
        (claim([9.0], 8), [CHECK | {"agrees": None}], "met"),
        (claim([9.0], 8), [CHECK | {"of": ["another"]}], "met"),
    ],
)
def test_a_target_is_met_if_the_median_of_the_pairs_meets_it_and_what_is_compared_is_the_same(
    module: Any, asked: dict[str, Any], checks: list[dict[str, Any]], said: str
) -> None:
    assert module("speed_page").verdict(asked, checks) == said


def test_a_page_shows_time_an_image_ratios_of_pairs_and_what_was_checked(module: Any) -> None:
    ours = {"note": "", "passes": 10.0, "images": [2, 2, 2], "seconds": [1.0, 2.0, 1.0], "peak": [5.0]}
    theirs = ours | {"note": "anew", "passes": 20.0, "seconds": [8.0, 18.0, 10.0]}
    conditions = {
        "gpu": None,
        "processor": "a processor",
        "threads": 1,
        "cores": 2,
        "date": "today",
        "load": 0.0,
        "command": "python",
        "versions": {"torch": "2"},
    }
    entry = {
        "title": "Job",
        "job": "job",
        "about": "What.",
        "network": "net",
        "weights": "random",
        "smoke": False,
        "contenders": {"ours": ours, "theirs": theirs},
        "checks": [CHECK | {"found": 0.01, "agrees": True}],
        "claims": [claim([8.0, 9.0, 10.0], 8)],
        "conditions": conditions,
        "images a forward": 4,
    }
    text = module("speed_page").page([entry])
    assert "| theirs over ours | ≥ 8.00 | 9.00 [8.00, 10.0] | met |" in text
    assert "| theirs | 5.00 [4.00, 9.00] | 0.200 | 20.0 | 9.00 [8.00, 10.0] | 5.00 | anew |" in text
    assert "| masks | 0.01 | ≤ 0.100 | agrees |" in text
    assert "GPU computes" not in text  # a column that nobody fills is left out
    assert "--smoke" in module("speed_page").page([entry | {"smoke": True}])
    alone = entry | {"contenders": {"theirs": theirs, "passes alone, exact": ours}, "conditions": conditions | {"device": "cpu"}}
    limits = {
        "float32": {"product": {"net": 10.0}, "layers": {"net": 5.0}},
        "bfloat16": {"product": {"net": 20.0}, "layers": {"net": 10.0}},
    }
    ladder = {"conditions": alone["conditions"], "rates": {"net": {}}, "limits": limits}
    text = module("speed_page").page([alone], ladder)
    assert "| float32, at the rate of one large matrix product | 1.00 | 5.00 |" in text
    assert "| bfloat16, layer by layer, as tensors can be moved | 1.00 | 5.00 |" in text
    elsewhere = ladder | {"conditions": alone["conditions"] | {"threads": 2}}
    assert "limit of direct" not in module("speed_page").page([alone], elsewhere)


def test_time_in_which_a_device_is_busy_counts_overlapping_kernels_once(module: Any) -> None:
    assert module("measure").covered([(0, 2), (1, 3), (5, 6), (5.2, 5.4)]) == 4
    assert module("measure").covered([]) == 0


def test_a_path_of_the_machine_is_not_written_down(module: Any) -> None:
    assert module("measure")._unplaced("/home/someone/runs") == "runs"
    assert module("measure")._unplaced("runs/speed") == "runs/speed"


def test_the_steady_stretch_of_a_run_leaves_each_worker_s_first_part_out(module: Any) -> None:
    assert module("points").steady([10.0, 11.0, 12.0, 13.0], 1) == 1.0
    assert module("points").steady([12.0, 10.0, 10.5, 11.0, 11.5], 2) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="measure longer"):
        module("points").steady([1.0, 2.0], 2)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the benchmark reads what processes used where Linux tells it")
@pytest.mark.parametrize(("name", "counts"), [("another", True), ("ray::MapWorker(MapBatches(_Actor))", False)])
def test_what_is_taken_beside_the_actors_is_that_of_all_started_here_but_of_them(module: Any, name: str, counts: bool) -> None:
    before = module("points")._cpu_beside_the_actors()
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([name, "-c", busy], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        used = module("points")._cpu_beside_the_actors() - before
        child.communicate(b"\n")
    assert (used >= 0.45) == counts


def test_cores_beside_the_actors_are_those_of_the_stretch_alone(module: Any) -> None:
    watch = module("points")._Watch()
    watch.noted = [(0.0, 0.0), (10.0, 7.0), (20.0, 8.0), (30.0, 9.0), (40.0, 99.0)]
    assert watch.cores(9.5, 31.0) == pytest.approx(0.1)


def test_what_is_left_to_two_workers_is_what_two_processes_gain_without_what_ray_takes(module: Any) -> None:
    seconds = {"in this process": 100.0, "Ray, one worker": 98.0, "Ray, two workers": 54.0, "two processes with --shard": 50.0}
    points = {name: [{"seconds": found, "beside": 0.1}] for name, found in seconds.items()}
    (told,) = module("scale").left_to_two({"points": points, "conditions": {"cores": 2}})
    assert "1.96 × as fast" in told
    assert told.endswith("leaves them 1.86 ×.")
    (told,) = module("scale").left_to_two({"points": points, "conditions": {"cores": 8}})
    assert told.endswith("leaves them 1.96 ×.")
    assert module("scale").left_to_two({"points": points | {"Ray, two workers": [{"seconds": 54.0}]}}) == []


def test_jumps_of_a_curve_are_told_from_its_course(module: Any) -> None:
    course = torch.linspace(0, 1, 29, dtype=torch.float64) ** 3
    jumps = 0.03 * torch.randn(2000, 29, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert module("first").rough(course[None])["jumps"] == pytest.approx(0, abs=1e-9)
    found = module("first").rough(course + jumps)
    assert found["jumps"] == pytest.approx(3, rel=0.05)
    unseen = 100 * jumps[:, 1:22].sum(dim=1) / 28  # about three quarters of the steps
    assert found["mean"] == pytest.approx(float(unseen.abs().mean()), rel=0.1)
    assert found["beyond"] == pytest.approx(float((unseen.abs() > 0.5).double().mean()), rel=0.1)


def test_growth_is_the_change_of_the_slope_and_of_the_memory(module: Any) -> None:
    sizes, seconds, peaks = (100, 1000, 10000), (3.0, 12.0, 111.0), (50.0, 50.5, 52.0)  # 0.01 s each, then 0.011
    found = {f"{size}": [{"size": size, "seconds": s, "peak": p}] for size, s, p in zip(sizes, seconds, peaks, strict=True)}
    time, memory = module("scale").growth(found, "per image", "peak", "peak memory")
    assert time["ratios"] == [pytest.approx(1 / 11)]
    assert memory["ratios"] == [pytest.approx(0.01), pytest.approx(0.04)]
    assert module("speed_page").verdict(memory, []) == "**not met** by 1 of 2"
    assert len(module("scale").growth(found, "per image", None)) == 1


def test_arithmetic_divides_what_each_device_does_and_leaves_the_tables_to_one(module: Any) -> None:
    figures = module("arithmetic").Figures("GPUs", "net", 684.0, 0.36, 0.01, 0.08, 0.001, 1024.0, 8, True, "measured")
    one, many = (module("arithmetic").cost(figures, devices, images=1000, networks=10) for devices in (1, 64))
    assert one.compute == pytest.approx(1.0)
    assert one.bottleneck == "computing"
    assert one.wall == pytest.approx(1.0 + one.write + one.finish)
    assert many.compute == pytest.approx(1 / 64)
    assert many.write == pytest.approx(one.write / 64)
    assert many.finish == one.finish
    assert module("arithmetic").breaks(figures) == pytest.approx(360)
    assert module("arithmetic").starves(figures, networks=10) == pytest.approx(684 * 10 * 8 / 0.01)
    assert "What breaks first" in module("arithmetic").arithmetic([figures], 2.0, 1.9)


def test_points_of_a_scale_tell_what_its_page_needs(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At toy size: a point that no longer runs would be seen only after an hour of measuring."""
    points = module("points")
    monkeypatch.setattr(points, "TURNS_S", 0.0)
    found = points.images(tmp_path, tmp_path / "work", 16, "birds:gap")
    assert {"seconds", "images", "peak", "whole", "decode", "write", "finish", "stored", "batch"} <= set(found)
    assert points.engine(tmp_path, tmp_path / "work", 16, "birds:gap", 0)["images"] == 16
    assert points.shards(tmp_path, tmp_path / "work", 8, "birds:gap", 2)["seconds"] > 0
    for found in (points.side(tmp_path, tmp_path / "work", 1, 64), points.channels(tmp_path, tmp_path / "work", 1, 16, 64)):
        assert min(found["seconds"], found["alone"], found["over"]) > 0  # how they compare depends on what else the machine does
        assert found["passes"] > 1


def test_quantus_takes_the_smallest_step_that_divides_the_pixels(module: Any) -> None:
    pytest.importorskip("quantus")
    assert module("rivals").quantus_step(224 * 224, 28) == 6272
    assert 3 * 224 * 224 // 6272 == 24


def test_a_run_of_many_rows_is_read_by_every_command_that_is_measured(module: Any, tmp_path: Path) -> None:
    rows = module("rows")
    for what in ("the tables that end a run", "compare --tests", "show"):
        found = rows.read(tmp_path, 24, 4, 2, what)
        assert found["rows"] == 24 * 4 * 2
        assert min(found["seconds"], found["cpu"], found["whole"]) > 0
    values = Store(tmp_path / "rows-24-4-2").values()
    assert len(values) == 24 * 4 * 2
    assert values["image"].nunique() == 24
    assert values.groupby("method", observed=True)["value"].nunique().min() > 20  # each picture has values of its own
