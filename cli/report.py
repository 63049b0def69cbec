"""`xattn report`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from xattn.cli.options import LocalPath, PathOrURL
from xattn.cli.terminal import say


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
@click.option("--out", type=LocalPath(), help="HTML file to write, or with --folder a folder. Default: report.html, or report.")
@click.option("--folder", is_flag=True, help="Write a folder, with index.html and data files, for more pictures than one file can hold.")
@click.option("--title", help="Title of the page. Default: the names of the runs' folders.")
@click.option("--side", type=click.IntRange(32, 1024), default=224, show_default=True, help="Maximum longer side of a picture, in pixels.")
def report(runs: Sequence[str], out: str | None, folder: bool, title: str | None, side: int) -> None:
    """Make a page to browse RUNS: table, pictures under every map, curves. It needs no network connection and no server."""
    from xattn.report import report

    page = report(runs, out or ("report" if folder else "report.html"), folder=folder, title=title, side=side)
    say(str(page))
