"""Training of a head, or of head and network, in a folder that a cut-off training goes on in."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader

from xattn.classifiers import Classifier
from xattn.errors import InputError, RunError
from xattn.progress import Progress
from xattn.training.data import Classes, EpochOrder, Labelled, open_data, splits
from xattn.training.module import Training, freeze
from xattn.training.recipe import Recipe, default_preset, recipe_of

LAST, BEST, SETTINGS = "last.ckpt", "best.ckpt", "training.json"


@dataclass(frozen=True)
class Fitted:
    """How a training ended.

    Attributes:
        epochs: how many were run.
        best: epoch whose weights were kept, from 1: the lowest validation loss.
        loss: validation loss of that epoch.
        accuracy: validation accuracy of that epoch, in percent.
        folder: logs and checkpoints.
    """

    epochs: int
    best: int
    loss: float
    accuracy: float
    folder: Path


def fit(
    classifier: Classifier,
    data: str | Path | Labelled,
    out: str | Path,
    *,
    recipe: Recipe | str | None = None,
    classes: Classes = "folders",
    teacher: Classifier | None = None,
    seed: int = 0,
    workers: int | None = None,
    accelerator: str | None = None,
    devices: int | str = 1,
    nodes: int = 1,
    precision: Any = "32-true",
    log_gradients: bool = False,
    progress: bool = True,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Trains a classifier's head, or head and network, in place, and saves it.

    A training that was cut off goes on from its last finished epoch when it is called again with the same `out`, and ends in the same
    weights. What is kept is the epoch of the lowest loss on the validation split; no test split is ever opened.

    Args:
        classifier: from `xattn.load` or `xattn.attach`.
        data: what `open_data` takes, or gave.
        out: the `.safetensors` to write; logs and checkpoints go into a folder beside it, called alike with `.training`.
        recipe: settings, or a preset's name; None: "head" for ca-stream, "full" for the others.
        classes: what folders' names are, as for `open_data`.
        teacher: a classifier of the same classes whose answers are learnt beside the labels.
        seed: of the split, the order, the augmentation and dropout.
        workers: processes that decode; None: one a core but one, at most 8.
        accelerator: "cpu", "gpu", "mps", …; None: where the classifier is.
        devices: how many on each node, as Lightning takes them.
        nodes: how many machines.
        precision: as Lightning takes it: "32-true", "16-mixed", "bf16-mixed", "64-true".
        log_gradients: log the gradient norm of each layer at each step.
        progress: a bar and a line an epoch on stderr.
        on_epoch: called with each epoch's number and validation accuracy; what it raises ends the training.

    Raises:
        InputError: labels outside the classes, a teacher of other classes, or nothing to train.
        RunError: the folder holds another training.
        DivergedError: the loss became infinite or no number; what was finished before is kept.

    Source: Torres et al. 2024, App. B; Gomez et al. 2021, Sec. 3.1.
    """
    chosen = recipe_of(recipe or default_preset(classifier.head_name)) if not isinstance(recipe, Recipe) else recipe
    opened = open_data(data, classes)
    _check(classifier, opened, teacher, chosen)
    folder = Path(out).with_suffix(".training")
    begin(folder, _settings(classifier, opened, teacher, chosen, seed, precision))
    workers = min(8, max(1, (os.cpu_count() or 1) - 1)) if workers is None else workers
    if chosen.dropout is not None:
        _dropout(classifier).p = chosen.dropout
    training, numbers, validation = splits(opened, classifier.preprocessing, chosen.validation, chosen.smallest_crop, seed)
    module = Training(classifier, chosen, teacher, log_gradients, seed)
    flags = freeze(classifier, backbone=chosen.backbone)
    modes = {part: part.training for part in classifier.modules()}
    device = classifier.device
    batch = max(1, chosen.batch_size // _count(devices, nodes))
    shared: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    keeper = Keeper(folder, len(numbers), chosen.epochs, progress and is_first_process(), on_epoch)
    callbacks: list[lightning.Callback] = [keeper]
    if chosen.patience is not None:
        callbacks.append(EarlyStopping("val_loss", patience=chosen.patience))
    try:
        with quiet():
            trainer = lightning.Trainer(
                accelerator=accelerator or {"cuda": "gpu"}.get(device.type, device.type),
                devices=[device.index or 0] if device.type == "cuda" and devices == 1 else devices,
                num_nodes=nodes,
                precision=precision,
                max_epochs=chosen.epochs,
                logger=_loggers(folder),
                callbacks=callbacks,
                log_every_n_steps=1,
                num_sanity_val_steps=0,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=True,
            )
            resumed = str(folder / LAST) if (folder / LAST).exists() else None
            first = keeper.skip(resumed)
            order = EpochOrder(numbers, seed, lambda: max(first, trainer.current_epoch))  # asked before Lightning has restored its own
            loader = DataLoader(training, batch, sampler=order, drop_last=len(numbers) > batch, **shared)
            trainer.fit(module, loader, DataLoader(validation, batch, **shared), ckpt_path=resumed, weights_only=True)
        best = torch.load(folder / BEST, map_location="cpu", weights_only=True)
        module.load_state_dict(best["state_dict"], strict=False)
    finally:
        keeper.close()
        classifier.to(device)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None
        for part, mode in modes.items():
            part.training = mode
    classifier.trained = True
    if opened.names is not None and len(opened.names) == classifier.class_count:
        classifier.labels = opened.names
    if trainer.is_global_zero and classifier.source is not None:
        classifier.save(str(out))
    return Fitted(trainer.current_epoch, keeper.best_epoch, keeper.best_loss, keeper.best_accuracy, folder)


def is_first_process() -> bool:
    """Whether this process is the one of a training on several devices that speaks."""
    return not getattr(rank_zero_only, "rank", None)


def _count(devices: int | str, nodes: int) -> int:
    return (int(devices) if str(devices).isdigit() else 1) * nodes


def _dropout(classifier: Classifier) -> nn.Dropout:
    found = getattr(classifier.head, "dropout", None)
    if not isinstance(found, nn.Dropout):
        raise InputError(f"{classifier.head_name} has no dropout to set: leave it out of the recipe.")
    return found


def _check(classifier: Classifier, data: Labelled, teacher: Classifier | None, recipe: Recipe) -> None:
    for part in (data, data.validation):
        for number, target in enumerate(part.targets if part is not None else ()):
            if not 0 <= target < classifier.class_count:
                raise InputError(
                    f"{data.name}: {part.called(number) if part else number} has label {target}, outside the "
                    f"{classifier.class_count} classes of {classifier.name} · {classifier.head_name}. Load it with the number of classes "
                    "of the data, or relabel."
                )
    if data.names is not None and len(data.names) != classifier.class_count:
        raise InputError(
            f"{data.name} has {len(data.names)} classes, {classifier.name} · {classifier.head_name} {classifier.class_count}: load it with "
            f"classes={len(data.names)} (br-npa and b-cnn have a classifier of their own), or give labels among the network's classes "
            "(--classes wnid for folders called by ImageNet's WordNet ids)."
        )
    if teacher is not None and teacher.class_count != classifier.class_count:
        raise InputError(
            f"the teacher has {teacher.class_count} classes, {classifier.name} {classifier.class_count}: they must be the same."
        )
    if not recipe.backbone and not any(True for _ in classifier.head.parameters()):
        raise InputError(
            f"{classifier.head_name} has no weights of its own to train: train the network too (preset full), or use ca-stream."
        )


def _settings(
    classifier: Classifier, data: Labelled, teacher: Classifier | None, recipe: Recipe, seed: int, precision: Any
) -> dict[str, Any]:
    return {
        "model": classifier.name,
        "head": classifier.head_name,
        "classes": classifier.class_count,
        "network": classifier.source.digest if classifier.source else None,
        "high_res": list(classifier.source.high_res) if classifier.source else None,
        "data": {"name": data.name, "count": len(data), "sum": sum((n + 1) * (t + 1) for n, t in enumerate(data.targets))},
        "teacher": None if teacher is None else teacher.digest(),
        "recipe": recipe.to_json(),
        "seed": seed,
        "precision": precision,
    }


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Makes a training's folder, or finds that it holds this very training.

    Raises:
        RunError: it holds another one, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / SETTINGS
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if apart := [key for key in settings if stored.get(key) != settings[key]]:
                was = ", ".join(f"{key} was {stored.get(key)}, is {settings[key]}" for key in apart)
                raise RunError(f"'{folder}' holds another training ({was}): give another --out, or remove the folder.")
            return
        part = path.with_suffix(f".{os.getpid()}.part")  # several processes may begin at once
        part.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"'{folder}' cannot be written ({error.strerror}).") from error


class Keeper(Checkpoint):
    """Keeps the last finished epoch and the best one, each written whole or not at all, and tells how far it is."""

    def __init__(self, folder: Path, images: int, epochs: int, wanted: bool, on_epoch: Callable[[int, float], None] | None) -> None:
        self.folder = folder
        self.images = images
        self.wanted = wanted
        self.epochs = epochs
        self.on_epoch = on_epoch
        self.progress: Progress | None = Progress(images * epochs, wanted)
        self.best_epoch, self.best_loss, self.best_accuracy = 0, math.inf, math.nan

    def skip(self, checkpoint: str | None) -> int:
        """Counts the epochs that an earlier run has finished."""
        if checkpoint is None:
            return 0
        finished = int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]) + 1
        if self.progress is not None:
            self.progress.skip(self.images * finished)
        return finished

    def close(self) -> None:
        """Ends the bar."""
        if self.progress is not None:
            self.progress.__exit__()
        self.progress = None

    def state_dict(self) -> dict[str, Any]:
        return {"best_epoch": self.best_epoch, "best_loss": self.best_loss, "best_accuracy": self.best_accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero and self.progress is not None:
            self.progress.add(len(batch[1]) * trainer.world_size)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch, loss, accuracy = trainer.current_epoch + 1, found["val_loss"], found["val_accuracy"]
        if loss < self.best_loss or not self.best_epoch:
            self.best_epoch, self.best_loss, self.best_accuracy = epoch, loss, accuracy
            self._save(trainer, BEST)
        self._save(trainer, LAST)
        if trainer.is_global_zero and self.wanted:
            line = f"epoch {epoch} of {self.epochs}: loss {found['loss_epoch']:.4f}, validation loss {loss:.4f}, accuracy {accuracy:.2f} %"
            print(line, file=sys.stderr)
        if self.on_epoch is not None:
            self.on_epoch(epoch, accuracy)

    def _save(self, trainer: Any, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.part")
        if trainer.is_global_zero:
            (self.folder / f"{name}.part").replace(self.folder / name)


def _loggers(folder: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(folder, name="", prefix="")]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(folder, name="", version=f"tensorboard_{loggers[0].version}"))
    return loggers


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's announcements and hints left out; its errors stay."""
    names = (
        "lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # Lightning's order under mixed precision
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
