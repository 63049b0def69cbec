"""Whether fine-tuning with deleted patches makes deletion in-domain, and the methods' single-deletion scores afterwards.

    python benchmarks/idsds.py WORK                                # writes results/idsds.md; minutes on one core

Networks: birds:gap-spurious as shipped, which uses a cue next to the bird; the same fine-tuned with preset idsds (Hesse et al. 2024), in
fewer epochs, on birds with their cue; and the same without deleted patches, to separate the effect of further training from that of the
deleted patches.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import click
import pandas as pd
import torch
from claims import cell, page, question
from estimates import Estimate, apart
from torch import Tensor
from train_birds import birds
from trained import answered, pictures

import xattn
from xattn.birds import SketchBirds
from xattn.metrics.removals import grid_patches
from xattn.training import PRESETS, fit

RESULT = Path(__file__).parent / "results" / "idsds.md"
METHODS = [
    "activation-map",
    "grad-cam",
    "layer-cam",
    "integrated-gradients",
    "occlusion:window=16,stride=16",
    "random",
    "centre",
    "edges",
]
CONTROLS = ("random", "centre", "edges")
BATCH = 100
CUES = 1.0  # share of the birds whose cue is that of their class
ACCURACY, ENTROPY = "accuracy without a patch, %", "cross-entropy without a patch"
SHIPPED, DELETED, WHOLE = "birds:gap-spurious", "fine-tuned, deleted patches", "fine-tuned, whole birds"
Values = dict[str, Tensor]
"""Numbers of birds, by measurement."""


def answers(classifier: xattn.Classifier, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns whether each image is recognised, in percent, and the cross-entropy of its class: `(N,)` each."""
    recognised, entropy = answered(torch.cat([classifier.predict(some).cpu() for some in images.split(BATCH)]), classes).T
    return 100 * recognised, entropy


def measured(classifier: xattn.Classifier, images: Tensor, classes: Tensor, explained: int, grid: int = 4) -> Values:
    """Measures accuracy on whole birds and on birds without a patch, averaged over all patches of a bird; and the score of each method."""
    patches = grid_patches((images.shape[2], images.shape[3]), grid)
    colour = classifier.mean.cpu().view(1, 3, 1, 1)
    found = dict(zip(("accuracy, %", "cross-entropy"), answers(classifier, images, classes), strict=True))
    deleted = [answers(classifier, torch.where(patches == patch, colour, images), classes) for patch in range(grid**2)]
    for name, values in zip((ACCURACY, ENTROPY), zip(*deleted, strict=True), strict=True):
        found[name] = torch.stack(values).mean(dim=0)
    maps = xattn.explain(classifier, images[:explained], METHODS, target="label", labels=classes[:explained].tolist())
    rows = xattn.evaluate(classifier, images[:explained], maps, ["idsds"])
    return found | {f"IDSDS, {method}": torch.tensor(rows[rows["method"] == method]["value"].to_numpy()) for method in METHODS}


def interval(found: Estimate, digits: int) -> str:
    """Formats a difference with its 95 % interval."""
    return f"{found.mean:+.{digits}f} [{found.mean - found.half:+.{digits}f}, {found.mean + found.half:+.{digits}f}]"


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--count", default=800, show_default=True, help="Training birds.")
@click.option("--epochs", default=2, show_default=True, help="Of fine-tuning.")
@click.option("--lr", default=1e-2, show_default=True, help="Learning rate of the first third; higher than the preset's, as steps are few.")
@click.option("--tested", default=200, show_default=True, help="Birds that answers are of.")
@click.option("--explained", default=40, show_default=True, help="Birds that are explained.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULT)
def main(work: Path, count: int, epochs: int, lr: float, tested: int, explained: int, threads: int, out: Path) -> None:
    """Fine-tunes in WORK, and writes the page."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    preset = replace(PRESETS["idsds"], epochs=epochs, batch_size=32, lr=lr, step=math.ceil(epochs / 3), smallest_crop=None)
    recipes = {DELETED: preset, WHOLE: replace(preset, deletion_grid=None)}
    images, classes = pictures(SketchBirds("test", tested, spurious=CUES))
    found = {SHIPPED: measured(xattn.load(SHIPPED), images, classes, explained)}
    for number, (name, recipe) in enumerate(recipes.items()):
        classifier = xattn.load(SHIPPED)
        fit(classifier, birds(count, CUES), work / f"{number}.safetensors", recipe=recipe, workers=0)
        found[name] = measured(classifier, images, classes, explained)
    before, after, whole = found.values()
    rows = []
    for what in before:
        digits = 1 if "%" in what else 3
        gained = interval(apart(after[what], before[what]), digits)
        rows.append(
            {"": what} | {name: cell(values[what], digits) for name, values in found.items()} | {"deleted − shipped [95 %]": gained}
        )
    asked = [
        question("do deleted patches in training raise the accuracy without a patch?", apart(after[ACCURACY], before[ACCURACY]), 1),
        question("do they more than as much training on whole birds?", apart(after[ACCURACY], whole[ACCURACY]), 1),
        question("is the cross-entropy without a patch higher as shipped?", apart(before[ENTROPY], after[ENTROPY]), 3),
        question("is it higher after training on whole birds?", apart(whole[ENTROPY], after[ENTROPY]), 3),
        *(
            question(f"in domain, does {method} score more than random?", apart(after[f"IDSDS, {method}"], after["IDSDS, random"]))
            for method in METHODS
            if method not in CONTROLS
        ),
    ]
    about = [
        "`birds:gap-spurious`, which reads a cue beside the bird, and loses it with its patch; the same fine-tuned by preset `idsds` for "
        f"{epochs} epochs on {count} birds with their cue, in batches of 32, without crops and with a learning rate of {lr:g}, as the "
        f"steps are few; and by the same training without deleted patches. One network each. Answers are to {tested} test birds with their "
        "cue, whole and without one patch of a 4 × 4 grid, which shows the mean colour: the mean over all 16 patches of a bird. IDSDS "
        f"(`xattn list metrics`) is of the maps of {explained} of them for their label. Mean ± half of the 95 % interval; differences are "
        "paired by bird.",
        "The score of a network that never saw a deleted patch is the single-deletion score: read its column so, and the second as the "
        "in-domain score.",
        "Made by `python benchmarks/idsds.py WORK`.",
    ]
    out.write_text(page("Deleted patches, in domain", about, pd.DataFrame(rows), asked), encoding="utf-8")
    click.echo(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
