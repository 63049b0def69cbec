"""Several labels on pictures of several SketchBirds: Table 3 of CA-Stream."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from claims import Line, cell, claim, over_seeds, page
from confidence import confidence, logits_of, matching, scores_at
from cross_attention import listed
from estimates import apart
from printed import CA_MAP, CA_TABLE_3
from torch import Tensor
from trained import TaskPage, by_net

import xattn
from xattn.birds import export_voc
from xattn.data.images import ImageSource
from xattn.data.published import open_published
from xattn.training import Recipe, fit

METHODS = ("grad-cam", "grad-cam++", "score-cam")
SCORES = {"average-drop": "AD ↓", "average-gain": "AG ↑", "average-increase": "AI ↑", "insertion": "I ↑", "deletion": "D ↓"}
POOLINGS = ("gap", "ca-stream")
LONGER = 4  # times as many epochs as streams of one label: after three epochs of two thousand pictures, held-out losses still fall


class SeveralLabelsPage(TaskPage):
    """Several labels: Table 3 of CA-Stream."""

    def text(self) -> str:
        """Writes the page."""
        b = self.budget
        found, lines = self.values(), []
        table: list[Line] = []
        for method in METHODS:
            for pooling in POOLINGS:
                cells = {SCORES[metric]: cell(found[method, metric, pooling]) for metric in SCORES}
                printed = " · ".join(f"{value:.2f}" for value in CA_TABLE_3[method, pooling])
                table.append({"attribution": method, "pooling": pooling} | cells | {"printed": printed})
        matched, sure, temperatures = self.matched()
        for (method, pooling), of_metrics in matched.items():
            cells = {SCORES[metric]: cell(of_metrics[metric]) for metric in SCORES}
            table.append({"attribution": method, "pooling": f"{pooling}, matched"} | cells | {"printed": ""})
        precision = {pooling: [self.precision(pooling, seed) for seed in b.seeds] for pooling in POOLINGS}
        same = apart(precision["ca-stream"], precision["gap"], "seeds")
        lines.append(claim("the stream has the mAP of average pooling", same, 0, margin=1))
        for place, (metric, symbol) in enumerate(SCORES.items()):
            for method in METHODS:
                way = 1 if CA_TABLE_3[method, "ca-stream"][place] > CA_TABLE_3[method, "gap"][place] else -1
                text = f"{symbol[:-2]} of {method} {'rises' if way == 1 else 'falls'} with the stream"
                difference = apart(found[method, metric, "ca-stream"], found[method, metric, "gap"], "pictures")
                lines.append(claim(text, difference, way))
                difference = apart(matched[method, "ca-stream"][metric], matched[method, "gap"][metric], "pictures")
                lines.append(claim(f"{text}, at matched confidence", difference, way))
        about = [
            "Pictures with one to three SketchBirds of different kinds. birds:gap is fine-tuned as a whole with binary cross-entropy for "
            f"{b.mixed} epochs of {b.flocks} pictures, and a stream is trained beside each frozen network for {LONGER * b.stream}. A tenth "
            f"of the pictures is held out; the epoch kept is that of the highest mAP on it. {len(b.seeds)} seeds. One setting was "
            f"searched: the stream's epochs, {LONGER} times those of streams with one label, until its loss on held-out pictures no longer "
            f"fell. mAP is of {b.tested} further pictures, ± half of its 95 % interval over seeds; the scores are of the first "
            f"{b.explained} of them, the mean over a picture's birds that are not difficult, ± over seeds × pictures.",
            f"On {self._held_out} further held-out pictures the mean probability of the labels is {listed(sure['gap'], 4)} with average "
            f"pooling, with the streams {listed(sure['ca-stream'], 4)}. Rows that are *matched* score the same maps of the first "
            f"{b.compared} pictures, the logits divided by the temperature at which this mean is that of the least sure network: gap "
            f"{listed(temperatures['gap'], 2)}, ca-stream {listed(temperatures['ca-stream'], 2)}. With one sigmoid per label, a "
            "temperature above 1 also moves small probabilities towards 1/2, which by itself raises deletion and lowers insertion: if a "
            "verdict differs between the two kinds of rows, the networks' confidence decides it, not their maps.",
            "mAP: " + ", ".join(f"{pooling} {over_seeds(precision[pooling])} (printed {CA_MAP[pooling]})" for pooling in POOLINGS) + ".",
            "Printed: ResNet-50 on VOC 2012, in the order of the columns. A claim goes the way that the printed values go: with Score-CAM, "
            "I rises with the stream, with the others it falls.",
        ]
        return page("CA-Stream, Table 3: several labels", about, pd.DataFrame(table), lines)

    def trained(self, pooling: str, seed: int) -> xattn.Classifier:
        """Returns a classifier; it is trained on first use."""
        file = self.work / f"{pooling}-{seed}.safetensors"
        if not file.exists():
            torch.manual_seed(seed)
            b = self.budget
            if pooling == "gap":
                classifier = xattn.load("birds:gap", multi_label=True)
                recipe = Recipe(backbone=True, epochs=b.mixed, batch_size=32, lr=1e-3, smallest_crop=None)
            else:
                self.trained("gap", seed)
                classifier = xattn.load(str(self.work / f"gap-{seed}.safetensors"), head=pooling)
                recipe = Recipe(epochs=LONGER * b.stream, batch_size=32, lr=3e-3, smallest_crop=None)
            fit(classifier, f"voc:{self.pictures}", file, recipe=recipe, seed=seed, workers=0)
        classifier = xattn.load(str(file))
        classifier.name = file.stem
        return classifier

    def precision(self, pooling: str, seed: int) -> float:
        """Returns mean average precision on pictures that were not used in the training, in percent."""
        place = f"voc:{self._exported('tested', 1, self.budget.tested)}"
        return xattn.tasks.score(self.trained(pooling, seed), place, workers=0, progress=False).scores["mAP"].mean

    def values(self) -> dict[tuple[str, str, str], Tensor]:
        """Returns means over a picture's birds by method, metric and pooling, `(seeds, pictures)`."""
        nets = [self.trained(pooling, seed) for seed in self.budget.seeds for pooling in POOLINGS]
        place = f"voc:{self._exported('explained', 1, self.budget.explained)}:val"
        run = self.work / f"run-{self.budget.explained}"
        study = xattn.Study(nets, METHODS, list(SCORES), place, run, target="labels", workers=0, tune="chunk=64", batch_size=20)
        study.run()
        found = study.scores().groupby(["method", "metric", "head"])
        return {(method, metric, head): by_net(rows) for (method, metric, head), rows in found}

    def matched(self) -> tuple[dict[tuple[str, str], dict[str, Tensor]], dict[str, list[float]], dict[str, list[float]]]:
        """Computes scores at one mean confidence.

        Returns:
            By method and pooling, and by metric, means over a picture's birds, `(seeds, pictures)`; by pooling and seed the mean
            probability of the labels of held-out pictures, and the temperature that divides the logits.
        """
        nets = {pooling: [self.trained(pooling, seed) for seed in self.budget.seeds] for pooling in POOLINGS}
        held_out, vectors = _read(self.pictures, self._held_out, nets["gap"][0])
        logits = {pooling: [logits_of(net, held_out) for net in of] for pooling, of in nets.items()}
        sure = {pooling: [confidence(each, vectors) for each in of] for pooling, of in logits.items()}
        least = min(min(of) for of in sure.values())
        temperatures = {pooling: [matching(each, vectors, least) for each in of] for pooling, of in logits.items()}
        images, vectors = _read(self._exported("explained", 1, self.budget.explained), self.budget.compared, nets["gap"][0])
        picture, label = (vectors == 1).nonzero(as_tuple=True)
        found: dict[tuple[str, str], dict[str, Tensor]] = {}
        for pooling, of in nets.items():
            frames = []
            for net, temperature in zip(of, temperatures[pooling], strict=True):
                file = self.work / "matched" / f"{net.name}-{net.digest()[:12]}-{len(images)}-{temperature:.4f}.csv"
                scores = scores_at(file, net, images[picture], label, METHODS, list(SCORES), temperature)
                scores = scores[scores["matched"]]
                frames.append(scores.assign(model=net.name, image=picture.numpy()[scores["image"]]))
            for (method, metric), rows in pd.concat(frames).groupby(["method", "metric"]):
                found.setdefault((method, pooling), {})[metric] = by_net(rows)
        return dict(sorted(found.items(), key=lambda item: METHODS.index(item[0][0]))), sure, temperatures

    @property
    def _held_out(self) -> int:
        return max(8, self.budget.flocks // 5)

    @cached_property
    def pictures(self) -> Path:
        """Returns the training pictures, and others that were not used in the training."""
        return self._exported("pictures", self.budget.flocks, self._held_out)

    def _exported(self, name: str, train: int, validation: int) -> Path:
        folder = self.work / f"{name}-{train}-{validation}"
        done = folder / "ImageSets" / "Main" / "trainval.txt"
        return folder if done.exists() else export_voc(folder, train=train, validation=validation, seed=int(name != "pictures"))


def _read(folder: Path, count: int, classifier: xattn.Classifier) -> tuple[Tensor, Tensor]:
    """The first pictures `(n, 3, H, W)` of the split val in pixel space, as a classifier sees them, and their label vectors `(n, K)`."""
    split = open_published("voc", folder, "val")
    source = ImageSource([str(path) for path in split.paths[:count]])
    crops = torch.cat([batch.crops for batch in source.batches(classifier.preprocessing, 20, workers=0)])
    places = [split.classes.index(name) for name in classifier.labels or ()]
    return crops.float() / 255, torch.tensor(split.targets[:count])[:, places]
