"""A classifier as a Lightning module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from xattn.data.preprocessing import pixels
from xattn.data.seeds import mixed
from xattn.errors import DivergedError
from xattn.focus import TwoStreams
from xattn.heads.base import Attended
from xattn.models import Classifier, evaluating
from xattn.registry import Component
from xattn.tasks import Task, TaskMetadata
from xattn.training.features import Features, attend_features
from xattn.training.loss import distillation
from xattn.training.recipe import Recipe
from xattn.training.streams import Boxed, loss_of_streams, parameter_groups


class Training(lightning.LightningModule):
    """One classifier, its recipe and, where there is one, its teacher.

    Args:
        classifier: its head, or its head and network, is trained.
        task: what it is trained for.
        recipe: settings of the training.
        teacher: its answers are learnt besides the labels; it is frozen, in eval mode, and never saved.
        log_gradients: log each layer's gradient norm.
        seed: for the randomness in the head.
        pictures: loads the training pictures without augmentation, for a head that sets weights from them.
    """

    def __init__(
        self,
        classifier: Classifier,
        task: Component[TaskMetadata, Task],
        recipe: Recipe,
        teacher: Classifier | None,
        log_gradients: bool,
        seed: int,
        pictures: DataLoader[Any] | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.task = task.instance
        self.score = task.metadata.score
        self.meter = self.task.validation(classifier)
        self.recipe = recipe
        self.seed = seed
        self.log_gradients = log_gradients
        self.pictures = pictures
        self.strict_loading = False  # a frozen network is not saved
        self._teacher = [teacher]  # in a list, so that it is not a submodule: not trained, not saved, not synchronised

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.classifier.parameters() if parameter.requires_grad]
        return self.scheduled(optimiser_of(self.recipe, parameter_groups(self.classifier, self.recipe, trained)))

    def scheduled(self, optimiser: Optimizer) -> dict[str, Any]:
        """An optimiser with the recipe's schedule, as Lightning takes them."""
        factor = schedule_of(self.recipe, max(1, int(self.trainer.estimated_stepping_batches)))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        if (teacher := self._teacher[0]) is not None:
            teacher.to(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed = mixed(self.seed, self.current_epoch, self.global_rank)
        torch.manual_seed(mixed(seed, batch_idx, -2))  # so that dropout is the same after a restart
        self.classifier.train()
        if not self.recipe.backbone:
            self.classifier.network.eval()
        elif self.recipe.freeze_statistics:
            for layer in self.classifier.network.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        given, labels = batch
        is_two = isinstance(self.classifier.network, TwoStreams)
        loss = self._of_streams(given, labels) if is_two else self._of_head(given, labels)
        if not bool(torch.isfinite(loss)):
            raise DivergedError(
                f"the loss is {float(loss.detach())} in epoch {self.current_epoch + 1}, step {batch_idx + 1}: it diverged. Give a lower "
                f"learning rate (it was {self.recipe.lr:g}); finished epochs are kept."
            )
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(labels), sync_dist=True)
        return loss

    def is_complete(self, epoch: int) -> bool:
        """Whether the weights after an epoch, counted from 1, may be kept: of a head with a push, those after one."""
        every = self.classifier.head.push_every
        return not every or epoch % every == 0 or epoch == self.recipe.epochs

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        head = self.classifier.head
        if head.push_every and self.trainer.is_last_batch and self.is_complete(self.current_epoch + 1):
            with torch.no_grad(), evaluating(self.classifier):
                head.push(self._features)

    def _features(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features of the stage that the head reads, and labels, of all training pictures."""
        stage = self.classifier.attachment.stages[0].name
        for batch in self.pictures or ():
            given, labels = self._given(batch[0]), batch[1].to(self.device)
            found = self.classifier.features(given, [stage]) if isinstance(given, Tensor) else given.stages
            yield found[stage].to(self.device), labels

    def _of_head(self, batch: Any, labels: Tensor) -> Tensor:
        given = self._given(batch)
        return self._total(self._attended(given, labels if labels.dim() == 1 else None), labels, given)

    def _total(self, attended: Attended, labels: Tensor, given: Tensor | Features) -> Tensor:
        loss = self._loss(attended.output, labels, given)
        for logits in attended.probes.values():
            loss = loss + self.task.auxiliary * self.task.loss(logits, labels)
        return loss if attended.penalty is None else loss + attended.penalty

    def _of_streams(self, batch: Any, labels: Tensor) -> Tensor:
        crops, boxes = batch if isinstance(batch, Boxed) else (batch, None)
        return loss_of_streams(self.classifier, pixels(crops, self.device), boxes, labels, self.recipe)

    def _given(self, given: Tensor | Features) -> Tensor | Features:
        return pixels(given, self.device) if isinstance(given, Tensor) else given

    def _attended(self, given: Tensor | Features, classes: Tensor | None = None) -> Attended:
        if isinstance(given, Tensor):
            return self.classifier.run(given, classes)
        return attend_features(self.classifier, given, classes)

    def _loss(self, logits: Tensor, labels: Tensor, given: Tensor | Features) -> Tensor:
        if (teacher := self._teacher[0]) is None or self.recipe.alpha == 1 or not isinstance(given, Tensor):
            return self.task.loss(logits, labels)
        return distillation(logits, teacher.predict(given).clone(), labels, alpha=self.recipe.alpha, temperature=self.recipe.temperature)

    def validation_step(self, batch: tuple[Tensor | Features, Tensor], batch_idx: int) -> None:
        labels = batch[1]
        logits = self._attended(self._given(batch[0])).output.float()
        count = len(labels)
        self.log("val_loss", self.task.loss(logits, labels), batch_size=count, sync_dist=True)
        self.meter.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        self.log(f"val_{self.score}", 100.0 * self.meter.compute())  # over all processes
        self.meter.reset()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.log_gradients:
            norms = {f"gradient_norm/{name}": norm for name, norm in gradient_norms(self.classifier).items()}
            self.log_dict(norms, on_step=True, on_epoch=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self.recipe.backbone:
            kept = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith("classifier.network.")}
            checkpoint["state_dict"] = kept


def gradient_norms(module: nn.Module) -> dict[str, Tensor]:
    """Euclidean norm of the gradient of each layer that has one, by layer name."""
    norms = {}
    for name, layer in module.named_modules():
        found = [parameter.grad for parameter in layer.parameters(recurse=False) if parameter.grad is not None]
        if found:
            norms[name] = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in found]))
    return norms


def optimiser_of(recipe: Recipe, parameters: list[nn.Parameter] | list[dict[str, Any]], fused: bool | None = None) -> Optimizer:
    """The optimiser that a recipe names, of parameters or groups of them; as one kernel, if `fused`."""
    if recipe.optimiser == "sgd":
        options: dict[str, Any] = {"momentum": recipe.momentum, "nesterov": recipe.nesterov, "weight_decay": recipe.weight_decay}
        return torch.optim.SGD(parameters, lr=recipe.lr, fused=fused, **options)
    kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.AdamW
    return kind(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def schedule_of(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Learning-rate factor at each of `steps` steps."""
    an_epoch = max(1, steps // recipe.epochs)
    if recipe.schedule == "cosine":
        whole = steps if recipe.period is None else recipe.period * an_epoch
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / whole))
    if recipe.schedule == "poly":
        return lambda step: (1 - min(step, steps) / steps) ** recipe.power
    if recipe.schedule == "step":
        return lambda step: recipe.factor ** (step // an_epoch // recipe.step)
    return lambda step: 1.0


def freeze(classifier: Classifier, *, backbone: bool) -> None:
    """Requires gradients only for parameters that are to be trained and that affect the loss.

    A head with its own classifier bypasses the network's, which is then neither trained nor waited for by other processes.
    """
    for parameter in classifier.network.parameters():
        parameter.requires_grad_(backbone)
    for parameter in classifier.head.parameters():
        parameter.requires_grad_()
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    probe = classifier.probe()
    with evaluating(classifier), torch.enable_grad():
        attended = classifier.run(probe, torch.zeros(1, dtype=torch.long, device=probe.device))
        said = sum((logits.sum() for logits in attended.probes.values()), attended.output.sum())
        said = said if attended.penalty is None else said + attended.penalty
    if trained and isinstance(said, Tensor) and said.requires_grad:
        for parameter, gradient in zip(trained, torch.autograd.grad(said, trained, allow_unused=True), strict=True):
            parameter.requires_grad_(gradient is not None)
