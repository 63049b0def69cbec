"""Training of several heads at once on the features of one frozen network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from xattn.errors import DivergedError, InputError, UnsupportedError
from xattn.models import Classifier
from xattn.models.state_dicts import digest_of
from xattn.training.checkpointing import begin, one_training, quiet
from xattn.training.data import Classes, EpochOrder, Labelled
from xattn.training.features import MIXED, as_it_is, check_cacheable, on_features
from xattn.training.fit import Fitted, as_it_was, default_workers, prepared, settings_of, trainer_for
from xattn.training.module import freeze
from xattn.training.recipe import Recipe
from xattn.training.stacked import SeedsCheckpointing, TrainingOfSeeds


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

    Each head has first weights and dropout of its own, and ends as it would alone with the same first weights and the same pictures in the
    same order: all hold out the same pictures, and get the others in the order of the first seed. The classifier itself stays unchanged.
    An interrupted training resumes, as for `fit`, from a checkpoint that is at most a minute old, or one epoch if that is longer.

    Heads of which torch cannot run several at once (with sparsemax or entmax15, or in mixed precision) run one after the other in each
    step; they share the features all the same.

    Args:
        classifier: the network, and which head.
        data: as for `fit`.
        out: the `.safetensors` to write, to whose name each head adds its seed: `stream.safetensors` gives `stream-0.safetensors`, ….
        seeds: one per head, from which its first weights are drawn.
        cache_features: as for `fit`.
        task: as for `fit`.
        recipe: settings, or the name of a preset; without patience, since all heads train for all epochs.
        classes: as for `fit`.
        workers: as for `fit`.
        accelerator: as for `fit`.
        precision: as for `fit`, except "16-mixed", whose scale of the gradients would be common to all heads.
        progress: as for `fit`.

    Returns:
        One result per seed.

    Raises:
        InputError: as for `fit`; no seeds, one of them twice, or something else; a head that is trained already, or that starts the same
            from every seed.
        UnsupportedError: the classifier has no name to save it by, or its head cannot be trained so.
        RunError: as for `fit`.
        DivergedError: the loss of a head became infinite or NaN. All others are saved, and its best epoch before that, if there was one.
    """
    seeds = _checked(seeds)
    if not isinstance(cache_features, (str, os.PathLike)):
        raise InputError(f"cache_features is the folder for the network's features; got {type(cache_features).__name__}.")
    begun = prepared(classifier, data, task, recipe, classes, None, seeds[0], precision)
    component, chosen, opened, training, numbers, validation = begun
    _check(classifier, chosen, seeds, precision)
    workers = default_workers() if workers is None else workers
    options: dict[str, Any] = {"precision": precision, "batch": chosen.batch_size, "workers": workers, "shown": progress}
    features, held_out = on_features(classifier, training, validation, Path(cache_features), **options)
    folder = Path(out).with_suffix(".training")
    checkpointing = SeedsCheckpointing(folder, len(numbers), chosen.epochs, component.metadata, progress, len(seeds))
    with one_training(folder), as_it_was(classifier), checkpointing.progress, quiet():
        trainer = trainer_for(classifier, folder, chosen, [checkpointing], accelerator=accelerator, precision=precision)
        begin(folder, settings_of(classifier, component.spec, opened, None, chosen, seeds[0], precision) | {"seeds": seeds})
        if chosen.dropout is not None:
            for layer in classifier.head.dropouts():
                layer.p = chosen.dropout
        freeze(classifier, backbone=False)
        module = TrainingOfSeeds(classifier, component, chosen, seeds, mixed=str(precision) in MIXED)
        checkpoint = checkpointing.resume()
        kept = checkpointing.kept
        first = kept["epochs"]
        loader = DataLoader(
            features,
            chosen.batch_size,
            sampler=EpochOrder(numbers, seeds[0], lambda: max(first, trainer.current_epoch)),
            drop_last=len(numbers) > 1 and len(numbers) % chosen.batch_size == 1,  # BatchNorm cannot train on a single picture
            collate_fn=as_it_is,
        )
        validating = DataLoader(held_out, chosen.batch_size, collate_fn=as_it_is)
        if kept["finished"]:
            module.load_state_dict(checkpointing.best(), strict=False)
        else:
            try:
                trainer.fit(module, loader, validating, ckpt_path=checkpoint, weights_only=True)
            except DivergedError:
                if not any(kept["best_epoch"]):
                    raise
    _save(classifier, module, opened.names, [path_of(out, seed) for seed in seeds], kept["best_epoch"])
    if diverged := [str(seed) for seed, alive in zip(seeds, module.alive.tolist(), strict=True) if not alive]:
        others = f"The others are saved in {folder.parent}. " if len(diverged) < len(seeds) else ""
        which = f"{'seed' if len(diverged) == 1 else 'seeds'} {', '.join(diverged)}"
        raise DivergedError(
            f"the loss became infinite or NaN with {which}; there, the best epoch before it is saved, if there was one. {others}Give a "
            f"lower learning rate (it was {chosen.lr:g}) and another --out."
        )
    each = zip(kept["best_epoch"], kept["best_loss"], kept["best_score"], strict=True)
    return [Fitted(kept["epochs"], epoch, loss, score, len(held_out), folder) for epoch, loss, score in each]  # type: ignore[arg-type]


def path_of(out: str | Path, seed: int) -> Path:
    """The file of the head of one seed."""
    return Path(out).with_stem(f"{Path(out).stem}-{seed}")


def _checked(seeds: Sequence[int]) -> list[int]:
    """The seeds as a list.

    Raises:
        InputError: they are none, not numbers, below 0 or too large, or one of them comes twice.
    """
    try:
        found = [index(seed) for seed in seeds]
    except TypeError as error:
        raise InputError(f"seeds are whole numbers, one per head, as in range(20); got {seeds!r:.80}.") from error
    if not found or len(set(found)) < len(found) or not all(0 <= seed < 2**31 for seed in found):
        raise InputError(f"heads that are trained at once have one seed each from 0 to {2**31 - 1}, all different; got {found!s:.80}.")
    return found


def _check(classifier: Classifier, recipe: Recipe, seeds: Sequence[int], precision: Any) -> None:
    """Refuses what cannot be trained at once."""
    name = classifier.head_name
    if classifier.source is None:
        raise UnsupportedError(f"{classifier.name} was attached from a module in hand, but heads are saved by name: load it by a name.")
    check_cacheable(classifier, recipe, None, 1, 1)
    if classifier.head.push_every:
        raise UnsupportedError(f"{name} sets weights from the training pictures: train one head at a time, without seeds (--seeds).")
    if classifier.trained and not classifier.grafted:
        raise InputError(
            f"the {name} of {classifier.name} is trained already, but heads of several seeds start from new weights: give the network by "
            "its own name, or train on with one seed."
        )
    if len(seeds) > 1 and not _differ(classifier, recipe, seeds[:2]):
        raise InputError(
            f"{name} starts as the classifier of {classifier.name} whatever the seed, so that all heads would be the same: give one seed, "
            "a dropout, or data with other classes."
        )
    if recipe.patience is not None:
        raise InputError("heads that are trained at once train for all epochs: leave out patience.")
    if str(precision) in ("16-mixed", "16"):
        raise InputError(f"precision '{precision}' scales the gradients of all heads together: use 32-true or bf16-mixed.")


def _differ(classifier: Classifier, recipe: Recipe, seeds: Sequence[int]) -> bool:
    """Whether two heads differ, by their first weights or by dropout."""
    if any(layer.p if recipe.dropout is None else recipe.dropout for layer in classifier.head.dropouts()):
        return True
    one, other = (digest_of(classifier.new_head(seed).state_dict()) for seed in seeds)
    return one != other


def _save(
    classifier: Classifier, module: TrainingOfSeeds, names: tuple[str, ...] | None, paths: Sequence[Path], epochs: Sequence[int]
) -> None:
    """Writes the heads that have a best epoch; the classifier is as before at the end."""
    before = {name: tensor.clone() for name, tensor in classifier.head.state_dict().items()}, classifier.trained, classifier.labels
    try:
        classifier.trained = True
        classifier.labels = names if names is not None else classifier.labels
        for number, path in enumerate(paths):
            if epochs[number]:
                classifier.head.load_state_dict(module.best_of(number))
                classifier.save(str(path))
    finally:
        classifier.head.load_state_dict(before[0])
        _, classifier.trained, classifier.labels = before
