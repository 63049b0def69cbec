"""Row of a run, the columns that store it, and what `run.json` keeps of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xattn.deferred import torch
from xattn.metrics.values import is_value

if TYPE_CHECKING:
    from torch import Tensor

PREVIEW = 64
NO_REGION = "no region: "
"""The beginning of reasons why a metric of regions has no value."""
NO_PARTS = "not available: "
"""The beginning of reasons why a metric of parts has no value."""


def _column(kind: pa.DataType, *, shown: bool = True) -> Any:
    return field(default=None, metadata={"type": kind, "shown": shown})


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a part: a value, a raw map, or an image that failed.

    Attributes:
        image: path relative to the given folder, or index in a data set.
        model: name of the classifier.
        head: its head.
        method: the method; None for the maps of a head.
        metric: the metric; None for a row that holds a map.
        value: of the metric.
        target: the explained target: a class index, `3 - 0.6*7`, …
        target_rule: how the target was chosen.
        label: class index, or the value of a regression.
        predicted: class index or value that the classifier predicts.
        probability: probability of the target for the unmasked image.
        degenerate: the map shows nothing.
        seed: of the run.
        error: why the image failed.
        reason: why the map shows nothing, or why a metric of regions or parts has no value.
        shares: shares of the pixels changed, along the metric's curve.
        curve: the target's probability along that curve.
        map: raw maps in float16, in units of `scale`; see `stored_map`.
        count: number of maps.
        height: of each map.
        scale: largest magnitude of the maps.
        pixels: how a picture with more than 8 bits was reduced to 8; in a row that holds nothing else, once per picture.
        classes: the classes that the classifier finds most probable, in the row of the first method's map.
        probabilities: probabilities of these classes.
        boxes: of a two-stream network, x1, y1, x2, y2 of each of its patches in pixels of the crop, in the row of the first method's map.
        alpha: of a two-stream network, the weight of each step, averaged over its patches, in the same row.
    """

    image: str = field(metadata={"type": pa.string(), "shown": True})
    model: str | None = _column(pa.string())
    head: str | None = _column(pa.string())
    method: str | None = _column(pa.string())
    metric: str | None = _column(pa.string())
    value: float | None = _column(pa.float64())
    target: str | None = _column(pa.string())
    target_rule: str | None = _column(pa.string())
    label: float | None = _column(pa.float64())
    predicted: float | None = _column(pa.float64())
    probability: float | None = _column(pa.float64())
    degenerate: bool | None = _column(pa.bool_())
    seed: int | None = _column(pa.int64())
    error: str | None = _column(pa.string())
    reason: str | None = _column(pa.string())
    shares: Sequence[float] | None = _column(pa.list_(pa.float32()), shown=False)
    curve: Sequence[float] | None = _column(pa.list_(pa.float32()), shown=False)
    map: bytes | None = _column(pa.binary(), shown=False)
    count: int | None = _column(pa.int32(), shown=False)
    height: int | None = _column(pa.int32(), shown=False)
    scale: float | None = _column(pa.float64(), shown=False)
    pixels: str | None = _column(pa.string(), shown=False)
    classes: Sequence[int] | None = _column(pa.list_(pa.int32()), shown=False)
    probabilities: Sequence[float] | None = _column(pa.list_(pa.float32()), shown=False)
    boxes: Sequence[float] | None = _column(pa.list_(pa.float32()), shown=False)
    alpha: Sequence[float] | None = _column(pa.list_(pa.float32()), shown=False)


SCHEMA = pa.schema([(f.name, f.metadata["type"]) for f in fields(Row)])
COLUMNS = tuple(f.name for f in fields(Row) if f.metadata["shown"])
"""The columns of `scores.csv`."""


def arrow_table(rows: Sequence[Row]) -> pa.Table:
    """Converts rows to an Arrow table of the schema."""
    arrays = [pa.array([getattr(row, column.name) for row in rows], type=column.type) for column in SCHEMA]
    return pa.table(arrays, schema=SCHEMA)


def with_map(row: Row, raw: Tensor, image_size: tuple[int, int], *, whole: bool) -> Row:
    """Adds raw maps to a row: float16, divided by their largest magnitude so that nothing overflows or underflows.

    Args:
        row: the row that describes the maps.
        raw: `(N, h, w)`.
        image_size: a map of this size is stored as cell means, at most `PREVIEW` per side, enough for a preview.
        whole: store such a map in full.
    """
    finite = torch.nan_to_num(raw.float(), nan=0.0, posinf=0.0, neginf=0.0)
    if tuple(raw.shape[1:]) == image_size and max(image_size) > PREVIEW and not whole:
        finite = torch.nn.functional.adaptive_avg_pool2d(finite, (min(image_size[0], PREVIEW), min(image_size[1], PREVIEW)))
    scale = float(finite.abs().max()) or 1.0
    content = (finite / scale).half().cpu().contiguous().numpy().tobytes()
    return replace(row, map=content, count=finite.shape[0], height=finite.shape[1], scale=scale)


@dataclass(frozen=True)
class StoredMap:
    """A raw map as a run stores it.

    Attributes:
        raw: `(h, w)` float32, from float16; a map at the image's size is stored reduced unless the run saves maps. For the maps of a head
            `(N, h, w)`.
        about: target, target_rule, label, predicted, probability and degenerate of its row.
    """

    raw: NDArray[np.float32]
    about: dict[str, Any]


@dataclass(frozen=True)
class StoredLooks:
    """Patches and step weights of a two-stream network for one image, as a run stores them.

    Attributes:
        boxes: `(n, 4)`, x1, y1, x2, y2 in pixels of the crop.
        alpha: `(T,)`, the weight of each step, averaged over the patches.
    """

    boxes: NDArray[np.float32]
    alpha: NDArray[np.float32]


class StoredCurve(NamedTuple):
    """The target's probability along a metric's curve, as a run stores it: one float32 per step.

    Attributes:
        shares: share of the pixels changed, from 0 to 1.
        p: the target's probability.
    """

    shares: list[float]
    p: list[float]


CurveKey = tuple[str, str, str, str, str, str]
"""Image, model, head, method, metric and target."""


def stored_map(row: dict[str, Any]) -> StoredMap:
    """Restores the raw map in a row."""
    shape = (row["height"], -1) if row["method"] is not None else (row["count"], row["height"], -1)
    raw = np.frombuffer(row["map"], dtype=np.float16).reshape(shape).astype(np.float32)
    about = {key: row[key] for key in ("target", "target_rule", "label", "predicted", "probability", "degenerate")}
    if not is_value(row["target"]):
        about |= {key: None if row[key] is None else int(row[key]) for key in ("label", "predicted")}
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged part may hold values that are not finite
        return StoredMap(raw * np.float32(row["scale"]), about)


def stored_looks(row: dict[str, Any]) -> StoredLooks:
    """Restores the patches and step weights of a two-stream network from a row that holds them."""
    return StoredLooks(np.array(row["boxes"], dtype=np.float32).reshape(-1, 4), np.array(row["alpha"], dtype=np.float32))


def run_key(name: str, head: str) -> str:
    """Returns the key of a classifier in `run.json`, from its name and head."""
    return f"{name} · {head}"


class Deviation(NamedTuple):
    """Difference of a metric's values from level exact without shortcuts, measured on a sample of the run's images.

    Attributes:
        mean: absolute difference, averaged over all methods and images.
        low: lower end of its 95 % interval, over the images; NaN for a single image.
        high: upper end of the interval.
        most: largest difference.
        n: number of images.
    """

    mean: float
    low: float
    high: float
    most: float
    n: int

    def as_json(self) -> list[float | None]:
        """Returns its values for JSON, which has no NaN."""
        return [None if math.isnan(value) else value for value in self]

    @classmethod
    def of(cls, kept: Sequence[float | None]) -> Deviation:
        """Rebuilds it from the output of `as_json`."""
        mean, low, high, most, n = (math.nan if value is None else value for value in kept)
        return cls(mean, low, high, most, int(n))

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.2g}, {self.high:.2g}]"
        return f"{self.mean:.2g}{interval} on average, {self.most:.2g} at most, on a sample of n = {self.n}"
