"""Classifiers × methods × metrics over images, batch by batch into a run folder."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import Dataset

from xattn.classifiers.classifier import Classifier
from xattn.classifiers.forwards import Level
from xattn.classifiers.preprocessing import Preprocessing
from xattn.classifiers.stages import Stage
from xattn.errors import InputError, NameUnknownError, UnsupportedError
from xattn.explainers.facts import MethodFacts, Need
from xattn.explainers.maps import method_parts, refuse_untrained
from xattn.heads import heads
from xattn.images import ImageSource
from xattn.listing import NamedImage
from xattn.memory import kept_pages, parse_size
from xattn.progress import Progress
from xattn.registry import Part
from xattn.study import engines
from xattn.study.engines import Unit
from xattn.study.forwards import Forwards, settle
from xattn.study.scoring import key_of, metric_parts
from xattn.study.store import Store

DEFAULT_METHODS = ("activation-map", "grad-cam", "grad-cam++", "random", "centre")
DEFAULT_METRICS = ("average-drop", "average-gain", "average-increase", "insertion", "deletion", "sparsity")
PACKAGES = ("xattn", "torch", "torchvision", "timm", "captum", "grad-cam", "pillow", "pandas", "pyarrow", "scipy")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        images: how many were asked for.
        failed: name and reason of those that could not be read or scored.
    """

    images: int
    failed: list[tuple[str, str]] = field(default_factory=list)


class Study:
    """The plan of a comparison, and its run.

    Args:
        classifiers: from `xattn.load` or `xattn.attach`, each with a name of its own.
        methods: names with settings.
        metrics: names with settings.
        images: a folder, a glob, a CSV, a list of these, or a torch dataset.
        out: the run folder, a path or a URL (s3://, gs://, …); a run that was cut off goes on there.
        target: "predicted", "label", or a class index or name; None: "label" where there are labels, else "predicted".
        labels_csv: a CSV with columns `image` and `label`.
        stage: where features are taken; what enters the pooling if None.
        batch_size: images a part.
        level: "exact", float32 as the network is; "fast", in half precision where that is faster, and the run says how far its values
            lie off.
        tune: how forwards are run: "off", the defaults; "auto", measured where the work is worth it; "full"; or by hand, `chunk=16`;
            see `xattn.classifiers.tuned`.
        memory: most bytes that the run may hold beside the classifiers, as `2GB`; under Ray that each actor may; None: most of what is
            free. A run that goes on with another is settled anew.
        workers: processes that decode, under Ray threads of each actor; None: one a core but one, at most 8.
        seed: of what is random.
        save_maps: also write masks at the images' size, as 16-bit PNG under `maps/`, and keep raw maps of that size whole.
        progress: a bar on stderr where it is a terminal, a line now and then where not.
        untrained: explain heads that were never trained all the same.
        shard: `(i, n)`: only every n-th batch, the i-th of them (from 1); several machines do a shard each into a folder each, and
            `compare` takes all of them.
        engine: "local", this process, or "ray", the actors of a Ray cluster: the one that `RAY_ADDRESS` or `ray start` tells, else one
            on this machine. Rows are the same, bit for bit where torch has the same number of threads.
        actors: processes of Ray that hold the classifiers; None: one a GPU where these are on one, else one a CPU.

    Methods that show a head's attention are left out for the classifiers whose head has none, as long as another has some.

    Raises:
        NameUnknownError: an unknown method, metric, setting, stage or class.
        InputError: no images, two classifiers of one name, or labels that do not match.
        UnsupportedError: a head that was never trained, or a method that none of the classifiers can take.
        MissingPackageError: the engine is Ray's, which is not installed.
    """

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        methods: Sequence[str] = DEFAULT_METHODS,
        metrics: Sequence[str] = DEFAULT_METRICS,
        images: str | Path | Sequence[str | Path] | Dataset[Any] | ImageSource = (),
        out: str | Path = "run",
        *,
        target: str | int | None = None,
        labels_csv: str | Path | None = None,
        stage: str | None = None,
        batch_size: int = 8,
        level: Level = "exact",
        tune: str = "auto",
        memory: str | int | None = None,
        workers: int | None = None,
        seed: int = 0,
        save_maps: bool = False,
        progress: bool = True,
        untrained: bool = False,
        shard: tuple[int, int] = (1, 1),
        engine: str = "local",
        actors: int | None = None,
    ) -> None:
        self.classifiers = list(classifiers)
        self.methods = method_parts(methods)
        self.metrics = metric_parts(metrics)
        self.source = images if isinstance(images, ImageSource) else ImageSource(images, labels_csv)
        self.store = Store(out)
        self.target: str | int = target if target is not None else ("label" if self.source.labelled else "predicted")
        self.batch_size = batch_size
        self.level: Level = level
        self.tune = tune
        self.memory = None if memory is None else parse_size(memory)
        self.workers = min(8, max(1, (os.cpu_count() or 1) - 1)) if workers is None else workers
        self.seed = seed
        self.save_maps = save_maps
        self.progress = progress
        self.shard = shard
        self.actors = actors
        self._engine = engines.named(engine, actors)
        self._check()
        for classifier in () if untrained else self.classifiers:
            refuse_untrained(classifier)
        self.stages = {key_of(classifier): classifier.stage(stage) for classifier in self.classifiers}
        self.forwards: dict[str, Forwards] = {}

    def _check(self) -> None:
        names = [key_of(classifier) for classifier in self.classifiers]
        if not names or not self.methods:
            raise InputError("a study needs at least one classifier and one method.")
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"two classifiers are called {', '.join(twice)}: rows would not tell them apart. Set .name on one.")
        if self.batch_size < 1:
            raise InputError(f"a batch needs at least one image; got batch_size {self.batch_size}.")
        place, count = self.shard
        if not 1 <= place <= count or not self._numbers():
            raise InputError(
                f"shard {place}/{count} holds no batch of the {-(-len(self.source) // self.batch_size)} that {len(self.source)} images in "
                f"batches of {self.batch_size} make: give i/n with i from 1 to n, fewer shards, or a smaller batch size."
            )
        if self.target == "label" and not self.source.labelled:
            raise InputError("target 'label' needs a label for every image: give labels_csv, or a source that has them.")
        wanting = [part.spec for part in self.methods if not any(part in self.methods_of(classifier) for classifier in self.classifiers)]
        if wanting or not all(self.methods_of(classifier) for classifier in self.classifiers):
            raise UnsupportedError(
                f"{', '.join(wanting) or self.methods[0].spec} shows a head's attention, and {', '.join(names)} has none: use ca-stream, "
                "br-npa or b-cnn, or another method."
            )
        for classifier in self.classifiers:
            if self.target not in ("label", "predicted"):
                classifier.class_index(self.target)
            for image in self.source.images:
                if image.label is not None:
                    try:
                        classifier.class_index(image.label)
                    except (InputError, NameUnknownError) as error:
                        raise InputError(f"the label of {image.name} does not fit {classifier.name}: {error}") from error

    def _numbers(self) -> list[int]:
        """Numbers of the batches of this shard."""
        place, count = self.shard
        return list(range(place - 1, -(-len(self.source) // self.batch_size), count))

    @property
    def images(self) -> list[NamedImage]:
        """The images of this shard."""
        size = self.batch_size
        return [image for number in self._numbers() for image in self.source.images[number * size : (number + 1) * size]]

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on: a run goes on in a folder only where all of it is the same."""
        return {
            "models": [
                {
                    "name": classifier.name,
                    "head": classifier.head_name,
                    "weights": classifier.digest(),
                    "stage": self.stage_of(classifier).name,
                    "multi_label": classifier.multi_label,
                    "labels": None if classifier.labels is None else _digest("\n".join(classifier.labels)),
                    "preprocessing": asdict(classifier.preprocessing),
                }
                for classifier in self.classifiers
            ],
            "methods": [part.spec for part in self.methods],
            "metrics": [part.spec for part in self.metrics],
            "target": self.target,
            "images": {"origin": self.source.origin, "count": len(self.source), "digest": self.source.digest()},
            "batch_size": self.batch_size,
            "level": self.level,
            "seed": self.seed,
            "save_maps": self.save_maps,
            "device": self.classifiers[0].device.type,
            "xattn": metadata.version("xattn"),
            "torch": torch.__version__,
        } | ({"shard": list(self.shard)} if self.shard[1] > 1 else {})

    def groups(self) -> list[tuple[Preprocessing, list[Classifier]]]:
        """The classifiers by their preprocessing, each group of which takes the same crops."""
        groups: dict[Preprocessing, list[Classifier]] = {}
        for classifier in self.classifiers:
            groups.setdefault(classifier.preprocessing, []).append(classifier)
        return list(groups.items())

    def units(self) -> list[Unit]:
        """The work: each batch of this shard for each group of classifiers."""
        return [Unit(group, number) for group in range(len(self.groups())) for number in self._numbers()]

    def count(self, unit: Unit) -> int:
        """How many images a unit has."""
        return min(self.batch_size, len(self.source) - unit.number * self.batch_size)

    def run(self) -> Outcome:
        """Does what is not done yet, then makes the tables.

        Raises:
            RunError: the folder holds another run, or cannot be written, or a cluster's processes died again and again.
            UnsupportedError: a method cannot run on a network; nothing is lost, the other methods can be run without it.
        """
        notes = {
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "labels_csv": self.source.labels_csv,
            "labels": {key_of(classifier): classifier.labels for classifier in self.classifiers},
            "protocol": {part.spec: _described(part.run) for part in self.methods}
            | {part.spec: _described(part.run) for part in self.metrics},
            "versions": {"python": platform.python_version(), **_versions()},
            "machine": f"{platform.system()} {platform.machine()}",
        }
        with kept_pages(), self._engine(self) as engine:
            self.store.begin(self.settings(), {**notes, **engine.used})
            self._settle()
            done, units = self.store.done(), self.units()
            with Progress(sum(self.count(unit) for unit in units), self.progress) as progress:
                progress.skip(sum(self.count(unit) for unit in units if unit.name in done))
                if left := [unit for unit in units if unit.name not in done]:
                    engine.work(left, progress.add)
        return Outcome(len(self.images), self.store.finish([part.spec for part in self.metrics]))

    def _settle(self) -> None:
        """How the forwards are run: as the run began, or settled now."""
        kept = self.store.read_run().get("forwards", {})
        for classifier in self.classifiers:
            key = key_of(classifier)
            before = Forwards.of(kept[key]) if key in kept else None
            self.forwards[key] = before if before is not None and before.memory == self.memory else settle(self, classifier)
        if {key: found.memory for key, found in self.forwards.items()} != {key: found["memory"] for key, found in kept.items()}:
            self.store.note("forwards", {key: found.as_dict() for key, found in self.forwards.items()})
        if self.progress:
            for key, found in self.forwards.items():
                print(f"{key}: {found.tuned}", file=sys.stderr)
                for metric, (mean, most) in (found.off or {}).items():
                    print(f"  {metric} lies {mean:.2g} off exact on average, {most:.2g} at most, on a sample", file=sys.stderr)

    def methods_of(self, classifier: Classifier) -> list[Part[MethodFacts]]:
        """The methods that a classifier can take: those of attention only where its head has some."""
        attends = heads.part(classifier.head_name).facts.attention
        return [part for part in self.methods if attends or Need.ATTENTION not in part.facts.needs]

    def stage_of(self, classifier: Classifier) -> Stage:
        """Where a classifier's features are taken."""
        return self.stages[key_of(classifier)]

    def table(self) -> pd.DataFrame:
        """A row per model × head × method, a column per metric: `table.csv`.

        Raises:
            RunError: the run is not finished.
        """
        return self.store.table()

    def scores(self) -> pd.DataFrame:
        """A row a value, without those of images that failed."""
        return self.store.rows()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(part: Any) -> dict[str, Any]:
    """All settings of a part, the defaults too, and the curves that a metric follows."""
    settings = asdict(part) if is_dataclass(part) and not isinstance(part, type) else {}
    looks = [repr(look) for look in getattr(part, "looks", ())]
    return {"settings": {key: str(value) for key, value in settings.items()}} | ({"looks": looks} if looks else {})


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
