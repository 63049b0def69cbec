"""Several labels on pictures of several SketchBirds: Table 3 of CA-Stream."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from claims import Line, claim, over_seeds, page
from printed import CA_MAP, CA_TABLE_3
from trained import TaskPage

import xattn
from xattn.birds import export_voc
from xattn.metrics.statistics import Interval, paired
from xattn.training import Recipe, fit

METHODS = ("grad-cam", "grad-cam++", "score-cam")
SCORES = {"average-drop": "AD ↓", "average-gain": "AG ↑", "average-increase": "AI ↑", "insertion": "I ↑", "deletion": "D ↓"}
POOLINGS = ("gap", "ca-stream")


class SeveralLabelsPage(TaskPage):
    """Several labels: Table 3 of CA-Stream."""

    def text(self) -> str:
        """The page."""
        b = self.budget
        means, lines = self.means(), []
        table: list[Line] = []
        for method in METHODS:
            for pooling in POOLINGS:
                cells = {SCORES[metric]: over_seeds(means[method, metric, pooling].tolist()) for metric in SCORES}
                printed = " · ".join(f"{value:.2f}" for value in CA_TABLE_3[method, pooling])
                table.append({"attribution": method, "pooling": pooling} | cells | {"printed": printed})
        precision = {pooling: torch.tensor([self.precision(pooling, seed) for seed in b.seeds]) for pooling in POOLINGS}
        lines.append(claim("the stream has the mAP of average pooling", _difference(precision["ca-stream"], precision["gap"]), 0, margin=1))
        for place, (metric, symbol) in enumerate(SCORES.items()):
            for method in METHODS:
                way = 1 if CA_TABLE_3[method, "ca-stream"][place] > CA_TABLE_3[method, "gap"][place] else -1
                text = f"{symbol[:-2]} of {method} {'rises' if way == 1 else 'falls'} with the stream"
                lines.append(claim(text, _difference(means[method, metric, "ca-stream"], means[method, metric, "gap"]), way))
        about = [
            "Pictures with one to three SketchBirds of different kinds. birds:gap is fine-tuned as a whole with binary cross-entropy for "
            f"{b.mixed} epochs of {b.flocks} pictures, a stream is trained beside each frozen network for {b.stream}; the epoch kept is "
            f"that of the highest mAP on {self._held_out} others. {len(b.seeds)} seeds; ± is Student's 95 % interval over them. mAP is of "
            f"{b.tested} further pictures, the scores are of the first {b.explained} of them, a row for each bird that is not difficult.",
            "mAP: "
            + ", ".join(f"{pooling} {over_seeds(precision[pooling].tolist())} (printed {CA_MAP[pooling]})" for pooling in POOLINGS)
            + ".",
            "Printed: ResNet-50 on VOC 2012, in the order of the columns. A claim goes the way that the printed values go: with Score-CAM, "
            "I rises with the stream, with the others it falls.",
        ]
        return page("CA-Stream, Table 3: several labels", about, pd.DataFrame(table), lines)

    def trained(self, pooling: str, seed: int) -> xattn.Classifier:
        """A classifier, trained when it is first asked for."""
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
                recipe = Recipe(epochs=b.stream, batch_size=32, lr=3e-3, smallest_crop=None)
            fit(classifier, f"voc:{self.pictures}", file, recipe=recipe, seed=seed, workers=0)
        classifier = xattn.load(str(file))
        classifier.name = file.stem
        return classifier

    def precision(self, pooling: str, seed: int) -> float:
        """Mean average precision on pictures that had no part in the training, in percent."""
        place = f"voc:{self._exported('tested', 1, self.budget.tested)}"
        return xattn.tasks.score(self.trained(pooling, seed), place, workers=0, progress=False).scores["mAP"].mean

    def means(self) -> dict[tuple[str, str, str], torch.Tensor]:
        """Means over pictures and birds by method, metric and pooling, one per seed."""
        nets = [self.trained(pooling, seed) for seed in self.budget.seeds for pooling in POOLINGS]
        place = f"voc:{self._exported('explained', 1, self.budget.explained)}:val"
        run = self.work / f"run-{self.budget.explained}"
        study = xattn.Study(nets, METHODS, list(SCORES), place, run, target="labels", workers=0, tune="chunk=64", batch_size=20)
        study.run()
        found = study.scores().groupby(["method", "metric", "model"])["value"].mean()
        return {
            (method, metric, pooling): torch.tensor([float(found[method, metric, f"{pooling}-{seed}"]) for seed in self.budget.seeds])
            for method in METHODS
            for metric in SCORES
            for pooling in POOLINGS
        }

    @property
    def _held_out(self) -> int:
        return max(8, self.budget.flocks // 5)

    @cached_property
    def pictures(self) -> Path:
        """The training pictures and those that pick the epoch."""
        return self._exported("pictures", self.budget.flocks, self._held_out)

    def _exported(self, name: str, train: int, validation: int) -> Path:
        folder = self.work / f"{name}-{train}-{validation}"
        done = folder / "ImageSets" / "Main" / "trainval.txt"
        return folder if done.exists() else export_voc(folder, train=train, validation=validation, seed=int(name != "pictures"))


def _difference(after: torch.Tensor, before: torch.Tensor) -> Interval:
    return paired(after, before).difference
