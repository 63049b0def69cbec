"""`xattn`: the commands. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from xattn import __version__
from xattn.cli.demo import demo
from xattn.cli.explain import explain
from xattn.cli.options import PathOrURL
from xattn.cli.report import report
from xattn.cli.terminal import logged_lines, say
from xattn.cli.train import train
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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="xattn")
def main() -> None:
    """Show where an image classifier looks, and how well each method shows it.

    Exit codes: 0 all done; 1 the run failed; 2 the command line was wrong; 3 done, but some images failed and are listed.
    """


main.add_command(explain)
main.add_command(train)
main.add_command(demo)
main.add_command(report)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
@click.option("--format", "form", type=click.Choice(["csv", "latex", "markdown"]), default="markdown", show_default=True)
@click.option("--spreadsheet", is_flag=True, help="With csv: an apostrophe before names that a spreadsheet would run as a formula.")
@click.option("--against", metavar="METHOD", help="Test every other method against this one, on the same images.")
@click.option("--without-degenerate", is_flag=True, help="Leave maps without contrast out of every column.")
def compare(runs: Sequence[str], form: Any, spreadsheet: bool, against: str | None, without_degenerate: bool) -> None:
    """Print one table of one or several RUNS: means with 95 % intervals, paired tests against a method.

    Runs that ask different questions of a model (another target, stage, input size, …) have rows of their own, named by what differs.
    """
    from xattn.study.compare import compare_runs

    say(compare_runs(runs, against, without_degenerate=without_degenerate).text(form, spreadsheet=spreadsheet), nl=False)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
@click.option("--kind", default="grid", show_default=True, help="Kind of figure; see `xattn list figures`.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="File to write: .pdf, .svg or .png.")
@click.option("--image", "images", multiple=True, help="Image to draw, by its name in the rows. Repeatable; the first six if none.")
@click.option("--method", "methods", multiple=True, help="Method to draw, by its name in the rows. Repeatable; all if none.")
def figure(runs: Sequence[str], kind: str, out: str, images: Sequence[str], methods: Sequence[str]) -> None:
    """Draw a figure of RUNS, over the crops that the network saw."""
    from xattn.figures import figure

    figure(runs, out, kind, images=images or None, methods=methods or None)
    say(out)


@main.command("list")
@click.argument("kind", type=click.Choice(["models", "heads", "methods", "metrics", "protocols", "figures"]))
@click.argument("pattern", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with settings and metadata.")
def list_components(kind: str, pattern: str, as_json: bool) -> None:
    """List what can be named, one per line: all, or those whose name holds PATTERN or matches it as a glob ('*vit*')."""
    from xattn.cli.listing import listing

    entries = listing(kind, pattern)
    if as_json:
        say(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        settings = ", ".join(f"{key}={value}" for key, value in entry.get("settings", {}).items())
        about = "  ".join(filter(None, [entry.get("summary", ""), f"[{settings}]" if settings else "", entry.get("caution", "")]))
        say(f"{entry['name']:<{width}}  {about}".rstrip())
