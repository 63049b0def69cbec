"""`xattn`: the commands. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from typing import Any

import click

from xattn import __version__
from xattn.cli.adapt import adapt
from xattn.cli.app import app
from xattn.cli.demo import demo
from xattn.cli.evaluate import evaluate
from xattn.cli.explain import explain
from xattn.cli.options import LocalPath, PathOrURL, values_by_name
from xattn.cli.overlay import overlay
from xattn.cli.patches import patches
from xattn.cli.randomise import randomise
from xattn.cli.report import report
from xattn.cli.run_options import COMPONENT
from xattn.cli.score import score
from xattn.cli.show import show
from xattn.cli.terminal import logged_lines, say
from xattn.cli.train import train
from xattn.cli.trial import trial
from xattn.cli.why import why
from xattn.errors import XattnError


class _Group(click.Group):
    """Exits with an error's own code, and prints its message alone."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with logged_lines():
                return super().invoke(ctx)
        except XattnError as error:
            say(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            say(f"error: a path is longer than this system takes: '{str(error.filename)[:60]}…'. Give a shorter one.", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="xattn")
def main() -> None:
    """Show where an image classifier looks, and how well each method shows it.

    Exit codes: 0 all done; 1 the run failed; 2 the command line was wrong; 3 done, but some images failed and are listed.
    """


main.add_command(explain)
main.add_command(score)
main.add_command(train)
main.add_command(adapt)
main.add_command(evaluate)
main.add_command(patches)
main.add_command(randomise)
main.add_command(demo)
main.add_command(overlay)
main.add_command(show)
main.add_command(trial)
main.add_command(why)
main.add_command(report)
main.add_command(app)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
@click.option("--format", "form", type=click.Choice(["markdown", "latex", "html", "typst", "csv"]), default="markdown", show_default=True)
@click.option("--against", metavar="NAME", help="Test against this method; or against a model or head, each method with its own there.")
@click.option(
    "--seeds",
    metavar="PATTERN",
    help="Merge networks that were trained with different seeds into one row: a regular expression that matches the seed in the "
    "models' names, as printed without this option, such as '@seed[0-9]+'. Intervals and tests are over seeds and pictures.",
)
@click.option("--difference", is_flag=True, help="Print differences to the reference, with their intervals, instead of means.")
@click.option("--columns", metavar="NAMES", help="Metrics to print, by name or symbol, with commas between them: AD,AG,AI.")
@click.option("--digits", type=int, help="Decimals.  [default: as many as the column's intervals need]")
@click.option("--caption", help="Caption of a LaTeX, HTML or Typst table.")
@click.option("--label", help="Label by which LaTeX and Typst refer to the table.  [default: tab:xattn]")
@click.option("--spreadsheet", is_flag=True, help="With csv: put an apostrophe before names that a spreadsheet would run as a formula.")
@click.option("--without-degenerate", is_flag=True, help="Leave maps without contrast out of every column.")
@click.option(
    "--trial",
    "on_trial",
    is_flag=True,
    help="Mark metrics that rate controls above the methods of the runs, with the reason; `xattn trial` gives details.",
)
@click.option(
    "--tests",
    is_flag=True,
    help="Print conclusions instead of the table: tests of every two methods on the same pictures, or of each against --against; "
    "Friedman's test of all; and how many pictures would decide what is undecided. As markdown or csv.",
)
@click.option(
    "--adjust",
    type=click.Choice(["holm", "benjamini-hochberg"]),
    help="With --tests: adjustment of the p-values over the pairs of a metric.  [default: holm]",
)
@click.option(
    "--margin",
    "margins",
    metavar="METRIC=VALUE",
    multiple=True,
    callback=values_by_name,
    help="With --tests: largest difference of a metric that does not matter; pairs are tested for equivalence within it. Repeatable.",
)
def compare(
    runs: Sequence[str],
    form: Any,
    against: str | None,
    columns: str | None,
    without_degenerate: bool,
    seeds: str | None,
    on_trial: bool,
    tests: bool,
    adjust: Any,
    margins: dict[str, float],
    **printed: Any,
) -> None:
    """Print one table of one or several RUNS: means with 95 % intervals, and paired tests.

    Runs that ask different questions of a model (another target, stage, input size, …) have rows of their own, named by what differs.
    """
    from xattn.study.compare import compare_runs, significance_of_runs

    if tests:
        of_tables = [
            f"--{name}" for name, value in {"columns": columns, "trial": on_trial, **printed}.items() if value not in (None, False)
        ]
        if of_tables or form not in ("markdown", "csv"):
            said = ", ".join(of_tables) or f"--format {form}"
            raise click.UsageError(
                f"--tests prints all metrics as markdown or csv; {said} is for the table without --tests: leave one out."
            )
        found = significance_of_runs(
            runs, against, adjustment=adjust or "holm", margins=margins, without_degenerate=without_degenerate, seeds=seeds
        )
        say(found.text(form), nl=False)
        return
    if margins or adjust:
        raise click.UsageError(f"{'--margin' if margins else '--adjust'} is for tests: give --tests too, or leave it out.")
    if on_trial and form == "csv":
        raise click.UsageError("--trial marks printed tables; a CSV has only values: leave one out, or use `xattn trial --format csv`.")
    table = compare_runs(runs, against, without_degenerate=without_degenerate, seeds=seeds, on_trial=on_trial)
    say(table.text(form, columns=[name.strip() for name in columns.split(",")] if columns else None, **printed), nl=False)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
@click.option("--kind", default="grid", show_default=True, help=f"Kind of figure, {COMPONENT}; see `xattn list figures`.")
@click.option("--out", required=True, type=LocalPath(dir_okay=False), help="File to write: .pdf, .svg or .png.")
@click.option("--image", "images", multiple=True, help="Image to draw, by its name in the rows. Repeatable. Default: see --count.")
@click.option(
    "--count", type=click.IntRange(1), help="Number of images, from the first. Default: 6 for kinds of maps, all for kinds of scores."
)
@click.option("--method", "methods", multiple=True, help="Method to draw, by its name in the rows. Repeatable; all if none.")
@click.option(
    "--images",
    "moved_to",
    type=PathOrURL(),
    help="Where the pictures are now, if they have moved: a folder, a glob or a file. They are recognised by name and content.",
)
@click.option("--metric", "metrics", multiple=True, help="For kinds of scores: metric, by its name in the rows. Repeatable; all if none.")
@click.option("--width", default="page", show_default=True, metavar="column|page|MM", help="Width: column is 88.9 mm, page 181.9 mm.")
@click.option("--title", default="", help="Title above the figure.")
@click.option("--font", default="DejaVu Sans", show_default=True, help="Font family of the text.")
@click.option("--cmap", help="Colour map of matplotlib. Default: the kind's own.")
@click.option(
    "--scale",
    type=click.Choice(["each", "common"]),
    default="each",
    show_default=True,
    help="Range of colours and axes: one for each map or panel, or common to those that can be compared.",
)
@click.option("--transpose", is_flag=True, help="Turn rows into columns.")
@click.option("--dpi", type=click.IntRange(36, 2400), default=300, show_default=True, help="Resolution of a PNG.")
def figure(
    runs: Sequence[str],
    kind: str,
    out: str,
    images: Sequence[str],
    count: int | None,
    methods: Sequence[str],
    metrics: Sequence[str],
    moved_to: str | None,
    dpi: int,
    **look: Any,
) -> None:
    """Draw a figure of RUNS for a paper: maps over the crops that the network saw, or scores. Many pictures take several pages."""
    from xattn.figures import FigureStyle, pages, save
    from xattn.figures.canvas import format_of

    file, style = format_of(out), FigureStyle(**look)
    drawn = pages(
        runs, kind, images=images or None, count=count, methods=methods or None, metrics=metrics or None, style=style, moved_to=moved_to
    )
    for written in save(drawn, file, dpi):
        say(str(written))


@main.command("list")
@click.argument(
    "kind",
    type=click.Choice(["models", "heads", "alignments", "distributions", "methods", "metrics", "protocols", "figures", "patches", "tasks"]),
)
@click.argument("pattern", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with settings and metadata.")
def list_components(kind: str, pattern: str, as_json: bool) -> None:
    """List available names, one per line: all, or those that contain PATTERN or match it as a glob ('*vit*').

    Methods of other libraries are listed by 'captum:', 'grad-cam:*' and the like.
    """
    from xattn.cli.listing import listing

    entries = listing(kind, pattern)
    if as_json:
        say(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        settings = ", ".join(f"{key}={value}" for key, value in entry.get("settings", {}).items())
        cost = f"(forwards: {entry['cost']})" if "cost" in entry else ""
        shown = [entry.get("summary", ""), f"[{settings}]" if settings else "", entry.get("caution", ""), cost]
        about = "  ".join(filter(None, shown))
        say(f"{entry['name']:<{width}}  {about}".rstrip())
