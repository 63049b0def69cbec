"""`xattn demo`."""

from __future__ import annotations

from pathlib import Path

import click

from xattn.cli.options import LocalPath
from xattn.cli.terminal import say

METHODS = ("activation-map", "grad-cam", "grad-cam++", "guided-grad-cam", "raw-attention", "random")  # each of a forward and a backward
HEADS = ("gap", "ca-stream", "b-cnn", "br-npa", "br-npa-high-res")
SHOWN = 6
TUNE = "folded=true"  # a few small birds are not enough work to measure for


@click.command()
@click.option("--out", default="xattn-demo", show_default=True, type=LocalPath(file_okay=False), help="Folder to write to.")
@click.option("--birds", "count", default=4, show_default=True, type=click.IntRange(1), help="Number of pictures.")
def demo(out: str, count: int) -> None:
    """Run the whole job on shipped classifiers and drawn birds: no download, no GPU."""
    from xattn.birds import SketchBirds
    from xattn.figures import figure
    from xattn.models import load
    from xattn.study import DEFAULT_METRICS, Study

    folder = Path(out)
    pictures, run = folder / f"birds-{count}", folder / f"run-{count}"
    SketchBirds("test", count).export(pictures)
    models = [f"birds:{name}" for name in HEADS]
    given = " ".join(
        [
            *(f"--model {model}" for model in models),
            *(f"--method {method}" for method in METHODS),
            *(f"--metric {m}" for m in DEFAULT_METRICS),
        ]
    )
    labels = pictures / "labels.csv"
    command = f"xattn explain {pictures} --labels-csv {labels} {given} --tune {TUNE} --out {run}"
    say(f"{count} drawn birds are in {pictures}. The equivalent command is:\n  {command}", err=True)
    study = Study([load(model) for model in models], METHODS, DEFAULT_METRICS, pictures, run, labels_csv=labels, tune=TUNE)
    study.run()
    names = [image.name for image in study.images[:SHOWN]]
    figures = {"grid": folder / "grid.png", "parts": folder / "parts.png"}
    figure([run], figures["grid"], "grid", images=names, methods=["grad-cam", "raw-attention"])
    figure([run], figures["parts"], "parts", images=names, methods=["grad-cam"])
    say(study.table().to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    say(
        "Lower is better for average-drop and deletion, higher for the others. degenerate_share: maps without contrast, such as Grad-CAM's "
        "on br-npa, where the mean gradient is negative on the channels that its vectors collect.\n"
        f"With intervals and tests:  xattn compare {run} --against random\n"
        f"Scores: {run}/scores.csv   table: {run}/table.csv   figures, made by:\n"
        f"  xattn figure {run} --kind grid --method grad-cam --method raw-attention --out {figures['grid']}\n"
        f"  xattn figure {run} --kind parts --method grad-cam --out {figures['parts']}",
        err=True,
    )
    say(
        "For your own network and pictures, in a folder photos/:\n"
        "  xattn explain photos/ --model torchvision:resnet50 --method grad-cam --method random --out runs/mine",
        err=True,
    )
