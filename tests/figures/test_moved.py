"""A run whose pictures have moved is drawn from where they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import xattn
from tests import networks
from xattn.cli import main
from xattn.errors import InputError
from xattn.figures import figure
from xattn.figures.run_data import read_runs
from xattn.models import Classifier
from xattn.study import Study


@pytest.fixture
def moved(tiny: Classifier, folder: Path, tmp_path: Path) -> Path:
    """The folder where the pictures of the run in `run` are now."""
    study(tiny, folder, tmp_path / "run").run()
    return folder.rename(tmp_path / "elsewhere")


def study(classifier: Classifier, folder: Path, out: Path, *methods: str) -> Study:
    chosen = methods or ("grad-cam",)
    return Study([classifier], chosen, ["sparsity"], folder, out, batch_size=4, workers=0, tune="off", progress=False)


def test_it_shows_what_it_showed_before_they_moved(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study(tiny, folder, tmp_path / "run").run()
    names = ["3.png", "below/8.png"]
    before = read_runs([tmp_path / "run"], names, None)
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        shutil.copy(path, tmp_path / "flat" / f"renamed {number}.png")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"no longer where the run found them.*--images \(moved_to=…\)"):
        read_runs([tmp_path / "run"], names, None)
    for place in (tmp_path / "elsewhere", tmp_path / "flat"):  # by name, and by content
        after = read_runs([tmp_path / "run"], names, None, moved_to=place)
        assert after.names == before.names == names
        assert all(np.array_equal(after.crops[key], crop) for key, crop in before.crops.items())
        assert after.paths["3.png"] != before.paths["3.png"]
    arguments = ["figure", str(tmp_path / "run"), "--out", str(tmp_path / "grid.png"), "--images", str(tmp_path / "flat")]
    main(arguments, standalone_mode=False)
    assert (tmp_path / "grid.png").stat().st_size > 10_000


def test_a_picture_that_is_not_there_is_named_and_one_of_another_content_is_refused(moved: Path, tmp_path: Path) -> None:
    (moved / "2.png").unlink()
    out = tmp_path / "grid.png"
    with pytest.raises(InputError, match=r"of 6 pictures of .*, 1 is not in .*elsewhere, neither by name nor by content: 2\.png"):
        figure([tmp_path / "run"], out, moved_to=moved)
    figure([tmp_path / "run"], out, images=["1.png"], moved_to=moved)
    shutil.copy(moved / "3.png", moved / "1.png")
    with pytest.raises(InputError, match=r"1\.png in .*elsewhere has other content than when the run"):
        figure([tmp_path / "run"], out, images=["1.png"], moved_to=moved)
    with pytest.raises(InputError, match="elsewhere"):
        figure([tmp_path / "run"], out, images=["4.png"], moved_to=moved / "nowhere")


def test_a_run_goes_on_with_pictures_that_have_moved_and_then_knows_where_they_are(tiny: Classifier, moved: Path, tmp_path: Path) -> None:
    assert study(tiny, moved, tmp_path / "run", "random").run().failed == []
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["images"]["origin"] == [str(moved)]
    figure([tmp_path / "run"], tmp_path / "grid.png")


def test_pictures_of_a_data_set_in_memory_are_not_looked_for_by_their_numbers(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    images = torch.utils.data.TensorDataset(networks.pictures(4), torch.arange(4))
    xattn.Study([tiny], ["grad-cam"], ["sparsity"], images, tmp_path / "run", workers=0, tune="off", progress=False).run()
    with pytest.raises(InputError, match="of 4 pictures .*, 4 are not in .*neither by name nor by content: 0, 1, 2, …"):
        figure([tmp_path / "run"], tmp_path / "grid.png", moved_to=folder)
