"""Options of commands that make a run: `explain` and `score`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from xattn.cli.options import TEXTS, Integer, LocalPath, Number, PathOrURL, model_options, numbers, shard

COMPONENT = "name[:key=value,…]"

_BEFORE = (
    click.option(
        "--model",
        "models",
        multiple=True,
        required=True,
        help="Network: birds:NAME, torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER, open_clip:NAME, package.module:factory, "
        "path/file.py:factory, or a saved .safetensors. Repeatable.",
    ),
    click.option(
        "--weights",
        multiple=True,
        help="Weights: a local .pth or .safetensors, or a name of torchvision or open_clip; one per --model, in order; '' for the "
        "model's own.",
    ),
    click.option(
        "--head",
        "heads",
        multiple=True,
        help="Head that gives the logits; see `xattn list heads`. Repeatable. Default: that of a saved model, else gap.",
    ),
    click.option("--multi-label", is_flag=True, help="Outputs are independent labels: probabilities are sigmoids, not softmax."),
    click.option("--regression", is_flag=True, help="Outputs are values, not logits: only maps, and metrics of the map alone."),
    click.option("--stage", help="Module whose feature map is explained; default: the last map that the output depends on."),
    click.option(
        "--method",
        "methods",
        multiple=True,
        help=f"{COMPONENT}; see `xattn list methods`. Repeatable. Default: those of the run in the folder, else some CAMs and "
        f"controls; for score, controls.",
    ),
    click.option("--metric", "metrics", multiple=True, help=f"{COMPONENT}; see `xattn list metrics`. Repeatable, likewise."),
    click.option(
        "--target",
        help="What to explain: predicted, label, a class index or name; labels (every label of an image); or a contrast, such as "
        "'A - 0.6*B', 'predicted - second', 'label - predicted'. Default: label if labels are given, else predicted.",
    ),
    click.option(
        "--threshold",
        type=Number(0, 1),
        help="With --multi-label: lowest probability of a label that --target predicted explains, one row per label. Default: 0.5.",
    ),
    click.option(
        "--labels-csv",
        type=PathOrURL(exists=True, dir_okay=False),
        help="CSV with columns image (path relative to the folder) and label (class index, name or WordNet id; several separated by |; "
        "with --regression a number); metadata.csv of Hugging Face; lines of path and label (.txt); or ILSVRC's ground truth next "
        "to meta.mat.",
    ),
    click.option(
        "--labels-from",
        type=click.Choice(["folders", "csv", "none"]),
        help="Labels: names of the folders, a label file (--labels-csv or metadata.csv in the folder), or none. Default: whichever "
        "is present; folders only if all of their names are classes.",
    ),
    click.option(
        "--regions",
        type=PathOrURL(exists=True),
        help="Where the objects are, for metrics that need it: CSV with columns image, x0, y0, x1, y1 (edges of a box in pixels) "
        "and optionally label; COCO's JSON; a folder of VOC's XML; or a folder of mask images, named as the pictures.",
    ),
    click.option("--classes", type=LocalPath(exists=True, dir_okay=False), help=f"{TEXTS}."),
)
_AFTER = (
    click.option(
        "--out",
        required=True,
        type=PathOrURL(file_okay=False),
        help="Run folder, a path or a URL such as s3://bucket/run. A run in this folder is continued; methods and metrics that it "
        "lacks are added.",
    ),
    click.option("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one."),
    click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Images per part of the run."),
    click.option("--workers", type=click.IntRange(0, 1024), help="Decoding processes; default: one fewer than the cores."),
    click.option(
        "--depth",
        type=Integer,
        help="Bits used by the values of pictures with more than 8 bits, such as 12. Default: as the file says, else all bits of its type.",
    ),
    click.option(
        "--window",
        metavar="LOW,HIGH",
        callback=numbers,
        help="Values that are black and white in pictures with more than 8 bits, such as -160,240 (DICOM: after the rescale slope).",
    ),
    click.option("--max-pixels", type=click.IntRange(1), help="Pixels of the largest picture that is decoded. Default: 100,000,000."),
    click.option(
        "--level",
        type=click.Choice(["exact", "fast"]),
        default="exact",
        show_default=True,
        help="Precision: fast computes in half precision where that is faster, and the run reports how much its values differ.",
    ),
    click.option(
        "--tune",
        default="auto",
        show_default=True,
        help="Tuning of the forwards: off; auto, measured if the run is long enough; full; or by hand, chunk=16,folded=true,compiled=true.",
    ),
    click.option("--memory", help="Memory that the run may use in addition to the models, such as 2GB. Default: most of the free memory."),
    click.option("--seed", type=Integer, default=0, show_default=True, help="Seed for everything random."),
    click.option(
        "--until-decided",
        metavar="METRIC",
        help="Take pictures in a random order and stop when this metric has decided the order of every two methods, by confidence "
        "sequences that err in at most 5 % of runs, over all pairs.",
    ),
    click.option(
        "--margin",
        type=Number(0, min_open=True),
        help="With --until-decided: largest difference of the metric that does not matter; methods that are equivalent within it "
        "also count as decided.",
    ),
    click.option(
        "--shard",
        default="1/1",
        callback=shard,
        help="i/n: do only share i of n of the work, in a folder of its own; compare joins them.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="ray: run on the machines of a Ray cluster (from RAY_ADDRESS or `ray start`; without one, on this machine's cores).",
    ),
    click.option(
        "--actors", type=click.IntRange(1, 65536), help="Ray processes that hold the networks; default: one per GPU, else one per CPU."
    ),
    click.option(
        "--signed",
        is_flag=True,
        help="Keep evidence against the target: raw maps and figures show it; masks and metrics use the positive part.",
    ),
    click.option(
        "--dry-run", is_flag=True, help="Print what would run, the number of forwards and about how long they take; write nothing."
    ),
    click.option("--untrained", is_flag=True, help="Also explain heads that were never trained."),
    click.option(
        "--save-maps", is_flag=True, help="Also write masks at the crop's size, as 16-bit PNG, and keep maps of that size in full."
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options by which a command describes networks, methods, metrics, and how a run is made."""
    for option in reversed(_AFTER):
        command = option(command)
    command = model_options(command)
    for option in reversed(_BEFORE):
        command = option(command)
    return command
