"""The kinds of metric, their metadata, and the registry.

A metric is a frozen dataclass of settings, of one of seven kinds. The kind says what it takes; this determines its cost in forwards, its
memory, the arguments of its public function, and the checks of the contract tests:

| kind | takes | examples |
|---|---|---|
| `MaskMetric` | only the mask | complexity |
| `RawMapMetric` | the raw map at its own resolution | sparsity |
| `ResponseMetric` | the target's probability under perturbations | average drop |
| `CurveMetric` | the probability along a curve of perturbations | insertion, deletion |
| `ExplanationMetric` | the method's map of a perturbed image | coherency |
| `RegionMetric` | the mask and the raw map, and where the object is | pointing game |
| `PartsMetric` (`parts_base.py`) | the mask, and what each part of the picture does to the output | parts-shapley |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from xattn.errors import InputError, UnsupportedError
from xattn.metrics.perturbations import Curve, Perturbation, forwards, ignores_masks
from xattn.metrics.probability import Probability
from xattn.metrics.responses import CurveResponse, Responses
from xattn.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from xattn.metrics.known_parts import KnownParts

Better = Literal["lower", "higher"]
Aggregation = Literal["mean", "proportion", "harmonic mean"]

COSTED_SIZE, COSTED_CELLS = (224, 224), 49


@dataclass(frozen=True)
class MetricMetadata:
    """Metadata that a metric is registered with.

    Attributes:
        symbol: as papers print it: AD, I, …
        better: which direction is better.
        unit: "%" or "1".
        limits: lowest and highest value.
        source: where it was published.
        kind: name of its kind.
        cost: forwards of the network for each image and method, at 224 × 224 and with default settings, in addition to those of the image
            itself and its baseline.
    """

    symbol: str
    better: Better
    unit: str
    limits: tuple[float, float]
    source: str
    kind: str = ""
    cost: str = ""


@dataclass(frozen=True)
class Evidence:
    """The data from which metrics of one method's maps of a batch are computed.

    Attributes:
        masks: `(B, H, W)` in [0, 1].
        raw_maps: `(B, h, w)` at the method's own resolution.
        head_maps: `(B, N, h, w)`, if the method shows a head with several maps: these maps, each times the norm of the features over their
            largest norm.
        responses: the target's probability under the perturbations that the metrics need.
        explanations: the method's masks of perturbed images, by perturbation.
        regions: `(B, N, H, W)` bool, where the N objects of each image's target are, padded with empty ones.
        signed_maps: `(B, h, w)`, the raw maps with evidence against the target below 0; None: the raw maps.
        parts: what each part of the pictures does to the network's output.
        rivals: `(B, 2, H, W)`, the method's masks of the images for the two classes of `KnownParts.rivals`.
    """

    masks: Tensor
    raw_maps: Tensor
    head_maps: Tensor | None = None
    responses: Responses = field(default_factory=Responses)
    explanations: Mapping[Perturbation, Tensor] = field(default_factory=dict)
    regions: Tensor | None = None
    signed_maps: Tensor | None = None
    parts: KnownParts | None = None
    rivals: Tensor | None = None


class Metric(ABC):
    """Base class of metrics: settings, the data that the metric needs, and its value from these data."""

    needs_regions: ClassVar[bool] = False  # regions of the object
    needs_parts: ClassVar[bool] = False  # effects of the parts of the picture
    needs_rivals: ClassVar[bool] = False  # the method's maps for two other classes
    undefined: ClassVar[str] = "the map, or the probability, is constant where they are compared"  # why the value may be NaN

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        """The perturbations under which the metric needs the target's probability."""
        return ()

    @property
    def explained(self) -> tuple[Perturbation, ...]:
        """The perturbations whose images must be explained again."""
        return ()

    @property
    def exact(self) -> Self:
        """The metric without its shortcut; itself if it has none."""
        return self

    @property
    def aggregation(self) -> Aggregation:
        """How a table's cell is computed from the values of the images: "mean"; "proportion", the mean of values that are each one of the
        metric's limits; "harmonic mean", the inverse of the mean of the inverses."""
        return "mean"

    @abstractmethod
    def value(self, evidence: Evidence) -> Tensor:
        """The metric's value for each image, `(B,)` float64."""


class MaskMetric(Metric):
    """A metric of only the mask."""

    kind = "mask"

    @abstractmethod
    def of_masks(self, masks: Tensor) -> Tensor:
        """`(B,)` float64 of masks `(B, H, W)` in [0, 1]."""

    def value(self, evidence: Evidence) -> Tensor:
        return self.of_masks(evidence.masks)


class RawMapMetric(Metric):
    """A metric of the raw map, at its own resolution."""

    kind = "raw map"

    @abstractmethod
    def of_raw_maps(self, raw_maps: Tensor, head_maps: Tensor | None = None) -> Tensor:
        """`(B,)` float64 of raw maps `(B, h, w)`, and of the maps `(B, N, h, w)` of a head with several, if the method shows them."""

    def value(self, evidence: Evidence) -> Tensor:
        return self.of_raw_maps(evidence.raw_maps, evidence.head_maps)


class ResponseMetric(Metric):
    """A metric of the target's probability under perturbations."""

    kind = "responses"

    @property
    @abstractmethod
    def perturbations(self) -> tuple[Perturbation, ...]: ...

    @abstractmethod
    def of_probabilities(self, *probabilities: Probability) -> Tensor:
        """`(B,)` float64 of the probabilities under its perturbations, in their order."""

    def value(self, evidence: Evidence) -> Tensor:
        return self.of_probabilities(*(evidence.responses.probability(asked) for asked in self.perturbations))


class CurveMetric(Metric):
    """A metric of the target's probability along a curve of perturbations."""

    kind = "curve"

    @property
    @abstractmethod
    def curve(self) -> Curve:
        """The curve."""

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return (self.curve,)

    @abstractmethod
    def of_curve(self, curve: CurveResponse) -> Tensor:
        """`(B,)` float64 of the probabilities along the curve."""

    def value(self, evidence: Evidence) -> Tensor:
        return self.of_curve(evidence.responses.curve(self.curve))


class ExplanationMetric(Metric):
    """A metric of the method's maps of perturbed images; it may need other data as well."""

    kind = "explanation"

    @property
    @abstractmethod
    def explained(self) -> tuple[Perturbation, ...]: ...


class RegionMetric(Metric):
    """A metric that compares where the map is high with where the object is."""

    kind = "region"
    needs_regions = True

    @abstractmethod
    def of_regions(self, masks: Tensor, raw_maps: Tensor, regions: Tensor) -> Tensor:
        """`(B,)` float64 of masks `(B, H, W)` or raw maps `(B, h, w)`, and regions `(B, N, H, W)` bool; NaN where these are empty."""

    def value(self, evidence: Evidence) -> Tensor:
        if evidence.regions is None:
            raise InputError(f"a metric of kind {self.kind} needs regions; got none.")
        return self.of_regions(evidence.masks, evidence.raw_maps, evidence.regions)


metrics: Registry[MetricMetadata, Metric] = Registry("metric")


def register(
    name: str, *, symbol: str, better: Better, source: str, limits: tuple[float, float] = (0, 100), unit: str = "%"
) -> Callable[[type[Metric]], type[Metric]]:
    """Decorator that registers a metric, a frozen dataclass of settings of one of the kinds."""

    def enter(metric: type[Metric]) -> type[Metric]:
        kind: str = getattr(metric, "kind", "")
        return metrics.register(name, MetricMetadata(symbol, better, unit, limits, source, kind, _cost(metric())))(metric)

    return enter


def _cost(metric: Metric) -> str:
    """The cost of a metric in forwards."""
    count = sum(forwards(asked, COSTED_SIZE, COSTED_CELLS) for asked in metric.perturbations)
    times = len(metric.explained)
    if metric.needs_parts:
        again = ", and the method twice" if metric.needs_rivals else ""
        return f"1 per subset of the parts and 1 per object of the background, once for all methods{again}"
    if times:
        return f"{count}, and the method {'again' if times == 1 else f'{times} times'}"
    once = count and all(ignores_masks(asked) for asked in metric.perturbations)
    return f"{count}, once for all methods" if once else str(count)


Formula = Callable[..., "Tensor"]


class MaskFunction(Protocol):
    """The public function of a metric of only the mask: masks `(B, H, W)` in [0, 1] → `(B,)` float64."""

    __name__: str

    def __call__(self, masks: Tensor) -> Tensor: ...


def mask_metric(
    name: str, *, symbol: str, better: Better, source: str, limits: tuple[float, float] = (0, 1), unit: str = "1"
) -> Callable[[MaskFunction], MaskFunction]:
    """Decorator that registers a formula over masks `(B, H, W)`; the formula itself is the public function."""

    def enter(formula: MaskFunction) -> MaskFunction:
        @dataclass(frozen=True)
        class Formulated(MaskMetric):
            __doc__ = formula.__doc__

            def of_masks(self, masks: Tensor) -> Tensor:
                return formula(masks)

        reachable(Formulated, formula, formula)
        register(name, symbol=symbol, better=better, source=source, limits=limits, unit=unit)(Formulated)
        return formula

    return enter


def reachable(metric: type[Metric], formula: Formula, function: Any) -> None:
    """Makes a metric that was built from a formula accessible through its function, so that another process finds it."""
    metric.__module__, metric.__qualname__ = formula.__module__, f"{formula.__name__}.Metric"
    function.Metric = metric


def refuse_without_probability(name: str, metric: Metric, has_probability: bool, kind: str) -> None:
    """Raises if a metric uses the target's probability but the target has none.

    Args:
        name: of the metric.
        metric: its settings.
        has_probability: whether the target has one.
        kind: the target's kind in messages.
    """
    if metric.perturbations and not has_probability:
        raise UnsupportedError(
            f"{name} follows the target's probability, and {kind} has none. Metrics of the map alone (complexity, sparsity) can be taken, "
            "or give a target that has a probability."
        )
