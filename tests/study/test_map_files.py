"""Maps of other tools in runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import xattn
from tests.data.test_map_files import write
from xattn.cli.main import main
from xattn.errors import InputError, RunError, UnsupportedError
from xattn.metrics import to_masks
from xattn.models import Classifier
from xattn.study import Study

METRICS = ["average-drop", "insertion", "sparsity"]


@pytest.fixture
def maps(tiny: Classifier, folder: Path, tmp_path: Path) -> Path:
    """Our own Grad-CAM, as another tool would write it, and all ones."""
    found = xattn.explain(tiny, folder, ["grad-cam"], progress=False)
    for name, raw in zip(found.names, found.raw["grad-cam"], strict=True):
        write(tmp_path / "maps/theirs" / Path(name).with_suffix(".npy"), raw)
        write(tmp_path / "maps/flat" / Path(name).with_suffix(".npy"), torch.ones(3, 3))
    return tmp_path / "maps"


def study(tiny: Classifier, folder: Path, out: Path, **settings: object) -> Study:
    given = {"batch_size": 3, "workers": 0, "progress": False, "tune": "off", **settings}
    return Study([tiny], metrics=METRICS, images=folder, out=out, **given)  # type: ignore[arg-type]


def values(run: Path, method: str) -> list[float]:
    rows = pd.read_csv(run / "scores.csv")
    return rows[rows["method"] == method].sort_values(["image", "metric"])["value"].tolist()


def test_the_maps_of_a_method_score_from_files_as_they_do_in_the_run(
    tiny: Classifier, folder: Path, maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = study(tiny, folder, tmp_path / "run", methods=["grad-cam"], maps=maps)
    made.run()
    assert values(tmp_path / "run", "maps:theirs") == pytest.approx(values(tmp_path / "run", "grad-cam"), abs=1e-5, nan_ok=True)
    rows = pd.read_csv(tmp_path / "run/scores.csv")
    assert rows[rows["method"] == "maps:flat"]["degenerate"].all()
    assert "by maps:flat shows nothing: the map in the file has one value everywhere" in caplog.text


def test_maps_are_added_to_a_run_and_a_run_with_maps_goes_on(tiny: Classifier, folder: Path, maps: Path, tmp_path: Path) -> None:
    study(tiny, folder, tmp_path / "run", methods=["grad-cam"]).run()
    study(tiny, folder, tmp_path / "run", maps=maps / "theirs").run()
    study(tiny, folder, tmp_path / "run", methods=["random"]).run()
    assert pd.read_csv(tmp_path / "run/table.csv")["method"].tolist() == ["grad-cam", "maps:theirs", "random"]
    write(maps / "theirs/0.npy", torch.rand(8, 8))
    with pytest.raises(RunError, match="are gone or have changed"):
        study(tiny, folder, tmp_path / "run", methods=["centre"])
    with pytest.raises(RunError, match="other settings"):
        study(tiny, folder, tmp_path / "run", methods=["grad-cam"], maps=maps / "theirs").run()


def test_what_has_no_map_or_no_picture_is_said_and_left_out(
    tiny: Classifier, folder: Path, maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (maps / "theirs/1.npy").unlink()
    write(maps / "theirs/unknown.npy", torch.rand(2, 2))
    with caplog.at_level(logging.INFO, "xattn"):
        made = study(tiny, folder, tmp_path / "run", maps=maps / "theirs")
    assert len(made.images) == 9
    assert "left out, since they belong to none of the pictures: 1 map (" in caplog.text
    assert "no map by 'theirs' of 1 of 10 pictures: 1.png" in caplog.text
    made.run()
    assert set(made.table()["n"]) == {9}
    assert made.table()["method"].tolist() == ["maps:theirs", "random", "centre"]


def test_signed_maps_are_masks_of_their_positive_part(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.png"))]
    raw = torch.randn(len(names), 4, 4)
    for name, values_of_one in zip(names, raw, strict=True):
        write(tmp_path / "m/signed" / Path(name).with_suffix(".npy"), values_of_one)
    with pytest.raises(InputError, match="have values below 0.*give --signed"):
        study(tiny, folder, tmp_path / "run", maps=tmp_path / "m")
    study(tiny, folder, tmp_path / "run", maps=tmp_path / "m", signed=True).run()
    found = xattn.explain(tiny, folder, ["uniform"], progress=False).names
    masks = to_masks(raw[[names.index(name) for name in found]].relu(), (32, 32)).masks
    rows = xattn.evaluate(tiny, folder, {"mine": masks}, ["average-drop"], progress=False)
    theirs = pd.read_csv(tmp_path / "run/scores.csv").query("method == 'maps:signed:signed=true' and metric == 'average-drop'")
    assert theirs["value"].tolist() == pytest.approx(rows["value"].tolist(), abs=1e-3)


def test_a_map_with_nan_counts_as_one_that_shows_nothing(tiny: Classifier, folder: Path, maps: Path, tmp_path: Path) -> None:
    write(maps / "theirs/0.npy", torch.full((2, 2), torch.nan))
    write(maps / "theirs/1.npy", torch.rand(2, 2))
    for file in (maps / "theirs").rglob("*.npy"):
        if file.stem not in ("0", "1"):
            file.unlink()
    study(tiny, folder, tmp_path / "run", maps=maps / "theirs").run()
    rows = pd.read_csv(tmp_path / "run/scores.csv").query("method == 'maps:theirs' and metric == 'average-drop'")
    assert rows.set_index("image")["degenerate"].to_dict() == {"0.png": True, "1.png": False}
    assert rows.set_index("image")["reason"]["0.png"] == "the map in the file is not finite"


def test_what_maps_in_files_cannot_have_is_refused(tiny: Classifier, folder: Path, maps: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="coherency runs the method again, which is impossible for maps in files"):
        Study([tiny], metrics=["coherency"], images=folder, maps=maps, out=tmp_path / "run")
    write(maps / "theirs/0.npy", torch.rand(5, 5))
    with pytest.raises(InputError, match="different sizes"):
        study(tiny, folder, tmp_path / "run", maps=maps / "theirs")


def test_the_command_scores_maps_beside_controls(maps: Path, folder: Path, tmp_path: Path) -> None:
    for file in folder.rglob("*.png"):
        Image.open(file).resize((64, 64)).save(file)
    given = ["--images", folder, "--model", "birds:gap", "--metric", "average-drop", "--target", "0", "--device", "cpu", "--workers", "0"]
    command = ["score", maps / "theirs", *given, "--out", tmp_path / "run"]
    result = CliRunner().invoke(main, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    assert "maps:theirs" in result.stdout
    assert pd.read_csv(tmp_path / "run/table.csv")["method"].tolist() == ["maps:theirs", "random", "centre"]
    again = CliRunner().invoke(main, [str(argument) for argument in command])
    assert again.exit_code == 0, again.output
    compared = CliRunner().invoke(main, ["compare", str(tmp_path / "run"), "--against", "random"])
    assert "maps:theirs" in compared.stdout
