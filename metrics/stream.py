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

TOGETHER = 2**18  # values of a network's outputs that are read at a time

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


def of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """`values[rows]`, without a copy where all rows are the same and lie on a CPU; on other devices, reading them would wait.

    Args:
        values: `(B, ...)`.
        rows: `(n,)`, n ≥ 1.
    """
    if rows.device.type == "cpu" and bool((rows == rows[0]).all()):
        return values[int(rows[0])].expand(len(rows), *values.shape[1:])
    return values[rows]


def replaced(images: Tensor, others: Tensor, which: Tensor) -> Tensor:
    """Images with some pixels of other images, `(n, C, H, W)`.

    A weighted mean with weights of 0 and 1 is exact, and on a CPU several times as fast as `torch.where` with one choice for all channels.

    Args:
        images: finite, `(n, C, H, W)`.
        others: finite, of the same shape, or one colour `(C, 1, 1)`.
        which: pixels to take from `others`, `(n, H, W)` bool.
    """
    return torch.lerp(images, others, which[:, None].to(images))


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

    def run(start: int) -> tuple[list[Tensor], Tensor]:
        with torch.no_grad():
            images, index = _made(runs, edges, start, min(start + part, edges[-1]))
            padded = torch.cat([images, images[-1:].expand(part - len(images), -1, -1, -1)]) if len(images) < part else images
            return [output[: len(images)] for output in forwards.predict(padded)], index

    answers = _Answers(read, blocks)
    with torch.no_grad():
        for outputs, index in map(run, starts) if streams == 1 else _concurrent(run, starts, streams):
            answers.add(outputs, index)
        answers.read()
    return [[[column[a:b] for column in block] for a, b in pairwise(edges)] for block in blocks]


class _Answers:
    """Outputs, from which the numbers are read in groups: small operations on each part would keep the streams from their work.

    Args:
        reading: for each network, how its outputs are read.
        blocks: for each network, the columns that the numbers are written to, one row after another.
    """

    def __init__(self, reading: Sequence[Read], blocks: Sequence[Sequence[Tensor]]) -> None:
        self.reading, self.blocks = reading, blocks
        self.done = self.waiting = 0
        self.outputs: list[Tensor] = []  # one block each, as the columns
        self.index = torch.empty(0)

    def add(self, outputs: Sequence[Tensor], index: Tensor) -> None:
        """Adds the outputs of the next images, and the indices of their original images."""
        if not self.outputs:
            rows = max(len(index), min(len(self.blocks[0][0]), TOGETHER // max(output[0].numel() for output in outputs)))
            self.outputs = [output.new_empty(rows, *output.shape[1:]) for output in outputs]
            self.index = index.new_empty(rows)
        if self.waiting + len(index) > len(self.index):
            self.read()
        now = slice(self.waiting, self.waiting + len(index))
        for kept, output in zip(self.outputs, outputs, strict=True):
            kept[now] = output
        self.index[now] = index
        self.waiting += len(index)

    def read(self) -> None:
        """Reads the numbers of the outputs that wait."""
        if not self.waiting:
            return
        now = slice(self.done, self.done + self.waiting)
        for reading, output, block in zip(self.reading, self.outputs, self.blocks, strict=True):
            for column, some in zip(block, reading(output[: self.waiting], self.index[: self.waiting]), strict=True):
                column[now] = some
        self.done, self.waiting = now.stop, 0


def _concurrent(
    run: Callable[[int], tuple[list[Tensor], Tensor]], starts: Sequence[int], streams: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
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
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])
