"""Scaling of xattn over images, their size, channels and workers; and the arithmetic of ImageNet × ten networks.

    python benchmarks/scale.py --out runs/scale [--only images,driver,side,channels,engine,rows] [--counts 100,1000,10000] [--rounds 3]
        [--runs 800x20x10,50000x20x10] [--minutes 3] [--speed runs/speed] [--price 2] [--rate 2000] [--page] [--smoke]

Every point is measured in a separate process, on one thread; the points of a scale take turns. Writes OUT/scale.json; `--page` makes
benchmarks/results/scale/README.md from it and, for the cost of computing, from the JSON of `speed.py` in the folder `--speed`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from arithmetic import Figures, arithmetic
from measure import conditions
from points import SMALL_PART
from rows import FEW, OF_FEW, READS, TABLES
from speed_page import number, section, spread

from xattn.text import counted

DATA = Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "scale"
RUNS, SMALL_RUNS = "800x20x10,10000x40x10,50000x20x10", "24x4x2"  # a method of the second has 100,000 values
SIDES, CHANNELS = (64, 128, 192, 256), (64, 256, 1024)
WORKERS = {
    "in this process": {"kind": "engine", "actors": 0},
    "Ray, one worker": {"kind": "engine", "actors": 1},
    "Ray, two workers": {"kind": "engine", "actors": 2},
    "two processes with --shard": {"kind": "shards", "processes": 2},
}

say = partial(click.echo, err=True)
Rounds = dict[str, list[dict[str, Any]]]


def point(**asked: Any) -> dict[str, Any] | None:
    """Runs a point in a separate process and returns its result; None, with a message, if it fails."""
    script = Path(__file__).with_name("points.py")
    ran = subprocess.run(
        [sys.executable, str(script), json.dumps(asked)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if ran.returncode:
        say(f"{asked}: failed\n{ran.stderr[-1500:]}")
        return None
    found: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    say(f"{ {key: value for key, value in asked.items() if key not in ('data', 'folder')} }: {found['seconds']:.2f} s")
    return found


def by_turns(points: dict[str, dict[str, Any]], rounds: int) -> Rounds:
    """Measures every point several times, each round in another order; points that fail are left out."""
    names = list(points)
    found: Rounds = {name: [] for name in names}
    for first in range(rounds):
        for turn in range(len(names)):
            name = names[(first + turn) % len(names)]
            one = point(**points[name])
            if one is not None:
                found[name].append(one)
    return {name: ones for name, ones in found.items() if len(ones) == rounds}


def entry(job: str, title: str, about: str, found: Rounds, claims: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the points in the form that `speed_page.section` accepts, with all results."""
    contenders = {
        name: {
            "note": _beside(ones),
            "passes": ones[0].get("passes"),
            "images": [one["images"] for one in ones],
            "seconds": [one["seconds"] for one in ones],
            "peak": [one["peak"] for one in ones if "peak" in one],
        }
        for name, ones in found.items()
    }
    return {
        "job": job,
        "title": title,
        "about": about,
        "checks": [],
        "contenders": contenders,
        "claims": claims,
        "points": found,
        "beside": job not in ("images", "driver"),
        "weights": "weights",
    }


def _beside(ones: list[dict[str, Any]]) -> str:
    if "beside" in ones[0]:
        return f"{spread([one['beside'] for one in ones])} cores are taken beside its workers, by Ray's own processes and the driver"
    if "over" not in ones[0]:
        return ""
    over, held = (spread([one[figure] for one in ones]) for figure in ("over", "held"))
    return f"{over} × its forwards alone; tensors of {held} MiB held at their peak"


def claim(text: str, ratios: list[float], target: float, *, at_least: bool = False, worst: bool = False) -> dict[str, Any]:
    return {"text": text, "of": [], "ratios": ratios, "target": target, "at_least": at_least, "worst": worst}


def growth(found: Rounds, of: str, memory: str | None, what: str = "") -> list[dict[str, Any]]:
    """Checks whether the slope of time over the size of a point is constant, and whether memory is.

    Args:
        found: the points of a scale, in increasing size.
        of: name of what the size counts.
        memory: the figure that has to be constant; None: memory may grow.
        what: description of that figure.
    """
    bends, flat = [], []
    for one in zip(*found.values(), strict=True):
        slopes = [(b["seconds"] - a["seconds"]) / (b["size"] - a["size"]) for a, b in pairwise(one)]
        bends += [abs(slope / slopes[-1] - 1) for slope in slopes[:-1]]
        flat += [] if memory is None else [each[memory] / one[0][memory] - 1 for each in one[1:]]
    claims = [claim(f"seconds {of} between two points, |change| of the slope", bends, 0.05)]
    return claims if memory is None else [*claims, claim(f"{what} over that of the smallest, growth", flat, 0.02, worst=True)]


def beside_forwards(found: Rounds) -> list[dict[str, Any]]:
    """Checks whether a run's time grows like that of its forwards alone, because the network's own time is not xattn's."""
    ratios = [abs(each["over"] / one[0]["over"] - 1) for one in zip(*found.values(), strict=True) for each in one[1:]]
    return [claim("seconds over those of its forwards alone, |change| from the smallest", ratios, 0.05)]


def over_workers(found: Rounds) -> list[dict[str, Any]]:
    here, one, two, apart = (found.get(name, []) for name in WORKERS)
    gain = [a["seconds"] / b["seconds"] for a, b in zip(one, two, strict=False)]
    cost = [a["seconds"] / b["seconds"] - 1 for a, b in zip(one, here, strict=False)]
    beside = [a["seconds"] / b["seconds"] - 1 for a, b in zip(two, apart, strict=False)]
    return [
        claim("two workers over one, speed-up", gain, 1.85, at_least=True),
        claim("Ray with one worker over this process, overhead", cost, 0.05),
        claim("Ray with two workers over two processes that share nothing, overhead", beside, 0.05),
    ]


def over_rows(base: dict[str, Any], runs: Sequence[tuple[int, ...]], rounds: int, before: Rounds) -> dict[str, Any]:
    """Writes what each command costs on finished runs of given numbers of pictures, methods and metrics, with earlier results."""
    points = {
        f"{what}: {count:,} × {methods} × {metrics}": base
        | {"kind": "rows", "count": count, "methods": methods, "metrics": metrics, "what": what}
        for count, methods, metrics in runs
        for what in (TABLES, *READS)
        if count <= FEW or what not in OF_FEW
    }
    found = before | by_turns(points, rounds)
    found = dict(sorted(found.items(), key=lambda item: item[1][0]["rows"]))
    largest = max((ones[0]["rows"] for ones in found.values()), default=0)
    peaks = [one["whole"] for ones in found.values() for one in ones if one["rows"] == largest]
    about = (
        "Finished runs of so many images × methods × metrics, in parts of 8 images as a study writes them, and what their commands take: "
        "whole processes, with what they import; the peak is all that the process held."
    )
    contenders = {
        name: {
            "note": f"{spread([one['cpu'] for one in ones])} s of CPU",
            "images": [],
            "seconds": [one["seconds"] for one in ones],
            "peak": [one["whole"] for one in ones],
        }
        for name, ones in found.items()
    }
    claims = [claim(f"peak memory of a command on {largest:,} values, MiB", peaks, 1536, worst=True)]
    return entry("rows", "Over values of a finished run", about, {}, claims) | {"contenders": contenders, "points": found}


def left_to_two(one: dict[str, Any]) -> list[str]:
    """Returns the maximum speed-up of two workers, from the machine's speed with two and Ray's share of it; empty if not measured."""
    points = one["points"]
    if not all(points.get(name) for name in WORKERS) or "beside" not in points["Ray, two workers"][0]:
        return []
    seconds = {name: median([each["seconds"] for each in points[name]]) for name in WORKERS}
    taken, cores = median([each["beside"] for each in points["Ray, two workers"]]), one["conditions"]["cores"]
    gain = seconds["Ray, one worker"] / seconds["two processes with --shard"]
    return [
        f"**The limit here**: two processes that share nothing are {number(gain)} × as fast as one worker of Ray. Of {cores} cores "
        f"{number(taken)} are taken beside two workers, which leaves them {number(gain * min(1.0, (cores - taken) / 2))} ×."
    ]


def figures(scale: list[dict[str, Any]], measured: Sequence[Path]) -> list[Figures]:
    """Returns figures for the arithmetic: of each network and device whose table job is in the given files of measured speeds."""
    kinds = {one["job"]: one for one in scale}
    if "images" not in kinds or not kinds["images"]["points"]:
        return []
    ones = list(kinds["images"]["points"].values())[-1]
    middle = {key: median([each[key] for each in ones]) for key in ("decode", "write", "finish", "stored")}
    entries = [one for path in measured if path.exists() for one in json.loads(path.read_text(encoding="utf-8"))["entries"]]
    found = []
    for one in entries:
        if one["job"] == "table":
            ours, about = one["contenders"]["xattn, exact"], one["conditions"]
            seconds = median([seconds / images for seconds, images in zip(ours["seconds"], ours["images"], strict=True)])
            on_gpu = about["device"] == "cuda"
            device = about["gpu"] if on_gpu else f"processes of {counted(about['threads'], 'thread')}"
            made_by = "measured by `gpu.py`" if on_gpu else "measured by `speed.py`"
            of = (device, one["network"], ours["passes"], seconds)
            found.append(Figures(*of, **middle, batch=ones[0]["batch"], priced=on_gpu, source=made_by))
    return found


def page(entries: list[dict[str, Any]], measured: Sequence[Path], price: float) -> str:
    """Writes all scales, and the arithmetic if there are figures for it."""
    parts = [
        "# How it grows",
        "Made by `benchmarks/scale.py --page`. Every point is a process of its own on one thread, by turns; median [lowest, highest].",
    ]
    if any(one["smoke"] for one in entries):
        parts.append("**Some of this was made with `--smoke`, at toy size: it shows that the benchmark runs, nothing else.**")
    for one in entries:
        parts += [section(one), *(left_to_two(one) if one["job"] == "engine" else [])]
    known = figures(entries, measured)
    if known:
        gains = [claim["ratios"] for one in entries if one["job"] == "engine" for claim in one["claims"] if claim["at_least"]]
        parts.append(arithmetic(known, price, median(gains[0]) if gains and gains[0] else None))
    return "\n\n".join(parts) + "\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/scale"), show_default=True)
@click.option("--only", default="images,driver,side,channels,engine,rows", show_default=True)
@click.option("--counts", default="100,1000,10000", show_default=True)
@click.option("--runs", default=RUNS, show_default=True, help="Finished runs, as images x methods x metrics; others stay as measured.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--minutes", default=3.0, show_default=True, help="Of work for one worker.")
@click.option(
    "--network", default="mobilenet_v2", show_default=True, help="Of the engine's work; birds:gap where its weights are not there."
)
@click.option("--data", type=click.Path(path_type=Path), envvar="XATTN_DATA", default=DATA)
@click.option("--speed", type=click.Path(path_type=Path), default=RESULTS.parent / "speed", help="Of speed.py's results.")
@click.option("--gpu", type=click.Path(path_type=Path), default=RESULTS.parent / "gpu", help="Of gpu.py's results.")
@click.option("--price", default=2.0, show_default=True, help="Of a GPU-hour: assumed, not measured.")
@click.option("--page", "with_page", is_flag=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--smoke", is_flag=True, help="At toy size: whether it runs, not what it shows.")
def main(
    out: Path,
    only: str,
    counts: str,
    runs: str,
    rounds: int,
    minutes: float,
    network: str,
    data: Path,
    speed: Path,
    gpu: Path,
    price: float,
    with_page: bool,
    results: Path,
    smoke: bool,
) -> None:
    """Measures, writes OUT/scale.json, and makes the page."""
    torch.set_num_threads(1)
    if smoke:
        only, counts, rounds, runs = "images,rows", "16,24,40", 1, SMALL_RUNS
    kinds, sizes = only.split(","), [int(count) for count in counts.split(",")]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "scale.json"
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
    base = {"data": str(data.resolve()), "folder": str((out / "work").resolve())}

    def keep(one: dict[str, Any], of: str) -> None:
        one |= {"network": of, "smoke": smoke, "conditions": conditions(torch.device("cpu"))}
        entries[:] = [old for old in entries if old["job"] != one["job"]] + [one]
        path.write_text(json.dumps({"entries": entries}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    if "images" in kinds:
        points = {f"{count:,} images": base | {"kind": "images", "count": count, "network": "birds:gap"} for count in sizes}
        found = by_turns(points, rounds)
        about = "A study of Grad-CAM and Grad-CAM++ by average drop and gain, the photographs over and over, from files to tables."
        keep(entry("images", "Over images", about, found, growth(found, "per image", "whole", "peak memory of the process")), "birds:gap")
    if "driver" in kinds:
        some = sizes[: max(2, len(sizes) - 1)]
        points = {f"{count:,} images": base | {"kind": "images", "count": count, "network": "birds:gap", "actors": 1} for count in some}
        found = by_turns(points, rounds)
        about = "The same by an actor of Ray; memory is that of the driver, seconds are of the whole run."
        claims = growth(found, "per image", "whole", "peak memory of the driver")[1:]
        keep(entry("driver", "Over images, by Ray", about, found, claims), "birds:gap")
    if "side" in kinds:
        points = {f"{pixels}²": base | {"kind": "side", "count": 2, "pixels": pixels} for pixels in SIDES}
        about = "Grad-CAM, insertion and deletion of 2 images at once, in as many steps whatever the size."
        found = by_turns(points, rounds)
        keep(entry("side", "Over image size", about, found, growth(found, "per pixel", None) + beside_forwards(found)), "birds:gap")
    if "channels" in kinds:
        points = {f"{wide} channels": base | {"kind": "channels", "count": 2, "wide": wide} for wide in CHANNELS}
        about = "Score-CAM of 2 images at 224 px; one small trunk, a last map of so many channels at 7 × 7."
        found = by_turns(points, rounds)
        claims = growth(found, "per forward", "held", "tensors held at the peak")
        keep(entry("channels", "Over channels", about, found, claims), "random")
    if "engine" in kinds:
        asked = base | {"network": network}
        first = point(**asked, **WORKERS["in this process"], count=32)
        if first is not None:
            count = max(64, int(60 * minutes / (first["seconds"] / first["images"])) // 16 * 16)  # as many batches for each of two
            found = by_turns({name: asked | {"count": count} | engine for name, engine in WORKERS.items()}, rounds)
            about = (
                f"A study of Grad-CAM by insertion and deletion, {minutes:g} minutes for one worker of one thread each, in "
                f"parts of {SMALL_PART} images. Clocked between the times at which parts were written, without each worker's first."
            )
            keep(entry("engine", "Over workers", about, found, over_workers(found)), network)
    if "rows" in kinds:
        asked_runs = [tuple(map(int, run.split("x"))) for run in runs.split(",")]
        keep(over_rows(base, asked_runs, rounds, next((old["points"] for old in entries if old["job"] == "rows"), {})), "birds:gap")
    if with_page:
        results.mkdir(parents=True, exist_ok=True)
        (results / "README.md").write_text(page(entries, [speed / "speed.json", gpu / "gpu.json"], price), encoding="utf-8")
        say(f"{results / 'README.md'}")


if __name__ == "__main__":
    main()
