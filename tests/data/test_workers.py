"""Decoding processes that die: what was not to blame is read, what was is named."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from xattn.data.batches import Batch
from xattn.data.images import ImageSource
from xattn.data.preprocessing import Preprocessing
from xattn.data.workers import each_batch
from xattn.errors import RunError

TINY = Preprocessing(input_size=(8, 8), resize=8)


class Lethal(Dataset):
    """Items that end the process that decodes them, unless it is this one."""

    def __init__(self, *lethal: int) -> None:
        self.lethal = lethal
        self.parent = os.getpid()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index in self.lethal and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((3, 8, 8), index / 40), index % 5


class OnlyInLoaders(Lethal):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return super().__getitem__(index) if get_worker_info() is None else os._exit(9)


def done(dataset: Lethal, workers: int) -> tuple[dict[int, int], dict[str, str]]:
    """Number of images read by batch, and the reason of each that failed."""
    found: dict[int, Batch] = {}
    each_batch(ImageSource(dataset), TINY, 4, range(10), workers, lambda batch: found.__setitem__(batch.number, batch))
    failed = {image.name: reason for batch in found.values() for image, reason in batch.failed}
    for batch in found.values():
        assert [image.index for image in batch.images] == [round(float(crop[0, 0, 0]) * 40 / 255) for crop in batch.crops]
    return {number: len(found[number].images) for number in sorted(found)}, failed


def test_a_picture_that_ends_its_process_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    read, failed = done(Lethal(17), 2)
    assert read == {number: 3 if number == 4 else 4 for number in range(10)}
    assert list(failed) == ["17"]
    assert "out of memory" in failed["17"]
    assert "--workers 0" in failed["17"]
    assert "a decoding process died" in caplog.text
    after = signal.getsignal(signal.SIGCHLD)
    assert after == before or after.__module__.startswith("torch."), "torch's handler, which this function set aside"


def test_processes_that_die_whatever_the_picture_stop_the_run_with_what_to_do() -> None:
    with pytest.raises(RunError, match="3 images one after the other, the last of them 02.*What was finished is kept.*--workers 0"):
        done(Lethal(*range(40)), 1)
    assert done(Lethal(*range(40)), 0)[0] == dict.fromkeys(range(10), 4)


def test_processes_that_die_in_torch_s_loader_alone_cost_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xattn.data.workers.FUTILE", 0)
    assert done(OnlyInLoaders(), 1) == (dict.fromkeys(range(10), 4), {})
