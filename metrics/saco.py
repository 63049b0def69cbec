"""SaCo, the salience-guided faithfulness coefficient: whether the mask orders groups of pixels like their effects on the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.deferred import torch
from xattn.metrics.base import Evidence, Metric, register
from xattn.metrics.curves import Fill, refuse_wrong_count
from xattn.metrics.functions import measured
from xattn.metrics.inputs import Outputs, as_fill
from xattn.metrics.perturbations import ORIGINAL, Groups, Perturbation
from xattn.metrics.protocols import DeletionFill, filled
from xattn.metrics.targets import Predict, Targets

if TYPE_CHECKING:
    from torch import Tensor

MOST_GROUPS = 1000
EQUAL = 1e-9  # differences of two groups below this share of the sum over all groups are rounding

ROUNDING = 1e-6  # falls of probability below this are rounding


@register("saco", symbol="SaCo", better="higher", limits=(-1, 1), unit="1", source="Wu et al. 2024, Alg. 1")
@dataclass(frozen=True)
class SaCo(Metric):
    """Whether the deletion of a group of pixels with higher mask values lowers the target's probability more.

    Attributes:
        groups: number of groups, of equal size, in the order of the mask.
        fill: what deleted pixels show, as for `deletion`.
    """

    kind = "responses"
    groups: int = 10
    fill: DeletionFill = "mean"

    def __post_init__(self) -> None:
        refuse_wrong_count(self.groups, "groups", 2, MOST_GROUPS)

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return ORIGINAL, Groups(self.groups, filled(self.fill))

    def value(self, evidence: Evidence) -> Tensor:
        found = evidence.responses.groups[Groups(self.groups, filled(self.fill))]
        fall = evidence.responses.probability(ORIGINAL).p[:, None] - found.p
        first, second = torch.triu_indices(self.groups, self.groups, 1, device=fall.device)
        apart = found.mask_means[:, first] - found.mask_means[:, second]
        apart = torch.where(apart.abs() > EQUAL * found.mask_means.abs().sum(dim=1, keepdim=True), apart, 0)
        agrees = torch.where(fall[:, first] >= fall[:, second] - ROUNDING, 1.0, -1.0).double()
        weight = apart.abs().sum(dim=1)
        undefined = (weight == 0) | found.p.isnan().any(dim=1) | fall.isnan().any(dim=1)
        return torch.where(undefined, torch.nan, (agrees * apart).sum(dim=1) / weight)


def saco(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    groups: int = 10,
    replace_with: DeletionFill = "mean",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """Share of pairs of pixel groups that agree minus the share that do not, each pair weighted by the difference of its mask means.

    The pixels are cut into groups of equal size in the order of the mask, G_1 the highest. s_i is the mask's mean over G_i, d_i the fall of
    the target's probability when only G_i is deleted. The value is Σ ±(s_i − s_j) / Σ (s_i − s_j) over i < j, with + where d_i ≥ d_j.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`.
        targets: class indices `(B,)`, or a target.
        fill: the classifier's mean colour, three values in pixel space; may be None where it is not needed.
        groups: number of groups.
        replace_with: what deleted pixels show: "mean", "black", "blur", "noise" or "noisy-linear", the setting `fill` of a run.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64 in [-1, 1]: 1 where every pair agrees, -1 where none does, NaN for a constant mask; higher is better.

    Differs: means instead of sums, which is the same for groups of equal size; a deleted pixel shows the classifier's mean colour, in the
    paper the mean of the image. A constant classifier has 1, since equal falls agree, as in the paper.

    >>> import torch
    >>> images, masks = torch.ones(1, 3, 4, 4), torch.arange(16.0).view(1, 4, 4) / 15
    >>> weighed = lambda x: torch.stack([(x[:, 0] * masks).sum((1, 2)), 0 * x[:, 0, 0, 0]], dim=1)
    >>> saco(weighed, images, masks, torch.tensor([0]), fill=None, groups=4, replace_with="black")
    tensor([1.], dtype=torch.float64)
    """
    metric = SaCo(groups, replace_with)
    mean = as_fill(fill)
    return measured("saco", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs)
