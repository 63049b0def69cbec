"""`xattn train`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from xattn.cli.options import TEXTS, Integer, LocalPath, Number, classes_or_texts, devices_of, model_options, stages
from xattn.cli.terminal import say, warned_lines
from xattn.errors import InputError
from xattn.text import counted

if TYPE_CHECKING:
    from xattn.data.labelled import Labelled
    from xattn.models import Classifier
    from xattn.models.checkpoints import Header
    from xattn.training import Fitted, Recipe

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "transformer-engine", "32", "16", "bf16", "64")


@click.command()
@click.option("--model", required=True, help="Network, as for explain.")
@click.option("--weights", help="Weights: a local .pth or .safetensors, or a name of torchvision or open_clip.")
@click.option(
    "--head",
    help="Head to train, name[:key=value,…]; see `xattn list heads`. Default: that of a saved file; else ca-stream, of few-shot and "
    "segmentation gap, of re-identification dg-net.",
)
@click.option(
    "--task", help="What to train for, see `xattn list tasks`. Default: multi-label for a saved multi-label file, else classification."
)
@click.option(
    "--data",
    required=True,
    help="Training data: one folder per class, a CSV (image, label; several with | between them), or NAME:ROOT for fgvc-aircraft, "
    "stanford-cars, oxford-pets, cifar10, cifar100, cub, dogs, mit67, voc, market, cityscapes, cifar-fs.",
)
@click.option(
    "--out", required=True, type=LocalPath(dir_okay=False), help="File to write, a .safetensors; an interrupted training run resumes."
)
@click.option(
    "--classes",
    metavar="folders|wnid|FILE",
    callback=classes_or_texts,
    default="folders",
    show_default=True,
    help="What folder names mean: classes of their own, or WordNet ids of ImageNet's 1000 classes, which the network's classifier has. "
    f"Or: {TEXTS[0].lower()}{TEXTS[1:]}; folders are named by these texts.",
)
@model_options
@click.option(
    "--preset",
    help="Preset: ca-stream (as in the paper), head (cheap; the head alone), probe (the head alone, without random crops), full (head and "
    "network), idsds (head and network, with patches deleted, for the metric of that name), voc (several labels), re-identification, ocr "
    "(segmentation), focus (as in the thesis), few-shot-base (base classes of few shots), few-shot (episodes). Default: depends on the "
    "head; probe with --cache-features, few-shot and re-identification with the task of that name.",
)
@click.option("--epochs", type=Integer, help="Passes over the training pictures.")
@click.option("--freeze-statistics", is_flag=True, default=None, help="Keep and use the network's BatchNorm statistics.")
@click.option("--batch-size", type=Integer, help="Pictures per step, over all devices.")
@click.option("--optimiser", type=click.Choice(["sgd", "adam", "adamw"]), help="Optimiser.")
@click.option("--lr", type=Number(), help="Learning rate.")
@click.option("--momentum", type=Number(), help="Momentum of sgd.")
@click.option("--nesterov/--no-nesterov", default=None, help="Whether the momentum of sgd is Nesterov's.")
@click.option("--weight-decay", type=Number(), help="Weight decay of the optimiser.")
@click.option("--schedule", type=click.Choice(["constant", "cosine", "step", "poly"]), help="Schedule of the learning rate.")
@click.option("--step", type=Integer, help="Epochs between the steps of the schedule.")
@click.option("--factor", type=Number(), help="Factor of the learning rate at each step of the schedule.")
@click.option("--power", type=Number(), help="Power of the schedule poly.")
@click.option("--period", type=Integer, help="Epochs until the cosine schedule reaches 0; then it rises again. Default: all epochs.")
@click.option("--smallest-crop", type=Number(), help="Smallest share of a picture's area that a random crop may cover.")
@click.option("--centre-crop", type=Number(), help="Share of a random crop's side to keep, around its centre.")
@click.option("--padding", type=Integer, help="Pixels added around the network's own crop before a random crop and flip.")
@click.option("--erasing", type=Number(), help="Probability of erasing a random rectangle of a training picture.")
@click.option("--deletion-grid", type=Integer, help="Patches per side of a grid; one patch is deleted in half of the pictures.")
@click.option("--dropout", type=Number(), help="Dropout of the head's vector.")
@click.option("--patience", type=Integer, help="Epochs without a better validation loss before training stops.")
@click.option("--validation", type=Number(), help="Share of each class that is held out if the data has no validation split.")
@click.option(
    "--teacher",
    type=LocalPath(exists=True, dir_okay=False),
    help="Trained .safetensors; the student learns its answers and, except with --task few-shot, starts from its weights.",
)
@click.option("--teacher-weights", help="Weights of the teacher's network, if its file has only a head.")
@click.option("--alpha", type=Number(), help="Weight of the labels against the teacher's answers.")
@click.option("--temperature", type=Number(), help="Temperature of the teacher's answers.")
@click.option("--high-res", callback=stages, help="Stages whose stride is removed, such as layer3,layer4.")
@click.option("--dilate", is_flag=True, help="Dilate the kernels after these strides, so that their receptive fields stay the same.")
@click.option("--search", "trials", type=click.IntRange(1), help="Search for the settings in this many trials, and keep the best.")
@click.option("--accelerator", help="cpu, gpu, mps or another of Lightning's. Default: a GPU if there is one.")
@click.option(
    "--devices", default="1", show_default=True, callback=devices_of, help="Number of devices per node, in any form that Lightning accepts."
)
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Number of machines.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="32-true", show_default=True, help="Precision, one of Lightning's.")
@click.option("--workers", type=click.IntRange(0, 1024), help="Decoding processes; default: one fewer than the cores.")
@click.option(
    "--cache-features",
    type=LocalPath(file_okay=False),
    metavar="DIR",
    help="Folder for the frozen network's features, which are computed once; several heads can share it.",
)
@click.option(
    "--patches",
    type=LocalPath(exists=True, dir_okay=False),
    help="A .npy of boxes of the training pictures, for focus:BACKBONE. Default: those that the network finds.",
)
@click.option("--head-lr", type=Number(), help="Learning rate of the head's own weights, where the network is trained too.")
@click.option("--local-lr", type=Number(), help="Learning rate of the local stream of focus:BACKBONE.")
@click.option("--ranking", type=Number(), help="Weight of the ranking loss of focus:BACKBONE.")
@click.option("--margin", type=Number(), help="Margin of the ranking loss.")
@click.option("--episodes", type=Integer, help="Episodes per epoch, for --task few-shot.")
@click.option("--base-lr", type=Number(), help="Learning rate of the weights that an episode's linear layer starts from.")
@click.option("--seed", type=Integer, default=0, show_default=True, help="Seed for everything random.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    metavar="N",
    help="Train N heads at once, of seeds SEED, SEED+1, …, each into a file of its own: NAME-SEED.safetensors. Needs --cache-features.",
)
@click.option("--log-gradients", is_flag=True, help="Log the gradient norm of each layer at each step.")
def train(
    model: str,
    weights: str | None,
    head: str | None,
    task: str | None,
    data: str,
    out: str,
    classes: str,
    templates: tuple[str, ...],
    labels: str | None,
    preset: str | None,
    output: str | None,
    teacher: str | None,
    teacher_weights: str | None,
    trust_code: bool,
    high_res: tuple[str, ...],
    dilate: bool,
    input_size: int | tuple[int, int] | None,
    resize: int | tuple[int, int] | None,
    mean: list[float] | None,
    std: list[float] | None,
    trials: int | None,
    accelerator: str | None,
    devices: int | str,
    nodes: int,
    precision: str,
    workers: int | None,
    cache_features: str | None,
    patches: str | None,
    seed: int,
    seeds: int | None,
    log_gradients: bool,
    **changes: Any,
) -> None:
    """Train a head on a network, alone or together with it, and write one file for --model."""
    if not out.endswith(".safetensors"):
        raise InputError(f"--out must be a .safetensors file; got '{out}'.")
    import torch

    from xattn.focus import PREFIX
    from xattn.heads import heads
    from xattn.models import load
    from xattn.models.checkpoints import read_header
    from xattn.models.loading import names_code_of, own_file
    from xattn.models.sources import is_new
    from xattn.tasks import default_task, tasks

    if teacher is None and teacher_weights is not None:
        raise InputError("--teacher-weights is of a teacher's network: give --teacher too, or leave it out.")
    file = own_file(model)
    saved = None if file is None else read_header(file)
    network = model if saved is None else saved.source.model
    component = tasks.create(task or default_task(saved is not None and saved.multi_label))
    name = _head(head, saved, network, component.metadata.head)  # a wrong name is reported before anything is loaded
    from xattn.tasks.few_shot import FewShot
    from xattn.training import fit, fit_episodes, fit_seeds, with_ways
    from xattn.training.checks import refuse_unused
    from xattn.training.recipe import default_preset, recipe_of
    from xattn.training.search import search
    from xattn.training.seeds import path_of

    by_episodes = component.instance if isinstance(component.instance, FewShot) else None
    if by_episodes is not None:
        given = {"--search": trials, "--seeds": seeds, "--cache-features": cache_features, "--patches": patches}
        given |= {"--log-gradients": log_gradients or None, "--classes wnid": True if classes == "wnid" else None}
        given |= {"--devices": None if devices == 1 else devices, "--nodes": None if nodes == 1 else nodes}
        if beside := [option for option, value in given.items() if value is not None]:
            raise InputError(f"{beside[0]} does not apply to training by episodes (--task {component.spec}): leave it out.")
    if seeds is not None:
        _check_seeds(cache_features, trials, teacher, log_gradients, devices, nodes, patches)
    default = "probe" if cache_features else default_preset(name, PREFIX if network.startswith(PREFIX) else "", component.metadata.preset)
    recipe = recipe_of(preset or default).with_(**changes)
    if trials is None:  # a search chooses some settings itself, and checks the others
        refuse_unused(recipe, taught=teacher is not None, by_episodes=by_episodes is not None)
    texts = None if classes in ("folders", "wnid") else classes
    opened = component.instance.open(data, "wnid" if classes == "wnid" else "folders")
    sys.path.append(os.getcwd())  # where package.module:factory is searched
    torch.manual_seed(seed)  # for the head's initial weights
    cpu = "cpu" if accelerator == "cpu" else None
    build = partial(
        load,
        model,
        head=name if saved is None else head,
        weights=weights,
        templates=templates,
        labels=labels,
        high_res=high_res,
        dilate=dilate,
        input_size=input_size,
        resize=resize,
        mean=mean,
        std=std,
        multi_label=component.metadata.multi_label,
        output=output,
        device=cpu,
        trust_code=trust_code,
    )
    names = opened.names if saved is None and texts is None and by_episodes is None else None
    from_teacher = teacher is not None and by_episodes is None
    with warnings.catch_warnings() if from_teacher else warned_lines():
        if from_teacher:
            warnings.simplefilter("ignore", UserWarning)  # about a new classifier: the teacher's weights follow
        classifier = _with_classes(build, texts, names, is_new(network), heads.create(name).metadata.replaces)
    if by_episodes is not None:
        ways = by_episodes.shape_for(classifier).ways
        if classifier.inner is None or classifier.class_count != ways:
            classifier = with_ways(classifier, ways, seed)
    taught = None
    if teacher is not None:
        taught = load(teacher, weights=teacher_weights, device=cpu, trust_code=trust_code or names_code_of(teacher, model))
        if from_teacher:
            classifier.start_from(taught)
    _tell_what_is_trained(classifier, recipe, opened, teacher, from_teacher, by_episodes is not None)
    options: dict[str, Any] = {
        "task": component.spec,
        "recipe": recipe,
        "teacher": taught,
        "seed": seed,
        "workers": workers,
        "accelerator": accelerator,
        "precision": precision,
    }
    of_fit: dict[str, Any] = {
        "devices": devices,
        "nodes": nodes,
        "log_gradients": log_gradients,
        "cache_features": cache_features,
        "patches": patches,
    }
    measure = component.metadata.score
    if by_episodes is not None:
        _tell(_kept(fit_episodes(classifier, opened, out, **options), measure, "episodes"))
    elif seeds is not None:
        assert cache_features is not None
        of_seeds = {key: value for key, value in options.items() if key not in ("teacher", "seed")}
        all_seeds = range(seed, seed + seeds)
        found_all = fit_seeds(classifier, opened, out, all_seeds, cache_features=cache_features, **of_seeds)
        for each, fitted in zip(all_seeds, found_all, strict=True):
            _tell(f"seed {each}: {_kept(fitted, measure, 'pictures')}")
            _tell(str(path_of(out, each)), err=False)
        return
    elif trials is None:
        _tell(_kept(fit(classifier, opened, out, **options, **of_fit), measure, "pictures"))
    else:
        found = search(classifier, opened, out, trials, **options, **of_fit)
        settings = ", ".join(f"{key} {value}" for key, value in found.recipe.to_json().items() if value != getattr(recipe, key))
        _tell(f"best of {counted(found.trials, 'trial')} ({found.pruned} pruned): validation {measure} {found.score:.2f} %, {settings}")
    _tell(out, err=False)


def _check_seeds(
    cache_features: str | None,
    trials: int | None,
    teacher: str | None,
    log_gradients: bool,
    devices: int | str,
    nodes: int,
    patches: str | None,
) -> None:
    """Refuses options that do not apply to heads that are trained at once.

    Raises:
        InputError: one of them was given, or the features are not kept.
    """
    if cache_features is None:
        raise InputError("--seeds trains heads on features that are computed once: give --cache-features DIR too, or leave out --seeds.")
    given = {"--search": trials, "--teacher": teacher, "--log-gradients": log_gradients or None, "--patches": patches}
    given |= {"--devices": None if devices == 1 else devices, "--nodes": None if nodes == 1 else nodes}
    if beside := [option for option, value in given.items() if value is not None]:
        raise InputError(f"{beside[0]} does not apply to heads that are trained at once (--seeds): leave one of them out.")


def _head(asked: str | None, saved: Header | None, network: str, of_task: str) -> str:
    """Returns the head to train: as asked, of the saved file, or of the task.

    Raises:
        NameUnknownError: there is no such head.
    """
    from xattn.heads import heads
    from xattn.models.sources import is_new

    name = asked or (of_task if saved is None else saved.head)
    replaces = heads.create(name).metadata.replaces
    if asked is None and saved is None and is_new(network) and replaces == "pooling":
        return "gap"  # a head beside a frozen network needs one that is trained
    return name


def _with_classes(build: Callable[..., Classifier], texts: str | None, names: Sequence[str] | None, new: bool, replaces: str) -> Classifier:
    """Builds the classifier with the classes of the data where it needs its own.

    Args:
        build: loads it with the given `classes`.
        texts: classes as texts, for a network of pictures and texts.
        names: the data's classes, where the classifier may get them; else None.
        new: whether the network has no weights yet.
        replaces: what the head replaces.
    """
    of_its_own = names is not None and (replaces == "classifier" or new)
    classifier = build(classes=len(names) if of_its_own and names is not None else texts)
    if replaces == "nothing" and names is not None and not set(names) <= set(classifier.labels or names):
        return build(classes=len(names))  # a network of other classes gets a new classifier
    return classifier


def _tell(line: str, err: bool = True) -> None:
    """Prints a line in the first of several processes."""
    from xattn.training.fit import is_first_process

    if is_first_process():
        say(line, err=err)


def _tell_what_is_trained(
    classifier: Classifier, recipe: Recipe, opened: Labelled, teacher: str | None, from_teacher: bool, by_episodes: bool
) -> None:
    """Prints the classifier, what of it is trained, what it reads, its teacher and its pictures."""
    read = ", ".join(map(str, classifier.attachment.stages or [classifier.stage()]))
    what = "head and network" if recipe.backbone else "the head alone"
    what = f"scales and shifts of convolutions, by {recipe.episodes} episodes per epoch" if by_episodes else what
    _tell(f"{classifier.name} · {classifier.head_name} · {counted(classifier.class_count, 'class')} · {classifier.device}: {what}")
    _tell(f"  {classifier.preprocessing}")
    _tell(f"  reads {read}")
    if teacher is not None:
        starts = f"starts from the weights of {teacher}, and learns its answers"
        _tell(f"  {starts if from_teacher else f'learns the answers of {teacher}'}")
    count = classifier.class_count if opened.several else len(set(opened.targets))
    _tell(f"{opened.name}: {counted(len(opened), 'picture')} of {counted(count, 'class')}")


def _kept(fitted: Fitted, measure: str, units: str) -> str:
    """Which epoch of a training was kept, and how it does on the validation data."""
    return (
        f"kept epoch {fitted.best} of {fitted.epochs}: validation loss {fitted.loss:.4f}, {measure} {fitted.score:.2f} % on "
        f"{fitted.validation} {units}; logs in {fitted.folder}"
    )
