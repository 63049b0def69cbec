"""Predictor: computes the network's output for many perturbed images, as fast as the network runs on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from xattn.inference.backends import built, runs_modules, streams
from xattn.inference.cloning import Runnable
from xattn.inference.memory import is_out_of_memory
from xattn.inference.settings import Level, Tuning, refuse_unknown_level
from xattn.metrics.stream import Forwards
from xattn.models.concurrency import evaluating

logger = logging.getLogger("xattn")


class Predictor:
    """Computes outputs of images `(B, 3, H, W)` in pixel space, float32 or float64, in eval mode and without gradients.

    The classifier is not changed: a tuning that changes weights is applied to a copy, which shares all other weights. Make a new predictor
    after weights have changed or the classifier has moved to another device. If memory runs out, the chunk is halved and the work
    continues.

    Args:
        classifier: the classifier to run.
        tuning: execution settings; None: the default, 8 images per forward on the CPU, 64 on a GPU.
        level: "fast" lets a GPU round convolutions and products to TF32.

    Attributes:
        chunk: images at a time; callers should pass this many in each call.
        streams: parts of a chunk that run at the same time, see `forwards`.
    """

    def __init__(self, classifier: Runnable, tuning: Tuning | None = None, level: Level = "exact") -> None:
        refuse_unknown_level(level)
        self.classifier = classifier
        self.tuning = plain_tuning(classifier) if tuning is None else tuning
        self.level = level
        self.chunk = self.tuning.chunk
        self._logits = built(classifier, self.tuning)
        self.streams = streams(self.tuning)
        self._runs_modules = runs_modules(self.tuning)

    @property
    def forwards(self) -> Forwards:
        """How `xattn.metrics.stream` runs perturbed images by this predictor."""
        return Forwards(lambda images: (self(images),), self.chunk, self.streams)

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.classifier.device, non_blocking=True)
        found: list[Tensor] = []
        start = 0
        with evaluating(self.classifier) if self._runs_modules else nullcontext(), _rounding(self.level):
            while start < len(images):
                piece = images[start : start + self.chunk]
                try:
                    found.append(self._logits(piece))
                except RuntimeError as error:
                    if not is_out_of_memory(error) or self.chunk == 1:
                        raise
                    self.chunk = max(1, self.chunk // 2)
                    logger.warning("memory ran out: %s continues with chunks of %d.", self.classifier.name, self.chunk)
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                else:
                    start += len(piece)
        return found[0] if len(found) == 1 else torch.cat(found)


def plain_tuning(classifier: Runnable) -> Tuning:
    """Returns the tuning that is used if nothing was measured."""
    return Tuning(8 if classifier.device.type == "cpu" else 64)


@contextmanager
def _rounding(level: Level) -> Iterator[None]:
    """Allows TF32 for level "fast" on a GPU; the surrounding `evaluating` forbids it for convolutions and restores all settings."""
    if level == "exact" or not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
        torch.backends.cudnn.allow_tf32 = False  # the value that `evaluating` sets; another thread may still be inside it
