"""Runs perturbed images through one or several networks, in full chunks of one size."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from xattn.deferred import torch
from xattn.metrics.probability import widened

if TYPE_CHECKING:
    from torch import Tensor

PredictAll = Callable[["Tensor"], "Sequence[Tensor]"]
"""Images in pixel space `(B, 3, H, W)` → the outputs of several networks."""

Read = Callable[["Tensor", "Tensor"], "Sequence[Tensor]"]
"""A network's output and the index of each row's original image → numbers for each row, in tensors `(B,)`."""


@dataclass(frozen=True)
class PerturbedImages:
    """A run of perturbed images.

    Attributes:
        count: number of images.
        make: a slice → these perturbed images, and the index of each one's original image.
    """

    count: int
    make: Callable[[slice], tuple[Tensor, Tensor]]


def stream(
    predict: PredictAll,
    runs: Sequence[PerturbedImages],
    like: Tensor,
    read: Sequence[Read],
    columns: int,
    chunk: int,
) -> list[list[list[Tensor]]]:
    """Runs perturbed images in chunks of one size, the last one padded, and reads some numbers per image from the outputs.

    Args:
        predict: images → one output per network.
        runs: the images.
        like: a tensor on the device of the results.
        read: for each network, its output and the indices of the original images → `columns` tensors `(B,)`.
        columns: numbers to read per image.
        chunk: images per forward.

    Returns:
        By network, run and column, `(count,)` float64.
    """
    edges = [0, *accumulate(run.count for run in runs)]
    blocks = [[widened(like.new_empty(edges[-1])) for _ in range(columns)] for _ in read]  # one block each: many small ones fragment memory
    for start in range(0, edges[-1], chunk):
        stop = min(start + chunk, edges[-1])
        images, index = _made(runs, edges, start, stop)
        padded = torch.cat([images, images[-1:].expand(chunk - len(images), -1, -1, -1)]) if len(images) < chunk else images
        with torch.no_grad():
            outputs = predict(padded)
            for output, reading, block in zip(outputs, read, blocks, strict=True):
                for column, values in zip(block, reading(output[: len(images)], index), strict=True):
                    column[start:stop] = values
    return [[[column[a:b] for column in block] for a, b in pairwise(edges)] for block in blocks]


def _made(runs: Sequence[PerturbedImages], edges: Sequence[int], start: int, stop: int) -> tuple[Tensor, Tensor]:
    """The images of the stream from `start` to `stop`, and the index of each one's original image."""
    pieces = []
    number = bisect.bisect_right(edges, start) - 1
    while number < len(runs) and edges[number] < stop:
        first, last = max(start, edges[number]) - edges[number], min(stop, edges[number + 1]) - edges[number]
        if first < last:
            pieces.append(runs[number].make(slice(first, last)))
        number += 1
    return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])
