"""Runs perturbed images through one or several networks, in full chunks of one size."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
class Forwards:
    """How perturbed images are run.

    Attributes:
        predict: images → one output per network.
        chunk: images at a time, over all streams.
        streams: threads that each make and run their part of a chunk, without waiting for each other; `predict` must allow that.
    """

    predict: PredictAll
    chunk: int
    streams: int = 1


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
    forwards: Forwards, runs: Sequence[PerturbedImages], like: Tensor, read: Sequence[Read], columns: int
) -> list[list[list[Tensor]]]:
    """Runs perturbed images in chunks of one size, the last one padded, and reads some numbers per image from the outputs.

    Args:
        forwards: how they are run.
        runs: the images.
        like: a tensor on the device of the results.
        read: for each network, its output and the indices of the original images → `columns` tensors `(B,)`.
        columns: numbers to read per image.

    Returns:
        By network, run and column, `(count,)` float64.
    """
    edges = [0, *accumulate(run.count for run in runs)]
    blocks = [[widened(like.new_empty(edges[-1])) for _ in range(columns)] for _ in read]  # one block each: many small ones fragment memory
    streams = min(forwards.streams, forwards.chunk)
    part = -(-forwards.chunk // streams)
    starts = range(0, edges[-1], part)

    def run(start: int) -> list[list[Tensor]]:
        stop = min(start + part, edges[-1])
        with torch.no_grad():
            images, index = _made(runs, edges, start, stop)
            padded = torch.cat([images, images[-1:].expand(part - len(images), -1, -1, -1)]) if len(images) < part else images
            outputs = forwards.predict(padded)
            return [list(reading(output[: len(images)], index)) for output, reading in zip(outputs, read, strict=True)]

    for start, found in zip(starts, map(run, starts) if streams == 1 else _concurrent(run, starts, streams), strict=True):
        for block, values in zip(blocks, found, strict=True):
            for column, some in zip(block, values, strict=True):
                column[start : start + len(some)] = some
    return [[[column[a:b] for column in block] for a, b in pairwise(edges)] for block in blocks]


def _concurrent(run: Callable[[int], list[list[Tensor]]], starts: Sequence[int], streams: int) -> Iterator[list[list[Tensor]]]:
    """Computes the parts in their order, several at a time.

    Torch's operations take one thread in each stream. With more, its threads spin for milliseconds after each operation, and take the cores
    from the network's forwards.
    """
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(streams, "xattn-stream", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(run, starts)
    finally:
        torch.set_num_threads(before)  # the value that other new threads take is shared by all


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
