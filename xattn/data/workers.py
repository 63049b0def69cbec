"""Batches decoded by processes that may die: by memory that runs out, or by a decoder that crashes."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from xattn.data.images import ENDED_PROCESS, Batch, Batches, Decoded, ImageSource
from xattn.data.listing import NamedImage
from xattn.data.preprocessing import Preprocessing
from xattn.errors import RunError

AHEAD = 2  # batches that a process decodes ahead of their use
FUTILE = 3  # deaths for which no image is found to blame, until all others are decoded so
IN_A_ROW = 3  # images that may end their processes one after the other before the run stops
ADVICE = (
    "give --workers 0 (in Python workers=0) to decode in the run's own process, or a lower --max-pixels where large pictures run out of "
    "memory"
)

logger = logging.getLogger("xattn")


def each_batch(
    source: ImageSource,
    preprocessing: Preprocessing,
    batch_size: int,
    wanted: Sequence[int],
    workers: int,
    work: Callable[[Batch], object],
) -> None:
    """Decodes batches in worker processes and does some work on each; a process that dies ends neither.

    After a death the batches that were being decoded are decoded image by image in a process of their own: an image that ends it is one
    that failed, with the reason. Half as many workers go on with the others.

    Args:
        source: of the images.
        preprocessing: of the network.
        batch_size: images per batch.
        wanted: numbers of the batches.
        workers: decoding processes; 0: this process.
        work: on a batch. It is done again for a batch in the middle of which a process died: torch reports that at any point.

    Raises:
        RunError: image after image ends its process.
    """
    left, doubted, futile = list(wanted), list[int](), 0
    with _Alone(Batches(source, preprocessing, batch_size)) as alone:
        while left:
            try:
                while doubted:
                    work(alone.batch(doubted[0]))
                    left.remove(doubted.pop(0))
                for batch in source.batches(preprocessing, batch_size, workers=workers, wanted=list(left)):
                    work(batch)
                    left.remove(batch.number)
            except RuntimeError as error:
                if not workers or not _is_death(error):
                    raise
                if doubted:  # the same death, reported again
                    continue
                futile = futile + 1 if alone.ended == 0 else 0
                alone.ended = 0
                doubted = left[: AHEAD * workers] if futile < FUTILE else list(left)
                workers = max(1, workers // 2)
                logger.warning(
                    "a decoding process died (%s): %d batches are decoded image by image in a process of their own; others by %d.",
                    str(error).splitlines()[0],
                    len(doubted),
                    workers,
                )


def _is_death(error: RuntimeError) -> bool:
    return str(error).startswith("DataLoader worker (pid")


class _Alone:
    """A process that decodes one image at a time, and is replaced when it dies."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.deaths = 0  # one after the other
        self.ended = 0
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        self.pool = None

    def batch(self, number: int) -> Batch:
        """A batch, each image of which was decoded, or ended the process."""
        return self.batches.joined(number, [self._decoded(image) for image in self.batches.of(number)])

    def _decoded(self, image: NamedImage) -> Decoded:
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(), initializer=_use, initargs=(self.batches,))
        try:
            found = self.pool.submit(_decode, image).result()
        except BrokenProcessPool as error:
            self._end()
            self.deaths += 1
            self.ended += 1
            if self.deaths >= IN_A_ROW:
                raise RunError(
                    f"decoding ended its process for {self.deaths} images one after the other, the last of them {image.name}: out of "
                    f"memory? What was finished is kept, and the same command goes on: {ADVICE}."
                ) from error
            return image, f"{ENDED_PROCESS}, twice: out of memory, or a decoder that crashes; {ADVICE}", None
        self.deaths = 0
        return found


_batches: Batches


def _use(batches: Batches) -> None:
    global _batches
    _batches = batches
    torch.set_num_threads(1)  # a forked process has none of the threads that its parent computes with


def _decode(image: NamedImage) -> Decoded:
    return _batches.decoded(image)
