"""Cost of a transformer's attention methods compared with the network alone: writes benchmarks/results/attention.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from measure import clocked, conditions
from subjects import photographs
from torch import Tensor

import xattn
from xattn.explainers import Need, methods

NAME = "timm:vit_tiny_patch16_224"
RESULTS = Path(__file__).parent / "results" / "attention.md"
DATA = Path(__file__).parents[2] / "shared" / "data"
FORWARD, BACKWARD = "the network's forward", "the network's forward and backward"
OF_LAYERS = {Need.LAYERS, Need.LAYER_GRADIENTS}


def forward(classifier: xattn.Classifier, images: Tensor) -> Any:
    with torch.inference_mode():
        return classifier(images)


def backward(classifier: xattn.Classifier, images: Tensor) -> Any:
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(classifier(leaf).amax(dim=1).sum(), leaf)


@click.command()
@click.option("--batch", default=8, show_default=True)
@click.option("--rounds", default=9, show_default=True, help="Each runs everything once, in turn.")
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), envvar="XATTN_DATA", default=DATA)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(batch: int, rounds: int, threads: int, device: str, data: Path, out: Path) -> None:
    """Times every attention method and the network alone, in turn."""
    torch.set_num_threads(threads)
    weights = data / "weights" / "vit_tiny_patch16_224.pth"
    if not weights.exists():
        raise click.UsageError(f"{weights} is not there: set XATTN_DATA or --data.")
    classifier = xattn.load(NAME, weights=weights, device=device).eval()
    images = photographs(data, classifier, batch)
    runs: dict[str, Callable[[], Any]] = {FORWARD: partial(forward, classifier, images), BACKWARD: partial(backward, classifier, images)}
    names = [name for name, entry in sorted(methods.entries.items()) if entry.metadata.needs & OF_LAYERS]
    for spec in (["grad-cam"], *([name] for name in names), names):
        label = f"`{spec[0]}`" if len(spec) == 1 else "all of them at once"
        runs[label] = partial(xattn.explain, classifier, images, spec, batch_size=batch)
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for number in range(rounds):
        for label, run in runs.items():
            seconds[label].append(clocked(run, torch.device(device)))
        click.echo(f"round {number + 1} of {rounds}", err=True)
    about = conditions(torch.device(device))
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items() if package in ("torch", "xattn"))
    place = about["gpu"] or f"{about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)} of {about['cores']} cores"
    lines = [
        "# The cost of methods of attention",
        "",
        f"`{NAME}`, a batch of {batch} images of {images.shape[2]} × {images.shape[3]}; {rounds} rounds in which everything runs once,",
        "in turn, after one that is not timed. Milliseconds per batch: median, least and most. The last column: median of the ratios to",
        "the forward and backward of the same round. A method's time is that of `xattn.explain`, its masks included.",
        "",
        "| | ms | range | × forward and backward |",
        "|---|---:|---:|---:|",
    ]
    for label, found in seconds.items():
        ratio = median(each / own for each, own in zip(found, seconds[BACKWARD], strict=True))
        lines.append(f"| {label} | {1e3 * median(found):.0f} | {1e3 * min(found):.0f} – {1e3 * max(found):.0f} | {ratio:.2f} |")
    lines += ["", f"Made by `{about['command']}` on {about['date']}: {place}, load {about['load']:.1f}; {versions}.", ""]
    out.write_text("\n".join(lines), encoding="utf-8")
    click.echo(out, err=True)


if __name__ == "__main__":
    main()
