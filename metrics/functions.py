"""Metrics as functions that run the network: the value of a metric for given masks, and functions from formulas of probabilities."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xattn.metrics.base import (
    Aggregation,
    Better,
    Evidence,
    Formula,
    Metric,
    ResponseMetric,
    reachable,
    refuse_without_probability,
    register,
)
from xattn.metrics.inputs import Outputs, as_images, as_masks
from xattn.metrics.perturbations import Perturbation
from xattn.metrics.probability import Probability
from xattn.metrics.responses import evaluate_perturbations
from xattn.metrics.targets import Predict, Targets, as_target

if TYPE_CHECKING:
    from torch import Tensor


class ResponseFunction(Protocol):
    """The public function of a metric of responses to perturbations."""

    __name__: str

    def __call__(
        self,
        predict: Predict,
        images: Tensor,
        masks: Tensor,
        targets: Targets,
        *,
        multi_label: bool = False,
        chunk: int = 8,
        outputs: Outputs | None = None,
    ) -> Tensor: ...


def response_metric(
    name: str,
    *,
    symbol: str,
    better: Better,
    source: str,
    perturbations: tuple[Perturbation, ...],
    limits: tuple[float, float] = (0, 100),
    unit: str = "%",
    aggregation: Aggregation = "mean",
) -> Callable[[Formula], ResponseFunction]:
    """Decorator that registers a formula over the probabilities under some perturbations, and builds its public function.

    The function's arguments: `predict`, images in pixel space `(B, 3, H, W)` → logits; `images`; `masks` `(B, H, W)` in [0, 1]; `targets`,
    class indices `(B,)` or a target; `multi_label`, sigmoid instead of softmax; `chunk`, images per forward; `outputs`, "probabilities" if
    `predict` returns these instead of logits. It returns `(B,)` float64.
    """

    def enter(formula: Formula) -> ResponseFunction:
        asked, aggregated = perturbations, aggregation

        @dataclass(frozen=True)
        class Formulated(ResponseMetric):
            __doc__ = formula.__doc__

            @property
            def perturbations(self) -> tuple[Perturbation, ...]:
                return asked

            @property
            def aggregation(self) -> Aggregation:
                return aggregated

            def of_probabilities(self, *probabilities: Probability) -> Tensor:
                return formula(*probabilities)

        @functools.wraps(formula, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
        def function(
            predict: Predict,
            images: Tensor,
            masks: Tensor,
            targets: Targets,
            *,
            multi_label: bool = False,
            chunk: int = 8,
            outputs: Outputs | None = None,
        ) -> Tensor:
            return measured(name, Formulated(), predict, images, masks, targets, multi_label=multi_label, chunk=chunk, outputs=outputs)

        del function.__wrapped__  # its signature is not that of the formula
        reachable(Formulated, formula, function)
        register(name, symbol=symbol, better=better, source=source, limits=limits, unit=unit)(Formulated)
        return function

    return enter


def measured(
    name: str,
    metric: Metric,
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    mean: Tensor | None = None,
    multi_label: bool = False,
    chunk: int = 8,
    explanations: Mapping[Perturbation, Tensor] | None = None,
    outputs: Outputs | None = None,
) -> Tensor:
    """The value of one metric for given masks.

    Raises:
        UnsupportedError: the metric needs a probability, but the target has none.
        InputError: shapes or values that do not match, masks that are not finite, or probabilities instead of logits.
    """
    images = as_images(images)
    masks, target = as_masks(masks, len(images)), as_target(targets, len(images), multi_label=multi_label)
    refuse_without_probability(name, metric, target.has_probability, target.kind)
    responses = evaluate_perturbations(predict, images, target, {"": masks}, metric.perturbations, mean=mean, chunk=chunk, outputs=outputs)
    return metric.value(Evidence(masks, masks, None, responses[""], explanations or {}))
