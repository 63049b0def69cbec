"""Whether what the mask shows first tells the target from another class: the relative drop of Finer-CAM."""

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
    """How much more the target loses than the class it is contrasted with when the mask's highest pixels are deleted.

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
    """(p^c − p*^c) − (p^d − p*^d) of a contrast of class c with class d, p* without the pixels where the mask is highest.

    Deleting what tells c from d takes the probability from c alone; what both have in common takes it from both. p is the softmax over all
    classes, so that the value is not that of the two classes alone, which `deletion` follows along its curve for a contrast. Of several
    classes for or against, it is their mean; weights say only on which side a class is.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`.
        targets: `Contrast`, as `Contrast([c, d], [1.0, -1.0])`. Of class indices `(B,)`, and of any other target, d is all else together:
            the value is twice the fall of the probability.
        fill: the classifier's mean colour, three values in pixel space; may be None where it is not needed.
        share: of the pixels that are deleted, 0.05 or 0.1 in the paper.
        replace_with: what deleted pixels show: "mean", "black", "blur", "noise" or "noisy-linear", the setting `fill` of a run.
        multi_label: of class indices, sigmoid instead of softmax; a contrast says so itself.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64 in [-2, 2]: 2 where c was certain and d is, 0 where nothing changes; higher is better. A constant mask has the value
        of one fixed random choice of pixels.

    Differs: the released code holds no evaluation, so that what its deleted pixels show is not known here. d is the user's choice; the
    paper's is a similar class, as `predicted - second` is.

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
