"""A run folder: `run.json`, `parts/*.parquet`, and the tables made of them.

Every file is written whole or not at all (`folders`). A part is the work of one batch; a run that was cut off has the parts that it
finished, and goes on with the others.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from xattn.errors import RunError
from xattn.study.folders import LocalFolder, folder_at
from xattn.study.scoring import COLUMNS

PREVIEW = 64
PARTS, PART = "parts", ".parquet"

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("model", pa.string()),
        ("head", pa.string()),
        ("method", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("target", pa.int32()),
        ("target_rule", pa.string()),
        ("label", pa.int32()),
        ("predicted", pa.int32()),
        ("probability", pa.float64()),
        ("degenerate", pa.bool_()),
        ("seed", pa.int64()),
        ("error", pa.string()),
        # A row without metric and without error holds the method's raw map, see `map_columns`: float16, times `scale`. One without a
        # method too holds the head's ranked maps.
        ("map", pa.binary()),
        ("count", pa.int32()),
        ("height", pa.int32()),
        ("scale", pa.float64()),
    ]
)


MAP_COLUMNS = len(SCHEMA) - len(COLUMNS)


@dataclass(frozen=True)
class StoredMap:
    """A raw map as a run keeps it.

    Attributes:
        raw: `(h, w)` float32, from float16; one at the image's size is kept reduced unless the run was told to save maps. Of a head's
            ranked maps `(N, h, w)`.
        about: target, label, predicted, probability and degenerate of its row.
    """

    raw: Tensor
    about: dict[str, Any]


class Store:
    """A run folder.

    Args:
        folder: where, a path or a URL that fsspec knows; made by `begin`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.files = folder_at(folder)
        self.folder: Path | str = self.files.path if isinstance(self.files, LocalFolder) else self.files.url

    def begin(self, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Makes the folder, or goes on in one that was begun with the same settings.

        Raises:
            RunError: the folder holds a run with other settings, holds something else, or cannot be written.
        """
        if self.files.exists("run.json"):
            before = self.read_run()["settings"]
            now = json.loads(json.dumps(settings))
            if differences := list(_differences(before, now)):
                shown = "; ".join(differences[:6]) + ("; …" if len(differences) > 6 else "")
                raise RunError(
                    f"'{self.folder}' holds a run with other settings: give another folder, or the same settings to go on. {shown}."
                )
            self.files.tidy()
            return
        if set(self.files.top()) - {PARTS} or self.done():
            raise RunError(f"'{self.folder}' is not empty and holds no run.json. Give a new or empty folder.")
        self.write_text("run.json", json.dumps({"settings": settings, **notes}, indent=1, ensure_ascii=False) + "\n")

    def note(self, key: str, value: Any) -> None:
        """Adds to what `run.json` says."""
        self.write_text("run.json", json.dumps({**self.read_run(), key: value}, indent=1, ensure_ascii=False) + "\n")

    def read_run(self) -> dict[str, Any]:
        """What `run.json` holds.

        Raises:
            RunError: there is none, or it is damaged.
        """
        try:
            found: dict[str, Any] = json.loads(self.files.read("run.json").decode("utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"'{self.folder}' is no run: it has no run.json. Give a folder that `xattn explain --out` wrote.") from error
        except (OSError, ValueError) as error:
            raise RunError(f"'{self.folder}/run.json' could not be read ({error}).") from error
        return found

    def done(self) -> set[str]:
        """Names of the parts that are there."""
        return {Path(name).stem for name in self.files.listed(PARTS, PART)}

    def has(self, name: str) -> bool:
        """Whether a part is there."""
        return self.files.exists(f"{PARTS}/{name}{PART}")

    @property
    def finished(self) -> bool:
        """Whether the tables were made."""
        return self.files.exists("table.csv")

    def table(self) -> pd.DataFrame:
        """What `table.csv` holds.

        Raises:
            RunError: the run is not finished.
        """
        if not self.finished:
            raise RunError(f"'{self.folder}' has no table yet: call run() first.")
        return pd.read_csv(io.BytesIO(self.files.read("table.csv")))

    def write_part(self, name: str, rows: Sequence[Sequence[object]]) -> None:
        """Writes one part, whole or not at all.

        Raises:
            RunError: it could not be written, a full disk for one; the parts before it stay.
        """
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)
        table = pa.table([pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        with self.whole(Path(PARTS) / f"{name}{PART}") as path:
            pq.write_table(table, path, compression="zstd")

    def write_text(self, name: str, text: str) -> None:
        """Writes a small file, whole or not at all."""
        with self.whole(Path(name)) as path:
            path.write_text(text, encoding="utf-8")

    def whole(self, name: Path) -> contextlib.AbstractContextManager[Path]:
        """A local path to write to, which becomes `name` in the folder when all is written."""
        return self.files.whole(name)

    def tables(self) -> Iterator[pa.Table]:
        """The parts in order, one in memory at a time; an image that failed for every classifier alike is told once."""
        told: set[str] = set()
        for part in self.files.listed(PARTS, PART):
            try:
                with self.files.opened(part) as source:
                    table = pq.read_table(source)
            except (OSError, pa.ArrowException) as error:
                raise RunError(
                    f"'{self.folder}/{part}' is damaged ({error}). Delete it and run the same command: only that part is made again."
                ) from error
            failed = [
                name if model is None else None for name, model in zip(table["image"].to_pylist(), table["model"].to_pylist(), strict=True)
            ]
            keep = [name is None or name not in told for name in failed]
            told.update(name for name in failed if name is not None)
            yield table if all(keep) else table.filter(pa.array(keep))

    def finish(self, metrics: Sequence[str]) -> list[tuple[str, str]]:
        """Makes `scores.csv` and `table.csv` of the parts, in memory that does not grow with the images that were scored.

        Returns:
            Name and reason of each image that failed.
        """
        summary = Summary(metrics)
        failed: dict[str, str] = {}
        schema = pa.schema([SCHEMA.field(name) for name in COLUMNS])
        with (
            self.whole(Path("scores.csv")) as path,
            pacsv.CSVWriter(path, schema, write_options=pacsv.WriteOptions(quoting_style="needed")) as writer,
        ):
            for table in self.tables():
                summary.add(table)
                is_error = pa.compute.is_valid(table["error"])
                for row in table.select(["image", "error"]).filter(is_error).to_pylist():
                    failed.setdefault(row["image"], row["error"])
                is_row = pa.compute.or_(pa.compute.is_valid(table["metric"]), is_error)
                writer.write_table(table.select(list(COLUMNS)).filter(is_row))
        with self.whole(Path("table.csv")) as path:
            summary.frame().to_csv(path, index=False)
        return list(failed.items())

    def rows(self) -> pd.DataFrame:
        """All rows of `scores.csv`, from the parts."""
        kept = [table.select(list(COLUMNS)).filter(pa.compute.is_valid(table["metric"])) for table in self.tables()]
        if not kept:
            raise RunError(f"'{self.folder}' has no finished part yet.")
        frame: pd.DataFrame = pa.concat_tables(kept).to_pandas()
        return frame

    def maps(self, images: Iterable[str], methods: Iterable[str] | None = None) -> dict[tuple[str, str, str, str], StoredMap]:
        """Raw maps of some images, by image, model, head and method."""
        chosen = None if methods is None else set(methods)
        return {
            (row["image"], row["model"], row["head"], row["method"]): _stored(row)
            for row in self._map_rows(images)
            if row["method"] is not None and (chosen is None or row["method"] in chosen)
        }

    def ranked(self, images: Iterable[str]) -> dict[tuple[str, str, str], StoredMap]:
        """Ranked maps `(N, h, w)` of some images, by image, model and head; those of heads that have several."""
        return {(row["image"], row["model"], row["head"]): _stored(row) for row in self._map_rows(images) if row["method"] is None}

    def _map_rows(self, images: Iterable[str]) -> Iterator[dict[str, Any]]:
        wanted = set(images)
        for part in self.files.listed(PARTS, PART) if wanted else ():
            with self.files.opened(part) as source:
                table = pq.read_table(source, filters=[("image", "in", wanted)])
            for row in table.to_pylist():
                if row["map"] is not None:
                    yield row


def _stored(row: Mapping[str, Any]) -> StoredMap:
    shape = (row["height"], -1) if row["method"] is not None else (row["count"], row["height"], -1)
    raw = torch.frombuffer(bytearray(row["map"]), dtype=torch.float16).view(shape)
    return StoredMap(raw.float() * row["scale"], {key: row[key] for key in ("target", "label", "predicted", "probability", "degenerate")})


def map_columns(raw: Tensor, image_size: tuple[int, int], *, whole: bool) -> tuple[bytes, int, int, float]:
    """Raw maps as the last four columns hold them: float16 of the map over its largest magnitude, so that none is lost to range.

    Args:
        raw: `(N, h, w)`.
        image_size: a map of this size is kept as means over cells, at most `PREVIEW` a side, enough for a look.
        whole: keep it whole all the same.
    """
    finite = torch.nan_to_num(raw.float(), nan=0.0, posinf=0.0, neginf=0.0)
    if tuple(raw.shape[1:]) == image_size and max(image_size) > PREVIEW and not whole:
        finite = functional.adaptive_avg_pool2d(finite, (min(image_size[0], PREVIEW), min(image_size[1], PREVIEW)))
    scale = float(finite.abs().max()) or 1.0
    return (finite / scale).half().cpu().contiguous().numpy().tobytes(), finite.shape[0], finite.shape[1], scale


class Summary:
    """Means over valid rows, gathered part by part."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = metrics
        self.sums: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, table: pa.Table) -> None:
        for row in table.select(list(COLUMNS)).to_pylist():
            if row["method"] is None:
                continue
            sums = self.sums[row["model"], row["head"], row["method"]]
            if row["metric"] is None:
                _count(sums["n"], 1.0)
                _count(sums["degenerate_share"], float(row["degenerate"]))
                if row["label"] is not None:
                    _count(sums["accuracy"], 100.0 * (row["predicted"] == row["label"]))
            elif row["value"] is not None and math.isfinite(row["value"]):
                _count(sums[row["metric"]], row["value"])

    def frame(self) -> pd.DataFrame:
        """A row per model × head × method: mean of each metric's valid rows, accuracy where labels are known, n, degenerate share."""
        rows = []
        labelled = any("accuracy" in sums for sums in self.sums.values())
        for (model, head, method), sums in self.sums.items():
            means = {name: total / count for name, (total, count) in sums.items() if count}
            row: dict[str, object] = {"model": model, "head": head, "method": method}
            row |= {metric: means.get(metric, math.nan) for metric in self.metrics}
            if labelled:
                row["accuracy"] = means.get("accuracy", math.nan)
            rows.append(row | {"n": int(sums["n"][1]), "degenerate_share": means.get("degenerate_share", 0.0)})
        columns = ["model", "head", "method", *self.metrics, *(["accuracy"] if labelled else []), "n", "degenerate_share"]
        return pd.DataFrame(rows, columns=columns)


def _count(sums: list[float], value: float) -> None:
    sums[0] += value
    sums[1] += 1


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and any(isinstance(v, dict) for v in before):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{path}[{number}]")
    elif before != now:
        yield f"{path} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    """A setting in a message: of things with a name the names, and at most a line."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = [" · ".join(str(item[key]) for key in ("name", "head") if key in item) for item in value]
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}…"
