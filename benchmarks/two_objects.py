"""Whether maps distinguish two objects: two photographs side by side, explained for the class of each.

    python benchmarks/two_objects.py path/to/data            # photos, photos.csv, weights; writes results/two-objects.md

As in the grid pointing game (Böhle et al. 2021): the share of each map's energy in the half that shows the target class. A method that
ignores the class scores 50 % regardless of its maps.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from claims import cell, page, question
from estimates import apart
from torch import Tensor

import xattn
from xattn.birds import share_inside
from xattn.data.images import read_picture
from xattn.explainers import Need, methods

RESULT = Path(__file__).parent / "results" / "two-objects.md"
NETWORKS: dict[str, dict[str, Any]] = {
    "timm:vit_tiny_patch16_224": {"weights": "vit_tiny_patch16_224.pth", "mean": [0.5], "std": [0.5], "resize": 248},
    "torchvision:mobilenet_v2": {"weights": "mobilenet_v2.pth"},
}
CAMS = ["grad-cam", "grad-cam++", "layer-cam", "xgrad-cam", "activation-map", "integrated-gradients", "smooth-grad"]
OF_LAYERS = sorted(name for name, entry in methods.entries.items() if Need.LAYERS in entry.metadata.needs)
BATCH = 10


def side_by_side(clf: xattn.Classifier, data: Path, pairs: int) -> tuple[Tensor, Tensor]:
    """Returns images `(P, 3, H, W)` of the middle halves of two photographs each, the most confident ones, and classes `(P, 2)`."""
    table = pd.read_csv(data / "photos.csv")
    crops = torch.stack([clf.preprocessing.crop(read_picture(data / "photos" / name)) for name in table["image"]])
    labels = torch.tensor(table["label"].to_numpy())
    width = crops.shape[-1]
    halves = crops[..., width // 4 : width // 4 + width // 2]
    alone = torch.nn.functional.pad(halves, (width // 4, width // 4))  # as wide as the network's input
    sure = torch.cat([clf.predict(some.float() / 255).softmax(dim=1).cpu() for some in alone.split(BATCH)]).gather(1, labels[:, None])[:, 0]
    chosen = sure.argsort(descending=True)[: 2 * pairs]
    left, right = chosen[::2], chosen[1::2]
    different = labels[left] != labels[right]
    left, right = left[different], right[different]
    return torch.cat([halves[left], halves[right]], dim=-1).float() / 255, torch.stack([labels[left], labels[right]], dim=1)


def shares(clf: xattn.Classifier, images: Tensor, classes: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Returns for each method the share of energy in the target class's half, `(P,)`, averaged over both classes."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    half = images.shape[-1] // 2
    for some, wanted in zip(images.split(BATCH), classes.split(BATCH), strict=True):
        both = []
        for side in range(2):
            inside = torch.zeros(len(some), *some.shape[-2:], dtype=torch.bool)
            inside[..., side * half : (side + 1) * half] = True
            maps = xattn.explain(clf, some, names, target=wanted[:, side])
            both.append({name: share_inside(maps[name].cpu(), inside) for name in names})
        for name in names:
            found[name].append((both[0][name] + both[1][name]) / 2)
    return {name: torch.cat(each) for name, each in found.items()}


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--pairs", default=100, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(data: Path, pairs: int, threads: int) -> None:
    """Measures on DATA, and writes the page."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", UserWarning)
    rows, lines = [], []
    for model, options in NETWORKS.items():
        given = {**options, "weights": data / "weights" / options["weights"]}
        clf = xattn.load(model, input_size=224, **given)
        images, classes = side_by_side(clf, data, pairs)
        names = [*CAMS, *(OF_LAYERS if model.startswith("timm:vit") else []), "random", "centre", "edges"]
        found = {name: 100 * values for name, values in shares(clf, images, classes, names).items()}
        for name, values in found.items():
            free = bool((values - 50).abs().max() < 1e-6)  # its maps for both classes are the same
            rows.append(
                {
                    "network": model,
                    "method": name,
                    "energy in the class's half, % ↑": cell(values, 1),
                    "asks for a class": "no" if free else "",
                }
            )
            if not free and name != "grad-cam":
                text = f"{model}: does {name} tell the two apart better than grad-cam?"
                lines.append(question(text, apart(values.nan_to_num(50), found["grad-cam"].nan_to_num(50), "pairs"), 1))
    about = [
        f"Two photographs side by side, the middle half of each; {pairs} pairs or fewer of those that the network is surest of. Each is "
        "explained for both classes. Mean ± 95 % interval over the pairs of the share of the mask's energy that lies in the half of the "
        "class asked for. By chance, and for a method that asks for no class: 50 %. In the questions a blank map counts as 50 %.",
        "Made by `benchmarks/two_objects.py`.",
    ]
    RESULT.write_text(page("Do maps tell two objects apart?", about, pd.DataFrame(rows), lines), encoding="utf-8")
    click.echo(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
