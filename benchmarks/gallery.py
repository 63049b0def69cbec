"""Draws every method on one photograph: writes benchmarks/results/gallery.png and its credit, for the documentation's page of methods."""

from __future__ import annotations

from pathlib import Path

import click
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch.nn import functional

import xattn
from xattn.data.images import ImageSource
from xattn.data.preprocessing import pixels
from xattn.explainers import Need, methods

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data"
PHOTOGRAPH = "16bbe588e0ecc6ab.jpg"
NETWORKS = {"mobilenet_v2": "torchvision:mobilenet_v2", "vit_tiny_patch16_224": "timm:vit_tiny_patch16_224"}
OF_HEADS = {"raw-attention"}
OF_LAYERS = {Need.LAYERS, Need.LAYER_GRADIENTS}
GIVEN = {"rise": "rise:masks=500"}  # fewer than the paper's, for time
COLUMNS = 8
SIDE = 0.95  # inches


@click.command()
@click.option("--data", type=click.Path(path_type=Path), envvar="XATTN_DATA", default=DATA)
@click.option("--photograph", default=PHOTOGRAPH, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "gallery.png")
def main(data: Path, photograph: str, out: Path) -> None:
    """Runs attention methods on a vision transformer, all others on MobileNetV2, and overlays the maps; nothing is chosen by hand."""
    names = [name for name, entry in sorted(methods.entries.items()) if name not in OF_HEADS and Need.STEPS not in entry.metadata.needs]
    follows = {name: bool(methods.entries[name].metadata.needs & OF_LAYERS) for name in names}
    asked = {network: [name for name in names if follows[name] == ("vit" in network)] for network in NETWORKS}
    found: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for network, chosen in asked.items():
        classifier = xattn.load(NETWORKS[network], weights=data / "weights" / f"{network}.pth")
        source = ImageSource([data / "photos" / photograph])
        image = pixels(source.decode(source.images[0], classifier.preprocessing)[1][None], classifier.device)
        chosen = [GIVEN.get(name, name) for name in chosen]
        maps = xattn.explain(classifier, image, chosen, batch_size=1)
        title = f"{network}: {classifier.labels[int(maps.targets[0])]}"
        found.append((title, image[0], torch.zeros(image.shape[-2:])))
        found += [(name, image[0], maps[name][0]) for name in chosen]
    rows = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * SIDE, rows * (SIDE + 0.16)), dpi=160, layout="constrained")
    axes = figure.subplots(rows, COLUMNS).flatten()
    for place, axis in enumerate(axes):
        axis.set_axis_off()
        if place >= len(found):
            continue
        title, image, mask = found[place]
        if bool(mask.any()):
            colours = torch.tensor(colormaps["inferno"].resampled(256).colors)[:, :3].float()  # type: ignore[attr-defined]
            over = colours[(mask * 255).round().long()].permute(2, 0, 1)
            grey = image.mean(dim=0, keepdim=True).expand(3, -1, -1)
            image = 0.45 * grey + 0.55 * over
        axis.imshow(functional.interpolate(image[None], size=(160, 160), mode="bilinear", antialias=True)[0].clamp(0, 1).permute(1, 2, 0))
        axis.set_title(title.replace(": ", "\n") if place == 0 or not bool(found[place][2].any()) else title, fontsize=6, pad=2)
    figure.savefig(out, metadata={"Software": None})
    about = pd.read_csv(data / "photos.csv").set_index("image").loc[photograph]
    credit = f"Photograph in {out.name}, CC BY 2.0 ({about['licence']}): {about['name']}, by {about['author']}, {about['source_page']}\n"
    out.with_name(f"{out.stem}-credit.md").write_text(credit, encoding="utf-8")
    click.echo(out, err=True)


if __name__ == "__main__":
    main()
