"""One engine under every metric that changes images: the network's answer to all looks, in full chunks of one size.

`look_at` flattens all looks of all images under all masks into one stream. What no mask touches (the image itself, its baseline) is
looked at once for all of them, the ends of every curve are taken from there, and what two masks show alike is looked at once.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.metrics.adaptive import first_points, next_points, spanned
from xattn.metrics.looks import ORIGINAL, Curve, Kept, Look, Ordered, Original, Removed, baseline_images, ranked
from xattn.metrics.probability import Predict, Probability, probability, widened

EDGE = 1e-4


class CurveSeen(NamedTuple):
    """The probabilities along a curve of T steps.

    Attributes:
        shares: `(B, T + 1)` float64, share of the pixels changed, from 0 to 1.
        p: `(B, T + 1)` float64, the target's probability; between the steps that were looked at a monotone cubic, where the look has a
            tolerance.
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
    _check(images, targets, masks, cells, looks)
    targets = targets.to(images.device)
    masks, cells = ({name: some.to(images.device) for name, some in given.items()} for given in (masks, cells))

    def run(jobs: Sequence[_Job]) -> list[Probability]:
        return list(_stream(predict, jobs, images, targets, multi_label, chunk))

    bases = sorted({look.baseline for look in looks if isinstance(look, Curve)}, key=repr)
    based = {base: baseline_images(images, base, mean) for base in bases}
    owners = _owners(masks, cells if any(isinstance(look, Curve) and look.cells for look in looks) else masks)
    rows = {name: (owner == number).nonzero()[:, 0] for number, (name, owner) in enumerate(owners.items())}
    jobs: dict[object, _Job] = {ORIGINAL: _plain(images)} | {base: _plain(changed) for base, changed in based.items()}
    curves: dict[tuple[str, Curve], _Line] = {}
    ordered: dict[tuple[str, bool, int | None], Ordered] = {}
    for name, mask in masks.items():
        for look in looks:
            if isinstance(look, Kept | Removed) and len(rows[name]):
                shown = mask.to(images)
                jobs[name, look] = _masked(images, shown if isinstance(look, Kept) else 1 - shown, rows[name])
            elif isinstance(look, Curve):
                key = (name, look.cells, look.step)
                if key not in ordered:
                    ordered[key] = ranked(look, mask, cells[name], size)
                curves[name, look] = line = _Line(look, ordered[key], images, based[look.baseline], rows[name])
                if (job := line.begin()) is not None:
                    jobs[name, look] = job
    scored = dict(zip(jobs, run(list(jobs.values())), strict=True))
    for (name, look), line in curves.items():
        line.end(scored[look.baseline].p, scored[ORIGINAL].p)
        line.take(scored.get((name, look)))
    while pending := {line: job for line in curves.values() if (job := line.more()) is not None}:
        for line, found in zip(pending, run(list(pending.values())), strict=True):
            line.take(found)
    return {name: _seen(name, looks, scored, curves, owners, rows) for name in masks}


def _check(images: Tensor, targets: Tensor, masks: Mapping[str, Tensor], cells: Mapping[str, Tensor], looks: Sequence[Look]) -> None:
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


def _owners(masks: Mapping[str, Tensor], cells: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each mask of an image the number of the first that is the same, its own if none is: `(B,)`."""
    owners: dict[str, Tensor] = {}
    names = list(masks)
    for number, name in enumerate(names):
        owner = torch.full((len(masks[name]),), number, device=masks[name].device)
        for before, other in enumerate(names[:number]):
            if masks[name].shape == masks[other].shape and cells[name].shape == cells[other].shape:
                alike = (masks[name] == masks[other]).flatten(1).all(dim=1) & (cells[name] == cells[other]).flatten(1).all(dim=1)
                owner = torch.where(alike & (owner == number), before, owner)
        owners[name] = owner
    return owners


def _seen(
    name: str,
    looks: Sequence[Look],
    scored: Mapping[object, Probability],
    curves: Mapping[tuple[str, Curve], _Line],
    owners: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
) -> Seen:
    """What the looks under one mask gave, the images that another mask was looked at for taken from there."""
    names, original = list(owners), scored[ORIGINAL]
    from_whom = [(names[number], (owners[name] == number).nonzero()[:, 0]) for number in owners[name].unique().tolist()]
    probabilities: dict[Look, Probability] = {}
    seen: dict[Curve, CurveSeen] = {}
    for look in looks:
        if isinstance(look, Curve):
            own = curves[name, look]
            p = torch.empty_like(own.p)
            for other, some in from_whom:
                p[some.to(p.device)] = curves[other, look].p[some.to(p.device)]
            p = p.masked_fill(p.isinf(), torch.nan) if look.tolerance is None else spanned(p, own.shares)
            seen[look] = CurveSeen(own.shares, p, own.ordered.mask_means.to(p.device))
        elif isinstance(look, Original):
            probabilities[look] = original
        else:
            p, rest = torch.empty_like(original.p), torch.empty_like(original.rest)
            for other, some in from_whom:
                at, to = torch.searchsorted(rows[other], some).to(p.device), some.to(p.device)
                p[to], rest[to] = scored[other, look].p[at], scored[other, look].rest[at]
            probabilities[look] = Probability(p, rest)
    return Seen(probabilities, seen)


class _Line:
    """A curve of the images of a batch under one mask, as far as it is known.

    Attributes:
        p: `(B, T + 1)` float64, NaN where nothing was looked at.
    """

    def __init__(self, look: Curve, ordered: Ordered, images: Tensor, base: Tensor, rows: Tensor) -> None:
        self.look, self.ordered, self.rows = look, ordered, rows
        self.before, self.after = (base, images) if look.insertion else (images, base)
        self.p = torch.empty(0)
        self.shares = ordered.shares.expand(len(images), -1)
        self.asked: tuple[Tensor, Tensor] | None = None

    def begin(self) -> _Job | None:
        """The first steps to look at: all between the ends, or some."""
        steps = torch.arange(1, len(self.ordered.cuts) - 1, device=self.rows.device)
        if self.look.tolerance is not None:
            steps = first_points(len(self.ordered.cuts), early=not self.look.insertion).to(steps)
        return self._at(self.rows.repeat_interleave(len(steps)), steps.repeat(len(self.rows)))

    def more(self) -> _Job | None:
        """The next steps to look at; None where the curve is known well enough."""
        if self.look.tolerance is None:
            return None
        rows = self.rows.to(self.p.device)
        wanted = next_points(self.p[rows], self.shares[rows], self.look.tolerance)
        row, step = wanted.nonzero(as_tuple=True)
        return self._at(self.rows[row.to(self.rows.device)], step.to(self.rows.device))

    def end(self, base: Tensor, original: Tensor) -> None:
        """The probabilities at the two ends."""
        self.shares = self.shares.to(base.device)
        self.p = torch.full_like(self.shares, torch.nan)
        self.p[:, 0], self.p[:, -1] = (base, original) if self.look.insertion else (original, base)

    def take(self, found: Probability | None) -> None:
        """What the steps that were asked for gave."""
        if found is not None and self.asked is not None:
            index, step = (which.to(self.p.device) for which in self.asked)
            self.p[index, step] = found.p.nan_to_num(nan=torch.inf)  # looked at, and no number; NaN is what was not looked at

    def _at(self, index: Tensor, step: Tensor) -> _Job | None:
        self.asked = (index, step)

        def make(flat: Tensor) -> tuple[Tensor, Tensor]:
            chosen = index[flat]
            changed = self.ordered.ranks[chosen] < self.ordered.cuts[step[flat]][:, None, None]
            return torch.where(changed[:, None], self.after[chosen], self.before[chosen]), chosen

        return _Job(len(index), make) if len(index) else None


def _plain(images: Tensor) -> _Job:
    return _Job(len(images), lambda flat: (images[flat], flat))


def _masked(images: Tensor, masks: Tensor, rows: Tensor) -> _Job:
    return _Job(len(rows), lambda flat: (images[rows[flat]] * masks[rows[flat]][:, None], rows[flat]))


def _stream(
    predict: Predict, jobs: Sequence[_Job], images: Tensor, targets: Tensor, multi_label: bool, chunk: int
) -> Iterator[Probability]:
    """Runs all jobs' images through the network in chunks of one size, the last one padded, and gives each job its probabilities."""
    edges = [0, *accumulate(job.count for job in jobs)]
    p, rest = (widened(images.new_empty(edges[-1])) for _ in range(2))  # in one block each: many small ones would break memory up
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
        p[start:stop], rest[start:stop] = probability(logits, targets[index], multi_label=multi_label)
    for start, stop in pairwise(edges):
        yield Probability(p[start:stop], rest[start:stop])
