"""What a training leaves in its folder: settings, checkpoints, logs."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from xattn.errors import DivergedError, RunError
from xattn.progress import Progress

logger = logging.getLogger("xattn")

LAST, BEST, SETTINGS = "last.ckpt", "best.ckpt", "training.json"


def begin(folder: Path, settings: Mapping[str, Any], work: str = LAST) -> None:
    """Makes a training's folder, or finds that it holds this very training.

    Args:
        folder: where.
        settings: what the weights depend on.
        work: the file by which a folder is known to hold work that could be lost; without it settings are written anew.

    Raises:
        RunError: it holds another training, or cannot be written.
    """
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and (folder / work).exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if apart := list(_apart(stored, json.loads(json.dumps(settings)))):
                raise RunError(f"'{folder}' holds another training ({'; '.join(apart)}): give another --out, or remove the folder.")
            return
        part = path.with_suffix(f".{os.getpid()}.part")  # several processes may begin at once
        part.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"'{folder}' cannot be written ({error.strerror}).") from error


def _apart(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in now:
        was, found = stored.get(key), now[key]
        if isinstance(was, dict) and isinstance(found, dict):
            yield from (f"{key}: {line}" for line in _apart(was, found))
        elif was != found:
            yield f"{key} was {was}, is {found}"


class Checkpointing(Checkpoint):
    """Keeps the last finished epoch and the best one, each written whole or not at all, and reports progress.

    Args:
        folder: of the training.
        images: trained on in an epoch.
        epochs: in all.
        shown: whether to show progress and log a line per epoch.
        on_epoch: called with each epoch's number and validation accuracy.
    """

    def __init__(self, folder: Path, images: int, epochs: int, shown: bool, on_epoch: Callable[[int, float], None] | None) -> None:
        self.folder = folder
        self.images = images
        self.epochs = epochs
        self.shown = shown
        self.on_epoch = on_epoch
        self.progress = Progress(images * epochs, shown)
        self.kept: dict[str, Any] = {"epochs": 0, "best_epoch": 0, "best_loss": math.inf, "best_accuracy": math.nan, "finished": False}

    def resume(self) -> str | None:
        """The checkpoint of the last finished epoch, if there is one; `kept` then says what is known of it."""
        path = self.folder / LAST
        if not path.exists():
            return None
        self.kept = torch.load(path, map_location="cpu", weights_only=True)["callbacks"][self.state_key]
        self.progress.skip(self.images * self.kept["epochs"])
        return str(path)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.kept)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen = len(batch[1]) * trainer.world_size  # processes are given the same number, some pictures twice
        self.progress.add(min(seen, self.progress.total - self.progress.before - self.progress.now))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch, loss, accuracy = trainer.current_epoch + 1, found["val_loss"], found["val_accuracy"]
        if not math.isfinite(loss):
            raise DivergedError(f"the validation loss is {loss} after epoch {epoch}: it diverged. Give a lower learning rate.")
        is_best = loss < self.kept["best_loss"]
        if is_best:
            self.kept |= {"best_epoch": epoch, "best_loss": loss, "best_accuracy": accuracy}
        self.kept |= {"epochs": epoch, "finished": bool(trainer.should_stop) or epoch == self.epochs}
        if is_best:
            self._save(trainer, BEST)
        self._save(trainer, LAST)
        if self.shown:
            line = "epoch %d of %d: loss %.4f, validation loss %.4f, accuracy %.2f %%"
            logger.info(line, epoch, self.epochs, found["loss_epoch"], loss, accuracy)
        if self.on_epoch is not None:
            self.on_epoch(epoch, accuracy)

    def _save(self, trainer: Any, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.part")
        if trainer.is_global_zero:
            (self.folder / f"{name}.part").replace(self.folder / name)


def loggers(folder: Path) -> list[Logger]:
    """CSV, and TensorBoard where it is installed."""
    made: list[Logger] = [CSVLogger(folder, name="", prefix="")]
    if importlib.util.find_spec("tensorboard") is not None:
        made.append(TensorBoardLogger(folder, name="", version=f"tensorboard_{made[0].version}"))
    return made


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
