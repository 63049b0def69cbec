"""What a metric declares of itself, and how one is entered."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

from xattn.registry import Registry

if TYPE_CHECKING:
    from xattn.metrics.looks import Look
    from xattn.metrics.perturbation import Seen
    from xattn.metrics.probability import Predict

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class MetricFacts:
    """Facts of a metric.

    Attributes:
        symbol: what papers print: AD, I, …
        better: which direction is better.
        unit: "%" or "1".
        limits: lowest and highest value.
        takes: what it is given: "masks" at the image's size, "maps" at their own resolution.
        source: where it was published.
    """

    symbol: str
    better: Better
    unit: str
    limits: tuple[float, float]
    takes: tuple[str, ...]
    source: str


metrics: Registry[MetricFacts] = Registry("metric")


class PerturbationMetric(Protocol):
    """A metric that needs the network on changed images: which looks it needs, and its value from what they gave."""

    @property
    def looks(self) -> tuple[Look, ...]:
        """The perturbations whose probabilities it needs."""

    def value(self, seen: Seen) -> Tensor:
        """`(B,)` float64 from what the looks gave."""


class MaskFunction(Protocol):
    """A metric of masks, as users call it."""

    __name__: str

    def __call__(
        self, predict: Predict, images: Tensor, masks: Tensor, targets: Tensor, *, multi_label: bool = False, chunk: int = 8
    ) -> Tensor: ...


def mask_metric(
    name: str, *, symbol: str, better: Better, limits: tuple[float, float], looks: tuple[Look, ...], source: str
) -> Callable[[Callable[..., Tensor]], MaskFunction]:
    """Enters a formula over the probabilities that some looks give, and makes the function `(predict, images, masks, targets)` of it.

    The function's arguments: `predict`, images in pixel space `(B, 3, H, W)` → logits; `images`; `masks` `(B, H, W)` in [0, 1];
    `targets` `(B,)` class indices; `multi_label`, sigmoid instead of softmax; `chunk`, images a forward. It returns `(B,)` float64.
    """

    def enter(formula: Callable[..., Tensor]) -> MaskFunction:
        from xattn.metrics.perturbation import look_at

        @dataclass(frozen=True)
        class Metric:
            __doc__ = formula.__doc__

            @property
            def looks(self) -> tuple[Look, ...]:
                return looks

            def value(self, seen: Seen) -> Tensor:
                return formula(*(seen.probability(look) for look in looks))

        @functools.wraps(formula, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
        def function(
            predict: Predict, images: Tensor, masks: Tensor, targets: Tensor, *, multi_label: bool = False, chunk: int = 8
        ) -> Tensor:
            seen = look_at(predict, images, targets, {"": masks}, looks, multi_label=multi_label, chunk=chunk)
            return Metric().value(seen[""])

        del function.__wrapped__  # its signature is not the formula's
        metrics.register(name, MetricFacts(symbol, better, "%", limits, ("masks",), source))(Metric)
        return function

    return enter
