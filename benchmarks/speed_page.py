"""Makes the page of the speed benchmark from its JSON alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

Entry = dict[str, Any]


def number(value: float) -> str:
    """Formats three significant digits, without an exponent."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def spread(values: Sequence[float]) -> str:
    """Formats median [lowest, highest]."""
    if not values:
        return "–"
    middle = number(median(values))
    return middle if len(values) == 1 else f"{middle} [{number(min(values))}, {number(max(values))}]"


def verdict(claim: dict[str, Any], checks: Sequence[dict[str, Any]]) -> str:
    """Checks whether the median of the pairs' ratios reaches the target, and whether every pair does."""
    ratios, target = claim["ratios"], claim["target"]
    if differing := [check["what"] for check in checks if check["agrees"] is False and set(check["of"]) & set(claim["of"])]:
        return f"not comparable: {'; '.join(differing)}"
    if not ratios:
        return "not measured"
    met = [ratio >= target if claim["at_least"] else ratio <= target for ratio in ratios]
    if claim.get("worst"):
        return "met" if all(met) else f"**not met** by {met.count(False)} of {len(met)}"
    middle = median(ratios)
    if not (middle >= target if claim["at_least"] else middle <= target):
        return "**not met**"
    return "met" if all(met) else f"met by the median, not by {met.count(False)} of {len(met)} pairs"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes Markdown, without columns that are empty in all rows."""
    used = [place for place in range(len(header)) if any(row[place] not in ("", "–") for row in rows)]
    lines = [[header[place] for place in used], ["---"] * len(used), *([row[place].replace("|", "\\|") for place in used] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _contenders(entry: Entry) -> str:
    first = next(iter(entry["contenders"].values()))["seconds"]
    rows = []
    for name, found in entry["contenders"].items():
        counted = bool(found["images"])
        each = [seconds / count for seconds, count in zip(found["seconds"], found["images"] or [1] * len(found["seconds"]), strict=True)]
        ratios = [own / other for own, other in zip(found["seconds"], first, strict=True)] if counted and entry.get("beside", True) else []
        passes, busy = found.get("passes"), found.get("busy")
        rows.append(
            [
                name,
                spread(each),
                number(1 / median(each)) if counted else "",
                "" if passes is None else number(passes),
                spread(ratios),
                spread(found.get("peak", [])),
                "" if busy is None else f"{100 * busy:.0f}",
                found["note"],
            ]
        )
    names = (
        "",
        "seconds per image" if any(found["images"] for found in entry["contenders"].values()) else "seconds",
        "images per second",
        "forwards per image",
        "time over the first",
        "peak, MiB",
        "GPU computes, %",
        "",
    )
    return table(names, rows)


def _claims(entry: Entry) -> str:
    rows = [
        [
            claim["text"],
            f"{'≥' if claim['at_least'] else '≤'} {number(claim['target'])}",
            spread(claim["ratios"]),
            verdict(claim, entry["checks"]),
        ]
        for claim in entry["claims"]
    ]
    return table(("asked", "target", "found", "verdict"), rows)


def _checks(entry: Entry) -> str:
    rows = []
    for check in entry["checks"]:
        bound = "" if check["bound"] is None else f"{'≥' if check['at_least'] else '≤'} {number(check['bound'])}"
        said = {None: "told, not judged", True: "agrees", False: "**differs**"}[check["agrees"]]
        rows.append([check["what"], f"{check['found']:.3g}", bound, said])
    return table(("checked first", "found", "bound", ""), rows)


def _limit(entry: Entry, ladder: Entry) -> str:
    """Compares xattn's forwards with the time they would take at the machine's limits; empty if the ladder has no data."""
    network, conditions = entry["network"], entry["conditions"]
    same = all(ladder["conditions"][key] == conditions[key] for key in ("processor", "threads", "device"))
    ours = entry["contenders"].get("passes alone, exact")
    if not same or ours is None or network not in ladder["rates"]:
        return ""
    passes, rows = ours["passes"], []
    for precision, found in ladder["limits"].items():
        for how, words in (("product", "at the rate of one large matrix product"), ("layers", "layer by layer, as tensors can be moved")):
            seconds = passes / found[how][network]
            rows.append([f"{precision}, {words}", number(seconds), *(number(each / seconds) for each in _others(entry).values())])
    return (
        f"**The limit of direct convolution here** ([ladder](ladder.md)): seconds of {number(passes)} forwards, and how many times as long "
        f"the others take.\n\n{table(('', 'seconds per image', *_others(entry)), rows)}"
    )


def _roughness(entry: Entry) -> str:
    """Describes the error caused by jumps between a curve's steps, for any choice of steps; empty if they were not measured."""
    if "roughness" not in entry:
        return ""
    header = ("", "jumps of the probability, points", "mean \\|Δ area\\| that they leave", "images beyond half a point, %")
    rows = [[metric, number(at["jumps"]), number(at["mean"]), number(100 * at["beyond"])] for metric, at in entry["roughness"].items()]
    return (
        "**The limit of each image**: curves jump from step to step. What a quarter of the steps leaves unknown even where all but the "
        f"jumps is known, by the fourth differences of the full curves:\n\n{table(header, rows)}"
    )


def _others(entry: Entry) -> dict[str, float]:
    """Returns seconds per image of the other libraries."""
    return {
        name: median([seconds / images for seconds, images in zip(found["seconds"], found["images"], strict=True)])
        for name, found in entry["contenders"].items()
        if not name.startswith(("xattn", "passes"))
    }


def section(entry: Entry, ladder: Entry | None = None) -> str:
    """Writes one job on one network."""
    conditions = entry["conditions"]
    where = conditions["gpu"] or f"{conditions['processor']}, {conditions['threads']} of {conditions['cores']} cores"
    weights = "" if entry["weights"] == "weights" else f" ({entry['weights']} weights)"
    parts = [f"## {entry['title']}: {entry['network']}{weights}", entry["about"]]
    if "left out" in entry:
        parts.append(f"Not measured: {entry['left out']}")
    limit = _limit(entry, ladder) if ladder else ""
    parts += [make(entry) for make, of in ((_claims, "claims"), (_contenders, "contenders"), (_checks, "checks")) if entry[of]]
    parts += [part for part in (limit, _roughness(entry)) if part]
    pairs = max((len(found["seconds"]) for found in entry["contenders"].values()), default=0)
    images = next((found["images"][0] for found in entry["contenders"].values() if found["images"]), 0)
    work = f"{pairs} pairs of {images} images, {entry['images a forward']} images per forward. " if "images a forward" in entry else ""
    parts.append(
        f"<sub>{work}{where}; {conditions['date']}; load {conditions['load']:.2f} at the end; `{conditions['command']}`; "
        f"{', '.join(f'{package} {version}' for package, version in conditions['versions'].items())}.</sub>"
    )
    return "\n\n".join(parts)


def page(entries: Sequence[Entry], ladder: Entry | None = None) -> str:
    """Writes all jobs; `ladder` is the output of `ladder.py`, if it was run."""
    smoke = any(entry["smoke"] for entry in entries)
    parts = [
        "# Speed beside other libraries",
        "Made by `benchmarks/speed.py --page` of the JSON that the measuring writes. Contenders take turns on the same images, each in a "
        "process of its own; ratios are of one turn each, as median [lowest, highest]; clocks stop when the device is done; everyone is "
        "warmed up on the first batch, and given the targets and the batch size at which the network alone is fastest. The others are "
        "given the network in the memory layout that torchvision gives it, ours is channels-last as `xattn.load` makes it. Peaks are "
        "above what the loaded network holds. A verdict is that of the median. Machines differ from section to section, as the small print "
        "under each says: only what stands in one section compares.",
    ]
    if smoke:
        parts.append("**Some of this was made with `--smoke`, at toy size: it shows that the benchmark runs, nothing else.**")
    parts.append("BR-NPA beside B-CNN: [heads](../heads-alone.md), made by `benchmarks/heads.py`.")
    return "\n\n".join([*parts, *(section(entry, ladder) for entry in entries)]) + "\n"
