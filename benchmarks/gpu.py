"""Runs the first four jobs of `speed.py` on a GPU, with three networks, and measures the share of the time in which the GPU computes.

    python benchmarks/gpu.py [--out runs/gpu] [--networks resnet50,convnext_base,vit_b_16] [--pairs 5] [--device cuda] [--page] [--smoke]

Writes OUT/gpu.json after every job, and resumes after those that it holds; `--page` makes benchmarks/results/gpu/README.md from it; with
`--networks none` nothing else is done. Weights are random if `../shared/data` or XATTN_DATA has none: a forward costs the same. On
convolutional networks xattn is compared with torch-cam and pytorch-grad-cam; on a transformer only with the network's forwards. `--device
cpu --smoke` only shows that the benchmark runs, on any machine.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import ours
import torch
from jobs import JOBS, Job, xattn_at
from measure import Contender, conditions, forward_alone
from speed import CHUNKS, DATA, IMAGES, head_of, judged, listed, measured, others, pairs_of, say
from speed_page import section
from subjects import TINY, TINY_TOKENS, Subject, subject
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "gpu"
NETWORKS = ("resnet50", "convnext_base", "vit_b_16")
NAMES = ("table", "score-cam", "at-once", "grad-cam")
OF_OTHERS = ("torch-cam", "pytorch-grad-cam")
PLAIN = ", float32"


def of_tokens(job: Job) -> Job:
    """Returns the job without contenders that do not support maps of tokens, and without the checks and claims about them."""
    own = tuple(contender for contender in job.contenders if not contender.name.startswith(OF_OTHERS))
    if own == job.contenders:
        return job
    claims = tuple(claim for claim in job.claims if not (claim.over.startswith(OF_OTHERS) or claim.under.startswith(OF_OTHERS)))
    return replace(job, contenders=own, claims=claims, checks=lambda images, targets: [])


def in_float32(contender: Contender) -> Contender:
    """Runs the same without TF32, to which torch rounds convolutions by default; this matches xattn's level exact."""

    def run(images: Tensor, targets: Tensor) -> Any:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return contender.run(images, targets)

    return replace(contender, name=f"{contender.name}{PLAIN}", run=run, note="the same without TF32, as exact has it")


def with_float32(job: Job) -> Job:
    """Returns the job with the other libraries also in the precision of level exact, with which that level is compared."""
    plain = tuple(in_float32(contender) for contender in job.contenders if contender.name in OF_OTHERS)
    claims = tuple(
        replace(claim, text=claim.text.replace(claim.over, f"{claim.over}{PLAIN}"), over=f"{claim.over}{PLAIN}")
        if claim.over in OF_OTHERS and claim.under == xattn_at("exact")
        else claim
        for claim in job.claims
    )
    return replace(job, contenders=(*job.contenders, *plain), claims=claims) if plain else job


def entry_of(name: str, one: Subject, data: Path, images: int, pairs: int, *, smoke: bool) -> dict[str, Any]:
    """Runs one job on one network, for `speed_page.section`; on a GPU with the share of the time in which it computes."""
    device = one.classifier.device
    batches = pairs_of(one, data, images, pairs)
    chunks = (1, 4) if smoke else CHUNKS[device.type]
    alone = {chunk: forward_alone(partial(others, one), batches[0][0][:1], chunk, device) for chunk in chunks}
    batch = min(alone, key=alone.__getitem__)
    job = JOBS[name](one, batch)
    job = of_tokens(job) if one.has_tokens else with_float32(job)
    again = ["--only", name, "--networks", one.name, "--images", str(images), "--batch", str(batch)]
    again += ["--device", device.type, "--data", str(data), *(["--smoke"] if smoke else [])]
    entry = measured(name, job, one, batches, chunks, again, together=True)
    judged(entry, job.claims)
    about = {"network": one.name, "weights": one.origin, "images a forward": batch, "smoke": smoke}
    return entry | about | {"conditions": conditions(device)}


def page(entries: Sequence[dict[str, Any]]) -> str:
    """Runs all jobs on all networks."""
    parts = [
        "# On a GPU",
        "Made by `benchmarks/gpu.py --page`. Contenders take turns on the same images, in one process; ratios are of one turn each, as "
        "median [lowest, highest]; clocks stop when the device is done. What the GPU computes is the union of the times of all kernels, by "
        "torch.profiler, over the time of a job. torch rounds convolutions to TF32 on a GPU unless it is told not to, and so do the other "
        "libraries as they come. xattn's level exact does not, since a map and a metric must not depend on the size of a forward; level "
        f"fast does. Contenders with “{PLAIN.strip(', ')}” are the others at their best size, without TF32; the rest has it.",
    ]
    if any(entry["smoke"] for entry in entries):
        parts.append("**Some of this was made with `--smoke`, at toy size: it shows that the benchmark runs, nothing else.**")
    return "\n\n".join([*parts, *map(section, entries)]) + "\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/gpu"), show_default=True)
@click.option("--networks", callback=listed, help=f"Of torchvision's.  [default: {','.join(NETWORKS)}]")
@click.option("--pairs", default=5, show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), envvar="XATTN_DATA", default=DATA)
@click.option("--page", "with_page", is_flag=True, help=f"Make {RESULTS.relative_to(RESULTS.parents[2])}/README.md of the JSON.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--smoke", is_flag=True, help="Tiny networks: whether it runs, not what it shows.")
def main(out: Path, networks: list[str] | None, pairs: int, device: str, data: Path, with_page: bool, results: Path, smoke: bool) -> None:
    """Measures, writes OUT/gpu.json, and makes the page."""
    place = torch.device(device)
    measures = networks != ["none"]
    if measures and place.type == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("torch finds no CUDA device here: run it where there is one, or --device cpu --smoke to see that it runs.")
    if measures and place.type == "cpu" and not smoke:
        raise click.UsageError("the networks of this benchmark take hours on a CPU: give --smoke, or run benchmarks/speed.py.")
    warnings.simplefilter("ignore")
    if smoke:
        networks, pairs, ours.effort = networks or [TINY, TINY_TOKENS], 1, "chunk=4"
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "gpu.json"
    entries: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))["entries"] if kept.exists() else []
    for network in (networks or NETWORKS) if measures else ():
        of_head = cache(partial(subject, network, data, place))  # a network is tuned once
        for name in NAMES:
            if any((entry["job"], entry["network"]) == (name, network) for entry in entries):
                continue
            say(f"== {name} on {network}")
            one = of_head(head_of(name, network))
            entries.append(entry_of(name, one, data, 2 if smoke else IMAGES[name], pairs, smoke=smoke))
            kept.write_text(json.dumps({"entries": entries}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if with_page:
        results.mkdir(parents=True, exist_ok=True)
        (results / "README.md").write_text(page(entries), encoding="utf-8")
        say(f"{results / 'README.md'}")


if __name__ == "__main__":
    main()
