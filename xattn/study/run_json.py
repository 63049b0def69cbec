"""Content of `run.json` as types, against which it is checked when read.

Annotations here are not postponed: otherwise a `TypedDict` would not know which entries are optional.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from xattn.data.preprocessing import Preprocessing
from xattn.stored import Count, Range, Side, parsed, structured

FILES = 10**6


class StoredPreprocessing(TypedDict):
    """Output of `dataclasses.asdict` for a `Preprocessing`."""

    input_size: tuple[Side, Side]
    resize: Side | tuple[Side, Side]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


class StoredModel(TypedDict):
    """A classifier of a run."""

    name: str
    head: str
    weights: str
    stage: NotRequired[str | None]
    preprocessing: StoredPreprocessing


class StoredImages(TypedDict):
    """The pictures of a run."""

    origin: list[str] | None
    count: Count
    digest: str
    depth: NotRequired[Annotated[int, Range(1, 64)] | None]
    window: NotRequired[tuple[float, float] | None]
    max_pixels: NotRequired[Annotated[int, Range(1, 2**40)]]


class StoredSettings(TypedDict):
    """Output of `Plan.settings`."""

    models: list[StoredModel]
    methods: list[str]
    metrics: list[str]
    images: StoredImages
    regions: NotRequired[str]
    shard: NotRequired[tuple[Annotated[int, Range(1, FILES)], Annotated[int, Range(1, FILES)]]]


class StoredTuning(TypedDict):
    """A `Tuning`."""

    chunk: Annotated[int, Range(1, 2**20)]
    memory_format: str
    folded: bool
    compiled: bool
    precision: str
    backend: NotRequired[str]


class StoredExecution(TypedDict):
    """Output of `Execution.as_dict`."""

    tuning: StoredTuning
    level: str
    images_a_second: dict[str, float]
    refused: dict[str, str]
    images_at_once: Annotated[int, Range(1, 2**20)]
    deviation: dict[str, tuple[float | None, float | None, float | None, float | None, Count]] | None
    memory: int | None


class StoredProtocol(TypedDict):
    """Settings of a method or metric, from `Plan.protocols`."""

    settings: dict[str, Any]


class StoredMaps(TypedDict):
    """Location of a method's maps that another tool wrote."""

    place: str
    name: str
    covers: Literal["crop", "picture"] | None


class StoredAddition(TypedDict):
    """Methods and metrics that were added to a run."""

    finished: bool


class StoredPair(TypedDict):
    """Two methods, and the confidence sequence of their differences."""

    model: str
    head: str
    first: str
    second: str
    n: Count
    difference: float | None
    low: float
    high: float
    decided_after: float | None
    needed: float | None
    conclusion: str


class StoredSequence(TypedDict):
    """Output of `Evidence.as_json`."""

    metric: str
    margin: float | None
    confidence: float
    pictures: Count
    of: Count
    pairs: list[StoredPair]


class RunJson(TypedDict):
    """The content of `run.json`; unknown entries are kept unchanged."""

    settings: StoredSettings
    labels: NotRequired[dict[str, list[str] | None]]
    forwards: NotRequired[dict[str, StoredExecution]]
    pixels: NotRequired[dict[str, Count]]
    without_region: NotRequired[dict[str, list[str]]]
    without_parts: NotRequired[dict[str, list[str]]]
    protocol: NotRequired[dict[str, StoredProtocol]]
    added: NotRequired[list[StoredAddition]]
    maps: NotRequired[dict[str, StoredMaps]]
    pairs: NotRequired[dict[str, dict[str, tuple[str, float]]]]
    sequence: NotRequired[StoredSequence]


def run_json(content: bytes) -> dict[str, Any]:
    """Parses and checks the content of a `run.json`; JSON lists stay lists.

    Raises:
        ValueError: it is not a valid `run.json`; names the wrong entry.
    """
    found: dict[str, Any] = structured(dict[str, Any], parsed(content))
    checked = structured(RunJson, found)
    for model in checked["settings"]["models"]:
        Preprocessing.from_json(model["preprocessing"])
    return found


def contents_json(content: bytes) -> dict[str, str | None]:
    """Parses the content of an `images.json`: digests of the pictures by name.

    Raises:
        ValueError: it is not a valid `images.json`.
    """
    return structured(dict[str, str | None], parsed(content))
