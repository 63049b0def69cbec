"""Finds the fastest execution settings for a network's forwards on this machine: measured once, in seconds, and cached."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from xattn.cache import keep, kept
from xattn.errors import InputError, SettingError
from xattn.inference.backends import others
from xattn.inference.benchmark import Benchmark
from xattn.inference.memory import free_memory, kept_pages, peak_bytes, shown
from xattn.inference.predictor import Predictor, plain_tuning
from xattn.inference.settings import Backend, Level, Tuning
from xattn.models.classifier import Classifier

Effort = Literal["off", "auto", "full"]
EFFORTS: tuple[Effort, ...] = ("off", "auto", "full")
WORTH_MEASURING_S = 20.0
WORTH_CONVERTING_S = 60.0  # for another backend, which needs seconds to start in each process of a run
WORTH_COMPILING_S = 300.0
LARGEST = {"cpu": 64}
LARGEST_ELSEWHERE = 1024
SHARE_OF_FREE = 0.6
SAMPLE = 4


@dataclass(frozen=True)
class Tuned:
    """A tuning and its origin.

    Attributes:
        tuning: execution settings.
        level: "exact" or "fast".
        origin: "measured", "kept from an earlier measurement", "by hand", or why nothing was measured.
        speed: images per second with this tuning, and with each other measured tuning; empty if nothing was measured.
        refused: tunings that could not be used, with the reasons.
    """

    tuning: Tuning
    level: Level
    origin: str
    speed: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rates = [f"{self.speed[str(self.tuning)]:.0f} images per second here"] if str(self.tuning) in self.speed else []
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
        """Rebuilds it from the output of `as_dict`."""
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
    """Finds the fastest execution settings for a classifier's forwards.

    Level "exact" accepts only tunings that keep the probabilities of the sample within the batch tolerance of the plain network (1e-5 in
    float32); "fast" may compute in bfloat16, float16 or TF32.

    Args:
        classifier: the network.
        level: "exact" or "fast".
        tune: "off", the defaults; "auto", a measurement of seconds if the amount of work justifies one, cached for later runs; "full", a
            new measurement, with compilation and other backends regardless of the work; or settings by hand,
            `chunk=16,folded=true,compiled=true,precision=bfloat16,backend=torch`.
        forwards: number of images to run, which measures the work; None: many.
        sample: images in pixel space on which outputs are compared; None: noise.
        memory: bytes that one chunk may use; None: more than half of the free memory.

    Raises:
        SettingError: settings given by hand do not fit the level or the network.
        MissingPackageError: the backend given by hand is not installed.
        InputError: not even one image fits into memory.
    """
    by_hand = None if tune in EFFORTS else Tuning.read(tune) if "=" in tune else _no_effort(tune)
    if by_hand is not None and level == "exact" and by_hand.precision != "own":
        raise SettingError(f"precision={by_hand.precision} is not exact: use it with level fast, which reports how much its values differ.")
    benchmark = Benchmark(classifier, level, _sampled(classifier, sample), _largest_chunk(classifier, memory))
    if by_hand is not None:
        fitting = benchmark.fitting(by_hand)
        is_checked = by_hand.folded or by_hand.compiled or by_hand.backend != "torch"
        if is_checked and benchmark.quietly_ready(fitting) is None:
            raise SettingError(f"{classifier.name} cannot run in {fitting}: {benchmark.refused[str(fitting)]}. Leave it to tune=auto.")
        return Tuned(fitting, level, "by hand")
    if tune == "off":
        return Tuned(benchmark.fitting(plain_tuning(classifier)), level, "not measured")
    backends = others(classifier)
    key = _key(classifier, level)
    if tune == "auto" and (found := _earlier(key)) is not None:
        found = _for_work(found, forwards, backends)
        if found is not None and benchmark.quietly_ready(benchmark.fitting(found.tuning)) is not None:
            return replace(found, tuning=benchmark.fitting(found.tuning))
    with kept_pages(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tuning that warns is still measured, or refused
        best = benchmark.fitting(plain_tuning(classifier))
        rate = benchmark.rate(best)
        work = float("inf") if forwards is None or not rate else forwards / rate
        if tune == "auto" and work < WORTH_MEASURING_S:
            return Tuned(best, level, "too little work to measure")
        full = tune == "full"
        tried = backends if full or work > WORTH_CONVERTING_S else ()
        best = benchmark.best(best, compiling=full or work > WORTH_COMPILING_S, backends=tried)
    done = Tuned(best, level, "measured", benchmark.rates, benchmark.refused)
    if memory is None:  # the fastest tuning with little memory is not the fastest elsewhere
        keep("tuning", key, done.as_dict())
    return done


def _for_work(found: Tuned, forwards: int | None, backends: Collection[Backend] = ()) -> Tuned | None:
    """Adapts a cached measurement to other work: compilation or another backend only if it pays; None if it would but was not tried."""
    rate = found.speed.get(str(found.tuning))
    work = float("inf") if forwards is None or not rate else forwards / rate
    plain = replace(found.tuning, compiled=False, backend="torch")
    if work <= WORTH_CONVERTING_S:
        return replace(found, tuning=plain)
    tried = (*found.speed, *found.refused)
    wanted = [*backends, "compiled"] if work > WORTH_COMPILING_S else backends
    if not all(any(word in way for way in tried) for word in wanted):
        return None
    if not found.tuning.compiled or work > WORTH_COMPILING_S:
        return found
    ways = [plain, *(replace(plain, backend=backend) for backend in backends)]
    return replace(found, tuning=max(ways, key=lambda way: found.speed.get(str(way), 0.0)))


def fastest(
    classifier: Classifier, level: Level = "exact", tune: str = "auto", *, forwards: int | None = None, sample: Tensor | None = None
) -> Predictor:
    """Returns the fastest predictor of a classifier on this machine, for `explain` and `evaluate`. Arguments and errors as for `tuned`.

    >>> import xattn
    >>> clf = xattn.load("birds:gap", device="cpu")
    >>> fastest(clf, tune="off").chunk
    8
    """
    return Predictor(classifier, tuned(classifier, level, tune, forwards=forwards, sample=sample).tuning, level)


def _no_effort(tune: str) -> Tuning:
    raise SettingError(f"tune is off, auto, full, or settings such as chunk=16,compiled=true; got '{tune}'.")


def _sampled(classifier: Classifier, sample: Tensor | None) -> Tensor:
    if sample is None or not len(sample):
        coarse = torch.rand((SAMPLE, classifier.channels, 8, 8), generator=torch.Generator().manual_seed(0))
        sample = torch.nn.functional.interpolate(coarse, size=classifier.input_size, mode="bilinear")
    return sample[:SAMPLE].to(device=classifier.device)


def _largest_chunk(classifier: Classifier, memory: int | None) -> int:
    """Returns the largest number of images whose forward fits into memory."""
    predictor = Predictor(classifier, Tuning(1))
    image = classifier.probe().float()
    each = peak_bytes(lambda: predictor(image * 1.0)) + 3 * image.numel() * 4  # the perturbed image, its source, its mask
    room = memory if memory is not None else int(SHARE_OF_FREE * free_memory(classifier.device))
    if each > room:
        raise InputError(
            f"{classifier.name} needs {shown(each)} for a forward of one image; the limit is {shown(room)}. Allow more memory."
        )
    return min(room // each, LARGEST.get(classifier.device.type, LARGEST_ELSEWHERE))


def _key(classifier: Classifier, level: Level) -> str:
    """Returns what a measurement depends on: the network's shape, head and input, the machine, torch and other backends, and the level."""
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in classifier.state_dict().items()]
    network, device = classifier.network, classifier.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}×{torch.get_num_threads()}"
    about = (type(network).__module__, repr(network), shapes, classifier.head_name, classifier.input_size)
    versions = (torch.__version__, others(classifier))
    return hashlib.sha256(repr((*about, device.type, machine, versions, level)).encode()).hexdigest()[:20]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {model or platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def _earlier(key: str) -> Tuned | None:
    """Reads a cached measurement; None if no readable one exists."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if (found := kept("tuning", key)) is not None:
            return Tuned.of(found, "kept from an earlier measurement")
    return None
