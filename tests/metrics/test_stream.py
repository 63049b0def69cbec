"""Perturbed images in several streams."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from xattn.metrics import stream as streaming
from xattn.metrics.stream import Forwards, PerturbedImages, Read, of_rows, replaced, stream

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


@pytest.mark.parametrize("together", [1, 7, 10, 10**6])
def test_outputs_are_read_in_groups_and_no_number_changes(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "TOGETHER", together)
    runs, sizes = [numbered(COUNT), PerturbedImages(0, numbered(1).make), numbered(4)], []

    def read(output: Tensor, index: Tensor) -> Sequence[Tensor]:
        sizes.append(len(output))
        return own(output, index)

    found = stream(Forwards(sums, 3), runs, torch.zeros(1), [read, own], 2)[0]
    assert [len(columns[0]) for columns in found] == [COUNT, 0, 4]
    for columns, count in ((found[0], COUNT), (found[2], 4)):
        assert torch.equal(columns[0], 12.0 * torch.arange(count, dtype=torch.float64))
        assert torch.equal(columns[1], (torch.arange(count) % 5).double())
    assert sum(sizes) == COUNT + 4
    assert max(sizes) == min(max(together, 3) // 3 * 3, COUNT + 4)


def test_nothing_to_run_reads_nothing() -> None:
    found = stream(Forwards(sums, 3), [PerturbedImages(0, numbered(1).make)], torch.zeros(1), READ, 2)
    assert [len(column) for columns in found for column in columns[0]] == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replaced_pixels_are_those_of_the_other_image_to_the_last_bit(dtype: torch.dtype) -> None:
    numbers = torch.Generator().manual_seed(0)
    images, others = (torch.randn(2, 3, 37, 41, generator=numbers, dtype=dtype) * 10.0**power for power in (-3, 4))
    which, colour = torch.rand(2, 37, 41, generator=numbers) < 0.5, torch.randn(3, 1, 1, generator=numbers, dtype=dtype)
    assert torch.equal(replaced(images, others, which), torch.where(which[:, None], others, images))
    assert torch.equal(replaced(images, colour, which), torch.where(which[:, None], colour, images))


@pytest.mark.parametrize("rows", [[0, 0, 0], [2], [0, 1, 2], [1, 0, 1]])
def test_rows_are_those_of_indexing(rows: list[int]) -> None:
    values = torch.randn(3, 2, 2)
    assert torch.equal(of_rows(values, torch.tensor(rows)), values[torch.tensor(rows)])
