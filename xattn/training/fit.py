"""Training of a head, or of head and network, in a folder from which an interrupted run resumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from xattn.errors import DivergedError, InputError
from xattn.focus import PREFIX, TwoStreams
from xattn.models import Classifier
from xattn.models.state_dicts import digest_of
from xattn.registry import Component
from xattn.tasks import Task, TaskMetadata, default_task, tasks
from xattn.training.checkpointing import BEST, Checkpointing, begin, early_stop, loggers, one_training, quiet
from xattn.training.checks import check, in_classes_of
from xattn.training.data import Classes, Crops, EpochOrder, Labelled, splits
from xattn.training.features import as_it_is, check_cacheable, on_features
from xattn.training.module import Training, freeze
from xattn.training.recipe import Recipe, default_preset, recipe_of
from xattn.training.streams import BoxedCrops, training_boxes


@dataclass(frozen=True)
class Fitted:
    """Result of a training run.

    Attributes:
        epochs: number of epochs run.
        best: epoch whose weights were kept, counted from 1: the one with the lowest validation loss or, where the task says so, the
            highest score.
        loss: validation loss of that epoch.
        score: validation score of that epoch, in percent: accuracy, or what the task has.
        validation: number of pictures behind loss and score.
        folder: holds logs and checkpoints.
    """

    epochs: int
    best: int
    loss: float
    score: float
    validation: int
    folder: Path


def fit(
    classifier: Classifier,
    data: str | Path | Labelled | Dataset[Any],
    out: str | Path,
    *,
    task: str | None = None,
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
    cache_features: str | Path | None = None,
    patches: str | Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Trains a classifier's head, or head and network, in place; saves the result if the classifier was loaded by name.

    An interrupted run resumes from its last finished epoch when `fit` is called again with the same `out`, and ends with the same
    weights. The weights kept are those of the epoch with the lowest validation loss, or with the highest score where the task says so; no
    test split is ever opened.

    Args:
        classifier: from `xattn.load` or `xattn.attach`.
        data: anything that the task opens, or that opened.
        out: the `.safetensors` to write; logs and checkpoints go into a folder beside it, with the same name and `.training`.
        task: what it is trained for, see `xattn list tasks`; None: "multi-label" if its labels stand alone, else "classification".
        recipe: settings, or the name of a preset; None: that of the task if it has one, else "head" for ca-stream, "full" for the others.
        classes: what folder names mean, as for `open_data`. Names that the classifier knows are taken as its own classes.
        teacher: a classifier with the same classes; its answers are learnt besides the labels. `start_from` gives the student its weights.
        seed: for the split, the order, the augmentation and dropout.
        workers: decoding processes; None: one fewer than the cores, at most 8.
        accelerator: "cpu", "gpu", "mps", …; None: the classifier's device.
        devices: number of devices per node, in any form that Lightning accepts.
        nodes: number of machines.
        precision: one of Lightning's: "32-true", "16-mixed", "bf16-mixed", "64-true".
        log_gradients: log the gradient norm of each layer at each step.
        cache_features: folder in which the frozen network's features are kept, computed once: for a head alone, without random crops. Runs
            with the same network, preprocessing and pictures share them. None: the network runs in every epoch.
        patches: a `.npy` of boxes of the training pictures, for a two-stream network, see `xattn.patches.file`; None: those that it finds.
        progress: show a bar where stderr is a terminal, and log one line per epoch.
        on_epoch: called with each epoch's number and validation score; an exception from it ends the training.

    Raises:
        InputError: labels outside the classes, a teacher with other classes, nothing to train, a setting that was given and is not used, or
            features that are not the same in every epoch and so cannot be kept.
        RunError: the folder holds another training run or is in use, or the features do not fit on the disk.
        DivergedError: the loss became infinite or NaN; the best epoch before that, if any, is saved.

    Source: Torres et al. 2024, App. B; Gomez et al. 2021, Sec. 3.1.
    """
    component, chosen, opened, training, numbers, validation = prepared(classifier, data, task, recipe, classes, teacher, seed, precision)
    boxes = None if patches is None else training_boxes(patches, opened, classifier, chosen)
    workers = default_workers() if workers is None else workers
    source: Dataset[Any] = training if boxes is None else BoxedCrops(training, boxes)
    shared: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    if cache_features is not None:
        check_cacheable(classifier, chosen, teacher, devices, nodes)
        shown = progress and is_first_process()
        options: dict[str, Any] = {"precision": precision, "batch": chosen.batch_size, "workers": workers, "shown": shown}
        source, validation = on_features(classifier, training, validation, Path(cache_features), **options)
        shared = {"collate_fn": as_it_is}  # read from the file where they are used
    folder = Path(out).with_suffix(".training")
    by = component.metadata
    checkpointing = Checkpointing(folder, len(numbers), chosen.epochs, by, progress and is_first_process(), on_epoch)
    diverged: DivergedError | None = None
    alone = one_training(folder) if is_first_process() else nullcontext()
    with alone, as_it_was(classifier), checkpointing.progress, quiet():
        trainer = trainer_for(
            classifier,
            folder,
            chosen,
            [checkpointing, *early_stop(by, chosen)],
            accelerator=accelerator,
            devices=devices,
            nodes=nodes,
            precision=precision,
        )
        begin(folder, settings_of(classifier, component.spec, opened, teacher, chosen, seed, precision) | _described(boxes))
        if chosen.dropout is not None:
            for layer in classifier.head.dropouts():
                layer.p = chosen.dropout
        batch = max(1, chosen.batch_size // (trainer.num_devices * trainer.num_nodes))
        plain = source if cache_features is not None else Crops(opened, classifier.preprocessing, None, seed)
        pictures = DataLoader(Subset(plain, numbers), batch, **shared) if classifier.head.push_every else None
        module = Training(classifier, component, chosen, teacher, log_gradients, seed, pictures)
        freeze(classifier, backbone=chosen.backbone)
        checkpoint = checkpointing.resume()
        first = checkpointing.kept["epochs"]
        processes = trainer.num_devices * trainer.num_nodes
        loader = DataLoader(
            source,
            batch,
            sampler=EpochOrder(numbers, seed, lambda: max(first, trainer.current_epoch)),  # called before Lightning restores current_epoch
            drop_last=len(numbers) > 1 and -(-len(numbers) // processes) % batch == 1,  # BatchNorm cannot train on a single picture
            **shared,
        )
        if not checkpointing.kept["finished"]:
            diverged = train(trainer, module, loader, DataLoader(validation, batch, **shared), checkpoint, folder)
        module.load_state_dict(checkpointing.best(), strict=False)
    classifier.trained = True
    if opened.names is not None:
        classifier.labels = opened.names
    if trainer.is_global_zero and classifier.source is not None:
        classifier.save(str(out))
    return result_of(checkpointing, diverged, len(validation), out)  # type: ignore[arg-type]  # a data set with a length


class Prepared(NamedTuple):
    """What a training begins with.

    Attributes:
        task: what the classifier is trained for.
        recipe: settings.
        data: opened, in the classifier's classes.
        training: the training crops.
        numbers: those of them that are trained on.
        validation: crops, or a subset of the training crops.
    """

    task: Component[TaskMetadata, Task]
    recipe: Recipe
    data: Labelled
    training: Crops
    numbers: list[int]
    validation: Dataset[Any]


def prepared(
    classifier: Classifier,
    data: str | Path | Labelled | Dataset[Any],
    task: str | None,
    recipe: Recipe | str | None,
    classes: Classes,
    teacher: Classifier | None,
    seed: int,
    precision: Any,
) -> Prepared:
    """Opens the data of a training, and checks that it can begin; arguments as for `fit`.

    Raises:
        InputError: it cannot.
    """
    component = tasks.create(task or default_task(classifier.multi_label))
    chosen = recipe if isinstance(recipe, Recipe) else recipe_of(recipe or default_of(classifier, component.metadata))
    component.instance.check(classifier)
    component.instance.check_training(classifier, teacher is not None)
    opened = in_classes_of(classifier, component.instance.open(data, classes))
    check(classifier, opened, teacher, chosen, precision)
    training, numbers, validation = splits(
        opened,
        classifier.preprocessing,
        chosen.validation,
        chosen.smallest_crop,
        seed,
        centre=chosen.centre_crop,
        per_pixel=component.metadata.per_pixel,
        deletion_grid=chosen.deletion_grid,
        padding=chosen.padding,
        erasing=chosen.erasing,
    )
    return Prepared(component, chosen, opened, training, numbers, validation)


def default_workers() -> int:
    """Decoding processes where none are asked for: one fewer than the cores, at most 8."""
    return min(8, max(1, (os.cpu_count() or 1) - 1))


def train(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    loader: DataLoader[Any],
    validation: DataLoader[Any],
    checkpoint: str | None,
    folder: Path,
) -> DivergedError | None:
    """Trains; returns the error of a training that diverged after an epoch that was kept.

    Raises:
        DivergedError: it diverged before.
    """
    try:
        trainer.fit(module, loader, validation, ckpt_path=checkpoint, weights_only=True)
    except DivergedError as error:
        if not (folder / BEST).exists():
            raise
        return error
    return None


def result_of(checkpointing: Checkpointing, diverged: DivergedError | None, validation: int, out: str | Path) -> Fitted:
    """The result of a training whose best epoch is in place.

    Raises:
        DivergedError: it diverged.
    """
    kept = checkpointing.kept
    if diverged is not None:
        best = f"The best epoch before it, {kept['best_epoch']}, is in {out}; train with other settings into another file."
        raise DivergedError(f"{diverged} {best}") from diverged
    return Fitted(kept["epochs"], kept["best_epoch"], kept["best_loss"], kept["best_score"], validation, checkpointing.folder)


def trainer_for(
    classifier: Classifier,
    folder: Path,
    recipe: Recipe,
    callbacks: list[Callback],
    *,
    accelerator: str | None,
    devices: int | str = 1,
    nodes: int = 1,
    precision: Any = "32-true",
    **options: Any,
) -> lightning.Trainer:
    """Lightning's trainer of a classifier.

    Raises:
        InputError: Lightning cannot train there.
    """
    where = accelerator or {"cuda": "gpu"}.get(classifier.device.type, classifier.device.type)
    try:
        return lightning.Trainer(
            accelerator=where,
            devices=[classifier.device.index or 0] if where == "gpu" and classifier.device.type == "cuda" and devices == 1 else devices,
            num_nodes=nodes,
            precision=precision,
            max_epochs=recipe.epochs,
            logger=loggers(folder),
            callbacks=callbacks,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
            **options,
        )
    except (MisconfigurationException, ValueError, ModuleNotFoundError) as error:
        raise InputError(
            f"Lightning cannot train with accelerator {where}, devices {devices}, nodes {nodes}, precision {precision}: {error}"
        ) from error


@contextmanager
def as_it_was(classifier: Classifier) -> Iterator[None]:
    """Restores the classifier's device, flags and dropout, and torch's generator, at the end; its weights stay changed."""
    device, dropout = classifier.device, {layer: layer.p for layer in classifier.head.dropouts()}
    flags = {parameter: parameter.requires_grad for parameter in classifier.parameters()}
    modes = {part: part.training for part in classifier.modules()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            classifier.to(device)
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)
                parameter.grad = None
            for part, mode in modes.items():
                part.training = mode
            for layer, share in dropout.items():
                layer.p = share


def default_of(classifier: Classifier, task: TaskMetadata) -> str:
    """The default preset of a classifier for a task."""
    return default_preset(classifier.head_name, PREFIX if isinstance(classifier.network, TwoStreams) else "", task.preset)


def _described(boxes: Tensor | None) -> dict[str, Any]:
    return {"patches": None if boxes is None else digest_of({"boxes": boxes})}


def is_first_process() -> bool:
    """Whether this is the process that reports, in a training run on several devices."""
    return not getattr(rank_zero_only, "rank", None)


def settings_of(
    classifier: Classifier, task: str, data: Labelled, teacher: Classifier | None, recipe: Recipe, seed: int, precision: Any
) -> dict[str, Any]:
    """Everything that the weights after a training depend on; asked before it begins, when the weights are those that it starts from."""
    source = classifier.source
    digest = "" if source is None else source.digest
    if not digest:  # of a network from a saved file
        digest = digest_of(classifier.network.state_dict())
    return {
        "task": task,
        "model": classifier.name,
        "head": classifier.head_name,
        "classes": classifier.class_count,
        "output": classifier.reader.path,
        "network": None if source is None else {"digest": digest, "high_res": source.high_res, "dilate": source.dilate},
        "preprocessing": asdict(classifier.preprocessing),
        "data": {"name": data.name, "count": len(data), "sum": _sum(data)},
        "teacher": None if teacher is None else teacher.digest(),
        "recipe": recipe.to_json(),
        "seed": seed,
        "precision": precision,
        "seeds": None,  # of several heads, see `xattn.training.seeds`
    }


def _sum(data: Labelled) -> int:
    """A sum that differs where labels, or their order, do."""
    targets = torch.tensor(data.targets).view(len(data), -1) + 1
    weights = torch.arange(1, targets.numel() + 1).view(targets.shape)
    return int((weights * targets).sum())
