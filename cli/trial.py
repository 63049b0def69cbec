"""`xattn trial`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from xattn.cli.options import PathOrURL
from xattn.cli.terminal import say


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
@click.option(
    "--planted",
    multiple=True,
    metavar="METHOD",
    help="Method of the runs that must score worse than the others, in addition to the controls. Repeatable.",
)
@click.option("--truth", is_flag=True, help="For runs over SketchBirds: compare with the true effects of the parts. Runs the networks.")
@click.option("--images", "places", type=PathOrURL(), help="With --truth: where the pictures are now, if they have moved.")
@click.option("--device", help="With --truth: cpu, cuda, cuda:1, mps; default: a GPU if there is one.")
@click.option("--format", "form", type=click.Choice(["markdown", "csv"]), default="markdown", show_default=True, help="Output format.")
def trial(runs: Sequence[str], planted: Sequence[str], form: Any, **options: Any) -> None:
    """Put every metric of RUNS on trial: whether it rates the controls below the methods, and whether its order is reliable."""
    from xattn.study.trial import trial_runs

    if not options["truth"] and (options["places"] or options["device"]):
        raise click.UsageError("--images and --device are for --truth: give it too, or leave them out.")
    say(trial_runs(runs, planted, **options).text(form), nl=False)
