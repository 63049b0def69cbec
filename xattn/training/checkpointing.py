"""What a training run leaves in its folder: settings, checkpoints, logs."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from xattn.errors import DivergedError, RunError
from xattn.locking import one_process
from xattn.progress import Progress
from xattn.stored import Count, parsed, structured
from xattn.tasks import TaskMetadata
from xattn.training.recipe import Recipe

logger = logging.getLogger("xattn")

LAST, BEST, SETTINGS = "last.ckpt", "best.ckpt", "training.json"


def begin(folder: Path, settings: Mapping[str, Any], work: str = LAST) -> None:
    """Creates the folder of a training run, or checks that it already holds this very run.

    Args:
        folder: where to create it.
        settings: everything that the weights depend on.
        work: file whose presence means that the folder holds work that could be lost; without it the settings are overwritten.

    Raises:
        RunError: the folder holds another training run, or cannot be written.
    """
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and (folder / work).exists():
            try:
                stored = structured(dict[str, Any], parsed(path.read_bytes()))
            except ValueError as error:
                raise RunError(f"'{path}' is damaged ({error}): give another --out, or remove the folder.") from error
            if isinstance(stored.get("recipe"), dict):  # settings that an earlier version did not have are at their defaults
                stored["recipe"] = Recipe().to_json() | stored["recipe"]
            stored.setdefault("task", "classification")
            was, network = stored.get("network"), settings.get("network")
            if isinstance(was, dict) and was.get("digest") == "" and network is not None:  # an earlier version did not take this digest
                was["digest"] = network["digest"]
            if apart := list(_apart(stored, json.loads(json.dumps(settings)))):
                raise RunError(f"'{folder}' holds another training ({'; '.join(apart)}): give another --out, or remove the folder.")
            return
        part = path.with_suffix(f".{os.getpid()}.part")  # several processes may start at once
        part.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"'{folder}' cannot be written ({error.strerror}).") from error


@contextmanager
def one_training(folder: Path) -> Iterator[None]:
    """Keeps other processes from training into a folder, which it makes.

    Raises:
        RunError: another process trains into it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(one_process(folder))
        except OSError as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"'{folder}' cannot be written ({error.strerror}).") from error
        yield


def _apart(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in now:
        was, found = stored.get(key), now[key]
        if isinstance(was, dict) and isinstance(found, dict):
            yield from (f"{key}: {line}" for line in _apart(was, found))
        elif was != found:
            yield f"{key} was {was}, is {found}"


class _Kept(TypedDict):
    epochs: Count
    best_epoch: Count
    best_loss: float
    best_score: float
    finished: bool


class Checkpointing(Checkpoint):
    """Saves the last finished epoch and the best one, each atomically, and reports progress.

    Args:
        folder: of the training run.
        images: number of training images per epoch.
        epochs: number of epochs in all.
        task: says which epoch is the best.
        shown: whether to show progress and log a line per epoch.
        on_epoch: called with each epoch's number and validation score.
    """

    layout: ClassVar[type] = _Kept

    def __init__(
        self, folder: Path, images: int, epochs: int, task: TaskMetadata, shown: bool, on_epoch: Callable[[int, float], None] | None
    ) -> None:
        self.folder = folder
        self.images = images
        self.epochs = epochs
        self.task = task
        self.shown = shown
        self.on_epoch = on_epoch
        self.progress = Progress(images * epochs, shown)
        self.kept: dict[str, Any] = {"epochs": 0, "best_epoch": 0, "best_loss": math.inf, "best_score": math.nan, "finished": False}

    def resume(self) -> str | None:
        """The checkpoint of the last finished epoch, if there is one; also restores `kept` from it.

        Raises:
            RunError: it is damaged, or that of the best epoch is damaged or gone.
        """
        if not (self.folder / LAST).exists():
            return None
        _, kept = self._loaded(LAST)
        if kept["best_epoch"]:
            self._loaded(BEST)  # a damaged one is reported before anything is trained
        self.restore(kept)
        return str(self.folder / LAST)

    def restore(self, kept: dict[str, Any]) -> None:
        """Continues from what was kept."""
        self.kept = kept
        self.progress.skip(self.images * kept["epochs"])

    def best(self) -> dict[str, Any]:
        """The weights of the best epoch.

        Raises:
            RunError: its checkpoint is damaged or gone.
        """
        return self._loaded(BEST)[0]

    def _loaded(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The weights of a checkpoint, and what was kept when it was saved."""
        path = self.folder / name
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            weights, kept = found["state_dict"], found["callbacks"][self.state_key]
            if "best_accuracy" in kept:  # of an earlier version
                kept["best_score"] = kept.pop("best_accuracy")
            structured(self.layout, kept)
        except Exception as error:  # the unpickler's errors on other kinds of file have no common base class
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            raise RunError(f"'{path}' is damaged ({reason}): give another --out, or remove the folder '{self.folder}'.") from error
        return weights, kept

    def state_dict(self) -> dict[str, Any]:
        return dict(self.kept)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen = len(batch[1]) * trainer.world_size  # every process gets the same number, so some pictures come twice
        self.progress.add(min(seen, self.progress.total - self.progress.before - self.progress.now))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        found = metrics_of(trainer)
        epoch, loss, score = trainer.current_epoch + 1, found["val_loss"], found[f"val_{self.task.score}"]
        if not math.isfinite(loss):
            raise DivergedError(f"the validation loss is {loss} after epoch {epoch}: it diverged. Give a lower learning rate.")
        is_best = self.is_better(loss, score, self.kept["best_loss"], self.kept["best_score"]) and pl_module.is_complete(epoch)
        if is_best:
            self.kept |= {"best_epoch": epoch, "best_loss": loss, "best_score": score}
        self.kept |= {"epochs": epoch, "finished": bool(trainer.should_stop) or epoch == self.epochs}
        if is_best:
            self._save(trainer, BEST)
        self._save(trainer, LAST)
        self.tell(found)
        if self.on_epoch is not None:
            self.on_epoch(epoch, score)

    def is_better(self, loss: float, score: float, best_loss: float, best_score: float) -> bool:
        """Whether an epoch is better than the best before it; `best_score` is NaN if there was none."""
        return loss < best_loss if self.task.best == "loss" else math.isnan(best_score) or score > best_score

    def tell(self, found: Mapping[str, float]) -> None:
        """Logs the line of the epoch that was just kept."""
        if self.shown:
            line = "epoch %d of %d: loss %.4f, validation loss %.4f, %s %.2f %%"
            measure = self.task.score
            logger.info(line, self.kept["epochs"], self.epochs, found["loss_epoch"], found["val_loss"], measure, found[f"val_{measure}"])

    def _save(self, trainer: Any, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.part")
        if trainer.is_global_zero:
            (self.folder / f"{name}.part").replace(self.folder / name)


def metrics_of(trainer: Any) -> dict[str, float]:
    """What was logged in the epoch that ends."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def early_stop(task: TaskMetadata, recipe: Recipe) -> list[Callback]:
    """What ends a training after `patience` epochs that are no better, by the measure that decides which epoch is kept."""
    watched, mode = ("val_loss", "min") if task.best == "loss" else (f"val_{task.score}", "max")
    return [] if recipe.patience is None else [EarlyStopping(watched, patience=recipe.patience, mode=mode)]


def loggers(folder: Path) -> list[Logger]:
    """A CSV logger, and TensorBoard's where it is installed."""
    made: list[Logger] = [CSVLogger(folder, name="", prefix="")]
    if importlib.util.find_spec("tensorboard") is not None:
        made.append(TensorBoardLogger(folder, name="", version=f"tensorboard_{made[0].version}"))
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's announcements and hints; its errors are still shown."""
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
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # caused by Lightning's order of calls under mixed precision
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
