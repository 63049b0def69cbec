"""Writes pictures with several SketchBirds in the layout of PASCAL VOC.

    python benchmarks/birds_voc.py FOLDER [--train 2000] [--validation 400] [--seed 0]

Then: xattn train --task multi-label --model birds:gap --head gap --data voc:FOLDER --out net.safetensors
"""

from __future__ import annotations

from pathlib import Path

import click

from xattn.birds import export_voc


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--train", default=2000, show_default=True, type=click.IntRange(1), help="Pictures of the split train.")
@click.option("--validation", default=400, show_default=True, type=click.IntRange(1), help="Pictures of the split val.")
@click.option("--seed", default=0, show_default=True, help="Seed of the data set.")
def main(folder: Path, train: int, validation: int, seed: int) -> None:
    """Writes the pictures and their annotations to FOLDER."""
    click.echo(export_voc(folder, train=train, validation=validation, seed=seed))


if __name__ == "__main__":
    main()
