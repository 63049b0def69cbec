"""One point of a scale: measured in a separate process, and printed as JSON on its last line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import forward_alone, forwards, peak_mib, process_kib
from PIL import Image
from rows import read
from subjects import photographs
from torch import Tensor, nn

import xattn
from xattn.birds.network import SmallResNet
from xattn.data.images import ImageSource
from xattn.inference import Predictor
from xattn.inference.memory import kept_pages, peak_bytes
from xattn.study.executor import Executor
from xattn.study.schema import arrow_table
from xattn.study.store import Store

GRADIENTS = (("grad-cam", "grad-cam++"), ("average-drop", "average-gain"))
CURVES = (("grad-cam",), ("insertion", "deletion"))
STEPS = 28
TURNS, TURNS_S = 3, 10.0  # minimum number of turns, and minimum duration
SMALL_PART = 2  # images: small, so that workers end at about the same time


def pictures(data: Path, folder: Path, count: int) -> Path:
    """Makes a folder with a given number of pictures: links to the photographs, repeated; drawn noise if there are none."""
    here = folder / f"pictures-{count}"
    if here.exists():
        return here
    files = sorted((data / "photos").glob("*.jpg"))
    if not files:
        drawn = folder / "drawn"
        drawn.mkdir(parents=True, exist_ok=True)
        for number in range(8):
            noise = torch.randint(0, 256, (99, 99, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(drawn / f"{number}.jpg")
        files = sorted(drawn.glob("*.jpg"))
    unfinished = folder / f"pictures-{count}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number in range(count):
        (unfinished / f"{number:06d}.jpg").symlink_to(files[number % len(files)].resolve())
    unfinished.rename(here)
    return here


def _network(name: str, data: Path) -> xattn.Classifier:
    weights = data / "weights" / f"{name}.pth"
    return xattn.load(f"torchvision:{name}", weights=weights) if weights.exists() else xattn.load("birds:gap")


def _study(classifier: xattn.Classifier, work: tuple[Sequence[str], Sequence[str]], images: Path, out: Path, **engine: Any) -> xattn.Study:
    shutil.rmtree(out, ignore_errors=True)
    return xattn.Study([classifier], *work, images, out, workers=0, progress=False, **engine)


def _ray(actors: int) -> dict[str, Any]:
    """Starts a cluster of one CPU per actor; returns the arguments with which a study uses it; empty for 0."""
    if actors == 0:
        return {}
    import ray

    ray.init(address="local", num_cpus=actors, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return {"engine": "ray", "actors": actors}


def images(data: Path, folder: Path, count: int, network: str, actors: int = 0) -> dict[str, Any]:
    """Runs a study of a given number of images with some Ray actors, or in this process for 0 actors; the memory is that of this process,
    the driver. A small run first loads everything that is loaded on first use. Forwards are run in the same way for any number of images:
    otherwise the tuner would try more settings for more work, and these would determine the peak."""
    classifier, engine = _network(network, data), _ray(actors) | {"tune": "off"}
    _study(classifier, GRADIENTS, pictures(data, folder, 16), folder / "warm-up", **engine).run()
    study = _study(classifier, GRADIENTS, pictures(data, folder, count), folder / f"run-{count}-{actors}", **engine)
    start = time.perf_counter()
    peak = peak_mib(lambda: study.run(), torch.device("cpu"))
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "images": count, "size": count, "peak": peak, "whole": process_kib("VmHWM") / 2**10}
    found["stored"] = sum(file.stat().st_size for file in Path(study.store.folder).rglob("*") if file.is_file()) / count
    found["finish"] = _clock(lambda: study.store.finish([part.spec for part in study.plan.metrics])) / count
    source = ImageSource(pictures(data, folder, 16))
    found["decode"] = _clock(lambda: [source.decode(image, classifier.preprocessing) for image in source.images]) / 16
    (batch,) = list(source.batches(classifier.preprocessing, study.plan.batch_size, wanted=[0]))
    rows, other = Executor(study.plan, study.store).rows(0, batch), Store(folder / "written")
    found["write"] = _clock(lambda: [other.write_part(f"{number}", arrow_table(rows)) for number in range(20)]) / 20
    return found | {"batch": study.plan.batch_size}


def side(data: Path, folder: Path, count: int, pixels: int) -> dict[str, Any]:
    """Computes Grad-CAM, insertion and deletion of images of one size, with the same number of steps for every size."""
    classifier = xattn.load("birds:gap", input_size=pixels, resize=pixels)
    given, runs = photographs(data, classifier, count), Predictor(classifier)
    metrics = [f"{metric}:step={-(-(pixels**2) // STEPS)}" for metric in CURVES[1]]

    def run() -> None:
        maps = xattn.explain(classifier, given, list(CURVES[0]), predictor=runs)
        xattn.evaluate(classifier, given, maps, metrics, predictor=runs)

    return _beside_forwards(run, runs, given) | {"size": pixels**2}


def channels(data: Path, folder: Path, count: int, wide: int, size: int = 224) -> dict[str, Any]:
    """Computes Score-CAM of a last map with a given number of channels, at 7 × 7 as in networks at 224 px, on one small network."""
    torch.manual_seed(0)
    trunk = nn.Sequential(*list(SmallResNet(10, 4).children())[:-2], nn.AdaptiveAvgPool2d(7))
    network = nn.Sequential(
        trunk, nn.Sequential(nn.Conv2d(32, wide, 1), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10)
    )
    classifier = xattn.attach(network.eval(), input_size=size)
    given, runs = photographs(data, classifier, count), Predictor(classifier)
    found = _beside_forwards(lambda: xattn.explain(classifier, given, ["score-cam"], predictor=runs), runs, given)
    return found | {"size": found["passes"] * count}


def _beside_forwards(run: Callable[[], Any], runs: Predictor, given: Tensor) -> dict[str, Any]:
    """Measures the peak of the process and of the tensors held in a run, its seconds, and those of its forwards alone, in turns.

    The process's peak is what a user's machine needs; it varies by a tenth from run to run through heap fragmentation, but the tensors'
    peak does not.
    """
    with kept_pages():
        forward_alone(runs, given[:1], runs.chunk, given.device)  # whatever is loaded at the first forward belongs to the network
    peak = peak_mib(run, given.device)
    with forwards(None) as seen:
        held = peak_bytes(run) / 2**20
    seconds: list[float] = []
    alone: list[float] = []
    while len(seconds) < TURNS or sum(seconds) < TURNS_S:
        seconds.append(_clock(run))
        with kept_pages():
            alone.append(sum(seen) * forward_alone(runs, given[:1], runs.chunk, given.device))
    over = [one / other for one, other in zip(seconds, alone, strict=True)]
    found = {"peak": peak, "held": held, "images": len(given), "passes": sum(seen) / len(given)}
    return found | {"seconds": median(seconds), "alone": median(alone), "over": median(over)}


def steady(written: Sequence[float], workers: int) -> float:
    """Returns seconds per part from the times at which parts were written, without each worker's first, which excludes start-up."""
    times = sorted(written)
    if len(times) <= workers:
        raise ValueError(f"{len(times)} parts tell nothing of {workers} workers: measure longer")
    return (times[-1] - times[workers - 1]) / (len(times) - workers)


def _cpu_beside_the_actors() -> float:
    """Returns CPU seconds so far of this process and its descendants, and these processes, without the computing actors (Linux)."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)], used[int(folder.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                used[int(folder.name)] = 0
    family, more = {os.getpid()}, {os.getpid()}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more} - family
        family |= more
    return sum(used.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


class _Watch(threading.Thread):
    """Records every second the CPU time used outside the actors, until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.noted: list[tuple[float, float]] = []

    def run(self) -> None:
        while not self.ended.wait(1):
            self.noted.append((time.time(), _cpu_beside_the_actors()))

    def cores(self, start: float, stop: float) -> float:
        """Returns CPU seconds per second between two times."""
        (began, before), *_, (ended, after) = [one for one in self.noted if start <= one[0] <= stop]
        return (after - before) / (ended - began)


def engine(data: Path, folder: Path, count: int, network: str, actors: int, shard: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """Runs a study, or a shard of it, with some Ray actors of one CPU and thread each, or in this process for 0 actors; `seconds` are those
    of a steady stretch, for all images. `beside` is the number of cores that this stretch used outside the actors: Ray's own processes and
    the driver."""
    out = folder / f"engine-{actors}-{shard[0]}"
    more = {"shard": tuple(shard), "batch_size": SMALL_PART, **_ray(actors)}
    study, watch = _study(_network(network, data), CURVES, pictures(data, folder, count), out, **more), _Watch()
    watch.start()
    whole = _clock(study.run)
    watch.ended.set()
    written = sorted(file.stat().st_mtime for file in (out / "parts").glob("*.parquet"))
    found = {"seconds": steady(written, max(1, actors)) * len(written), "images": count, "whole run": whole, "written": written}
    return found | ({"beside": watch.cores(written[actors - 1], written[-1])} if actors else {})


def shards(data: Path, folder: Path, count: int, network: str, processes: int) -> dict[str, Any]:
    """Runs the same study in several processes at once, one shard each: the machine's speed for processes that share nothing."""
    pictures(data, folder, count)  # made before the processes start, which would make them at the same time
    asked = {"kind": "engine", "data": str(data), "folder": str(folder), "count": count, "network": network, "actors": 0}
    begun = [
        subprocess.Popen([sys.executable, __file__, json.dumps(asked | {"shard": [place + 1, processes]})], stdout=subprocess.PIPE)
        for place in range(processes)
    ]
    told = [json.loads(one.communicate()[0].splitlines()[-1]) for one in begun]
    written = [moment for one in told for moment in one["written"]]
    return {"seconds": steady(written, processes) * len(written), "images": count, "whole run": max(one["whole run"] for one in told)}


def rows(data: Path, folder: Path, count: int, methods: int, metrics: int, what: str) -> dict[str, Any]:
    """Measures one command on a run of a given number of pictures, methods and metrics; `data` is not needed."""
    return read(folder, count, methods, metrics, what)


def _clock(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "images": images,
    "side": side,
    "channels": channels,
    "engine": engine,
    "shards": shards,
    "rows": rows,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    asked = json.loads(sys.argv[1])
    made = KINDS[asked.pop("kind")](Path(asked.pop("data")), Path(asked.pop("folder")), **asked)
    print(json.dumps(made))
