"""Pixel flipping from both ends of the mask's order: symmetric relevance gain, and ROAD.

The curve with the lowest pixels removed first is the insertion curve from the same fill, read from its end: once the lowest 30 % are
removed, the highest 70 % are left. Both orders therefore share their forwards with insertion and deletion of the same fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xattn.errors import InputError
from xattn.metrics.base import register
from xattn.metrics.curves import CurvesMetric, Fill, area, refuse_wrong_count
from xattn.metrics.functions import measured
from xattn.metrics.inputs import Outputs, as_fill
from xattn.metrics.perturbations import Curve
from xattn.metrics.protocols import DeletionFill, filled
from xattn.metrics.responses import CurveResponse
from xattn.metrics.targets import Predict, Targets

if TYPE_CHECKING:
    from torch import Tensor

MOST_STEPS = 1000

Measure = Literal["probability", "accuracy"]


@register("srg", symbol="SRG", better="higher", limits=(-100, 100), source="Blücher et al. 2024")
@dataclass(frozen=True)
class SRG(CurvesMetric):
    """Symmetric relevance gain: area between the curves of pixels deleted lowest first and highest first.

    Attributes:
        step: pixels per step; None: 8 · W.
        fill: what deleted pixels show, as for `deletion`.
    """

    step: int | None = None
    fill: DeletionFill = "mean"

    def __post_init__(self) -> None:
        if self.step is not None:
            refuse_wrong_count(self.step, "pixels per step")

    @property
    def curves(self) -> tuple[Curve, ...]:
        return tuple(Curve(insertion, filled(self.fill), self.step) for insertion in (True, False))

    def of_curves(self, *curves: CurveResponse) -> Tensor:
        lowest_first, highest_first = curves
        return area(lowest_first) - area(highest_first)


@dataclass(frozen=True)
class _ROAD(CurvesMetric):
    """Settings of ROAD in one order.

    Attributes:
        fill: what removed pixels show, as for `deletion`.
        steps: number of steps of equal size; the two ends, with all or no pixel removed, do not count.
        measure: "probability", of the target; "accuracy", the share of steps at which the network still answers with the target.
    """

    fill: DeletionFill = "noisy-linear"
    steps: int = 10
    measure: Measure = "probability"

    def __post_init__(self) -> None:
        refuse_wrong_count(self.steps, "steps", 2, MOST_STEPS)
        if self.measure not in ("probability", "accuracy"):
            raise InputError(f"a measure is 'probability' or 'accuracy'; got {self.measure!r:.40}.")

    def of_curves(self, *curves: CurveResponse) -> Tensor:
        followed = curves[0].p if self.measure == "probability" else curves[0].answers
        return 100 * followed[:, 1:-1].mean(dim=1)


@register("road-morf", symbol="MoRF", better="lower", source="Rong et al. 2022")
@dataclass(frozen=True)
class ROADMoRF(_ROAD):
    """Mean probability of the target with the 10, 20, …, 90 % of pixels of highest mask value removed and interpolated."""

    @property
    def curves(self) -> tuple[Curve, ...]:
        return (Curve(False, filled(self.fill), steps=self.steps),)


@register("road-lerf", symbol="LeRF", better="higher", source="Rong et al. 2022")
@dataclass(frozen=True)
class ROADLeRF(_ROAD):
    """Mean probability of the target with the 10, 20, …, 90 % of pixels of lowest mask value removed and interpolated."""

    @property
    def curves(self) -> tuple[Curve, ...]:
        return (Curve(True, filled(self.fill), steps=self.steps),)


def srg(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    step: int | None = None,
    replace_with: DeletionFill = "mean",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """100 · (area of the curve with the lowest pixels deleted first − area with the highest first): symmetric relevance gain.

    Both curves begin at the image and end where nothing of it is left; a random order has a mean of 0, for every fill. A mask with reversed
    order has the negative value, if no pixels tie and the step divides their number. A constant mask has the value of one fixed random
    order.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`.
        targets: class indices `(B,)`, or a target.
        fill: the classifier's mean colour, three values in pixel space; may be None where it is not needed.
        step: pixels per step; None: 8 · W.
        replace_with: what deleted pixels show: "mean", "black", "blur", "noise" or "noisy-linear", the setting `fill` of a run.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64, points in [-100, 100]; higher is better.

    Differs: single pixels are ordered, not superpixels; you choose the target, which need not be the predicted class. If the step does not
    divide the number of pixels, both orders are cut at the same pixels: the shorter step is the last of one and the first of the other.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 16, 16), lambda x: torch.zeros(len(x), 4)
    >>> srg(constant, images, torch.rand(1, 16, 16), torch.tensor([0]), fill=[0.5, 0.5, 0.5])
    tensor([0.], dtype=torch.float64)
    """
    metric = SRG(step, replace_with)
    mean = as_fill(fill)
    return measured("srg", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs)


def road_morf(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill = None,
    replace_with: DeletionFill = "noisy-linear",
    steps: int = 10,
    measure: Measure = "probability",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """100 · mean probability of the target, or accuracy, with the most relevant 10, 20, …, 90 % of the pixels removed (ROAD, MoRF).

    Removed pixels are the weighted mean of their neighbours (`xattn.metrics.inpainting`) with noise of standard deviation 0.01.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`.
        targets: class indices `(B,)`, or a target.
        fill: the classifier's mean colour, for the fills that need it.
        replace_with: what removed pixels show, as for `srg`.
        steps: number of steps of equal size.
        measure: "probability"; "accuracy", the share of steps at which the network's answer is the target: a class has the highest logit;
            any other target has a probability above one half.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64, percent in [0, 100]; lower is better.

    Differs: noise is seeded by the image and the sum clipped to [0, 1]; the paper and its code report the accuracy over a data set at each
    share, and `measure="accuracy"` is the mean over these shares, for the target instead of the label.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 16, 16), lambda x: torch.zeros(len(x), 4)
    >>> road_morf(constant, images, torch.rand(1, 16, 16), torch.tensor([0])).round()
    tensor([25.], dtype=torch.float64)
    """
    metric = ROADMoRF(replace_with, steps, measure)
    mean = as_fill(fill)
    return measured("road-morf", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs)


def road_lerf(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill = None,
    replace_with: DeletionFill = "noisy-linear",
    steps: int = 10,
    measure: Measure = "probability",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """100 · mean probability of the target, or accuracy, with the least relevant 10, 20, …, 90 % of the pixels removed (ROAD, LeRF).

    Arguments, range and differences as for `road_morf`: `predict` gives logits. Higher is better.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 16, 16), lambda x: torch.zeros(len(x), 4)
    >>> road_lerf(constant, images, torch.rand(1, 16, 16), torch.tensor([0])).round()
    tensor([25.], dtype=torch.float64)
    """
    metric = ROADLeRF(replace_with, steps, measure)
    mean = as_fill(fill)
    return measured("road-lerf", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs)
