"""Maps that keep what speaks against the target: their raw values, their masks and metrics, their colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import xattn
from tests import networks
from tests.explainers.test_reasons import Blank, against
from xattn.cli import main
from xattn.errors import SettingError
from xattn.explainers import methods, trace
from xattn.explainers.base import created
from xattn.figures.canvas import COLOURS, SIGNED_COLOURS, grey, note_below, overlay, shown_map
from xattn.metrics import to_masks
from xattn.models import Classifier
from xattn.study.schema import StoredMap
from xattn.study.store import Store

SIGNED = {
    "finer-cam": "finer-cam",
    "grad-cam": "grad-cam",
    "hires-cam": "hires-cam",
    "integrated-gradients": "integrated-gradients:steps=2",
    "occlusion": "occlusion:window=16",
    "smooth-grad": "smooth-grad:samples=2",
    "xgrad-cam": "xgrad-cam",
}


def test_every_method_with_the_setting_is_tried_here() -> None:
    assert sorted(SIGNED) == sorted(name for name, entry in methods.entries.items() if "signed" in entry.settings)


@pytest.mark.parametrize("name", SIGNED)
def test_a_signed_map_is_the_plain_one_where_it_is_positive_and_its_mask_is_of_that_part(
    name: str, tiny: Classifier, images: Tensor
) -> None:
    (signed,) = created([SIGNED[name]], signed=True)
    assert signed.spec.endswith("signed=true")
    summed = {"integrated-gradients": ",channels=sum", "smooth-grad": ",channels=sum"}.get(name, "")
    plain = f"{SIGNED[name]}{summed}"
    maps = xattn.explain(tiny, images, [signed.spec, plain], target=1)
    raw, mask = maps.raw[signed.spec], maps[signed.spec]
    assert (raw < 0).any()
    assert torch.equal(mask, to_masks(raw.relu(), (32, 32)).masks)
    assert maps.degenerate[signed.spec].tolist() == [not bool((each > 0).any()) for each in raw]
    if name.endswith("cam"):
        assert torch.equal(raw.relu(), maps.raw[plain])
        assert torch.equal(mask, maps[plain])
    else:
        assert torch.equal(raw, maps.raw[plain])


def test_signed_cams_are_their_sums_without_the_rectifier(tiny: Classifier, images: Tensor) -> None:
    maps = xattn.explain(tiny, images, ["grad-cam", "hires-cam", "xgrad-cam"], target=1, stage="2", signed=True)
    found = trace(tiny, images, 1, stage="2")
    g, f = found.gradients, found.features
    wanted = {
        "grad-cam": (g.mean(dim=(2, 3), keepdim=True) * f).sum(dim=1),
        "hires-cam": (g * f).sum(dim=1),
        "xgrad-cam": ((g * f).sum(dim=(2, 3), keepdim=True) / f.sum(dim=(2, 3), keepdim=True) * f).nan_to_num().sum(dim=1),
    }
    for name, raw in wanted.items():
        assert torch.allclose(maps.raw[f"{name}:signed=true"], raw, atol=1e-6)
        assert (raw < 0).any()


def test_metrics_of_a_signed_map_are_those_of_its_positive_part(tiny: Classifier, images: Tensor) -> None:
    metrics = ["average-drop", "insertion", "sparsity", "sparsity:definition=minmax", "complexity"]
    maps = xattn.explain(tiny, images, ["grad-cam", "grad-cam:signed=true"])
    values = xattn.evaluate(tiny, images, maps, metrics).pivot_table("value", ["image", "metric"], "method", dropna=False)
    pd.testing.assert_series_equal(values["grad-cam"], values["grad-cam:signed=true"], check_names=False)


def test_a_method_without_a_signed_map_is_refused_with_those_that_have_one_and_controls_stay() -> None:
    specs = ["random", "grad-cam", "grad-cam:signed=true"]
    assert [each.spec for each in created(specs, signed=True)] == ["random", "grad-cam:signed=true"]
    for spec in ("layer-cam", "score-cam:top=4", "grad-cam++", "activation-map"):
        with pytest.raises(SettingError, match=rf"{spec.replace('+', '.')} has no signed map.* finer-cam, grad-cam, hires-cam, integ"):
            created([spec], signed=True)
    pytest.importorskip("pytorch_grad_cam")
    with pytest.raises(SettingError, match="grad-cam:EigenCAM has no signed map"):
        created(["grad-cam:EigenCAM"], signed=True)


def test_a_map_that_is_nowhere_positive_says_so_and_is_shown(folder: Path, tmp_path: Path) -> None:
    clf = xattn.attach(networks.seeded(lambda: Blank(against)), input_size=32, resize=32)
    maps = xattn.explain(clf, networks.pictures(2), ["grad-cam"], target=0, signed=True)
    assert maps.reasons["grad-cam:signed=true"] == ("the map is nowhere positive",) * 2
    assert (maps.raw["grad-cam:signed=true"] < 0).any()
    assert not maps["grad-cam:signed=true"].any()
    stored = StoredMap(maps.raw["grad-cam:signed=true"][0].numpy(), {"degenerate": True})
    assert note_below(stored, "grad-cam:signed=true") == "nowhere positive"
    assert note_below(StoredMap(np.zeros((2, 2), dtype=np.float32), {"degenerate": True}), "grad-cam") == "no contrast"


def test_a_figure_shows_zero_in_white_and_what_speaks_against_the_target_in_blue() -> None:
    crop, raw = np.full((3, 4, 4), 255, dtype=np.uint8), np.array([[-2.0, 0.0], [1.0, 4.0]], dtype=np.float32)
    stored = StoredMap(raw, {"degenerate": False})
    shown = shown_map(crop, stored, "grad-cam:signed=true", smooth=False)
    colours = (shown - 0.4 * grey(crop)[..., None]) / 0.6
    red, green, blue = colours[::2, ::2].reshape(4, 3).T
    assert np.allclose(red[1], blue[1], atol=0.02)
    assert red[1] > 0.95
    assert blue[0] > red[0]
    assert (red[2:] > blue[2:]).all()
    assert green[3] < green[2]
    own = overlay(crop, to_masks(torch.from_numpy(raw)[None], (4, 4)).masks[0].numpy(), COLOURS)
    assert np.allclose(shown_map(crop, stored, "grad-cam"), own, atol=1e-6)
    assert SIGNED_COLOURS != COLOURS


def test_the_command_line_has_one_flag_for_all_methods(folder: Path, tmp_path: Path) -> None:
    model = ["--model", f"{networks.__file__}:small", "--input-size", "32", "--resize", "36", "--workers", "0", "--device", "cpu"]
    base = ["explain", str(folder), *model, "--metric", "sparsity", "--target", "1", "--signed"]
    done = CliRunner().invoke(main, [*base, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert set(pd.read_csv(tmp_path / "run" / "table.csv")["method"]) == {
        "grad-cam:signed=true",
        "hires-cam:signed=true",
        "random",
        "centre",
    }
    assert (Store(tmp_path / "run").maps(["0.png"])["0.png", f"{networks.__file__}:small", "gap", "grad-cam:signed=true"].raw < 0).any()
    assert (tmp_path / "run" / "figures" / "grid.png").stat().st_size > 0
    refused = CliRunner().invoke(main, [*base, "--method", "layer-cam", "--out", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "layer-cam has no signed map" in refused.output
