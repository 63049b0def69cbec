"""Trains the shipped classifiers from random weights, and writes them to where `xattn.load("birds:…")` finds them.

    python benchmarks/train_birds.py runs/box

Trains on a GPU if there is one: birds:vit needs minutes there, hours on two cores. An interrupted run resumes. Accuracies of the shipped
files on the test split are printed and written next to them.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

import xattn
from xattn.birds import CLASSES, SketchBirds
from xattn.birds.pretrained import FOLDER, NETWORKS
from xattn.training import Recipe, fit, open_data
from xattn.training.data import Labelled

FULL = Recipe(backbone=True, epochs=6, batch_size=64, lr=2e-3, weight_decay=0.02, smallest_crop=None)
TUNED = FULL.with_(epochs=2, lr=5e-4)
ALONE = replace(FULL, backbone=False, epochs=4, lr=3e-3)
PLAN: dict[str, dict[str, Any]] = {
    "gap": {"recipe": FULL},
    "vit": {"recipe": FULL.with_(epochs=50, batch_size=256, lr=1e-3, weight_decay=0.05), "count": 60_000},
    "ca-stream": {"head": "ca-stream", "recipe": ALONE},
    "vit-ca-stream": {"head": "ca-stream", "on": "vit", "recipe": ALONE},
    "br-npa": {"head": "br-npa", "recipe": TUNED},
    "b-cnn": {"head": "b-cnn", "recipe": TUNED.with_(lr=1e-3)},
    "br-npa-high-res": {"head": "br-npa", "high_res": ["layer3", "layer4"], "teacher": "br-npa", "recipe": TUNED.with_(epochs=1)},
    "gap-spurious": {"recipe": FULL.with_(epochs=2), "spurious": 1.0},
}
TEST = 1600


class Drawn(SketchBirds):
    """Pictures that are drawn once and kept in memory.

    Args:
        workers: additional processes that draw.
    """

    def __init__(self, *args: Any, workers: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        batches = DataLoader(SketchBirds(*args, **options), 100, num_workers=workers, collate_fn=list)
        self.drawn: list[tuple[Any, int]] = [item for batch in batches for item in batch]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.drawn[index]


@cache
def birds(count: int, spurious: float | None = None, workers: int = 0) -> Labelled:
    """Returns training pictures, and complete birds for validation: 800, or at most as many as for training."""
    return replace(
        open_data(Drawn("train", count, spurious=spurious, workers=workers)),
        validation=open_data(Drawn("validation", min(800, count), spurious=spurious, workers=workers)),
    )


def begun(name: str) -> xattn.Classifier:
    """Returns the start of a training: random weights, or a shipped network."""
    plan = PLAN[name]
    torch.manual_seed(0)
    if "head" not in plan:
        fresh = NETWORKS.get(f"birds:{name}", NETWORKS["birds:gap"])
        return xattn.load(fresh, input_size=64, resize=64, labels=list(CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # b-cnn's classifier has new weights, as intended
        return xattn.load(f"birds:{plan.get('on', 'gap')}", head=plan["head"], high_res=plan.get("high_res", ()))


def ship(trained: Path, shipped: Path) -> None:
    """Writes the file with its weights in half precision."""
    with safe_open(trained, framework="pt") as opened:
        header = opened.metadata()
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in load_file(trained).items()}
    save_file(tensors, shipped, metadata=header)
    shipped.chmod(0o644)


def accuracy(classifier: xattn.Classifier, spurious: float | None = None, count: int = TEST) -> float:
    """Returns the accuracy on the test split, in percent."""
    data = SketchBirds("test", count, spurious=spurious)
    right = 0
    for start in range(0, count, 100):
        images = torch.stack([xattn.birds.pixels(data.scene(number)) for number in range(start, min(count, start + 100))])
        found = classifier.predict(images.to(classifier.device).float() / 255).argmax(1).cpu()
        right += int((found == torch.tensor(data.targets[start : start + 100])).sum())
    return 100 * right / count


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(list(PLAN)))
@click.option("--count", type=int, help="Training pictures.  [default: as shipped, 20000 or more]")
@click.option("--threads", default=2, show_default=True, help="Of torch on the CPU.")
@click.option("--workers", default=0, show_default=True, help="Processes beside it that make the batches.")
def main(out: Path, only: tuple[str, ...], count: int | None, threads: int, workers: int) -> None:
    """Trains in OUT, and writes the shipped files."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    for name in only or PLAN:
        plan = PLAN[name]
        file = out / f"{name}.safetensors"
        classifier = begun(name)
        teacher = xattn.load(f"birds:{plan['teacher']}") if "teacher" in plan else None
        if teacher is not None:
            classifier.start_from(teacher)
        spurious = plan.get("spurious")
        data = birds(count or plan.get("count", 20_000), spurious, workers)
        fit(classifier, data, file, recipe=plan["recipe"], teacher=teacher, workers=workers, precision="bf16-mixed")
        ship(file, FOLDER / file.name)
        record(name, spurious)


def record(name: str, spurious: float | None) -> None:
    """Writes the accuracy of a shipped file next to it."""
    path = FOLDER / "accuracy.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    classifier = xattn.load(f"birds:{name}")
    found = {f"birds:{name}": accuracy(classifier)}
    if spurious is not None:
        found[f"birds:{name}, with the cue of its class beside each bird"] = accuracy(classifier, 1.0)
    known |= found
    path.write_text(json.dumps(known, indent=1) + "\n")
    for called, share in found.items():
        click.echo(f"{called}: {share:.2f} % of {TEST} test birds")


if __name__ == "__main__":
    main()
