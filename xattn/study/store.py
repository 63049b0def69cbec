"""A run folder: `run.json`, `images.json`, `parts/*.parquet`, and the tables made from them.

Every file is written atomically (`folders`). A part is the work of one batch; an interrupted run keeps its finished parts and computes the
others when it resumes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from xattn.deferred import pandas as pd
from xattn.errors import RunError
from xattn.study.differences import differing, known_before
from xattn.study.folders import LocalFolder, folder_at
from xattn.study.parts import read_part
from xattn.study.run_json import contents_json, run_json
from xattn.study.schema import (
    COLUMNS,
    SCHEMA,
    CurveKey,
    StoredCurve,
    StoredLooks,
    StoredMap,
    stored_looks,
    stored_map,
)
from xattn.study.summary import PictureNotes, Summary
from xattn.study.values import READ, values_of
from xattn.text import counted

logger = logging.getLogger("xattn")

PARTS, PART = "parts", ".parquet"
CONTENTS = "images.json"
GROWING = ("methods", "metrics")
"""Settings of a run that can be extended."""


class Store:
    """A run folder: reads and writes its files.

    Args:
        folder: a path, or a URL that fsspec can open; created by `begin`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.files = folder_at(folder)
        self.folder: Path | str = self.files.path if isinstance(self.files, LocalFolder) else self.files.url

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from writing a run into the folder while the context is open.

        Raises:
            RunError: another process is writing a run into it.
        """
        return self.files.locked()

    def begin(self, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Creates the folder, or resumes a run that was begun there with the same settings.

        Raises:
            RunError: the folder holds a run with other settings, holds something else, or cannot be written.
        """
        if self.begun:
            if differences := self.differences(settings, notes.get("protocol", {})):
                shown = "; ".join(differences[:6]) + ("; …" if len(differences) > 6 else "")
                raise RunError(
                    f"'{self.folder}' holds a run with other settings: give another folder, or the same settings to continue. {shown}. "
                    "Only methods and metrics can be added."
                )
            before = self.read_run()["settings"]
            if more := [spec for key in GROWING for spec in before[key] if spec not in settings[key]]:
                raise RunError(f"'{self.folder}' was extended by {', '.join(more)} meanwhile: run the same command again.")
            self.files.tidy()
            return
        if set(self.files.top()) - {PARTS} or self.done():
            raise RunError(f"'{self.folder}' is not empty and holds no run.json. Give a new or empty folder.")
        self.write_text("run.json", _json({"settings": settings, **notes}))

    @property
    def begun(self) -> bool:
        """Checks whether the folder holds a run."""
        return self.files.exists("run.json")

    def differences(self, settings: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
        """Returns settings in which the run in the folder differs from another run, except for additional methods or metrics.

        Args:
            settings: settings of the other run.
            protocol: all settings of its methods and metrics.
        """
        run = self.read_run()
        before, now = ({key: value for key, value in of.items() if key not in GROWING} for of in (run["settings"], _plain(settings)))
        if self.contents():  # these show whether pictures in another place are the same
            now["images"]["origin"] = before["images"]["origin"]
        if not before.get("regions"):  # nothing in the run depends on them
            now.pop("regions", None)
        kept, same = run.get("protocol", {}), _plain(protocol)
        common = {spec: about for spec, about in kept.items() if spec in same}
        asked = {spec: known_before(same[spec], about) for spec, about in common.items()}
        return [*differing(before, now), *differing(common, asked, "protocol")]

    def added(self, settings: Mapping[str, Any]) -> dict[str, list[str]]:
        """Returns the methods and metrics in some settings that the run in the folder lacks, under "methods" and "metrics"."""
        before = self.read_run()["settings"]
        found = {key: [spec for spec in settings[key] if spec not in before[key]] for key in GROWING}
        return {key: specs for key, specs in found.items() if specs}

    def extend(self, settings: Mapping[str, Any], about: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Records in `run.json` that methods and metrics are added: from now on it lists all of them, and marks their rows as incomplete.

        Args:
            settings: the settings with all methods and metrics.
            about: when and how they were added.
            notes: entries of `run.json` that change with the addition.
        """
        run = {name: entry for name, entry in self.read_run().items() if name != "sequence"}  # its sequence was of the earlier methods
        added = [*run.get("added", []), {**about, **self.added(settings), "finished": False}]
        self.write_text("run.json", _json({**run, **notes, "settings": settings, "added": added}))

    def note(self, **entries: Any) -> None:
        """Adds entries to `run.json`."""
        self.write_text("run.json", _json({**self.read_run(), **entries}))

    def read_run(self) -> dict[str, Any]:
        """Returns the content of `run.json`.

        Raises:
            RunError: there is no run.json, or it is damaged.
        """
        try:
            return run_json(self.files.read("run.json"))
        except FileNotFoundError as error:
            raise RunError(f"'{self.folder}' is not a run: it has no run.json. Give a folder that `xattn explain --out` wrote.") from error
        except OSError as error:
            raise RunError(f"'{self.folder}/run.json' could not be read ({error.strerror or error}).") from error
        except ValueError as error:
            reason = str(error).removesuffix(".")
            raise RunError(f"'{self.folder}/run.json' is damaged: {reason}. Use another folder, or restore the file.") from error

    def done(self) -> set[str]:
        """Returns the names of the parts that exist."""
        return {Path(name).stem for name in self.files.listed(PARTS, PART)}

    def part(self, name: str) -> pa.Table | None:
        """Returns the rows of a part; None if it does not exist.

        Raises:
            RunError: the part is damaged.
        """
        file = f"{PARTS}/{name}{PART}"
        return self._part(file) if self.files.exists(file) else None

    @property
    def finished(self) -> bool:
        """Checks whether the tables exist and hold all methods and metrics of the run."""
        return self.files.exists("table.csv") and all(entry["finished"] for entry in self.read_run().get("added", []))

    def table(self) -> pd.DataFrame:
        """Returns the content of `table.csv`.

        Raises:
            RunError: the run is not finished.
        """
        if not self.finished:
            raise RunError(f"'{self.folder}' has no table yet: call run() first.")
        try:
            return pd.read_csv(io.BytesIO(self.files.read("table.csv")))
        except (OSError, ValueError) as error:
            raise RunError(f"'{self.folder}/table.csv' is damaged ({error}): call run() again, which makes it from the parts.") from error

    def write_part(self, name: str, table: pa.Table) -> None:
        """Writes one part atomically, and replaces an existing one of that name.

        Raises:
            RunError: the part could not be written, for example because the disk is full; earlier parts are kept.
        """
        with self.whole(Path(PARTS) / f"{name}{PART}") as path:
            pq.write_table(table, path, compression="zstd")

    def write_text(self, name: str, text: str) -> None:
        """Writes a small file atomically."""
        with self.whole(Path(name)) as path:
            path.write_text(text, encoding="utf-8")

    def whole(self, name: Path) -> contextlib.AbstractContextManager[Path]:
        """Yields a local path to write to; the file becomes `name` in the folder when it is complete."""
        return self.files.whole(name)

    def tables(self, columns: Collection[str] | None = None, *, encoded: bool = False) -> Iterator[pa.Table]:
        """Yields the parts in order, one in memory at a time; an image that failed in the same way for every classifier has one row.

        Args:
            columns: columns to read, including `image`, `model` and `error`; None: all.
            encoded: keep texts as dictionaries and indices.
        """
        told: set[str] = set()
        for part in self.files.listed(PARTS, PART):
            table = self._part(part, columns=columns, encoded=encoded)
            has_failed = pa.compute.and_(pa.compute.is_null(table["model"]), pa.compute.is_valid(table["error"]))
            if pa.compute.any(has_failed).as_py():
                failed = pa.compute.if_else(has_failed, table["image"].cast(pa.string()), pa.scalar(None, pa.string())).to_pylist()
                keep = [name is None or name not in told for name in failed]
                told.update(name for name in failed if name is not None)
                table = table if all(keep) else table.filter(pa.array(keep))
            yield table

    def _part(
        self, part: str, images: Iterable[str] | None = None, columns: Collection[str] | None = None, *, encoded: bool = False
    ) -> pa.Table:
        """Reads a part in the schema: some or all images and columns, with texts plain or as dictionaries and indices.

        Raises:
            RunError: the part is damaged.
        """
        try:
            with self.files.opened(part) as source:
                return read_part(source, images, columns, encoded=encoded)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0].removesuffix(".")
            raise RunError(
                f"'{self.folder}/{part}' is damaged ({reason}). Delete it and run the same command: only that part is computed again."
            ) from error

    def same_contents(self, names: Sequence[str], digests: Sequence[str | None]) -> None:
        """Stores the digests of the pictures' contents, or compares them with those stored when the run began.

        Args:
            names: names of the images.
            digests: None for pictures that cannot be read now.

        Raises:
            RunError: a picture has changed since the run began.
        """
        before = self.contents()
        now = dict(zip(names, digests, strict=True))
        other = [name for name, digest in now.items() if None not in (digest, before.get(name)) and digest != before[name]]
        if other:
            shown = ", ".join(other[:3]) + (", …" if len(other) > 3 else "")
            raise RunError(
                f"{counted(len(other), 'picture has', 'pictures have')} other content than when the run in '{self.folder}' began "
                f"({shown}), and the finished rows belong to the old content: put the pictures back, or give another folder."
            )
        merged = {name: digest or before.get(name) for name, digest in now.items()}
        if merged != before:
            self.write_text(CONTENTS, _json(merged))

    def contents(self) -> dict[str, str | None]:
        """Returns the digests of the pictures' contents, by name; empty for a data set in memory."""
        if not self.files.exists(CONTENTS):
            return {}
        try:
            return contents_json(self.files.read(CONTENTS))
        except (OSError, ValueError) as error:
            raise RunError(
                f"'{self.folder}/{CONTENTS}' is damaged ({str(error).removesuffix('.')}). If the pictures are those that the run began "
                "with, delete it and run the same command."
            ) from error

    def finish(self, metrics: Sequence[str], classes: Mapping[tuple[str, str], int] | None = None) -> list[tuple[str, str]]:
        """Writes `scores.csv` and `table.csv` from the parts; memory does not grow with the number of images.

        `run.json` gets as `pixels` how pictures of more than 8 bits were scaled, and as `without_region` and `without_parts` the number of
        pictures without a region, or for which a metric of parts is not available, by reason. A warning is logged if the labels seem to be
        those of other classes.

        Args:
            metrics: names of the metrics as in the rows.
            classes: number of classes of each classifier, by its name and head.

        Returns:
            Name and reason of each image that failed.
        """
        summary, notes = Summary(metrics), PictureNotes()
        schema = pa.schema([SCHEMA.field(name) for name in COLUMNS])
        with (
            self.whole(Path("scores.csv")) as path,
            pacsv.CSVWriter(path, schema, write_options=pacsv.WriteOptions(quoting_style="needed")) as writer,
        ):
            for table in self.tables([*COLUMNS, "pixels"]):
                summary.add(table)
                notes.add(table)
                is_row = pa.compute.or_(pa.compute.is_valid(table["metric"]), pa.compute.is_valid(table["error"]))
                writer.write_table(table.select(list(COLUMNS)).filter(is_row))
        with self.whole(Path("table.csv")) as path:
            summary.frame().to_csv(path, index=False)
        for (model, head), counts in summary.label_counts.items():
            if (count := (classes or {}).get((model, head))) and (warning := counts.warning(count)):
                logger.warning("%s · %s: %s", model, head, warning)
        if entries := notes.entries():
            self.note(**entries)
        if self.begun and not self.finished:
            self.note(added=[{**entry, "finished": True} for entry in self.read_run()["added"]])
        return list(notes.failed.items())

    def rows(self) -> pd.DataFrame:
        """Returns all rows of `scores.csv`, read from the parts."""
        kept = [table.select(list(COLUMNS)).filter(pa.compute.is_valid(table["metric"])) for table in self.tables(COLUMNS)]
        if not kept:
            raise RunError(f"'{self.folder}' has no finished part yet.")
        frame: pd.DataFrame = pa.concat_tables(kept).to_pandas()
        return frame

    def failed(self) -> list[tuple[str, str]]:
        """Returns name and reason of each image that failed."""
        found: dict[str, str] = {}
        for table in self.tables(("image", "model", "error")):
            if table["error"].null_count < len(table):
                found |= {row["image"]: row["error"] for row in table.filter(pa.compute.is_valid(table["error"])).to_pylist()}
        return list(found.items())

    def values(self) -> pd.DataFrame:
        """Returns the rows of `scores.csv` with the columns that tables and figures need, about 30 bytes per row: texts are categories.

        Raises:
            RunError: no part is finished, or one is damaged.
        """
        frame = values_of(self.tables(READ, encoded=True))
        if frame is None:
            raise RunError(f"'{self.folder}' has no finished part yet.")
        return frame

    def maps_by_target(
        self, images: Iterable[str], methods: Iterable[str] | None = None
    ) -> dict[tuple[str, str, str, str, str], StoredMap]:
        """Returns raw maps of some images, by image, target, model, head and method."""
        chosen = None if methods is None else set(methods)
        return {
            (row["image"], row["target"], row["model"], row["head"], row["method"]): stored_map(row)
            for row in self._map_rows(images)
            if row["method"] is not None and (chosen is None or row["method"] in chosen)
        }

    def maps(self, images: Iterable[str], methods: Iterable[str] | None = None) -> dict[tuple[str, str, str, str], StoredMap]:
        """Returns raw maps of some images, by image, model, head and method; of an image with several targets, the map of the last one."""
        found = self.maps_by_target(images, methods)
        return {(image, model, head, method): kept for (image, _, model, head, method), kept in found.items()}

    def maps_by_part(self) -> Iterator[list[tuple[tuple[str, str, str, str], StoredMap]]]:
        """Yields all raw maps with their image, model, head and method, one part in memory at a time."""
        for part in self.files.listed(PARTS, PART):
            table = self._part(part)
            rows = table.filter(pa.compute.and_(pa.compute.is_valid(table["map"]), pa.compute.is_valid(table["method"]))).to_pylist()
            yield [((row["image"], row["model"], row["head"], row["method"]), stored_map(row)) for row in rows]

    def ranked(self, images: Iterable[str]) -> dict[tuple[str, str, str], StoredMap]:
        """Returns ranked maps `(N, h, w)` of some images, by image, model and head, for heads that have several maps."""
        return {(row["image"], row["model"], row["head"]): stored_map(row) for row in self._map_rows(images) if row["method"] is None}

    def looks(self, images: Iterable[str]) -> dict[tuple[str, str, str], StoredLooks]:
        """Returns the patches and step weights of two-stream networks for some images, by image, model and head."""
        rows = (row for row in self._map_rows(images) if row["boxes"] is not None and row["alpha"] is not None)
        return {(row["image"], row["model"], row["head"]): stored_looks(row) for row in rows}

    def curves(self, images: Iterable[str] | None = None) -> dict[CurveKey, StoredCurve]:
        """Returns the curves that metrics followed, by image, model, head, method, metric and target.

        A curve that several metrics follow is stored with the first of them, in the order of the run.
        """
        return dict(self.each_curve(images))

    def each_curve(self, images: Iterable[str] | None = None) -> Iterator[tuple[CurveKey, StoredCurve]]:
        """Yields the items of `curves`, one part in memory at a time."""
        wanted = None if images is None else pa.array(sorted(set(images)))
        keys = ["image", "model", "head", "method", "metric", "target"]
        for table in self.tables([*keys, "error", "shares", "curve"]):
            kept = table.select([*keys, "shares", "curve"]).filter(pa.compute.is_valid(table["curve"]))
            if wanted is not None:
                kept = kept.filter(pa.compute.is_in(kept["image"], value_set=wanted))
            for row in kept.to_pylist():
                key = (row["image"], row["model"], row["head"], row["method"], row["metric"], row["target"])
                yield key, StoredCurve(row["shares"], row["curve"])

    def _map_rows(self, images: Iterable[str]) -> Iterator[dict[str, Any]]:
        wanted = set(images)
        for part in self.files.listed(PARTS, PART) if wanted else ():
            yield from (row for row in self._part(part, wanted).to_pylist() if row["map"] is not None)


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings in the form in which `run.json` stores them."""
    return dict(json.loads(json.dumps(content)))


def _json(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    is_text = text.encode(errors="replace") == text.encode(errors="surrogateescape")  # file names may hold bytes that are not UTF-8
    return (text if is_text else json.dumps(content, indent=1)) + "\n"
