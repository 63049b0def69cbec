"""Computes the target's probability under the perturbations of all metrics, in full chunks of one size.

`evaluate_perturbations` flattens all perturbations of all images under all masks into one stream of images. Images that do not depend on a
mask (the image itself, its baselines) are run once for all masks and are also the ends of every curve; images that are the same under two
masks are run once. Several networks that take the same images, such as heads on one backbone, share one stream: `evaluate_for_all`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.adaptive import interpolated
from xattn.metrics.curve_state import CurveState, Reply
from xattn.metrics.fills import Baseline, Fill
from xattn.metrics.inputs import CheckedPredict, Outputs, as_images, as_masks, refuse_chunk, refuse_no_masks
from xattn.metrics.perturbations import (
    ORIGINAL,
    Curve,
    Groups,
    Highest,
    Kept,
    Original,
    Patches,
    Perturbation,
    RankedPixels,
    Removed,
    Subsets,
    rank_pixels,
    rank_superpixels,
    takes_low_res,
)
from xattn.metrics.probability import Probability, widened
from xattn.metrics.removals import (
    GroupResponse,
    PatchResponse,
    SubsetResponse,
    chosen_patches,
    without_groups,
    without_highest,
    without_patches,
    without_subsets,
)
from xattn.metrics.segments import superpixels
from xattn.metrics.stream import Forwards, PerturbedImages, Read, of_rows, stream
from xattn.metrics.target_base import Target
from xattn.metrics.targets import ClassTarget, Predict, Targets, as_target

if TYPE_CHECKING:
    from torch import Tensor


class CurveResponse(NamedTuple):
    """The target's probability along a curve of T steps.

    Attributes:
        shares: `(B, T + 1)` float64, share of the changed pixels, from 0 to 1.
        p: `(B, T + 1)` float64, the target's probability; if the curve has a tolerance, a monotone cubic between the evaluated steps.
        mask_means: `(B, T)` float64, mean mask value of the pixels of each step.
        answers: `(B, T + 1)` float64, 1 where the network's answer is the target, else 0; NaN at steps that were not evaluated.
    """

    shares: Tensor
    p: Tensor
    mask_means: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Responses:
    """The target's probability under the perturbations of one mask."""

    probabilities: Mapping[Perturbation, Probability] = field(default_factory=dict)
    curves: Mapping[Curve, CurveResponse] = field(default_factory=dict)
    groups: Mapping[Groups, GroupResponse] = field(default_factory=dict)
    subsets: Mapping[Subsets, SubsetResponse] = field(default_factory=dict)
    patches: Mapping[Patches, PatchResponse] = field(default_factory=dict)
    margins: Mapping[Perturbation, Tensor] = field(default_factory=dict)

    def finite(self) -> Tensor | None:
        """Whether every probability of an image is finite, `(B,)` bool; None if nothing was evaluated."""
        columns = [found.p[:, None] for found in self.probabilities.values()]
        columns += [found.p for several in (self.curves, self.groups, self.subsets, self.patches) for found in several.values()]
        return torch.isfinite(torch.cat(columns, dim=1)).all(dim=1) if columns else None

    def probability(self, perturbation: Perturbation) -> Probability:
        return self.probabilities[perturbation]

    def curve(self, curve: Curve) -> CurveResponse:
        return self.curves[curve]


def evaluate_perturbations(
    predict: Predict,
    images: Tensor,
    targets: Targets,
    masks: Mapping[str, Tensor],
    perturbations: Sequence[Perturbation],
    *,
    low_res_masks: Mapping[str, Tensor] | None = None,
    mean: Tensor | None = None,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> dict[str, Responses]:
    """Computes the target's probability under every perturbation and every mask.

    Args:
        predict: images in pixel space → logits `(B, K)`, before any softmax or sigmoid; it gets chunks of exactly `chunk` images.
        images: `(B, 3, H, W)` in pixel space.
        targets: a target, or class indices `(B,)`.
        masks: by name, `(B, H, W)` in [0, 1].
        perturbations: without duplicates.
        low_res_masks: by name, masks at their maps' own resolution, for the perturbations that take them; None: the masks.
        mean: the classifier's mean colour, three values in pixel space.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Raises:
        InputError: shapes or values that do not match, a missing colour, masks that are not finite, or probabilities instead of logits.
        UnsupportedError: the target has no probability.
    """
    refuse_chunk(chunk)
    images = as_images(images)
    checked = CheckedPredict(predict, as_target(targets, len(images)), outputs)
    if low_res_masks is not None:
        low_res_masks = {name: as_masks(some, len(images)) for name, some in low_res_masks.items()}
    found = evaluate_for_all(
        Forwards(lambda perturbed: (checked(perturbed),), chunk),
        images,
        [checked.target],
        {name: as_masks(some, len(images)) for name, some in masks.items()},
        perturbations,
        low_res_masks=low_res_masks,
        mean=mean,
    )[0]
    checked.refuse_probabilities()
    return found


def evaluate_for_all(
    forwards: Forwards,
    images: Tensor,
    targets: Sequence[Target],
    masks: Mapping[str, Tensor],
    perturbations: Sequence[Perturbation],
    *,
    low_res_masks: Mapping[str, Tensor] | None = None,
    mean: Tensor | None = None,
) -> list[dict[str, Responses]]:
    """`evaluate_perturbations` for several networks that take the same perturbed images; a curve with a tolerance takes one network only.

    Args:
        forwards: how the images are run by the networks.
        targets: one per network.
    """
    if not perturbations:
        return [{name: Responses() for name in masks} for _ in targets]
    low_res_masks = masks if low_res_masks is None else low_res_masks
    _check(images, masks, low_res_masks, perturbations)
    masks, low_res_masks = ({name: some.to(images.device) for name, some in given.items()} for given in (masks, low_res_masks))
    scored, contrasted = (any(isinstance(asked, kind) for asked in perturbations) for kind in (Patches, Highest))
    read = [_replies_of(target, scored=scored, contrasted=contrasted) for target in targets]

    def run(asked: Mapping[Any, PerturbedImages]) -> list[dict[Any, Reply]]:
        found = stream(forwards, list(asked.values()), images, read, len(Reply._fields))
        return [{key: Reply(*columns) for key, columns in zip(asked, of_one, strict=True)} for of_one in found]

    asked = _Asked(images, masks, low_res_masks, perturbations, mean)
    answers = run(asked.runs)
    networks = [_Answers(asked, found) for found in answers]
    if len(networks) == 1:  # the next steps depend on the responses
        only = networks[0]
        while more := {key: next_run for key, curve in only.curves.items() if (next_run := curve.more()) is not None}:
            for key, found in run(more)[0].items():
                only.curves[key].take(found)
    return [{name: network.responses(name) for name in masks} for network in networks]


def _replies_of(target: Target, *, scored: bool, contrasted: bool) -> Read:
    def read(output: Tensor, index: Tensor) -> Reply:
        own = target[index]
        found = own.probability(output)
        unasked = torch.full_like(found.p, torch.nan)
        score, margin = widened(own.score(output)) if scored else unasked, own.margin(output) if contrasted else unasked
        return Reply(found.p, found.rest, _is_answer(own, output, found), score, margin)

    return read


def _is_answer(target: Target, output: Tensor, probability: Probability) -> Tensor:
    """Whether the network's answer is the target, 1 or 0: a single-label class has the highest logit; another target has p above one
    half."""
    found = probability.p > probability.rest
    if isinstance(target, ClassTarget) and not target.multi_label:
        found = output.argmax(dim=1).to(found.device) == target.classes.to(found.device)
    return found.double().masked_fill(probability.p.isnan(), torch.nan)


_Replacing = Curve | Groups | Subsets | Patches | Highest  # perturbations with a baseline


class _Asked:
    """All requested perturbations of one batch of images, as runs of perturbed images, each only once.

    Attributes:
        runs: by mask and perturbation, or, for images that do not depend on a mask, by original image or baseline.
        owners: by mask, for each image the index of the first identical mask, `(B,)`.
        rows: by mask, the images for which it is the first.
        ranked: the order of the pixels, by mask and what determines it.
        chosen: the patches of random subsets.
        fills: the fills of replaced pixels.
    """

    def __init__(
        self,
        images: Tensor,
        masks: Mapping[str, Tensor],
        low_res_masks: Mapping[str, Tensor],
        perturbations: Sequence[Perturbation],
        mean: Tensor | None,
    ) -> None:
        self.images, self.perturbations = images, perturbations
        size = (images.shape[2], images.shape[3])
        bases = sorted({asked.baseline for asked in perturbations if isinstance(asked, _Replacing)}, key=repr)
        self.fills: dict[Baseline, Fill] = {base: Fill(images, base, mean) for base in bases}
        self.owners = _owners(masks, low_res_masks if any(takes_low_res(asked) for asked in perturbations) else masks)
        self.rows = {name: (owner == number).nonzero()[:, 0] for number, (name, owner) in enumerate(self.owners.items())}
        ends = dict.fromkeys(asked.baseline for asked in perturbations if isinstance(asked, Curve))
        self.runs: dict[Any, PerturbedImages] = {ORIGINAL: _plain(images)} | {base: _plain(self.fills[base].whole) for base in ends}
        self.chosen = {asked: chosen_patches(images, asked) for asked in perturbations if isinstance(asked, Subsets)}
        self.runs |= {asked: without_subsets(self.fills[asked.baseline], patches, asked.patch) for asked, patches in self.chosen.items()}
        self.runs |= {
            asked: without_patches(self.fills[asked.baseline], asked.grid) for asked in perturbations if isinstance(asked, Patches)
        }
        self.ranked: dict[tuple[str, Curve | Groups | Highest], RankedPixels] = {}
        ranked: dict[tuple[object, ...], RankedPixels] = {}
        segmented = {count: superpixels(images, count) for count in _superpixels_asked(perturbations)}
        for name, mask in masks.items():
            for asked in perturbations:
                if isinstance(asked, Kept | Removed) and len(self.rows[name]):
                    shown = shown_share(asked, mask, low_res_masks[name], size).to(images)
                    self.runs[name, asked] = _masked(images, shown, self.rows[name])
                elif isinstance(asked, Curve | Groups | Highest):
                    curve = asked if isinstance(asked, Curve) else asked.curve
                    key = (name, curve.low_res, curve.as_bytes, curve.step, curve.steps, curve.superpixels)
                    if key not in ranked and curve.superpixels is not None:
                        ranked[key] = rank_superpixels(segmented[curve.superpixels], mask)
                    elif key not in ranked:
                        ranked[key] = rank_pixels(curve, mask, low_res_masks[name], size)
                    self.ranked[name, asked] = ranked[key]
                    if isinstance(asked, Curve):
                        begun = self.curve(name, asked).begin()
                    elif isinstance(asked, Highest):
                        begun = without_highest(self.fills[asked.baseline], ranked[key], asked.share, self.rows[name])
                    else:
                        begun = without_groups(self.fills[asked.baseline], ranked[key], self.rows[name])
                    if begun is not None:
                        self.runs[name, asked] = begun

    def curve(self, name: str, curve: Curve) -> CurveState:
        """A curve without known points."""
        return CurveState(curve, self.ranked[name, curve], self.fills[curve.baseline], self.rows[name])


def _superpixels_asked(perturbations: Sequence[Perturbation]) -> set[int]:
    return {asked.superpixels for asked in perturbations if isinstance(asked, Curve) and asked.superpixels is not None}


class _Answers:
    """One network's outputs for all requested perturbations."""

    def __init__(self, asked: _Asked, found: Mapping[Any, Reply]) -> None:
        self.asked, self.found = asked, found
        self.curves = {(name, curve): asked.curve(name, curve) for name, curve in asked.ranked if isinstance(curve, Curve)}
        for (name, curve), state in self.curves.items():
            state.begin()
            state.end(found[curve.baseline], found[ORIGINAL])
            state.take(found.get((name, curve)))

    def responses(self, name: str) -> Responses:
        """The responses under one mask; for an image with an identical earlier mask, they are taken from that mask."""
        owners, original = self.asked.owners, self.found[ORIGINAL]
        names = list(owners)
        sources = [(names[number], (owners[name] == number).nonzero()[:, 0]) for number in owners[name].unique().tolist()]
        probabilities: dict[Perturbation, Probability] = {}
        curves: dict[Curve, CurveResponse] = {}
        groups: dict[Groups, GroupResponse] = {}
        subsets = {
            asked: SubsetResponse(self.found[asked].p.view(chosen.shape[:2]), chosen, asked.patch)
            for asked, chosen in self.asked.chosen.items()
        }
        patches = {asked: self._of_patches(asked) for asked in self.asked.perturbations if isinstance(asked, Patches)}
        margins: dict[Perturbation, Tensor] = {ORIGINAL: original.margin}
        for asked in self.asked.perturbations:
            if isinstance(asked, Curve):
                own = self.curves[name, asked]
                p, answers = torch.empty_like(own.p), torch.empty_like(own.p)
                for other, some in sources:
                    where, known = some.to(p.device), self.curves[other, asked]
                    p[where], answers[where] = known.p[where], known.answers[where]
                p = p.masked_fill(p.isinf(), torch.nan) if asked.tolerance is None else interpolated(p, own.shares)
                curves[asked] = CurveResponse(own.shares, p, own.ranked.mask_means.to(p.device), answers)
            elif isinstance(asked, Groups):
                ranked = self.asked.ranked[name, asked]
                p = original.p.new_empty(len(original.p), asked.count)
                for other, some in sources:
                    at, to = torch.searchsorted(self.asked.rows[other], some).to(p.device), some.to(p.device)
                    p[to] = self.found[other, asked].p.view(-1, asked.count)[at]
                groups[asked] = GroupResponse(p, ranked.mask_means.to(p.device))
            elif isinstance(asked, Subsets | Patches):
                continue
            elif isinstance(asked, Original):
                probabilities[asked] = Probability(original.p, original.rest)
            else:
                p, rest, margin = (torch.empty_like(original.p) for _ in range(3))
                for other, some in sources:
                    at, to = torch.searchsorted(self.asked.rows[other], some).to(p.device), some.to(p.device)
                    reply = self.found[other, asked]
                    p[to], rest[to], margin[to] = reply.p[at], reply.rest[at], reply.margin[at]
                probabilities[asked], margins[asked] = Probability(p, rest), margin
        return Responses(probabilities, curves, groups, subsets, patches, margins)

    def _of_patches(self, asked: Patches) -> PatchResponse:
        original, without = self.found[ORIGINAL], self.found[asked]
        size = (len(original.p), asked.grid**2)
        return PatchResponse(without.p.view(size), without.score.view(size), original.score)


def shown_share(perturbation: Kept | Removed, mask: Tensor, low_res_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of each pixel that a perturbation keeps, `(B, H, W)`."""
    if isinstance(perturbation, Kept):
        return mask
    if perturbation.upsampling == "bicubic":
        mask = torch.nn.functional.interpolate(low_res_mask[:, None], size=size, mode="bicubic", align_corners=False)[:, 0]
    return 1 - mask


def _check(images: Tensor, masks: Mapping[str, Tensor], low_res_masks: Mapping[str, Tensor], perturbations: Sequence[Perturbation]) -> None:
    size = (images.shape[2], images.shape[3])
    low_res_alone = all(takes_low_res(asked) for asked in perturbations if not isinstance(asked, Original))
    for name, mask in masks.items():
        needed = low_res_masks[name].shape[:1] if low_res_alone else mask.shape
        if needed[0] != len(images) or (len(needed) == 3 and tuple(needed[1:]) != size):
            raise InputError(
                f"masks must be (batch, height, width) = {(len(images), *size)} like the images; got {tuple(mask.shape)}. "
                "Raw maps become masks by xattn.metrics.to_masks(maps, (height, width))."
            )
        ranks_alone = not any(isinstance(asked, Kept | Removed) for asked in perturbations)
        if not ranks_alone:
            refuse_no_masks(mask)


def _owners(masks: Mapping[str, Tensor], low_res_masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each image, the index of the first mask identical to this one; its own if there is none: `(B,)`."""
    owners: dict[str, Tensor] = {}
    names = list(masks)
    for number, name in enumerate(names):
        owner = torch.full((len(masks[name]),), number, device=masks[name].device)
        for before, other in enumerate(names[:number]):
            if masks[name].shape == masks[other].shape and low_res_masks[name].shape == low_res_masks[other].shape:
                alike = (masks[name] == masks[other]).flatten(1).all(dim=1)
                alike &= (low_res_masks[name] == low_res_masks[other]).flatten(1).all(dim=1)
                owner = torch.where(alike & (owner == number), before, owner)
        owners[name] = owner
    return owners


def _plain(images: Tensor) -> PerturbedImages:
    index = torch.arange(len(images), device=images.device)
    return PerturbedImages(len(images), lambda part: (images[part], index[part]))


def _masked(images: Tensor, shown: Tensor, rows: Tensor) -> PerturbedImages:
    def make(part: slice) -> tuple[Tensor, Tensor]:
        some = rows[part]
        return of_rows(images, some) * of_rows(shown, some)[:, None], some

    return PerturbedImages(len(rows), make)
