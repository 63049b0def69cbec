"""Latency of a training step and peak memory of BR-NPA, B-CNN (as in Gomez et al. 2021, Fig. 9) and a plain Algorithm 1.

python benchmarks/heads.py [--head-alone] [--out FILE.csv] [--backbone resnet18 …] [--side 448] [--batch 10] [--repeats 5] [--device cpu]
    [--threads 2] > TABLE.md

Heads take turns within each repeat, so that a slow moment of the machine affects all of them; ratios are computed within one repeat, and
reported as median [lowest, highest]. On a GPU the peak is the allocator's; on a CPU it is the largest sum of live tensors that operations
returned, as seen by the dispatcher: activations and gradients, but parameters only if an operation returns a view of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models

import xattn
from xattn.heads import BCNNHead, BRNPAHead

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class PlainHead(nn.Module):
    """Implements Algorithm 1 literally: all weighted features at once, for each of the vectors."""

    def __init__(self, channels: int, classes: int, n: int = 3) -> None:
        super().__init__()
        self.n = n
        self.linear = nn.Linear(n * channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        f = features.flatten(2).transpose(1, 2)
        activation = f.norm(dim=2)
        vectors = []
        for _ in range(self.n):
            chosen = f[torch.arange(len(f), device=f.device), activation.argmax(dim=1)]
            similarity = torch.cosine_similarity(f, chosen[:, None], dim=2)
            weights = similarity / similarity.sum(dim=1, keepdim=True)
            vectors.append((weights[:, :, None] * f).sum(dim=1))
            activation = (1 - similarity) * activation
        return self.linear(torch.cat(vectors, dim=1))


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"br-npa": BRNPAHead, "b-cnn": BCNNHead, "plain algorithm 1": PlainHead}


class Alive(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, Tensor):
                self.note(made)
        return out

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)


def step(run: Callable[[], Tensor], device: torch.device) -> float:
    """Measures the seconds of one forward and backward."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(run: Callable[[], Tensor], parameters: list[nn.Parameter], device: torch.device) -> float:
    """Measures the peak MiB of one forward and backward."""
    for parameter in parameters:
        parameter.grad = None
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run().backward()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    alive = Alive()
    with alive:
        run().backward()
    return alive.peak / 2**20


Runs = dict[str, tuple[Callable[[], Tensor], list[nn.Parameter]]]


def compare(name: str, what: str, runs: Runs, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Writes one line per head: latency and peak, and both relative to BR-NPA's."""
    seconds: dict[str, list[float]] = {head: [] for head in runs}
    for run, _ in runs.values():
        step(run, device)
    for _ in range(repeats):
        for head, (run, _) in runs.items():
            seconds[head].append(step(run, device))
    peaks = {head: peak(run, parameters, device) for head, (run, parameters) in runs.items()}
    lines = []
    for head in runs:
        ratios = [other / own for other, own in zip(seconds[head], seconds["br-npa"], strict=True)]
        lines.append(
            {
                "backbone": name,
                "measured": what,
                "head": head,
                "step, s": round(statistics.median(seconds[head]), 4),
                "over br-npa": f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
                "peak, MiB": round(peaks[head], 1),
                "peak over br-npa": round(peaks[head] / peaks["br-npa"], 2),
            }
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--backbone", nargs="*", default=BACKBONES)
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--head-alone", action="store_true", help="features in, not images: the head's own cost")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    device = torch.device(given.device)
    lines: list[dict[str, Any]] = []
    for name in given.backbone:
        torch.manual_seed(0)
        network = getattr(models, name)().to(device).train()
        channels = network.fc.in_features
        images = torch.rand(given.batch, 3, given.side, given.side, device=device)
        side = given.side // 32
        runs: Runs = {}
        for head, build in HEADS.items():
            module = build(channels, 200).to(device).train()
            if given.head_alone:
                features = torch.rand(given.batch, channels, side, side, device=device, requires_grad=True)
                runs[head] = (lambda module=module, features=features: module(features).sum(), list(module.parameters()))
            else:
                body = nn.Sequential(*list(network.children())[:-2])
                whole = nn.Sequential(body, module)
                runs[head] = (lambda whole=whole, images=images: whole(images).sum(), list(whole.parameters()))
        of_features = f"{given.batch} × {channels} × {side} × {side} features"
        what = of_features if given.head_alone else f"{given.batch} images of {given.side}²"
        lines += compare(name, what, runs, given.repeats, device)
        if given.out:
            pd.DataFrame(lines).to_csv(given.out, index=False)
    table = pd.DataFrame(lines)
    print(table.to_markdown(index=False))
    print(f"\ntorch {torch.__version__}, xattn {xattn.__version__}, {device}, {torch.get_num_threads()} threads, {given.repeats} repeats")


if __name__ == "__main__":
    main()
