"""`xattn randomise`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from xattn.cli.options import LocalPath, Number, PathOrURL, model_options
from xattn.cli.terminal import say, warned_lines
from xattn.text import counted


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--model", required=True, help="Network, as for explain.")
@click.option("--weights", help="Weights: a local .pth or .safetensors, or a name of torchvision or open_clip.")
@click.option("--head", help="Head, as for explain.")
@click.option("--method", "methods", multiple=True, required=True, help="Method, name[:key=value,…]; see `xattn list methods`. Repeatable.")
@click.option(
    "--order",
    "orders",
    multiple=True,
    type=click.Choice(["cascading", "independent"]),
    default=("cascading",),
    show_default=True,
    help="cascading: from the output to the input, each layer in addition to those before; independent: each layer alone. Repeatable.",
)
@click.option("--steps", type=click.IntRange(1), help="Merge neighbouring layers into this many steps. Default: every layer alone.")
@click.option(
    "--smooth",
    "samples",
    type=click.IntRange(0, 10_000),
    default=0,
    help="Average each map over this many noisy copies of the picture; 0: none.",
)
@click.option(
    "--threshold",
    type=Number(0, 1, min_open=True, max_open=True),
    default=0.3,
    show_default=True,
    help="Spearman's correlation above which a map counts as unchanged.",
)
@click.option("--target", default="predicted", show_default=True, help="predicted, label, a class index or a class name.")
@click.option("--labels-csv", type=PathOrURL(exists=True, dir_okay=False), help="Labels, as for explain.")
@click.option("--stage", help="Where features are taken. Default: at the input of the pooling.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Seed of the random weights.")
@click.option("--untrained", is_flag=True, help="Also test a head that was never trained.")
@click.option("--out", required=True, type=LocalPath(file_okay=False), help="Folder to write to.")
@model_options
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Pictures per forward.")
def randomise(
    images: Sequence[str],
    model: str,
    weights: str | None,
    head: str | None,
    methods: Sequence[str],
    labels_csv: str | None,
    target: str,
    out: str,
    **options: Any,
) -> None:
    """Test whether maps of IMAGES depend on what the network has learnt: compare them as the layers of a copy are randomised.

    A method whose maps stay fails (Adebayo et al. 2018). Writes scores.csv, verdicts.csv, similarity.png and maps.png.
    """
    from xattn.data.images import ImageSource
    from xattn.errors import InputError
    from xattn.explainers.base import created
    from xattn.figures.canvas import save
    from xattn.figures.randomised import maps_figure, similarity_figure
    from xattn.models import load
    from xattn.study.randomisation import randomise

    created(methods)  # a wrong name is reported before anything is loaded
    if (Path(out) / "verdicts.csv").exists():
        raise InputError(f"'{out}' holds an earlier test: give another folder, or delete it.")
    source = ImageSource(list(images), labels_csv)
    sys.path.append(os.getcwd())  # where package.module:factory is looked up
    own = ("orders", "steps", "samples", "threshold", "stage", "seed", "untrained", "batch_size")
    settings = {name: options.pop(name) for name in own}
    with warned_lines():
        classifier = load(model, weights=weights, head=head, **options)
    say(
        f"{classifier.name} · {classifier.head_name} · {classifier.device}: {', '.join(methods)} on {counted(len(source), 'image')}",
        err=True,
    )
    found = randomise(classifier, source, methods, target=int(target) if target.isdecimal() else target, **settings)
    folder = found.save(out)
    say(found.text(), nl=False)
    files = [*save(similarity_figure(found), Path(folder) / "similarity.png"), *save(maps_figure(found), Path(folder) / "maps.png")]
    for file in (Path(folder) / "scores.csv", Path(folder) / "verdicts.csv", *files):
        say(str(file), err=True)
