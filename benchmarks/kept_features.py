"""Savings by cached features: CPU seconds of training one stream normally, and of training many on the same frozen network.

    python benchmarks/kept_features.py DATA WORK [--streams 20] [--per-class 12] [--epochs 20]

DATA has `weights/mobilenet_v2.pth` and `imagenette/`, see CONTRIBUTING.md. WORK must be new: existing results would not be trained again.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch
from measure import conditions
from photograph_streams import PhotographStreams
from safetensors.torch import load_file

RESULTS = Path(__file__).parent / "results"


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--streams", default=20, show_default=True, help="Trained on kept features.")
@click.option("--per-class", default=12, show_default=True, help="Training pictures of each of ten classes.")
@click.option("--epochs", default=20, show_default=True, help="Of each stream.")
@click.option("--out", default=RESULTS / "kept-features.md", type=click.Path(path_type=Path))
def main(data: Path, work: Path, streams: int, per_class: int, epochs: int, out: Path) -> None:
    """Measures both in WORK, and writes OUT."""
    if work.exists():
        raise click.ClickException(f"{work} exists: give a new folder, so that everything is trained.")
    torch.set_num_threads(1)
    usual = PhotographStreams(data, work / "usual", [0], per_class, epochs, 1, keep=False)
    kept = PhotographStreams(data, work / "kept", range(streams), per_class, epochs, 1)
    alone = _seconds(usual, 0)
    many = [_seconds(kept, seed) for seed in range(streams)]
    one, same = (load_file(next(folder.glob("*-0.safetensors"))) for folder in (usual.work, kept.work))
    apart = max(float((one[name] - same[name]).abs().max()) for name in one)
    about = conditions(torch.device("cpu"))
    text = [
        "# Streams on kept features",
        f"CPU seconds of training a Cross-Attention Stream beside MobileNetV2, frozen, on {10 * per_class} photographs of imagenette for "
        f"{epochs} epochs: as usual, each epoch through the network, and with `--cache-features`, by which the network sees each "
        "photograph once for all streams.",
        "| | streams | CPU seconds |\n|---|---:|---:|\n"
        f"| as usual | 1 | {alone:.1f} |\n"
        f"| kept features, the first, which computes them | 1 | {many[0]:.1f} |\n"
        f"| kept features, each further one, mean | 1 | {sum(many[1:]) / len(many[1:]):.1f} |\n"
        f"| kept features, all | {streams} | {sum(many):.1f} |",
        f"{streams} streams take {sum(many) / alone:.2f} times the CPU time of one trained as usual, which makes each of them "
        f"{streams * alone / sum(many):.1f} times as fast. Weights of the same seed differ by at most {apart:.1g}.",
        f"`{about['command']}` on {about['date']}, {about['processor']}, 1 thread, load {about['load']:.1f}; torch "
        f"{about['versions']['torch']}.",
    ]
    out.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    click.echo(out.read_text(encoding="utf-8"))


def _seconds(of: PhotographStreams, seed: int) -> float:
    """Returns the CPU seconds of one training, including loading the network."""
    start = time.process_time()
    of.trained(seed)
    return time.process_time() - start


if __name__ == "__main__":
    main()
