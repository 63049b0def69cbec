"""The plan of a run: classifiers × methods × metrics over images, as one frozen, picklable value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import metadata
from typing import Any

import torch

from xattn.data.annotation_files import TAKEN
from xattn.data.images import ImageSource
from xattn.data.listing import NamedImage
from xattn.data.map_files import MapFiles
from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError, NameUnknownError, UnsupportedError
from xattn.explainers.base import MethodComponent, is_of_files
from xattn.inference.settings import Level, refuse_unknown_level
from xattn.inference.tuning import Tuned
from xattn.metrics.base import Metric, MetricMetadata, refuse_without_probability
from xattn.models.asked_targets import THRESHOLD, Asked, described, target_rule
from xattn.models.classifier import Classifier
from xattn.models.layout import Stage
from xattn.models.target_rules import OfOutput, PredictedLabels, TargetRule, labels_of
from xattn.registry import Component
from xattn.study.regions import check_labels
from xattn.study.schema import Deviation, run_key
from xattn.study.sequential import Pair, UntilDecided, pairs_of
from xattn.study.support import lacking, refuse_unsupported
from xattn.text import counted

MetricComponent = Component[MetricMetadata, Metric]


@dataclass(frozen=True)
class Unit:
    """One batch for a group of classifiers that share its crops.

    Attributes:
        group: index into `Plan.groups`.
        number: index of the batch in the source.
    """

    group: int
    number: int

    @property
    def name(self) -> str:
        """Name of the unit's part."""
        return f"{self.group:02d}-{self.number:06d}"


@dataclass(frozen=True)
class Execution:
    """How one classifier's forwards are run; stored in `run.json`, so that a resumed run uses the same settings.

    Attributes:
        tuned: the tuning.
        at_once: number of images of a batch that are explained and scored together.
        deviation: difference of the values from level exact without shortcuts, by metric; None if no shortcut is used.
        memory: bytes that were available to the plan; None: most of the free memory.
    """

    tuned: Tuned
    at_once: int
    deviation: Mapping[str, Deviation] | None = None
    memory: int | None = None

    def as_dict(self) -> dict[str, Any]:
        deviation = None if self.deviation is None else {metric: found.as_json() for metric, found in self.deviation.items()}
        return {**self.tuned.as_dict(), "images_at_once": self.at_once, "deviation": deviation, "memory": self.memory}

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Execution:
        """Rebuilds it from the output of `as_dict`."""
        stored = kept["deviation"]
        deviation = None if stored is None else {metric: Deviation.of(found) for metric, found in stored.items()}
        return cls(Tuned.of(kept, "as the run began"), int(kept["images_at_once"]), deviation, kept["memory"])


@dataclass(frozen=True)
class Plan:
    """The full definition of a run. An engine works through its units, one batch each, and writes into a store.

    Attributes:
        classifiers: each with a unique name.
        methods: explanation methods.
        metrics: metrics of their maps.
        source: the images.
        target: what is explained, as the user gave it.
        threshold: the lowest probability of a predicted label of a multi-label classifier; None: 0.5.
        stages: where features are taken, by `key_of` of the classifiers.
        batch_size: images per part.
        level: "exact" or "fast".
        tune: how forwards are tuned.
        memory: bytes that a process may use in addition to the classifiers; None: most of the free memory.
        workers: decoding processes.
        seed: seed of everything random.
        save_maps: also write masks at the size of the images.
        shard: `(i, n)`: only shard i of n, counted from 1: every n-th batch.
        until_decided: the metric whose decision ends the run, see `UntilDecided`; None: all pictures are used.
        execution: execution settings of each classifier, once they are determined.

    Raises:
        InputError: there are no images, two classifiers have the same name, or labels do not match.
        UnsupportedError: no classifier supports one of the methods.
    """

    classifiers: tuple[Classifier, ...]
    methods: tuple[MethodComponent, ...]
    metrics: tuple[MetricComponent, ...]
    source: ImageSource
    target: Asked
    stages: Mapping[str, Stage | None]
    batch_size: int = 8
    level: Level = "exact"
    tune: str = "auto"
    memory: int | None = None
    workers: int = 0
    seed: int = 0
    save_maps: bool = False
    shard: tuple[int, int] = (1, 1)
    threshold: float | None = None
    until_decided: UntilDecided | None = None
    execution: Mapping[str, Execution] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [key_of(classifier) for classifier in self.classifiers]
        if not names or not self.methods:
            raise InputError("a study needs at least one classifier and one method.")
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"two classifiers are named {', '.join(twice)}, so their rows would be indistinguishable. Set .name on one.")
        refuse_unknown_level(self.level)
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise InputError(f"a batch needs at least one image; got batch_size {self.batch_size}.")
        place, count = self.shard
        if not 1 <= place <= count or not self._numbers():
            raise InputError(
                f"shard {place}/{count} holds no batch of the {-(-len(self.source) // self.batch_size)} that "
                f"{counted(len(self.source), 'image')} in batches of {self.batch_size} make: give i/n with i from 1 to n, fewer shards, "
                "or a smaller batch size."
            )
        self._check_methods()
        self._check_targets()
        self._check_regions()
        if self.until_decided is not None:
            self.until_decided.refuse([metric.spec for metric in self.metrics], self.pairs(), self.shard[1])

    def _check_methods(self) -> None:
        for part in self.methods:
            lacks = {self.lacks(classifier, part): classifier for classifier in self.classifiers}
            if None not in lacks:
                refuse_unsupported(part, *next(iter(lacks.items())))
        for classifier in self.classifiers:
            if not self.methods_of(classifier):
                refuse_unsupported(self.methods[0], self.lacks(classifier, self.methods[0]), classifier)
        given = [method.spec for method in self.methods if is_of_files(method)]
        if given and (again := [metric.spec for metric in self.metrics if metric.instance.explained or metric.instance.needs_rivals]):
            raise UnsupportedError(
                f"{', '.join(again)} runs the method again, which is impossible for maps in files ({', '.join(given)}): leave one "
                f"of them out."
            )

    def _check_targets(self) -> None:
        if self.threshold is not None and not self._predicts_labels:
            raise InputError("a threshold is for target 'predicted' of a multi-label classifier (--multi-label): leave it out.")
        for classifier in self.classifiers:
            rule = self.rule_of(classifier)
            if rule.needs_labels and not self.source.labelled:
                raise InputError(f"target '{rule.text}' needs a label for every image: give labels_csv, or a source that has them.")
            if (rule.per_label or isinstance(rule, OfOutput)) and any(map(is_of_files, self.methods)):
                raise InputError(f"files have one map per picture, but target '{rule.text}' needs one per label: give one class.")
            if len(rule) != 1:
                raise InputError(f"a study takes one target for all images; got {len(rule)}. Give a rule, or use explain and evaluate.")
            for metric in self.metrics if classifier.regression else ():
                refuse_without_probability(metric.spec, metric.instance, False, f"a value of {classifier.name}, a regression,")
            if rule.without_probability is not None:
                for metric in self.metrics:
                    refuse_without_probability(metric.spec, metric.instance, False, rule.without_probability)
            for image in self.source.images:
                if image.label is not None:
                    try:
                        labels_of(classifier, image.label)
                    except (InputError, NameUnknownError) as error:
                        raise InputError(f"the label of {image.name} does not fit {classifier.name}: {error}") from error

    def _check_regions(self) -> None:
        if not self.needs_regions:
            return
        if self.source.annotations is None:
            which = next(metric.spec for metric in self.metrics if metric.instance.needs_regions)
            raise InputError(f"{which} compares maps with where the object is: give the regions of objects (--regions), {TAKEN}.")
        for classifier in self.classifiers:
            check_labels(self.source.annotations, classifier)

    @property
    def needs_regions(self) -> bool:
        """Whether any metric needs the object regions."""
        return any(metric.instance.needs_regions for metric in self.metrics)

    def _numbers(self) -> list[int]:
        """Returns the numbers of this shard's batches."""
        place, count = self.shard
        return list(range(place - 1, -(-len(self.source) // self.batch_size), count))

    @property
    def images(self) -> list[NamedImage]:
        """Returns the images of this shard."""
        size = self.batch_size
        return [image for number in self._numbers() for image in self.source.images[number * size : (number + 1) * size]]

    def rule_of(self, classifier: Classifier) -> TargetRule:
        """Returns the rule that chooses a classifier's targets."""
        return target_rule(classifier, self.target, THRESHOLD if self.threshold is None else self.threshold)

    @property
    def _predicts_labels(self) -> list[PredictedLabels]:
        """Returns the rules that explain every predicted label."""
        return [rule for classifier in self.classifiers if isinstance(rule := self.rule_of(classifier), PredictedLabels)]

    def methods_of(self, classifier: Classifier) -> list[MethodComponent]:
        """Returns the methods that a classifier supports."""
        return [method for method in self.methods if self.lacks(classifier, method) is None]

    def pairs(self) -> list[Pair]:
        """Returns every pair of methods of each classifier."""
        return pairs_of({(each.name, each.head_name): [method.spec for method in self.methods_of(each)] for each in self.classifiers})

    def lacks(self, classifier: Classifier, method: MethodComponent) -> str | None:
        """Returns in words what a method needs and a classifier does not have; None if the classifier supports the method."""
        return lacking(classifier, method, self.stage_of(classifier))

    def stage_of(self, classifier: Classifier) -> Stage | None:
        """Returns the stage from which a classifier's features are taken; None if it has no default stage."""
        return self.stages[key_of(classifier)]

    def execution_of(self, classifier: Classifier) -> Execution:
        """Returns the execution settings of a classifier."""
        return self.execution[key_of(classifier)]

    def groups(self) -> list[tuple[Preprocessing, list[Classifier]]]:
        """Groups the classifiers by preprocessing; each group shares its crops."""
        groups: dict[Preprocessing, list[Classifier]] = {}
        for classifier in self.classifiers:
            groups.setdefault(classifier.preprocessing, []).append(classifier)
        return list(groups.items())

    def units(self) -> list[Unit]:
        """Returns the units of work: each batch of this shard for each group of classifiers."""
        return [Unit(group, number) for group in range(len(self.groups())) for number in self._numbers()]

    def names(self, unit: Unit) -> list[str]:
        """Returns the names of the images in a unit."""
        start = unit.number * self.batch_size
        return [image.name for image in self.source.images[start : start + self.batch_size]]

    def count(self, unit: Unit) -> int:
        """Returns the number of images in a unit."""
        return min(self.batch_size, len(self.source) - unit.number * self.batch_size)

    def settings(self) -> dict[str, Any]:
        """Returns all settings that values depend on: a run resumes only if they are equal; methods and metrics may be added."""
        return {
            "models": [
                {
                    "name": classifier.name,
                    "head": classifier.head_name,
                    "weights": classifier.digest(),
                    "stage": stage.name if (stage := self.stage_of(classifier)) else None,
                    "multi_label": classifier.multi_label,
                    "labels": None if classifier.labels is None else _digest("\n".join(classifier.labels)),
                    "preprocessing": asdict(classifier.preprocessing),
                }
                | ({"regression": True} if classifier.regression else {})
                | ({} if classifier.reader.path is None else {"output": classifier.reader.path})
                for classifier in self.classifiers
            ],
            "methods": [method.spec for method in self.methods],
            "metrics": [metric.spec for metric in self.metrics],
            "target": described(self.target),
            "images": {"origin": self.source.origin, "count": len(self.source), "digest": self.source.digest()}
            | self.source.reading.given(),
            "batch_size": self.batch_size,
            "level": self.level,
            "seed": self.seed,
            "save_maps": self.save_maps,
            "device": self.classifiers[0].device.type,
            "xattn": metadata.version("xattn"),
            "torch": torch.__version__,
        } | {
            **({"shard": list(self.shard)} if self.shard[1] > 1 else {}),
            **({"until_decided": asdict(self.until_decided)} if self.until_decided is not None else {}),
            **({"threshold": rules[0].threshold} if (rules := self._predicts_labels) else {}),
            **({"regions": self.source.annotations.digest} if self.needs_regions and self.source.annotations is not None else {}),
        }

    def protocols(self) -> dict[str, dict[str, Any]]:
        """Returns all settings of each method and metric, including defaults, and the perturbations that a metric needs."""
        parts: list[MethodComponent | MetricComponent] = [*self.methods, *self.metrics]
        about: dict[str, dict[str, Any]] = {part.spec: {"settings": _settings(part.instance)} for part in parts}
        for metric in self.metrics:
            if asked := [repr(perturbation) for perturbation in metric.instance.perturbations]:
                about[metric.spec]["perturbations"] = asked
        return about


def key_of(classifier: Classifier) -> str:
    """Returns the key of a classifier in a plan and in `run.json`."""
    return run_key(classifier.name, classifier.head_name)


def planned_stages(classifiers: Sequence[Classifier], stage: str | None) -> dict[str, Stage | None]:
    """Returns the stage from which each classifier's features are taken: the named one, else the default stage if there is one."""
    return {key_of(classifier): classifier.stage_or_default(stage) for classifier in classifiers}


def _settings(component: Any) -> dict[str, str]:
    if not is_dataclass(component) or isinstance(component, type):
        return {}
    if isinstance(component, MapFiles):
        component = replace(component, files={})
    about = {each.name for each in fields(component) if each.repr}  # the location of maps is not a setting
    found = {key: value for key, value in asdict(component).items() if key in about}
    return {key: str(value) for key, value in found.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
