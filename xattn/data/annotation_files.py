"""Readers of annotation files: CSV of boxes, COCO's JSON, VOC's XML, folders of mask images."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from xattn.data import urls
from xattn.data.annotations import AnnotatedObject, Annotations, DrawnMask, Shape, box, is_side, mask_images
from xattn.data.depth import MAX_PIXELS
from xattn.data.labels import SEPARATORS, file_content
from xattn.data.voc import read_annotation
from xattn.deferred import torch
from xattn.errors import ImageError, InputError, MissingPackageError
from xattn.text import counted, shown

if TYPE_CHECKING:
    from torch import Tensor

Objects = dict[str, tuple[AnnotatedObject, ...]]
Sizes = dict[str, tuple[int, int]]

TAKEN = (
    "a CSV with columns image, x0, y0, x1, y1 and perhaps label, COCO's JSON, a folder of VOC's XML, or a folder of masks with the "
    "pictures' names"
)
IMAGE_COLUMNS = ("image", "file_name")
EDGE_COLUMNS = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))


def read_annotations(place: str | Path, names: Sequence[str]) -> Annotations:
    """Reads the objects of pictures.

    Args:
        place: a CSV, COCO's JSON, or a folder of VOC's XML or of mask images.
        names: names of the pictures.

    Raises:
        InputError: the place is none of these, cannot be read, or has no object of any of the pictures.
        MissingPackageError: COCO's polygons or masks need pycocotools, which is not installed.
    """
    given = urls.without_file_scheme(str(place))
    suffix = PurePosixPath(given).suffix.lower()
    if not urls.is_url(given) and os.path.isdir(given):
        objects, sizes = _folder(Path(given), names)
    elif suffix == ".json":
        objects, sizes = _coco(given)
    elif suffix == ".csv":
        objects, sizes = _table(given), {}
    else:
        raise InputError(f"regions are {TAKEN}; '{given}' is none of these.")
    wanted = set(names)
    found = {name: some for name, some in objects.items() if name in wanted}
    if not found:
        known = ", ".join(list(objects)[:3]) or "no picture"
        raise InputError(
            f"{given} has no region for any of {counted(len(names), 'picture')} ({', '.join(names[:3])}, …). It names "
            f"{shown(known[:200])}: paths relative to the given folder are needed."
        )
    return Annotations(given, found, {name: size for name, size in sizes.items() if name in found})


def _folder(folder: Path, names: Sequence[str]) -> tuple[Objects, Sizes]:
    files = sorted(Path(parent) / name for parent, _, found in os.walk(folder) for name in found if not name.startswith("."))
    if any(file.suffix.lower() == ".xml" for file in files):
        return _voc(folder, files, names)
    return mask_images(folder, files, names), {}


def _table(path: str) -> Objects:
    """Reads the boxes of a CSV; each row is one box of a picture."""
    found: dict[str, list[AnnotatedObject]] = {}
    try:
        with io.TextIOWrapper(io.BytesIO(file_content(path)), newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(SEPARATORS, key=head.count))
            columns = {column.strip().lower(): column for column in reversed(reader.fieldnames or [])}
            image = next((columns[name] for name in IMAGE_COLUMNS if name in columns), None)
            edges = next(([columns[name] for name in some] for some in EDGE_COLUMNS if all(name in columns for name in some)), None)
            if image is None or edges is None:
                has = shown(", ".join(reader.fieldnames or [])[:80], keep="") or "none"
                raise InputError(
                    f"{path} needs the columns 'image' and 'x0', 'y0', 'x1', 'y1', the edges of a box in pixels (or xmin, ymin, xmax, "
                    f"ymax), in its first line; it has {has}."
                )
            for row in reader:
                try:
                    shape = box([float(row[edge]) for edge in edges])
                except (TypeError, ValueError):
                    shape = None
                if shape is None:
                    said = ", ".join(str(row[edge])[:20] for edge in edges)
                    raise InputError(f"{path}, line {reader.line_num}: a box is x0 < x1 and y0 < y1, in pixels; got {shown(said)}.")
                label = (row.get(columns.get("label", "")) or "").strip() or None
                found.setdefault((row[image] or "").removeprefix("./"), []).append(AnnotatedObject(shape, label))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} could not be read as CSV ({error}): it is not UTF-8 text. Save it as UTF-8.") from error
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} could not be read as CSV ({error}).") from error
    return {name: tuple(some) for name, some in found.items()}


def _voc(folder: Path, files: Sequence[Path], names: Sequence[str]) -> tuple[Objects, Sizes]:
    """Reads the boxes of VOC's annotations, from the file with the picture's path or name; difficult objects are left out.

    VOC counts pixels from 1 and includes the last pixel of a box: 1, 1, W, H is the whole picture.
    """
    of_path = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files if file.suffix.lower() == ".xml"}
    of_name: dict[str, Path] = {}
    for stem, file in of_path.items():
        of_name.setdefault(PurePosixPath(stem).name, file)
    objects: Objects = {}
    sizes: Sizes = {}
    for name in names:
        path = PurePosixPath(name).with_suffix("")
        found = of_path.get(path.as_posix()) or of_name.get(path.name)
        if found is None:
            continue
        tree = read_annotation(found)
        some = []
        for item in tree.findall("object"):
            if (item.findtext("difficult") or "0").strip() == "1":
                continue
            texts = [item.findtext(f"bndbox/{edge}") for edge in EDGE_COLUMNS[1]]
            try:
                left, top, right, bottom = (float(text or "") for text in texts)
                shape = box((left - 1, top - 1, right, bottom))
            except ValueError:
                shape = None
            if shape is None:
                raise InputError(f"'{found}' has an object without a box: xmin ≤ xmax and ymin ≤ ymax are needed; got {texts}.")
            some.append(AnnotatedObject(shape, (item.findtext("name") or "").strip() or None))
        objects[name] = tuple(some)
        width, height = ((tree.findtext(f"size/{side}") or "0").strip() for side in ("width", "height"))
        if width.isdecimal() and height.isdecimal() and int(width) and int(height):  # some files say 0
            sizes[name] = int(width), int(height)
    return objects, sizes


def _coco(path: str) -> tuple[Objects, Sizes]:
    """Reads the objects of a COCO file: masks if it has them, else boxes; crowds are left out."""
    try:
        content = json.loads(file_content(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} could not be read as JSON ({error}).") from error
    parts = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")]
    if not isinstance(parts[0], list) or not isinstance(parts[1], list):
        raise InputError(f"{path} is not a COCO instances file: it needs the lists 'images' and 'annotations'.")
    images, annotations = _dicts(path, "images", parts[0]), _dicts(path, "annotations", parts[1])
    classes = {each.get("id"): each["name"] for each in _dicts(path, "categories", parts[2] or []) if isinstance(each.get("name"), str)}
    of_id = {each.get("id"): each for each in images if isinstance(each.get("file_name"), str)}
    found: dict[str, list[AnnotatedObject]] = {}
    for number, annotation in enumerate(annotations):
        image = of_id.get(annotation.get("image_id"))
        if image is None:
            raise InputError(f"{path}: annotation {number} is of image {annotation.get('image_id')!r:.40}, which 'images' does not name.")
        if annotation.get("iscrowd") == 1:
            continue
        category = annotation.get("category_id")
        if category is not None and category not in classes:
            raise InputError(f"{path}: annotation {number} is of category {category!r:.40}, which 'categories' does not name.")
        shape = _coco_shape(f"{path}: annotation {number}", annotation, image)
        found.setdefault(image["file_name"], []).append(AnnotatedObject(shape, None if category is None else classes[category]))
    sizes = {each["file_name"]: (each["width"], each["height"]) for each in of_id.values() if _has_size(each)}
    return {name: tuple(some) for name, some in found.items()}, sizes


def _dicts(path: str, what: str, given: object) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not all(
        isinstance(each, dict) and isinstance(each.get("id"), (int, str, type(None))) for each in given
    ):
        raise InputError(f"{path}: '{what}' must be a list of objects with an id, as in COCO; it is not.")
    found: list[dict[str, Any]] = given
    return found


def _has_size(image: Mapping[str, Any]) -> bool:
    width, height = image.get("width"), image.get("height")
    return is_side(width) and is_side(height) and int(width or 0) * int(height or 0) <= MAX_PIXELS


def _coco_shape(where: str, annotation: Mapping[str, Any], image: Mapping[str, Any]) -> Shape:
    if given := annotation.get("segmentation"):
        if not _has_size(image):
            raise InputError(f"{where} has a segmentation, but its image has no width and height.")
        width, height = image["width"], image["height"]
        if not _is_segmentation(given, width, height):
            raise InputError(f"{where} has an invalid segmentation: it needs polygons of x, y, … or the runs of {width}×{height} pixels.")
        if importlib.util.find_spec("pycocotools") is None:
            raise MissingPackageError("pycocotools", "coco", "a COCO file with polygons or masks")
        return DrawnMask(partial(_drawn, given, width, height), json.dumps(given, sort_keys=True), (width, height))
    edges = annotation.get("bbox")
    if isinstance(edges, list) and len(edges) == 4 and all(_is_number(edge) for edge in edges):
        x, y, across, down = map(float, edges)
        if (shape := box((x, y, x + across, y + down))) is not None:
            return shape
    raise InputError(f"{where} has neither a segmentation nor a bbox of x, y, width, height; got {edges!r:.80}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_segmentation(given: object, width: int, height: int) -> bool:
    """Checks whether pycocotools, which checks little, can read a segmentation."""
    if isinstance(given, list):
        return all(isinstance(each, list) and len(each) >= 6 and len(each) % 2 == 0 and all(map(_is_coordinate, each)) for each in given)
    if not isinstance(given, dict) or given.get("size") != [height, width]:
        return False
    counts = given.get("counts")
    if isinstance(counts, list):
        return all(isinstance(count, int) and count >= 0 for count in counts) and sum(counts) == width * height
    return isinstance(counts, str) and all("0" <= sign <= "o" for sign in counts)


def _is_coordinate(value: object) -> bool:
    return _is_number(value) and abs(float(value)) < MAX_PIXELS  # type: ignore[arg-type]


def _drawn(given: Any, width: int, height: int) -> Tensor:
    """Decodes the mask `(h, w)` of a COCO segmentation."""
    tool = importlib.import_module("pycocotools.mask")
    try:
        if isinstance(given, list):
            runs = tool.merge(tool.frPyObjects(given, height, width))
        else:
            runs = given if isinstance(given["counts"], str) else tool.frPyObjects(given, height, width)
        return torch.from_numpy(tool.decode(runs)) != 0
    except Exception as error:  # pycocotools has no errors of its own
        raise ImageError(f"a segmentation cannot be read by pycocotools ({error})") from error
