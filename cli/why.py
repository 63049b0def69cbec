"""`xattn why`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from xattn.cli.options import LocalPath, PathOrURL, model_options
from xattn.cli.terminal import say, warned_lines


@click.command()
@click.argument("image", type=PathOrURL(exists=True, dir_okay=False))
@click.option("--model", required=True, help="Network, as for explain.")
@click.option("--weights", help="Weights: a local .pth or .safetensors, or a name of torchvision or open_clip.")
@click.option("--head", help="Head, as for explain.")
@click.option("--expected", help="The class that was expected, by index or name. Default: the second most probable one.")
@click.option(
    "--method", "methods", multiple=True, help="Method, name[:key=value,…]; two or more. Default: grad-cam, layer-cam, occlusion."
)
@click.option("--stage", help="Where features are taken. Default: at the input of the pooling.")
@click.option("--out", type=LocalPath(file_okay=False), help="Folder for why.md and why.png. Default: print the page, without a figure.")
@model_options
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")
def why(
    image: str,
    model: str,
    weights: str | None,
    head: str | None,
    expected: str | None,
    methods: Sequence[str],
    stage: str | None,
    out: str | None,
    **options: Any,
) -> None:
    """Explain why IMAGE is classified as one class and not as the expected one: one page and a figure.

    The page has both probabilities, whether the methods agree, the scores of methods and controls, and warnings.
    """
    from xattn.explainers.base import created
    from xattn.models import load
    from xattn.study.expectation import why

    if methods:
        created(methods)  # a wrong name is reported before anything is loaded
    sys.path.append(os.getcwd())  # where package.module:factory is looked up
    with warned_lines():
        classifier = load(model, weights=weights, head=head, **options)
    wanted = int(expected) if expected is not None and expected.isascii() and expected.isdecimal() and len(expected) < 10 else expected
    found = why(classifier, image, wanted, methods=methods or None, stage=stage)
    say(found.text(), nl=False)
    if out is not None:
        from xattn.figures.canvas import save
        from xattn.figures.why import why_figure

        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "why.md").write_text(found.text(), encoding="utf-8")
        for file in (folder / "why.md", *save(why_figure(found), folder / "why.png")):
            say(str(file), err=True)
