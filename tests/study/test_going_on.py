"""Which runs go on in a folder, and what is said of those that cannot."""

from __future__ import annotations

import errno
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import xattn
from tests import networks
from tests.study.test_study import METHODS, METRICS, Noise, study
from xattn.errors import RunError
from xattn.models import Classifier
from xattn.study import store as store_module
from xattn.study.store import Store


def test_a_finished_run_started_again_does_nothing_and_an_interrupted_one_goes_on(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "run").run()
    whole = (tmp_path / "run" / "scores.csv").read_bytes()
    parts = sorted((tmp_path / "run" / "parts").glob("*.parquet"))
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    (tmp_path / "run" / "scores.csv").unlink()
    study([tiny], folder, tmp_path / "run").run()
    assert (tmp_path / "run" / "scores.csv").read_bytes() == whole
    assert parts[0].stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"seed": 3}, "seed was 0, is 3"),
        ({"target": "class 1"}, "target was 'predicted', is 'class 1'"),
        ({"stage": "2"}, r"models\[0\].stage was '3', is '2'"),
    ],
)
def test_a_folder_with_other_settings_is_refused_and_says_what_differs(
    tiny: Classifier, folder: Path, tmp_path: Path, changed: dict[str, object], difference: str
) -> None:
    study([tiny], folder, tmp_path / "run").run()
    with pytest.raises(RunError, match=difference):
        study([tiny], folder, tmp_path / "run", **changed).run()


def test_other_weights_or_other_images_are_other_settings(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "run").run()
    other = xattn.attach(networks.seeded(networks.small, seed=1), input_size=32, resize=36, name="tiny", labels=tiny.labels)
    with pytest.raises(RunError, match=r"models\[0\].weights was"):
        study([other], folder, tmp_path / "run").run()
    (folder / "9.png").write_bytes((folder / "1.png").read_bytes())
    with pytest.raises(RunError, match="images.count was 10, is 11"):
        study([tiny], folder, tmp_path / "run").run()


def test_a_folder_that_holds_something_else_is_refused(tiny: Classifier, folder: Path) -> None:
    with pytest.raises(RunError, match=r"is not empty and holds no run\.json"):
        study([tiny], folder, folder).run()


def test_a_full_disk_is_told_and_what_was_finished_is_kept(
    tiny: Classifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    whole = pq.write_table

    def full(table: object, path: Path, **settings: object) -> None:
        nonlocal written
        written += 1
        if written == 3:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(table, path, **settings)

    monkeypatch.setattr(store_module.pq, "write_table", full)
    with pytest.raises(RunError, match="No space left on device.*What was finished is kept"):
        study([tiny], folder, tmp_path / "run").run()
    parts = tmp_path / "run" / "parts"
    assert len(list(parts.iterdir())) == 2
    study([tiny], folder, tmp_path / "run").run()
    assert len(pd.read_csv(tmp_path / "run" / "scores.csv")) == 10 * len(METHODS) * len(METRICS)


def test_a_damaged_part_is_named_with_what_to_do(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], folder, tmp_path / "run").run()
    part = next((tmp_path / "run" / "parts").glob("*.parquet"))
    part.write_bytes(b"PAR1 nonsense")
    with pytest.raises(RunError, match="is damaged.*Delete it and run the same command"):
        study([tiny], folder, tmp_path / "run").run()


class Shifted(Noise):
    def __getitem__(self, index: int) -> torch.Tensor:
        return networks.pictures(1, seed=index + 100)[0]


def test_a_run_does_not_go_on_with_other_pictures_labels_or_classes(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study([tiny], Noise(), tmp_path / "a").run()
    other = Noise()
    other.__class__ = type("Noise", (Shifted,), {"__qualname__": "Noise"})
    with pytest.raises(RunError, match="images.digest was"):
        study([tiny], other, tmp_path / "a").run()
    study([tiny], folder, tmp_path / "b").run()
    (folder / "3.png").write_bytes((folder / "4.png").read_bytes() + b"another")
    with pytest.raises(RunError, match="images.digest was"):
        study([tiny], folder, tmp_path / "b").run()
    study([tiny], folder, tmp_path / "c").run()
    turned = xattn.attach(tiny.network, input_size=32, resize=36, name="tiny", labels=tiny.labels[::-1])
    with pytest.raises(RunError, match=r"models\[0\].labels was"):
        study([turned], folder, tmp_path / "c").run()


def test_a_run_killed_before_its_first_file_or_while_writing_one_goes_on(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "parts").mkdir(parents=True)
    (tmp_path / "run" / ".run.json.123.unfinished").write_text("{")
    study([tiny], folder, tmp_path / "run").run()
    (tmp_path / "run" / "parts" / ".00-000000.parquet.123.unfinished").write_bytes(b"half")
    (tmp_path / "run" / "scores.csv").unlink()
    study([tiny], folder, tmp_path / "run").run()
    assert not list((tmp_path / "run").rglob("*.unfinished"))
    assert (tmp_path / "run" / "scores.csv").exists()


def test_nothing_is_written_outside_the_run_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    for name in (Path("../outside.txt"), tmp_path / "outside.txt"):
        with pytest.raises(RunError, match="lies outside the run folder"), store.whole(name) as path:
            path.write_text("x")
