"""xattn compared with torch-cam, pytorch-grad-cam, Quantus and captum: the same jobs, in one run, in turns.

    python benchmarks/speed.py --out runs/speed [--only table,score-cam] [--networks squeezenet1_0,mobilenet_v2] [--images 1] [--pairs 5]
        [--threads 1] [--device cuda] [--page] [--smoke]

Writes OUT/speed.json (raw samples, checks, conditions) after each job: a later run replaces the jobs that it repeats. Values are checked to
be equal where definitions agree, before anything is timed. Memory is measured in a separate process for each contender. `--page` makes
benchmarks/results/speed/README.md from OUT/speed.json; with `--only none` it does nothing else. The real networks and photographs are read
from `../shared/data` or XATTN_DATA. `heads.py` compares BR-NPA with B-CNN.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import ours
import torch
from first import adaptive, start
from jobs import JOBS, Claim, Contender, Job, bare, xattn_at
from measure import Apart, Here, busy_share, clocked, conditions, forward_alone, forwards, interleaved, peak_mib
from speed_page import page
from subjects import TINY, WEIGHTS, Subject, photographs, subject
from torch import Tensor

from xattn.inference.memory import kept_pages

DATA = Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "speed"
IMAGES = {"table": 1, "score-cam": 1, "at-once": 16, "grad-cam": 16, "guided": 8, "curves": 8}  # a pair
NETWORKS = {"at-once": ("mobilenet_v2", "resnet50"), "grad-cam": (*WEIGHTS, "resnet50"), "guided": ("squeezenet1_0", "resnet50")}
ON_GPU = ("resnet50", "convnext_base")
CHUNKS = {"cpu": (1, 4, 8, 16, 32), "cuda": (16, 64, 128, 256)}
HEADS = {"at-once": "ca-stream"}
CHECKED = 2

say = partial(click.echo, err=True)


def pairs_of(one: Subject, data: Path, images: int, pairs: int) -> list[tuple[Tensor, Tensor]]:
    """Returns batches of different photographs, with the predicted classes."""
    pictures = photographs(data, one.classifier, images * pairs)
    targets = one.classifier.predict(pictures[:1]).new_zeros(0).long()
    for batch in pictures.split(8):
        targets = torch.cat([targets, one.classifier.predict(batch).argmax(dim=1)])
    return list(zip(pictures.split(images), targets.split(images), strict=True))


def others(one: Subject, images: Tensor) -> Tensor:
    """Returns the network in the form for the other libraries."""
    found: Tensor = one.network(one.normalised(images))
    return found


def head_of(job: str, network: str) -> str:
    """Returns the head for a job: a transformer has its own attention."""
    return "gap" if "vit" in network else HEADS.get(job, "gap")


def checked(job: Job, batches: list[tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    """Checks whether the contenders compute the same."""
    pictures, targets = batches[0]
    if len(pictures) < CHECKED and len(batches) > 1:
        pictures, targets = (torch.cat([batches[0][part], batches[1][part]]) for part in (0, 1))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # on a GPU the others are timed with TF32, torch's default
        checks = job.checks(pictures[:CHECKED], targets[:CHECKED])
    for check in checks:
        say(f"{check.what}: {check.found:.3g} ({'told' if check.agrees is None else 'agrees' if check.agrees else 'DIFFERS'})")
    return [asdict(check) | {"agrees": check.agrees} for check in checks]


def measured(
    name: str, job: Job, one: Subject, batches: list[tuple[Tensor, Tensor]], chunks: tuple[int, ...], again: list[str], *, together: bool
) -> dict[str, Any]:
    """Checks, then times, each contender in a separate process that `again` starts; `together`: in this one; on a CPU, all but one."""
    device = one.classifier.device
    checks = checked(job, batches)
    throughput: dict[str, list[dict[str, float]]] = {level: [] for level in job.alone}
    passes_of_pairs: list[int] = []
    own_ways = {level: ours.ways(one.classifier, level, chunks) for level in job.alone}

    def passes_alone(number: int) -> None:
        if not job.alone:
            return
        images = batches[number][0]
        with forwards(job.contenders[0].network) as seen:
            job.contenders[0].run(*batches[number])
        passes_of_pairs.append(sum(seen))
        for level in job.alone:
            with kept_pages():
                throughput[level].append({str(way.tuning): forward_alone(way, images[:1], way.chunk, device) for way in own_ways[level]})

    running: dict[str, Here | Apart] = {}
    try:
        for contender in job.contenders:
            command = [sys.executable, __file__, *again, "--pairs", str(len(batches)), "--alone", contender.name, "--serve"]
            running[contender.name] = Here(contender, batches, device) if together and (running or device.type != "cpu") else Apart(command)
        contenders = interleaved(running, [len(images) for images, _ in batches], passes_alone, say)
    finally:
        for each in running.values():
            each.close()
    for contender in job.contenders:
        contenders[contender.name]["note"] = contender.note
    for level, found in throughput.items():
        note = "so many forwards as the chunk size runs them that is best over all pairs, clocked beside each; backwards count as nothing"
        best = min(found[0], key=lambda way, found=found: median(pair[way] for pair in found))
        seconds = [passes * pair[best] for passes, pair in zip(passes_of_pairs, found, strict=True)]
        passes = contenders[job.contenders[0].name]["passes"]
        contenders[bare(level)] = {"note": note, "passes": passes, "images": [len(batch[0]) for batch in batches], "seconds": seconds}
    entry = {
        "job": name,
        "title": job.title,
        "about": job.about,
        "checks": checks,
        "contenders": contenders,
        "seconds an image of a forward alone": throughput,
        "tuning": {level: str(ours.predictor(one.classifier, level).tuning) for level in job.alone},
    }
    if device.type == "cuda":
        for contender in job.contenders:
            say(f"{contender.name}: share of the time in which the GPU computes")
            entry["contenders"][contender.name]["busy"] = busy_share(lambda contender=contender: contender.run(*batches[0]), device)
    return entry


def judged(entry: dict[str, Any], claims: tuple[Claim, ...]) -> None:
    """Adds the ratios of each pair to each claim; none if one of the two was not measured."""
    found = []
    for claim in claims:
        over, under = (entry["contenders"].get(name, {}).get(claim.field, []) for name in (claim.over, claim.under))
        ratios = [a / b for a, b in zip(over, under, strict=False)]
        found.append(
            {"text": claim.text, "of": [claim.over, claim.under], "ratios": ratios, "target": claim.target, "at_least": claim.at_least}
        )
    entry["claims"] = found


def ready(contender: Contender, one: Subject, image: Tensor) -> None:
    """Returns the network as a contender runs it, loaded and run once; xattn's with the settings measured as best.

    Built here, because predictors built while forwards are counted would keep the counting hook, for which torch compiles again.
    """
    one.classifier.predict(image)
    for level in ours.LEVELS:
        if contender.name == xattn_at(level):
            run = ours.predictor(one.classifier, level)
            run(image.expand(run.chunk, -1, -1, -1).contiguous())


def peak_of(contender: Contender, one: Subject, batch: tuple[Tensor, Tensor]) -> float:
    """Runs in a separate process."""
    return peak_mib(lambda: contender.run(*batch), one.classifier.device)


def peaks(contenders: Sequence[Contender], given: list[str]) -> dict[str, float]:
    """Runs each contender in a separate process."""
    found = {}
    for contender in contenders:
        ran = subprocess.run([sys.executable, __file__, *given, "--alone", contender.name], capture_output=True, text=True)
        if ran.returncode:
            say(f"peak of {contender.name}: failed\n{ran.stderr[-2000:]}")
        else:
            found[contender.name] = float(ran.stdout.split()[-1])
            say(f"peak of {contender.name}: {found[contender.name]:.0f} MiB")
    return found


def key(of: dict[str, Any]) -> tuple[object, ...]:
    """Returns the key by which a later entry replaces an earlier one."""
    return of["job"], of["network"], of["conditions"]["device"], of["conditions"]["threads"]


class Kept:
    """Writes OUT/speed.json atomically after every job."""

    def __init__(self, out: Path) -> None:
        self.path = out / "speed.json"
        self.entries: list[dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8"))["entries"] if self.path.exists() else []

    def put(self, entry: dict[str, Any]) -> None:
        self.entries = [old for old in self.entries if key(old) != key(entry)] + [entry]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"entries": self.entries}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def listed(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name for name in value.split(",") if name]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/speed"), show_default=True)
@click.option("--only", callback=listed, help=f"Of {','.join([*JOBS, 'adaptive', 'start'])}.")
@click.option("--networks", callback=listed, help="Of torchvision's; random weights where none lie in the data.")
@click.option("--images", type=int, help="A pair; None: what suits the job.")
@click.option("--pairs", default=5, show_default=True)
@click.option("--adaptive-images", default=100, show_default=True)
@click.option("--batch", type=int, help="Images per forward for all; None: at which the network alone is fastest, measured first.")
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), envvar="XATTN_DATA", default=DATA)
@click.option("--recheck", is_flag=True, help="Make the checks of what was measured anew, and keep the times.")
@click.option("--memory/--no-memory", default=True, show_default=True)
@click.option("--page", "with_page", is_flag=True, help=f"Make {RESULTS.relative_to(RESULTS.parents[2])}/README.md of the JSON.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--smoke", is_flag=True, help="All jobs at toy size: whether they run, not what they show.")
@click.option("--alone", hidden=True, help="Print the peak memory of this contender alone.")
@click.option("--serve", is_flag=True, hidden=True, help="With --alone: run the batches that are asked for on standard input.")
def main(
    out: Path,
    only: list[str] | None,
    networks: list[str] | None,
    images: int | None,
    pairs: int,
    adaptive_images: int,
    batch: int | None,
    threads: int,
    device: str,
    data: Path,
    recheck: bool,
    memory: bool,
    with_page: bool,
    results: Path,
    smoke: bool,
    alone: str | None,
    serve: bool,
) -> None:
    """Measures, writes OUT/speed.json, and makes the page."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    place = torch.device(device)
    if smoke:
        networks, images, pairs, adaptive_images = [TINY], images or 2, 2, 4
        ours.effort = "chunk=4"  # measuring compiles again for each network, level and size
    elif alone:
        ours.effort = "auto"  # as it was measured before
    kept = None if alone else Kept(out)
    for name in JOBS if only is None else [name for name in only if name in JOBS]:
        default = ON_GPU if place.type == "cuda" else NETWORKS.get(name, WEIGHTS)
        for network in networks or default:
            try:
                one = subject(network, data, place, head_of(name, network))
            except FileNotFoundError as error:
                say(f"{name} on {network} left out: {error}")
                continue
            batches = pairs_of(one, data, images or IMAGES[name], pairs)
            chunks = (1, 4) if smoke else CHUNKS[place.type]
            if batch is None:
                image = batches[0][0][:1]
                found = {chunk: forward_alone(partial(others, one), image, chunk, place) for chunk in chunks}
                own_batch = min(found, key=lambda chunk: found[chunk])
            else:
                own_batch = batch
            job = JOBS[name](one, own_batch)
            if alone:
                contender = next(contender for contender in job.contenders if contender.name == alone)
                ready(contender, one, batches[0][0][:1])
                if serve:
                    Here(contender, batches, place).serve()
                else:
                    click.echo(peak_of(contender, one, batches[0]))
                return
            say(f"== {name} on {network}, {own_batch} images per forward")
            if recheck:
                before = next((old for old in kept.entries if key(old) == (name, network, place.type, threads)), None)
                if before is not None:
                    kept.put(before | {"checks": checked(job, batches)})
                continue
            again = ["--only", name, "--networks", network, "--images", str(len(batches[0][0])), "--batch", str(own_batch)]
            again += ["--threads", str(threads), "--device", device, "--data", str(data), *(["--smoke"] if smoke else [])]
            entry = measured(name, job, one, batches, chunks, again, together=smoke)
            if memory:
                some = job.contenders[: 1 if smoke else None] if name == "table" or not smoke else ()
                for contender, peak in peaks(some, [*again, "--pairs", "1"]).items():
                    entry["contenders"][contender]["peak"] = [peak]
            judged(entry, job.claims)
            place_of = {"network": network, "weights": one.origin, "images a forward": own_batch, "smoke": smoke}
            kept.put(entry | place_of | {"conditions": conditions(place)})
    if "adaptive" in (only or ["adaptive"]):
        for network in networks or WEIGHTS:
            try:
                one = subject(network, data, place)
            except FileNotFoundError as error:
                say(f"adaptive on {network} left out: {error}")
                continue
            entry = adaptive(one, photographs(data, one.classifier, adaptive_images), say)
            kept.put(entry | {"network": network, "weights": one.origin, "smoke": smoke, "conditions": conditions(place)})
    if "start" in (only or ["start"]):
        kept.put(
            start(pairs, smoke, clocked, say)
            | {"network": "birds:gap", "weights": "weights", "smoke": smoke, "conditions": conditions(place)}
        )
    if with_page:
        results.mkdir(parents=True, exist_ok=True)
        ladder = results / "ladder.json"
        limits = json.loads(ladder.read_text(encoding="utf-8")) if ladder.exists() else None
        (results / "README.md").write_text(page(kept.entries, limits), encoding="utf-8")
        say(f"{results / 'README.md'}")


if __name__ == "__main__":
    main()
