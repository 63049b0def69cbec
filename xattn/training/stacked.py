"""Several heads of one network as a Lightning module: their weights are stacked, and each step runs them at once."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from xattn.errors import DivergedError
from xattn.heads.base import Attended, Head
from xattn.models import Classifier, evaluating
from xattn.registry import Component
from xattn.stored import Count
from xattn.tasks import Task, TaskMetadata
from xattn.training.checkpointing import LAST, Checkpointing, metrics_of
from xattn.training.features import Features, classified, read_features
from xattn.training.module import Training, optimiser_of
from xattn.training.recipe import Recipe

OUTPUT, PENALTY = "output", "penalty"


class TrainingOfSeeds(Training):
    """Several heads of one classifier, whose weights are stacked along a first axis of heads.

    Losses of the heads are summed; every optimiser works weight by weight, so that each head gets the steps that it would get alone.

    Args:
        classifier: the network, and which head.
        task: as for `Training`.
        recipe: as for `Training`.
        seeds: one per head.
        mixed: whether it is trained in mixed precision, in which `torch.vmap` would compute some layers in another precision.

    Attributes:
        weights: of the heads now.
        best: of each head's best epoch.
        at_once: whether torch can run the heads at once; else they run one after the other.
        alive: `(heads,)`, whether the losses of a head have been finite.
        found: validation loss and score of each head after the last epoch.
    """

    alive: Tensor

    def __init__(
        self, classifier: Classifier, task: Component[TaskMetadata, Task], recipe: Recipe, seeds: Sequence[int], *, mixed: bool = False
    ) -> None:
        super().__init__(classifier, task, recipe, None, False, seeds[0])
        head = classifier.head
        heads = [classifier.new_head(seed).state_dict() for seed in seeds]
        self.names = list(heads[0])
        trained = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
        stacked = {name: torch.stack([each[name] for each in heads]) for name in self.names}
        self.weights = nn.ParameterList(nn.Parameter(stacked[name], requires_grad=name in trained) for name in self.names)
        self.best = nn.ParameterList(nn.Parameter(stacked[name].clone(), requires_grad=False) for name in self.names)
        self.register_buffer("alive", torch.ones(len(seeds), dtype=torch.bool))
        self.meters = nn.ModuleList(copy.deepcopy(self.meter) for _ in seeds)
        self.losses: list[tuple[Tensor, int]] = []
        self.found: tuple[list[float], list[float]] = ([], [])
        head.requires_grad_(False)  # only the stacked weights are trained
        self.at_once = not mixed and self._runs_at_once()

    def configure_optimizers(self) -> Any:
        fused = True if self.device.type in ("cpu", "cuda") else None  # most weights are stacked in a few tensors
        return self.scheduled(optimiser_of(self.recipe, [weight for weight in self.weights if weight.requires_grad], fused=fused))

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        given, labels = batch
        found = self._attended_of_each(given, labels if labels.dim() == 1 else None)
        losses = torch.stack([self._total(each, labels, given) for each in found])
        self.alive &= torch.isfinite(losses.detach())
        if not bool(self.alive.any()):
            raise DivergedError(
                f"the loss of every head is infinite or NaN in epoch {self.current_epoch + 1}, step {batch_idx + 1}: give a lower learning "
                f"rate (it was {self.recipe.lr:g})."
            )
        loss = losses[self.alive].sum()
        self.log("loss", loss / self.alive.sum(), on_step=True, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        given, labels = batch
        logits = [each.output.float() for each in self._attended_of_each(given)]
        self.losses.append((torch.stack([self.task.loss(each, labels) for each in logits]), len(labels)))
        for meter, each in zip(self.meters, logits, strict=True):
            meter.update(each, labels)  # type: ignore[operator]  # a torchmetrics.Metric

    def on_validation_epoch_end(self) -> None:
        total = sum(count for _, count in self.losses)
        losses = sum(loss * count for loss, count in self.losses) / total
        scores = torch.stack([100.0 * meter.compute() for meter in self.meters])  # type: ignore[operator]
        self.losses.clear()
        for meter in self.meters:
            meter.reset()  # type: ignore[operator]
        self.alive &= torch.isfinite(losses)  # type: ignore[arg-type]
        self.found = (losses.tolist(), scores.tolist())  # type: ignore[union-attr]
        self.log_dict({"val_loss": losses[self.alive].mean(), f"val_{self.score}": scores[self.alive].mean()})  # type: ignore[index]

    @torch.no_grad()
    def keep(self, better: Sequence[bool]) -> None:
        """Keeps the weights of the heads that are better than before."""
        for number in [number for number, is_better in enumerate(better) if is_better]:
            for best, now in zip(self.best, self.weights, strict=True):
                best[number] = now[number]

    def best_of(self, number: int) -> dict[str, Tensor]:
        """The state dict of one head, in its best epoch."""
        return {name: best[number].detach().clone() for name, best in zip(self.names, self.best, strict=True)}

    def _attended_of_each(self, given: Features, classes: Tensor | None = None) -> list[Attended]:
        """What `attend_features` gives for each head, without maps. The network's classifier gets the vectors of all heads as one batch."""

        def run() -> dict[str, Tensor]:
            attended = read_features(self.classifier, given, classes)
            penalty = {} if attended.penalty is None else {PENALTY: attended.penalty}
            return {OUTPUT: attended.output, **penalty, **attended.probes}

        stacked = self._of_each(run)
        output = stacked.pop(OUTPUT)
        logits = classified(self.classifier, output.flatten(0, 1)).unflatten(0, output.shape[:2])
        penalties = stacked.pop(PENALTY, None)
        return [
            Attended(
                each,
                probes={name: found[number] for name, found in stacked.items()},
                penalty=None if penalties is None else penalties[number],
            )
            for number, each in enumerate(logits)
        ]

    def _of_each(self, run: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What a function of the head gives with the weights of each, stacked along a first axis of heads."""
        exchanged = _Exchanged(self.classifier.head, run)

        def of_one(weights: Sequence[Tensor]) -> dict[str, Tensor]:
            named = {f"head.{name}": weight for name, weight in zip(self.names, weights, strict=True)}
            found: dict[str, Tensor] = functional_call(exchanged, named, ())
            return found

        if self.at_once:
            with _SharedFactors():
                found: dict[str, Tensor] = torch.vmap(of_one, randomness="different")(list(self.weights))
            return found
        each = [of_one(weights) for weights in zip(*(weight.unbind() for weight in self.weights), strict=True)]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def _runs_at_once(self) -> bool:
        """Whether `torch.vmap` can run the heads: for two images of noise, it does."""
        classifier = self.classifier
        names = [stage.name for stage in classifier.attachment.stages]
        given = Features(classifier.features(classifier.probe().expand(2, -1, -1, -1), names), None)
        classes = torch.zeros(2, dtype=torch.long, device=classifier.device)
        self.at_once = True
        try:
            with torch.no_grad(), evaluating(classifier):
                self._of_each(lambda: {OUTPUT: read_features(classifier, given, classes).output})
        except RuntimeError:
            return False
        return True


class _Exchanged(nn.Module):
    """Runs a function; `functional_call` exchanges the head's weights meanwhile."""

    def __init__(self, head: Head, run: Callable[[], dict[str, Tensor]]) -> None:
        super().__init__()
        self.head = head
        self.run = run

    def forward(self) -> dict[str, Tensor]:
        return self.run()


class _Product(torch.autograd.Function):
    """`torch.bmm`, whose own rule for vmap copies a factor that all heads share once for each head; here, heads are rows or columns."""

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(left, right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        return torch.bmm(gradient, right.transpose(1, 2)), torch.bmm(left.transpose(1, 2), gradient)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], left: Tensor, right: Tensor) -> tuple[Tensor, int]:
        of_left, of_right = in_dims
        if of_right is None and of_left is not None:
            left = left.movedim(of_left, 1)
            return torch.bmm(left.flatten(1, 2), right).unflatten(1, left.shape[1:3]), 1
        if of_left is None and of_right is not None:
            right = right.movedim(of_right, 2)
            return torch.bmm(left, right.flatten(2, 3)).unflatten(2, right.shape[2:4]), 2
        return torch.matmul(left.movedim(of_left or 0, 0), right.movedim(of_right or 0, 0)), 0


class _SharedFactors(TorchFunctionMode):
    """Runs `_Product` for `torch.bmm`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.bmm and not kwargs:
            return _Product.apply(*args)
        return func(*args, **(kwargs or {}))


class _KeptOfSeeds(TypedDict):
    epochs: Count
    best_epoch: list[Count]
    best_loss: list[float]
    best_score: list[float]
    finished: bool


class SeedsCheckpointing(Checkpointing):
    """Saves the last finished epoch of several heads, with the best weights of each; arguments as for `Checkpointing`.

    An epoch of many heads can be shorter than the writing of their checkpoint, so that one is written at most every `pause` seconds.
    """

    layout: ClassVar[type] = _KeptOfSeeds
    pause = 60.0

    def __init__(self, folder: Path, images: int, epochs: int, task: TaskMetadata, shown: bool, heads: int) -> None:
        super().__init__(folder, images, epochs, task, shown, None)
        self.kept |= {"best_epoch": [0] * heads, "best_loss": [math.inf] * heads, "best_score": [math.nan] * heads}
        self.saved = time.monotonic()

    def resume(self) -> str | None:
        if not (self.folder / LAST).exists():
            return None
        self.restore(self._loaded(LAST)[1])
        return str(self.folder / LAST)

    def best(self) -> dict[str, Any]:
        return self._loaded(LAST)[0]

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        epoch, kept = trainer.current_epoch + 1, self.kept
        found = list(zip(*pl_module.found, pl_module.alive.tolist(), strict=True))
        better = [
            alive and self.is_better(loss, score, kept["best_loss"][number], kept["best_score"][number])
            for number, (loss, score, alive) in enumerate(found)
        ]
        pl_module.keep(better)
        for number in [number for number, is_better in enumerate(better) if is_better]:
            kept["best_epoch"][number], kept["best_loss"][number], kept["best_score"][number] = epoch, *found[number][:2]
        kept |= {"epochs": epoch, "finished": epoch == self.epochs}
        if kept["finished"] or time.monotonic() - self.saved >= self.pause:
            self._save(trainer, LAST)
            self.saved = time.monotonic()
        self.tell(metrics_of(trainer))
