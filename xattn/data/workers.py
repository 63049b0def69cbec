"""Decodes batches in worker processes that may die because memory runs out or a decoder crashes."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xattn.data.batches import Batch, Batches, Decoded
from xattn.data.images import ENDED_PROCESS, ImageSource
from xattn.data.listing import NamedImage
from xattn.data.preprocessing import Preprocessing
from xattn.errors import RunError, XattnError
from xattn.progress import Progress
from xattn.text import counted

AHEAD = 2  # batches that a process decodes before they are used
FUTILE = 3  # deaths without an image to blame, after which all other images are decoded one by one
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
    """Decodes batches in worker processes and calls a function on each; the death of a process ends neither.

    After a death the batches that were being decoded are decoded image by image in a separate process: an image that ends it counts as
    failed, with the reason. The other batches continue with half as many workers.

    Args:
        source: source of the images.
        preprocessing: preprocessing of the network.
        batch_size: images per batch.
        wanted: numbers of the batches.
        workers: decoding processes; 0: this process.
        work: function that is called on a batch.

    Raises:
        RunError: image after image ends its process.
    """
    left, futile = list(wanted), 0
    with _Alone(source.by_number(preprocessing, batch_size)) as alone:
        while left:
            reason = _until_a_death(source.batches(preprocessing, batch_size, workers=workers, wanted=list(left)), left, work, workers)
            if reason is None:
                return
            doubted = left[: AHEAD * workers] if futile < FUTILE else list(left)
            workers = max(1, workers // 2)
            logger.warning(
                "a decoding process died (%s): %s decoded image by image in a separate process; others by %d.",
                reason,
                counted(len(doubted), "batch is", "batches are"),
                workers,
            )
            ended = alone.ended
            for number in doubted:
                work(alone.batch(number))
                left.remove(number)
            futile = futile + 1 if alone.ended == ended else 0


def each_output(
    source: ImageSource,
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int,
    shown: bool,
    run: Callable[[Tensor], Tensor],
) -> tuple[list[NamedImage], Tensor, list[tuple[str, str]]]:
    """Computes a function of the pictures of a source.

    Args:
        source: source of the pictures.
        preprocessing: preprocessing of the network.
        batch_size: pictures per batch.
        workers: decoding processes; 0: this process.
        shown: whether to show progress.
        run: uint8 crops `(B, C, H, W)` → `(B, D)`.

    Returns:
        The pictures that could be read, in their order; the results of `run` for them, `(n, D)` float32 on the CPU, `(0,)` if there are
        none; and the names of the others with the reason.
    """
    pieces: dict[int, tuple[list[NamedImage], Tensor]] = {}
    failed: list[tuple[str, str]] = []
    with Progress(len(source), shown) as progress:

        def work(batch: Batch) -> None:
            if batch.images:
                pieces[batch.number] = list(batch.images), run(batch.crops).float().cpu()
            failed.extend((image.name, reason) for image, reason in batch.failed)
            progress.add(len(batch.images) + len(batch.failed))

        each_batch(source, preprocessing, batch_size, range(-(-len(source) // batch_size)), workers, work)
    ordered = [pieces[number] for number in sorted(pieces)]
    images = [image for some, _ in ordered for image in some]
    return images, torch.cat([output for _, output in ordered]) if ordered else torch.empty(0), failed


def _until_a_death(batches: Iterator[Batch], left: list[int], work: Callable[[Batch], object], workers: int) -> str | None:
    """Works on batches and removes their numbers from those left; returns torch's message about a process that died, or None at the end."""
    with _no_interruptions() as begun:
        while True:
            try:
                batch = next(batches, None)
            except XattnError:
                raise
            except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
                # Errors other than RuntimeError: the sender of a batch died before its memory could be opened.
                if not workers or (isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid")):
                    raise
                return (str(error) or type(error).__name__).splitlines()[0]
            begun()
            if batch is None:
                return None
            work(batch)
            left.remove(batch.number)


@contextmanager
def _no_interruptions() -> Iterator[Callable[[], None]]:
    """Makes torch report a dead process when a batch is requested, within seconds, and not at an arbitrary point of the program.

    The latter is done by a signal handler, which torch sets when it starts the first process; the yielded function disables it.
    """
    set_aside: list[Any] = []

    def begun() -> None:
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if getattr(handler, "__module__", "").startswith("torch.") and threading.current_thread() is threading.main_thread():
            set_aside.append(handler)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    try:
        begun()
        yield begun
    finally:
        if set_aside:
            signal.signal(signal.SIGCHLD, set_aside[-1])


class _Alone:
    """A process that decodes one image at a time, and is replaced when it dies."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.deaths = 0  # consecutive deaths
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
        """Returns a batch, each image of which was either decoded or ended the process."""
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
                    f"decoding killed its process for {counted(self.deaths, 'image')} one after the other, the last of them {image.name}: "
                    f"out of memory? What was finished is kept, and the same command continues the run: {ADVICE}."
                ) from error
            return image, f"{ENDED_PROCESS}, twice: out of memory, or a decoder that crashes; {ADVICE}", None, None
        self.deaths = 0
        return found


_batches: Batches


def _use(batches: Batches) -> None:
    global _batches
    _batches = batches
    torch.set_num_threads(1)  # a forked process has none of its parent's compute threads


def _decode(image: NamedImage) -> Decoded:
    return _batches.decoded(image)
