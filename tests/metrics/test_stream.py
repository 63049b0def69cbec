"""Perturbed images in several streams."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from xattn.metrics.stream import Forwards, PerturbedImages, Read, stream

COUNT, SECONDS = 23, 20.0


def numbered(count: int) -> PerturbedImages:
    def make(part: slice) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(part.start, part.stop)
        return numbers[:, None, None, None].float().expand(-1, 3, 2, 2), numbers % 5

    return PerturbedImages(count, make)


def sums(images: Tensor) -> Sequence[Tensor]:
    return images.flatten(1).sum(dim=1, keepdim=True), images.flatten(1).mean(dim=1, keepdim=True) + 0.5


def own(output: Tensor, index: Tensor) -> Sequence[Tensor]:
    return output[:, 0], index


READ: list[Read] = [own, own]


@pytest.mark.parametrize(("chunk", "streams"), [(8, 2), (7, 3), (3, 8), (1, 2), (64, 4)])
def test_streams_change_no_number(chunk: int, streams: int) -> None:
    runs, like = [numbered(COUNT), numbered(4)], torch.zeros(1)
    one = stream(Forwards(sums, chunk), runs, like, READ, 2)
    sizes: list[int] = []

    def predict(images: Tensor) -> Sequence[Tensor]:
        sizes.append(len(images))
        return sums(images)

    several = stream(Forwards(predict, chunk, streams), runs, like, READ, 2)
    for found, expected in zip(several, one, strict=True):
        for columns, of_one in zip(found, expected, strict=True):
            assert all(torch.equal(column, same) for column, same in zip(columns, of_one, strict=True))
    assert torch.equal(several[0][0][0], 12.0 * torch.arange(COUNT, dtype=torch.float64))
    (size,) = set(sizes)  # every part is full
    assert size * min(streams, chunk) < chunk + min(streams, chunk)  # no more images at a time than the chunk, rounded up


def test_each_stream_makes_and_runs_its_part_without_waiting_for_the_others() -> None:
    both = threading.Barrier(2, timeout=SECONDS)
    threads: set[int] = set()

    def predict(images: Tensor) -> Sequence[Tensor]:
        both.wait()  # a stream that waited for the other would stay here
        threads.add(torch.get_num_threads())
        return sums(images)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        stream(Forwards(predict, 4, 2), [numbered(8)], torch.zeros(1), READ, 2)
        assert threads == {1}
        assert torch.get_num_threads() == 3
        found: list[int] = []
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert found == [3]
    finally:
        torch.set_num_threads(before)


def test_an_error_in_one_stream_ends_the_others() -> None:
    ran: list[float] = []
    failed = threading.Event()

    def predict(images: Tensor) -> Sequence[Tensor]:
        if not len(ran):
            ran.append(0)
            failed.set()
            raise ValueError("no more")
        failed.wait(SECONDS)
        ran.append(float(images[0, 0, 0, 0]))
        return sums(images)

    with pytest.raises(ValueError, match="no more"):
        stream(Forwards(predict, 2, 2), [numbered(10_000)], torch.zeros(1), READ, 2)
    assert len(ran) < 9_000
