"""Insertion and deletion from a share of their points: regression over a picture's curves compared with the adaptive form.

    python benchmarks/curve_regression.py WORK                # WORK keeps the full curves

The adaptive form (`insertion:tolerance=…`) uses one curve at a time. Here the curves of several methods on one picture are one Gaussian
process over the share of changed pixels and over the remaining part of the picture, as in `xattn/explainers/regression.py`, which also
chooses the points; both use the same number of passes. The settings were tuned on pictures of imagenette/val (`--tune`); the page is of
photographs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from budget import DATA, RESULTS, subjects
from measure import conditions
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

import xattn
from xattn.explainers.regression import Budget, Masks, estimates
from xattn.inference import fastest
from xattn.metrics import to_masks
from xattn.metrics.adaptive import first_points, interpolated, next_points
from xattn.metrics.curves import Deletion, Insertion
from xattn.metrics.perturbations import rank_pixels
from xattn.metrics.responses import evaluate_perturbations
from xattn.metrics.statistics import Interval, mean_interval

METHODS = ["grad-cam", "grad-cam++", "layer-cam", "random"]
GAMES = {"insertion": Insertion().curve, "deletion": Deletion().curve}
TOLERANCES = {"insertion": (2.0, 4.0, 8.0), "deletion": (1.5, 3.0, 6.0)}  # points of area; the middle one is about a quarter of the passes
WAYS = ("adaptive", "each alone", "together")
CELLS = 7
WEIGHTS = (1.0, 2.0, 3.0)  # of the share of changed pixels relative to the remaining part of the picture, in the distance of two points
TINY = 1e-9


def collected(classifier: xattn.Classifier, image: Tensor) -> dict[str, Any]:
    """All points of a picture's curves: probabilities and shares `(methods, T + 1)`, and the changed share of each cell, cells last."""
    predictor = fastest(classifier)
    targets = classifier.predict(image).argmax(dim=1)
    maps = xattn.explain(classifier, image, METHODS, target=targets, predictor=predictor)
    masks = {method: to_masks(maps[method], image.shape[-2:]).masks for method in METHODS}
    mean = classifier.mean.flatten()
    seen = evaluate_perturbations(predictor, image, targets, masks, list(GAMES.values()), mean=mean, chunk=predictor.chunk)
    found: dict[str, Any] = {}
    for game, curve in GAMES.items():
        left = []
        for method in METHODS:
            ranked = rank_pixels(curve, masks[method], masks[method], (image.shape[2], image.shape[3]))
            changed = ranked.ranks < ranked.cuts[:, None, None]
            left.append(adaptive_avg_pool2d(changed.double(), CELLS).flatten(1))
        responses = [seen[method].curve(curve) for method in METHODS]
        found[game] = {
            "p": torch.cat([one.p for one in responses]),
            "shares": torch.cat([one.shares for one in responses]),
            "changed": torch.stack(left),
        }
    return found


def adaptive(p: Tensor, shares: Tensor, tolerance: float, *, early: bool) -> tuple[Tensor, list[int]]:
    """Returns the curves of the adaptive form, and the number of points it used on each, without the ends."""
    known = torch.full_like(p, torch.nan)
    places = torch.cat([torch.tensor([0]), first_points(p.shape[1], early=early), torch.tensor([p.shape[1] - 1])])
    known[:, places] = p[:, places]
    while bool((wanted := next_points(known, shares, tolerance)).any()):
        known = torch.where(wanted, p, known)
    return interpolated(known, shares), (~known.isnan())[:, 1:-1].sum(dim=1).tolist()


def regressed(p: Tensor, shares: Tensor, changed: Tensor, passes: int, weight: float) -> tuple[Tensor, Tensor]:
    """Returns areas of the curves by regression over all their points, `(methods,)`, and their standard errors.

    The two ends, which the curves share, are used as points and cost nothing.
    """
    methods, count = p.shape
    inner = torch.arange(methods * count).view(methods, count)[:, 1:-1].flatten()
    numbers = torch.cat([torch.tensor([0, count - 1]), inner])
    widths = (pad(shares.diff(dim=1), (1, 0)) + pad(shares.diff(dim=1), (0, 1))) / 2  # of the trapezoid rule
    effects = torch.block_diag(*widths).view(methods, methods, count).transpose(1, 2).flatten(0, 1)[numbers]
    effects[0], effects[1] = widths[:, 0], widths[:, -1]
    inputs = torch.cat([changed.flatten(0, 1), weight * CELLS * shares.flatten()[:, None]], dim=1)[numbers]
    flat = p.flatten()[numbers].clamp(TINY, 1 - TINY)
    latents = flat.log() - (1 - flat).log()
    budget = Budget((passes + 2) / len(numbers))
    (found,) = estimates([Masks(inputs, effects)], lambda wanted: [latents[some] for some in wanted], torch.sigmoid, budget)
    return found.responses @ effects, found.error


def compared(pictures: list[dict[str, Any]], game: str, tolerance: float, weight: float) -> dict[str, Tensor]:
    """Returns areas in points, `(pictures, methods)`, for each way with the same passes per picture, and the share of the passes."""
    rows: dict[str, list[Tensor]] = {name: [] for name in ("exact", *WAYS, "error", "share")}
    for picture in pictures:
        p, shares, changed = (picture[game][what] for what in ("p", "shares", "changed"))
        curves, passes = adaptive(p, shares, tolerance, early=game == "deletion")
        joint, error = regressed(p, shares, changed, sum(passes), weight)
        alone = [regressed(p[some], shares[some], changed[some], passes[some.start], weight)[0] for some in map(_only, range(len(p)))]
        areas = {"exact": torch.trapezoid(p, shares, dim=1), "adaptive": torch.trapezoid(curves, shares, dim=1)}
        for name, values in {**areas, "each alone": torch.cat(alone), "together": joint, "error": error}.items():
            rows[name].append(100 * values)
        rows["share"].append(torch.tensor(sum(passes) / (len(p) * (p.shape[1] - 2))))
    return {name: torch.stack(values) for name, values in rows.items()}


def verdict(gains: dict[str, list[Interval]]) -> list[str]:
    """Writes the conclusion: how often each way is nearer to the full curves than the adaptive form, or further away."""
    found = []
    for way, intervals in gains.items():
        nearer, further = sum(one.high < 0 for one in intervals), sum(one.low > 0 for one in intervals)
        found.append(
            f"{way}, nearer to the full curves than the adaptive form in {nearer} of {len(intervals)} rows, further off in {further}"
        )
    return [
        f"By the intervals of 95 %: {'; '.join(found)}.",
        "So the adaptive form stays. Together, a method's value would also depend on which other methods are in the run.",
    ]


def gain(found: dict[str, Tensor], way: str) -> Interval:
    """Returns how much further from the full curves a way is than the adaptive form, averaged over pictures."""
    apart, adaptive_apart = ((found[name] - found["exact"]).abs() for name in (way, "adaptive"))
    return mean_interval((apart - adaptive_apart).mean(dim=1))


def _only(number: int) -> slice:
    return slice(number, number + 1)


def row(model: str, game: str, tolerance: float, found: dict[str, Tensor]) -> str:
    """Writes a line of the page."""
    cells = [model, game, f"{tolerance:g}", str(len(found["exact"])), f"{100 * found['share'].mean():.0f} %"]
    apart = {way: found[way] - found["exact"] for way in WAYS}
    for way in WAYS:
        mean = mean_interval(apart[way].mean(dim=1), (-100.0, 100.0))
        cells += [
            f"{apart[way].abs().mean():.2f}",
            f"{apart[way].abs().max():.1f}",
            f"{mean.mean:+.2f} [{mean.low:+.2f}, {mean.high:+.2f}]",
        ]
    for way in WAYS[1:]:
        more = gain(found, way)
        cells.append(f"{more.mean:+.2f} [{more.low:+.2f}, {more.high:+.2f}]")
    cells.append(f"{100 * (apart['together'].abs() <= 1.96 * found['error']).double().mean():.0f} %")
    return f"| {' | '.join(cells)} |"


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--networks", default="torchvision:mobilenet_v2,timm:vit_tiny_patch16_224", show_default=True)
@click.option("--count", default=24, show_default=True, help="Photographs.")
@click.option("--weight", default=2.0, show_default=True, help="Of the share of changed pixels in the distance of two points.")
@click.option("--tune", is_flag=True, help="Print other weights on pictures of imagenette/val instead.")
@click.option("--threads", default=1, show_default=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="XATTN_DATA", default=DATA)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "curve-regression.md")
def main(work: Path, networks: str, count: int, weight: float, tune: bool, threads: int, data: Path, out: Path) -> None:
    """Compares insertion and deletion by regression over a picture's curves with the adaptive form, at the same passes."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    gains: dict[str, list[Interval]] = {way: [] for way in WAYS[1:]}
    for model in networks.split(","):
        files = sorted((data / "imagenette" / "val").glob("*/*"))[::25] if tune else None
        classifier, names, make = subjects(model, count, data, "cpu", files)
        pictures = []
        for number, name in enumerate(names):
            kept = work / f"curves-{model}-{name}.pt".replace(":", "-")
            if not kept.exists():
                torch.save(collected(classifier, make(number)), kept)
                click.echo(f"{model} {number + 1}", err=True)
            pictures.append(torch.load(kept, weights_only=True))
        for game, tolerances in TOLERANCES.items():
            for tolerance in tolerances:
                for tried in WEIGHTS if tune else (weight,):
                    found = compared(pictures, game, tolerance, tried)
                    line = row(model, game, tolerance, found)
                    for way, intervals in gains.items():
                        intervals.append(gain(found, way))
                    click.echo(f"{tried:g} {line}", err=True)
                    lines.append(line)
    if tune:
        return
    about = conditions(torch.device("cpu"))
    head = ["network", "game", "tolerance", "n", "passes"]
    head += [f"{way}: {what}" for way in WAYS for what in ("mean \\|Δ\\|", "most", "mean Δ")]
    head += [*(f"mean \\|Δ\\|, {way} − adaptive" for way in WAYS[1:]), "covered, together"]
    text = [
        "# Insertion and deletion by regression over a picture's curves",
        "",
        f"The curves of {', '.join(METHODS)} on a photograph from the same number of passes:",
        "each by the adaptive form at a tolerance, and by a Gaussian process over the share of changed pixels and over which were changed,",
        "which chooses its points by what they tell of the areas: of each curve alone, with its own passes, and of all together, with",
        "all their passes. Points of area, of each curve: mean and largest difference from the full curve's; the mean difference, which no",
        "number of pictures averages away [95 %]; and by how much the one is further off than the other [95 % over pictures]. Covered:",
        "full areas within 1.96 standard errors of the regression's. A curve has 29 points; its two ends, which all share, are no passes.",
        "",
        f"| {' | '.join(head)} |",
        f"|---|---|{'---:|' * (len(head) - 2)}",
        *lines,
        "",
        *verdict(gains),
        "",
        f"Made by `{about['command']}` on {about['date']}, xattn {about['versions']['xattn']}, torch {about['versions']['torch']}.",
        "",
    ]
    out.write_text("\n".join(text), encoding="utf-8")
    click.echo(out, err=True)


if __name__ == "__main__":
    main()
