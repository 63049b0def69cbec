"""Relative drop of Finer-CAM: whether the mask's highest pixels distinguish the target from another class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.errors import InputError
from xattn.metrics.base import Evidence, Metric, register
from xattn.metrics.curves import Fill
from xattn.metrics.functions import measured
from xattn.metrics.inputs import Outputs, as_fill
from xattn.metrics.perturbations import ORIGINAL, Highest, Perturbation
from xattn.metrics.protocols import DeletionFill, filled
from xattn.metrics.targets import Predict, Targets

if TYPE_CHECKING:
    from torch import Tensor


@register("relative-drop", symbol="RD", better="higher", limits=(-2, 2), unit="1", source="Zhang et al. 2025, Eq. 10")
@dataclass(frozen=True)
class RelativeDrop(Metric):
    """Difference between the falls of the target's and the contrasted class's probability when the mask's highest pixels are deleted.

    Attributes:
        share: of the pixels that are deleted.
        fill: what deleted pixels show, as for `deletion`.
    """

    kind = "responses"
    share: float = 0.05
    fill: DeletionFill = "mean"

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not isinstance(self.share, (int, float)) or not 0 < self.share < 1:
            raise InputError(f"the share of pixels that are deleted lies between 0 and 1; got {self.share!r:.40}.")

    @property
    def asked(self) -> Highest:
        """The pixels."""
        return Highest(self.share, filled(self.fill))

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return ORIGINAL, self.asked

    def value(self, evidence: Evidence) -> Tensor:
        margins = evidence.responses.margins
        return margins[ORIGINAL] - margins[self.asked]


def relative_drop(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    share: float = 0.05,
    replace_with: DeletionFill = "mean",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """(p^c − p*^c) − (p^d − p*^d) of a contrast of class c with class d, with p* the probability without the pixels where the mask is
    highest.

    Deleting pixels that distinguish c from d lowers only the probability of c; deleting pixels that both have in common lowers both. p is
    the softmax over all classes; `deletion` of a contrast instead uses the probability of c given c or d. With several classes on one side,
    p is their mean; weights only determine the side of a class.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`.
        targets: `Contrast`, as `Contrast([c, d], [1.0, -1.0])`. For class indices `(B,)` and for any other target, d is all other classes
            together: the value is twice the fall of the probability.
        fill: the classifier's mean colour, three values in pixel space; may be None where it is not needed.
        share: of the pixels that are deleted, 0.05 or 0.1 in the paper.
        replace_with: what deleted pixels show: "mean", "black", "blur", "noise" or "noisy-linear", the setting `fill` of a run.
        multi_label: for class indices, sigmoid instead of softmax; a contrast has its own setting.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64 in [-2, 2]: 2 if c was certain and d is certain afterwards, 0 if nothing changes; higher is better. A constant mask
        has the value of one fixed random choice of pixels.

    Differs: the released code has no evaluation, so the values of its deleted pixels are unknown. The user chooses d; in the paper it is a
    similar class, as in `predicted - second`.

    >>> import torch
    >>> from xattn.metrics.targets import Contrast
    >>> images, masks = torch.ones(1, 3, 4, 4), torch.eye(4)[None]
    >>> bright = lambda x: torch.stack([1e3 * (x.mean((1, 2, 3)) - 0.9), 0 * x[:, 0, 0, 0]], dim=1)
    >>> relative_drop(bright, images, masks, Contrast([0, 1], [1.0, -1.0]), fill=None, share=0.25, replace_with="black")
    tensor([2.], dtype=torch.float64)
    """
    metric = RelativeDrop(share, replace_with)
    mean = as_fill(fill)
    return measured(
        "relative-drop", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs
    )
