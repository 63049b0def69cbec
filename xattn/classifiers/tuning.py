"""Which way of running forwards is the fastest for a network on this machine: measured once, shortly, and kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from xattn.classifiers.classifier import Classifier
from xattn.classifiers.forwards import NORMS, Level, Precision, Predictor, Tuning, plain_tuning
from xattn.errors import InputError, SettingError
from xattn.memory import free_memory, is_out_of_memory, kept_pages, peak_bytes, shown

Effort = Literal["off", "auto", "full"]
EFFORTS: tuple[Effort, ...] = ("off", "auto", "full")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
WORTH_MEASURING_S = 20.0
WORTH_COMPILING_S = 300.0
GAIN = 1.03
ROUNDS = 4
HOPELESS = 0.25
LARGEST = {"cpu": 64}
LARGEST_ELSEWHERE = 1024
SHARE_OF_FREE = 0.6
SAMPLE = 4
FAR = 0.1  # what rounding may do to a probability; values' own distance is measured and told


@dataclass(frozen=True)
class Tuned:
    """A tuning and how it was come by.

    Attributes:
        tuning: how forwards are run.
        level: "exact" or "fast".
        origin: "measured", "kept" from an earlier measurement, "by hand", or why nothing was measured.
        speed: images a second with it, and of each other way that was measured; empty where nothing was.
        refused: what could not be used, and why.
    """

    tuning: Tuning
    level: Level
    origin: str
    speed: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rates = [f"{self.speed[str(self.tuning)]:.0f} images a second here"] if str(self.tuning) in self.speed else []
        plain = next(iter(self.speed), None)
        rates += [f"{self.speed[plain]:.0f} in {plain}"] if plain not in (None, str(self.tuning)) else []
        return f"{self.tuning} ({'; '.join([self.origin, *rates])})"

    def as_dict(self) -> dict[str, Any]:
        rounded = {way: round(rate, 1) for way, rate in self.speed.items()}
        return {
            "tuning": self.tuning.as_dict(),
            "level": self.level,
            "origin": self.origin,
            "images_a_second": rounded,
            "refused": self.refused,
        }

    @classmethod
    def of(cls, kept: dict[str, Any], origin: str) -> Tuned:
        """What `as_dict` gave."""
        return cls(Tuning(**kept["tuning"]), kept["level"], origin, dict(kept["images_a_second"]), dict(kept["refused"]))


def tuned(
    classifier: Classifier,
    level: Level = "exact",
    tune: str = "auto",
    *,
    forwards: int | None = None,
    sample: Tensor | None = None,
    memory: int | None = None,
) -> Tuned:
    """How forwards of a classifier are run best.

    Level "exact" takes only what leaves the probabilities of the sample within the batch tolerance of the plain network (1e-5 in
    float32); "fast" may compute in bfloat16, float16 or TF32.

    Args:
        classifier: the network.
        level: "exact" or "fast".
        tune: "off", the defaults; "auto", a measurement of seconds where the work is worth one, kept for the next time; "full", anew,
            with compilation whatever the work; or settings by hand, `chunk=16,folded=true,compiled=true,precision=bfloat16`.
        forwards: images that are to be run, the measure of the work; None: too many to wonder.
        sample: images in pixel space to compare on; noise if None.
        memory: bytes that one chunk may hold; None: more than half of what is free.

    Raises:
        SettingError: settings by hand that do not fit the level.
        InputError: not even one image fits the memory.
    """
    by_hand = None if tune in EFFORTS else Tuning.read(tune) if "=" in tune else _no_effort(tune)
    if by_hand is not None and level == "exact" and by_hand.precision != "own":
        raise SettingError(f"precision={by_hand.precision} is not exact: it is for level fast, which says how far its values lie off.")
    bench = _Bench(classifier, level, _sampled(classifier, sample), _largest_chunk(classifier, memory))
    if by_hand is not None:
        fitting = bench.fitting(by_hand)
        if (by_hand.folded or by_hand.compiled) and bench.quietly_ready(fitting) is None:
            raise SettingError(f"{classifier.name} cannot run in {fitting}: {bench.refused[str(fitting)]}. Leave it to tune=auto.")
        return Tuned(fitting, level, "by hand")
    if tune == "off":
        return Tuned(bench.fitting(plain_tuning(classifier)), level, "not measured")
    keep = _Kept(_key(classifier, level))
    if tune == "auto" and (found := keep.read()) is not None:
        found = _for_work(found, forwards)
        if found is not None and bench.quietly_ready(bench.fitting(found.tuning)) is not None:
            return replace(found, tuning=bench.fitting(found.tuning))
    with kept_pages(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a way that complains is measured, or refused, all the same
        best = bench.fitting(plain_tuning(classifier))
        rate = bench.rate(best)
        work = float("inf") if forwards is None or not rate else forwards / rate
        if tune == "auto" and work < WORTH_MEASURING_S:
            return Tuned(best, level, "too little work to measure")
        best = bench.best(best, compiling=tune == "full" or work > WORTH_COMPILING_S)
    done = Tuned(best, level, "measured", bench.rates, bench.refused)
    if memory is None:  # what was measured in little memory is not the fastest elsewhere
        keep.write(done)
    return done


def _for_work(found: Tuned, forwards: int | None) -> Tuned | None:
    """What was kept, for other work than it was measured for: compiled only where that pays, None where it would and was not tried."""
    rate = found.speed.get(str(found.tuning))
    work = float("inf") if forwards is None or not rate else forwards / rate
    if work <= WORTH_COMPILING_S:
        return replace(found, tuning=replace(found.tuning, compiled=False))
    return found if any("compiled" in way for way in (*found.speed, *found.refused)) else None


def fastest(
    classifier: Classifier,
    level: Level = "exact",
    tune: str = "auto",
    *,
    forwards: int | None = None,
    sample: Tensor | None = None,
    memory: int | None = None,
) -> Predictor:
    """What runs a classifier's forwards best on this machine, for `explain` and `evaluate`. Arguments and errors as for `tuned`."""
    return Predictor(classifier, tuned(classifier, level, tune, forwards=forwards, sample=sample, memory=memory).tuning, level)


def _no_effort(tune: str) -> Tuning:
    raise SettingError(f"tune is off, auto, full, or settings as chunk=16,compiled=true; got '{tune}'.")


def _sampled(classifier: Classifier, sample: Tensor | None) -> Tensor:
    if sample is None or not len(sample):
        coarse = torch.rand((SAMPLE, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        sample = torch.nn.functional.interpolate(coarse, size=classifier.input_size, mode="bilinear")
    return sample[:SAMPLE].to(device=classifier.device)


def _largest_chunk(classifier: Classifier, memory: int | None) -> int:
    """The most images whose forward fits."""
    predictor = Predictor(classifier, Tuning(1))
    image = classifier.probe().float()
    each = peak_bytes(lambda: predictor(image * 1.0)) + 3 * image.numel() * 4  # the changed image, what it is made of, its mask
    room = memory if memory is not None else int(SHARE_OF_FREE * free_memory(classifier.device))
    if each > room:
        raise InputError(f"{classifier.name} needs {shown(each)} for a forward of one image; {shown(room)} came. Allow more memory.")
    return min(room // each, LARGEST.get(classifier.device.type, LARGEST_ELSEWHERE))


class _Bench:
    """Measures ways of running one classifier.

    Attributes:
        rates: images a second, by the way's words.
        refused: why a way was not used.
    """

    def __init__(self, classifier: Classifier, level: Level, sample: Tensor, largest: int) -> None:
        self.classifier = classifier
        self.level = level
        self.sample = sample
        self.largest = largest
        self.predictors: dict[str, Predictor] = {}
        self.rates: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    def fitting(self, tuning: Tuning) -> Tuning:
        """The same with a chunk that fits the memory."""
        return replace(tuning, chunk=min(tuning.chunk, self.largest))

    def best(self, tuning: Tuning, *, compiling: bool) -> Tuning:
        """The fastest of the neighbours of a tuning, one question after the other."""
        best = self._better(tuning, [replace(tuning, folded=True)] if self._has_norms() else [])
        best = self._better(best, [replace(best, memory_format="contiguous")])
        if self.level == "fast":
            halves: list[Precision] = ["bfloat16", "float16"] if self.classifier.device.type == "cuda" else ["bfloat16"]
            best = self._better(best, [replace(best, precision=half) for half in halves])
        best = self._climb(best)
        if compiling:
            compiled = self._better(best, [replace(best, compiled=True)])
            best = self._climb(compiled, turns=1) if compiled.compiled else compiled
        return best

    def _has_norms(self) -> bool:
        return any(type(module) in NORMS for module in self.classifier.network.modules())

    def _climb(self, best: Tuning, turns: int = 8) -> Tuning:
        """Doubles, else halves, the chunk as long as that is faster."""
        for factor in (2.0, 0.5):
            start = best
            for _ in range(turns):
                chunk = int(best.chunk * factor)
                if not 1 <= chunk <= self.largest:
                    break
                last, best = best, self._better(best, [replace(best, chunk=chunk)])
                if best == last:
                    break
            if best != start:
                break
        return best

    def _better(self, best: Tuning, others: list[Tuning]) -> Tuning:
        """The fastest; another has to be faster by more than noise, side by side."""
        for other in others:
            if self._is_faster(other, best):
                best = other
        return best

    def _is_faster(self, other: Tuning, best: Tuning) -> bool:
        rival = self._ready(other)
        champion = self._ready(best)
        if rival is None or champion is None:
            return False
        for _ in range(ROUNDS):
            rates = [self._timed(other, rival), self._timed(best, champion)]
            if rates[0] < HOPELESS * rates[1]:
                break
        is_faster = self.rates[str(other)] > GAIN * self.rates[str(best)]
        self.predictors.pop(str(best if is_faster else other))  # never more than two at a time: each may hold weights of its own
        return is_faster

    def rate(self, tuning: Tuning) -> float:
        """Images a second, by one forward after a first; 0 for a way that cannot be used."""
        predictor = self._ready(tuning)
        return 0.0 if predictor is None else self._timed(tuning, predictor)

    def _ready(self, tuning: Tuning) -> Predictor | None:
        """What runs a way, warmed up and seen to give the network's logits; None for one that cannot be used."""
        way = str(tuning)
        if way in self.refused:
            return None
        if way not in self.predictors:
            try:
                predictor = Predictor(self.classifier, tuning, self.level)
                why = self._strays(tuning, predictor(self._images(tuning)))
                why = "memory ran out" if predictor.chunk != tuning.chunk else why
            except RuntimeError as error:
                why = "memory ran out" if is_out_of_memory(error) else _first_line(error)
            except Exception as error:  # torch.compile, copy.deepcopy and users' modules raise whatever they like; the plain way remains
                why = _first_line(error)
            if why is not None:
                self.refused[way] = why
                return None
            self.predictors[way] = predictor
        return self.predictors[way]

    def quietly_ready(self, tuning: Tuning) -> Predictor | None:
        """The same, without what libraries warn of."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._ready(tuning)

    def _images(self, tuning: Tuning) -> Tensor:
        return self.sample.repeat(-(-tuning.chunk // len(self.sample)), 1, 1, 1)[: tuning.chunk]

    def _timed(self, tuning: Tuning, predictor: Predictor) -> float:
        images = self._images(tuning)
        self._finish()
        start = time.perf_counter()
        predictor(images)
        self._finish()
        rate = tuning.chunk / (time.perf_counter() - start)
        self.rates[str(tuning)] = max(rate, self.rates.get(str(tuning), 0.0))
        return rate

    def _finish(self) -> None:
        if self.classifier.device.type == "cuda":
            torch.cuda.synchronize(self.classifier.device)
        elif self.classifier.device.type == "mps":
            torch.mps.synchronize()

    def _strays(self, tuning: Tuning, logits: Tensor) -> str | None:
        plain = self.classifier.predict(self.sample)
        if self.level == "fast" and tuning.folded:  # a fold has to be right before anything is rounded
            folded = Predictor(self.classifier, Tuning(len(self.sample), tuning.memory_format, folded=True))(self.sample)
            if (why := strays(folded, plain)) is not None:
                return why
        few = min(len(logits), len(self.sample))
        return strays(logits[:few], plain[:few], None if self.level == "exact" else FAR)


def strays(logits: Tensor, plain: Tensor, tolerance: float | None = None) -> str | None:
    """Why these logits cannot stand for the plain network's; None if they can.

    Args:
        logits: `(B, K)`.
        plain: `(B, K)`.
        tolerance: of probabilities; None: of a batch in the precision of `plain`.
    """
    if not torch.equal(torch.isfinite(logits), torch.isfinite(plain)):
        return "it gives values that are not finite"
    limit = TOLERANCE.get(plain.dtype, 1e-5) if tolerance is None else tolerance
    far = max(float((_probabilities(a, logits) - _probabilities(a, plain)).abs().nan_to_num(0.0).max()) for a in (True, False))
    return None if far <= limit else f"probabilities differ by {far:.1g}, more than {limit:g}"


def _probabilities(multi_label: bool, logits: Tensor) -> Tensor:
    return logits.cpu().double().sigmoid() if multi_label else logits.cpu().double().softmax(dim=1)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}" if str(error).strip() else type(error).__name__


def _key(classifier: Classifier, level: Level) -> str:
    """What a measurement holds for: the network's shape, head and input, the machine, torch and the level."""
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in classifier.state_dict().items()]
    network, device = classifier.network, classifier.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}×{torch.get_num_threads()}"
    about = (type(network).__module__, repr(network), shapes, classifier.head_name, classifier.input_size)
    return hashlib.sha256(repr((*about, device.type, machine, torch.__version__, level)).encode()).hexdigest()[:20]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {model or platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


class _Kept:
    """Where measurements are kept: a small file each under the user's cache folder."""

    def __init__(self, key: str) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        self.path = Path(home) / "xattn" / "tuning" / f"{key}.json"

    def read(self) -> Tuned | None:
        """The measurement; None where there is none that can be read."""
        try:
            return Tuned.of(json.loads(self.path.read_text(encoding="utf-8")), "kept from an earlier measurement")
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, found: Tuned) -> None:
        """Keeps it where that is possible; a cache that cannot be written costs seconds, not a run."""
        unfinished = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(found.as_dict(), indent=1), encoding="utf-8")
            os.replace(unfinished, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)


def ways(found: Tuned) -> Iterator[str]:
    """A line for each way that was measured or refused, fastest first."""
    for way, rate in sorted(found.speed.items(), key=lambda entry: -entry[1]):
        yield f"{rate:8.1f} images a second: {way}"
    for way, why in found.refused.items():
        yield f"{'–':>8} {way}: {why}"
