"""Savings by cached features: CPU seconds of training one stream normally, and of training many on the same frozen network.

    python benchmarks/kept_features.py DATA WORK [--streams 20] [--per-class 12] [--epochs 20]

DATA has `weights/mobilenet_v2.pth` and `imagenette/`, see CONTRIBUTING.md. WORK must be new: existing results would not be trained again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from measure import conditions
from photograph_streams import PhotographStreams
from safetensors.torch import load_file

from xattn.training import fit

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
    streams_of = PhotographStreams(data, work, range(streams), per_class, epochs, 1)
    usual = _seconds(lambda: _alone(streams_of, 0, "usual", None))
    many = [_seconds(lambda seed=seed: _alone(streams_of, seed, "kept", work / "features-alone")) for seed in range(streams)]
    at_once = _seconds(streams_of.trained)
    last = f"ca-stream-{per_class}-{epochs}"
    apart = max(_apart(work / f"kept-{seed}.safetensors", work / f"{last}-{seed}.safetensors") for seed in range(streams))
    about = conditions(torch.device("cpu"))
    text = [
        "# Streams on kept features",
        f"CPU seconds of training a Cross-Attention Stream beside MobileNetV2, frozen, on {10 * per_class} photographs of imagenette for "
        f"{epochs} epochs: as usual, each epoch through the network; with `--cache-features`, by which the network sees each "
        "photograph once for all streams; and with `--seeds`, too, by which each step reads the features of its photographs once for all "
        "streams.",
        "| | streams | CPU seconds |\n|---|---:|---:|\n"
        f"| as usual | 1 | {usual:.1f} |\n"
        f"| kept features, the first, which computes them | 1 | {many[0]:.1f} |\n"
        f"| kept features, each further one, mean | 1 | {sum(many[1:]) / len(many[1:]):.1f} |\n"
        f"| kept features, one after the other | {streams} | {sum(many):.1f} |\n"
        f"| kept features, at once | {streams} | {at_once:.1f} |",
        f"{streams} streams at once take {at_once / usual:.2f} times the CPU time of one trained as usual; one after the other, "
        f"{sum(many) / usual:.2f} times. Weights of the same seed, trained alone and at once, differ by at most {apart:.1g}.",
        f"`{about['command']}` on {about['date']}, {about['processor']}, 1 thread, load {about['load']:.1f}; torch "
        f"{about['versions']['torch']}.",
    ]
    out.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    click.echo(out.read_text(encoding="utf-8"))


def _alone(streams: PhotographStreams, seed: int, name: str, features: Path | None) -> None:
    """Trains one stream, from the weights that it has among several and in their order of the pictures."""
    classifier = streams.loaded("ca-stream")
    classifier.head.load_state_dict(classifier.new_head(seed).state_dict())
    out = streams.work / f"{name}-{seed}.safetensors"
    fit(classifier, str(streams.table_of_pictures()), out, recipe=streams.recipe(), workers=0, cache_features=features)


def _apart(one: Path, other: Path) -> float:
    """Returns the largest difference between the weights of two files."""
    weights = load_file(other)
    return max(float((tensor - weights[name]).abs().max()) for name, tensor in load_file(one).items())


def _seconds(run: Callable[[], object]) -> float:
    """Returns the CPU seconds of a training, including loading the network."""
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
