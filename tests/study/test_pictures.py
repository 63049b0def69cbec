"""What a run makes of odd pictures: it keeps how they were scaled, tries again what was unreachable, and notices what was replaced."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import TensorDataset

import xattn
from tests import networks
from xattn.cli import main
from xattn.data.images import ImageSource
from xattn.errors import InputError, RunError
from xattn.models import Classifier
from xattn.study.executor import map_file
from xattn.study.store import Store


def study(classifier: Classifier, images: object, out: object, **settings: object) -> xattn.Study:
    given = {"images": images, "out": out, "batch_size": 3, "workers": 0, "progress": False, "tune": "off", **settings}
    return xattn.Study([classifier], ["grad-cam"], ["average-drop"], **given)  # type: ignore[arg-type]  # by name


def test_a_run_keeps_and_says_how_it_scaled_pictures_and_a_figure_shows_them_so(
    tiny: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    eight = torch.randint(0, 256, (2, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for number, values in enumerate(eight):
        Image.fromarray(values.astype(np.uint16) * 16).save(photos / f"{number}.png")  # 0 to 4080
        Image.fromarray(np.round(values.astype(float) * 16 / 4095 * 255).astype(np.uint8)).save(photos / f"same-{number}.png")
    study(tiny, photos, tmp_path / "plain").run()
    assert "--depth 12" in caplog.text
    kept = json.loads((tmp_path / "plain" / "run.json").read_text())
    assert "depth" not in kept["settings"]["images"]
    assert [(count, "--depth 12" in rule) for rule, count in kept["pixels"].items()] == [(2, True)]
    deep = study(tiny, photos, tmp_path / "deep", depth=12)
    assert deep.run().failed == []
    kept = json.loads((tmp_path / "deep" / "run.json").read_text())
    assert kept["settings"]["images"]["depth"] == 12
    assert kept["pixels"] == {"16-bit values: 0 to 4095 are black to white, the depth that was given": 2}
    values = deep.scores().set_index("image")["value"]
    assert [values[f"{n}.png"] for n in range(2)] == pytest.approx([values[f"same-{n}.png"] for n in range(2)], abs=1e-3)
    assert len(pd.read_csv(tmp_path / "deep" / "scores.csv")) == 4
    with pytest.raises(RunError, match="images.depth was 12, is None"):
        study(tiny, photos, tmp_path / "deep").run()
    source = ImageSource(photos, depth=12)
    assert torch.equal(source.decode(source.images[0], tiny.preprocessing)[1], source.decode(source.images[2], tiny.preprocessing)[1])
    assert torch.equal(xattn.explain(tiny, source).images[0], xattn.explain(tiny, source).images[2])
    from xattn.figures.run_data import read_runs

    crops = read_runs([tmp_path / "deep"], ["0.png", "same-0.png"], None).crops
    assert (crops["0.png", "tiny", "gap"] == crops["same-0.png", "tiny", "gap"]).all()


def test_the_command_takes_depth_window_and_size_and_prints_what_it_did(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), -500, np.int32)).save(folder / "scan.tif")
    run = [
        "explain",
        str(folder),
        "--model",
        f"{networks.__file__}:small",
        "--input-size",
        "32",
        "--method",
        "edges",
        "--metric",
        "sparsity",
    ]
    run += ["--workers", "0", "--tune", "off", "--device", "cpu"]
    plain = CliRunner().invoke(main, [*run, "--out", str(tmp_path / "a")])
    assert plain.exit_code == 3
    assert "scan.tif: signed 32-bit values from -500 to -500, and nothing says" in plain.output
    window = CliRunner().invoke(main, [*run, "--out", str(tmp_path / "b"), "--window", "-1000,400"])
    assert window.exit_code == 0, window.output
    assert "1 picture: signed 32-bit values: -1000 to 400 are black to white, the window that was given" in window.output
    small = CliRunner().invoke(main, [*run, "--out", str(tmp_path / "c"), "--max-pixels", "100"])
    assert "more than 100" in small.output
    for wrong in (["--depth", "77"], ["--window", "3,1"], ["--window", "3"], ["--max-pixels", "0"], ["--depth", "12", "--window", "0,1"]):
        assert CliRunner().invoke(main, [*run, "--out", str(tmp_path / "d"), *wrong]).exit_code == 2


@pytest.mark.parametrize("change", ["normalised", "to 255"])
def test_a_data_set_in_another_range_is_refused_on_the_first_batch(tiny: Classifier, tmp_path: Path, change: str) -> None:
    images = networks.pictures(4)
    images = (images - 0.45) / 0.22 if change == "normalised" else images * 255
    with pytest.raises(InputError, match=r"its values reach from .*\[0, 1\]"):
        study(tiny, TensorDataset(images, torch.arange(4)), tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_a_picture_that_was_replaced_by_one_of_the_same_length_is_noticed(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    study(tiny, folder, tmp_path / "run").run()
    os.unlink(tmp_path / "run" / "parts" / "00-000002.parquet")
    before = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(RunError, match=r"1 picture has other content than when the run in .* began \(1.png\).*put the pictures back"):
        study(tiny, folder, tmp_path / "run").run()
    (folder / "1.png").write_bytes(before)
    os.utime(folder / "1.png", (1, 1))  # a copy has another date
    study(tiny, folder, tmp_path / "run").run()


def test_pictures_that_were_unreachable_are_tried_again_and_damaged_ones_are_not(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    (folder / "7.png").write_bytes(b"damaged")
    whole = study(tiny, folder, tmp_path / "whole")
    whole.run()
    away = tmp_path / "away.png"
    out = tmp_path / "run"
    lost = study(tiny, folder, out)  # listed while all are there
    shutil.move(folder / "4.png", away)
    size = away.stat().st_size
    (folder / "4.png").symlink_to(tmp_path / "away.png.gone")
    for image in lost.plan.source.images:
        if image.name == "4.png":
            object.__setattr__(image, "size", size)  # the digest of names and sizes is that of the whole folder
    assert dict(lost.run().failed)["4.png"] == "could not be reached: No such file or directory"
    os.unlink(folder / "4.png")
    shutil.move(away, folder / "4.png")
    made = {part.name: part.stat().st_mtime_ns for part in (out / "parts").iterdir()}
    again = study(tiny, folder, out).run()
    assert [name for name, _ in again.failed] == ["7.png"]
    assert (out / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()
    assert [name for name, time in made.items() if (out / "parts" / name).stat().st_mtime_ns != time] == ["00-000001.parquet"]


def test_a_run_folder_that_loses_parts_while_it_runs_is_not_a_success(
    tiny: Classifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write_part

    def deleting(self: Store, name: str, rows: object) -> None:
        write(self, name, rows)  # type: ignore[arg-type]
        if name == "00-000002":
            os.unlink(tmp_path / "run" / "parts" / "00-000000.parquet")

    monkeypatch.setattr(Store, "write_part", deleting)
    with pytest.raises(RunError, match="of 4 parts of .*, 1 is gone.*run the same command to continue"):
        study(tiny, folder, tmp_path / "run").run()
    monkeypatch.undo()
    assert study(tiny, folder, tmp_path / "run").run().failed == []


def test_names_that_are_no_utf8_or_as_long_as_names_can_be_are_rows_and_masks(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    long = "x" * 240 + ".png"
    shutil.copy(folder / "1.png", folder / long)
    odd = os.fsencode(folder) + b"/below/caf\xe9"
    os.mkdir(odd)
    shutil.copy(folder / "2.png", odd + b"/a.png")
    made = study(tiny, os.fsdecode(os.fsencode(folder)), tmp_path / "run", save_maps=True)
    assert made.run().failed == []
    values = made.scores().set_index("image")["value"]
    assert values[long] == values["1.png"]
    assert values[r"below/caf\xe9/a.png"] == values["2.png"]
    masks = list((tmp_path / "run" / "maps").rglob("*.png"))
    assert len(masks) == 12
    assert max(len(os.fsencode(path.name)) for path in masks) <= 255
    given = os.fsdecode(odd)  # the folder itself, in run.json
    assert study(tiny, given, tmp_path / "odd").run().failed == []
    assert study(tiny, given, tmp_path / "odd").run().failed == []
    assert json.loads((tmp_path / "odd" / "run.json").read_bytes())["settings"]["images"]["origin"] == [given]


def test_masks_of_long_names_have_names_of_their_own() -> None:
    top = Path("maps") / "net"
    assert map_file(top, "a/b.png") == top / "a" / "b.png.png"
    long = [map_file(top, f"d/{'é' * 125}{end}.jpg") for end in ("a", "b")]
    assert long[0] != long[1]
    assert {path.parent for path in long} == {top / "d"}
    assert long[0].name.endswith(f"-{hashlib.sha256(f'd/{chr(233) * 125}a.jpg'.encode()).hexdigest()[:16]}.png")
    assert map_file(top, "d/" * 800 + "x.png").parent == top
