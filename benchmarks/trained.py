"""Trainings on SketchBirds for the papers' tables: each is stored in its own file, and reused when the command is run again."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from train_birds import birds

import xattn
from xattn.birds import CLASSES, SketchBirds, pixels
from xattn.birds.pretrained import NETWORKS
from xattn.birds.scene import SPLITS
from xattn.training import Recipe, fit
from xattn.training.data import Labelled

BR_NPA = "br-npa:rank_probes=true"  # the probes send no gradient into the features, so the head learns as without them
HIGH = ("layer3", "layer4")
SEEN: dict[str, Any] = {"input_size": 64, "resize": 64, "labels": list(CLASSES)}
ALL_RANKS = "1 2 3"
RECIPES = ("low", "high", "stream", "tokens")


@dataclass(frozen=True)
class Budget:
    """Extent of the trainings; written under every table.

    Attributes:
        count: number of training pictures.
        batch_size: pictures per step.
        epochs: epochs of head and network, from random weights.
        tuned: epochs of a student at high resolution, from the weights of the same head at low resolution.
        stream: epochs of a stream on the frozen network.
        embedded: number of training pictures of a vision transformer.
        attended: epochs of the vision transformer.
        seeds: seeds of initial weights and order.
        numbers: numbers of maps (Fig. 7).
        tested: number of birds for accuracy.
        explained: number of birds that are explained and scored.
        compared: number of birds whose maps are scored with and without a stream (Table 1 of CA-Stream).
        matched: number of held-out birds on which confidences are matched.
        true: number of birds whose true effects are computed.
        precision: precision of the trainings, in Lightning's notation.
        streams: number of streams with different alignments; None: all.
        hard: number of training pictures of two-stream networks.
        looked: epochs of two-stream networks.
        flocks: number of training pictures of several birds.
        mixed: epochs of fine-tuning on them.
        persons: number of individuals for training in re-identification; half as many for tests.
        met: epochs of a network for re-identification.
        parts: number of training pictures of birds with part labels for every pixel.
        segmented: epochs of a segmentation network on them.
        sums: numbers of steps that are added instead of attention; the last is the number of steps.
        few: number of pictures per class, for few-shot classification.
        based: epochs on the base classes; students at high resolution use `tuned`.
        meta: epochs of episodes.
        episodes: number of episodes per such epoch.
        scored: number of episodes for accuracy.
    """

    count: int = 4000
    batch_size: int = 64
    epochs: int = 8
    tuned: int = 2
    stream: int = 3
    embedded: int = 12_000
    attended: int = 30
    seeds: tuple[int, ...] = (0, 1, 2)
    numbers: tuple[int, ...] = (1, 2, 3, 6)
    tested: int = 1600
    explained: int = 200
    compared: int = 40
    matched: int = 400
    true: int = 200
    precision: str = "bf16-mixed"
    streams: int | None = None
    hard: int = 480
    looked: int = 15
    flocks: int = 2000
    mixed: int = 6
    persons: int = 48
    met: int = 12
    parts: int = 1000
    segmented: int = 8
    sums: tuple[int, ...] = (1, 3, 10)
    few: int = 200
    based: int = 8
    meta: int = 4
    episodes: int = 30
    scored: int = 600


SMOKE = Budget(  # in float32: CPUs without bfloat16 train many times slower in it
    count=32,
    batch_size=16,
    epochs=1,
    tuned=1,
    stream=1,
    embedded=32,
    attended=1,
    seeds=(0, 1),
    numbers=(1, 3),
    tested=32,
    explained=2,
    compared=2,
    matched=32,
    true=3,
    precision="32-true",
    streams=3,
    hard=32,
    looked=1,
    flocks=16,
    mixed=1,
    persons=3,
    met=1,
    parts=16,
    segmented=1,
    sums=(1, 2),
    few=3,
    based=1,
    meta=1,
    episodes=1,
    scored=20,
)


class TaskPage:
    """A page that is made in its own folder.

    Args:
        work: where pictures, trainings and runs are stored, so that they resume.
        budget: extent of the trainings.
    """

    def __init__(self, work: Path, budget: Budget) -> None:
        self.work = work
        self.budget = budget
        work.mkdir(parents=True, exist_ok=True)


class Trainings:
    """Trained classifiers by name, trained on first use.

    Args:
        folder: where they are stored.
        budget: extent of the trainings.
    """

    def __init__(self, folder: Path, budget: Budget) -> None:
        self.folder = folder
        self.budget = budget
        folder.mkdir(parents=True, exist_ok=True)
        path, spent = folder / "budget.json", self._spent()
        if path.exists():
            stored = json.loads(path.read_text())
            for name in RECIPES:  # settings that an earlier version did not have are at their defaults
                stored[name] = Recipe().to_json() | stored.get(name, {})
            if stored != spent:
                raise click.ClickException(
                    f"{folder} holds trainings of another budget or of other pictures: {stored}, not {spent}. Give another folder."
                )
        path.write_text(json.dumps(spent))

    def _spent(self) -> dict[str, Any]:
        """Returns what the trainings depend on."""
        recipes = {name: getattr(self, f"_{name}")().to_json() for name in RECIPES}
        return {
            "count": self.budget.count,
            "embedded": self.budget.embedded,
            "precision": self.budget.precision,
            "pixels": drawn(),
            **recipes,
        }

    def low(self, head: str, seed: int, cues: bool = False) -> xattn.Classifier:
        """Trains head and network from random weights; with cues, on pictures in which the cue of the bird's class is next to it."""

        def begun() -> xattn.Classifier:
            return xattn.load("xattn.birds:small_resnet", head=head, **SEEN)

        pictures = partial(birds, self.budget.count, *([1.0] if cues else []))
        return self._trained(f"low {head}{' cues' * cues}", seed, begun, self._low(), pictures)

    def tokens(self, seed: int, head: str) -> xattn.Classifier:
        """Trains a vision transformer from random weights; with a head other than gap, trains that head on the frozen transformer."""
        if head == "gap":
            pictures = partial(birds, self.budget.embedded)
            return self._trained("tokens", seed, lambda: xattn.load(NETWORKS["birds:vit"], **SEEN), self._tokens(), pictures)
        self.tokens(seed, "gap")
        begun = partial(xattn.load, str(self._file("tokens", seed)), head=head)
        return self._trained(f"tokens {head}", seed, begun, self._stream(), cached=True)

    def high(self, head: str, seed: int, distilled: bool) -> xattn.Classifier:
        """Trains the same at high resolution, from its weights at low resolution; distilled from it, or from the labels alone."""
        teacher = self.low(head, seed)

        def begun() -> xattn.Classifier:
            classifier = xattn.load("xattn.birds:small_resnet", head=head, high_res=HIGH, **SEEN)
            classifier.start_from(teacher)
            return classifier

        name = f"high {head} {'distilled' if distilled else 'alone'}"
        return self._trained(name, seed, begun, self._high(), teacher=teacher if distilled else None)

    def stream(self, head: str, seed: int) -> xattn.Classifier:
        """Trains a stream on the frozen network of birds:gap, whose features are computed once for all streams on the same stages."""
        return self._trained(f"stream cached {head}", seed, lambda: xattn.load("birds:gap", head=head), self._stream(), cached=True)

    def log(self, head: str, seed: int) -> pd.DataFrame:
        """Returns gradient norms of the steps of a training at low resolution; a step that a resumed training repeated appears once."""
        files = self._file(f"low {head}", seed).with_suffix(".training").rglob("metrics.csv")
        steps = pd.concat([pd.read_csv(file) for file in sorted(files, key=lambda file: file.stat().st_mtime)])
        norms = steps.set_index("step").filter(like="gradient_norm/").dropna()
        return norms[~norms.index.duplicated(keep="last")].sort_index()

    def _low(self) -> Recipe:
        return Recipe(
            backbone=True, epochs=self.budget.epochs, batch_size=self.budget.batch_size, lr=2e-3, weight_decay=0.02, smallest_crop=None
        )

    def _high(self) -> Recipe:
        return self._low().with_(epochs=self.budget.tuned, lr=5e-4)

    def _stream(self) -> Recipe:
        return Recipe(epochs=self.budget.stream, batch_size=self.budget.batch_size, lr=3e-3, smallest_crop=None)

    def _tokens(self) -> Recipe:
        return self._low().with_(epochs=self.budget.attended, lr=1e-3, weight_decay=0.05)

    def _file(self, name: str, seed: int) -> Path:
        clean = "".join(character if character.isalnum() or character in "-." else "_" for character in name)
        return self.folder / f"{clean}-{seed}.safetensors"

    def _trained(
        self,
        name: str,
        seed: int,
        begun: Callable[[], xattn.Classifier],
        recipe: Recipe,
        pictures: Callable[[], Labelled] | None = None,
        teacher: xattn.Classifier | None = None,
        cached: bool = False,
    ) -> xattn.Classifier:
        file = self._file(name, seed)
        if not file.exists():
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # b-cnn's classifier has new weights, as intended
                classifier = begun()
            options: dict[str, Any] = {"workers": 0, "precision": self.budget.precision, "log_gradients": name.startswith("low")}
            options["cache_features"] = self.folder / "features" if cached else None
            data = birds(self.budget.count) if pictures is None else pictures()
            fit(classifier, data, file, recipe=recipe, teacher=teacher, seed=seed, **options)
        classifier = xattn.load(str(file))
        classifier.name = file.stem
        return classifier

    def accuracy(self, nets: Sequence[xattn.Classifier], ranks: str = ALL_RANKS, hard: bool = False) -> Tensor:
        """Returns 100 for each test bird that is recognised, 0 for others: `(nets, birds)`.

        Args:
            nets: the classifiers.
            ranks: ranks that are used: all, the classifier itself, or those of one of its probes.
            hard: whether to use hard birds.
        """
        return 100 * torch.stack([self._answers(net, hard)[ranks][:, 0] for net in nets])

    def cross_entropy(self, nets: Sequence[xattn.Classifier], ranks: str = ALL_RANKS, hard: bool = False) -> Tensor:
        """Returns the cross-entropy of the same birds, in nats: `(nets, birds)`."""
        return torch.stack([self._answers(net, hard)[ranks][:, 1] for net in nets])

    def _answers(self, classifier: xattn.Classifier, hard: bool) -> dict[str, Tensor]:
        """Returns by ranks, for each test bird, whether it is recognised, and its cross-entropy in nats: `(birds, 2)`."""
        path = self.folder / "answers" / f"{'hard-' if hard else ''}{classifier.digest()}-{drawn()}-{self.budget.tested}.pt"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            torch.save(_answers(classifier, self.budget.tested, hard), path)
        found: dict[str, Tensor] = torch.load(path, weights_only=True)
        return found


def by_net(rows: pd.DataFrame) -> Tensor:
    """Returns values `(nets, pictures)` of one metric and method: nets and pictures by name; averaged over a picture's rows."""
    return torch.tensor(rows.groupby(["model", "image"])["value"].mean().unstack("image").to_numpy(dtype=float))


@cache
def drawn() -> str:
    """Returns a digest of some pictures, which shows whether SketchBirds is still drawn in the same way."""
    some = [pixels(SketchBirds(split, 8, spurious=0.5).scene(number)) for split in SPLITS for number in range(8)]
    return hashlib.sha256(torch.stack(some).numpy().tobytes()).hexdigest()[:8]


@cache
def test_birds(count: int, hard: bool) -> tuple[Tensor, Tensor]:
    """Returns pictures in pixel space and classes of the test split."""
    return pictures(SketchBirds("test", count, hard=hard))


def pictures(data: SketchBirds) -> tuple[Tensor, Tensor]:
    """Returns all pictures `(n, 3, H, W)` in pixel space, and their classes."""
    return torch.stack([pixels(data.scene(number)) for number in range(len(data))]).float() / 255, torch.tensor(data.targets)


def answered(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns whether each picture is recognised, and its cross-entropy in nats: `(n, 2)`."""
    return torch.stack([(logits.argmax(1) == labels).double(), functional.cross_entropy(logits.double(), labels, reduction="none")], dim=1)


def _answers(classifier: xattn.Classifier, count: int, hard: bool) -> dict[str, Tensor]:
    images, targets = (found.to(classifier.device) for found in test_birds(count, hard))
    found_by: dict[str, list[Tensor]] = {}
    classifier.eval()
    for start in range(0, count, 100):
        some = images[start : start + 100]
        with torch.inference_mode():
            found = classifier.run(some, classifier.asked_classes(some))
        logits = {ALL_RANKS: found.output} | {" ".join(name.removeprefix("ranks_")): logits for name, logits in found.probes.items()}
        for ranks, each in logits.items():
            found_by.setdefault(ranks, []).append(answered(each, targets[start : start + 100]))
    return {ranks: torch.cat(pieces).cpu() for ranks, pieces in found_by.items()}
