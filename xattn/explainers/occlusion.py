"""Occlusion and RISE: maps from the network's responses to images with hidden parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional

from xattn.errors import SettingError, UnsupportedError
from xattn.explainers.base import RunsNetworkAgain, register
from xattn.explainers.regression import Budget, Masks, estimates, log_odds
from xattn.explainers.trace import Trace
from xattn.metrics.probability import widened
from xattn.metrics.stream import PerturbedImages, of_rows, replaced
from xattn.metrics.target_base import Target
from xattn.registry import AtMost

Response = Literal["probability", "score"]
Fill = Literal["mean", "black"]
Read = Callable[[Target, Tensor], Tensor]
Respond = Callable[[str, Tensor, Read], Tensor]
WINDOWS = 7
MOST_PREDICTED = 10_000  # masks per image: the cost of a regression grows with their square


def _reading(name: str, response: Response, target: Target) -> Read:
    """Reads the response from the targets and the output of some images, `(b,)` float64."""
    if response == "probability" and not target.has_probability:
        raise UnsupportedError(
            f"{name} follows the target's probability, and {target.kind} has none: use {name}:response=score, which follows the score."
        )
    return _score if response == "score" else _probability


def _score(target: Target, output: Tensor) -> Tensor:
    return widened(target.score(output))


def _probability(target: Target, output: Tensor) -> Tensor:
    return target.probability(output).p


def _estimated(
    trace: Trace, key: str, limit: Budget, response: Response, of_images: Sequence[Masks], respond: Respond, cells: Sequence[int]
) -> Tensor:
    """The responses to all masks, those beyond the budget predicted; each pixel's error goes to the trace.

    Args:
        trace: of the batch.
        key: the method's.
        limit: when the passes end.
        response: what is read from the output.
        of_images: masks, the same number for each image.
        respond: runs the masks with the given numbers, which count on over all images.
        cells: rows and columns of the map to which the masks' effects refer.
    """
    read, of_latent = (log_odds, torch.sigmoid) if response == "probability" else (_score, torch.clone)
    each = len(of_images[0].inputs)

    def ask(wanted: Sequence[list[int]]) -> list[Tensor]:
        numbers = [image * each + number for image, some in enumerate(wanted) for number in some]
        found = respond(f"{key}, masks {wanted}", torch.tensor(numbers, device=trace.images.device), read)
        return list(found.split([len(some) for some in wanted]))

    found = estimates(of_images, ask, of_latent, limit, trace.seeds)
    error = torch.stack([one.error for one in found]).view(-1, 1, *cells)
    whole = functional.interpolate(error, size=trace.images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    trace.errors[key] = whole.to(trace.images)
    return torch.cat([one.responses for one in found])


@register("occlusion", source="Zeiler and Fergus 2014, Sec. 4.2")
@dataclass(frozen=True)
class Occlusion(RunsNetworkAgain):
    """Fall of the target's probability when a sliding window hides a part of the image.

    Attributes:
        window: side of the window in pixels; None: a seventh of the image's shorter side.
        stride: pixels from one window to the next; None: half a window. The last window of a line may extend beyond the border.
        fill: what the window shows: the classifier's "mean" colour, or "black".
        response: "probability", or "score", the logit of a class.
        signed: the same map, shown around zero; its mask is made only of evidence for the target.
        budget: share of the windows that are run; the other responses are predicted by a Gaussian process over the windows' positions, see
            `explainers/regression.py`: useful for windows whose stride is much smaller than their width. The maps' `errors` hold each
            cell's standard error. None: all.
        tolerance: end the passes of an image once the map's predicted error is below this share of its range.
        unbiased: draw half of the budget's passes at random: right on average over draws, and each map further off.

    Differs: the value of a pixel is the mean loss over the windows that hide it; the paper draws the probability at each window's position.
    """

    window: int | None = None
    stride: int | None = None
    fill: Fill = "mean"
    response: Response = "probability"
    signed: bool = False
    budget: float | None = None
    tolerance: float | None = None
    unbiased: bool = False

    def __post_init__(self) -> None:
        if any(value is not None and value < 1 for value in (self.window, self.stride)):
            raise SettingError(f"occlusion's window and stride are at least one pixel; got window={self.window}, stride={self.stride}.")
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise SettingError(
                f"occlusion with stride={self.stride} skips pixels between windows of {self.window}: take a stride of at most the window."
            )
        self._limit  # noqa: B018  # refuses what cannot be

    @property
    def _limit(self) -> Budget | None:
        return Budget.of("occlusion", self.budget, self.tolerance, self.unbiased)

    @property
    def exact(self) -> Occlusion:
        """The method with every window run."""
        return replace(self, budget=None, tolerance=None, unbiased=False)

    def sides(self, size: tuple[int, int]) -> tuple[int, int]:
        """Window and stride in pixels for an image of this height and width.

        Raises:
            SettingError: the window is larger than the image, or smaller than the stride; or there are more windows than can be predicted.
        """
        window = max(1, min(size) // WINDOWS) if self.window is None else self.window
        stride = max(1, window // 2) if self.stride is None else self.stride
        if window > min(size):
            raise SettingError(f"occlusion's window of {window} pixels is larger than the image of {size[0]} × {size[1]}.")
        if stride > window:
            raise SettingError(f"occlusion's stride of {stride} pixels is larger than the window of {window}: give window as well.")
        count = math.prod(len(_starts(side, window, stride)) for side in size)
        if self._limit is not None and count > MOST_PREDICTED:
            raise SettingError(
                f"occlusion predicts the responses of at most {MOST_PREDICTED} windows; got {count}, by a stride of {stride} in an "
                f"image of "
                f"{size[0]} × {size[1]}: give a larger stride, or leave budget and tolerance out."
            )
        return window, stride

    def forwards(self, channels: int, size: tuple[int, int]) -> int:
        """The most windows that are run."""
        window, stride = self.sides(size)
        count = len(_starts(size[0], window, stride)) * len(_starts(size[1], window, stride))
        return count if self._limit is None else self._limit.passes(count)

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, H, W)`, signed: negative where the window raises the response.

        Raises:
            UnsupportedError: the response is the probability, and the target has none.
        """
        read = _reading("occlusion", self.response, trace.target)
        images = trace.images.detach()
        size = (images.shape[2], images.shape[3])
        window, stride = self.sides(size)
        rows, columns = (_hidden(side, window, stride).to(images.device) for side in size)
        each = len(rows) * len(columns)
        colour = trace.classifier.mean.to(images) if self.fill == "mean" else images.new_zeros(3, 1, 1)

        def respond(key: str, numbers: Tensor, read: Read) -> Tensor:
            def make(part: slice) -> tuple[Tensor, Tensor]:
                owner, place = numbers[part] // each, numbers[part] % each
                hidden = rows[place // len(columns), :, None] & columns[place % len(columns), None, :]
                return replaced(of_rows(images, owner), colour, hidden), owner

            return trace.respond(key, PerturbedImages(len(numbers), make), read)

        if self._limit is None:
            responses = respond(repr(self), torch.arange(len(images) * each, device=images.device), read)
        else:
            # Within a stride the map is constant, except where the last windows reach the border; within an eighth of a window it nearly
            # is.
            cells = [-(-side // max(stride, window // 8)) for side in size]
            of_image = _windows(rows, columns, cells)
            responses = _estimated(trace, repr(self), self._limit, self.response, [of_image] * len(images), respond, cells)
        whole = read(trace.target, trace.output.detach()).to(responses)
        losses = whole[:, None, None] - responses.view(len(images), len(rows), len(columns))
        rows, columns = (lines.to(losses) / lines.sum(dim=0).to(losses) for lines in (rows, columns))
        return (rows.mT @ losses @ columns).to(images)


def _windows(rows: Tensor, columns: Tensor, cells: Sequence[int]) -> Masks:
    """The windows by their positions, and the effect of the response to each on the cells of the map."""
    down, across = (
        functional.adaptive_avg_pool1d(widened(lines) / widened(lines).sum(dim=0), cells[axis])
        for axis, lines in enumerate((rows, columns))
    )
    effects = -torch.einsum("rh,cw->rchw", down, across).flatten(2).flatten(0, 1)
    places = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(columns))).view(len(effects), 2)
    return Masks(places.to(effects), effects)


def _starts(side: int, window: int, stride: int) -> range:
    """First pixels of the windows along a side; the last window reaches its end."""
    return range(0, side - window + stride, stride)


def _hidden(side: int, window: int, stride: int) -> Tensor:
    """Which pixels of a side each window hides, `(windows, side)` bool."""
    pixels, starts = torch.arange(side), torch.tensor(_starts(side, window, stride))[:, None]
    return (pixels >= starts) & (pixels < starts + window)


@register("rise", source="Petsiuk et al. 2018, Sec. 3")
@dataclass(frozen=True)
class RISE(RunsNetworkAgain):
    """Mean of random smooth masks, each weighted by the target's probability for the masked image.

    A mask is a grid of zeros and ones, upsampled bilinearly to one cell more than the image has and cropped at a random place. The masks of
    an image are seeded by its content: they are the same in every batch. They are made within each chunk of forwards and never stored.

    Attributes:
        masks: per image; the paper takes 4000 for VGG16 and 8000 for ResNet-50.
        grid: cells per side.
        p: probability that a cell is shown.
        response: "probability", or "score", the logit of a class.
        budget: share of the masks that are run; the other responses are predicted by a Gaussian process over the masks, see
            `explainers/regression.py`: the map then estimates the one of all `masks`. None: all.
        tolerance: end the passes of an image once the map's predicted error is below this share of its range.
        unbiased: draw half of the budget's passes at random: right on average over draws, and each map further off.
    """

    masks: Annotated[int, AtMost(1_000_000)] = 4000
    grid: Annotated[int, AtMost(256)] = 7
    p: float = 0.5
    response: Response = "probability"
    budget: float | None = None
    tolerance: float | None = None
    unbiased: bool = False

    def __post_init__(self) -> None:
        if self.masks < 1 or self.grid < 1:
            raise SettingError(f"rise takes at least one mask of one cell; got masks={self.masks}, grid={self.grid}.")
        if not 0 < self.p < 1:
            raise SettingError(f"rise shows a cell with a probability between 0 and 1; got p={self.p}.")
        if self._limit is not None and self.masks > MOST_PREDICTED:
            raise SettingError(f"rise predicts the responses of at most {MOST_PREDICTED} masks; got masks={self.masks}: leave budget out.")

    @property
    def _limit(self) -> Budget | None:
        return Budget.of("rise", self.budget, self.tolerance, self.unbiased)

    @property
    def exact(self) -> RISE:
        """The method with every mask run."""
        return replace(self, budget=None, tolerance=None, unbiased=False)

    def forwards(self, channels: int, size: tuple[int, int]) -> int:
        """The most masks that are run."""
        return self.masks if self._limit is None else self._limit.passes(self.masks)

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, H, W)`: Σ response · mask / (p · masks); ≥ 0 for probabilities.

        Raises:
            UnsupportedError: the response is the probability, and the target has none.
        """
        read = _reading("rise", self.response, trace.target)
        images = trace.images.detach()
        count, device = len(images), images.device
        down, across = (_crops(side, self.grid).to(images) for side in images.shape[-2:])  # (places, grid, side)
        drawn = [self._draw(seed, len(down), len(across)) for seed in trace.seeds]
        grids, top, left = (torch.cat(column).to(device) for column in zip(*drawn, strict=True))

        def respond(key: str, numbers: Tensor, read: Read) -> Tensor:
            def make(part: slice) -> tuple[Tensor, Tensor]:
                some = numbers[part]
                masks = down[top[some]].mT @ grids[some].to(images) @ across[left[some]]
                owner = some // self.masks
                return of_rows(images, owner) * masks[:, None], owner

            return trace.respond(key, PerturbedImages(len(numbers), make), read)

        if self._limit is None:
            responses = respond(repr(self), torch.arange(count * self.masks, device=device), read)
        else:
            cells = self._cells(down, grids, across, top, left)
            of_images = [Masks(own, own / (self.p * self.masks)) for own in cells.split(self.masks)]
            sides = [min(self.grid, side) for side in images.shape[2:]]
            responses = _estimated(trace, repr(self), self._limit, self.response, of_images, respond, sides)
        # Masks cropped at the same position differ only in their grids: their weighted sum is that of the grids, upsampled once.
        owner = torch.arange(count, device=device).repeat_interleave(self.masks)
        place = ((owner * len(down) + top) * len(across) + left).to(responses.device)
        weighted = responses[:, None] * grids.flatten(1).to(responses)
        sums = responses.new_zeros(count * len(down) * len(across), self.grid**2).index_add_(0, place, weighted)
        sums = sums.view(count, len(down), len(across), self.grid, self.grid)
        lines = torch.einsum("btlij,tih->blhj", sums, down.to(sums))
        raw = torch.einsum("blhj,ljw->bhw", lines, across.to(sums))
        return (raw / (self.p * self.masks)).to(images)

    def _cells(self, down: Tensor, grids: Tensor, across: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """The masks at `grid` × `grid` cells of the image, `(masks of all images, grid²)` float64."""
        rows, columns = (functional.adaptive_avg_pool1d(widened(side), min(self.grid, side.shape[2])) for side in (down, across))
        made = rows[top.to(rows.device)].mT @ grids.to(rows) @ columns[left.to(rows.device)]
        return made.flatten(1)

    def _draw(self, seed: int, down: int, across: int) -> tuple[Tensor, Tensor, Tensor]:
        """The grids of an image's masks, and where each is cropped: first all grids are drawn, then all rows, then all columns."""
        generator = torch.Generator().manual_seed(seed)
        grids = torch.rand((self.masks, self.grid, self.grid), generator=generator) < self.p
        top = torch.randint(down, (self.masks,), generator=generator)
        left = torch.randint(across, (self.masks,), generator=generator)
        return grids, top, left


def _crops(side: int, grid: int) -> Tensor:
    """Weights of a line of cells at the pixels of a side, for each position where it can be cropped, `(places, grid, side)`."""
    cell = -(-side // grid)
    line = functional.interpolate(torch.eye(grid, dtype=torch.float64)[None], size=(grid + 1) * cell, mode="linear", align_corners=False)[0]
    return line.unfold(1, side, 1)[:, :cell].transpose(0, 1)
