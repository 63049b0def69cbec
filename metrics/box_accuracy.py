"""Localisation accuracy by boxes: the boxes around a thresholded map compared with those of the objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xattn.deferred import torch
from xattn.errors import InputError, SettingError
from xattn.metrics.base import RegionMetric, register
from xattn.metrics.inputs import as_maps, as_masks, as_regions, refuse_no_masks
from xattn.metrics.perturbations import LEVELS
from xattn.metrics.probability import widened

if TYPE_CHECKING:
    from torch import Tensor

IOUS = (30, 50, 70)
CUSTOMARY = 0.2
ORACLE = tuple(number / 50 for number in range(1, 50))  # thresholds that the oracle and `box_threshold` choose from

Iou = Literal["all", "30", "50", "70"]
Threshold = float | Literal["oracle"]


def _refuse_other_shares(thresholds: Sequence[object]) -> None:
    for each in thresholds:
        if isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 <= each <= 1:
            raise SettingError(f"a threshold is a share of the mask's maximum, in [0, 1], or 'oracle'; got {each!r}.")


def _shares(threshold: Threshold) -> tuple[float, ...]:
    """The thresholds to try: one, or many for the oracle."""
    return ORACLE if isinstance(threshold, str) and threshold == "oracle" else (threshold,)


@register("box-accuracy", symbol="BoxAcc", better="higher", source="Choe et al. 2020, Sec. 3.3 (MaxBoxAccV2)")
@dataclass(frozen=True)
class BoxAccuracy(RegionMetric):
    """Whether a box around the thresholded mask matches the box of an object, at IoU 30, 50 and 70 %.

    Attributes:
        threshold: share of the mask's maximum, chosen on other pictures; "oracle": the best one for each picture and IoU.
        iou: the required intersection over union; "all": the mean of 30, 50 and 70 %.
    """

    threshold: Threshold = CUSTOMARY
    iou: Iou = "all"

    def __post_init__(self) -> None:
        _refuse_other_shares(_shares(self.threshold))

    def of_regions(self, masks: Tensor, raw_maps: Tensor, regions: Tensor) -> Tensor:
        return box_accuracy(masks, regions, threshold=self.threshold, iou=self.iou)


def box_accuracy(masks: Tensor, regions: Tensor, *, threshold: Threshold = CUSTOMARY, iou: Iou = "all") -> Tensor:
    """Whether a box around the thresholded mask matches the box of an object: 100 · [max IoU ≥ δ], the mean over δ = 30, 50 and 70 %.

    The boxes of a mask are those of the connected parts (8 neighbours) of its pixels at or above `threshold` times its maximum. The value
    is the largest intersection over union of one of these boxes with the box of one of the objects.

    MaxBoxAccV2 is the mean of this over pictures, with the best threshold for each δ. Choose the threshold on held-out pictures, by
    `box_threshold` with `iou="30"`, "50" and "70", and pass it here. 0.2 is the threshold of Zhou et al. 2016 and was not tuned.

    **Differs**: "oracle" takes the best threshold of each picture, from 0.02 to 0.98, which no method can know: an upper bound of the
    paper's value, which uses one threshold for all pictures.

    Args:
        masks: `(B, H, W)` in [0, 1].
        regions: `(B, H, W)`, or `(B, N, H, W)` with N objects, bool.
        threshold: share of the mask's maximum, in [0, 1], or "oracle".
        iou: "30", "50" or "70", or "all".

    Returns:
        `(B,)` float64, percent in [0, 100]; higher is better. NaN for an empty region and for a mask of zeros. A constant mask has the box
        of the whole picture, whose IoU is the box's share of it.

    Raises:
        InputError: shapes or values that do not match.
        SettingError: a threshold outside [0, 1].

    >>> import torch
    >>> region = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> region[0, :2, :2] = True
    >>> box_accuracy(region.float(), region), box_accuracy(torch.ones(1, 4, 4), region)
    (tensor([100.], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """
    if iou not in ("all", *map(str, IOUS)):
        raise InputError(f"iou is 'all', '30', '50' or '70'; got {iou!r}.")
    return _accuracy(box_overlaps(masks, regions, _shares(threshold)).amax(dim=1), iou)


def box_threshold(masks: Tensor, regions: Tensor, *, iou: Iou = "all") -> float:
    """The threshold with the highest mean `box_accuracy` on some pictures, for use on others.

    Args:
        masks: `(B, H, W)` in [0, 1], of held-out pictures.
        regions: `(B, H, W)`, or `(B, N, H, W)` with N objects, bool.
        iou: "30", "50" or "70", or "all".

    Returns:
        One of 0.02, 0.04, …, 0.98; the lowest of several equally good ones.

    Raises:
        InputError: shapes or values that do not match, or no picture has a value.

    >>> import torch
    >>> region = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> region[0, :2, :2] = True
    >>> box_threshold(0.5 + 0.5 * region.float(), region)
    0.52
    """
    accuracies = _accuracy(box_overlaps(masks, regions, ORACLE), iou).nanmean(dim=0)
    if bool(accuracies.isnan().all()):
        raise InputError("a threshold is chosen on pictures that have a region and a map that shows something; none of these has both.")
    return ORACLE[int(accuracies.argmax())]


def box_overlaps(masks: Tensor, regions: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Largest intersection over union of a box of the mask and one of an object, at each threshold.

    Args:
        masks: `(B, H, W)` in [0, 1].
        regions: `(B, H, W)`, or `(B, N, H, W)` with N objects, bool.
        thresholds: T shares of the mask's maximum, in [0, 1].

    Returns:
        `(B, T)` float64 in [0, 1]; NaN for an empty region and for a mask of zeros.

    Raises:
        InputError: shapes or values that do not match.
        SettingError: a threshold outside [0, 1].
    """
    from xattn.boxes import overlaps  # imported here because it loads torch, which is not needed to read runs

    _refuse_other_shares(thresholds)
    maps = as_maps(masks, "masks")
    masks = as_masks(maps, len(maps))
    refuse_no_masks(masks)
    objects = as_regions(regions, masks)
    if objects.shape[2:] != masks.shape[1:]:
        raise InputError(f"masks and regions have one size; got masks {tuple(masks.shape)} and regions {tuple(objects.shape)}.")
    levels = (masks * LEVELS).round()
    peak = levels.amax(dim=(1, 2))
    true = _boxes_of(objects.flatten(0, 1)).view(len(masks), -1, 4)
    columns = []
    for threshold in thresholds:
        owners, boxes = _component_boxes(levels >= (threshold * peak)[:, None, None])
        best = overlaps(boxes[:, None], true[owners]).amax(dim=(1, 2))
        columns.append(torch.zeros(len(masks), device=masks.device).scatter_reduce(0, owners, best, "amax"))
    defined = (peak > 0) & objects.flatten(1).any(dim=1)
    return widened(torch.where(defined[:, None], torch.stack(columns, dim=1), torch.nan))


def _accuracy(found: Tensor, iou: Iou) -> Tensor:
    """100 where the overlap is large enough, else 0, averaged over the IoUs; NaN stays NaN."""
    wanted = IOUS if iou == "all" else (int(iou),)
    hits = torch.stack([(100 * found >= each - 1e-4).double() for each in wanted]).mean(dim=0)
    return torch.where(found.isnan(), torch.nan, 100 * hits)


def _component_boxes(shown: Tensor) -> tuple[Tensor, Tensor]:
    """The connected parts of pixels `(B, H, W)` bool, 8 neighbours: the image `(M,)` and the box `(M, 4)` of each.

    Horizontal runs are joined instead of pixels, since there are fewer of them.
    """
    outside = torch.nn.functional.pad(~shown, (1, 1, 1, 1), value=True)
    begins, ends = shown & outside[:, 1:-1, :-2], shown & outside[:, 1:-1, 2:]
    (image, y, left), right = begins.nonzero(as_tuple=True), ends.nonzero(as_tuple=True)[2] + 1
    number = torch.nn.functional.pad((begins.flatten().cumsum(0) - 1).view_as(shown), (1, 1, 1, 1))  # number of the run of each pixel
    run = torch.arange(len(left), device=shown.device)
    own, other = [], []
    for down in (-1, 1):  # if two runs touch, one begins next to a pixel of the other
        for across in (-1, 0, 1):
            at = (image, y + 1 + down, left + 1 + across)
            touches = ~outside[at]
            own.append(run[touches])
            other.append(number[at][touches])
    ones, others = torch.cat([*own, *other]), torch.cat([*other, *own])
    part = run
    while True:  # the highest number of a part spreads; each run also takes the number of the run that it points to
        before = part
        part = part.scatter_reduce(0, ones, part[others], "amax")
        part = part[part]
        if torch.equal(part, before):
            break
    roots = (part == run).nonzero()[:, 0]
    sides = [(left, "amin"), (y, "amin"), (right, "amax"), (y + 1, "amax")]
    boxes = [place.scatter_reduce(0, part, place, how)[roots] for place, how in sides]  # a root's own run is in its part
    return image[roots], torch.stack(boxes, dim=1).float()


def _boxes_of(regions: Tensor) -> Tensor:
    """The box around each region `(M, H, W)` bool: `(M, 4)`; zeros for an empty region."""
    edges = []
    for axis in (1, 2):  # first over the rows, which gives the covered columns, then the other way round
        covered = regions.any(dim=axis)
        places = torch.arange(covered.shape[1], device=regions.device)
        edges.append((torch.where(covered, places, covered.shape[1]).amin(dim=1), torch.where(covered, places + 1, 0).amax(dim=1)))
    (left, right), (top, bottom) = edges
    boxes = torch.stack([left, top, right, bottom], dim=1).float()
    return torch.where(regions.flatten(1).any(dim=1)[:, None], boxes, 0)
