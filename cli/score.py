"""`xattn score`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from xattn.cli.explain import GROUPS, make_run
from xattn.cli.options import Grouped
from xattn.cli.run_options import run_options


@click.command(cls=Grouped, groups={**GROUPS, "Options": ("images", *GROUPS["Options"]), "Maps": ("covers", *GROUPS["Maps"])})
@click.argument("maps", nargs=-1, required=True)
@click.option(
    "--images",
    multiple=True,
    required=True,
    help="Pictures that the maps are of: folders, globs, files or CSVs, as explain takes them. Repeatable.",
)
@click.option(
    "--covers",
    type=click.Choice(["crop", "picture"]),
    help="Area that maps cover: what the network sees (crop), or the whole picture. Default: picture for maps of the picture's "
    "size, else crop.",
)
@run_options
def score(maps: Sequence[str], images: Sequence[str], **options: Any) -> None:
    """Score MAPS of other tools in a run like that of explain, as methods `maps:NAME`, together with controls.

    MAPS are folders with one map per picture, named as the picture (.npy, .npz, .safetensors, .pt, grey .png), or folders of such folders,
    one per method; files with maps by the pictures' names; or CSVs (image, map, method). They are raw maps: min-maxed, then resized to
    what the network sees. If --out is the folder of a run of the same pictures, they are added to it.
    """
    make_run(images, maps=maps, **options)
