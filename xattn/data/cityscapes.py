"""Cityscapes in its published layout: street pictures, each with a map of the class of every pixel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from xattn.data.pictures import SUFFIXES
from xattn.errors import InputError
from xattn.text import counted

COUNTS = {"train": 2_975, "val": 500}
"""Pictures of each split of the finely annotated ones whose labels are published."""
CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain"),
    *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Of the classes in order, the values in the files of kind labelIds."""
LAST_ID = 33
IGNORED = 255
PICTURES, LABELS = "leftImg8bit", "gtFine"
KINDS = ("labelTrainIds", "labelIds")
ARCHIVES = {PICTURES: "leftImg8bit_trainvaltest.zip", LABELS: "gtFine_trainvaltest.zip"}
AT_ONCE = 8  # files that are read at once


@dataclass(frozen=True)
class LabelMaps:
    """The class of every pixel of some pictures.

    Attributes:
        paths: a PNG of 8 bits for each picture.
        table: 256 entries: a value in a file → class index, `IGNORED` for pixels that do not count, −1 for values that no file may have.
    """

    paths: tuple[Path, ...]
    table: tuple[int, ...]

    def read(self, number: int, size: tuple[int, int] | None = None) -> Image.Image:
        """The label map of a picture, in grey: the class index of each pixel, or `IGNORED`.

        Args:
            number: of the picture.
            size: width and height of the picture; None: they are not compared.

        Raises:
            InputError: the file is missing, damaged, of another kind or size, or has a value that is no class.
        """
        path = self.paths[number]
        try:
            with Image.open(path) as opened:
                opened.load()
                found: Image.Image = opened
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            why = getattr(error, "strerror", None) or error
            raise InputError(f"'{path}' cannot be read ({why}): unpack {ARCHIVES[LABELS]} again.") from error
        if found.mode not in ("L", "P"):
            raise InputError(f"'{path}' is a picture of mode {found.mode}: a label map must have one channel of 8 bits.")
        if size is not None and found.size != size:
            came, wanted = (f"{width} × {height} pixels" for width, height in (found.size, size))
            raise InputError(f"'{path}' has {came}, and its picture {wanted}: a label map must have the size of its picture.")
        if found.mode == "P":  # its values are the indices, whatever their colours
            found = Image.frombytes("L", found.size, found.tobytes())
        if wrong := [value for _, value in found.getcolors() or () if self.table[int(str(value))] < 0]:
            raise InputError(f"'{path}' has the label {wrong[0]}, which is not one of the {len(set(self.table) - {IGNORED, -1})} classes.")
        return found.point([max(0, entry) for entry in self.table])

    def shown(self, number: int, size: tuple[int, int] | None = None) -> frozenset[int]:
        """The classes that a picture shows.

        Args:
            number: of the picture.
            size: width and height of the picture; None: they are not compared.

        Raises:
            InputError: as for `read`.
        """
        return frozenset(int(str(value)) for _, value in self.read(number, size).getcolors() or ()) - {IGNORED}

    def renumbered(self, index: tuple[int, ...]) -> LabelMaps:
        """The same maps with class `k` renumbered to `index[k]`."""
        return LabelMaps(self.paths, tuple(index[entry] if 0 <= entry < len(index) else entry for entry in self.table))


def read_cityscapes(where: str, folder: Path, split: str) -> tuple[Path, dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The pictures of a split with their label vectors: an entry is 1 where some pixel is of the class, else 0.

    Args:
        where: the data set in messages.
        folder: with `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_labelTrainIds.png` or `…labelIds.png`. Data
            of your own in this layout name their classes in `classes.txt`, in the order of the labelTrainIds, one per line; without it
            they are the 19 of Cityscapes.
        split: "train" or "val".

    Returns:
        The folder of the split's pictures, label vectors by file, and the names of the classes.

    Raises:
        InputError: a file is missing, which is named, or damaged: a picture without a label map, or a label map without a picture; a
            picture of another name; a label that is no class; a label map of another size than its picture.
    """
    classes = classes_of(folder)
    pictures = folder / PICTURES / split
    if not pictures.is_dir():
        raise InputError(f"{where} needs {pictures}, as in {ARCHIVES[PICTURES]}.")
    ending = f"_{PICTURES}.png"
    files = sorted(f"{path.parent.name}/{path.name}" for path in _shown(pictures, "*") if path.suffix.lower() in SUFFIXES)
    if odd := [file for file in files if not file.endswith(ending)]:
        raise InputError(f"{where}: {pictures / odd[0]} is not a file name of Cityscapes, such as aachen_000000_000019{ending}.")
    labels = [
        f"{path.parent.name}/{path.name.removesuffix(f'_{LABELS}_{kind}.png')}{ending}"
        for kind in KINDS
        for path in _shown(folder / LABELS / split, f"*_{LABELS}_{kind}.png")
    ]
    if missing := sorted({*labels} - {*files}):
        count = counted(len(missing), "label map has", "label maps have")
        raise InputError(f"{where} needs {pictures / missing[0]}, as in {ARCHIVES[PICTURES]}; {count} no picture.")
    maps = label_maps(where, folder, split, files)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda number: maps.shown(number, _size_of(pictures / files[number])), range(len(files))))
    vectors = {file: tuple(int(k in shown) for k in range(len(classes))) for file, shown in zip(files, found, strict=True)}
    return pictures, vectors, classes


def _shown(folder: Path, pattern: str) -> list[Path]:
    """The files of the cities of a folder that are not hidden."""
    return [path for path in folder.glob(f"*/{pattern}") if not path.name.startswith(".")]


def _size_of(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture by its header; None if it cannot be read, which is said where the picture is."""
    try:
        with Image.open(path) as opened:
            return opened.size
    except (OSError, SyntaxError, ValueError):
        return None


def classes_of(folder: Path) -> tuple[str, ...]:
    """The names of the classes: those in `classes.txt`, else the 19 of Cityscapes.

    Raises:
        InputError: the file is damaged, or names no two classes, or one twice.
    """
    path = folder / "classes.txt"
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except FileNotFoundError:
        return CLASSES
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read, or is not UTF-8 text ({error}).") from error
    if not 2 <= len(set(names)) == len(names) < IGNORED:
        raise InputError(f"'{path}' has {len(names)} names, {len(set(names))} of them distinct: 2 to {IGNORED - 1} are needed.")
    return names


def label_maps(where: str, folder: Path, split: str, files: list[str]) -> LabelMaps:
    """The label maps of some pictures, all of one kind: labelTrainIds if the first picture has one, else labelIds.

    Args:
        where: the data set in messages.
        folder: with the folders of pictures and labels.
        split: "train" or "val".
        files: `CITY/*_leftImg8bit.png`.

    Raises:
        InputError: a file is missing; the first is named.
    """
    classes, maps = classes_of(folder), folder / LABELS / split
    stems = [file.removesuffix(f"_{PICTURES}.png") for file in files]
    candidates = {kind: [maps / f"{stem}_{LABELS}_{kind}.png" for stem in stems] for kind in KINDS}
    kind = next((kind for kind, paths in candidates.items() if paths and paths[0].is_file()), KINDS[0])
    if missing := [path for path in candidates[kind] if not path.is_file()]:
        other = f", or {KINDS[1]}" if kind == KINDS[0] else ""
        raise InputError(f"{where} needs {missing[0]}{other}, as in {ARCHIVES[LABELS]}; it lacks {len(missing)} of {len(files)}.")
    if kind == KINDS[1] and classes is not CLASSES:
        raise InputError(f"{where} has a classes.txt, which applies to maps of kind {KINDS[0]}; its maps are of kind {KINDS[1]}.")
    if kind == KINDS[0]:
        table = [*range(len(classes)), *[-1] * (256 - len(classes))]
    else:
        table = [IDS.index(value) if value in IDS else IGNORED if value <= LAST_ID else -1 for value in range(256)]
    table[IGNORED] = IGNORED
    return LabelMaps(tuple(candidates[kind]), tuple(table))
