"""Trainings on SketchBirds for the papers' tables: each in a file of its own, found again when the command is given again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from train_birds import birds

import xattn
from xattn.birds import CLASSES, SketchBirds, pixels
from xattn.training import Recipe, fit

HIGH = ("layer3", "layer4")


@dataclass(frozen=True)
class Budget:
    """How much is spent; written under every table.

    Attributes:
        count: training pictures.
        epochs: of head and network, from random weights.
        tuned: epochs of a student at high resolution, from the weights of the same head at low resolution.
        stream: epochs of a stream beside the frozen network.
        seeds: of first weights and order.
        numbers: of maps (Fig. 7).
        tested: birds that accuracy is of.
        explained: birds that are explained and scored.
        true: birds whose true effects are found.
    """

    count: int = 4000
    epochs: int = 8
    tuned: int = 2
    stream: int = 3
    seeds: tuple[int, ...] = (0, 1, 2)
    numbers: tuple[int, ...] = (1, 2, 3, 6)
    tested: int = 1600
    explained: int = 200
    true: int = 200


SMOKE = Budget(count=64, epochs=1, tuned=1, stream=1, seeds=(0, 1), numbers=(1, 3), tested=32, explained=2, true=3)


class Trainings:
    """Trained classifiers by name, trained when they are first asked for.

    Args:
        folder: where they are kept.
        budget: how much is spent on them.
    """

    def __init__(self, folder: Path, budget: Budget) -> None:
        self.folder = folder
        self.budget = budget
        folder.mkdir(parents=True, exist_ok=True)
        said, path = json.dumps({name: getattr(budget, name) for name in ("count", "epochs", "tuned", "stream")}), folder / "budget.json"
        if path.exists() and path.read_text() != said:
            raise click.ClickException(
                f"{folder} holds trainings of the budget {path.read_text()}; this one is {said}. Give another folder."
            )
        path.write_text(said)

    def low(self, head: str, seed: int) -> xattn.Classifier:
        """Head and network from random weights."""

        def begun() -> xattn.Classifier:
            return xattn.load("xattn.birds:small_resnet", head=head, input_size=64, resize=64, labels=list(CLASSES))

        return self._trained(f"low {head}", seed, begun, self._full(self.budget.epochs, 2e-3))

    def high(self, head: str, seed: int, distilled: bool) -> xattn.Classifier:
        """The same at high resolution, from its weights at low resolution; taught by it, or by the labels alone."""
        teacher = self.low(head, seed)

        def begun() -> xattn.Classifier:
            size: dict[str, Any] = {"input_size": 64, "resize": 64, "labels": list(CLASSES)}
            classifier = xattn.load("xattn.birds:small_resnet", head=head, high_res=HIGH, **size)
            classifier.begin_with(teacher)
            return classifier

        name = f"high {head} {'distilled' if distilled else 'alone'}"
        return self._trained(name, seed, begun, self._full(self.budget.tuned, 5e-4), teacher if distilled else None)

    def stream(self, head: str, seed: int) -> xattn.Classifier:
        """A stream beside the frozen network of birds:gap."""
        recipe = Recipe(epochs=self.budget.stream, batch_size=64, lr=3e-3, smallest_crop=None)
        return self._trained(f"stream {head}", seed, lambda: xattn.load("birds:gap", head=head), recipe)

    def log(self, kind: str, head: str, seed: int) -> Path:
        """The CSV log of a training."""
        return sorted((self._file(f"{kind} {head}", seed).with_suffix(".training")).rglob("metrics.csv"))[-1]

    def _full(self, epochs: int, lr: float) -> Recipe:
        return Recipe(backbone=True, epochs=epochs, batch_size=64, lr=lr, weight_decay=0.02, smallest_crop=None)

    def _file(self, name: str, seed: int) -> Path:
        clean = "".join(character if character.isalnum() or character in "-." else "_" for character in name)
        return self.folder / f"{clean}-{seed}.safetensors"

    def _trained(
        self, name: str, seed: int, begun: Callable[[], xattn.Classifier], recipe: Recipe, teacher: xattn.Classifier | None = None
    ) -> xattn.Classifier:
        file = self._file(name, seed)
        if not file.exists():
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # b-cnn's classifier is fresh, as it should be
                classifier = begun()
            options: dict[str, Any] = {"workers": 0, "precision": "bf16-mixed", "log_gradients": name.startswith("low")}
            fit(classifier, birds(self.budget.count), file, recipe=recipe, teacher=teacher, seed=seed, **options)
        classifier = xattn.load(str(file))
        classifier.name = file.stem
        return classifier

    def accuracy(self, classifier: xattn.Classifier) -> dict[str, float]:
        """Accuracy on the test split in percent: of the classifier as "1 2 3", and of its probes by their ranks."""
        path = self.folder / "accuracy.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        key = f"{classifier.name} {classifier.head_name} {classifier.digest()} {self.budget.tested}"
        if key not in known:
            known[key] = _accuracy(classifier, self.budget.tested)
            path.write_text(json.dumps(known, indent=1) + "\n")
        found: dict[str, float] = known[key]
        return found


def test_birds(count: int) -> tuple[Tensor, Tensor]:
    """Pictures in pixel space and classes of the test split."""
    data = SketchBirds("test", count)
    return torch.stack([pixels(data.scene(number)) for number in range(count)]).float() / 255, torch.tensor(data.targets)


def _accuracy(classifier: xattn.Classifier, count: int) -> dict[str, float]:
    images, targets = (found.to(classifier.device) for found in test_birds(count))
    right: dict[str, int] = {}
    classifier.eval()
    for start in range(0, count, 100):
        with torch.inference_mode():
            found = classifier.run(images[start : start + 100], classifier.asked_classes(images[start : start + 100]))
        answers = {"1 2 3": found.output} | {" ".join(name.removeprefix("ranks_")): logits for name, logits in found.probes.items()}
        for name, logits in answers.items():
            right[name] = right.get(name, 0) + int((logits.argmax(1) == targets[start : start + 100]).sum())
    return {name: 100 * number / count for name, number in right.items()}
