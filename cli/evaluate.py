"""`xattn evaluate`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from xattn.cli.options import TEXTS, LocalPath, PathOrURL, model_options
from xattn.cli.terminal import say, warned_lines
from xattn.text import counted

if TYPE_CHECKING:
    from xattn.data.labels import LabelsFrom

SOME_FAILED = 3


@click.command()
@click.argument("model")
@click.option(
    "--data",
    required=True,
    help="Pictures with labels: a folder with one subfolder per class, a glob, a CSV (image, label), or NAME:ROOT[:SPLIT] of a "
    "data set in its published layout. Default split: the one for scores (test; voc and cityscapes val; market query).",
)
@click.option("--task", help="What to score, see `xattn list tasks`. Default: multi-label for a multi-label network, else classification.")
@click.option("--weights", help="Weights: a local .pth or .safetensors, or a name of torchvision or open_clip.")
@click.option("--multi-label", is_flag=True, help="Outputs are independent labels.")
@click.option("--labels-csv", type=PathOrURL(exists=True, dir_okay=False), help="Labels of the pictures, as for explain.")
@click.option(
    "--labels-from",
    type=click.Choice(["folders", "csv", "none"]),
    help="Labels: names of the folders, or a label file. Default: whichever is present; folders only if all of their names are classes.",
)
@click.option("--classes", type=LocalPath(exists=True, dir_okay=False), help=f"{TEXTS}.")
@model_options
@click.option("--out", type=LocalPath(dir_okay=False), help="File to write the scores to, a .json or a .csv.")
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Pictures per forward.")
@click.option("--workers", type=click.IntRange(0, 1024), help="Decoding processes; default: one fewer than the cores.")
def evaluate(
    model: str,
    data: str,
    task: str | None,
    labels_csv: str | None,
    labels_from: LabelsFrom | None,
    out: str | None,
    batch_size: int,
    workers: int | None,
    **options: Any,
) -> None:
    """Score MODEL, a saved .safetensors or a network's name, on pictures outside its training set: accuracy, or the task's own score."""
    from xattn.models import load
    from xattn.tasks import score, tasks
    from xattn.tasks.base import form_of

    if out is not None:
        form_of(out)  # a wrong ending is reported before anything is loaded
    if task is not None:
        tasks.create(task)
    sys.path.append(os.getcwd())  # where package.module:factory is looked up
    with warned_lines():
        classifier = load(model, **options)
    say(f"{classifier.name} · {classifier.head_name} · {counted(classifier.class_count, 'class')} · {classifier.device}", err=True)
    found = score(classifier, data, task=task, labels_csv=labels_csv, labels_from=labels_from, batch_size=batch_size, workers=workers)
    say(str(found))
    if out is not None:
        found.save(out)
        say(out, err=True)
    if found.failed:
        total = (found.n if found.pictures is None else found.pictures) + len(found.failed)
        say(f"left out because they cannot be read: {len(found.failed)} of {counted(total, 'picture')}:", err=True)
        for name, reason in found.failed:
            say(f"  {name}: {reason}", err=True)
        sys.exit(SOME_FAILED)
