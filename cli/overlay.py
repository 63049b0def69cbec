"""`xattn overlay`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from xattn.cli.options import LocalPath, Number, PathOrURL
from xattn.cli.terminal import say
from xattn.text import counted

SOME_FAILED = 3


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
@click.option("--out", required=True, type=LocalPath(file_okay=False), help="Folder to write to.")
@click.option("--image", "images", multiple=True, help="Image to draw, by its name in the rows. Repeatable; all if none.")
@click.option("--method", "methods", multiple=True, help="Method to draw, by its name in the rows. Repeatable; all if none.")
@click.option("--format", "form", type=click.Choice(["png", "jpeg"]), default="png", show_default=True, help="Format of the overlays.")
@click.option("--cmap", help="Colour map of matplotlib. Default: inferno; RdBu_r for signed maps.")
@click.option("--alpha", type=Number(0, 1), default=0.5, show_default=True, help="Opacity of the colours.")
@click.option(
    "--interpolation",
    type=click.Choice(["bilinear", "nearest"]),
    default="bilinear",
    show_default=True,
    help="Interpolation between the map's cells; nearest shows the cells.",
)
@click.option(
    "--contour", type=Number(0, 1), multiple=True, metavar="LEVEL", help="Outline the mask at this level, between 0 and 1. Repeatable."
)
@click.option(
    "--images", "moved_to", type=PathOrURL(), help="Where the photographs are now, if they have moved: a folder, a glob or a file."
)
@click.option("--maps", is_flag=True, help="Also write each map at the photograph's size: .npy (float32) and .map.png (16 bits).")
def overlay(
    runs: Sequence[str],
    out: str,
    images: Sequence[str],
    methods: Sequence[str],
    form: Any,
    cmap: str | None,
    alpha: float,
    interpolation: Any,
    contour: Sequence[float],
    moved_to: str | None,
    maps: bool,
) -> None:
    """Lay the maps of RUNS over the photographs, at the photographs' own size: one file per picture and method.

    The resize and crop that the network's preprocessing made are undone; outside the crop the photograph stays as it is.
    """
    from xattn.figures import overlay_runs
    from xattn.overlays import OverlayStyle

    style = OverlayStyle(cmap, alpha, interpolation, tuple(contour))
    chosen: dict[str, Any] = {"images": images or None, "methods": methods or None}
    failed = overlay_runs(runs, out, **chosen, style=style, form=form, maps=maps, moved_to=moved_to)
    say(f"{out}/overlays.csv")
    if failed:
        say(f"{counted(len(failed), 'image')} could not be drawn:", err=True)
        for name, reason in failed:
            say(f"  {name}: {reason}", err=True)
        sys.exit(SOME_FAILED)
