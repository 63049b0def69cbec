"""What fine-tuning with deleted patches does on SketchBirds: accuracy without a patch, and the single-deletion score of maps.

    python benchmarks/single_deletion.py runs/idsds                # writes results/single-deletion.md; minutes on two cores

birds:gap as shipped, and fine-tuned by the preset idsds (Hesse et al. 2024) in a few epochs. Accuracy is of test birds of which one patch
of a 4 × 4 grid shows the mean colour, over all 16 patches.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from claims import cell, page, question
from torch import Tensor
from train_birds import birds

import xattn
from xattn.birds import SketchBirds, pixels
from xattn.metrics.removals import grid_patches
from xattn.metrics.statistics import paired
from xattn.training import fit
from xattn.training.recipe import PRESETS

RESULT = Path(__file__).parent / "results" / "single-deletion.md"
METHODS = ["grad-cam", "grad-cam:signed=true", "layer-cam", "integrated-gradients", "smooth-grad", "occlusion", "random", "centre", "edges"]
BATCH = 100


def test_birds(count: int) -> tuple[Tensor, Tensor]:
    """Images `(N, 3, H, W)` in [0, 1] of the test split, and their classes."""
    data = SketchBirds("test", count)
    images = torch.stack([pixels(data.scene(number)) for number in range(count)])
    return images.float() / 255, torch.tensor(data.targets[:count])


def recognised(classifier: xattn.Classifier, images: Tensor, classes: Tensor) -> Tensor:
    """Whether each image is recognised, `(N,)` float."""
    predicted = torch.cat([classifier.predict(some).argmax(1).cpu() for some in images.split(BATCH)])
    return (predicted == classes).float()


def recognised_without(classifier: xattn.Classifier, images: Tensor, classes: Tensor, grid: int = 4) -> Tensor:
    """The share of the patches without which each image is recognised, `(N,)`."""
    patches = grid_patches((images.shape[2], images.shape[3]), grid)
    colour = classifier.mean.cpu().view(1, 3, 1, 1)
    without = [recognised(classifier, torch.where(patches == patch, colour, images), classes) for patch in range(grid**2)]
    return torch.stack(without).mean(dim=0)


def scores(classifier: xattn.Classifier, images: Tensor) -> dict[str, Tensor]:
    """The single-deletion score of each method, by image."""
    maps = xattn.explain(classifier, images, METHODS)
    rows = xattn.evaluate(classifier, images, maps, ["idsds"])
    return {method: torch.tensor(rows[rows["method"] == method]["value"].to_numpy()) for method in METHODS}


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--count", default=2000, show_default=True, help="Training birds.")
@click.option("--epochs", default=3, show_default=True, help="Of fine-tuning.")
@click.option("--tested", default=300, show_default=True, help="Birds that accuracy is of.")
@click.option("--explained", default=50, show_default=True, help="Birds that are explained.")
@click.option("--threads", default=2, show_default=True)
def main(work: Path, count: int, epochs: int, tested: int, explained: int, threads: int) -> None:
    """Fine-tunes in WORK, and writes the page."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    recipe = replace(PRESETS["idsds"], epochs=epochs, batch_size=32, step=max(1, epochs // 3), smallest_crop=None)
    tuned = xattn.load("birds:gap")
    fit(tuned, birds(count), work / "gap.safetensors", recipe=recipe, workers=0)
    before = xattn.load("birds:gap")
    images, classes = test_birds(tested)
    rows, lines, found = [], [], {}
    for name, classifier in {"birds:gap": before, "fine-tuned": tuned}.items():
        whole, without = (100 * share(classifier, images, classes) for share in (recognised, recognised_without))
        found[name] = {"loss": whole - without} | scores(classifier, images[:explained])
        row: dict[str, Any] = {"network": name, "accuracy, %": cell(whole, 1), "without a patch, %": cell(without, 1)}
        row["lost, points ↓"] = cell(whole - without, 1)
        rows.append(row | {f"IDSDS ↑ {method}": cell(found[name][method]) for method in METHODS})
    lost = paired(found["birds:gap"]["loss"], found["fine-tuned"]["loss"]).difference
    lines.append(question("does fine-tuning lower what a deleted patch costs?", lost, 1))
    table = pd.DataFrame(rows).set_index("network").T.rename_axis("").reset_index()
    about = [
        f"`birds:gap`, and the same fine-tuned by preset `idsds` for {epochs} epochs on {count} birds, in batches of 32 and without crops. "
        f"Accuracy is of {tested} test birds; IDSDS (`xattn list metrics`) of the maps of {explained} of them. Mean ± 95 % interval.",
        "The score of a network that never saw a deleted patch is of a network outside its domain: read its column as the single-deletion "
        "score, the other as the in-domain one.",
        "Made by `benchmarks/single_deletion.py`.",
    ]
    RESULT.write_text(page("Deleted patches, and fine-tuning with them", about, table, lines), encoding="utf-8")
    click.echo(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
