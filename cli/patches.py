"""`xattn patches`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from xattn.cli.options import LocalPath, PathOrURL, model_options
from xattn.cli.terminal import say, warned_lines
from xattn.text import counted

SOME_FAILED = 3


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--model", required=True, help="Network, as for explain.")
@click.option("--weights", help="Weights: a local .pth or .safetensors, or a name of torchvision or open_clip.")
@click.option("--finder", default="activation", show_default=True, help="name[:key=value,…]; see `xattn list patches`.")
@click.option("--count", "n", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Boxes per picture.")
@click.option(
    "--side",
    type=click.IntRange(1),
    help="Side of the boxes in pixels of what the network sees. Default: the finder's own; for square boxes, a quarter of the "
    "shorter side.",
)
@click.option(
    "--target",
    type=click.Choice(["predicted", "label"]),
    default="predicted",
    show_default=True,
    help="Class whose boxes the finder prototype gives: the predicted one or the label.",
)
@click.option("--labels-csv", type=PathOrURL(exists=True, dir_okay=False), help="Labels, as for explain.")
@click.option(
    "--out",
    required=True,
    type=LocalPath(dir_okay=False),
    help="File to write: .csv, one row per box in pixels of the photograph; or .npy, (pictures, boxes, 5) of y1, y2, x1, x2, class "
    "in photographs resized to 448 × 448.",
)
@model_options
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Pictures per forward.")
def patches(
    images: Sequence[str],
    model: str,
    weights: str | None,
    finder: str,
    n: int,
    side: int | None,
    target: Any,
    labels_csv: str | None,
    out: str,
    batch_size: int,
    **shape: Any,
) -> None:
    """Find boxes in IMAGES that may contain discriminative parts, without part labels, and write them to a file."""
    from xattn.data.images import ImageSource
    from xattn.data.published import refuse_scored
    from xattn.models import load
    from xattn.patches import boxes_file, boxes_of, finders

    boxes_file(out)
    finders.create(finder)
    refuse_scored(images)  # reported before anything is loaded, as a wrong ending or name is
    source = ImageSource(list(images), labels_csv)
    sys.path.append(os.getcwd())  # where package.module:factory is looked up
    with warned_lines():
        classifier = load(model, weights=weights, **shape)
    say(
        f"{classifier.name} · {classifier.head_name} · {classifier.device}: {finder}, {counted(n, 'box')} in each of "
        f"{counted(len(source), 'image')}",
        err=True,
    )
    found = boxes_of(classifier, source, finder, n, side, target=target, batch_size=batch_size, progress=True)
    found.save(out)
    say(out)
    if found.failed:
        say(f"{len(found.failed)} of {counted(len(source), 'image')} failed:", err=True)
        for name, reason in found.failed:
            say(f"  {name}: {reason}", err=True)
        sys.exit(SOME_FAILED)
