"""One engine under every metric that changes images: what to look at, and the network's answer in full chunks of one size.

A *look* is a way to change an image: keep what the mask shows, remove it, or change its pixels step by step in the mask's order.
`look_at` flattens all looks of all images under all masks into one stream. What no mask touches (the image itself, its baseline) is
looked at once for all of them, and the ends of every curve are taken from there.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from xattn.errors import InputError
from xattn.metrics.probability import Predict, Probability, probability, widened

BLUR_SIGMA = 5.0
COARSE_STEPS = 196
EDGE = 1e-4


@dataclass(frozen=True)
class Original:
    """The image as it is."""


@dataclass(frozen=True)
class Kept:
    """The image times the mask."""


@dataclass(frozen=True)
class Removed:
    """The image times one minus the mask."""


@dataclass(frozen=True)
class Baseline:
    """What an image becomes when all its pixels are changed.

    Attributes:
        kind: one colour, or a blur whose outside is that colour.
        colour: the mean colour that `look_at` is given, or black.
        side: of the blur's kernel; None: max(H // 5, 9) made odd.
    """

    kind: Literal["colour", "gaussian", "box"]
    colour: Literal["mean", "black"] = "mean"
    side: int | None = None


@dataclass(frozen=True)
class Curve:
    """Pixels changed step by step, those where the mask is highest first.

    Attributes:
        insertion: from the baseline to the image; else from the image to the baseline.
        baseline: what a changed (deletion) or not yet changed (insertion) pixel shows.
        step: pixels a step; None: 8 · W; with `cells`, cells a step; None: ceil(cells / 196).
        cells: rank the cells of the map at its own resolution instead of the pixels of the mask.
    """

    insertion: bool
    baseline: Baseline
    step: int | None = None
    cells: bool = False


Look = Original | Kept | Removed | Curve
ORIGINAL, KEPT, REMOVED = Original(), Kept(), Removed()


class CurveSeen(NamedTuple):
    """The probabilities along a curve of T steps.

    Attributes:
        shares: `(B, T + 1)` float64, share of the pixels changed, from 0 to 1.
        p: `(B, T + 1)` float64, the target's probability.
        mask_means: `(B, T)` float64, mean mask value of the pixels of each step.
    """

    shares: Tensor
    p: Tensor
    mask_means: Tensor


@dataclass(frozen=True)
class Seen:
    """What the looks under one mask gave."""

    probabilities: Mapping[Look, Probability]
    curves: Mapping[Curve, CurveSeen]

    def finite(self) -> Tensor:
        """`(B,)` bool: whether every probability is a number."""
        columns = [found.p[:, None] for found in self.probabilities.values()] + [found.p for found in self.curves.values()]
        return torch.isfinite(torch.cat(columns, dim=1)).all(dim=1)

    def probability(self, look: Look) -> Probability:
        return self.probabilities[look]

    def curve(self, look: Curve) -> CurveSeen:
        return self.curves[look]


def ranks(masks: Tensor) -> Tensor:
    """Each pixel's place in descending order: `(B, h, w)` → `(B, h, w)` int64.

    Ties, of which ReLU'd maps have plateaus, are broken by one permutation fixed for all images. Definitions, Conventions.
    """
    flat = masks.flatten(1)
    count = flat.shape[1]
    permutation = _permutation(count).to(flat.device)
    order = permutation[flat[:, permutation].argsort(dim=1, descending=True, stable=True)]
    positions = torch.arange(count, device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions).view(masks.shape)


@functools.lru_cache(maxsize=16)
def _permutation(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def baseline_images(images: Tensor, baseline: Baseline, mean: Tensor | None) -> Tensor:
    """Images with all pixels changed, `(B, 3, H, W)`.

    Raises:
        InputError: the mean colour is needed and was not given.
    """
    colour = images.new_zeros(3, 1, 1)
    if baseline.colour == "mean":
        if mean is None:
            raise InputError("this protocol fills with the classifier's mean colour: pass fill=classifier.mean, or three values in [0, 1].")
        if mean.numel() != len(colour):
            raise InputError(f"a fill is three values in [0, 1], red, green and blue; got {mean.numel()}.")
        colour = mean.to(images).view(3, 1, 1)
    if baseline.kind == "colour":
        return colour.expand_as(images)
    side = baseline.side if baseline.side is not None else max(images.shape[2] // 5, 9) // 2 * 2 + 1
    kernel = torch.full((side,), 1 / side) if baseline.kind == "box" else _gaussian(side)
    line = kernel.to(images).expand(3, 1, -1)
    blurred = images - colour  # the outside becomes zero, which convolution pads with
    blurred = functional.conv2d(blurred, line[:, :, None, :], padding=(0, side // 2), groups=3)
    blurred = functional.conv2d(blurred, line[:, :, :, None], padding=(side // 2, 0), groups=3)
    return blurred + colour


@functools.lru_cache(maxsize=16)
def _gaussian(side: int) -> Tensor:
    """What both releases blur with: scipy's Gaussian filter, σ = 5, reflected at the borders, of a unit impulse of this side."""
    from scipy.ndimage import gaussian_filter1d

    impulse = [0.0] * side
    impulse[side // 2] = 1.0
    return torch.as_tensor(gaussian_filter1d(impulse, BLUR_SIGMA, output=float))


@dataclass(frozen=True)
class _Ordered:
    """A curve of a batch under one mask, ranked."""

    ranks: Tensor  # (B, H, W)
    cuts: Tensor  # (T + 1,) ranks below which pixels have changed
    shares: Tensor
    mask_means: Tensor


def _order(look: Curve, masks: Tensor, cells: Tensor, size: tuple[int, int]) -> _Ordered:
    values = cells if look.cells else masks
    count = values[0].numel()
    step = look.step if look.step is not None else (-(-count // COARSE_STEPS) if look.cells else 8 * size[1])
    if count > size[0] * size[1]:
        raise InputError(f"a map of {tuple(values.shape[1:])} has more cells than an image of {size} has pixels.")
    places = ranks(values)
    cuts = torch.tensor([*range(0, count, step), count], device=values.device)
    wide = widened(values)
    spread, area = places, torch.ones_like(wide)
    if values.shape[-2:] != size:
        spread = functional.interpolate(places[:, None].float(), size=size, mode="nearest")[:, 0].long()
        cell = functional.interpolate(torch.arange(count).view(1, 1, *values.shape[1:]).float(), size=size, mode="nearest")
        pixels_of_cell = torch.bincount(cell.flatten().long(), minlength=count)
        area = pixels_of_cell.to(wide).view(1, *values.shape[1:]).expand_as(wide)
    order = places.flatten(1).argsort(dim=1).to(wide.device)
    ordered_area = area.flatten(1).gather(1, order)
    ordered_mask = wide.flatten(1).gather(1, order) * ordered_area
    at = cuts.to(wide.device)
    pixels = functional.pad(ordered_area.cumsum(1), (1, 0))[:, at]
    weighted = functional.pad(ordered_mask.cumsum(1), (1, 0))[:, at]
    return _Ordered(spread, cuts, pixels / pixels[:, -1:], weighted.diff(dim=1) / pixels.diff(dim=1))


@dataclass(frozen=True)
class _Job:
    """A run of changed images: how many, and how to make some of them with the index of the image each comes from."""

    count: int
    make: Callable[[Tensor], tuple[Tensor, Tensor]]


def look_at(
    predict: Predict,
    images: Tensor,
    targets: Tensor,
    masks: Mapping[str, Tensor],
    looks: Sequence[Look],
    *,
    cells: Mapping[str, Tensor] | None = None,
    mean: Tensor | None = None,
    multi_label: bool = False,
    chunk: int = 8,
) -> dict[str, Seen]:
    """The target's probability under every look and every mask.

    Args:
        predict: images in pixel space → logits; it is given chunks of exactly `chunk` images.
        images: `(B, 3, H, W)` in pixel space.
        targets: `(B,)` class indices.
        masks: by name, `(B, H, W)` in [0, 1].
        looks: without repetition.
        cells: by name, masks at their maps' own resolution, for curves over cells; the masks if None.
        mean: the classifier's mean colour, three values in pixel space.
        multi_label: sigmoid instead of softmax.
        chunk: images a forward.

    Raises:
        InputError: shapes that do not go together, or a colour that is missing.
    """
    cells = masks if cells is None else cells
    size = (images.shape[2], images.shape[3])
    for name, mask in masks.items():
        needed = cells[name].shape[:1] if all(isinstance(look, Curve) and look.cells for look in looks) else mask.shape
        if needed[0] != len(images) or (len(needed) == 3 and tuple(needed[1:]) != size):
            raise InputError(
                f"masks must be (batch, height, width) = {(len(images), *size)} like the images; got {tuple(mask.shape)}. "
                "Raw maps become masks by xattn.metrics.to_masks(maps, (height, width))."
            )
        if not all(isinstance(look, Curve) for look in looks) and (float(mask.min()) < -EDGE or float(mask.max()) > 1 + EDGE):
            raise InputError(
                f"masks lie in [0, 1]; these reach from {float(mask.min()):.3g} to {float(mask.max()):.3g}. "
                "Raw maps become masks by xattn.metrics.to_masks(maps, (height, width))."
            )
    if targets.shape != (len(images),):
        raise InputError(f"targets must be one class index an image, ({len(images)},); got {tuple(targets.shape)}.")
    targets = targets.to(images.device)
    jobs: dict[object, _Job] = {ORIGINAL: _plain(images)}
    bases = {look.baseline for look in looks if isinstance(look, Curve)}
    based = {base: baseline_images(images, base, mean) for base in sorted(bases, key=repr)}
    jobs |= {base: _plain(changed) for base, changed in based.items()}
    ordered: dict[tuple[str, bool, int | None], _Ordered] = {}
    for name, mask in masks.items():
        for look in looks:
            match look:
                case Kept():
                    jobs[name, look] = _masked(images, mask.to(images))
                case Removed():
                    jobs[name, look] = _masked(images, 1 - mask.to(images))
                case Curve():
                    key = (name, look.cells, look.step)
                    if key not in ordered:
                        ordered[key] = _order(look, mask, cells[name], size)
                    jobs[name, look] = _curve(images, based[look.baseline], look.insertion, ordered[key])
                case Original():
                    pass
    found = _stream(predict, list(jobs.values()), images, targets, multi_label, chunk)
    scored = dict(zip(jobs, found, strict=True))
    seen = {}
    for name in masks:
        probabilities: dict[Look, Probability] = {
            look: scored[ORIGINAL if look == ORIGINAL else (name, look)] for look in looks if not isinstance(look, Curve)
        }
        curves = {}
        for look in looks:
            if isinstance(look, Curve):
                ends = (scored[look.baseline].p, scored[ORIGINAL].p)
                first, last = ends if look.insertion else ends[::-1]
                inner = scored[name, look].p.view(len(images), -1)
                curve = ordered[name, look.cells, look.step]
                p = torch.cat([first[:, None], inner, last[:, None]], dim=1)
                curves[look] = CurveSeen(curve.shares.to(p.device), p, curve.mask_means.to(p.device))
        seen[name] = Seen(probabilities, curves)
    return seen


def _plain(images: Tensor) -> _Job:
    return _Job(len(images), lambda flat: (images[flat], flat))


def _masked(images: Tensor, masks: Tensor) -> _Job:
    return _Job(len(images), lambda flat: (images[flat] * masks[flat][:, None], flat))


def _curve(images: Tensor, base: Tensor, insertion: bool, curve: _Ordered) -> _Job:
    """All images' steps between the two ends, image by image."""
    inner = len(curve.cuts) - 2
    before, after = (base, images) if insertion else (images, base)

    def make(flat: Tensor) -> tuple[Tensor, Tensor]:
        index, step = flat // inner, flat % inner + 1
        changed = curve.ranks[index] < curve.cuts[step][:, None, None]
        return torch.where(changed[:, None], after[index], before[index]), index

    return _Job(len(images) * inner, make)


def _stream(
    predict: Predict, jobs: Sequence[_Job], images: Tensor, targets: Tensor, multi_label: bool, chunk: int
) -> Iterator[Probability]:
    """Runs all jobs' images through the network in chunks of one size, the last one padded, and gives each job its probabilities."""
    edges = [0, *accumulate(job.count for job in jobs)]
    found = []
    for start in range(0, edges[-1], chunk):
        stop = min(start + chunk, edges[-1])
        pieces = []
        job = bisect.bisect_right(edges, start) - 1
        while job < len(jobs) and edges[job] < stop:
            flat = torch.arange(max(start, edges[job]) - edges[job], min(stop, edges[job + 1]) - edges[job], device=images.device)
            if len(flat):
                pieces.append(jobs[job].make(flat))
            job += 1
        batch = torch.cat([piece[0] for piece in pieces])
        index = torch.cat([piece[1] for piece in pieces])
        padded = torch.cat([batch, batch[-1:].expand(chunk - len(batch), -1, -1, -1)]) if len(batch) < chunk else batch
        with torch.no_grad():
            logits = predict(padded)[: len(batch)]
        found.append(probability(logits, targets[index], multi_label=multi_label))
    p, rest = torch.cat([part.p for part in found]), torch.cat([part.rest for part in found])
    for start, stop in pairwise(edges):
        yield Probability(p[start:stop], rest[start:stop])
