"""Regions from every kind of file, and what resize and crop do to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from xattn.data.annotation_files import read_annotations
from xattn.data.annotations import Annotations, sampled
from xattn.data.preprocessing import Frame, Preprocessing, Region
from xattn.errors import ImageError, InputError

NAME = "below/dog.jpg"
SIZE = (60, 40)
EDGES = (11, 7, 45, 30)
XML = """<annotation><filename>x.jpg</filename><size><width>60</width><height>40</height></size>
<object><name>dog</name><bndbox><xmin>12</xmin><ymin>8</ymin><xmax>45</xmax><ymax>30</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"""


def painted(edges: tuple[float, ...] = EDGES, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture that is white in a box."""
    picture = Image.new("L", size)
    left, top, right, bottom = edges
    ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return picture


def runs() -> list[int]:
    """The runs of the box as COCO counts them, column by column, those outside first."""
    pixels = torch.frombuffer(bytearray(painted().tobytes()), dtype=torch.uint8).view(40, 60).T.flatten() > 0
    values, counts = pixels.int().unique_consecutive(return_counts=True)
    return ([0] if values[0] else []) + counts.tolist()


def coco(**annotation: object) -> str:
    images = [{"id": 3, "file_name": NAME, "width": 60, "height": 40}]
    one = {"image_id": 3, "category_id": 1, **annotation}
    return json.dumps({"images": images, "annotations": [one], "categories": [{"id": 1, "name": "dog"}]})


def csv(folder: Path) -> Path:
    (folder / "boxes.csv").write_text(f"image,x0,y0,x1,y1,label\n{NAME},11,7,45,30,dog\n")
    return folder / "boxes.csv"


def voc(folder: Path) -> Path:
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "dog.xml").write_text(XML)
    return folder / "Annotations"


def masks(folder: Path) -> Path:
    (folder / "masks" / "below").mkdir(parents=True)
    painted().save(folder / "masks" / "below" / "dog.png")
    return folder / "masks"


def of_coco(**annotation: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        if "segmentation" in annotation:
            pytest.importorskip("pycocotools")
        (folder / "instances.json").write_text(coco(**annotation))
        return folder / "instances.json"

    return write


KINDS = {
    "csv": csv,
    "voc": voc,
    "masks": masks,
    "coco box": of_coco(bbox=[11, 7, 34, 23]),
    "coco polygon": of_coco(bbox=[0, 0, 1, 1], segmentation=[[11, 7, 45, 7, 45, 30, 11, 30]]),
    "coco runs": of_coco(segmentation={"size": [40, 60], "counts": runs()}),
}


def seen(found: Annotations, preprocessing: Preprocessing, label: str | None = None) -> torch.Tensor:
    picture = painted()
    return found.seen(NAME, preprocessing.frame(picture), preprocessing.input_size, lambda each: each == label or each is None)


@pytest.mark.parametrize(
    "preprocessing", [Preprocessing((40, 60), (40, 60)), Preprocessing((32, 32), 36), Preprocessing((48, 20), (50, 90))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_region_that_the_crop_shows(kind: str, preprocessing: Preprocessing, tmp_path: Path) -> None:
    """The reference is the object painted into the picture, resized to the nearest pixel and cropped as the picture is."""
    found = read_annotations(KINDS[kind](tmp_path), [NAME, "other.jpg"])
    nearest = Preprocessing(preprocessing.input_size, preprocessing.resize, (0.5,), (0.5,), "nearest")
    expected = nearest.crop(painted())[0] > 0
    assert torch.equal(seen(found, preprocessing, "dog"), expected[None])
    assert list(found.objects) == [NAME]
    assert (seen(found, preprocessing, "cat").numel() == 0) == (kind != "masks")  # a mask has no class; VOC's cat is difficult


def test_edges_need_not_lie_between_pixels_and_may_leave_the_crop(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("image;XMin;YMin;XMax;YMax\na.png;144.6;-5;146.4;1000\na.png;0;0;144;256\n")
    found = read_annotations(tmp_path / "b.csv", ["a.png"])
    inside = found.seen("a.png", Preprocessing().frame(Image.new("RGB", (512, 256))), (224, 224), lambda label: True)
    assert inside.shape == (1, 224, 224)  # the crop begins at 144, and the second box ends there
    assert inside.any(dim=1)[0].nonzero()[:, 0].tolist() == [1]  # pixel 145, whose centre is 145.5; that of 144 is 144.5
    assert inside.sum() == 224


def test_a_tensor_of_a_data_set_is_a_crop_already_and_a_mask_is_read_at_the_centres_of_pixels() -> None:
    mask = torch.rand(9, 7) > 0.5
    assert torch.equal(sampled(mask, Frame((7, 9), Region(0, 0, 7, 9)), (9, 7)), mask)
    assert torch.equal(sampled(mask, Frame((7, 9), Region(1, 2, 5, 8)), (3, 2)), mask[3:8:2, 2:6:2])


def test_annotations_of_a_picture_of_another_size_and_masks_that_are_none_are_said(tmp_path: Path) -> None:
    other = Preprocessing((20, 20), 20).frame(Image.new("RGB", (40, 60)))
    for kind in ("voc", "coco box", "masks"):
        (tmp_path / kind).mkdir()
        found = read_annotations(KINDS[kind](tmp_path / kind), [NAME])
        with pytest.raises(ImageError, match=r"is of 60×40 pixels, and the picture has 40×60"):
            found.seen(NAME, other, (20, 20), lambda label: True)
    grey = tmp_path / "masks" / "masks" / "below" / "dog.png"
    Image.linear_gradient("L").resize(SIZE).save(grey)
    found = read_annotations(tmp_path / "masks" / "masks", [NAME])
    with pytest.raises(ImageError, match=r"the mask dog.png holds \d+ values: 0 and one other are needed"):
        seen(found, Preprocessing((20, 20), 20))
    grey.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"the mask dog.png cannot be read"):
        seen(found, Preprocessing((20, 20), 20))


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "I;16", "LA"])
def test_a_mask_may_be_a_picture_of_any_mode(mode: str, tmp_path: Path) -> None:
    folder = masks(tmp_path)
    grey = painted()
    picture = grey.point(lambda value: value // 255).convert("P") if mode == "P" else grey.convert(mode)
    picture.save(folder / "below" / "dog.png")
    whole = Preprocessing((40, 60), (40, 60))
    assert torch.equal(seen(read_annotations(folder, [NAME]), whole), (whole.crop(grey.convert("RGB"))[0] > 0)[None])


def test_colours_of_a_mask_are_told_apart_and_what_is_transparent_is_outside(tmp_path: Path) -> None:
    folder, whole = masks(tmp_path), Preprocessing((40, 60), (40, 60))
    grey, file = painted(), folder / "below" / "dog.png"
    expected = (whole.crop(grey.convert("RGB"))[0] > 0)[None]
    dark = Image.composite(Image.new("RGB", grey.size, (1, 0, 0)), Image.new("RGB", grey.size), grey)  # its luma is 0
    dark.save(file)
    assert torch.equal(seen(read_annotations(folder, [NAME]), whole), expected)
    white = Image.new("RGBA", grey.size, "white")
    white.putalpha(grey)
    white.save(file)
    assert torch.equal(seen(read_annotations(folder, [NAME]), whole), expected)
    dark.putpixel((0, 0), (0, 1, 0))
    dark.save(file)
    with pytest.raises(ImageError, match=r"the mask dog.png holds 3 values: 0 and one other are needed"):
        seen(read_annotations(folder, [NAME]), whole)


def test_a_digest_tells_other_regions_also_where_only_a_mask_s_pixels_differ(tmp_path: Path) -> None:
    folder = masks(tmp_path)
    before = read_annotations(folder, [NAME]).digest
    assert read_annotations(folder, [NAME]).digest == before
    painted((11, 7, 45, 31)).save(folder / "below" / "dog.png")
    assert read_annotations(folder, [NAME]).digest != before


BOX = "image,x0,y0,x1,y1\n"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("b.csv", "image,x,y\na,1,2\n", r"needs the columns 'image' and 'x0', 'y0', 'x1', 'y1'.*it has image, x, y"),
        ("b.csv", f"{BOX}{NAME},5,5,5,9\n", r"line 2: a box is x0 < x1 and y0 < y1, in pixels; got 5, 5, 5, 9"),
        ("b.csv", f"{BOX}{NAME},1,2,nan,9\n", r"line 2: a box is"),
        ("b.csv", f"{BOX}{NAME},1,2\n", r"line 2: a box is"),
        ("b.csv", f"{BOX}other.jpg,1,2,3,4\n", r"has no region for any of 1 picture \(below/dog.jpg, …\). It names other.jpg"),
        ("b.txt", "", r"regions are a CSV .* '.*b.txt' is none of these"),
        ("c.json", "[" * 100_000, r"could not be read as JSON"),
        ("c.json", "[]", r"is not a COCO instances file"),
        ("c.json", '{"images": [1], "annotations": []}', r"'images' must be a list of objects"),
        ("c.json", coco(image_id=4, bbox=[1, 1, 1, 1]), r"annotation 0 is of image 4, which 'images' does not name"),
        ("c.json", coco(bbox=[1, 1, 1, 1], category_id=9), r"annotation 0 is of category 9, which 'categories' does not name"),
        ("c.json", coco(bbox=[1, 1, 0, 5]), r"annotation 0 has neither a segmentation nor a bbox .* got \[1, 1, 0, 5\]"),
        ("c.json", coco(segmentation=[[1, 2, 3]]), r"annotation 0 has an invalid segmentation"),
        ("c.json", coco(segmentation={"size": [40, 60], "counts": [5, 10**9]}), r"annotation 0 has an invalid segmentation"),
        ("a/dog.xml", "<annotation><object><name>dog</name></object></annotation>", r"has an object without a box"),
        ("a/dog.xml", "<!DOCTYPE x><annotation/>", r"declares a document type"),
        ("a/other.xml", XML, r"has no region for any of 1 picture"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(file: str, content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_annotations(path.parent if path.suffix == ".xml" else path, [NAME])


def test_two_masks_of_one_picture_are_refused(tmp_path: Path) -> None:
    folder = masks(tmp_path)
    painted().save(folder / "below" / "dog.bmp")
    with pytest.raises(InputError, match=r"has two masks of one picture, dog.bmp and dog.png"):
        read_annotations(folder, [NAME])


def test_a_crowd_of_coco_is_no_object(tmp_path: Path) -> None:
    content = json.loads(coco(bbox=[11, 7, 34, 23]))
    content["annotations"].append(content["annotations"][0] | {"bbox": [0, 0, 60, 40], "iscrowd": 1})
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert len(read_annotations(tmp_path / "c.json", [NAME]).objects[NAME]) == 1
