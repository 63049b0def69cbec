"""Maps that other tools wrote into files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from xattn.data.map_arrays import as_map
from xattn.data.map_files import cropped, find_maps
from xattn.data.npy import npy
from xattn.data.preprocessing import Frame, Preprocessing, Region
from xattn.errors import InputError

NAMES = ["a.jpg", "below/b.jpg"]
WHOLE = Frame((8, 8), Region(0, 0, 8, 8))
MAP = torch.arange(4.0).view(2, 2)


def write(path: Path, values: Tensor) -> None:
    """A map in the format that the ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        path.write_bytes(npy(values))
    elif path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", npy(values))
    elif path.suffix == ".safetensors":
        save_file({"map": values.contiguous()}, path)
    elif path.suffix == ".pt":
        torch.save(values, path)
    else:
        Image.fromarray(values.byte().numpy()).save(path)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors", ".pt", ".png"])
def test_every_format_gives_the_values_that_were_written(tmp_path: Path, ending: str) -> None:
    for number, name in enumerate(NAMES):
        write(tmp_path / "lime" / Path(name).with_suffix(ending), MAP + number)
    (found,) = find_maps([tmp_path], NAMES).maps
    assert found.name == "lime"
    assert found.shown("below/b.jpg", WHOLE, (4, 4)).tolist() == (MAP + 1).tolist()


def test_containers_and_tables_name_the_pictures(tmp_path: Path) -> None:
    save_file({"a": MAP, "below/b.jpg": MAP + 1}, tmp_path / "rise.safetensors")
    write(tmp_path / "files/1.npy", MAP + 2)
    (tmp_path / "maps.csv").write_text("image,map,method\na.jpg,files/1.npy,shap\n")
    found = {maps.name: maps for maps in find_maps([tmp_path / "rise.safetensors", tmp_path / "maps.csv"], NAMES).maps}
    assert set(found["rise"].files) == set(NAMES)
    assert found["shap"].shown("a.jpg", WHOLE, (4, 4)).tolist() == (MAP + 2).tolist()


def test_maps_have_the_pictures_name_with_its_ending_or_without(tmp_path: Path) -> None:
    write(tmp_path / "mine/a.jpg.npy", MAP)
    write(tmp_path / "mine/below/b.npy", MAP)
    write(tmp_path / "mine/c.npy", MAP)
    found = find_maps({"renamed": tmp_path / "mine"}, NAMES)
    assert [maps.name for maps in found.maps] == ["renamed"]
    assert set(found.maps[0].files) == set(NAMES)
    assert [Path(place).name for place in found.unknown] == ["c.npy"]


def test_the_digest_is_of_the_values_and_their_pictures_alone(tmp_path: Path) -> None:
    write(tmp_path / "one/m/a.npy", MAP)
    write(tmp_path / "two/m/a.pt", MAP)
    write(tmp_path / "three/m/a.npy", MAP + 1)
    one, two, three = (find_maps([tmp_path / name], NAMES).maps[0].digest for name in ("one", "two", "three"))
    assert one == two != three


def test_a_map_of_the_pictures_size_is_cropped_as_the_picture_is(tmp_path: Path) -> None:
    picture = Image.new("L", (48, 32))
    values = torch.zeros(32, 48)
    values[8:24, 16:32] = 1  # the middle of the picture
    frame, crop = Preprocessing((16, 16), 16).frame(picture), (16, 16)
    shown = cropped(values, frame, crop)
    assert shown.shape == crop
    assert shown[5:11, 5:11].eq(1).all()
    assert shown[:3].eq(0).all()
    assert shown[:, :3].eq(0).all()
    write(tmp_path / "m/a.npy", values)
    (found,) = find_maps([tmp_path], NAMES).maps
    assert torch.equal(found.shown("a.jpg", frame, crop), shown)
    (as_crop,) = find_maps([tmp_path], NAMES, covers="crop").maps
    assert as_crop.shown("a.jpg", frame, crop).shape == (32, 48)


def test_a_crop_beyond_the_picture_is_filled_with_zeros() -> None:
    shown = cropped(torch.ones(4, 4), Frame((4, 4), Region(-2, -2, 6, 6)), (8, 8))
    assert shown.sum() == 16
    assert shown[2:6, 2:6].eq(1).all()


def test_what_a_map_of_both_sizes_covers_has_to_be_said(tmp_path: Path) -> None:
    write(tmp_path / "m/a.npy", torch.rand(8, 8))
    (found,) = find_maps([tmp_path], NAMES).maps
    with pytest.raises(InputError, match="the size of both the picture and the network's input"):
        found.shown("a.jpg", Frame((8, 8), Region(1, 1, 7, 7)), (8, 8))


@pytest.mark.parametrize(
    ("values", "ending", "message"),
    [
        (torch.tensor([[-1.0, 1.0]]), ".npy", "of 1 map by 'm', 1 has values below 0, down to -1"),
        (torch.rand(3, 4, 4), ".npy", r"has the shape \(3, 4, 4\): a map is \(height, width\).*Sum or average"),
        (torch.randint(0, 255, (4, 4, 3)), ".png", "is a colour picture.*not its overlay"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path: Path, values: Tensor, ending: str, message: str) -> None:
    write(tmp_path / f"m/a{ending}", values)
    with pytest.raises(InputError, match=message):
        find_maps([tmp_path], NAMES)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    for ending in (".npy", ".npz", ".safetensors", ".pt", ".png"):
        place = tmp_path / ending[1:] / "m" / f"a{ending}"
        place.parent.mkdir(parents=True)
        place.write_bytes(b"nothing of the kind")
        with pytest.raises(InputError, match=r"is not a|damaged"):
            find_maps([place.parent], NAMES)
    with pytest.raises(InputError, match="has no map of any of 1 picture"):
        find_maps([tmp_path], ["x.jpg"])
    with pytest.raises(InputError, match="there is no"):
        find_maps([tmp_path / "absent"], NAMES)


def test_two_maps_of_one_picture_or_method_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m/a.npy", MAP)
    write(tmp_path / "m/a.pt", MAP)
    with pytest.raises(InputError, match="two maps by 'm' are of a.jpg"):
        find_maps([tmp_path / "m"], NAMES)
    write(tmp_path / "other/n/a.npy", MAP)
    with pytest.raises(InputError, match="two places have maps of a method 'n'"):
        find_maps([tmp_path / "other", tmp_path / "other/n"], NAMES)


def test_a_map_in_half_precision_and_one_with_axes_of_one_are_read(tmp_path: Path) -> None:
    content = io.BytesIO()
    half = MAP.half()
    header = b"{'descr': '<f2', 'fortran_order': False, 'shape': (1, 1, 2, 2), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    content.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + half.numpy().tobytes())
    (tmp_path / "m").mkdir()
    (tmp_path / "m/a.npy").write_bytes(content.getvalue())
    (found,) = find_maps([tmp_path], NAMES).maps
    assert found.shown("a.jpg", WHOLE, (4, 4)).tolist() == MAP.tolist()


def test_values_beyond_float32_are_said_to_be_that_and_not_infinite(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"the map reaches 1.0e\+300, more than float32 can hold \(3.4e\+38\): divide the map by its largest"
    ):
        as_map(torch.tensor([[1e300, 0.0]], dtype=torch.float64), "the map")
    assert as_map(torch.tensor([[1e30, 0.0]], dtype=torch.float64), "the map").max() == torch.tensor(1e30)
    assert as_map(torch.tensor([[torch.inf, 0.0]], dtype=torch.float64), "the map").isinf().any()  # refused where maps are used
