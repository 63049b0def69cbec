"""The parts figure shows ranked maps as they were computed, and the true parts of a drawn bird."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import xattn
from xattn.birds import PARTS, SketchBirds, masks
from xattn.catalogue import is_direct
from xattn.cli import main
from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError
from xattn.figures import figure, kinds
from xattn.figures.canvas import enlarged, sharp
from xattn.figures.parts import PART_COLOURS, Parts, seen_parts, true_parts
from xattn.figures.ranked import coloured, over_photograph
from xattn.figures.run_data import read_runs
from xattn.figures.style import FigureStyle
from xattn.overlays import shown_values
from xattn.study.store import Store, StoredMap


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    pictures = SketchBirds("test", 3).export(folder / "birds")
    heads = [xattn.load(f"birds:{name}", device="cpu") for name in ("gap", "br-npa", "b-cnn")]
    study = xattn.Study(heads, ["grad-cam"], ["sparsity"], pictures, folder / "run", workers=0, progress=False)
    study.run()
    return folder / "run"


def test_a_run_keeps_the_ranked_maps_of_heads_that_have_several_and_of_no_other(run: Path) -> None:
    names = [f"{SketchBirds('test', 3).classes[number]}/{number:06d}.png" for number in range(3)]
    stored = Store(run).ranked(names)
    assert {key[1] for key in stored} == {"birds:br-npa", "birds:b-cnn"}
    classifier = xattn.load("birds:br-npa", device="cpu")
    maps = xattn.explain(classifier, run.parent / "birds" / names[1], ["grad-cam"])
    assert maps.ranked is not None
    assert np.allclose(stored[names[1], "birds:br-npa", "br-npa"].raw, maps.ranked[0].detach(), atol=1e-3 * float(maps.ranked.max()))


def test_ranked_maps_are_the_attention_times_the_norm_min_maxed() -> None:
    classifier = xattn.load("birds:br-npa", device="cpu")
    data = SketchBirds("test", 2)
    images = torch.stack([xattn.birds.pixels(data.scene(number)) for number in range(2)]).float() / 255
    maps = xattn.explain(classifier, images, ["grad-cam"], batch_size=1)
    features = classifier.features(images, ["layer4"])["layer4"]
    _, weights = xattn.heads.representatives(features, 3)
    norms = features.norm(dim=1)
    scaled = torch.stack([(norm - norm.min()) / (norm.max() - norm.min()) for norm in norms])
    assert maps.ranked is not None
    assert torch.allclose(maps.ranked, (weights * scaled[:, None]).detach(), atol=1e-6)
    assert xattn.explain(xattn.load("birds:gap", device="cpu"), images, ["grad-cam"]).ranked is None


def test_ranked_maps_are_not_counted_as_a_method(run: Path) -> None:
    table = (run / "table.csv").read_text()
    assert len(table.splitlines()) == 1 + 3
    assert {key[3] for key in Store(run).maps([f"{SketchBirds('test', 1).classes[0]}/000000.png"])} == {"grad-cam"}


def test_the_first_three_maps_are_red_green_and_blue_min_maxed_together() -> None:
    ranked = np.zeros((4, 2, 2), dtype=np.float32)
    ranked[0, 0, 0], ranked[1, 0, 1], ranked[2, 1, 0], ranked[3, 1, 1] = 4, 2, 1, 9
    shown = coloured(ranked)
    assert shown[0, 0].tolist() == [1, 0, 0]
    assert shown[0, 1].tolist() == [0, 0.5, 0]
    assert shown[1, 0].tolist() == [0, 0, 0.25]
    assert coloured(ranked[:1])[0, 0].tolist() == [1, 0, 0]
    assert not coloured(np.ones((3, 2, 2), dtype=np.float32)).any()


def test_over_the_photograph_a_strong_map_covers_it_and_a_weak_one_leaves_it() -> None:
    crop = torch.randint(0, 256, (3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    colours = torch.tensor([[[1.0, 0, 0], [0, 0, 0]], [[0, 0.25, 0], [0.5, 0.5, 0]]])
    shown = torch.from_numpy(over_photograph(colours.numpy(), crop.numpy()))
    grey = (crop.double().permute(1, 2, 0) / 255 * torch.tensor([0.299, 0.587, 0.114])).sum(dim=2)
    assert shown[0, 0].tolist() == [1, 0, 0]
    for (y, x), covered in (((0, 1), 0.0), ((1, 0), 0.25), ((1, 1), 0.5)):
        expected = 0.6 * (1 - covered) * float(grey[y, x]) + colours[y, x]
        assert torch.allclose(shown[y, x], expected.float(), atol=1e-6)
    assert float(shown.max()) <= 1


def test_the_ranked_maps_lie_over_black_or_over_the_photograph(run: Path) -> None:
    shown = read_runs([run], None, None, 1)
    key, crop = next((key, found) for key, found in shown.crops.items() if key[2] == "br-npa")
    colours = sharp(coloured(shown.ranked[key].raw), (64, 64))
    for over, expected in (("black", colours), ("photograph", over_photograph(colours, crop))):
        (page,) = Parts(over)(shown, FigureStyle())  # type: ignore[arg-type]
        pictures = [image.get_array().data for axis in page.axes for image in axis.images]
        same = [found.shape == expected.shape and np.allclose(found, expected, atol=1 / 255) for found in pictures]
        assert sum(same) == 1


def test_true_parts_are_coloured_where_their_visible_masks_are() -> None:
    scene = SketchBirds("test", 1).scene(0)
    visible = masks(scene).visible.numpy()
    shown = true_parts(xattn.birds.pixels(scene).numpy(), visible)
    for part, mask in zip(PARTS, visible, strict=True):
        colour = [int(PART_COLOURS[part][at : at + 2], 16) / 255 for at in (1, 3, 5)]
        assert np.allclose(shown[mask & (visible.sum(axis=0) == 1)], colour)  # at an edge two parts may share a pixel
    outside = shown[~visible.any(axis=0)]
    assert np.array_equal(outside[:, 0], outside[:, 1])


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_figure_is_written_in_every_format(run: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"parts.{ending}"
    figure([run], out, "parts")
    assert out.stat().st_size > 10_000
    if ending == "png":
        with Image.open(out) as picture:
            assert picture.size[0] > 600


def test_runs_without_ranked_maps_are_told_to_draw_a_grid(tmp_path: Path) -> None:
    pictures = SketchBirds("test", 1).export(tmp_path / "birds")
    gap = xattn.load("birds:gap", device="cpu")
    xattn.Study([gap], ["grad-cam"], ["sparsity"], pictures, tmp_path / "run", workers=0, progress=False).run()
    figure([tmp_path / "run"], tmp_path / "grid.png")
    with pytest.raises(InputError, match="run br-npa or b-cnn, or draw --kind grid"):
        figure([tmp_path / "run"], tmp_path / "parts.png", "parts")


def test_a_map_is_enlarged_without_smoothing() -> None:
    small = np.random.default_rng(0).random((4, 4), dtype=np.float32)
    assert np.array_equal(enlarged(small, (8, 12), "nearest"), small.repeat(2, axis=0).repeat(3, axis=1))


def test_true_parts_follow_the_classifiers_resize_and_crop() -> None:
    scene = SketchBirds("test", 1).scene(0)
    assert np.array_equal(seen_parts(scene, Preprocessing((64, 64), 64)), masks(scene).visible)
    larger = seen_parts(scene, Preprocessing((224, 224), 224))
    assert larger.shape == (5, 224, 224)
    assert float(larger.mean()) == pytest.approx(float(masks(scene).visible.double().mean()), rel=0.1)
    cut = seen_parts(scene, Preprocessing((48, 48), 64))
    assert np.array_equal(cut, masks(scene).visible[:, 8:56, 8:56])


def test_a_figure_of_a_run_where_an_image_failed_for_one_classifier_leaves_its_place_empty(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in (copy / "parts").glob("*.parquet"):
        table = pq.read_table(path)
        names = [
            image.endswith("000001.png") and model == "birds:br-npa"
            for image, model in zip(*(table[c].to_pylist() for c in ("image", "model")), strict=True)
        ]
        pq.write_table(table.filter(pa.array([not name for name in names])), path)
    figure([copy], tmp_path / "parts.png", "parts")
    assert (tmp_path / "parts.png").exists()


def test_controls_are_drawn_as_they_are_and_a_map_without_contrast_is_black() -> None:
    ones = StoredMap(np.ones((4, 4), dtype=np.float32), {"degenerate": False})
    mask = shown_values(ones.raw, direct=is_direct("uniform"), signed=False)
    assert mask.min() == 1
    assert shown_values(ones.raw, direct=is_direct("grad-cam"), signed=False).max() == 0
    assert enlarged(mask, (8, 8)).shape == (8, 8)


def test_the_command_line_knows_every_kind_of_figure(run: Path) -> None:
    listed = CliRunner().invoke(main, ["list", "figures"]).output
    assert [line.split()[0] for line in listed.splitlines()] == kinds.names()
    wrong = CliRunner().invoke(main, ["figure", str(run), "--kind", "gird", "--out", str(run / "x.png")])
    assert (wrong.exit_code, "Unknown figure 'gird'. Did you mean 'grid'?" in wrong.output) == (2, True)


def test_classifiers_of_different_input_sizes_stand_side_by_side(tmp_path: Path) -> None:
    pictures = SketchBirds("test", 2).export(tmp_path / "birds")
    small = xattn.load("birds:br-npa", device="cpu")
    large = xattn.load("xattn.birds:small_resnet", input_size=96, resize=96, device="cpu")
    xattn.Study([small, large], ["grad-cam"], ["sparsity"], pictures, tmp_path / "run", workers=0, progress=False).run()
    figure([tmp_path / "run"], tmp_path / "parts.png", "parts")
    assert (tmp_path / "parts.png").exists()
