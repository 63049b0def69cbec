"""`Study`: plans a run, computes it and fills its folder."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import Dataset

from xattn.data.depth import MAX_PIXELS
from xattn.data.images import ImageSource
from xattn.data.labels import LabelsFrom
from xattn.data.listing import NamedImage
from xattn.data.map_files import Covers
from xattn.errors import InputError
from xattn.explainers.api import refuse_untrained
from xattn.explainers.base import MethodComponent, created
from xattn.inference.memory import kept_pages, parse_size
from xattn.inference.settings import Level
from xattn.metrics.base import metrics as metric_registry
from xattn.metrics.base import refuse_without_probability
from xattn.metrics.typeset import html_text
from xattn.models.asked_targets import Asked
from xattn.models.classifier import Classifier
from xattn.models.loading import refuse_no_classifier
from xattn.models.source_labels import with_labels
from xattn.study.engines import engine as engine_of
from xattn.study.evaluation import frame_of
from xattn.study.execution import executions
from xattn.study.extending import extended_plan
from xattn.study.map_files import Places, kept_maps, with_maps
from xattn.study.pairs import SIMILARITY, Pairs, paired
from xattn.study.plan import Plan, key_of, planned_stages
from xattn.study.rounds import work
from xattn.study.sequential import asked, shuffled
from xattn.study.store import Store
from xattn.text import counted

DEFAULT_METHODS = ("activation-map", "grad-cam", "grad-cam++", "random", "centre")
SIGNED_METHODS = ("grad-cam", "hires-cam", "random", "centre")  # replaces the default methods for signed maps
CONTROLS = ("random", "centre")  # added to maps of other tools
DEFAULT_METRICS = ("average-drop", "average-gain", "average-increase", "insertion", "deletion", "sparsity")
PACKAGES = (
    *("xattn", "torch", "torchvision", "timm", "captum", "grad-cam", "openvino", "torch-tensorrt"),
    *("pillow", "pandas", "pyarrow", "scipy"),
)

logger = logging.getLogger("xattn")


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        images: number of images in the run; fewer than were given if a metric decided earlier.
        failed: name and reason of each image that could not be read or scored.
    """

    images: int
    failed: list[tuple[str, str]] = field(default_factory=list)


class Study:
    """Classifiers × methods × metrics over images, written batch by batch into a run folder.

    Args:
        classifiers: from `xattn.load` or `xattn.attach`, each with a unique name.
        methods: names with settings; the default is for a new run. See below for a folder that already holds a run.
        metrics: names with settings, as for `methods`.
        images: a folder, a glob, a CSV, a list of these, or a torch data set.
        out: the run folder, a path or a URL (s3://, gs://, …); an interrupted run resumes there.
        target: "predicted", "label", or a class index or name; "labels", every label of an image; a contrast, `A - 0.6*B`,
            `predicted - second`, `label - predicted`; a target of `xattn.metrics.targets` for all images, or a function of the output.
            None: "label" if there are class labels and no network outputs a map of logits, else "predicted". For a multi-label classifier
            "predicted" means every label that it predicts, with one row per label; an image without a predicted label has one row that says
            so.
        gallery: pictures in files, for networks whose output is a vector. Each image is compared with its nearest picture in the gallery:
            the target is the cosine similarity of the two, explained in the image and in the gallery picture. `market:ROOT:gallery` applies
            the rules of Market-1501.
        threshold: the lowest probability of a predicted label of a multi-label classifier; None: 0.5.
        labels_csv: a CSV with columns `image` and `label`, or another file of labels, see `ImageSource`; for a regression, the label is a
            number.
        labels_from: "folders", "csv" or "none", see `ImageSource`; None: whichever exists, including folders whose names are all classes.
        maps: maps of other tools, scored along with those of `methods` as methods `maps:NAME`: folders or files, keyed by the names of
            their methods, or named automatically; `xattn.data.map_files.find_maps` describes how. Pictures that lack a map by any of them
            are left out. They are treated as raw maps: min-max normalised, then resized bilinearly to the crop. The default of `methods` is
            then the controls random and centre.
        covers: the area that such maps show: "crop", the network's input; "picture", the whole picture; None: the picture if they have its
            size, else the crop.
        regions: where the objects are, for metrics that need it: a CSV with columns `image`, `x0`, `y0`, `x1`, `y1` (edges of a box in
            pixels of the picture) and optionally `label`; COCO's JSON; a folder of VOC's XML; or a folder of mask images with the names of
            the pictures. If objects have classes, only those of a row's target count. None: the regions of the data set itself, from a
            method `region(index)`.
        stage: the stage from which features are taken; None: the input of the pooling.
        batch_size: images per part.
        level: "exact", float32 like the network; or "fast", half precision where that is faster; the run then reports how much its values
            differ.
        tune: how forwards are run: "off", the defaults; "auto", measured if the work justifies it; "full"; or settings by hand,
            `chunk=16`; see `xattn.inference.tuned`.
        memory: bytes that the run may use in addition to the classifiers, such as `2GB`; with Ray, per actor; None: most of the free
            memory. A run that resumes with another value is planned again.
        workers: decoding processes (with Ray, threads of each actor); None: one fewer than the cores, at most 8.
        seed: seed of everything random.
        save_maps: also write masks at the size of the images, as 16-bit PNG under `maps/`, and store raw maps of that size in full.
        progress: show a progress bar if stderr is a terminal, log lines otherwise.
        signed: keep evidence against the target, which is negative in the raw maps; masks, and therefore metrics, use the positive part.
            Values below 0 in `maps` then also count as evidence against the target.
        untrained: also explain heads that were never trained.
        shard: `(i, n)`: only shard i of n, counted from 1: every n-th batch. Several machines can compute one shard each, each into its own
            folder; `compare` accepts all of these folders.
        engine: "local", this process, or "ray", the actors of a Ray cluster: the one that `RAY_ADDRESS` or `ray start` names, else a new
            one on this machine. Rows are bit-identical if torch has the same number of threads.
        actors: Ray processes that hold the classifiers; None: one per GPU if the classifiers are on a GPU, else one per CPU.
        depth: number of bits in use in pictures with more than 8 bits, if the files do not state it; see `xattn.data.depth.Reading`.
        window: the values that are shown as black and white in pictures with more than 8 bits.
        max_pixels: number of pixels of the largest picture that is decoded.
        until_decided: a metric of the run: pictures are used in random order until a confidence sequence of this metric has decided the
            order of every two methods of a classifier, with an error of 5 % for all pairs together; `run.json` keeps the intervals as
            `sequence`.
        margin: for until_decided, the largest difference of that metric that does not matter: methods equivalent within it count as
            decided.

    Attributes:
        plan: the definition of the run.
        store: the folder that it fills.

    Methods that show a head's attention are skipped for classifiers whose head has none, if another classifier's head has some.

    If the folder holds a run of the same classifiers, images and settings, new methods and metrics are added to it: only their rows are
    computed, and existing rows stay unchanged. By default nothing is added.

    Raises:
        NameUnknownError: a method, metric, setting, stage or class does not exist.
        InputError: there are no images, two classifiers have the same name, or labels do not match.
        SettingError: the maps of a method cannot be signed.
        UnsupportedError: a head was never trained, or no classifier supports one of the methods.
        MissingPackageError: the engine is "ray", and Ray is not installed.

    >>> import tempfile, torch, xattn
    >>> images = torch.utils.data.TensorDataset(torch.rand(4, 3, 64, 64), torch.arange(4))
    >>> with tempfile.TemporaryDirectory() as out:
    ...     study = xattn.Study([xattn.load("birds:gap", device="cpu")], ["random"], ["average-drop"], images, out, progress=False)
    ...     study.run().failed, len(study.scores())
    ([], 4)
    """

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        methods: Sequence[str] = DEFAULT_METHODS,
        metrics: Sequence[str] = DEFAULT_METRICS,
        images: str | Path | Sequence[str | Path] | Dataset[Any] | ImageSource = (),
        out: str | Path = "run",
        *,
        target: Asked | None = None,
        gallery: str | Path | Sequence[str | Path] | ImageSource | None = None,
        threshold: float | None = None,
        labels_csv: str | Path | None = None,
        labels_from: LabelsFrom | None = None,
        maps: Places | None = None,
        covers: Covers | None = None,
        regions: str | Path | None = None,
        stage: str | None = None,
        batch_size: int = 8,
        level: Level = "exact",
        tune: str = "auto",
        memory: str | int | None = None,
        workers: int | None = None,
        seed: int = 0,
        save_maps: bool = False,
        progress: bool = True,
        signed: bool = False,
        untrained: bool = False,
        shard: tuple[int, int] = (1, 1),
        engine: str = "local",
        actors: int | None = None,
        depth: int | None = None,
        window: Sequence[float] | None = None,
        max_pixels: int = MAX_PIXELS,
        until_decided: str | None = None,
        margin: float | None = None,
    ) -> None:
        default = methods is DEFAULT_METHODS
        if default and maps is not None:
            methods = CONTROLS
        elif default and signed:
            methods = SIGNED_METHODS
        if isinstance(classifiers, (torch.nn.Module, str)):
            raise InputError(f"a study takes a list of classifiers, as [classifier]; got {type(classifiers).__name__}.")
        for classifier in classifiers:
            refuse_no_classifier(classifier)
        components = created(methods, signed=signed)
        values = any(classifier.regression for classifier in classifiers)
        scored = metric_registry.create_all(metrics, allow_none=True)
        if (values or gallery is not None) and metrics is DEFAULT_METRICS:  # values and similarities have no probability
            scored = [metric for metric in scored if not metric.instance.perturbations]
        until = asked(until_decided, margin, gallery is not None)
        if gallery is not None:  # before the network runs on all pictures
            if target is not None:
                raise InputError("with a gallery, the target is the similarity of each image with its nearest picture: leave target out.")
            if maps is not None:
                raise InputError("maps of other tools are of one picture, and a gallery asks for maps of pairs: leave one out.")
            for metric in scored:
                refuse_without_probability(metric.spec, metric.instance, False, SIMILARITY)
        if isinstance(images, ImageSource):
            source = images
        else:
            source = ImageSource(images, labels_csv, labels_from=labels_from, depth=depth, window=window, max_pixels=max_pixels)
        source = source.with_regions(regions)
        for classifier in () if untrained else classifiers:
            refuse_untrained(classifier)
        workers = min(8, max(1, (os.cpu_count() or 1) - 1)) if workers is None else workers
        if gallery is None:
            source = with_labels(source, classifiers)
        else:
            others = (
                gallery if isinstance(gallery, ImageSource) else ImageSource(gallery, depth=depth, window=window, max_pixels=max_pixels)
            )
            source, target = paired(classifiers, source, others, batch_size=batch_size, workers=workers, progress=progress)
        dense = any(classifier.reader.dense for classifier in classifiers)  # pixels have a class, pictures have none
        given: list[MethodComponent] = []
        if maps is not None:
            source, given = with_maps(source, maps, classifiers, covers, signed)
        source = source if until is None else shuffled(source, seed)
        self.store = Store(out)
        self.progress = progress
        self._engine = engine_of(engine, actors)
        make = partial(
            Plan,
            tuple(classifiers),
            source=source,
            target=target if target is not None else ("label" if source.labelled and not values and not dense else "predicted"),
            stages=planned_stages(classifiers, stage),
            batch_size=batch_size,
            level=level,
            tune=tune,
            memory=None if memory is None else parse_size(memory),
            workers=workers,
            seed=seed,
            save_maps=save_maps,
            shard=shard,
            threshold=threshold,
            until_decided=until,
        )
        more_methods = [*([] if default else components), *given]
        more_metrics = [] if metrics is DEFAULT_METRICS else scored
        extended = extended_plan(make, self.store, more_methods, more_metrics)
        self.plan = extended or make(methods=(*components, *given), metrics=tuple(scored))

    @property
    def images(self) -> list[NamedImage]:
        """Returns the images of this shard."""
        return self.plan.images

    @torch.random.fork_rng(devices=[])
    def run(self) -> Outcome:
        """Computes everything that the folder lacks, then writes the tables; the state of torch's generator is restored.

        Raises:
            InputError: a data set returns tensors in a range that a run does not accept.
            RunError: the folder holds another run, or a run of pictures that have been replaced since; or it is in use or cannot be
                written; or processes died repeatedly.
            UnsupportedError: a method cannot run on a network; nothing is lost: run the other methods without it.
        """
        plan, settings = self.plan, self.plan.settings()
        now = {"began": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv}
        about = {
            **now,
            "labels_csv": plan.source.labels_csv,
            "labels": {key_of(classifier): classifier.labels for classifier in plan.classifiers},
            "protocol": plan.protocols(),
            **({"maps": kept} if (kept := kept_maps(plan.methods)) else {}),
            **({"pairs": plan.target.nearest} if isinstance(plan.target, Pairs) else {}),
            "versions": {"python": platform.python_version(), **_versions()},
            "machine": f"{platform.system()} {platform.machine()}",
        }
        plan.source.refuse_wrong_values(plan.batch_size)
        with kept_pages(), self.store.locked(), self._engine(plan) as running:
            self.store.begin(settings, {**about, **running.about})
            added = self.store.added(settings)
            kept = self.store.read_run().get("forwards", {})
            plan = self.plan = replace(plan, execution=executions(plan, kept, extended=bool(added)))
            forwards = {key: execution.as_dict() for key, execution in plan.execution.items()}
            if added:
                logger.info("'%s' holds a run; added are %s", self.store.folder, _listed(added))
                self.store.extend(settings, now, {"protocol": about["protocol"], "forwards": forwards, "maps": kept_maps(plan.methods)})
            elif any(key not in kept or kept[key]["memory"] != plan.memory for key in forwards):
                self.store.note(forwards=forwards)
            if plan.source.dataset is None:
                self.store.same_contents([image.name for image in plan.images], plan.source.digests(plan.images))
            if plan.source.origin != (stored := self.store.read_run()["settings"])["images"]["origin"]:  # the pictures have moved
                self.store.note(settings={**stored, "images": settings["images"]})
            images = work(plan, self.store, running, progress=self.progress)
            classes = {(classifier.name, classifier.head_name): classifier.class_count for classifier in plan.classifiers}
            failed = self.store.finish([metric.spec for metric in plan.metrics], classes)
            self.store.read_run()  # checks that the folder still exists at the end
        return Outcome(images, failed)

    def __repr__(self) -> str:
        plan, state = self.plan, "finished" if self.store.finished else "not finished"
        classifiers = ", ".join(f"{classifier.name} · {classifier.head_name}" for classifier in plan.classifiers)
        methods, metrics = (", ".join(component.spec for component in components) for components in (plan.methods, plan.metrics))
        return f"Study in '{self.store.folder}', {state}: {counted(len(self.images), 'image')}; {classifiers}; {methods}; {metrics}"

    def _repr_html_(self) -> str:
        """Shows in a notebook the table of the run once it is finished, and before that, what it will compute."""
        if self.store.finished:
            from xattn.study.compare import compare_runs

            return compare_runs([self.store.folder]).text("html")
        said = {
            "classifiers": [f"{classifier.name} · {classifier.head_name}" for classifier in self.plan.classifiers],
            "methods": [method.spec for method in self.plan.methods],
            "metrics": [metric.spec for metric in self.plan.metrics],
        }
        lines = "".join(f"<li>{len(names)} {kind}: {html_text(', '.join(names))}</li>" for kind, names in said.items())
        return f"<p>A study of {counted(len(self.images), 'image')}, not yet run:</p><ul>{lines}</ul>"

    def table(self) -> pd.DataFrame:
        """Returns one row per model × head × method and one column per metric: `table.csv`.

        Raises:
            RunError: the run is not finished.
        """
        return self.store.table()

    def scores(self) -> pd.DataFrame:
        """Returns one row per value, without images that failed."""
        return frame_of(self.store.rows())


def _listed(added: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{what} {', '.join(specs)}" for what, specs in added.items())


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
