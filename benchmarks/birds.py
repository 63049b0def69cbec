"""Drawing speed of SketchBirds, and sheets of example pictures.

    python benchmarks/birds.py [--out benchmarks/results/papers]

Writes `speed.md`, pictures per second of a DataLoader with one and two worker processes as median and range over repeats; a sheet of test
birds, two of each kind in the order of the classes; and one of birds with the cues of their kinds.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import PILToTensor

from xattn.birds import CLASSES, SketchBirds
from xattn.birds.drawing import SIDE

REPEATS, COUNT, ENLARGED = 5, 2000, 2


def rate(workers: int) -> list[float]:
    """Returns pictures per second of each repeat; starting the workers is not counted."""
    found = []
    for seed in range(REPEATS):
        data = SketchBirds("train", COUNT, seed=seed, transform=PILToTensor())
        batches = iter(DataLoader(data, 50, num_workers=workers))
        next(batches)
        began = time.perf_counter()
        count = sum(len(labels) for _, labels in batches)
        found.append(count / (time.perf_counter() - began))
    return sorted(found)


def sheet(data: SketchBirds) -> Image.Image:
    """Arranges all pictures, those of one class below each other."""
    across = len(CLASSES)
    size = SIDE * ENLARGED
    made = Image.new("RGB", (across * size, -(-len(data) // across) * size))
    for number in range(len(data)):
        picture = data[number][0].resize((size, size), Image.Resampling.NEAREST)
        made.paste(picture, (number % across * size, number // across * size))
    return made


@click.command()
@click.option("--out", default=Path(__file__).parent / "results" / "papers", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Measures, and writes the sheets into OUT."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    lines = ["| workers | pictures per second, median [lowest, highest] |", "|---|---|"]
    for workers in (1, 2):
        found = rate(workers)
        lines.append(f"| {workers} | {found[len(found) // 2]:.0f} [{found[0]:.0f}, {found[-1]:.0f}] |")
    text = f"# Drawing SketchBirds on {os.cpu_count()} cores, {REPEATS} × {COUNT} pictures\n\n" + "\n".join(lines) + "\n"
    (out / "speed.md").write_text(text, encoding="utf-8")
    click.echo(text)
    sheet(SketchBirds("test", 2 * len(CLASSES))).save(out / "birds.png")
    sheet(SketchBirds("test", len(CLASSES), spurious=1.0)).save(out / "birds-with-cues.png")


if __name__ == "__main__":
    main()
