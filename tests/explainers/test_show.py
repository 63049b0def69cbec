"""What a notebook shows of maps, tables and studies."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

import xattn
from tests import networks
from xattn.models import Classifier
from xattn.study import Study
from xattn.study.compare import compare_runs


def test_maps_show_the_photograph_and_every_overlay(tiny: Classifier) -> None:
    maps = xattn.explain(tiny, networks.pictures(3), ["grad-cam", "random"])
    sheet = maps.show(count=2, side=40)
    assert sheet.size == (3 * 44 - 4, 16 + 2 * 44 - 4)
    photograph, grad_cam = (sheet.crop((x, 16, x + 40, 56)) for x in (0, 44))
    assert photograph.tobytes() == next(maps._pictures())[0].resize((40, 40), Image.Resampling.BICUBIC).tobytes()
    assert grad_cam.tobytes() == maps.overlay("grad-cam")[0].resize((40, 40), Image.Resampling.BICUBIC).tobytes()
    assert Image.open(io.BytesIO(maps._repr_png_())).size == maps.show().size
    with pytest.raises(KeyError, match="grad-camp"):
        maps.show(["grad-camp"])


def test_a_study_shows_what_it_will_do_and_then_its_table(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study = Study([tiny], ["grad-cam", "random"], ["sparsity"], folder, tmp_path / "run", workers=0, tune="off", progress=False)
    before = study._repr_html_()
    assert "not yet run" in before
    assert "2 methods: grad-cam, random" in before
    assert repr(study) == f"Study in '{tmp_path / 'run'}', not finished: 10 images; tiny · gap; grad-cam, random; sparsity"
    study.run()
    assert study._repr_html_() == compare_runs([tmp_path / "run"])._repr_html_()
    assert "<table>" in study._repr_html_()
    assert repr(compare_runs([tmp_path / "run"])) == compare_runs([tmp_path / "run"]).text("markdown")
