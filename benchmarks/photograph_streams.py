"""Streams of several seeds on one MobileNetV2 for photographs, trained at once on its features, which are computed once and cached.

    python benchmarks/photograph_streams.py DATA WORK [--seeds 20] [--per-class 24] [--explained 5]

DATA has `weights/mobilenet_v2.pth` and `imagenette/`, see CONTRIBUTING.md. Writes a table with one line per claim; work in WORK resumes.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import click
import pandas as pd
import torch
from claims import Claim, Line, cell, claim, page, question
from confidence import confidence, logits_of, matching, scores_at
from estimates import apart
from printed import CA_TABLE_1
from torch import Tensor
from trained import answered, by_net

import xattn
from xattn.data.images import ImageSource
from xattn.training import PRESETS, Recipe, fit_seeds
from xattn.training.seeds import path_of

METHODS = ("grad-cam", "raw-attention")
METRICS = {"AD ↓": "average-drop", "AG ↑": "average-gain", "AI ↑": "average-increase"}
HEADS = ("gap", "ca-stream")


class PhotographStreams:
    """Makes the page from one folder of work.

    Args:
        data: real networks and photographs.
        work: where features, streams and scores are stored.
        seeds: seeds of the streams.
        per_class: training pictures per class.
        epochs: training epochs.
        explained: pictures per class that are explained; five times as many others are used to match the confidences.
    """

    def __init__(self, data: Path, work: Path, seeds: Sequence[int], per_class: int, epochs: int, explained: int) -> None:
        self.data = data
        self.work = work
        self.seeds = seeds
        self.per_class = per_class
        self.epochs = epochs
        self.explained = explained
        rows = csv.DictReader((data / "imagenet_classes.csv").read_text(encoding="utf-8").splitlines())
        self.index = {row["wnid"]: row["index"] for row in rows}

    def text(self) -> str:
        """Writes the page."""
        plain = self.loaded("gap")
        streams = self.trained()
        shown, labels = self.pictures(plain, 0, self.explained)
        others, answers = self.pictures(plain, self.explained, 5 * self.explained)
        logits = {net.name: logits_of(net, others) for net in (plain, *streams)}
        sure = {name: confidence(each, answers) for name, each in logits.items()}
        temperatures = {name: matching(each, answers, min(sure.values())) for name, each in logits.items()}
        by_head = {"gap": [plain], "ca-stream": streams}
        frames = {head: self.scores(nets, shown, labels, temperatures) for head, nets in by_head.items()}
        answered_of = {head: torch.stack([answered(logits[net.name], answers) for net in nets]) for head, nets in by_head.items()}
        of_streams = [sure[net.name] for net in streams]
        about = [
            f"MobileNetV2 with ImageNet's weights, and {len(streams)} streams beside it, which differ in their seed: preset probe, "
            f"{self.epochs} epochs of {self.per_class} photographs of each of imagenette's ten classes, on features that are computed "
            "once. No setting was searched. Classes are ImageNet's 1000, of which the streams saw ten: they learn which ten occur, the "
            "network did not, so that accuracies do not compare the poolings.",
            f"n = {len(shown)} photographs of imagenette/val, explained for their labels. ± is half of the 95 % interval: of the streams "
            "over seeds × photographs, of the network, which is one, over photographs.",
            f"At matched confidence, logits are divided by the temperature ({min(temperatures.values()):.2f} to "
            f"{max(temperatures.values()):.2f}) at which their mean probability of the label, on {len(others)} other photographs, is that "
            f"of the least sure classifier; it is {sure[plain.name]:.3f} of the network, {min(of_streams):.3f} to {max(of_streams):.3f} "
            "of the streams. Maps stay as they are.",
            f"On these {len(others)}: "
            + "; ".join(
                f"{head} accuracy {cell(100 * of[..., 0], 1)} %, cross-entropy {cell(of[..., 1], 3)} nats"
                for head, of in answered_of.items()
            )
            + ".",
        ]
        return page(f"CA-Stream on photographs: {len(streams)} seeds", about, self.table(frames), self.claims(frames))

    def table(self, frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
        """Makes one row per head, method and temperature."""
        rows: list[Line] = []
        for method in METHODS:
            for matched, head in product((False, True), HEADS if method != "raw-attention" else HEADS[1:]):
                cells = {symbol: cell(values(frames[head], method, metric, matched)) for symbol, metric in METRICS.items()}
                rows.append({"method": method, "pooling": f"{head}{', matched' * matched}"} | cells)
        return pd.DataFrame(rows)

    def claims(self, frames: dict[str, pd.DataFrame]) -> list[Claim]:
        """Writes Table 1 for Grad-CAM, with unchanged classifiers and at matched confidence; and whether attention is the better map."""
        found = []
        for matched in (False, True):
            for place, (symbol, metric) in enumerate(METRICS.items()):
                before, after = (values(frames[head], "grad-cam", metric, matched) for head in HEADS)
                way = 1 if CA_TABLE_1["grad-cam", "ca-stream"][place] > CA_TABLE_1["grad-cam", "gap"][place] else -1
                text = f"{symbol[:-2]} of grad-cam {'rises' if way == 1 else 'falls'} with the stream{', at matched confidence' * matched}"
                found.append(claim(text, apart(after, before[0], "photographs"), way))
        for symbol, metric in METRICS.items():
            attention, cam = (values(frames["ca-stream"], method, metric, False) for method in ("raw-attention", "grad-cam"))
            text = f"Is {symbol[:-2]} of the streams' attention above that of their Grad-CAM?"
            found.append(question(text, apart(attention, cam, "photographs")))
        return found

    def loaded(self, head: str) -> xattn.Classifier:
        """Returns the network with a head."""
        return xattn.load("torchvision:mobilenet_v2", weights=str(self.data / "weights" / "mobilenet_v2.pth"), head=head)

    def table_of_pictures(self) -> Path:
        """Writes the training pictures and their labels to a CSV."""
        table = self.work / f"train-{self.per_class}.csv"
        self.work.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="", encoding="utf-8") as rows:
            csv.writer(rows).writerows([("image", "label"), *self.files("train", 0, self.per_class)])
        return table

    def recipe(self) -> Recipe:
        """Returns the settings of the training."""
        return PRESETS["probe"].with_(epochs=self.epochs)

    def trained(self) -> list[xattn.Classifier]:
        """Returns the streams; they are trained on first use."""
        name = self.work / f"ca-stream-{self.per_class}-{self.epochs}.safetensors"
        if not all(path_of(name, seed).exists() for seed in self.seeds):
            of_features = self.work / "features"
            table = str(self.table_of_pictures())
            fit_seeds(self.loaded("ca-stream"), table, name, self.seeds, recipe=self.recipe(), workers=0, cache_features=of_features)
        return [self.loaded_from(path_of(name, seed)) for seed in self.seeds]

    def loaded_from(self, file: Path) -> xattn.Classifier:
        """Returns a trained stream."""
        classifier = xattn.load(str(file), weights=str(self.data / "weights" / "mobilenet_v2.pth"))
        classifier.name = file.stem
        return classifier

    def files(self, split: str, first: int, count: int) -> list[tuple[str, str]]:
        """Returns photographs of each class and their ImageNet indices."""
        folders = sorted((self.data / "imagenette" / split).iterdir())
        return [
            (str(file.resolve()), self.index[folder.name]) for folder in folders for file in sorted(folder.iterdir())[first : first + count]
        ]

    def pictures(self, classifier: xattn.Classifier, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Returns the same for the split val, `(n, 3, 224, 224)` in pixel space, and their classes."""
        rows = self.files("val", first, count)
        source = ImageSource([file for file, _ in rows])
        crops = torch.cat([batch.crops for batch in source.batches(classifier.preprocessing, 16, workers=0)])
        return crops.float() / 255, torch.tensor([int(label) for _, label in rows])

    def scores(self, nets: Sequence[xattn.Classifier], images: Tensor, labels: Tensor, temperatures: dict[str, float]) -> pd.DataFrame:
        """Returns rows of all networks, by `model`."""
        found = []
        for net in nets:
            methods = [method for method in METHODS if method != "raw-attention" or net.head_name == "ca-stream"]
            name = f"{net.head_name}-{net.digest()[:12]}-{len(images)}-{temperatures[net.name]:.4f}.csv"
            rows = scores_at(self.work / "scores" / name, net, images, labels, methods, list(METRICS.values()), temperatures[net.name])
            found.append(rows.assign(model=net.name))
        return pd.concat(found)


def values(rows: pd.DataFrame, method: str, metric: str, matched: bool) -> Tensor:
    """Returns values `(nets, pictures)` of a method."""
    return by_net(rows[(rows["method"] == method) & (rows["metric"] == metric) & (rows["matched"] == matched)])


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seeds", default=20, show_default=True, help="How many.")
@click.option("--per-class", default=24, show_default=True, help="Training pictures of each class.")
@click.option("--epochs", default=20, show_default=True, help="Of a stream.")
@click.option("--explained", default=5, show_default=True, help="Pictures of each class that are explained.")
@click.option("--out", default=Path(__file__).parent / "results", type=click.Path(path_type=Path))
def main(data: Path, work: Path, seeds: int, per_class: int, epochs: int, explained: int, out: Path) -> None:
    """Makes the page in OUT, and what it needs in WORK."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        text = PhotographStreams(data, work, range(seeds), per_class, epochs, explained).text()
    (out / "trained-ca-stream-seeds-imagenette.md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
