"""Benchmark of execution settings for one classifier; each must first reproduce the plain network's output."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from statistics import median

import torch
from torch import Tensor

from xattn.errors import MissingPackageError, XattnError
from xattn.inference.cloning import NORMS
from xattn.inference.memory import is_out_of_memory
from xattn.inference.predictor import Predictor
from xattn.inference.settings import Backend, Level, Precision, Tuning
from xattn.models.classifier import Classifier

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
FAR = 0.1  # largest change of a probability by rounding; its effect on the metrics' values is measured and reported
GAIN = 1.03
LARGER = 1.1  # a chunk twice as large needs twice the memory
ROUNDS = 5
TURN_S = 0.1  # minimum, so that a small network's turn has several forwards
DUEL_S = 4.0  # no turn starts after this: a slow network's few turns are long
HOPELESS = 0.25
logger = logging.getLogger("xattn")


class Benchmark:
    """Measures several execution settings of one classifier.

    Attributes:
        rates: images per second, by the tuning's description.
        refused: why a tuning was not used, by its description.
    """

    def __init__(self, classifier: Classifier, level: Level, sample: Tensor, largest: int) -> None:
        self.classifier = classifier
        self.level = level
        self.sample = sample
        self.largest = largest
        self.predictors: dict[str, Predictor] = {}
        self.rates: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    @cached_property
    def plain(self) -> Tensor:
        """Returns the network's own output for the sample."""
        return self.classifier.predict(self.sample)

    def fitting(self, tuning: Tuning) -> Tuning:
        """Returns the same tuning with a chunk that fits into memory."""
        return replace(tuning, chunk=min(tuning.chunk, self.largest))

    def best(self, tuning: Tuning, *, compiling: bool, backends: Collection[Backend] = ()) -> Tuning:
        """Returns the fastest tuning found by changing one setting at a time.

        Args:
            tuning: where to start.
            compiling: whether torch.compile is tried.
            backends: backends other than torch to try.
        """
        best = self._better(tuning, [replace(tuning, folded=True)] if self._has_norms() else [])
        best = self._better(best, [replace(best, memory_format="contiguous")])
        if self.level == "fast":
            halves: list[Precision] = ["bfloat16", "float16"] if self.classifier.device.type == "cuda" else ["bfloat16"]
            best = self._better(best, [replace(best, precision=half) for half in halves])
        best = self._climb(best)
        if compiling:
            compiled = self._better(best, [replace(best, compiled=True)])
            best = self._climb(compiled, turns=1) if compiled.compiled else compiled
        for backend in backends:
            other = replace(best, compiled=False, backend=backend)
            best = self._better(best, [other])
            best = self._climb(best, turns=1) if best == other else best
            if (why := self.refused.get(str(other))) is not None:
                logger.info("%s is not run by %s: %s", self.classifier.name, backend, why)
        return best

    def _has_norms(self) -> bool:
        return any(type(module) in NORMS for module in self.classifier.network.modules())

    def _climb(self, best: Tuning, turns: int = 8) -> Tuning:
        """Doubles the chunk while that is faster; otherwise halves it while that is not slower, which saves memory."""
        for factor, gain in ((2.0, LARGER), (0.5, 1.0)):
            start = best
            for _ in range(turns):
                chunk = int(best.chunk * factor)
                if not 1 <= chunk <= self.largest:
                    break
                last, best = best, self._better(best, [replace(best, chunk=chunk)], gain)
                if best == last:
                    break
            if best != start:
                break
        return best

    def _better(self, best: Tuning, others: list[Tuning], gain: float = GAIN) -> Tuning:
        """Returns the fastest tuning; another one replaces `best` only if it is faster by more than noise.

        Only rates from alternating turns count: a tuning's best rate may come from a moment when the machine was idle.
        """
        for other in others:
            if self._is_faster(other, best, gain):
                best = other
        return best

    def _is_faster(self, other: Tuning, best: Tuning, gain: float) -> bool:
        challenger = self._ready(other)
        champion = self._ready(best)
        if challenger is None or champion is None:
            return False
        ratios: list[float] = []
        start = time.perf_counter()
        while not ratios or (len(ratios) < ROUNDS and time.perf_counter() - start < DUEL_S and min(ratios) > HOPELESS):
            ratios.append(self._timed(other, challenger) / self._timed(best, champion))
        is_faster = median(ratios) >= gain
        self.predictors.pop(str(best if is_faster else other))  # at most two at a time: each may hold its own weights
        return is_faster

    def rate(self, tuning: Tuning) -> float:
        """Measures images per second in one turn after a warm-up; 0 for a tuning that cannot be used."""
        predictor = self._ready(tuning)
        return 0.0 if predictor is None else self._timed(tuning, predictor)

    def _ready(self, tuning: Tuning) -> Predictor | None:
        """Returns the predictor of a tuning, warmed up and checked against the plain network; None for one that cannot be used."""
        way = str(tuning)
        if way in self.refused:
            return None
        if way not in self.predictors:
            try:
                predictor = Predictor(self.classifier, tuning, self.level)
                why = self._mismatch(tuning, predictor(self._images(tuning)))
                why = "memory ran out" if predictor.chunk != tuning.chunk else why
            except RuntimeError as error:
                why = "memory ran out" if is_out_of_memory(error) else _first_line(error)
            except MissingPackageError:
                raise
            except Exception as error:  # compilers, other backends, copy.deepcopy and users' modules raise any kind; plain settings remain
                why = _first_line(error)
            if why is not None:
                self.refused[way] = why
                return None
            self.predictors[way] = predictor
        return self.predictors[way]

    def quietly_ready(self, tuning: Tuning) -> Predictor | None:
        """Calls `_ready` without the warnings of libraries."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._ready(tuning)

    def _images(self, tuning: Tuning) -> Tensor:
        return self.sample.repeat(-(-tuning.chunk // len(self.sample)), 1, 1, 1)[: tuning.chunk]

    def _timed(self, tuning: Tuning, predictor: Predictor) -> float:
        images, times = self._images(tuning), 0
        self._finish()
        start = stop = time.perf_counter()
        while not times or stop - start < TURN_S:
            predictor(images)
            self._finish()
            times, stop = times + 1, time.perf_counter()
        rate = times * tuning.chunk / (stop - start)
        self.rates[str(tuning)] = max(rate, self.rates.get(str(tuning), 0.0))
        return rate

    def _finish(self) -> None:
        if self.classifier.device.type == "cuda":
            torch.cuda.synchronize(self.classifier.device)
        elif self.classifier.device.type == "mps":
            torch.mps.synchronize()

    def _mismatch(self, tuning: Tuning, logits: Tensor) -> str | None:
        if self.level == "fast" and tuning.folded:  # folding must be correct before anything is rounded
            folded = Predictor(self.classifier, Tuning(len(self.sample), tuning.memory_format, folded=True))(self.sample)
            if (why := mismatch(folded, self.plain)) is not None:
                return why
        few = min(len(logits), len(self.sample))
        return mismatch(logits[:few], self.plain[:few], None if self.level == "exact" else FAR)


def mismatch(logits: Tensor, plain: Tensor, tolerance: float | None = None) -> str | None:
    """Returns why these logits cannot replace the plain network's; None if they can.

    Args:
        logits: `(B, K)`.
        plain: `(B, K)`.
        tolerance: tolerance of probabilities; None: the batch tolerance in the precision of `plain`.
    """
    if not torch.equal(torch.isfinite(logits), torch.isfinite(plain)):
        return "it gives values that are not finite"
    limit = TOLERANCE.get(plain.dtype, 1e-5) if tolerance is None else tolerance
    far = max(float((_probabilities(a, logits) - _probabilities(a, plain)).abs().nan_to_num(0.0).max()) for a in (True, False))
    return None if far <= limit else f"probabilities differ by {far:.1g}, more than {limit:g}"


def _probabilities(multi_label: bool, logits: Tensor) -> Tensor:
    return logits.cpu().double().sigmoid() if multi_label else logits.cpu().double().softmax(dim=1)


def _first_line(error: Exception) -> str:
    if isinstance(error, XattnError):
        return str(error).removesuffix(".")
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}" if str(error).strip() else type(error).__name__
