"""Meta-training by episodes: scales and shifts of frozen convolutions, and the weights that an episode's linear layer starts from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from xattn.data.labelled import Labelled
from xattn.data.preprocessing import pixels
from xattn.data.seeds import mixed
from xattn.errors import DivergedError, InputError
from xattn.fewshot import Embedding, Episodes, episode_logits, scaled_and_shifted, with_linear
from xattn.fewshot.adaptation import start_of
from xattn.models import Classifier
from xattn.models.checkpoints import InnerLoop
from xattn.registry import Component
from xattn.tasks import Task, TaskMetadata, tasks
from xattn.tasks.few_shot import FewShot
from xattn.training.checkpointing import Checkpointing, begin, early_stop, one_training, quiet
from xattn.training.checks import check_precision, refuse_unused
from xattn.training.data import Crops
from xattn.training.fit import Fitted, as_it_was, default_workers, result_of, settings_of, train, trainer_for
from xattn.training.loss import distillation
from xattn.training.module import optimiser_of, schedule_of
from xattn.training.recipe import Recipe, recipe_of

logger = logging.getLogger("xattn")


class EpisodeTraining(lightning.LightningModule):
    """A classifier that is trained by episodes, one per step.

    Args:
        classifier: its last layer is what an episode's linear layer starts from.
        learnt: what is trained besides that layer.
        task: has the shape of the episodes, the loss and the score.
        recipe: settings of the training.
        teacher: its logits of the queries, by a layer fitted to the same support set, are learnt besides the labels.
    """

    def __init__(
        self, classifier: Classifier, learnt: list[nn.Parameter], task: FewShot, recipe: Recipe, teacher: Classifier | None
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.embedding = Embedding(classifier)
        self.learnt = learnt
        self.task = task
        self.shape = task.shape_for(classifier)
        self.meter = task.validation(classifier)
        self.recipe = recipe
        self._teacher = [None if teacher is None else Embedding(teacher)]  # in a list, so that it is not a submodule

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        base = {"params": list(self.embedding.linear.parameters()), "lr": recipe.lr if recipe.base_lr is None else recipe.base_lr}
        groups: list[dict[str, Any]] = [{"params": self.learnt}, base]
        optimiser = optimiser_of(recipe, groups)
        factor = schedule_of(recipe, recipe.epochs * recipe.episodes)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        if (teacher := self._teacher[0]) is not None:
            teacher.classifier.to(self.device).eval()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.classifier.eval()  # statistics of BatchNorm are frozen as the weights are

    def is_complete(self, epoch: int) -> bool:
        """Whether the weights after an epoch may be kept: always."""
        return True

    def _logits(self, embedding: Embedding, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(q, K)` of the queries of an episode, and their classes."""
        labels, support = self.shape.labels().to(images.device), self.shape.support
        vectors = embedding(images)[None]
        weight, bias, inner = start_of(embedding, self.shape.ways)
        given, asked = vectors[:, :support], vectors[:, support:]
        logits = episode_logits(given, labels[None, :support], asked, weight, bias, steps=inner.steps, lr=inner.lr)
        return logits[0], labels[support:]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images = pixels(batch[0], self.device)
        logits, labels = self._logits(self.embedding, images)
        teacher = self._teacher[0]
        if teacher is None:
            loss = self.task.loss(logits, labels)
        else:
            with torch.no_grad():
                answers = self._logits(teacher, images)[0]
            loss = distillation(logits, answers, labels, alpha=self.recipe.alpha, temperature=self.recipe.temperature)
        if not bool(torch.isfinite(loss)):
            raise DivergedError(
                f"the loss is {float(loss.detach())} in epoch {self.current_epoch + 1}, episode {batch_idx + 1}: it diverged. Give a lower "
                f"learning rate (it was {self.recipe.lr:g}); finished epochs are kept."
            )
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits, labels = self._logits(self.embedding, pixels(batch[0], self.device))
        self.meter.update(logits, labels)
        self.log("val_loss", self.task.loss(logits, labels), batch_size=len(labels))

    def on_validation_epoch_end(self) -> None:
        self.log("val_accuracy", 100.0 * self.meter.compute())
        self.meter.reset()


def with_ways(classifier: Classifier, ways: int, seed: int = 0) -> Classifier:
    """A copy of a trained classifier whose last layer is a new one of as many classes as an episode has, for `fit_episodes`.

    Args:
        classifier: see `xattn.fewshot.Embedding`.
        ways: classes of an episode.
        seed: of the new weights.
    """
    if classifier.inner is not None:
        logger.warning(
            "%s was trained by episodes of %d ways: the weights that its layer learnt to start from are left out for new ones of %d ways.",
            classifier.name,
            classifier.class_count,
            ways,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = nn.Linear(Embedding(classifier).linear.in_features, ways)
    found = with_linear(classifier, linear, None)
    found.inner = InnerLoop()
    return found


def fit_episodes(
    classifier: Classifier,
    data: str | Labelled,
    out: str | Path,
    *,
    task: str = "few-shot",
    recipe: Recipe | str = "few-shot",
    teacher: Classifier | None = None,
    seed: int = 0,
    workers: int | None = None,
    accelerator: str | None = None,
    precision: Any = "32-true",
    progress: bool = True,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Meta-trains a classifier by episodes of its training classes, in place; saves the result if the classifier was loaded by name.

    Its convolutions are frozen and get learnt scales and shifts, which are folded into them at the end; its last layer becomes the start
    of the layer that each episode fits to its support set. The weights kept are those of the epoch with the highest accuracy on episodes of
    the validation classes. An interrupted run resumes from its last finished epoch, and ends with the same weights.

    Args:
        classifier: from `with_ways`, or a file that this wrote.
        data: `cifar-fs:ROOT`; or labelled pictures whose `validation` has other classes.
        out: the `.safetensors` to write; logs and checkpoints go into a folder beside it, with the same name and `.training`.
        task: "few-shot" with its settings, the shape of the episodes; without ways, that of the classifier.
        recipe: settings, or the name of a preset. Not used is `backbone`.
        teacher: one that was trained so, of as many classes; its logits of the queries are learnt besides the labels.
        seed: for the episodes and the augmentation.
        workers: decoding processes; None: one fewer than the cores, at most 8.
        accelerator: "cpu", "gpu", …; None: the classifier's device.
        precision: one of Lightning's, as for `fit`.
        progress: show a bar where stderr is a terminal, and log one line per epoch.
        on_epoch: called with each epoch's number and validation accuracy.

    Raises:
        InputError: the classifier or the teacher is not of as many classes as an episode, the data do not suffice, or a setting was given
            that such a training does not use.
        RunError: the folder holds another training run or is in use.
        DivergedError: the loss became infinite or NaN; the best epoch before that, if any, is saved.

    Source: Sun et al. 2019; Gomez et al. 2021, Sec. 4.1. **Differs**: BatchNorm is frozen whole, its weights and statistics.
    """
    chosen = recipe if isinstance(recipe, Recipe) else recipe_of(recipe)
    component = tasks.create(task)
    by_episodes = _few_shot(component).of(classifier)
    shape = by_episodes.shape_for(classifier)
    refuse_unused(chosen, taught=teacher is not None, by_episodes=True)
    component.instance.check(classifier)
    for what, each in (("the classifier", classifier), ("the teacher", teacher)):
        if each is not None and (each.class_count != shape.ways or each.inner is None):
            raise InputError(
                f"{what}, {each.name}, is not one of {shape.ways} ways for episodes: make it by xattn.training.with_ways, or load a "
                "file that xattn train --task few-shot wrote."
            )
    check_precision(classifier, precision)
    opened = component.instance.open(data)
    assert opened.validation is not None  # the task sees to it
    about: dict[str, Any] = {"name": opened.name, "names": opened.names}
    others: dict[str, Any] = {"name": opened.validation.name, "names": opened.validation.names, "seed": mixed(seed, -3, 0)}
    folder = Path(out).with_suffix(".training")
    checkpointing = Checkpointing(folder, chosen.episodes * shape.pictures, chosen.epochs, component.metadata, progress, on_epoch)
    workers = default_workers() if workers is None else workers
    shared: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    unseen = Episodes(_classes(opened.validation), shape, chosen.episodes, **others)
    drawn = Episodes(_classes(opened), shape, chosen.episodes, seed=seed, **about)
    validation = DataLoader(Crops(opened.validation, classifier.preprocessing, None, seed), batch_sampler=unseen, **shared)
    settings = settings_of(classifier, component.spec, opened, teacher, chosen, seed, precision)  # before there are scales and shifts
    diverged: DivergedError | None = None
    with one_training(folder), as_it_was(classifier), checkpointing.progress, quiet(), scaled_and_shifted(classifier) as learnt:
        callbacks = [checkpointing, *early_stop(component.metadata, chosen)]
        trainer = trainer_for(
            classifier, folder, chosen, callbacks, accelerator=accelerator, precision=precision, use_distributed_sampler=False
        )
        begin(folder, settings)
        module = EpisodeTraining(classifier, learnt, by_episodes, chosen, teacher)
        module.embedding.linear.requires_grad_()
        checkpoint = checkpointing.resume()
        first = checkpointing.kept["epochs"]
        drawn.epoch = lambda: max(first, trainer.current_epoch)
        augmented = (chosen.centre_crop, chosen.deletion_grid, chosen.padding, chosen.erasing)
        crops = Crops(opened, classifier.preprocessing, chosen.smallest_crop, seed, *augmented)
        loader = DataLoader(crops, batch_sampler=drawn, **shared)
        if not checkpointing.kept["finished"]:
            diverged = train(trainer, module, loader, validation, checkpoint, folder)
        module.load_state_dict(checkpointing.best())
    classifier.trained = True
    if classifier.source is not None:
        classifier.save(str(out))
    return result_of(checkpointing, diverged, chosen.episodes, out)


def _classes(data: Labelled) -> list[int]:
    if data.several:
        raise InputError(f"an episode needs one class per picture, but {data.name} has several: give data with one.")
    return [target for target in data.targets if isinstance(target, int)]


def _few_shot(component: Component[TaskMetadata, Task]) -> FewShot:
    found = component.instance
    if not isinstance(found, FewShot):
        raise InputError(f"training by episodes is for task few-shot; got '{component.spec}'.")
    if found.episodes != FewShot.episodes:
        raise InputError("the setting episodes of task few-shot is for the score: a training takes it from its recipe (--episodes).")
    return found
