"""Contents of runs for a report: pictures, outputs of the networks, maps, scores and curves, read once from the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError
from xattn.metrics.target_base import PER_LABEL
from xattn.report.encoding import (
    GRID,
    EncodedMap,
    comparable,
    decoded_map,
    disagreements,
    encoded_curve,
    encoded_map,
    kind_of,
    reduced_map,
)
from xattn.study.questions import picture_names, shown_names
from xattn.study.schema import PREVIEW, run_key, stored_map
from xattn.study.store import Store

COMPARED = 64  # items whose maps are compared in one step
MOST_WHOLE = 24 * 2**20  # bytes of maps beyond `PREVIEW` cells per side that are included in full


class Column(NamedTuple):
    """A method's maps of a classifier."""

    model: str
    head: str
    method: str

    @property
    def classifier(self) -> tuple[str, str]:
        """Model and head."""
        return self.model, self.head


class Answer(NamedTuple):
    """A classifier's output for a picture.

    Attributes:
        target: the explained target.
        label: class index or value.
        predicted: the predicted class or value.
        probability: probability of the target.
    """

    target: str | None
    label: float | None
    predicted: float | None
    probability: float | None


@dataclass
class Item:
    """A picture, or one of its labels if each label is explained.

    Attributes:
        image: its name in the joint table.
        run: index of the first run that holds it.
        own_name: its name in that run.
        target: the explained label; None unless each label is explained.
        answers: outputs, by classifier.
        classes: the most probable classes and their probabilities, by classifier.
        maps: by column.
        curves: index into the reports' shares and the probabilities, by column and metric.
        scores: by column and metric.
        degenerate: by column.
        reasons: why a map shows nothing, by column.
        disagreement: of each pair of columns.
    """

    image: str
    run: int
    own_name: str
    target: str | None
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    classes: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=dict)
    maps: dict[Column, EncodedMap] = field(default_factory=dict)
    curves: dict[tuple[Column, str], tuple[int, bytes]] = field(default_factory=dict)
    scores: dict[tuple[Column, str], float] = field(default_factory=dict)
    degenerate: dict[Column, bool] = field(default_factory=dict)
    reasons: dict[Column, str] = field(default_factory=dict)
    disagreement: bytes = b""


class ClassifierOfRun(NamedTuple):
    """A classifier as described by a run.

    Attributes:
        preprocessing: preprocessing of its pictures.
        labels: names of its classes.
        weights: digest of its weights.
        stage: stage of the explained map.
    """

    preprocessing: Preprocessing
    labels: Sequence[str] | None
    weights: str
    stage: str | None


@dataclass
class Contents:
    """Contents of runs.

    Attributes:
        stores: of the runs.
        settings: of the runs, as `run.json` has them.
        items: pictures in the order of the runs.
        classifiers: by shown model and head.
        columns: methods of classifiers for which there are maps or scores.
        metrics: names of the metrics as in the rows.
        shares: shares of the pixels changed, along the curves.
        failed: error by picture.
        whole_maps: maps beyond `PREVIEW` cells per side are included as the runs store them.
    """

    stores: list[Store]
    settings: list[dict[str, Any]]
    items: list[Item] = field(default_factory=list)
    classifiers: dict[tuple[str, str], ClassifierOfRun] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    shares: list[tuple[float, ...]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    whole_maps: bool = True


def read_contents(runs: Sequence[str | Path], most: int | None = None) -> Contents:
    """Reads everything that a report shows of runs, except for the pictures themselves.

    Args:
        runs: run folders.
        most: bytes of one file, beyond which reading stops; None: no limit.

    Raises:
        RunError: a folder is not a run, or is damaged.
        InputError: the runs have no finished row, or the maps and curves alone exceed one file.
    """
    stores = [Store(run) for run in runs]
    names = shown_names(stores)
    found = Contents(stores, [store.read_run() for store in stores])
    for run, called in zip(found.settings, names, strict=True):
        for model in run["settings"]["models"]:
            key = (called[model["name"], model["head"]], model["head"])
            labels = run.get("labels", {}).get(run_key(model["name"], model["head"]))
            about = ClassifierOfRun(Preprocessing.from_json(model["preprocessing"]), labels, model["weights"], model.get("stage"))
            found.classifiers.setdefault(key, about)
    reader = _Reader(found, most)
    renamed = picture_names(stores, [_images(store) for store in stores]) if len(stores) > 1 else [{}]
    for number, store in enumerate(stores):
        for table in store.tables():
            for row in table.to_pylist():
                reader.add(number, row, names[number], renamed[number])
    reader.finish()
    if not found.items:
        raise InputError("the runs have no finished picture yet: there is nothing to report.")
    return found


def too_large(what: str, most: int, instead: str) -> InputError:
    """Returns the error for a page whose content exceeds one file of so many bytes."""
    return InputError(
        f"{what} would be larger than {most // 2**20} MB, too large for a browser: write a folder (--folder, folder=True), or {instead}."
    )


def _images(store: Store) -> set[str]:
    """Returns the names of the pictures in a run's rows."""
    return {name for table in store.tables(("image", "model", "error")) for name in table["image"].unique().to_pylist()}


class _Reader:
    """Groups rows into items."""

    def __init__(self, found: Contents, most: int | None) -> None:
        self.found, self.most = found, most
        self.size = 0
        self.items: dict[tuple[str, str | None], Item] = {}
        self.columns: dict[Column, Column] = {}
        self.metrics: dict[str, str] = {}
        self.shares: dict[tuple[float, ...], int] = {}
        self.whole: list[tuple[Item, Column]] = []
        self.whole_bytes = 0

    def add(self, run: int, row: Mapping[str, Any], called: Mapping[tuple[str, str], str], renamed: Mapping[str, str]) -> None:
        """Adds a row; of two rows for the same item, the first counts."""
        image = renamed.get(row["image"], row["image"])
        if row["error"] is not None:
            self.found.failed.setdefault(image, row["error"])
        key = (row["model"], row["head"])
        if row["error"] is not None or row["method"] is None or key not in called:
            return
        column = Column(called[key], row["head"], row["method"])
        column = self.columns.setdefault(column, column)  # one object for all pictures
        target = row["target"] if str(row["target_rule"]).startswith(PER_LABEL) else None
        item = self.items.setdefault((image, target), Item(image, run, row["image"], target))
        about = Answer(row["target"], row["label"], row["predicted"], row["probability"])
        if item.answers.setdefault(column.classifier, about).target != row["target"]:
            return  # a later run that explains the picture for another target; `compare` also leaves it out
        item.degenerate.setdefault(column, bool(row["degenerate"]))
        if row["reason"] is not None:
            item.reasons.setdefault(column, row["reason"])
        if row["classes"] is not None and row["probabilities"] is not None:
            item.classes.setdefault(column.classifier, list(zip(row["classes"], row["probabilities"], strict=False)))
        if row["metric"] is not None:
            self._add_score(item, column, row)
        elif row["map"] is not None and column not in item.maps:
            self._add_map(item, column, row)

    def _add_score(self, item: Item, column: Column, row: Mapping[str, Any]) -> None:
        metric = self.metrics.setdefault(row["metric"], row["metric"])
        if row["value"] is not None:
            item.scores.setdefault((column, metric), row["value"])
        if row["curve"] and row["shares"] and len(row["curve"]) == len(row["shares"]):
            place = self.shares.setdefault(tuple(row["shares"]), len(self.shares))
            if (column, metric) not in item.curves:
                item.curves[column, metric] = (place, encoded_curve(row["curve"]))
                self._grow(item.curves[column, metric][1])

    def _add_map(self, item: Item, column: Column, row: Mapping[str, Any]) -> None:
        raw = torch.from_numpy(stored_map(dict(row)).raw)
        if max(raw.shape) <= PREVIEW:
            item.maps[column] = encoded_map(raw)
            self._grow(item.maps[column].data)
            return
        if self.found.whole_maps:
            self.whole.append((item, column))
            item.maps[column] = encoded_map(raw)
            self.whole_bytes += len(item.maps[column].data)
            if self.whole_bytes > MOST_WHOLE:
                self.found.whole_maps = False
                for other, its in self.whole:
                    other.maps[its] = reduced_map(decoded_map(other.maps[its]))
            return
        item.maps[column] = reduced_map(raw)
        self._grow(item.maps[column].data)

    def _grow(self, data: bytes) -> None:
        """Counts the bytes of everything that a page must contain, as base64.

        Raises:
            InputError: it exceeds one file.
        """
        self.size += 4 * -(-len(data) // 3)
        if self.most is not None and self.size > self.most:
            raise too_large("the maps and curves alone in one file", self.most, "a report of fewer runs")

    def finish(self) -> None:
        """Computes everything that needs all rows."""
        found = self.found
        found.items, found.metrics, found.shares = list(self.items.values()), list(self.metrics), list(self.shares)
        place = {classifier: number for number, classifier in enumerate(found.classifiers)}
        found.columns = sorted(self.columns, key=lambda column: place[column.classifier])
        for start in range(0, len(found.items), COMPARED):
            _compare(found.items[start : start + COMPARED], found.columns)


def _compare(items: Sequence[Item], columns: Sequence[Column]) -> None:
    """Computes how much the maps of each pair of columns disagree."""
    masks = torch.full((len(items), len(columns), GRID * GRID), torch.nan)
    for place, column in enumerate(columns):
        shapes: dict[tuple[int, int], list[int]] = {}
        for number, item in enumerate(items):
            if column in item.maps and not item.degenerate.get(column):
                shapes.setdefault((item.maps[column].height, item.maps[column].width), []).append(number)
        for numbers in shapes.values():
            raw = torch.stack([decoded_map(items[number].maps[column]) for number in numbers])
            masks[numbers, place] = comparable(raw, kind_of(column.method))
    for item, pairs in zip(items, disagreements(masks), strict=True):
        item.disagreement = pairs.numpy().tobytes()
