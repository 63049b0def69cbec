"""What each way of running forwards brings, one upon the other: images a second of a network alone, by turns.

    python benchmarks/ladder.py [--networks squeezenet1_0,mobilenet_v2,resnet50] [--threads 2] [--rounds 5] [--out benchmarks/results/speed]

Writes OUT/ladder.json and OUT/ladder.md. A way that the machine has no instructions for is measured like the others: its row says so.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import click
import torch
from measure import clocked, conditions
from speed import DATA, RESULTS
from speed_page import number, spread, table
from subjects import Subject, photographs, subject
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xattn.classifiers import Predictor, Tuning
from xattn.memory import kept_pages

RUNGS: dict[str, tuple[Tuning | int, bool]] = {
    "contiguous, 32 images (as the others run it)": (32, False),
    "contiguous, 8 images": (8, False),
    "channels-last, 8 images": (Tuning(8), False),
    "+ pages kept": (Tuning(8), True),
    "+ batch norms folded": (Tuning(8, folded=True), True),
    "+ compiled and frozen": (Tuning(8, folded=True, compiled=True), True),
    "folded, bfloat16, not compiled": (Tuning(8, folded=True, precision="bfloat16"), True),
}
CLOCKED_S = 1.0


def matrix_gflops(seconds: float = CLOCKED_S) -> float:
    """What this machine's threads multiply in float32 at their best, GFLOP a second: no forward of convolutions goes faster."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    best, spent = 0.0, 0.0
    while spent < seconds:
        took = clocked(lambda: a @ b, torch.device("cpu"))
        best, spent = max(best, 2 * 2048**3 / took / 1e9), spent + took
    return best


def gflop_an_image(one: Subject) -> float:
    """Floating-point operations of a forward of one image, in billions."""
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        one.network(one.normalised(one.classifier.probe()))
    return counted.get_total_flops() / 1e9


def runs(one: Subject) -> dict[str, tuple[Callable[[Tensor], Tensor], int, bool]]:
    """Each way: what runs a chunk, its size, whether pages are kept."""
    found: dict[str, tuple[Callable[[Tensor], Tensor], int, bool]] = {}
    for name, (way, keep) in RUNGS.items():
        if isinstance(way, int):
            found[name] = (lambda images: one.network(one.normalised(images)), way, keep)
        else:
            found[name] = (Predictor(one.classifier, way, "fast" if way.precision != "own" else "exact"), way.chunk, keep)
    return found


def rates(one: Subject, images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Images a second of each way, by turns."""
    ways = runs(one)
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for round_ in range(rounds + 1):
        for turn in range(len(names)):
            name = names[(round_ + turn) % len(names)]
            run, chunk, keep = ways[name]
            given = images[:1].expand(chunk, -1, -1, -1).contiguous()
            with torch.no_grad(), kept_pages() if keep else nullcontext():
                run(given)
                times, seconds = 0, 0.0
                while seconds < CLOCKED_S:
                    seconds += clocked(lambda run=run, given=given: run(given), one.classifier.device)
                    times += 1
            if round_:  # the first round compiles
                found[name].append(times * chunk / seconds)
    return found


@click.command()
@click.option("--networks", default="squeezenet1_0,mobilenet_v2,resnet50", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), envvar="XATTN_DATA", default=DATA)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(networks: str, threads: int, rounds: int, device: str, data: Path, out: Path) -> None:
    """Measures and writes the table."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    found, needs, limits = {}, {}, []
    for name in networks.split(","):
        one = subject(name, data, torch.device(device))
        needs[name] = gflop_an_image(one)
        limits.append(matrix_gflops())
        found[name] = rates(one, photographs(data, one.classifier, 1), rounds)
        click.echo(f"{name}: " + "; ".join(f"{way} {median(rate):.1f}" for way, rate in found[name].items()), err=True)
    about = conditions(torch.device(device))
    out.mkdir(parents=True, exist_ok=True)
    (out / "ladder.json").write_text(
        json.dumps({"rates": found, "gflop_an_image": needs, "matrix_gflops": limits, "conditions": about}, indent=1) + "\n",
        encoding="utf-8",
    )
    rows = [[way, *(spread(found[name][way]) for name in found)] for way in RUNGS]
    if device == "cpu":
        most = {name: max(limits) / needs[name] for name in found}
        rows.append(["at the rate of one large matrix product (the limit of float32)", *(number(most[name]) for name in found)])
        ratios = {name: most[name] / median(found[name][next(iter(RUNGS))]) for name in found}
        rows.append(["the most that any way could gain over the first row, ×", *(number(ratios[name]) for name in found)])
    text = (
        "# What each way of running forwards brings\n\nImages a second of the network alone at 224 px, by turns; median [lowest, highest]. "
        "Made by `benchmarks/ladder.py`.\n\n"
        f"{table(('', *found), rows)}\n\n<sub>{about['processor']}, {about['threads']} of {about['cores']} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}; {about['date']}; torch {about['versions']['torch']}; `{about['command']}`.</sub>\n"
    )
    (out / "ladder.md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
