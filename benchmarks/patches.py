"""Whether patches that are found without part labels contain the part that distinguishes two classes of SketchBirds.

    python benchmarks/patches.py            # writes results/patches.md; trains ProtoPNet's head for some minutes

Each of the first ten classes has a neighbour that differs from it in only one part. A patch finder has found that part if one of its boxes
contains at least half of the part's visible pixels.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pandas as pd
import torch
from claims import question, verdicts
from estimates import apart
from torch import Tensor

import xattn
from xattn.birds import PARTS, SketchBirds, masks
from xattn.birds.drawing import pixels
from xattn.metrics.statistics import proportion_interval
from xattn.patches import find
from xattn.training import fit
from xattn.training.recipe import PRESETS

RESULT = Path(__file__).parent / "results" / "patches.md"
PAIRED = 10  # classes 0 to 9; neighbours 2k and 2k+1 differ only in part k
SMALLEST = 12  # minimum number of visible pixels of a tested part
SMALLEST_HARD = 6  # the same on hard birds, whose parts are smaller
BOXES = 10
FINDERS = ("activation", "activation:stage=layer3", "representative", "prototype", "random")


@dataclass(frozen=True)
class Birds:
    """Test pictures of classes that have a neighbour.

    Attributes:
        images: `(B, 3, 64, 64)` in pixel space.
        labels: `(B,)`.
        parts: `(B, 64, 64)` bool, the visible pixels of the part in which the neighbour differs.
    """

    images: Tensor
    labels: Tensor
    parts: Tensor


def birds(count: int, *, hard: bool = False) -> Birds:
    """Returns the first test pictures of such classes whose part is visible."""
    return Birds(*map(torch.stack, zip(*_birds(count, hard), strict=True)))


def _birds(count: int, hard: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    data, left = SketchBirds("test", 100 * count, hard=hard), count
    for index, label in enumerate(data.targets):
        if label < PAIRED and left:
            scene = data.scene(index)
            part = masks(scene).visible[label // 2]
            if int(part.sum()) >= (SMALLEST_HARD if hard else SMALLEST):
                left -= 1
                yield pixels(scene).float() / 255, torch.tensor(label), part


def found_by(boxes: Tensor, parts: Tensor) -> Tensor:
    """Returns whether each box contains at least half of its picture's part: `(B, n)` bool."""
    inside = within(boxes, parts.shape[1:])
    held = (inside * parts[:, None]).sum(dim=(2, 3))
    return held >= parts.sum(dim=(1, 2))[:, None] / 2


def within(boxes: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Returns whether the centre of a pixel lies in a box: `(B, n, H, W)` bool."""
    y, x = (torch.arange(length) + 0.5 for length in size)
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    across = (x >= low[..., 0]) & (x < high[..., 0])
    down = (y >= low[..., 1]) & (y < high[..., 1])
    return down[..., :, None] & across[..., None, :]


def trained(pictures: int, epochs: int) -> tuple[xattn.Classifier, float]:
    """Trains ProtoPNet on the frozen network of birds:gap; returns it with its validation accuracy in percent."""
    torch.manual_seed(0)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", UserWarning)
        classifier = xattn.load("birds:gap", head="protopnet:push=5", classes=16, device="cpu")
        recipe = PRESETS["probe"].with_(epochs=epochs, lr=3e-3)
        out = Path(folder) / "protopnet.safetensors"
        fitted = fit(classifier, SketchBirds("train", pictures), out, recipe=recipe, workers=0, cache_features=Path(folder) / "features")
    return classifier, fitted.score


@click.command()
@click.option("--count", default=200, show_default=True, help="Test pictures.")
@click.option("--pictures", default=2000, show_default=True, help="Training pictures of ProtoPNet's head.")
@click.option("--epochs", default=60, show_default=True, help="Epochs of its training.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULT, show_default=True)
@click.option("--drawn", type=click.Path(path_type=Path), help="PNG to write, of the first pictures with the boxes of each finder.")
def main(count: int, pictures: int, epochs: int, out: Path, drawn: Path | None) -> None:
    """Measures recall of the part, and writes the page."""
    torch.set_num_threads(1)
    shown = birds(count)
    plain = xattn.load("birds:gap", device="cpu")
    prototypes, validation = trained(pictures, epochs)
    accuracy = 100 * float((prototypes.predict(shown.images).argmax(dim=1) == shown.labels).float().mean())
    rows, lines, boxes = [], [], {}
    hit: dict[tuple[str, int | None], Tensor] = {}
    for side in (16, 24, None):
        for finder in FINDERS if side else ("prototype",):
            network = prototypes if finder == "prototype" else plain
            at = torch.cat([find(network, some, finder, BOXES, side) for some in shown.images.split(50)])
            boxes[finder, side] = at
            hits = found_by(at, shown.parts)
            hit[finder, side] = hits.any(dim=1).float()
            covered = within(at, (64, 64)).any(dim=1).float().mean(dim=(1, 2))
            first = {n: 100 * hits[:, :n].any(dim=1).float() for n in (1, 3, BOXES)}
            rows.append(
                {
                    "finder": finder,
                    "side, pixels": side or "its own",
                    **{f"recall of {n}, % ↑": _share(values) for n, values in first.items()},
                    "picture covered, %": f"{100 * float(covered.mean()):.0f}",
                }
            )
    for (finder, side), values in hit.items():
        if finder != "random" and side:
            difference = apart(100 * values, 100 * hit["random", side])
            lines.append(question(f"{finder}, side {side}: do ten boxes hold the part more often than ten at random?", difference, 1))
    by_part = [
        {"part": part, "pictures": int(those.sum()), **{f: f"{100 * float(hit[f, 16][those].mean()):.0f}" for f in FINDERS}}
        for number, part in enumerate(PARTS)
        for those in [shown.labels // 2 == number]
    ]
    about = (
        f"{len(shown.images)} test birds of the kinds that have a neighbour which differs in one part alone. The part is found if one of "
        f"the first n boxes holds at least half of its visible pixels ({SMALLEST} or more). Pictures are 64 × 64; boxes are squares of one "
        "side, and of `prototype` also its own. Wilson's 95 % interval over birds. Features of `birds:gap`; `prototype` has "
        f"a head protopnet on the same frozen network, trained on {pictures} pictures for {epochs} epochs (validation accuracy "
        f"{validation:.1f} %, on these birds {accuracy:.1f} %), and takes the class that it predicts, never the label. Chen et al. "
        "train the network too, which takes longer: what this says of prototypes is of a frozen network, whose cells see nearly "
        "the whole picture."
    )
    text = [
        "# Do patches hold the part that tells two kinds apart?",
        about,
        "Made by `benchmarks/patches.py`.",
        pd.DataFrame(rows).to_markdown(index=False),
        verdicts(lines),
        "Recall of ten boxes of side 16 by part, %:",
        pd.DataFrame(by_part).to_markdown(index=False),
    ]
    out.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    click.echo(out.read_text(encoding="utf-8"))
    if drawn is not None:
        _draw(shown, boxes, drawn)


def _share(values: Tensor) -> str:
    found = proportion_interval(values, (0, 100))
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _draw(shown: Birds, boxes: dict[tuple[str, int | None], Tensor], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    keys = [key for key in boxes if key[1] != 24]
    figure = Figure(figsize=(2 * len(keys), 12))
    axes = figure.subplots(6, len(keys))
    for row, image in enumerate(shown.images[:6]):
        for axis, (finder, side) in zip(axes[row], keys, strict=True):
            axis.imshow(image.permute(1, 2, 0))
            axis.contour(shown.parts[row].float(), levels=[0.5], colors="white", linewidths=1)
            for x1, y1, x2, y2 in (boxes[finder, side][row] - 0.5).tolist():
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="red"))
            axis.set_axis_off()
            axis.set_title(f"{finder}\n{side or 'own'}", fontsize=7)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
