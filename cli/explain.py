"""`xattn explain`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xattn.cli.options import Grouped
from xattn.cli.run_options import run_options
from xattn.cli.terminal import say, warned_lines
from xattn.errors import InputError
from xattn.text import counted

if TYPE_CHECKING:
    from xattn.data.labels import LabelsFrom
    from xattn.models import Classifier
    from xattn.study import Outcome, Study
    from xattn.study.plan import Plan

SOME_FAILED = 3


GROUPS = {
    "Options": ("models", "methods", "metrics", "target", "gallery", "labels_csv", "regions", "out", "device", "dry_run", "help"),
    "Networks": (
        *("weights", "heads", "stage", "labels", "classes", "templates", "input_size", "resize", "mean", "std"),
        *("output", "multi_label", "threshold", "regression", "untrained", "trust_code"),
    ),
    "Pictures": ("labels_from", "depth", "window", "max_pixels", "workers"),
    "How many pictures": ("until_decided", "margin"),
    "Maps": ("signed", "save_maps", "seed"),
    "Speed": ("level", "tune", "memory", "batch_size"),
    "Many machines": ("shard", "engine", "actors"),
}


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--gallery",
    multiple=True,
    help="For a network whose output is a vector: pictures to compare with. Each of IMAGES is compared with its nearest one; maps "
    "show, in both, what makes the two alike. A folder, glob or file, or market:ROOT:gallery for market:ROOT:query. Repeatable.",
)
@run_options
def explain(images: Sequence[str], **options: Any) -> None:
    """Explain and score IMAGES (folders, globs, files, CSVs, by path or URL): maps, scores.csv, table.csv and a figure in RUN."""
    make_run(images, **options)


def make_run(
    images: Sequence[str],
    models: Sequence[str],
    weights: Sequence[str],
    heads: Sequence[str],
    methods: Sequence[str],
    metrics: Sequence[str],
    labels_csv: str | None,
    labels_from: LabelsFrom | None,
    classes: str | None,
    templates: Sequence[str],
    labels: str | None,
    out: str,
    input_size: int | tuple[int, int] | None,
    resize: int | tuple[int, int] | None,
    mean: list[float] | None,
    std: list[float] | None,
    output: str | None,
    multi_label: bool,
    regression: bool,
    device: str | None,
    trust_code: bool,
    depth: int | None,
    window: list[float] | None,
    max_pixels: int | None,
    dry_run: bool,
    gallery: Sequence[str] = (),
    maps: Sequence[str] = (),
    **options: Any,
) -> None:
    """Makes the run that options describe: of methods, and of maps in files if there are some; or says what it would do."""
    if weights and len(weights) != len(models):
        raise InputError(f"{len(weights)} --weights for {len(models)} --model: give one for each, in order, or none.")
    from xattn.data.images import ImageSource
    from xattn.explainers.base import created
    from xattn.metrics import metrics as metric_registry
    from xattn.study import DEFAULT_METHODS, DEFAULT_METRICS, Study
    from xattn.study.sequential import asked

    metrics = metrics or DEFAULT_METRICS
    metric_registry.create_all(metrics)  # a wrong name is reported before anything is loaded
    asked(options["until_decided"], options["margin"], bool(gallery))
    if methods:
        created(methods, signed=options["signed"])
    largest = {} if max_pixels is None else {"max_pixels": max_pixels}
    reading: dict[str, Any] = {"depth": depth, "window": window, **largest}
    source = ImageSource(list(images), labels_csv, labels_from=labels_from, **reading)
    options["gallery"] = ImageSource(list(gallery), **reading) if gallery else None
    sys.path.append(os.getcwd())  # where package.module:factory is looked up
    shape: dict[str, Any] = {"input_size": input_size, "resize": resize, "mean": mean, "std": std}
    meaning: dict[str, Any] = {"classes": classes, "templates": templates, "output": output}
    kind: dict[str, Any] = {"multi_label": multi_label, "regression": regression}
    options_of_models = {**shape, **meaning, **kind, "labels": labels, "device": device, "trust_code": trust_code}
    classifiers = _load(models, weights, heads, options_of_models)
    options["maps"] = list(maps) or None
    study = Study(classifiers, methods or DEFAULT_METHODS, metrics, source, out, **options)
    _announce(study)
    if dry_run:
        _foretell(study)
        return
    try:
        outcome = study.run()
    except KeyboardInterrupt:
        say(f"stopped; {out} has what was finished, and the same command continues the run.", err=True)
        sys.exit(1)
    _finish(study, outcome, out)


def _announce(study: Study) -> None:
    """Prints what the run will do."""
    from xattn.models.target_rules import TargetRule

    plan = study.plan
    for classifier in plan.classifiers:
        stage = plan.stage_of(classifier)
        say(f"{classifier.name} · {classifier.head_name} · {counted(classifier.class_count, 'class')} · {classifier.device}", err=True)
        say(f"  {classifier.preprocessing}", err=True)
        others = ", ".join(other.name for other in classifier.stages if stage is None or other.name != stage.name)
        say(f"  stage {stage}: {stage.found}" if stage else "  no stage: no map lies on every path to the output", err=True)
        if others:
            say(f"  other stages: {others}", err=True)
        for lacks, left in _left_out(plan, classifier).items():
            say(f"  without {', '.join(left)}: {lacks}", err=True)
    place, count = plan.shard
    if count > 1:
        here = f"{len(plan.images)} of {counted(len(plan.source), 'image')}"
        say(f"shard {place} of {count}: {here}; `xattn compare` joins the folders of all", err=True)
    target = plan.target.text if isinstance(plan.target, TargetRule) else plan.target
    if plan.until_decided is not None:
        say(f"in a random order, until {plan.until_decided.metric} has decided; at most", err=True)
    sizes = {"image": len(plan.images), "method": len(plan.methods), "metric": len(plan.metrics)}
    say(f"{' × '.join(counted(count, noun) for noun, count in sizes.items())}, target: {target}", err=True)


def _foretell(study: Study) -> None:
    """Prints how many forwards the run takes, and about how long."""
    from xattn.study.execution import forwards_per_image, seconds_expected

    for classifier in study.plan.classifiers:
        each, seconds = forwards_per_image(study.plan, classifier), seconds_expected(study.plan, classifier)
        long = "no picture can be read" if seconds is None else f"about {timedelta(seconds=max(1, round(seconds)))} here, untuned"
        say(
            f"{classifier.name} · {classifier.head_name}: {counted(each, 'forward')} for each image, "
            f"{'at most ' if study.plan.until_decided else ''}{each * len(study.plan.images)} in all: {long}; "
            "reading, gradients and methods of other libraries come on top"
        )


def _left_out(plan: Plan, classifier: Classifier) -> dict[str, list[str]]:
    """The methods that a classifier does not support, by what it lacks."""
    found: dict[str, list[str]] = {}
    for method in plan.methods:
        if lacks := plan.lacks(classifier, method):
            found.setdefault(lacks, []).append(method.spec)
    return found


def _finish(study: Study, outcome: Outcome, out: str) -> None:
    """Draws the figure, prints the table, names the images that failed."""
    from xattn.study.sequential import stated

    failed = {name for name, _ in outcome.failed}
    if len(failed) < outcome.images:
        from xattn.figures import figure

        with tempfile.TemporaryDirectory() as folder, study.store.whole(Path("figures/grid.png")) as path:
            drawn = Path(folder) / "grid.png"
            figure([out], drawn, images=[image.name for image in study.images if image.name not in failed][:6])
            shutil.copyfile(drawn, path)
        say(study.table().to_string(index=False, float_format=lambda value: f"{value:.2f}"))
        say(f"scores: {out}/scores.csv   table: {out}/table.csv   figure: {out}/figures/grid.png", err=True)
    run = study.store.read_run()
    for line in stated(run["sequence"]) if "sequence" in run else ():
        say(line, err=True)
    for rule, count in run.get("pixels", {}).items():
        say(f"{counted(count, 'picture')}: {rule}", err=True)
    for reason, names in {**run.get("without_region", {}), **run.get("without_parts", {})}.items():
        say(f"{counted(len(names), 'picture')}, {reason}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}", err=True)
    if outcome.failed:
        say(f"{len(outcome.failed)} of {counted(outcome.images, 'image')} failed:", err=True)
        for name, reason in outcome.failed:
            say(f"  {name}: {reason}", err=True)
        sys.exit(SOME_FAILED)


def _load(models: Sequence[str], weights: Sequence[str], heads: Sequence[str], options: dict[str, Any]) -> list[Classifier]:
    """Every model with every head, a saved one with its own; two with the same name and head are told apart by their weights file."""
    from xattn.models import load
    from xattn.models.loading import own_file

    loaded: list[tuple[Classifier, str]] = []
    for number, model in enumerate(models):
        file = weights[number] if weights and weights[number] else None
        saved = own_file(model) is not None
        if saved and heads and len(models) > 1:
            say(f"  note: {model} has its own head; --head is for the others", err=True)
        given = heads if heads and not (saved and len(models) > 1) else (None,)
        for head in given:
            with warned_lines():
                classifier = load(model, head=head, weights=file, **options)
            loaded.append((classifier, model if saved else file or ""))
    names = [(classifier.name, classifier.head_name) for classifier, _ in loaded]
    for (classifier, file), name in zip(loaded, names, strict=True):
        if names.count(name) > 1 and file:
            classifier.name = f"{classifier.name}@{Path(file).stem}"
    return [classifier for classifier, _ in loaded]
