"""Decoding as a viewer would, and every kind of bad file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from xattn.data.images import ImageSource, read_picture
from xattn.errors import ImageError, InputError
from xattn.models import Preprocessing

EXACT = Preprocessing(input_size=(32, 32), resize=32)


def red_left(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, size[0] // 2, size[1]))
    return picture


def colours(picture: Image.Image, tolerance: int = 12) -> tuple[str, str]:
    """Names of the colours at the left and right edges."""
    names = {"red": (255, 0, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
    found = []
    for x in (2, picture.width - 3):
        pixel = picture.getpixel((x, picture.height // 2))
        found.append(next((n for n, c in names.items() if all(abs(a - b) <= tolerance for a, b in zip(pixel, c, strict=True))), str(pixel)))
    return found[0], found[1]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    red_left().save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    assert colours(read_picture(tmp_path / "turned.jpg")) == ("blue", "red")


def test_cmyk_palette_and_alpha_are_shown_as_a_viewer_shows_them(tmp_path: Path) -> None:
    red_left().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95, subsampling=0)
    assert colours(read_picture(tmp_path / "cmyk.jpg")) == ("red", "blue")
    red_left().convert("P").save(tmp_path / "palette.png")
    assert colours(read_picture(tmp_path / "palette.png"), 40) == ("red", "blue")
    clear = red_left().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 20, 20))
    clear.save(tmp_path / "alpha.png")
    assert colours(read_picture(tmp_path / "alpha.png")) == ("white", "blue")
    palette = red_left().convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    palette.save(tmp_path / "clear.png", transparency=palette.getpixel((0, 0)))
    assert colours(read_picture(tmp_path / "clear.png"), 40) == ("white", "blue")
    Image.new("LA", (40, 20), (0, 0)).save(tmp_path / "la.png")
    assert colours(read_picture(tmp_path / "la.png")) == ("white", "white")


def test_16_bits_become_8_and_floats_too(tmp_path: Path) -> None:
    levels = torch.full((20, 40), 32896, dtype=torch.int32)
    levels[:, 20:] = 65535
    Image.fromarray(levels.numpy().astype("uint16")).save(tmp_path / "deep.png")
    assert colours(read_picture(tmp_path / "deep.png")) == ("grey", "white")
    Image.fromarray((levels / 65535).numpy()).save(tmp_path / "float.tif")
    assert colours(read_picture(tmp_path / "float.tif")) == ("grey", "white")


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    red_left().save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (40, 20), "white")])
    assert colours(read_picture(tmp_path / "moving.gif")) == ("red", "blue")


def bomb() -> bytes:
    """A PNG of 30000 × 30000 in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def bad_files(folder: Path) -> dict[str, str]:
    """Writes every kind of bad file; gives what is said of each."""
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).convert("RGB").save(buffer, "JPEG")
    whole = buffer.getvalue()
    (folder / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "header.png").write_bytes(whole[:30])
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "folder.png").symlink_to("/proc/self/mem")
    return {
        "torn.jpg": "torn or damaged",
        "empty.jpg": "empty file",
        "text.png": "not a picture",
        "bomb.png": "decompression bomb",
        "header.png": "not a picture|damaged",
        "gone.jpg": "No such file",
        "folder.png": "",
    }


def test_every_kind_of_bad_file_is_an_error_with_its_reason(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(ImageError, match=reason or None):
            read_picture(tmp_path / name)


def test_a_folder_is_read_recursively_in_order_without_hidden_files(folder: Path) -> None:
    (folder / ".hidden").mkdir()
    red_left().save(folder / ".hidden" / "x.png")
    (folder / "notes.txt").write_text("no picture")
    source = ImageSource(folder)
    assert [image.name for image in source.images] == [*(f"{k}.png" for k in range(8)), "below/8.png", "below/9.png"]


def test_globs_files_and_lists_are_taken_each_image_once_under_a_name_of_its_own(folder: Path) -> None:
    assert [i.name for i in ImageSource(str(folder / "[0-2].png")).images] == ["0.png", "1.png", "2.png"]
    assert len(ImageSource([folder, folder / "1.png"])) == 10
    red_left().save(folder / "below" / "1.png")
    assert [i.name for i in ImageSource([folder / "1.png", folder / "below" / "1.png"]).images] == ["1.png", "below/1.png"]


def test_a_csv_of_images_and_labels_is_a_source(folder: Path) -> None:
    (folder / "list.csv").write_text("image,label\n3.png,2\nbelow/8.png,class 1\n")
    source = ImageSource(folder / "list.csv")
    assert [(i.name, i.label) for i in source.images] == [("3.png", "2"), ("below/8.png", "class 1")]
    assert source.labelled


def test_a_label_file_that_does_not_match_says_which_images_lack_one(folder: Path) -> None:
    (folder / "labels.csv").write_text("image,label\nphotos/1.png,2\n")
    with pytest.raises(InputError, match=r"of 10 images, 10 have no label in .*\(0\.png, 1\.png, 2\.png, …\).*holds photos/1\.png"):
        ImageSource(folder, folder / "labels.csv")
    (folder / "labels.csv").write_text("file,class\n1.png,2\n")
    with pytest.raises(InputError, match="needs the columns 'image' and 'label' .*; it has file, class"):
        ImageSource(folder, folder / "labels.csv")


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images in"):
        ImageSource(tmp_path)
    with pytest.raises(InputError, match="is not a file, not a folder, and not a pattern"):
        ImageSource(tmp_path / "nowhere")


class Pairs(Dataset):
    def __init__(self, as_tensor: bool) -> None:
        self.as_tensor = as_tensor

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[object, int]:
        return (torch.rand(3, 32, 32) if self.as_tensor else red_left()), index % 5


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_datasets_of_pictures_or_tensors_with_labels_are_sources(as_tensor: bool, workers: int) -> None:
    source = ImageSource(Pairs(as_tensor))
    assert source.labelled
    batches = list(source.batches(EXACT, 5, workers=workers))
    assert [len(batch.images) for batch in batches] == [5, 5, 2]
    assert [image.label for batch in batches for image in batch.images] == [k % 5 for k in range(12)]
    assert batches[0].images[0].name == "00"
    assert batches[0].crops.shape == (5, 3, 32, 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_told_with_their_batch_and_the_good_ones_are_read(folder: Path, workers: int) -> None:
    bad = bad_files(folder)
    batches = list(ImageSource(folder).batches(EXACT, 4, workers=workers))
    assert {image.name for batch in batches for image, _ in batch.failed} == set(bad)
    assert sum(len(batch.images) for batch in batches) == 10
    assert all(len(batch.crops) == len(batch.images) for batch in batches)


def test_batches_that_are_done_are_left_out(folder: Path) -> None:
    assert [batch.number for batch in ImageSource(folder).batches(EXACT, 4, wanted=[1])] == [1]


def test_the_crop_is_torchvision_s(folder: Path) -> None:
    from torchvision.transforms._presets import ImageClassification

    picture = read_picture(folder / "3.png").resize((300, 200))
    preset = ImageClassification(crop_size=32, resize_size=36, mean=(0, 0, 0), std=(1, 1, 1))
    ours = Preprocessing(input_size=(32, 32), resize=36).crop(picture).float() / 255
    assert torch.allclose(ours, preset(picture), atol=1e-6)


class Failing(Pairs):
    def __getitem__(self, index: int) -> tuple[object, int]:
        if index in (0, 7):
            raise OSError("torn")
        return super().__getitem__(index)


def test_an_item_that_a_dataset_cannot_give_is_that_image_s_error() -> None:
    source = ImageSource(Failing(False))
    batches = list(source.batches(EXACT, 5))
    assert [(image.name, reason) for b in batches for image, reason in b.failed] == [
        (name, "the dataset failed: OSError: torn") for name in ("00", "07")
    ]
    assert sum(len(batch.images) for batch in batches) == 10
    assert source.labelled


def test_a_picture_too_long_and_thin_to_resize_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (1, 60000)).save(tmp_path / "thin.png")
    with pytest.raises(ImageError, match="too long and thin"):
        Preprocessing().crop(read_picture(tmp_path / "thin.png"))


@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
@pytest.mark.parametrize("picture", [(50, 50), (200, 30), (30, 200)])
def test_a_crop_that_is_not_square_is_filled_by_the_picture(size: tuple[int, int], picture: tuple[int, int]) -> None:
    crop = Preprocessing(input_size=size, resize=36).crop(Image.new("RGB", picture, "white"))
    assert crop.shape == (3, *size)
    assert int(crop.min()) == 255


def test_names_never_lead_out_of_a_folder(folder: Path, tmp_path: Path) -> None:
    for listed in (folder / "1.png", Path("../photos/below/8.png")):
        (tmp_path / "lists").mkdir(exist_ok=True)
        (tmp_path / "lists" / "list.csv").write_text(f"image,label\n{listed},1\n{folder}/2.png,0\n")
        names = [image.name for image in ImageSource(tmp_path / "lists" / "list.csv").images]
        assert not any(name.startswith("/") or ".." in name for name in names)


def test_a_link_back_to_the_folder_is_followed_once(folder: Path) -> None:
    (folder / "below" / "again").symlink_to(folder)
    assert len(ImageSource(folder)) == 10


def test_another_source_has_another_digest(folder: Path) -> None:
    before = ImageSource(folder).digest()
    assert ImageSource(folder).digest() == before
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes() + b"more")
    assert ImageSource(folder).digest() != before
