"""Several machines do a shard each; together they are the whole."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import xattn
from tests import networks
from xattn.cli import main
from xattn.errors import InputError, RunError
from xattn.models import Classifier
from xattn.study.compare import compare_runs


def _study(classifier: Classifier, folder: Path, out: Path, **settings: object) -> xattn.Study:
    given = {"images": folder, "out": out, "batch_size": 3, "workers": 0, "progress": False, **settings}
    return xattn.Study([classifier], ["grad-cam", "random"], ["average-drop", "deletion"], **given)  # type: ignore[arg-type]  # settings by name


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_shards_together_hold_the_rows_of_the_whole(tiny: Classifier, folder: Path, tmp_path: Path, count: int) -> None:
    whole = _study(tiny, folder, tmp_path / "whole")
    whole.run()
    rows = []
    for place in range(1, count + 1):
        part = _study(tiny, folder, tmp_path / str(place), shard=(place, count))
        outcome = part.run()
        found = part.scores()
        assert outcome.images == len(part.images) == found["image"].nunique()
        rows.append(found)
    order = ["image", "method", "metric"]
    joined = pd.concat(rows).sort_values(order).reset_index(drop=True)
    pd.testing.assert_frame_equal(joined, whole.scores().sort_values(order).reset_index(drop=True))
    table = compare_runs([tmp_path / str(place) for place in range(1, count + 1)])
    assert table.text("markdown") == compare_runs([tmp_path / "whole"]).text("markdown")


def test_a_shard_goes_on_where_it_was_cut_off_and_is_no_other_shard(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    _study(tiny, folder, tmp_path / "run", shard=(1, 2)).run()
    parts = sorted((tmp_path / "run" / "parts").iterdir())
    assert [part.stem for part in parts] == ["00-000000", "00-000002"]
    scores = (tmp_path / "run" / "scores.csv").read_bytes()
    parts[1].unlink()
    _study(tiny, folder, tmp_path / "run", shard=(1, 2)).run()
    assert (tmp_path / "run" / "scores.csv").read_bytes() == scores
    with pytest.raises(RunError, match=r"shard was \[1, 2\], is \[2, 2\]"):
        _study(tiny, folder, tmp_path / "run", shard=(2, 2)).run()


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (5, 5)])
def test_a_shard_without_work_is_refused(tiny: Classifier, folder: Path, tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="holds no batch of the 4 that 10 images in batches of 3 make"):
        _study(tiny, folder, tmp_path / "run", shard=shard)


def test_a_command_does_its_shard_and_draws_its_images(folder: Path, tmp_path: Path) -> None:
    model = ["--model", f"{networks.__file__}:small", "--input-size", "32", "--resize", "36", "--workers", "0", "--device", "cpu"]
    given = [
        "explain",
        str(folder),
        *model,
        "--method",
        "grad-cam",
        "--metric",
        "sparsity",
        "--batch-size",
        "4",
        "--out",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(main, [*given, "--shard", "3/3"])
    assert result.exit_code == 0, result.output
    assert "2 images × 1 method" in result.stderr
    assert (tmp_path / "run" / "figures" / "grid.png").stat().st_size > 0
    wrong = CliRunner().invoke(main, [*given, "--shard", "3"])
    assert wrong.exit_code == 2
    assert "a shard is i/n, such as 2/8" in wrong.output


def test_a_table_says_which_shards_are_missing_and_refuses_those_of_another_cut(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    for place, count in ((1, 3), (3, 3), (2, 2)):
        _study(tiny, folder, tmp_path / f"{place}-{count}", shard=(place, count)).run()
    text = compare_runs([tmp_path / "1-3", tmp_path / "3-3"]).text("markdown")
    assert "Of 3 shards 2 are not here" in text
    with pytest.raises(InputError, match="one run cut into 2 and 3 parts"):
        compare_runs([tmp_path / "1-3", tmp_path / "2-2"])
