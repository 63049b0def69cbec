"""Measurement of time, counts and peak memory."""

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
        name: its name in rows.
        run: function of images in pixel space and their targets.
        network: the network whose forwards are counted; None: they cannot be observed.
        note: what it computes, and in what that is less, more or different compared with the others.
    """

    name: str
    run: Callable[[Tensor, Tensor], Any]
    network: nn.Module | None
    note: str = ""


def clocked(run: Callable[[], Any], device: torch.device) -> float:
    """Measures the seconds until everything that `run` starts is done."""
    return repeated(run, device, 0.0)[0]


def repeated(run: Callable[[], Any], device: torch.device, seconds: float) -> list[float]:
    """Measures the seconds of consecutive runs until they add up to a given total; at least one."""
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
    """Counts the images of each forward of a network, including those of xattn's predictors, which may run a copy of it."""
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
    """A contender in this process. On request it runs a batch by its number, or "warm-up", and returns how long it took."""

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
        """Answers requests on standard input, one per line."""
        for line in sys.stdin:
            print(json.dumps(self.ask(line.strip())), flush=True)

    def close(self) -> None:
        """Does nothing: there is no process to end."""


class Apart:
    """A contender in a separate server process: no state of one library, in particular its allocator's, affects another's timing."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries may print as well
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"a contender ended with exit code {self.process.wait()} when it was asked for {what}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def interleaved(
    contenders: Mapping[str, Here | Apart], images: Sequence[int], aside: Callable[[int], None], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Measures the seconds of every contender on every batch of a given size, in turns; each is warmed up on the first batch.

    A slow moment of the machine affects all contenders, and the order changes from batch to batch. `aside` is measured on each batch
    between them.
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
    """Measures the seconds per image of a bare forward of a given size, after one warm-up."""
    batch = image.expand(chunk, -1, -1, -1).contiguous()
    times = max(2, FORWARDS_CLOCKED // chunk)
    with torch.no_grad():
        predict(batch)
        return clocked(lambda: [predict(batch) for _ in range(times)], device) / (times * chunk)


def peak_mib(run: Callable[[], Any], device: torch.device) -> float:
    """Measures the peak MiB that `run` needs in addition to the memory held before: of the GPU's allocator, else of the process.

    The process's high-water mark is reset before the run if the system supports that (Linux); otherwise the mark left by loading counts as
    held. It is only meaningful in a process that has done nothing else.
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
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # freed memory that the allocator keeps would hide an equal amount of new memory
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    held_kib = process_kib("VmRSS")
    run()
    return (process_kib("VmHWM") - held_kib) / 2**10


def process_kib(field: str) -> int:
    """Reads a field of the process's status in KiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"the system tells no {field}")


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def busy_share(run: Callable[[], Any], device: torch.device) -> float:
    """Returns the share of the time of `run` in which the GPU computes: the union of its kernels' times over the wall-clock time."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    run()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        seconds = clocked(run, device)
    kernels = [event.time_range for event in profiled.events() if event.device_type == DeviceType.CUDA]
    return covered([(kernel.start, kernel.end) for kernel in kernels]) / (1e6 * seconds)


def conditions(device: torch.device) -> dict[str, Any]:
    """Returns the conditions of a measurement, without the machine's name."""
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
    """Removes the location of a folder on the local machine."""
    return Path(argument).name if argument.startswith("/") else argument


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
