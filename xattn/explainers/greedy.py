"""An estimate of the best possible score of a map, by greedy search along the insertion or deletion curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from xattn.errors import SettingError, UnsupportedError
from xattn.explainers.base import RunsNetworkAgain, register
from xattn.explainers.trace import Trace
from xattn.metrics.fills import baseline_images
from xattn.metrics.protocols import PROTOCOLS
from xattn.metrics.stream import PerturbedImages, of_rows, replaced
from xattn.metrics.target_base import Target
from xattn.registry import AtMost

Searched = Literal["deletion", "insertion"]
ROUNDED = 1e-6  # probabilities closer than this are equal, and the first cell is chosen: rounding in a batch must not decide
CAUTION = "searches for the best curve itself: it is no method to compare, but what the scores of others are shares of"


@register("greedy", source="a greedy search, for comparison", bound=True, caution=CAUTION)
@dataclass(frozen=True)
class Greedy(RunsNetworkAgain):
    """Cells of a grid in the order in which a greedy search changes them: at each step the one that lowers (deletion) or raises (insertion)
    the target's probability most.

    It costs grid² · (grid² + 1)/2 − 1 forwards: 1224 for 7 × 7 cells. Changed cells show what changed pixels show in protocol ca-stream. A
    greedy order need not be the best one, and a method with finer maps can beat it.

    Attributes:
        curve: "deletion", or "insertion".
        grid: cells per side.
    """

    curve: Searched = "deletion"
    grid: Annotated[int, AtMost(64)] = 7

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise SettingError(f"greedy searches over at least two cells per side; got grid={self.grid}.")

    def forwards(self, channels: int, size: tuple[int, int]) -> int:
        """All cells at the first step, one fewer at each that follows; the last cell is known."""
        cells = self.grid**2
        return cells * (cells + 1) // 2 - 1

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, H, W)` in (0, 1], one value per cell: 1 for the cell that is changed first.

        Raises:
            UnsupportedError: the target has no probability.
            SettingError: the image has fewer pixels per side than the grid has cells.
        """
        if not trace.target.has_probability:
            raise UnsupportedError(f"greedy follows the target's probability, and {trace.target.kind} has none: leave it out.")
        images = trace.images.detach()
        count, cells = len(images), self.grid**2
        if min(images.shape[2:]) < self.grid:
            raise SettingError(f"greedy's grid of {self.grid} cells per side is finer than the image of {tuple(images.shape[2:])}.")
        protocol = PROTOCOLS["ca-stream"]
        deletes = self.curve == "deletion"
        other = baseline_images(images, protocol.deletion if deletes else protocol.insertion, trace.classifier.mean)
        before, after = (images, other) if deletes else (other, images)
        place = self._cells(images)
        changed = torch.zeros(count, cells, dtype=torch.bool, device=images.device)
        order: list[list[int]] = [[] for _ in range(count)]
        for step in range(cells - 1):
            left = (~changed).nonzero()[:, 1].view(count, cells - step)

            def make(part: slice, left: Tensor = left, changed: Tensor = changed) -> tuple[Tensor, Tensor]:
                number = torch.arange(part.start, part.stop, device=images.device)
                owner = number // left.shape[1]
                now = changed[owner]
                now = now.scatter(1, left.flatten()[number, None], True)
                return replaced(of_rows(before, owner), of_rows(after, owner), now[:, place]), owner

            # The images depend on the head's earlier outputs: heads share only those of the same order.
            p = trace.respond(f"{self!r} {order}", PerturbedImages(left.numel(), make), _probability).view(left.shape).to(images.device)
            best = (p if deletes else -p).div(ROUNDED).round().argmin(dim=1, keepdim=True)
            chosen = left.gather(1, best)
            changed = changed.scatter(1, chosen, True)
            for found, cell in zip(order, chosen[:, 0].tolist(), strict=True):
                found.append(cell)
        last = (~changed).nonzero()[:, 1].tolist()
        values = images.new_zeros(count, cells)
        ranked = torch.tensor([[*found, cell] for found, cell in zip(order, last, strict=True)], device=images.device)
        values.scatter_(1, ranked, (1 - torch.arange(cells, device=images.device) / cells).to(values).expand(count, -1))
        return values[:, place]

    def _cells(self, images: Tensor) -> Tensor:
        """The cell of each pixel, `(H, W)`."""
        rows, columns = (torch.arange(side, device=images.device) * self.grid // side for side in images.shape[2:])
        return rows[:, None] * self.grid + columns


def _probability(target: Target, output: Tensor) -> Tensor:
    return target.probability(output).p
