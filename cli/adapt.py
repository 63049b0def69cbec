"""`xattn adapt`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from xattn.cli.options import Integer, LocalPath, Number, PathOrURL, model_options
from xattn.cli.terminal import say, warned_lines
from xattn.text import counted


@click.command()
@click.argument("model")
@click.option("--data", required=True, type=PathOrURL(), help="A few pictures of each new class: a folder with one subfolder per class.")
@click.option("--labels-csv", type=PathOrURL(exists=True, dir_okay=False), help="Labels of the pictures, as for explain.")
@click.option("--out", required=True, type=LocalPath(dir_okay=False), help="File to write, a .safetensors, which --model takes.")
@click.option("--weights", help="Weights: a local .pth or .safetensors, or a name of torchvision or open_clip.")
@click.option("--steps", type=Integer, help="Steps of gradient descent. Default: those that MODEL was trained for, else 50.")
@click.option("--lr", type=Number(), help="Learning rate. Default: the one that MODEL was trained for, else 0.01.")
@model_options
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Pictures per forward.")
def adapt(
    model: str,
    data: str,
    labels_csv: str | None,
    out: str,
    steps: int | None,
    lr: float | None,
    batch_size: int,
    **options: Any,
) -> None:
    """Fit the last layer of MODEL, a saved .safetensors or a network's name, to a few pictures of new classes.

    The file that it writes is an ordinary classifier of these classes: explain, evaluate and compare take it.
    """
    from xattn.data.images import ImageSource
    from xattn.data.published import refuse_scored
    from xattn.errors import InputError
    from xattn.fewshot import adapt
    from xattn.models import load

    if not out.endswith(".safetensors"):
        raise InputError(f"--out must be a .safetensors file; got '{out}'.")
    refuse_scored([data])  # before anything is loaded
    source = ImageSource(data, labels_csv)
    sys.path.append(os.getcwd())  # where package.module:factory is looked up
    with warned_lines():
        classifier = load(model, **options)
    found = adapt(classifier, source, steps=steps, lr=lr, batch_size=batch_size)
    say(f"{classifier.name} · {classifier.head_name} · {classifier.device}: only its last layer changes", err=True)
    say(f"{counted(len(source), 'picture')} of {counted(found.class_count, 'class')}: {', '.join(found.labels or ())}", err=True)
    found.save(out)
    say(out)
