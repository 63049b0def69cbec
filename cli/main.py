"""`xattn`: the commands. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xattn import __version__
from xattn.cli.demo import demo
from xattn.cli.options import PathOrURL, in_plain_lines, shard, triple
from xattn.cli.train import train
from xattn.errors import InputError, XattnError

if TYPE_CHECKING:
    from xattn.classifiers import Classifier

PART = "name[:key=value,…]"
SOME_FAILED = 3


class _Group(click.Group):
    """Ends with an error's own exit code and its message alone."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except XattnError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="xattn")
def main() -> None:
    """Shows where an image classifier looks, and how well each method shows it.

    Exit codes: 0 all done; 1 the run failed; 2 the command line was wrong; 3 done, but some images failed and are named.
    """


@main.command()
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    help="birds:NAME, torchvision:NAME, timm:NAME, package.module:factory, path/file.py:factory, or a saved .safetensors. Repeatable.",
)
@click.option(
    "--weights",
    multiple=True,
    help="Local .pth or .safetensors, or the name of torchvision weights; one for each --model, in order, '' for its own.",
)
@click.option(
    "--head",
    "heads",
    multiple=True,
    help="What gives the logits; see `xattn list heads`. Repeatable. Default: a saved model's own, else gap.",
)
@click.option("--stage", help="Where features are taken; default: what enters the pooling.")
@click.option("--method", "methods", multiple=True, help=f"{PART}; see `xattn list methods`. Repeatable; some CAMs and controls if none.")
@click.option("--metric", "metrics", multiple=True, help=f"{PART}; see `xattn list metrics`. Repeatable.")
@click.option("--target", help="predicted, label, or a class index or name. Default: label where labels are given, else predicted.")
@click.option(
    "--labels-csv",
    type=PathOrURL(exists=True, dir_okay=False),
    help="CSV with columns image (path relative to the folder) and label (class index or name).",
)
@click.option("--labels", type=click.Path(exists=True, dir_okay=False), help="Text file with a class name a line.")
@click.option(
    "--out",
    required=True,
    type=PathOrURL(file_okay=False),
    help="Run folder, a path or a URL as s3://bucket/run; a run that was cut off goes on there.",
)
@click.option("--input-size", type=int, help="Side of the crop.")
@click.option("--resize", type=int, help="Shorter side before the crop.")
@click.option("--mean", callback=triple, help="Of the normalisation, R,G,B in [0, 1].")
@click.option("--std", callback=triple, help="Likewise.")
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: a GPU where there is one.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Images a part.")
@click.option("--workers", type=click.IntRange(0), help="Processes that decode; default: one a core but one.")
@click.option(
    "--level",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="fast: in half precision where that is faster here; the run says how far its values lie off.",
)
@click.option(
    "--tune",
    default="auto",
    show_default=True,
    help="How forwards are run: off; auto, measured where the work is worth it; full; or chunk=16,folded=true,compiled=true by hand.",
)
@click.option("--memory", help="Most that the run may hold beside the models, as 2GB. Default: most of what is free.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is random.")
@click.option(
    "--shard", default="1/1", callback=shard, help="i/n: do the i-th of n parts alone, in a folder of its own; compare joins them."
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: over the machines of a Ray cluster, that of RAY_ADDRESS or `ray start`, else over this machine's cores.",
)
@click.option("--actors", type=click.IntRange(1), help="Processes of Ray that hold the networks; default: one a GPU, else one a CPU.")
@click.option("--untrained", is_flag=True, help="Explain a head that was never trained all the same.")
@click.option("--trust-code", is_flag=True, help="Import and run the code that a saved .safetensors names as the source of its network.")
@click.option("--save-maps", is_flag=True, help="Also write masks of the crop's size, as 16-bit PNG, and keep maps of that size whole.")
def explain(
    images: Sequence[str],
    models: Sequence[str],
    weights: Sequence[str],
    heads: Sequence[str],
    stage: str | None,
    methods: Sequence[str],
    metrics: Sequence[str],
    target: str | None,
    labels_csv: str | None,
    labels: str | None,
    out: str,
    input_size: int | None,
    resize: int | None,
    mean: list[float] | None,
    std: list[float] | None,
    device: str | None,
    batch_size: int,
    workers: int | None,
    level: Any,
    tune: str,
    memory: str | None,
    seed: int,
    shard: tuple[int, int],
    engine: str,
    actors: int | None,
    untrained: bool,
    trust_code: bool,
    save_maps: bool,
) -> None:
    """Explains and scores IMAGES (folders, globs, files, CSVs, by path or URL): maps, scores.csv, table.csv and a figure in RUN."""
    if weights and len(weights) != len(models):
        raise InputError(f"{len(weights)} --weights came for {len(models)} --model: give one for each, in order, or none.")
    from xattn.images import ImageSource
    from xattn.study import DEFAULT_METHODS, DEFAULT_METRICS, Study
    from xattn.study.scoring import metric_parts

    methods, metrics = methods or DEFAULT_METHODS, metrics or DEFAULT_METRICS
    metric_parts(metrics)  # a wrong name is told before anything is loaded
    from xattn.explainers.maps import method_parts

    method_parts(methods)
    source = ImageSource(list(images), labels_csv)
    sys.path.append(os.getcwd())  # where package.module:factory is looked for
    shape = {"input_size": input_size, "resize": resize, "mean": mean, "std": std}
    classifiers = _load(models, weights, heads, {**shape, "labels": labels, "device": device, "trust_code": trust_code})
    study = Study(
        classifiers,
        methods,
        metrics,
        source,
        out,
        target=target,
        stage=stage,
        batch_size=batch_size,
        workers=workers,
        level=level,
        tune=tune,
        memory=memory,
        seed=seed,
        save_maps=save_maps,
        untrained=untrained,
        shard=shard,
        engine=engine,
        actors=actors,
    )
    for classifier in classifiers:
        place = study.stage_of(classifier)
        click.echo(f"{classifier.name} · {classifier.head_name} · {classifier.class_count} classes · {classifier.device}", err=True)
        click.echo(f"  {classifier.preprocessing}", err=True)
        click.echo(f"  stage {place.name} ({place.channels} × {place.size[0]} × {place.size[1]}); others: {_listed(classifier)}", err=True)
        if left := [part.spec for part in study.methods if part not in study.methods_of(classifier)]:
            click.echo(f"  without {', '.join(left)}: this head has no attention", err=True)
    if shard[1] > 1:
        click.echo(
            f"shard {shard[0]} of {shard[1]}: {len(study.images)} of {len(source)} images; `xattn compare` joins the folders of all",
            err=True,
        )
    click.echo(f"{len(study.images)} images × {len(methods)} methods × {len(metrics)} metrics, target: {study.target}", err=True)
    try:
        outcome = study.run()
    except KeyboardInterrupt:
        click.echo(f"stopped; what was finished is in {out}, and the same command goes on.", err=True)
        sys.exit(1)
    failed = {name for name, _ in outcome.failed}
    if len(failed) < outcome.images:
        from xattn.figures import grid

        figure = f"{out}/figures/grid.png"
        with tempfile.TemporaryDirectory() as folder, study.store.whole(Path("figures/grid.png")) as path:
            drawn = Path(folder) / "grid.png"
            grid([out], drawn, images=[image.name for image in study.images if image.name not in failed][:6])
            shutil.copyfile(drawn, path)
        click.echo(study.table().to_string(index=False, float_format=lambda value: f"{value:.2f}"))
        click.echo(f"scores: {out}/scores.csv   table: {out}/table.csv   figure: {figure}", err=True)
    if outcome.failed:
        click.echo(f"{len(outcome.failed)} of {outcome.images} images failed:", err=True)
        for name, reason in outcome.failed:
            click.echo(f"  {name}: {reason}", err=True)
        sys.exit(SOME_FAILED)


def _load(models: Sequence[str], weights: Sequence[str], heads: Sequence[str], options: dict[str, Any]) -> list[Classifier]:
    """Every model with every head, a saved one with its own; two of one name and head are told apart by the file of their weights."""
    from xattn.classifiers import load
    from xattn.classifiers.loading import own_file

    loaded: list[tuple[Classifier, str]] = []
    for number, model in enumerate(models):
        file = weights[number] if weights and weights[number] else None
        saved = own_file(model) is not None
        if saved and heads and len(models) > 1:
            click.echo(f"  note: {model} knows its own head; --head is for the others", err=True)
        given = heads if heads and not (saved and len(models) > 1) else (None,)
        for head in given:
            with in_plain_lines():
                classifier = load(model, head=head, weights=file, **options)
            loaded.append((classifier, model if saved else file or ""))
    names = [(classifier.name, classifier.head_name) for classifier, _ in loaded]
    for (classifier, file), name in zip(loaded, names, strict=True):
        if names.count(name) > 1 and file:
            classifier.name = f"{classifier.name}@{Path(file).stem}"
    return [classifier for classifier, _ in loaded]


def _listed(classifier: Classifier) -> str:
    return ", ".join(stage.name for stage in classifier.stages[:-1])


main.add_command(train)
main.add_command(demo)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
@click.option("--format", "form", type=click.Choice(["csv", "latex", "markdown"]), default="markdown", show_default=True)
@click.option("--against", metavar="METHOD", help="Test every other method against this one, on the same images.")
def compare(runs: Sequence[str], form: Any, against: str | None) -> None:
    """Prints one table of one or several RUNS: means with 95 % intervals, paired tests against a method."""
    from xattn.study.compare import compare_runs

    click.echo(compare_runs(runs, against).text(form), nl=False)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PathOrURL(exists=True, file_okay=False))
@click.option(
    "--kind",
    type=click.Choice(["grid", "parts"]),
    default="grid",
    show_default=True,
    help="grid: images × methods; parts: the ranked maps of br-npa and b-cnn in red, green and blue beside the others' maps.",
)
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="A .pdf, .svg or .png.")
@click.option("--image", "images", multiple=True, help="An image by its name in the rows. Repeatable; the first six if none.")
@click.option("--method", "methods", multiple=True, help="A method by its name in the rows. Repeatable; all if none.")
def figure(runs: Sequence[str], kind: str, out: str, images: Sequence[str], methods: Sequence[str]) -> None:
    """Draws a figure of RUNS, over the crops that the network saw."""
    from xattn.figures import KINDS

    KINDS[kind](runs, out, images=images or None, methods=methods or None)
    click.echo(out)


@main.command("list")
@click.argument("kind", type=click.Choice(["models", "heads", "methods", "metrics", "protocols"]))
@click.option("--json", "as_json", is_flag=True, help="For programs: with settings and facts.")
def list_parts(kind: str, as_json: bool) -> None:
    """Lists what can be named: a line each, or JSON."""
    from xattn.cli.listing import listing

    entries = listing(kind)
    if as_json:
        click.echo(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        settings = ", ".join(f"{key}={value}" for key, value in entry.get("settings", {}).items())
        about = "  ".join(filter(None, [entry.get("summary", ""), f"[{settings}]" if settings else "", entry.get("caution", "")]))
        click.echo(f"{entry['name']:<{width}}  {about}".rstrip())
