"""Score-CAM and RISE from a share of their passes beside all of them: writes benchmarks/results/budget.md.

    python benchmarks/budget.py --data path/to/data            # photos, weights

The regression's constants were chosen on pictures of imagenette/val; these are photographs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from measure import clocked, conditions
from torch import Tensor

import xattn
from xattn.data.images import ImageSource
from xattn.data.preprocessing import pixels
from xattn.metrics.statistics import mean_interval

RESULT = Path(__file__).parent / "results" / "budget.md"
DATA = Path(__file__).parents[2] / "shared" / "data"
NETWORKS: dict[str, dict[str, Any]] = {
    "torchvision:mobilenet_v2": {"weights": "mobilenet_v2.pth"},
    "torchvision:squeezenet1_0": {"weights": "squeezenet1_0.pth"},
    "timm:tf_efficientnet_lite0": {"weights": "tf_efficientnet_lite0.pth"},
    "timm:vit_tiny_patch16_224": {"weights": "vit_tiny_patch16_224.pth", "mean": [0.5], "std": [0.5], "resize": 248},
}
WITHIN = 1.96  # standard errors
METRICS = ["insertion", "deletion"]
HEADER = ["network", "method", "n", "share", "r, mean", "r, least", "covered", "picture by picture", "insertion", "deletion", "× faster"]


def similarity(found: Tensor, exact: Tensor) -> Tensor:
    """Pearson correlation of each map with the exact one, `(B,)`; 0 where one is constant."""
    one, other = (maps.double().flatten(1) - maps.double().flatten(1).mean(dim=1, keepdim=True) for maps in (found, exact))
    return (one * other).sum(dim=1) / (one.norm(dim=1) * other.norm(dim=1)).clamp(min=1e-30)


def covered(found: Tensor, exact: Tensor, error: Tensor) -> Tensor:
    """The share of each map's cells where the exact value lies within the interval of 95 %, `(B,)`."""
    slack = 1e-6 * exact.abs().amax(dim=(1, 2), keepdim=True)  # float32
    return ((found - exact).abs() <= WITHIN * error + slack).double().mean(dim=(1, 2))


def difference(a: Tensor, b: Tensor) -> str:
    """Mean difference with its 95 % interval, in points."""
    found = mean_interval(a - b, (-100.0, 100.0))
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def compared(clf: xattn.Classifier, images: Tensor, method: str, shares: list[str], *, curves: bool) -> list[str]:
    """A row of the page for each share; every picture is explained in turn by all shares and exactly."""
    joint = "," if ":" in method else ":"
    specs = [method, *(f"{method}{joint}budget={share}" for share in shares)]
    seconds: dict[str, float] = dict.fromkeys(specs, 0.0)
    maps: dict[str, list[Any]] = {spec: [] for spec in specs}
    values: dict[tuple[str, str], list[Tensor]] = {}
    for number in range(len(images)):
        for turn in range(len(specs)):
            spec = specs[(number + turn) % len(specs)]
            explain = partial(xattn.explain, clf, images[number, None], [spec])
            seconds[spec] += clocked(lambda run=explain, spec=spec: maps[spec].append(run()), clf.device)
            if curves:
                rows = xattn.evaluate(clf, images[number, None], maps[spec][-1], metrics=METRICS)
                for metric in METRICS:
                    own = rows[rows["metric"] == metric]["value"]
                    values.setdefault((spec, metric), []).append(torch.tensor(own.to_numpy()))
    exact = torch.cat([one.raw[method] for one in maps[method]])
    rows = []
    for share, spec in zip(shares, specs[1:], strict=True):
        found, error = (torch.cat([getattr(one, what)[spec] for one in maps[spec]]) for what in ("raw", "errors"))
        r, inside = similarity(found, exact), covered(found, exact, error)
        moved = [difference(torch.cat(values[spec, m]), torch.cat(values[method, m])) if curves else "" for m in METRICS]
        numbers = [
            f"{r.mean():.3f}",
            f"{r.min():.3f}",
            f"{100 * inside.mean():.0f} %",
            f"{100 * inside.min():.0f}–{100 * inside.max():.0f} %",
        ]
        cells = [clf.name, method, str(len(images)), share, *numbers, *moved, f"{seconds[method] / seconds[spec]:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
        click.echo(rows[-1], err=True)
    return rows


@click.command()
@click.option("--networks", default=",".join(NETWORKS), show_default=True)
@click.option("--shares", default="0.05,0.1,0.25", show_default=True)
@click.option("--count", default=12, show_default=True, help="Photographs for Score-CAM.")
@click.option("--rise", default=1, show_default=True, help="Photographs for RISE; 0: without it.")
@click.option("--curves/--no-curves", default=True, show_default=True, help="Insertion and deletion of Score-CAM's maps.")
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), envvar="XATTN_DATA", default=DATA)
@click.option("--out", type=click.Path(path_type=Path), default=RESULT)
def main(networks: str, shares: str, count: int, rise: int, curves: bool, threads: int, device: str, data: Path, out: Path) -> None:
    """Compares maps from a share of their passes with those of all passes, and writes the page."""
    torch.set_num_threads(threads)
    rows: list[str] = []
    files = sorted((data / "photos").glob("*.jpg"))[: max(count, rise)]
    for model in networks.split(","):
        clf = xattn.load(model, **{**NETWORKS[model], "weights": data / "weights" / NETWORKS[model]["weights"]}, device=device)
        source = ImageSource(files)
        images = pixels(torch.stack([source.decode(image, clf.preprocessing)[1] for image in source.images]), clf.device)
        rows += compared(clf, images[:count], "score-cam", shares.split(","), curves=curves)
        if rise:
            rows += compared(clf, images[:rise], "rise", shares.split(","), curves=False)
    about = conditions(torch.device(device))
    where = about["gpu"] or f"{about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)} of {about['cores']} cores"
    lines = [
        "# Maps from a share of their passes, beside those of all passes",
        "",
        f"`score-cam:budget=SHARE`{' and `rise:budget=SHARE` (4,000 masks)' if rise else ''} on photographs, for the predicted class, one",
        "picture at a time; the pictures are the first of `photos`, others than those that the regression's constants were chosen on.",
        f"r: correlation of the raw maps. Covered: cells whose exact value lies within {WITHIN} standard errors, the mean over pictures;",
        "beside it the least and the most of a picture. Insertion, deletion: mean difference from the exact map's in points [95 %].",
        "× faster: seconds of the exact method over those of the estimate, passes and regression together, each picture in turn by both.",
        "",
        f"| {' | '.join(HEADER)} |",
        f"|---|---|{'---:|' * (len(HEADER) - 2)}",
        *rows,
        "",
        f"Made by `{about['command']}` on {about['date']}: {where}, load {about['load']:.1f}; xattn {about['versions']['xattn']}, torch",
        f"{about['versions']['torch']}.",
        "",
    ]
    out.write_text("\n".join(lines), encoding="utf-8")
    click.echo(out, err=True)


if __name__ == "__main__":
    main()
