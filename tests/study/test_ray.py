"""The actors of a Ray cluster give the rows of this process, whatever becomes of them.

Every run starts processes that import torch: there are few runs here, and each shows several things.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.cli import main
from xattn.errors import InputError, RunError, UnsupportedError
from xattn.models import Classifier
from xattn.study.compare import compare_runs
from xattn.study.plan import Unit

ray = pytest.importorskip("ray", reason="the engine's package is not installed: pip install 'xattn[ray]'")
engine = importlib.import_module("xattn.study.engines.ray")

pytestmark = [  # Ray Data's own: when it makes its context it sets every field, those too that it warns of.
    pytest.mark.filterwarnings("ignore:`use_push_based_shuffle` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`use_polars` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`use_arrow_tensor_v2` is deprecated:DeprecationWarning"),
]


class Fated(nn.Module):
    """`small`, which once four parts are there does what a file in its folder says: `kill` its process, once, or `fail`."""

    def __init__(self, fate: Path, run: Path) -> None:
        super().__init__()
        self.network = networks.small()
        self.fate = fate
        self.parts = run / "parts"

    def forward(self, images: Tensor) -> Tensor:
        if len(list(self.parts.glob("*.parquet"))) >= 4:
            (self.fate / f"pid-{os.getpid()}").touch()
            with contextlib.suppress(FileNotFoundError):
                (self.fate / "kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if (self.fate / "fail").exists():
                raise UnsupportedError("what this network was asked for it cannot do")
        return self.network(images)


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=10**8)
    yield
    ray.shutdown()


def fated(tmp_path: Path, run: Path) -> Classifier:
    fate = tmp_path / "fate"
    fate.mkdir(exist_ok=True)
    return xattn.attach(Fated(fate, run).eval(), input_size=32, resize=36, name="fated")


def study(tmp_path: Path, folder: Path, name: str, **settings: object) -> xattn.Study:
    given = {"images": folder, "out": tmp_path / name, "batch_size": 1, "workers": 0, "progress": False, **settings}
    methods, metrics = ["grad-cam", "random"], ["average-drop", "insertion"]
    return xattn.Study([fated(tmp_path, tmp_path / name)], methods, metrics, **given)  # type: ignore[arg-type]  # settings by name


def test_orders_are_all_batches_of_one_group_each_and_small_in_the_end() -> None:
    units = [Unit(group, number) for group in range(2) for number in range(3, 203)]
    orders = engine._orders(units, actors=2)
    assert [Unit(order["group"], number) for order in orders for number in order["numbers"]] == units
    sizes = [len(order["numbers"]) for order in orders]
    assert sizes[0] == engine.ORDER
    assert sizes[-2 * engine.ORDERS_LEFT :] == [1] * 2 * engine.ORDERS_LEFT, "the last to end has little more to do than the others"
    assert len(sizes) < len(units) / 4, "most go out by the dozen"
    assert engine._orders(units[:1], actors=2) == [{"group": 0, "numbers": [3]}]
    assert engine._orders([], actors=2) == []


@pytest.mark.usefixtures("_cluster")
def test_two_actors_one_of_them_killed_go_on_with_a_run_and_end_in_its_bytes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path, folder, "whole").run()
    study(tmp_path, folder, "run").run()
    kept, *lost = sorted((tmp_path / "run" / "parts").iterdir())
    for path in (*lost, tmp_path / "run" / "scores.csv", tmp_path / "run" / "table.csv"):
        path.unlink()
    before = kept.stat().st_mtime_ns
    fate = tmp_path / "fate"
    for path in fate.glob("pid-*"):
        path.unlink()
    (fate / "kill").touch()
    made = study(tmp_path, folder, "run", engine="ray", actors=2)
    outcome = made.run()
    assert (outcome.images, outcome.failed) == (10, [])
    assert capsys.readouterr().out == "", "what Ray tells of the dead goes to stderr"
    assert not (fate / "kill").exists()
    pids = {int(path.name.removeprefix("pid-")) for path in fate.glob("pid-*")}
    assert len(pids) > 1
    assert os.getpid() not in pids
    for name in ("scores.csv", "table.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert kept.stat().st_mtime_ns == before
    assert not list((tmp_path / "run").rglob("*.unfinished"))
    assert made.plan.classifiers[0].network.fate == fate, "the driver's own network is as it was"


def test_a_cluster_that_is_gone_is_said_to_be_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    engine._refuse_a_cluster_that_is_gone()  # none is told of: one is made of this machine
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        engine._refuse_a_cluster_that_is_gone()
    with pytest.raises(RunError, match=rf"no Ray cluster answers at {address} .*ray_current_cluster' names one.*`ray stop`"):
        engine._refuse_a_cluster_that_is_gone()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match="although RAY_ADDRESS names one"):
        engine._refuse_a_cluster_that_is_gone()
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    engine._refuse_a_cluster_that_is_gone()  # Ray's client says itself what does not answer


@pytest.mark.usefixtures("_cluster")
def test_an_error_in_an_actor_is_that_error_here_and_what_was_finished_is_kept(folder: Path, tmp_path: Path) -> None:
    study(tmp_path, folder, "whole").run()
    (tmp_path / "fate" / "fail").touch()
    with pytest.raises(UnsupportedError, match="asked for") as caught:
        study(tmp_path, folder, "run", engine="ray", actors=1).run()
    assert str(caught.value) == "what this network was asked for it cannot do"
    assert "in an actor on" in caught.value.__notes__[0]
    assert len(list((tmp_path / "run" / "parts").glob("*.parquet"))) >= 4
    used = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (used["engine"], used["actors"], used["threads"], used["ray"]) == ("ray", 1, 2, ray.__version__)
    (tmp_path / "fate" / "fail").unlink()
    study(tmp_path, folder, "run").run()
    found, whole = (pd.read_csv(tmp_path / name / "scores.csv") for name in ("run", "whole"))
    pd.testing.assert_frame_equal(found, whole, rtol=1e-5)  # the actor had two threads


@pytest.mark.usefixtures("_cluster")
def test_a_shard_by_ray_and_one_by_this_process_are_one_table_and_stdout_holds_data_alone(folder: Path, tmp_path: Path) -> None:
    given = f"explain {folder} --model {networks.__file__}:small --input-size 32 --resize 36 --workers 0 --device cpu --batch-size 2"
    given += " --method grad-cam --method random --metric average-drop"

    def run(out: str, *more: str) -> str:
        result = CliRunner().invoke(main, [*given.split(), "--out", str(tmp_path / out), *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    run("whole")
    run("1", "--shard", "1/2")
    shown = run("2", "--shard", "2/2", "--engine", "ray", "--actors", "1")
    assert [line.split()[0] for line in shown.splitlines()] == ["model", *[f"{networks.__file__}:small"] * 2]
    joined = compare_runs([tmp_path / "1", tmp_path / "2"])
    assert joined.text("markdown") == compare_runs([tmp_path / "whole"]).text("markdown")


@pytest.mark.parametrize(
    ("machines", "actors", "device", "share"),
    [
        ([{"CPU": 4.0}, {"CPU": 2.0}], None, "cpu", (6, 1, 0)),
        ([{"CPU": 4.0}, {"CPU": 2.0}], 2, "cpu", (2, 2, 0)),  # one of three would find no place beside the other
        ([{"CPU": 8.0}, {"CPU": 4.0}], 1, "cpu", (1, 8, 0)),
        ([{"CPU": 2.0}], 3, "cpu", (3, 1, 0)),
        ([{"CPU": 16.0}, {"CPU": 8.0, "GPU": 4.0}], None, "cuda", (4, 2, 1)),
        ([{"CPU": 1.0, "GPU": 2.0}], None, "cuda", (2, 1, 1)),
    ],
)
def test_actors_take_as_many_cpus_as_every_machine_can_give_its_own(
    machines: list[dict[str, float]], actors: int | None, device: str, share: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": machine} for machine in machines])
    found = engine._share(actors, device)
    assert (found.actors, found.cpus, found.gpus) == share


def test_a_cluster_without_a_gpu_says_so_to_classifiers_that_are_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    with pytest.raises(InputError, match="no machine of the Ray cluster has one"):
        engine._share(None, "cuda")
    with pytest.raises(InputError, match="the classifiers are on mps"):
        engine._share(None, "mps")


def test_what_cannot_be_sent_says_so(folder: Path, tmp_path: Path) -> None:
    made = study(tmp_path, folder, "run")
    made.plan.classifiers[0].network.lines = (line for line in "ab")
    with pytest.raises(UnsupportedError, match="could not send the plan to other processes.*generator"):
        engine._packed(made.plan, made.store)
