"""An overlay lies where the network saw what the map shows, whatever was turned, resized and cropped before."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

import xattn
from xattn.cli import main
from xattn.data.npy import npy
from xattn.data.preprocessing import Preprocessing, Region
from xattn.errors import InputError, NameUnknownError
from xattn.figures import overlay_runs
from xattn.figures.canvas import enlarged
from xattn.figures.photographs import distinct, safe
from xattn.metrics.masking import to_masks
from xattn.models import Classifier
from xattn.overlays import OverlayStyle, coloured, laid_over, mask_of_map, overlay

ORIENTATION = 0x0112
STORED_AS = {  # the transpose that turns what a viewer shows into what a file of this orientation holds
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def sees_brightness() -> nn.Module:
    """A network whose feature map is the brightness of cells of 4 × 4 pixels."""
    network = nn.Sequential(
        nn.AvgPool2d(4), nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    for weights in network.parameters():
        nn.init.constant_(weights, 0.3)
    return network.eval()


def planted(width: int, height: int, x: float, y: float) -> Image.Image:
    """A dark photograph with a round bright spot about a twelfth of its shorter side wide."""
    size = min(width, height) / 12
    down, across = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    spot = torch.exp(-((down - y) ** 2 + (across - x) ** 2) / (2 * (size / 2) ** 2))
    return Image.fromarray((255 * spot).round().byte().numpy()).convert("RGB")


def save_turned(shown: Image.Image, orientation: int, path: Path) -> None:
    turn = STORED_AS[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    (shown if turn is None else shown.transpose(turn)).save(path, exif=exif)


def centre(values: Tensor | np.ndarray) -> tuple[float, float]:
    """Centre of what is within a tenth of the largest of the values, x and y."""
    values = torch.as_tensor(values)
    high = values.nan_to_num(0) > 0.9 * float(values.nan_to_num(0).max())
    y, x = high.nonzero().double().mean(dim=0).add(0.5).tolist()
    return x, y


SHAPES = [((640, 300), (0.62, 0.35)), ((210, 500), (0.3, 0.55)), ((90, 90), (0.4, 0.55)), ((401, 333), (0.6, 0.45))]
CUTS = [{"input_size": 64, "resize": 72}, {"input_size": (48, 96), "resize": 60}, {"input_size": 64, "resize": (64, 80)}]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("orientation", STORED_AS)
def test_a_map_s_peak_comes_back_at_the_same_spot_of_the_photograph(orientation: int, cut: dict[str, object], tmp_path: Path) -> None:
    classifier = xattn.attach(sees_brightness(), name="bright", mean=[0.0] * 3, std=[1.0] * 3, **cut)
    for (width, height), (x, y) in SHAPES:
        path = tmp_path / "photograph.png"
        save_turned(planted(width, height, x * width, y * height), orientation, path)
        maps = xattn.explain(classifier, path, ["activation-map"])
        photograph, region = next(maps.photographs.of(maps.names))
        assert photograph.size == (width, height)
        found = centre(laid_over(maps.low_res_masks["activation-map"][0].numpy(), (height, width), region))
        cell = 4 * (region.right - region.left) / classifier.input_size[1]
        assert abs(found[0] - x * width) < cell / 2
        assert abs(found[1] - y * height) < 4 * (region.bottom - region.top) / classifier.input_size[0] / 2
        drawn = maps.overlay("activation-map", cmap="gray", alpha=1.0)[0]
        assert drawn.size == (width, height)
        assert centre(torch.from_numpy(np.array(drawn.convert("L"))).double()) == pytest.approx(found, abs=cell / 2)


@pytest.mark.parametrize("size", [(512, 256), (300, 1000), (224, 224), (37, 41)], ids=str)
@pytest.mark.parametrize("preprocessing", [Preprocessing(), Preprocessing((96, 64), 80), Preprocessing((64, 64), (70, 90))], ids=str)
def test_the_region_is_what_the_crop_keeps(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    across = torch.linspace(0, 255, size[0]).round().expand(size[1], -1)
    down = torch.linspace(0, 255, size[1]).round()[:, None].expand(-1, size[0])
    picture = Image.fromarray(torch.stack([across, down, down], dim=2).byte().numpy())
    seen, region = preprocessing.crop(picture).double(), preprocessing.region(picture)
    middle_x = (seen[0].mean() / 255 * (size[0] - 1)) + 0.5
    middle_y = (seen[1].mean() / 255 * (size[1] - 1)) + 0.5
    pixel = max(size[0], size[1]) / 255 + max(size) / 64
    assert float(middle_x) == pytest.approx((region.left + region.right) / 2, abs=pixel / 2)
    assert float(middle_y) == pytest.approx((region.top + region.bottom) / 2, abs=pixel / 2)


def test_without_resize_and_crop_a_map_is_enlarged_as_the_mask_that_is_scored() -> None:
    raw = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    found = torch.from_numpy(laid_over(raw.numpy(), (35, 30), Region(0, 0, 30, 35)))
    wanted = nn.functional.interpolate(raw[None, None], size=(35, 30), mode="bilinear", align_corners=False)[0, 0]
    assert torch.allclose(found, wanted, atol=1e-6)
    cells = torch.from_numpy(laid_over(raw.numpy(), (35, 30), Region(0, 0, 30, 35), "nearest"))
    assert torch.equal(cells, raw.repeat_interleave(5, dim=0).repeat_interleave(6, dim=1))


def test_the_mask_of_a_finished_map_is_the_mask_that_is_scored() -> None:
    made = torch.Generator().manual_seed(0)
    maps = [torch.rand(7, 5, generator=made), torch.randn(9, 9, generator=made) * 1e-20, -torch.rand(3, 8, generator=made)]
    maps += [torch.full((4, 4), 3.0), torch.zeros(2, 2), torch.tensor([[1.0, torch.nan]]), torch.tensor([[1.0, 1 + 1e-7]])]
    for raw in maps:
        assert np.array_equal(mask_of_map(raw.numpy()), to_masks(raw[None], (raw.shape[0], raw.shape[1])).masks[0].numpy())
    raw, size = maps[0], (70, 45)
    scored = to_masks(raw[None], size).masks[0].numpy()
    assert np.allclose(enlarged(mask_of_map(raw.numpy()), size), scored, atol=1e-6)


def test_outside_the_crop_the_photograph_stays_as_it_is() -> None:
    picture = Image.effect_noise((200, 100), 80).convert("RGB")
    region = Preprocessing((80, 80), 100).region(picture)
    drawn = overlay(picture, torch.rand(4, 4).numpy(), region, OverlayStyle())
    before, after = (torch.from_numpy(np.array(shown)) for shown in (picture, drawn))
    seen = torch.zeros(100, 200, dtype=torch.bool)
    seen[10:90, 60:140] = True
    assert torch.equal(before[~seen], after[~seen])
    assert (before[seen] != after[seen]).any(dim=1).double().mean() > 0.99


def test_colours_are_those_of_matplotlib() -> None:
    from matplotlib import colormaps

    values = np.linspace(0, 1, 300, dtype=np.float32)
    for name in ("inferno", "RdBu_r", "tab10"):
        assert np.allclose(coloured(values, name), colormaps[name](values)[:, :3], atol=1e-6)


def test_an_overlay_in_strips_is_that_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, values = Image.effect_noise((120, 90), 80).convert("RGB"), torch.rand(6, 6, generator=torch.Generator().manual_seed(1)).numpy()
    style = OverlayStyle(contour=(0.3, 0.7))
    whole = overlay(picture, values, Region(3.5, 2.25, 110, 88), style)
    monkeypatch.setattr("xattn.overlays.STRIP", 500)
    assert overlay(picture, values, Region(3.5, 2.25, 110, 88), style).tobytes() == whole.tobytes()


def test_a_contour_is_white_just_within_the_level_and_black_just_outside() -> None:
    values = np.zeros((1, 10), dtype=np.float32)
    values[:, 5:] = 1
    drawn = overlay(Image.new("RGB", (10, 6), (90, 90, 90)), values, Region(0, 0, 10, 6), OverlayStyle(None, 0.0, "nearest", (0.5,)))
    assert [drawn.getpixel((x, 3))[0] for x in range(10)] == [90, 90, 90, 90, 0, 255, 90, 90, 90, 90]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(NameUnknownError, match="colour map 'infernoo'. Did you mean 'inferno'"):
        OverlayStyle("infernoo")
    with pytest.raises(NameUnknownError, match="bilinear, nearest"):
        OverlayStyle(interpolation="cubic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="opacity from 0 to 1"):
        OverlayStyle(alpha=1.5)
    with pytest.raises(InputError, match="between 0 and 1"):
        OverlayStyle(contour=(1.0,))


def test_maps_of_tensors_lie_over_the_images_themselves(tiny: Classifier, images: Tensor) -> None:
    maps = xattn.explain(tiny, images[:2], ["grad-cam", "grad-cam:signed=true"])
    plain = maps.overlay("grad-cam", alpha=0)
    assert np.array_equal(np.array(plain[1]), (images[1] * 255).round().byte().permute(1, 2, 0).numpy())
    signed = np.array(maps.overlay("grad-cam:signed=true", alpha=1, interpolation="nearest")[0]).astype(int)
    raw = maps.raw["grad-cam:signed=true"][0].repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)
    strong = (raw.abs() > 0.3 * raw.abs().max()).numpy()
    assert ((signed[..., 0] > signed[..., 2]) == (raw > 0).numpy())[strong].all()  # red where it speaks for the target, blue against
    with pytest.raises(KeyError, match="no maps of 'gradcam'"):
        maps.overlay("gradcam")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over photographs with difficult names."""
    home = tmp_path_factory.mktemp("overlays")
    photos = home / "photos"
    (photos / "a").mkdir(parents=True)
    names = [
        "a/cat.png",
        "cat.png",
        "cat.jpg",
        "CAT.png",
        "con.png",
        "x" * 236 + ".png",
        "a b$%&.png",
        b"caf\xe9.png".decode(errors="surrogateescape"),
    ]
    for number, name in enumerate(names):
        save_turned(planted(80 + number, 60, 30, 20), 1, photos / name)
    classifiers = [xattn.attach(sees_brightness(), name=name, input_size=32, resize=36) for name in ("one", "two:x")]
    methods = ["activation-map", "grad-cam:signed=true", "random"]
    xattn.Study(classifiers, methods, ["sparsity"], photos, home / "run", workers=0, progress=False).run()
    return home


def test_every_picture_and_method_of_a_run_has_a_file_whatever_its_name(done: Path) -> None:
    out = done / "out"
    assert overlay_runs([done / "run"], out, maps=True, progress=False) == []
    with open(out / "overlays.csv", encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 8 * 2 * 3
    assert len({row["file"].casefold() for row in listed}) == len(listed)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png") if not path.name.endswith(".map.png")} == {
        row["file"] for row in listed
    }
    for row in listed:
        with (
            Image.open(out / row["file"]) as drawn,
            Image.open(done / "photos" / os.fsdecode(row["image"].replace("\\xe9", "é").encode("latin-1"))) as photograph,
        ):
            assert drawn.size == photograph.size
    assert "one/a/cat.activation-map.png" in {row["file"] for row in listed}
    values = np.load(out / "one" / "a" / "cat.activation-map.npy")
    with Image.open(out / "one" / "a" / "cat.activation-map.map.png") as opened:
        levels = np.array(opened)
    assert values.dtype == np.float32
    assert levels.dtype == np.uint16
    seen = ~np.isnan(values)
    assert not levels[~seen].any()
    assert np.abs(levels[seen] / 65535 - values[seen]).max() < 1e-5
    row = next(row for row in listed if row["file"] == "one/a/cat.activation-map.png")
    assert np.argwhere(seen).min(axis=0).tolist() == [round(float(row["top"])), round(float(row["left"]))]


def test_a_signed_map_s_file_reaches_below_zero(done: Path) -> None:
    overlay_runs(
        [done / "run"], done / "signed", images=["cat.jpg"], methods=["grad-cam:signed=true"], maps=True, form="jpeg", progress=False
    )
    names = [path.name for path in (done / "signed" / "one").iterdir()]
    assert len(names) == 3
    assert [name for name in names if name.endswith(".jpg")]
    values = np.load(next((done / "signed" / "one").glob("*.npy")))
    assert -1 <= np.nanmin(values) <= np.nanmax(values) <= 1


def test_the_command_draws_what_is_chosen_and_names_what_it_could_not_read(done: Path, tmp_path: Path) -> None:
    chosen = [
        "--image",
        "a/cat.png",
        "--method",
        "random",
        "--cmap",
        "viridis",
        "--alpha",
        "0.3",
        "--interpolation",
        "nearest",
        "--contour",
        "0.5",
    ]
    result = CliRunner().invoke(main, ["overlay", str(done / "run"), "--out", str(tmp_path / "out"), *chosen])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["cat.random.png"] * 2
    wrong = CliRunner().invoke(main, ["overlay", str(done / "run"), "--out", str(tmp_path / "out"), "--method", "gradcam"])
    assert (wrong.exit_code, "Unknown method in these runs 'gradcam'" in wrong.output) == (2, True)
    kept = (done / "photos" / "cat.jpg").read_bytes()
    try:
        (done / "photos" / "cat.jpg").write_bytes(b"")
        torn = CliRunner().invoke(main, ["overlay", str(done / "run"), "--out", str(tmp_path / "torn"), "--method", "random"])
    finally:
        (done / "photos" / "cat.jpg").write_bytes(kept)
    assert (torn.exit_code, "cat.jpg: empty file" in torn.output) == (3, True)
    assert len(list((tmp_path / "torn").rglob("*.random.png"))) == 7 * 2


def test_names_of_files_are_safe_and_distinct() -> None:
    assert safe("..") == "_"
    assert safe("nul") != "nul"
    assert len(safe("é" * 200).encode()) < 140
    assert "/" not in safe("a/b")
    names = distinct(["cat", "Cat", "dog"], ["cat.png", "Cat.png", "dog.png"])
    assert len({name.casefold() for name in names}) == 3
    assert names[2] == "dog"


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (1234, 7)])
def test_numpy_reads_what_is_written(shape: tuple[int, int], tmp_path: Path) -> None:
    values = torch.rand(shape)
    (tmp_path / "x.npy").write_bytes(npy(values))
    assert np.array_equal(np.load(tmp_path / "x.npy"), values.numpy())
