"""Iterative removal of features (IROF): superpixels are deleted one by one, in descending order of the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.deferred import torch
from xattn.metrics.base import register
from xattn.metrics.curves import CurvesMetric, Fill, area, refuse_wrong_count
from xattn.metrics.functions import measured
from xattn.metrics.inputs import Outputs, as_fill
from xattn.metrics.masking import EPSILON
from xattn.metrics.perturbations import Curve
from xattn.metrics.protocols import DeletionFill, filled
from xattn.metrics.responses import CurveResponse
from xattn.metrics.targets import Predict, Targets

if TYPE_CHECKING:
    from torch import Tensor

MOST_SUPERPIXELS = 10_000


@register("irof", symbol="IROF", better="higher", limits=(-float("inf"), 100), source="Rieger and Hansen 2020")
@dataclass(frozen=True)
class IROF(CurvesMetric):
    """Area over the curve of p/o as superpixels are deleted, highest mean mask value first.

    Attributes:
        superpixels: approximate number of SLIC superpixels per picture; one is deleted per step.
        fill: what deleted pixels show, as for `deletion`.
    """

    undefined = "the probability of the whole picture is 0"
    superpixels: int = 100
    fill: DeletionFill = "mean"

    def __post_init__(self) -> None:
        refuse_wrong_count(self.superpixels, "superpixels", 2, MOST_SUPERPIXELS)

    @property
    def curves(self) -> tuple[Curve, ...]:
        return (Curve(False, filled(self.fill), superpixels=self.superpixels),)

    def of_curves(self, *curves: CurveResponse) -> Tensor:
        whole = curves[0].p[:, 0]
        return torch.where(whole > 0, 100 - area(curves[0]) / (whole + EPSILON), torch.nan)


def irof(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    superpixels: int = 100,
    replace_with: DeletionFill = "mean",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """100 · area over the curve of p/o against the share of superpixels deleted, highest mean mask value first.

    p is the target's probability and o that of the whole image; trapezoid, both ends included. Every superpixel is one step, independent of
    its size.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`; a superpixel's value is the mean over it.
        targets: class indices `(B,)`, or a target.
        fill: the classifier's mean colour, three values in pixel space; may be None where it is not needed.
        superpixels: number requested from scikit-image's SLIC; a picture has about as many.
        replace_with: what deleted pixels show: "mean", "black", "blur", "noise" or "noisy-linear", the setting `fill` of a run.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64, percent, at most 100, negative where the probability rises; higher is better. NaN where p of the whole image is 0.
        A constant mask has the value of one fixed random order.

    Differs: the mean over images is the mean of their areas, as in the paper; the area is over the share of superpixels, not their number,
    so that pictures with more superpixels do not have a larger weight.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 16, 16), lambda x: torch.zeros(len(x), 4)
    >>> irof(constant, images, torch.rand(1, 16, 16), torch.tensor([0]), fill=[0.5, 0.5, 0.5]).round(decimals=6)
    tensor([0.], dtype=torch.float64)
    """
    metric = IROF(superpixels, replace_with)
    mean = as_fill(fill)
    return measured("irof", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs)
