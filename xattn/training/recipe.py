"""How a head is trained: settings and named presets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from xattn.errors import NameUnknownError, SettingError
from xattn.focus import PREFIX
from xattn.heads import heads

Optimiser = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "step", "poly"]

MOST_CELLS = 64  # of a side of the grid of patches that are deleted


def _is_grid(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= MOST_CELLS


@dataclass(frozen=True)
class Recipe:
    """Training settings.

    Attributes:
        backbone: train the network too; False trains the head alone, with the network frozen and in eval mode.
        freeze_statistics: keep and use the running statistics of the network's BatchNorm: for small batches, and for networks whose
            BatchNorm was folded away.
        epochs: passes over the training pictures.
        batch_size: pictures per step, over all devices.
        optimiser: "sgd", "adam" or "adamw".
        lr: learning rate.
        momentum: of sgd.
        nesterov: whether the momentum of sgd is Nesterov's.
        weight_decay: of the optimiser.
        schedule: of the learning rate: "constant", "cosine" (to 0), "step" (× `factor` every `step` epochs), or "poly" (× (1 − the
            share of the steps that are done) to the power of `power`).
        step: epochs between two steps of the schedule.
        factor: of a step of the schedule.
        power: of the schedule "poly".
        period: epochs after which the cosine is at 0; it rises again behind. None: all epochs.
        dropout: share of the head's vector that is dropped; None: as in the head's settings.
        alpha: weight of the labels against the teacher's answers.
        temperature: of the teacher's answers.
        smallest_crop: smallest share of a picture that a random crop may cover; None: no crops and no flips, for data that vary enough. In
            segmentation c stands for a random scale from √c to 1/√c, then a random crop of the input size, of picture and label map alike.
        centre_crop: share of a random crop's side that is kept, around its centre.
        padding: the classifier's own crop gets so many pixels at each side, its outermost ones repeated, is cropped again at a random place
            and flipped half of the time, in the place of random crops; None: not.
        erasing: probability that a random rectangle of a training picture shows the classifier's mean colour, after the crop.
        deletion_grid: in half of the training pictures, one patch of a grid of so many by so many, drawn anew in every epoch, shows the
            classifier's mean colour; None: in none.
        patience: epochs without a better validation loss, or a higher score where the task keeps the epoch by that, before training stops;
            None: run all epochs.
        validation: share of each class that is held out if the data has no validation split of its own.
        head_lr: learning rate of the head's own weights where the network is trained too; None: `lr`.
        local_lr: learning rate of the local stream of a two-stream network; None: `lr`.
        ranking: λ, weight of the ranking loss of a two-stream network.
        margin: of the ranking loss.
        base_lr: learning rate of the weights that the linear layer of an episode starts from; None: `lr`.
        episodes: per epoch, in training and in validation by episodes.
        given: names of the settings that were given, not left at their defaults or those of a preset. A training refuses those of them
            that it does not use.
    """

    backbone: bool = False
    freeze_statistics: bool = False
    epochs: int = 6
    batch_size: int = 64
    optimiser: Optimiser = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    step: int = 30
    factor: float = 0.1
    power: float = 0.9
    period: int | None = None
    dropout: float | None = None
    alpha: float = 0.5
    temperature: float = 1.0
    smallest_crop: float | None = 0.35
    centre_crop: float = 1.0
    padding: int | None = None
    erasing: float = 0.0
    deletion_grid: int | None = None
    patience: int | None = None
    validation: float = 0.1
    head_lr: float | None = None
    local_lr: float | None = None
    ranking: float = 0.5
    margin: float = 0.5
    base_lr: float | None = None
    episodes: int = 100
    given: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._say_given({each.name for each in fields(self) if each.init and getattr(self, each.name) != each.default})
        wrong = [
            f"{name}={getattr(self, name)}"
            for name, fine in (
                ("epochs", self.epochs >= 1),
                ("batch_size", self.batch_size >= 1),
                ("lr", 0 < self.lr < math.inf),
                ("momentum", 0 <= self.momentum < 1),
                ("weight_decay", 0 <= self.weight_decay < math.inf),
                ("step", self.step >= 1),
                ("period", self.period is None or self.period >= 1),
                ("dropout", self.dropout is None or 0 <= self.dropout < 1),
                ("alpha", 0 <= self.alpha <= 1),
                ("temperature", 0 < self.temperature < math.inf),
                ("smallest_crop", self.smallest_crop is None or 0 < self.smallest_crop <= 1),
                ("centre_crop", 0 < self.centre_crop <= 1),
                ("padding", self.padding is None or self.padding >= 1),
                ("erasing", 0 <= self.erasing <= 1),
                ("deletion_grid", self.deletion_grid is None or _is_grid(self.deletion_grid)),
                ("patience", self.patience is None or self.patience >= 1),
                ("validation", 0 < self.validation < 1),
                ("head_lr", self.head_lr is None or 0 < self.head_lr < math.inf),
                ("local_lr", self.local_lr is None or 0 < self.local_lr < math.inf),
                ("ranking", 0 <= self.ranking < math.inf),
                ("margin", 0 <= self.margin <= 1),
                ("factor", 0 < self.factor <= 1),
                ("power", 0 < self.power < math.inf),
                ("base_lr", self.base_lr is None or 0 < self.base_lr < math.inf),
                ("episodes", self.episodes >= 1),
            )
            if not fine
        ]
        if wrong:
            raise SettingError(f"a training cannot have {', '.join(wrong)}.")
        if self.nesterov and self.optimiser == "sgd" and self.momentum == 0:
            raise SettingError("nesterov=True needs a momentum above 0: give one, or nesterov=False (--no-nesterov).")
        if self.centre_crop != 1 and self.smallest_crop is None:
            raise SettingError(f"centre_crop={self.centre_crop} applies to random crops: give smallest_crop too, or leave it out.")
        if self.padding is not None and self.smallest_crop is not None:
            raise SettingError(
                f"padding={self.padding} and smallest_crop={self.smallest_crop} are two ways to crop a training picture: give one of them."
            )

    def with_(self, **changes: Any) -> Recipe:
        """A copy with some settings changed; None keeps a setting. `padding` and `smallest_crop` each take the other's place."""
        changed = {key: value for key, value in changes.items() if value is not None}
        others = {"padding": "smallest_crop", "smallest_crop": "padding"}
        left_out = {others[key]: None for key in changed if key in others}
        return replace(self, **left_out | changed)._say_given(self.given | set(changed))

    def as_preset(self) -> Recipe:
        """A copy none of whose settings counts as given."""
        return replace(self)._say_given(set())

    def _say_given(self, names: Set[str]) -> Recipe:
        object.__setattr__(self, "given", frozenset(names))
        return self

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return {key: value for key, value in asdict(self).items() if key != "given"}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote; none of its settings counts as given."""
        known = {each.name for each in fields(cls) if each.init}
        return cls(**{key: value for key, value in stored.items() if key in known}).as_preset()


_PRESETS: dict[str, Recipe] = {
    # Torres et al. 2024, App. B: 256 pictures per step on eight GPUs; crops as in torchvision's reference training.
    "ca-stream": Recipe(epochs=90, batch_size=256, optimiser="sgd", lr=0.1, schedule="step", step=30, smallest_crop=0.08),
    "head": Recipe(),
    "probe": Recipe(epochs=30, smallest_crop=None),  # features are the same in every epoch, and can be kept
    "full": Recipe(backbone=True, epochs=10, batch_size=32, lr=3e-4),
    # Hesse et al. 2024, the released code's, from pretrained weights; it keeps the epoch of the highest validation accuracy.
    "idsds": Recipe(
        backbone=True,
        epochs=30,
        batch_size=256,
        optimiser="sgd",
        lr=1e-3,
        schedule="step",
        step=10,
        smallest_crop=0.08,
        deletion_grid=4,
    ),
    # Torres et al. 2024, the released code's fine-tuning on VOC 2012, at 224; batch and crops are those of the other presets.
    "voc": Recipe(backbone=True, epochs=20, batch_size=32, optimiser="sgd", lr=1e-4, weight_decay=0.0, schedule="cosine", period=12),
    # Zheng et al. 2019, the released code's on Market-1501: 100,000 steps of 8 pictures, ×0.1 at 60,000; the two blocks learn ten times as
    # fast as the network. It has another ×0.1 at 90,000 steps, this has not.
    "re-identification": Recipe(
        backbone=True,
        epochs=62,
        batch_size=8,
        optimiser="sgd",
        lr=0.002,
        head_lr=0.02,
        nesterov=True,
        weight_decay=5e-4,
        schedule="step",
        step=37,
        smallest_crop=None,
        padding=10,
        erasing=0.5,
    ),
    # Yuan et al. 2020, the released code's on Cityscapes: 40,000 steps of 8 pictures, scales of a half to 2.
    "ocr": Recipe(
        backbone=True, epochs=108, batch_size=8, optimiser="sgd", lr=0.01, weight_decay=5e-4, schedule="poly", smallest_crop=0.25
    ),
    # Shroff 2020, Sec. 4.2, and the released code for weight decay and batch; neither says how many epochs.
    "focus": Recipe(
        backbone=True,
        epochs=120,
        batch_size=32,
        optimiser="sgd",
        lr=1e-3,
        local_lr=1e-2,
        weight_decay=5e-4,
        schedule="step",
        step=40,
        smallest_crop=None,
    ),
    # Sun et al. 2019 as released, on the base classes: crops of 88 whose inner 80 are kept.
    "few-shot-base": Recipe(
        backbone=True,
        epochs=100,
        batch_size=128,
        optimiser="sgd",
        lr=0.1,
        nesterov=True,
        weight_decay=5e-4,
        schedule="step",
        step=30,
        factor=0.2,
        smallest_crop=0.08,
        centre_crop=80 / 88,
    ),
    # The same, in the settings of Gomez et al. 2021: one episode per step, of whole pictures.
    "few-shot": Recipe(
        backbone=True,
        epochs=50,
        optimiser="adam",
        lr=1e-4,
        base_lr=1e-3,
        weight_decay=0,
        schedule="step",
        step=10,
        factor=0.5,
        smallest_crop=None,
    ),
}
PRESETS = {name: recipe.as_preset() for name, recipe in _PRESETS.items()}


def recipe_of(preset: str) -> Recipe:
    """The recipe of a preset's name."""
    if preset not in PRESETS:
        raise NameUnknownError("preset", preset, PRESETS)
    return PRESETS[preset]


def default_preset(head: str, model: str = "", of_task: str | None = None) -> str:
    """Default preset: "focus" of a two-stream network; else that of the task; else the head alone if it keeps the network's own
    classifier, or head and network.

    Args:
        head: its name with settings.
        model: name of the network.
        of_task: the preset of the task, if it has one.
    """
    if model.startswith(PREFIX):
        return "focus"
    return of_task or ("head" if heads.create(head).metadata.replaces == "pooling" else "full")
