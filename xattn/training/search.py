"""Search for training settings with Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from xattn.errors import DivergedError, InputError, UnsupportedError
from xattn.models import Classifier
from xattn.models.state_dicts import digest_of
from xattn.patches.file import read_patches
from xattn.tasks import default_task, tasks
from xattn.training.checkpointing import begin, one_training
from xattn.training.checks import check, in_classes_of
from xattn.training.data import Classes, Labelled
from xattn.training.fit import default_of, fit
from xattn.training.recipe import Recipe, recipe_of

logger = logging.getLogger("xattn")

DIVERGED = "diverged"
TEMPERATURES = (1.0, 6.0, 11.0, 16.0, 21.0)


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        recipe: the best settings.
        score: validation score with them, in percent: accuracy, or what the task has.
        trials: number of finished trials, including pruned and diverged ones.
        pruned: number of trials that were stopped early.
    """

    recipe: Recipe
    score: float
    trials: int
    pruned: int


def search(
    classifier: Classifier,
    data: str | Path | Labelled,
    out: str | Path,
    trials: int,
    *,
    task: str | None = None,
    recipe: Recipe | str | None = None,
    classes: Classes = "folders",
    teacher: Classifier | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Found:
    """Searches learning rate, optimiser, weight decay, dropout and, with a teacher, α and temperature; keeps the best trial's weights.

    The study is kept in a folder beside `out`, with the same name and `.search`; a second call continues it up to `trials` in all. A
    trial that is worse than the median of the others at the same epoch is stopped. The classifier itself stays unchanged.

    Args:
        classifier: the starting point of each trial.
        data: anything that the task opens, or that opened.
        out: the `.safetensors` of the best trial; its settings are written beside it as `.json`.
        trials: number of trials in all.
        task: as for `fit`.
        recipe: settings that are not searched, or the name of a preset; None: the head's default.
        classes: as for `fit`.
        teacher: as for `fit`.
        seed: of the sampler and the training runs.
        progress: log a line per trial.
        options: as for `fit`.

    Raises:
        InputError: a setting was given that the search chooses itself, or that is not used; as for `fit`.

    Source: Gomez et al. 2021, Sec. 4.1, whose code searches T in {1, 6, 11, 16, 21} and α in [0, 0.9].
    """
    if classifier.source is None:
        raise UnsupportedError(f"{classifier.name} was attached from a module in hand, but trials are saved by name: load it by a name.")
    if str(options.get("devices", 1)) != "1" or options.get("nodes", 1) != 1:
        raise InputError("a search runs its trials on one device, one after the other: leave out --devices and --nodes.")
    component = tasks.create(task or default_task(classifier.multi_label))
    base = recipe if isinstance(recipe, Recipe) else recipe_of(recipe or default_of(classifier, component.metadata))
    opened = component.instance.open(data, classes)
    _refuse_searched(base, classifier, teacher is not None)
    some = base.with_(optimiser="sgd") if base.given & {"momentum", "nesterov"} else base  # some trials have it
    check(classifier, in_classes_of(classifier, opened), teacher, some, options.get("precision", "32-true"))
    folder = Path(out).with_suffix(".search")
    with one_training(folder):
        settings = {
            "task": component.spec,
            "head": classifier.head_name,
            "data": opened.name,
            "recipe": base.to_json(),
            "weights": classifier.digest(),
            "seed": seed,
            "patches": None if options.get("patches") is None else digest_of({"boxes": read_patches(options["patches"])[0]}),
        }
        begin(folder, settings | {"teacher": None if teacher is None else teacher.digest()}, "study.log")
        study = _study_in(folder, seed)
        done = len(_finished(study))

        def objective(trial: optuna.Trial) -> float:
            chosen = _suggested(trial, base, classifier, teacher is not None)
            file = folder / f"trial-{trial.number:03d}.safetensors"

            def report(epoch: int, score: float) -> None:
                trial.report(score, epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned

            student = copy.deepcopy(classifier)
            try:
                fitted = fit(
                    student,
                    opened,
                    file,
                    task=task,
                    recipe=chosen,
                    teacher=teacher,
                    seed=seed,
                    progress=False,
                    on_epoch=report,
                    **options,
                )
            except DivergedError:
                trial.set_user_attr(DIVERGED, True)
                raise
            trial.set_user_attr("recipe", chosen.to_json())
            return fitted.score

        def ended(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            _keep_best(study, folder)
            if progress:
                _log_trial(trial, trials, component.metadata.score)

        study.optimize(objective, n_trials=max(0, trials - done), catch=(DivergedError,), callbacks=[ended])
        finished = _finished(study)
        if not any(trial.state == TrialState.COMPLETE for trial in finished):
            raise UnsupportedError(f"none of {len(finished)} trials finished (diverged or pruned): allow more trials, or a longer recipe.")
        best = study.best_trial
        found = Recipe.from_json(best.user_attrs["recipe"])
        shutil.copyfile(folder / f"trial-{best.number:03d}.safetensors", out)  # the study keeps its own copy, to continue from
        Path(out).with_suffix(".json").write_text(
            json.dumps({component.metadata.score: best.value, "recipe": found.to_json()}, indent=1), encoding="utf-8"
        )
        return Found(found, float(best.value or 0.0), len(finished), sum(trial.state == TrialState.PRUNED for trial in finished))


def _study_in(folder: Path, seed: int) -> optuna.Study:
    """The study of a folder, begun or continued."""
    optuna.logging.set_verbosity(logging.CRITICAL)  # the line per trial is logged here
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1)
    study = optuna.create_study(study_name="training", storage=storage, load_if_exists=True, direction="maximize", pruner=pruner)
    for torn in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # left by a killed process
        study.tell(torn.number, state=TrialState.FAIL)
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(_finished(study)))
    return study


def _keep_best(study: optuna.Study, folder: Path) -> None:
    """Removes the weights of all trials but the best."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = f"trial-{study.best_trial.number:03d}" if ended else None
    for file in folder.glob("trial-*.safetensors"):
        if file.stem != best:  # also one whose process was killed after it had written the file
            file.unlink()


def _log_trial(trial: optuna.trial.FrozenTrial, trials: int, measure: str) -> None:
    value = "–" if trial.value is None else f"{trial.value:.2f} %"
    described = ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in trial.params.items())
    logger.info("trial %d of %d: %s, %s %s (%s)", trial.number + 1, trials, trial.state.name.lower(), measure, value, described)


def _refuse_searched(recipe: Recipe, classifier: Classifier, taught: bool) -> None:
    """Refuses settings that were given and that the search chooses itself."""
    names = ["optimiser", "lr", "weight_decay", *["dropout"] * bool(classifier.head.dropouts()), *["alpha", "temperature"] * taught]
    if given := [name for name in names if name in recipe.given]:
        raise InputError(f"a search chooses {given[0]} (--{given[0].replace('_', '-')}) itself: leave it out, or train without a search.")


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that ended by themselves: diverged ones included, interrupted ones not."""
    found = study.get_trials(deepcopy=False)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in found if trial.state in ended or (trial.state == TrialState.FAIL and DIVERGED in trial.user_attrs)]


def _suggested(trial: optuna.Trial, base: Recipe, classifier: Classifier, taught: bool) -> Recipe:
    changes: dict[str, Any] = {
        "optimiser": trial.suggest_categorical("optimiser", ["sgd", "adam", "adamw"]),
        "lr": trial.suggest_float("lr", 1e-5, 1e-1, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
    }
    if classifier.head.dropouts():
        changes["dropout"] = trial.suggest_float("dropout", 0.0, 0.5)
    if taught:
        changes["alpha"] = trial.suggest_float("alpha", 0.0, 0.9)
        changes["temperature"] = trial.suggest_categorical("temperature", list(TEMPERATURES))
    return base.with_(**changes).as_preset()
