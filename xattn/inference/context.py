"""Shared computation of the heads on one backbone while a batch is explained and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xattn.inference.benchmark import FAR, mismatch
from xattn.inference.predictor import Predictor
from xattn.inference.settings import Level, Tuning
from xattn.inference.shared_backbone import SharedBackbone
from xattn.metrics.stream import Forwards, PerturbedImages, Read, stream
from xattn.metrics.target_base import Target
from xattn.models.classifier import Classifier

PROBES = 3


def shared_predictor(classifiers: Sequence[Classifier], tuning: Tuning, level: Level) -> Forwards | None:
    """Runs all heads of one backbone at once, one output per head; None if the outputs would differ from separate runs."""
    shared = SharedBackbone(classifiers)
    shape = (PROBES, classifiers[0].channels, *classifiers[0].input_size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(shared.device)
    try:
        found = shared.split(Predictor(shared, Tuning(PROBES))(noise))
        for classifier, logits in zip(classifiers, found, strict=True):
            if mismatch(logits, classifier.predict(noise)) is not None:
                return None
        predictor = Predictor(shared, tuning, level)
        filled = predictor(noise.repeat(-(-tuning.chunk // PROBES), 1, 1, 1)[: tuning.chunk])[:PROBES]
        for one, logits in zip(shared.split(filled), found, strict=True):
            if mismatch(one, logits[: len(one)], None if level == "exact" else FAR) is not None:
                return None
    except Exception:  # the layers after the pooling may not accept a batch of vectors, and their errors vary: each head then runs alone
        return None

    def predict(images: Tensor) -> list[Tensor]:
        return shared.split(predictor(images))

    return replace(predictor.forwards, predict=predict)


class BatchContext:
    """Responses to perturbed images that the heads on one backbone share while a batch is explained.

    The first head that needs the images runs them for all heads; the order does not matter.

    Args:
        forwards: how they are run, with one output per head.
        targets: one target per head.
    """

    def __init__(self, forwards: Forwards, targets: Sequence[Target]) -> None:
        self.forwards = forwards
        self.targets = targets
        self._answers: dict[str, list[Tensor]] = {}

    def respond(
        self,
        key: str,
        member: int,
        run: PerturbedImages,
        like: Tensor,
        read: Callable[[Target, Tensor], Tensor],
        chunk: int | None = None,
    ) -> Tensor:
        """Returns one number per perturbed image, for one head.

        Args:
            key: identifies these images within the batch.
            member: index of the head.
            run: the perturbed images.
            like: a tensor on the device of the numbers.
            read: the targets and the output of some images → `(b,)`.
            chunk: images per forward; None: the context's.

        Returns:
            `(count,)` float64.
        """
        if key not in self._answers:
            readings = [_reading(target, read) for target in self.targets]
            forwards = replace(self.forwards, chunk=chunk or self.forwards.chunk)
            found = stream(forwards, [run], like, readings, 1)
            self._answers[key] = [columns[0][0] for columns in found]
        return self._answers[key][member]


def _reading(target: Target, read: Callable[[Target, Tensor], Tensor]) -> Read:
    return lambda output, index: (read(target[index], output),)
