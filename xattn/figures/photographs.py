"""Writes the maps of runs as overlays on the photographs, one file each."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from xattn.catalogue import is_direct
from xattn.data.images import ImageSource
from xattn.data.preprocessing import Preprocessing, Region
from xattn.errors import ImageError, InputError, NameUnknownError, RunError
from xattn.figures.run_data import source_of
from xattn.metrics.target_base import PER_LABEL
from xattn.overlays import CMAP, SIGNED_CMAP, Floats, OverlayStyle, is_signed, laid_over, overlay, shown_values
from xattn.progress import Progress
from xattn.study.moved import moved_pictures, picture_names_of
from xattn.study.questions import picture_names, shown_names
from xattn.study.schema import StoredMap
from xattn.study.store import Store

Format = Literal["png", "jpeg"]
Places = str | Path | Sequence[str | Path]
INDEX = "overlays.csv"
COLUMNS = ("file", "image", "model", "head", "method", "target", "predicted", "probability", "degenerate", *Region._fields)
LONGEST = 120  # bytes of a picture's name in a file name
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows does not allow
QUIET_S = 2.0


class _Place(NamedTuple):
    """Key of an overlay: the picture's name in the rows of all runs, and the target if a picture has several."""

    image: str
    model: str
    head: str
    method: str
    target: str


@dataclass(frozen=True)
class _Run:
    """A run whose overlays are written.

    Attributes:
        store: folder of the run.
        source: source of its pictures.
        models: their names in a joint table, by name and head.
        pictures: names in a joint table of the pictures that have a different name there.
        preprocessing: preprocessing by name and head.
    """

    store: Store
    source: ImageSource
    models: dict[tuple[str, str], str]
    pictures: dict[str, str]
    preprocessing: dict[tuple[str, str], Preprocessing]


def overlay_runs(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    images: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    style: OverlayStyle | None = None,
    form: Format = "png",
    maps: bool = False,
    moved_to: Places | None = None,
    progress: bool = True,
) -> list[tuple[str, str]]:
    """Writes every picture × method of some runs as an overlay on the full-size photograph, and `overlays.csv`, a list of them.

    Files are `PICTURE.METHOD.png`, in the pictures' original folders; if there are several classifiers, each has its own folder. Names
    consist of letters, digits and `-_.`; if two would be equal, or one is too long, a digest is appended.

    Args:
        runs: run folders.
        out: folder to write to.
        images: names as in the rows; all if None.
        methods: names as in the rows; all if None.
        style: colours, opacity, interpolation and contours; None: the default style.
        form: "png" or "jpeg".
        maps: also write the map at the photograph's size: `.npy`, float32 in [0, 1], NaN outside the region that the network used; and
            `.map.png`, 16 bits, 65535 times that value, 0 outside. Signed maps are in [-1, 1] in the `.npy`, and 32768 means 0 in the
            `.map.png`.
        moved_to: where the photographs are now; matched by name and content. None: where the runs found them.
        progress: after two seconds, show a progress bar if stderr is a terminal, log lines otherwise.

    Returns:
        Name and reason of each picture that could not be read.

    Raises:
        InputError: a run is on a data set in memory.
        NameUnknownError: the format, image or method does not exist in the runs.
        RunError: a run is damaged, or a folder cannot be written.
    """
    if form not in get_args(Format):
        raise NameUnknownError("format of overlays", str(form), get_args(Format))
    read = list(_read(runs, images, moved_to))
    shown = [run.pictures.get(image.name, image.name) for run in read for image in run.source.images]
    wanted = _wanted("image", images, shown)
    chosen = _wanted("method", methods, {method for run in read for method in run.store.read_run()["settings"]["methods"]})
    names = _Names(shown, [key for run in read for key in {(called, head): None for (_, head), called in run.models.items()}])
    writer = _Writer(Path(out), style or OverlayStyle(), form, maps)
    failed: dict[str, str] = {}
    with Progress(len(set(wanted or shown)) * len({key for run in read for key in run.models}), progress, QUIET_S) as bar:
        for run in read:
            for image, found in _by_picture(run, wanted, chosen):
                for (model, head), of_model in found.items():
                    try:
                        photograph = run.source.photograph(image, run.preprocessing[model, head])
                    except ImageError as error:
                        failed[image.name] = str(error)
                        continue
                    for method, stored in of_model:
                        per_label = str(stored.about["target_rule"]).startswith(PER_LABEL)
                        target = str(stored.about["target"]) if per_label else ""
                        place = _Place(run.pictures.get(image.name, image.name), run.models[model, head], head, method, target)
                        writer.add(place, names.of(place), photograph, stored)
                    bar.add(1)
    writer.finish()
    return list(failed.items())


def _read(runs: Sequence[str | Path], wanted: Sequence[str] | None, moved_to: Places | None) -> Iterator[_Run]:
    stores = [Store(run) for run in runs]
    about = [store.read_run() for store in stores]
    if moved_to is None:
        sources = [source_of(store, run) for store, run in zip(stores, about, strict=True)]
        renamed = picture_names(stores, [{image.name for image in source.images} for source in sources])
    else:
        names = [picture_names_of(store) for store in stores]
        renamed = picture_names(stores, list(map(set, names)))
        asked = [
            [name for name in of_run if wanted is None or called.get(name, name) in wanted]
            for of_run, called in zip(names, renamed, strict=True)
        ]
        sources = [moved_pictures(store, moved_to, of_run) for store, of_run in zip(stores, asked, strict=True)]
    for store, run, source, models, pictures in zip(stores, about, sources, shown_names(stores), renamed, strict=True):
        settings = run["settings"]
        preprocessing = {(m["name"], m["head"]): Preprocessing.from_json(m["preprocessing"]) for m in settings["models"]}
        yield _Run(store, source, models, pictures, preprocessing)


def _wanted(kind: str, asked: Sequence[str] | None, known: Iterable[str]) -> frozenset[str] | None:
    known = set(known)
    for name in asked or ():
        if name not in known:
            raise NameUnknownError(f"{kind} in these runs", name, known)
    return None if asked is None else frozenset(asked)


Found = dict[tuple[str, str], list[tuple[str, StoredMap]]]


def _by_picture(run: _Run, wanted: frozenset[str] | None, methods: frozenset[str] | None) -> Iterator[tuple[Any, Found]]:
    """Yields each picture of a part with its maps by model and head, so that it is decoded once for each."""
    known = {image.name: image for image in run.source.images}
    for part in run.store.maps_by_part():
        found: dict[str, Found] = {}
        for (name, model, head, method), stored in part:
            is_wanted = wanted is None or run.pictures.get(name, name) in wanted
            if is_wanted and (methods is None or method in methods):
                if (model, head) not in run.models:
                    raise RunError(
                        f"the maps in '{run.store.folder}' are of {model} · {head}, which its run.json does not name: it is damaged."
                    )
                found.setdefault(name, {}).setdefault((model, head), []).append((method, stored))
        for name, of_picture in found.items():
            if name not in known:
                raise InputError(f"'{name}' is no longer among the pictures of '{run.store.folder}'.")
            yield known[name], of_picture


class _Names:
    """File names of overlays.

    Args:
        pictures: names of all pictures.
        classifiers: model and head of all classifiers.
    """

    def __init__(self, pictures: Sequence[str], classifiers: Sequence[tuple[str, str]]) -> None:
        self._pictures = dict(zip(pictures, distinct([_stem(name) for name in pictures], pictures), strict=True))
        several = list(dict.fromkeys(classifiers))
        heads_differ = len({head for _, head in several}) > 1
        texts = [
            f"{model.rpartition(':')[2]}-{head}" if heads_differ and head not in model else model.rpartition(":")[2]
            for model, head in several
        ]
        folders = distinct([safe(text) for text in texts], [" ".join(key) for key in several])
        self._folders = dict(zip(several, folders, strict=True)) if len(several) > 1 else {}

    def of(self, place: _Place) -> str:
        """Returns the file of an overlay below the folder, without its extension."""
        folder = self._folders.get((place.model, place.head))
        last = ".".join([self._pictures[place.image], *(safe(text).replace(".", "_") for text in (place.method, place.target) if text)])
        return last if folder is None else f"{folder}/{last}"


def _stem(name: str) -> str:
    """Returns a picture's path without its extension, each folder made safe."""
    *folders, last = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")] or [name]
    return "/".join([*(safe(folder) for folder in folders), safe(os.path.splitext(last)[0])])


def safe(text: str) -> str:
    """Makes text safe as a file name: letters, digits and `-_.`, limited in length, not reserved by a system.

    >>> safe("score-cam:weighting=logit"), safe("../a b")
    ('score-cam_weighting_logit', '_a_b')
    """
    text = unicodedata.normalize("NFC", text)
    kept = "".join(character if character.isalnum() or character in "-_." else "_" for character in text).strip(".") or "_"
    if len(kept.encode()) > LONGEST:
        kept = f"{kept.encode()[:LONGEST].decode(errors='ignore').strip('.')}-{_digest(text)}"
    return f"{kept}-{_digest(text)}" if RESERVED.fullmatch(kept) else kept


def distinct(names: Sequence[str], of: Sequence[str]) -> list[str]:
    """Returns the names, with a digest appended where two things would have the same name, ignoring case."""
    meant: dict[str, set[str]] = {}
    for name, thing in zip(names, of, strict=True):
        meant.setdefault(name.casefold(), set()).add(thing)
    return [name if len(meant[name.casefold()]) == 1 else f"{name}-{_digest(thing)}" for name, thing in zip(names, of, strict=True)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


class _Writer:
    """Writes overlays into a folder, and lists them."""

    def __init__(self, folder: Path, style: OverlayStyle, form: Format, maps: bool) -> None:
        self.folder = folder
        self.style = style
        self.form = form
        self.maps = maps
        self._listed: list[tuple[Any, ...]] = []

    def add(self, place: _Place, name: str, photograph: tuple[Image.Image, Region], stored: StoredMap) -> None:
        """Writes an overlay."""
        picture, region = photograph
        signed = is_signed(place.method)
        values = shown_values(stored.raw, direct=is_direct(place.method), signed=signed)
        file = f"{name}.{'png' if self.form == 'png' else 'jpg'}"
        drawn = overlay(picture, values, region, self.style, SIGNED_CMAP if signed else CMAP)
        how: dict[str, Any] = {"compress_level": 3} if self.form == "png" else {"quality": 92}
        try:
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            drawn.save(self.folder / file, format=self.form.upper(), **how)
            if self.maps:
                self._write_map(name, laid_over(values, (picture.height, picture.width), region, self.style.interpolation), signed)
        except OSError as error:
            raise RunError(f"'{self.folder / file}' could not be written ({error.strerror or error}).") from error
        about = stored.about
        facts = (about["target"], about["predicted"], about["probability"], about["degenerate"])
        self._listed.append((file, *place[:4], *facts, *(round(edge, 3) for edge in region)))

    def _write_map(self, name: str, values: Floats, signed: bool) -> None:
        levels = (np.nan_to_num(values, nan=0.5 if signed else 0.0) * 65535).round()
        np.save(self.folder / f"{name}.npy", 2 * values - 1 if signed else values)
        size = (values.shape[1], values.shape[0])
        Image.frombytes("I;16", size, levels.astype("<u2").tobytes()).save(self.folder / f"{name}.map.png")

    def finish(self) -> None:
        """Writes the list of overlays."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / INDEX, "w", encoding="utf-8", newline="") as file:
                lines = csv.writer(file)
                lines.writerow(COLUMNS)
                lines.writerows(self._listed)
        except OSError as error:
            raise RunError(f"'{self.folder / INDEX}' could not be written ({error.strerror or error}).") from error
