"""Clocks, counts and peaks: how a thing is measured, whatever it is."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xattn.inference import Predictor

FORWARDS_CLOCKED = 96
WARM_UP = "warm-up"
PACKAGES = ("xattn", "torch", "torchvision", "torchcam", "grad-cam", "quantus", "captum", "openvino", "numpy", "ray")


@dataclass(frozen=True)
class Contender:
    """One way of doing a job.

    Attributes:
        name: as rows call it.
        run: images in pixel space and their targets → whatever comes of it.
        network: whose forwards are counted; None: they cannot be seen from outside.
        note: what it does, and in what that is less, more or other than the rest.
    """

    name: str
    run: Callable[[Tensor, Tensor], Any]
    network: nn.Module | None
    note: str = ""


def clocked(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds until all that `run` began is done."""
    return repeated(run, device, 0.0)[0]


def repeated(run: Callable[[], Any], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each of as many runs, one after the other, as come to so many together; of one at least."""
    gc.collect()
    found: list[float] = []
    while not found or sum(found) < seconds:
        _finish(device)
        start = time.perf_counter()
        run()
        _finish(device)
        found.append(time.perf_counter() - start)
    return found


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def forwards(network: nn.Module | None) -> Iterator[list[int]]:
    """The number of images of each forward of a network; those of our predictors, which may run a twin of it, among them."""
    seen: list[int] = []
    run, inside = Predictor.__call__, False

    def counted(self: Predictor, images: Tensor) -> Tensor:
        nonlocal inside
        seen.append(len(images))
        inside = True
        try:
            return run(self, images)
        finally:
            inside = False

    def before(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not inside:
            seen.append(len(given[0]))

    handle = None if network is None else network.register_forward_pre_hook(before)
    Predictor.__call__ = counted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Predictor.__call__ = run  # type: ignore[method-assign]
        if handle is not None:
            handle.remove()


class Here:
    """A contender in this process. Asked for a batch by its number, or for "warm-up", it runs that and tells how long it took."""

    def __init__(self, contender: Contender, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> None:
        self.contender, self.batches, self.device = contender, batches, device

    def ask(self, what: str) -> dict[str, Any]:
        contender, batch = self.contender, self.batches[0 if what == WARM_UP else int(what)]
        if what == WARM_UP:
            with forwards(contender.network) as seen:
                seconds = clocked(lambda: contender.run(*batch), self.device)
            return {"seconds": seconds, "passes": sum(seen) / len(batch[0]) if seen else None}
        seconds = clocked(lambda: contender.run(*batch), self.device)
        if contender.network is not None:
            contender.network.zero_grad(set_to_none=True)  # pytorch-grad-cam leaves gradients at the parameters
        return {"seconds": seconds}

    def serve(self) -> None:
        """Answers what is asked on standard input, a line each."""
        for line in sys.stdin:
            print(json.dumps(self.ask(line.strip())), flush=True)

    def close(self) -> None:
        """There is nothing to end."""


class Apart:
    """A contender in a process of its own that serves: no state of one library, its allocator's least of all, reaches another's clock."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries may print of their own
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"a contender ended with exit code {self.process.wait()} when it was asked for {what}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def interleaved(
    contenders: Mapping[str, Here | Apart], images: Sequence[int], aside: Callable[[int], None], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Seconds of every contender on every batch, of so many images, the contenders taking turns; each is warmed up on the first.

    A slow moment of the machine meets all of them, and who comes first changes from batch to batch. `aside` is what else is measured on
    each batch, among them.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, contender in contenders.items():
        told = contender.ask(WARM_UP)
        found[name] = {"passes": told["passes"], "warm_up": told["seconds"], "images": [], "seconds": []}
        say(f"{name}: warm-up {told['seconds']:.2f} s")
    names = list(contenders)
    for number, count in enumerate(images):
        aside(number)
        for turn in range(len(names)):
            name = names[(number + turn) % len(names)]
            seconds = contenders[name].ask(str(number))["seconds"]
            found[name]["seconds"].append(seconds)
            found[name]["images"].append(count)
            say(f"pair {number + 1}, {name}: {seconds:.2f} s")
    return found


def forward_alone(predict: Callable[[Tensor], Tensor], image: Tensor, chunk: int, device: torch.device) -> float:
    """Seconds per image of a forward of so many alone, run once before it is clocked."""
    batch = image.expand(chunk, -1, -1, -1).contiguous()
    times = max(2, FORWARDS_CLOCKED // chunk)
    with torch.no_grad():
        predict(batch)
        return clocked(lambda: [predict(batch) for _ in range(times)], device) / (times * chunk)


def peak_mib(run: Callable[[], Any], device: torch.device) -> float:
    """MiB that `run` needs at its peak above what is held before it: of the GPU's allocator, else of the process.

    The process's high-water mark is set back before the run where the system can do that (Linux); elsewhere the mark that loading left
    counts as held. It only tells something in a process that has done nothing else.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - held) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 2**20 if sys.platform == "darwin" else 2**10
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # what the allocator keeps of freed memory would hide the same size of new
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    held_kib = process_kib("VmRSS")
    run()
    return (process_kib("VmHWM") - held_kib) / 2**10


def process_kib(field: str) -> int:
    """A field of the process's status in KiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"the system tells no {field}")


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def busy_share(run: Callable[[], Any], device: torch.device) -> float:
    """Share of the time of `run` in which the GPU computes: the union of its kernels' times over the wall clock's."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    run()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        seconds = clocked(run, device)
    kernels = [event.time_range for event in profiled.events() if event.device_type == DeviceType.CUDA]
    return covered([(kernel.start, kernel.end) for kernel in kernels]) / (1e6 * seconds)


def conditions(device: torch.device) -> dict[str, Any]:
    """What a measurement depends on, without the machine's name."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *(_unplaced(part) for part in sys.argv[1:])]),
        "device": device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": versions,
    }


def _unplaced(argument: str) -> str:
    """Where a folder lies on one's machine is nobody's business."""
    return Path(argument).name if argument.startswith("/") else argument


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
