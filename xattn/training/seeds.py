"""Training of several heads at once on the features of one frozen network."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from xattn.errors import DivergedError, InputError, UnsupportedError
from xattn.heads.base import Head
from xattn.models import Classifier
from xattn.registry import Component
from xattn.stored import Count
from xattn.tasks import Task, TaskMetadata
from xattn.training.checkpointing import LAST, Checkpointing, begin, metrics_of, one_training, quiet
from xattn.training.data import Classes, EpochOrder, Labelled
from xattn.training.features import as_it_is, check_cacheable, on_features
from xattn.training.fit import Fitted, as_it_was, default_workers, prepared, settings_of, trainer_for
from xattn.training.module import Training, freeze, optimiser_of
from xattn.training.recipe import Recipe


def fit_seeds(
    classifier: Classifier,
    data: str | Path | Labelled,
    out: str | Path,
    seeds: Sequence[int],
    *,
    cache_features: str | Path,
    task: str | None = None,
    recipe: Recipe | str = "probe",
    classes: Classes = "folders",
    workers: int | None = None,
    accelerator: str | None = None,
    precision: Any = "32-true",
    progress: bool = True,
) -> list[Fitted]:
    """Trains several heads on one frozen network at once; each step reads the features of its pictures once for all of them.

    Each head has weights and dropout of its own, and ends as it would alone; but all get the pictures in the same order and hold out the
    same ones, those of the first seed. The classifier itself stays unchanged. An interrupted training resumes, as for `fit`, from a
    checkpoint that is at most a minute, or an epoch, old.

    Args:
        classifier: the network, and which head.
        data: as for `fit`.
        out: the `.safetensors` to write, to whose name each head adds its seed: `stream.safetensors` gives `stream-0.safetensors`, ….
        seeds: one per head.
        cache_features: as for `fit`.
        task: as for `fit`.
        recipe: as for `fit`; without patience, since all heads train for all epochs.
        classes: as for `fit`.
        workers: as for `fit`.
        accelerator: as for `fit`.
        precision: as for `fit`, except "16-mixed", whose scale of the gradients would be common to all heads.
        progress: as for `fit`.

    Returns:
        One result per seed.

    Raises:
        InputError: as for `fit`; or there are no seeds, or twice the same.
        UnsupportedError: the classifier has no name to save it by, or its head cannot be trained so.
        RunError: as for `fit`.
        DivergedError: the loss of a head became infinite or NaN; all others, and its best epoch before that, are saved.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"heads that are trained at once have one seed each, all different; got {list(seeds)}.")
    begun = prepared(classifier, data, task, recipe, classes, None, seeds[0], precision)
    component, chosen, opened, training, numbers, validation = begun
    _check(classifier, chosen, precision)
    workers = default_workers() if workers is None else workers
    options: dict[str, Any] = {"precision": precision, "batch": chosen.batch_size, "workers": workers, "shown": progress}
    features, held_out = on_features(classifier, training, validation, Path(cache_features), **options)
    folder = Path(out).with_suffix(".training")
    checkpointing = SeedsCheckpointing(folder, len(numbers), chosen.epochs, component.metadata, progress, len(seeds))
    with one_training(folder), as_it_was(classifier), checkpointing.progress, quiet():
        trainer = trainer_for(classifier, folder, chosen, [checkpointing], accelerator=accelerator, precision=precision)
        begin(folder, settings_of(classifier, component.spec, opened, None, chosen, seeds[0], precision) | {"seeds": list(seeds)})
        if chosen.dropout is not None:
            for layer in classifier.head.dropouts():
                layer.p = chosen.dropout
        freeze(classifier, backbone=False)
        module = TrainingOfSeeds(classifier, component, chosen, seeds)
        checkpoint = checkpointing.resume()
        first = checkpointing.kept["epochs"]
        loader = DataLoader(
            features,
            chosen.batch_size,
            sampler=EpochOrder(numbers, seeds[0], lambda: max(first, trainer.current_epoch)),
            drop_last=len(numbers) > 1 and len(numbers) % chosen.batch_size == 1,  # BatchNorm cannot train on a single picture
            collate_fn=as_it_is,
        )
        validating = DataLoader(held_out, chosen.batch_size, collate_fn=as_it_is)
        all_diverged = False
        try:
            if not checkpointing.kept["finished"]:
                trainer.fit(module, loader, validating, ckpt_path=checkpoint, weights_only=True)
        except DivergedError:
            if not (folder / LAST).exists():
                raise
            all_diverged = True
        module.load_state_dict(checkpointing.best(), strict=False)
    _save(classifier, module, opened.names, [path_of(out, seed) for seed in seeds], checkpointing.kept["best_epoch"])
    if diverged := [str(seed) for seed, alive in zip(seeds, module.alive.tolist(), strict=True) if all_diverged or not alive]:
        raise DivergedError(
            f"the loss of the heads of seeds {', '.join(diverged)} became infinite or NaN. All others are in {folder.parent}, and of these "
            "the best epoch before it, if there was one. Give a lower learning rate, and another file."
        )
    kept = checkpointing.kept
    each = zip(kept["best_epoch"], kept["best_loss"], kept["best_score"], strict=True)
    return [Fitted(kept["epochs"], epoch, loss, score, len(held_out), folder) for epoch, loss, score in each]  # type: ignore[arg-type]


def path_of(out: str | Path, seed: int) -> Path:
    """The file of one head."""
    return Path(out).with_stem(f"{Path(out).stem}-{seed}")


class TrainingOfSeeds(Training):
    """Several heads of one classifier, whose weights are stacked, with the head's axis first.

    Losses of the heads are summed; every optimiser works weight by weight, so that each head gets the steps that it would get alone.

    Attributes:
        weights: of the heads now; `best`: of each head's best epoch.
        alive: `(heads,)`, whether the losses of a head have been finite.
        found: validation loss and score of each head after the last epoch.
    """

    alive: Tensor

    def __init__(self, classifier: Classifier, task: Component[TaskMetadata, Task], recipe: Recipe, seeds: Sequence[int]) -> None:
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
        head.requires_grad_(False)  # it lends its layers

    def configure_optimizers(self) -> Any:
        return self.scheduled(optimiser_of(self.recipe, [weight for weight in self.weights if weight.requires_grad], fused=True))

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        given, labels = batch
        losses = self._of_each(lambda: self._of_head(given, labels))
        self.alive &= torch.isfinite(losses.detach())
        if not bool(self.alive.any()):
            raise DivergedError(
                f"the loss of every head is infinite or NaN in epoch {self.current_epoch + 1}, step {batch_idx + 1}: give a lower learning "
                f"rate (it was {self.recipe.lr:g}); finished epochs are kept."
            )
        loss = losses[self.alive].sum()
        self.log("loss", loss / self.alive.sum(), on_step=True, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        given, labels = batch
        logits = self._of_each(lambda: self._attended(given).output).float()
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
        for index in [index for index, is_better in enumerate(better) if is_better]:
            for best, now in zip(self.best, self.weights, strict=True):
                best[index] = now[index]

    def best_of(self, index: int) -> dict[str, Tensor]:
        """The state dict of one head, in its best epoch."""
        return {name: best[index].detach().clone() for name, best in zip(self.names, self.best, strict=True)}

    def _of_each(self, run: Callable[[], Tensor]) -> Tensor:
        """What a function of the head gives for each head's weights, stacked."""
        lent = _Lent(self.classifier.head, run)

        def of_one(weights: Mapping[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(lent, {f"head.{name}": weight for name, weight in weights.items()}, ())
            return found

        with _Folded():
            found: Tensor = torch.vmap(of_one, randomness="different")(dict(zip(self.names, self.weights, strict=True)))
        return found


class _Lent(nn.Module):
    """Runs a function, so that `functional_call` can lend the head other weights meanwhile."""

    def __init__(self, head: Head, run: Callable[[], Tensor]) -> None:
        super().__init__()
        self.head = head
        self.run = run

    def forward(self) -> Tensor:
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


class _Folded(TorchFunctionMode):
    """Has `_Product` in the place of `torch.bmm`."""

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
            alive and self.is_better(loss, score, kept["best_loss"][index], kept["best_score"][index])
            for index, (loss, score, alive) in enumerate(found)
        ]
        pl_module.keep(better)
        for index in [index for index, is_better in enumerate(better) if is_better]:
            kept["best_epoch"][index], kept["best_loss"][index], kept["best_score"][index] = epoch, *found[index][:2]
        kept |= {"epochs": epoch, "finished": epoch == self.epochs}
        if kept["finished"] or time.monotonic() - self.saved >= self.pause:
            self._save(trainer, LAST)
            self.saved = time.monotonic()
        self.tell(metrics_of(trainer))


def _check(classifier: Classifier, recipe: Recipe, precision: Any) -> None:
    """Refuses what cannot be trained at once."""
    if classifier.source is None:
        raise UnsupportedError(f"{classifier.name} was attached from a module in hand, but heads are saved by name: load it by a name.")
    check_cacheable(classifier, recipe, None, 1, 1)
    if classifier.head.push_every:
        raise UnsupportedError(f"{classifier.head_name} sets weights from the pictures: train one head at a time.")
    if recipe.patience is not None:
        raise InputError("heads that are trained at once train for all epochs: leave out patience.")
    if str(precision) in ("16-mixed", "16"):
        raise InputError(f"precision '{precision}' scales the gradients of all heads together: use 32-true or bf16-mixed.")


def _save(
    classifier: Classifier, module: TrainingOfSeeds, names: tuple[str, ...] | None, paths: Sequence[Path], epochs: Sequence[int]
) -> None:
    """Writes the heads that have a best epoch; the classifier is as before at the end."""
    before = {name: tensor.clone() for name, tensor in classifier.head.state_dict().items()}, classifier.trained, classifier.labels
    try:
        classifier.trained = True
        classifier.labels = names if names is not None else classifier.labels
        for index, path in enumerate(paths):
            if epochs[index]:
                classifier.head.load_state_dict(module.best_of(index))
                classifier.save(str(path))
    finally:
        classifier.head.load_state_dict(before[0])
        _, classifier.trained, classifier.labels = before
