"""Slow replicas of the metrics that remove pixels, for `test_truth`: one picture, one step at a time."""

from __future__ import annotations

import hashlib
import math
import statistics
from typing import Any

import torch
from skimage.segmentation import slic
from torch import Tensor

from tests.metrics.test_fills import replaced_plainly
from tests.metrics.test_responses import plain_area, plain_ranks

SPECS = (
    *("srg", "srg:step=100,fill=noise", "irof", "irof:superpixels=12,fill=black", "saco", "saco:groups=4,fill=black"),
    *("road-morf", "road-lerf", "road-lerf:fill=blur,steps=4", "road-morf:fill=black,measure=accuracy"),
    *("idsds", "idsds:grid=3,fill=black", "relative-drop", "relative-drop:share=0.3,fill=blur", "arcc"),
    *("sensitivity-n:patch=4", "infidelity:patch=4", "infidelity:subsets=20,share=0.4,patch=5,scale=raw"),
)


def value(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    """The value of a metric of one picture."""
    of = {"srg": srg, "road-morf": road, "road-lerf": road, "irof": irof, "saco": saco}
    of |= {"idsds": idsds, "relative-drop": relative_drop, "arcc": arcc}
    return of.get(name, of_subsets)(replica, name, settings, shown)


def left(replica: Any, shown: Any, gone: list[list[int]], fill: str) -> list[list[float]]:
    """The probabilities with some pixels gone."""
    return replica.several([replaced_plainly(shown.image, some, fill) for some in gone])


def srg(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    order = plain_ranks(shown.mask)
    step = int(settings.get("step", 8 * shown.mask.shape[1]))
    cuts = [*range(0, len(order), step), len(order)]
    fill = settings.get("fill", "mean")
    shares = [cut / len(order) for cut in cuts]
    highest_first = [p[shown.target] for p in left(replica, shown, [order[:cut] for cut in cuts], fill)]
    lowest_first = [p[shown.target] for p in left(replica, shown, [order[cut:] for cut in reversed(cuts)], fill)]
    return plain_area([1 - share for share in reversed(shares)], lowest_first) - plain_area(shares, highest_first)


def road(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    order, steps = plain_ranks(shown.mask), int(settings.get("steps", 10))
    cuts = [len(order) * number // steps for number in range(1, steps)]
    gone = [order[:cut] if name == "road-morf" else order[cut:] for cut in cuts]
    found = left(replica, shown, gone, settings.get("fill", "noisy-linear"))
    values = [p[shown.target] if settings.get("measure") != "accuracy" else p.index(max(p)) == shown.target for p in found]
    return 100 * sum(values) / len(values)


def saco(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    order, count = plain_ranks(shown.mask), int(settings.get("groups", 10))
    groups = [order[len(order) * k // count : len(order) * (k + 1) // count] for k in range(count)]
    whole = replica.probabilities(shown.image)[shown.target]
    falls = [whole - p[shown.target] for p in left(replica, shown, groups, settings.get("fill", "mean"))]
    flat = shown.mask.flatten().tolist()
    sums = [sum(flat[pixel] for pixel in group) / len(group) for group in groups]
    found = total = 0.0
    for i in range(count):
        for j in range(i + 1, count):
            found += (sums[i] - sums[j]) if falls[i] >= falls[j] else -(sums[i] - sums[j])
            total += abs(sums[i] - sums[j])
    return found / total if total else math.nan


def idsds(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    """Each patch of the grid, the sum of the map over it, and the fall of the logit without it, as ranks."""
    height, width = shown.mask.shape
    grid = int(settings.get("grid", 4))
    edges = [[side * k // grid for k in range(grid + 1)] for side in (height, width)]
    places = [(down, across) for down in range(grid) for across in range(grid)]
    patches = [[y * width + x for y in range(edges[0][a], edges[0][a + 1]) for x in range(edges[1][b], edges[1][b + 1])] for a, b in places]
    spread = resized_plainly(shown.raw, height, width)
    logits = [
        replica.logits(replaced_plainly(shown.image, pixels, settings.get("fill", "mean")))[shown.target] for pixels in [[], *patches]
    ]
    ranks = [
        [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]
        for values in (
            [round(sum(spread[pixel] for pixel in pixels), 9) for pixels in patches],
            [round(logits[0] - logit, 6) for logit in logits[1:]],
        )
    ]
    return statistics.correlation(*ranks) if all(max(values) > min(values) for values in ranks) else math.nan


def relative_drop(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    order = plain_ranks(shown.mask)
    gone = order[: round(float(settings.get("share", 0.05)) * len(order))]
    whole, left_over = (p[shown.target] for p in left(replica, shown, [[], gone], settings.get("fill", "mean")))
    return 2 * (whole - left_over)


def arcc(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    lowest_first, highest_first = (road(replica, order, {"steps": "5"}, shown) / 100 for order in ("road-lerf", "road-morf"))
    terms = [replica.coherency(shown), 1 - float(shown.mask.mean()), lowest_first - highest_first]
    return 3 / sum(1 / term for term in terms) if min(terms) > 0 else 0.0


def of_subsets(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    """Sensitivity-n and infidelity: for each subset its pixels, the sum of the map there, and the fall without it."""
    height, width = shown.mask.shape
    side, count = int(settings["patch"]), int(settings.get("subsets", 100))
    columns = math.ceil(width / side)
    cells = math.ceil(height / side) * columns
    size = max(1, round(float(settings.get("share", 0.2)) * cells))
    crop = (shown.image * 255).round().to(torch.uint8).numpy().tobytes()
    seed = int.from_bytes(hashlib.sha256((0).to_bytes(8, "little", signed=True) + b"subsets" + crop).digest()[:7], "little")
    numbers = torch.rand(count, cells, generator=torch.Generator().manual_seed(seed)).tolist()
    spread = resized_plainly(shown.raw, height, width)
    gone, sums = [], []
    for row in numbers:
        chosen = set(sorted(range(cells), key=row.__getitem__)[:size])
        gone.append([y * width + x for y in range(height) for x in range(width) if (y // side) * columns + x // side in chosen])
        sums.append(sum(spread[pixel] for pixel in gone[-1]))
    whole = replica.probabilities(shown.image)[shown.target]
    falls = [whole - p[shown.target] for p in left(replica, shown, gone, "mean")]
    if name == "sensitivity-n":
        return statistics.correlation(sums, falls) if max(sums) > min(sums) else math.nan
    squares = sum(s * s for s in sums) or 1.0
    beta = 1.0 if settings.get("scale") == "raw" else sum(s * d for s, d in zip(sums, falls, strict=True)) / squares
    return sum((d - beta * s) ** 2 for s, d in zip(sums, falls, strict=True)) / count


def resized_plainly(cells: Tensor, height: int, width: int) -> list[float]:
    """A map at the size of the picture, bilinear, its sum spread over the pixels."""
    rows, columns = cells.shape
    found = []
    for y in range(height):
        for x in range(width):
            down, across = ((place + 0.5) * few / many - 0.5 for place, few, many in ((y, rows, height), (x, columns, width)))
            down, across = max(down, 0.0), max(across, 0.0)
            top, left_of = int(down), int(across)
            below, beside = min(top + 1, rows - 1), min(left_of + 1, columns - 1)
            a, b = down - top, across - left_of
            upper = (1 - b) * float(cells[top, left_of]) + b * float(cells[top, beside])
            lower = (1 - b) * float(cells[below, left_of]) + b * float(cells[below, beside])
            found.append(((1 - a) * upper + a * lower) * rows * columns / (height * width))
    return found


def irof(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    image = (shown.image * 255).round().permute(1, 2, 0).numpy() / 255
    labels = torch.as_tensor(slic(image, n_segments=int(settings.get("superpixels", 100)), start_label=0)).flatten().tolist()
    mask = shown.mask.flatten().tolist()
    pixels = {label: [pixel for pixel, own in enumerate(labels) if own == label] for label in sorted(set(labels))}
    levels = {label: round(65536 * sum(mask[pixel] for pixel in own) / len(own)) for label, own in pixels.items()}
    place = {label: number for number, label in enumerate(torch.randperm(2**16, generator=torch.Generator().manual_seed(0)).tolist())}
    order = sorted(pixels, key=lambda label: (-levels[label], place[label]))
    gone = [[pixel for label in order[:k] for pixel in pixels[label]] for k in range(len(order) + 1)]
    p = [row[shown.target] for row in left(replica, shown, gone, settings.get("fill", "mean"))]
    return 100 - plain_area([k / len(order) for k in range(len(order) + 1)], p) / p[0]
