"""Few-shot classification on SketchBirds in the layout of CIFAR-FS: Table 3 of BR-NPA, and whether attention adapts to the task."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cached_property
from math import log
from pathlib import Path

import pandas as pd
import torch
from claims import Claim, Line, cell, claim, over_seeds, page
from estimates import apart
from printed import FEW_SHOT
from torch import Tensor
from torch.nn import functional
from trained import TaskPage
from two_streams import entropy

import xattn
from xattn.birds import CLASSES, SketchBirds, export_few_shot, masks, render, share_inside
from xattn.birds.few_shot import SPLITS
from xattn.training import PRESETS, Recipe, fit, fit_episodes, with_ways

NETWORK = "few-shot:resnet12:width=8"
SIDE = 32
HIGH = ("layer2", "layer3")
HEADS = (("gap", False), ("b-cnn", False), ("br-npa", False), ("br-npa", True))
KINDS = SPLITS["test"][1]
WAYS = len(KINDS)
MOST_QUERIES = (7, 15)  # per class, in training and in the score
METHODS = {"raw-attention": "br-npa's map", "grad-cam++": "Grad-CAM++ for its class"}
TAUGHT = {"alpha": 0.6, "temperature": 16.0}


class FewShotsPage(TaskPage):
    """Few-shot classification: Table 3 of BR-NPA, and where maps are."""

    def text(self) -> str:
        """Writes the page."""
        b = self.budget
        table: list[Line] = []
        found: dict[tuple[str, bool], Tensor] = {}
        before: dict[tuple[str, bool], Tensor] = {}
        for head, high in HEADS:
            before[head, high] = torch.tensor([self._accuracy(self.base(head, high, seed)) for seed in b.seeds])
            nets = [self.meta(head, high, seed) for seed in b.seeds]
            found[head, high] = torch.tensor([self._accuracy(net) for net in nets])
            size = nets[0].stages[-1].size
            printed, half = FEW_SHOT[head, high]
            table.append(
                {
                    "head": head,
                    "map": f"{size[0]}×{size[1]}",
                    "distilled": "yes" if high else "",
                    "after the base classes": over_seeds(before[head, high].tolist()),
                    "after the episodes": over_seeds(found[head, high].tolist()),
                    "printed": f"{printed} ± {half}",
                }
            )
        ours = found["br-npa", False]
        lines = [
            claim("br-npa is better than average pooling", apart(ours, found["gap", False], "seeds"), 1),
            claim("br-npa is better than b-cnn", apart(ours, found["b-cnn", False], "seeds"), 1),
            claim("b-cnn is worse than average pooling", apart(found["b-cnn", False], found["gap", False], "seeds"), -1),
            claim("high resolution hurts br-npa (as Table 3; its text says the contrary)", apart(found["br-npa", True], ours, "seeds"), -1),
            claim(
                "br-npa at high resolution is better than average pooling",
                apart(found["br-npa", True], found["gap", False], "seeds"),
                1,
            ),
            *(
                claim(
                    f"{head}{' at high resolution' if high else ''}: the episodes help",
                    apart(found[head, high], before[head, high], "seeds"),
                    1,
                )
                for head, high in HEADS
            ),
            *self.whole_objects(),
        ]
        about = [
            f"{NETWORK} on pictures of {SIDE} × {SIDE}: 8 kinds to train on, 4 for validation, 4 for the score, {b.few} pictures of each. "
            f"Base classes: {b.based} epochs from random weights; at high resolution {b.tuned} from the weights at low resolution, with "
            f"distillation. Then {b.meta * b.episodes} episodes of {WAYS} ways, one shot and {self._queries[0]} queries of each class, "
            f"likewise with distillation. Accuracy, in percent: {b.scored} episodes with {self._queries[1]} queries of each class; before "
            f"the episodes, the layer starts from zeros. {len(b.seeds)} seeds; ± is half of the 95 % interval over them.",
            "**Differs**: 4 ways instead of 5, fewer episodes at ten times their learning rates, AdamW on the base classes. Printed: "
            "CIFAR-FS, maps of 10×10 and 40×40, ± over episodes. The paper searched settings for each network; here none was "
            "searched, and all have the same, except that high resolution has the further epochs and the teacher named above.",
            f"Maps: {len(self._shown[0])} other pictures of the 4 kinds, br-npa at high resolution. Few shots: meta-trained on other "
            "kinds, then fitted to one picture of each. Fine-grained: the same network trained on pictures of all 16 kinds, in as many "
            "steps as on the base classes, without episodes. Entropy is relative to that of a map that is the same everywhere.",
        ]
        return page("BR-NPA, Table 3: few shots", about, pd.DataFrame(table), lines)

    def whole_objects(self) -> list[Claim]:
        """Answers whether maps cover the whole bird more in few-shot than in fine-grained classification."""
        inside: dict[tuple[str, str], list[Tensor]] = {}
        spread: dict[tuple[str, str], list[Tensor]] = {}
        for seed in self.budget.seeds:
            for called, classifier in (("few", self.fitted(seed)), ("fine", self.fine(True, seed))):
                for method, masks_of in self._maps(classifier).items():
                    inside.setdefault((called, method), []).append(100 * share_inside(masks_of, self._shown[2]))
                    spread.setdefault((called, method), []).append(entropy(masks_of) / log(SIDE * SIDE))
        area = 100 * float(self._shown[2].double().mean())
        lines = []
        for method, called in METHODS.items():
            (few, fine), spreads = ([torch.stack(of[kind, method]) for kind in ("few", "fine")] for of in (inside, spread))
            text = f"{called} has more of its energy inside the bird in few shots than in fine-grained classification, in points"
            lines.append(claim(text, apart(few, fine), 1, note=f"few shots: {cell(few)} %, the bird's area {area:.0f} %"))
            lines.append(claim(f"{called} is more spread out (entropy) in few shots", apart(*spreads), 1, digits=3))
        return lines

    def base(self, head: str, high: bool, seed: int) -> xattn.Classifier:
        """Trains on the base classes; at high resolution distilled from the same head at low resolution."""
        teacher = self.base(head, False, seed) if high else None
        return self._classified(f"base-{head}", high, seed, f"cifar-fs:{self.pictures}", self.budget.based, teacher)

    def fine(self, high: bool, seed: int) -> xattn.Classifier:
        """Trains br-npa to distinguish all classes."""
        teacher = self.fine(False, seed) if high else None
        return self._classified("fine-br-npa", high, seed, str(self.pictures / "data"), max(1, self.budget.based // 2), teacher)

    def meta(self, head: str, high: bool, seed: int) -> xattn.Classifier:
        """Trains by episodes from the base classes' weights; at high resolution distilled from the same head at low resolution."""
        file = self._file(f"meta-{head}", high, seed)
        if not file.exists():
            b = self.budget
            teacher = self.meta(head, False, seed) if high else None
            recipe = replace(
                PRESETS["few-shot"], epochs=b.meta, episodes=b.episodes, lr=1e-3, base_lr=1e-2, step=2, **(TAUGHT if high else {})
            )
            classifier = with_ways(self.base(head, high, seed), WAYS, seed)
            task = f"few-shot:ways={WAYS},shots=1,queries={self._queries[0]}"
            options = {"task": task, "recipe": recipe, "teacher": teacher, "seed": seed, "workers": 0}
            fit_episodes(classifier, f"cifar-fs:{self.pictures}", file, **options)
        return xattn.load(str(file))

    def fitted(self, seed: int) -> xattn.Classifier:
        """Meta-trains br-npa at high resolution, and fits it to one picture of each test class."""
        clf = self.meta("br-npa", True, seed)
        data = SketchBirds("test", len(CLASSES))
        few = [clf.preprocessing.crop(render(data.scene(list(CLASSES).index(kind)))) for kind in KINDS]
        return xattn.adapt(clf, torch.stack(few).to(clf.device) / 255, list(range(WAYS)), KINDS)

    def _classified(self, name: str, high: bool, seed: int, data: str, epochs: int, teacher: xattn.Classifier | None) -> xattn.Classifier:
        file = self._file(name, high, seed)
        if not file.exists():
            b = self.budget
            kinds = len(CLASSES) if name.startswith("fine") else len(SPLITS["train"][1])
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the head's classifier has new weights, as intended
                classifier = xattn.load(
                    NETWORK, head=name.partition("-")[2], classes=kinds, high_res=HIGH if high else (), input_size=SIDE, resize=SIDE
                )
            recipe = Recipe(backbone=True, epochs=epochs, batch_size=32, lr=2e-3, weight_decay=0.02, smallest_crop=None)
            if teacher is not None:
                classifier.start_from(teacher)
                halved = max(1, b.tuned // 2) if name.startswith("fine") else b.tuned
                recipe = recipe.with_(epochs=halved, lr=5e-4, **TAUGHT)
            fit(classifier, data, file, recipe=recipe, teacher=teacher, seed=seed, workers=0)
        return xattn.load(str(file))

    def _accuracy(self, classifier: xattn.Classifier) -> float:
        """Returns the mean over episodes of the test classes, in percent."""
        task = f"few-shot:ways={WAYS},shots=1,queries={self._queries[1]},episodes={self.budget.scored}"
        found = xattn.tasks.score(classifier, f"cifar-fs:{self.pictures}:test", task=task, workers=0, progress=False)
        return found.scores["accuracy"].mean

    def _maps(self, classifier: xattn.Classifier) -> dict[str, Tensor]:
        """Returns masks `(B, H, W)` of each method for the birds' classes."""
        images, kinds, _ = self._shown
        targets = torch.tensor([classifier.class_index(kind) for kind in kinds])
        found: dict[str, list[Tensor]] = {method: [] for method in METHODS}
        for some, wanted in zip(images.split(20), targets.split(20), strict=True):
            maps = xattn.explain(classifier, some, list(METHODS), target=wanted, progress=False)
            for method in METHODS:
                found[method].append(maps[method].cpu())
        return {method: torch.cat(pieces) for method, pieces in found.items()}

    @cached_property
    def _shown(self) -> tuple[Tensor, list[str], Tensor]:
        """Returns unused pictures `(B, 3, H, W)` of the test classes, their classes, and where the bird is, `(B, H, W)` bool."""
        each = max(1, self.budget.explained // WAYS)
        data = SketchBirds("test", each * len(CLASSES), seed=1)
        numbers = [number for number in range(len(data)) if data.classes[data.targets[number]] in KINDS]
        scenes = [data.scene(number) for number in numbers]
        preprocessing = self.base("br-npa", False, self.budget.seeds[0]).preprocessing
        images = torch.stack([preprocessing.crop(render(scene)) for scene in scenes]) / 255
        birds = torch.stack([masks(scene).bird for scene in scenes]).float()
        inside = functional.adaptive_avg_pool2d(birds[:, None], SIDE)[:, 0] >= 0.5
        return images, [data.classes[data.targets[number]] for number in numbers], inside

    @cached_property
    def pictures(self) -> Path:
        """Writes SketchBirds in the layout of CIFAR-FS."""
        folder = self.work / f"pictures-{self.budget.few}"
        done = folder / "splits" / "bertinetto" / "test.txt"
        return folder if done.exists() else export_few_shot(folder, self.budget.few)

    @property
    def _queries(self) -> tuple[int, int]:
        """Returns queries per class, in training and in the score: at most the pictures that remain after the shot."""
        most = self.budget.few - 1
        return min(MOST_QUERIES[0], most), min(MOST_QUERIES[1], most)

    def _file(self, name: str, high: bool, seed: int) -> Path:
        return self.work / f"{name}{'-high' if high else ''}-{seed}.safetensors"
