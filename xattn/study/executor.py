"""Computes the work of a plan in one process: decoded batches → the rows of their parts."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from xattn.data.batches import Batch
from xattn.data.listing import NamedImage
from xattn.data.preprocessing import Frame, pixels
from xattn.errors import InputError, NameUnknownError
from xattn.explainers.base import MethodComponent
from xattn.explainers.maps import Maps, maps_of_trace, needs_of
from xattn.explainers.reasons import log_doubts, log_reasons
from xattn.explainers.trace import Trace
from xattn.inference.context import BatchContext, shared_predictor
from xattn.inference.memory import is_out_of_memory
from xattn.inference.predictor import Predictor
from xattn.inference.shared_backbone import backbone_groups
from xattn.metrics.stream import Forwards
from xattn.metrics.target_base import PER_LABEL
from xattn.models.classifier import Classifier
from xattn.models.target_rules import OfOutput, TargetRule, labels_of
from xattn.study.known_parts import PartsOfBatch, parts_of, scene_in
from xattn.study.missing import OF_LABEL, Missing, PartContents
from xattn.study.pairs import Pairs
from xattn.study.plan import MetricComponent, Plan, Unit, key_of
from xattn.study.regions import Regions, class_of_label, regions_of
from xattn.study.schema import Row, arrow_table
from xattn.study.scoring import curve_owners, map_rows_of, rows_of, score_group
from xattn.study.store import Store
from xattn.text import counted

LONGEST_NAME, LONGEST_PATH, LONGEST_START = 255, 1000, 160  # bytes

logger = logging.getLogger("xattn")


@dataclass(frozen=True)
class Side:
    """One head's share of the work on a batch.

    Attributes:
        classifier: backbone and head.
        methods: its methods that are computed.
        rule: how its targets are chosen.
        explained: class index per image that the rule uses as its label, or None.
        labels: labels of the images in the rows.
        predictor: predictor for perturbed images.
    """

    classifier: Classifier
    methods: Sequence[MethodComponent]
    rule: TargetRule
    explained: Sequence[int | None]
    labels: Sequence[float | None]
    predictor: Predictor

    def part(self, part: slice) -> Side:
        """Returns the same for a slice of the images."""
        return replace(self, explained=self.explained[part], labels=self.labels[part])


class Executor:
    """State of a process that works on batches of a plan: predictors, and joint forwards of several heads.

    Args:
        plan: the plan with its execution settings; each process that works on it creates its own executor.
        store: where masks are written, if the plan saves them.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store
        self.contents = PartContents(plan)
        self._with_curve = set(curve_owners(plan.metrics).values())
        groups = [classifiers for _, classifiers in plan.groups()]
        self._keys = [[key_of(classifier) for classifier in group] for group in groups]
        self._backbones = [backbone_groups(group) for group in groups]
        self._predictors: dict[str, Predictor] = {}
        self._shared: dict[tuple[str, ...], Forwards | None] = {}
        self._logged: set[tuple[str, str]] = set()
        self._scalings: set[str] = set()
        self._classes: dict[str, dict[str, int]] = {}  # class indices of the regions' labels
        self._images: dict[str, NamedImage] = {}  # by name, where a metric asks for their parts
        self._at_once: dict[str, int] = {}  # reduced where memory ran out

    def part(self, unit: Unit, batch: Batch) -> pa.Table:
        """Computes the part of a batch: the rows that the store has, and those it lacks.

        Args:
            unit: group and number of the batch.
            batch: the decoded batch.
        """
        before = self.store.part(unit.name)
        rows = [row for lacking in self.contents.missing(unit, before) for row in self.rows(unit.group, batch, lacking)]
        return self.contents.merged(unit, before, arrow_table(rows))

    def rows(self, group: int, batch: Batch, wanted: Missing | None = None) -> list[Row]:
        """Computes the rows of a batch's part; a pure function of the plan and the batch.

        Args:
            group: index into `Plan.groups`; the crops are that group's.
            batch: the decoded batch.
            wanted: methods and metrics to compute; None: all of the plan.
        """
        wanted = wanted or Missing(self.plan.methods, self.plan.metrics)
        rows = [Row(image.name, seed=self.plan.seed, error=reason) for image, reason in batch.failed]
        for image, scaling in zip(batch.images, batch.scalings, strict=True):
            if scaling is not None:
                rows.append(Row(image.name, seed=self.plan.seed, pixels=str(scaling)))
                if str(scaling) not in self._scalings:
                    self._scalings.add(str(scaling))
                    scaling.log(image.name)
        found: dict[str, list[Row]] = {}
        for backbone in self._backbones[group]:
            sides: dict[tuple[int, ...], list[Side]] = {}  # by the images that they explain: nearly always a single entry
            for classifier in backbone:
                methods = [method for method in self.plan.methods_of(classifier) if method in wanted.methods]
                if not methods:
                    continue
                numbers: list[int] = []
                entries: list[_Entry] = []
                rule = self.plan.rule_of(classifier)
                outputs = self._outputs(classifier, batch) if isinstance(rule, OfOutput) and batch.images else None
                for number, image in enumerate(batch.images):
                    try:
                        found_here = _entries(classifier, rule, image, None if outputs is None else outputs[number])
                    except (InputError, NameUnknownError) as error:  # labels of a data set become known only here
                        about = Row(image.name, classifier.name, classifier.head_name, seed=self.plan.seed)
                        rows.append(replace(about, error=f"{OF_LABEL}{error}"))
                        continue
                    numbers += [number] * len(found_here)
                    entries += found_here
                explained, labels = [entry.explained for entry in entries], [entry.label for entry in entries]
                side = Side(classifier, methods, rule, explained, labels, self.predictor(classifier))
                sides.setdefault(tuple(numbers), []).append(side)
            for numbers_of_all, some in sides.items():
                if numbers_of_all:
                    crops, names = batch.crops[list(numbers_of_all)], [batch.images[number].name for number in numbers_of_all]
                    frames = [batch.frames[number] for number in numbers_of_all]
                    found |= self._explained_and_scored(some, pixels(crops, some[0].classifier.device), names, wanted.metrics, frames)
        return rows + [row for key in self._keys[group] for row in found.get(key, [])]

    def _outputs(self, classifier: Classifier, batch: Batch) -> Tensor:
        """Returns the output for the images of a batch, for a rule that chooses targets from it."""
        return self.predictor(classifier)(pixels(batch.crops, classifier.device))

    def _explained_and_scored(
        self,
        sides: Sequence[Side],
        images: Tensor,
        names: Sequence[str],
        metrics: Sequence[MetricComponent],
        frames: Sequence[Frame],
    ) -> dict[str, list[Row]]:
        """Computes the rows of each head on one backbone."""
        rows: list[tuple[list[Row], list[Row]]] = [([], []) for _ in sides]
        together = self._together(sides)
        step, start = min(self.at_once(side.classifier) for side in sides), 0
        step = step if self.plan.memory is None else max(1, step // len(sides))  # the traces of all heads are in memory at once
        while start < len(names):
            some = slice(start, start + step)
            part = [side.part(some) for side in sides]
            try:
                maps = self._explained(part, images[some], names[some], frames[some], together)
                where = [self._regions(side.classifier, found, metrics, frames[some]) for side, found in zip(part, maps, strict=True)]
                known = [self._parts(side, found, metrics) for side, found in zip(part, maps, strict=True)]
                predictors = [side.predictor for side in part]
                scores = score_group([side.classifier for side in part], maps, metrics, predictors, together, where, known)
            except RuntimeError as error:
                if not is_out_of_memory(error) or step == 1:
                    raise
                step = max(1, step // 2)
                logger.warning("memory ran out: %s continues with %s at once.", sides[0].classifier.name, counted(step, "image"))
                self._at_once |= {key_of(side.classifier): step for side in sides}
                continue
            for side, found in zip(part, maps, strict=True):
                log_reasons(found.reasons, found.names, self._logged)
                log_doubts(found.raw, found.errors, found.names, key_of(side.classifier), self._logged)
            for side, found, values, (first, second) in zip(part, maps, scores, rows, strict=True):
                if self.plan.save_maps:
                    self._write_masks(side.classifier, found)
                first += map(self._with_own_curve, rows_of(side.classifier, found, values, side.labels))
                second += map_rows_of(side.classifier, found, values, side.labels, whole=self.plan.save_maps)
            start += len(names[some])
        return {key_of(side.classifier): first + second for side, (first, second) in zip(sides, rows, strict=True)}

    def _regions(self, classifier: Classifier, maps: Maps, metrics: Sequence[MetricComponent], frames: Sequence[Frame]) -> Regions | None:
        """Returns the object regions of the targets; None if no metric needs them."""
        annotations = self.plan.source.annotations
        if annotations is None or not any(metric.instance.needs_regions for metric in metrics):
            return None
        key = key_of(classifier)
        if key not in self._classes:
            self._classes[key] = class_of_label(annotations, classifier)
        return regions_of(annotations, self._classes[key], maps, frames)

    def _parts(self, side: Side, maps: Maps, metrics: Sequence[MetricComponent]) -> PartsOfBatch | None:
        """Returns the effects of the pictures' parts on the network's output; None if no metric needs them."""
        if not any(metric.instance.needs_parts for metric in metrics):
            return None
        if not self._images:
            self._images = {image.name: image for image in self.plan.source.images}
        scenes = [scene_in(self.plan.source, self._images[name]) for name in maps.names]
        return parts_of(scenes, side.classifier, side.predictor, maps)

    def _with_own_curve(self, row: Row) -> Row:
        """Returns a row without its curve if an earlier metric of the plan stores that curve."""
        return row if row.curve is None or row.metric in self._with_curve else replace(row, shares=None, curve=None)

    def _explained(
        self, sides: Sequence[Side], images: Tensor, names: Sequence[str], frames: Sequence[Frame], together: Forwards | None
    ) -> list[Maps]:
        """Computes the maps of each head; responses that do not depend on the head's own maps are computed once and shared."""
        traces = [
            Trace(
                side.classifier,
                images,
                side.rule,
                side.explained,
                stage=self.plan.stage_of(side.classifier),
                needs=needs_of(side.methods),
                predictor=side.predictor,
                seed=self.plan.seed,
                names=names,
                frames=frames,
            )
            for side in sides
        ]
        first = traces[0]
        if together is not None and all(
            trace.features.shape == first.features.shape and torch.equal(trace.features, first.features) for trace in traces
        ):
            context = BatchContext(together, [trace.target for trace in traces])
            for member, trace in enumerate(traces):
                trace.share(context, member)
        return [maps_of_trace(trace, side.methods, names, images) for trace, side in zip(traces, sides, strict=True)]

    def _together(self, sides: Sequence[Side]) -> Forwards | None:
        """Returns what runs all heads of one backbone at once."""
        if len(sides) == 1:
            return None
        key = tuple(key_of(side.classifier) for side in sides)
        if key not in self._shared:
            self._shared[key] = shared_predictor([side.classifier for side in sides], sides[0].predictor.tuning, self.plan.level)
        return self._shared[key]

    def predictor(self, classifier: Classifier) -> Predictor:
        """Returns this process's predictor of a classifier, for perturbed images."""
        key = key_of(classifier)
        if key not in self._predictors:
            self._predictors[key] = Predictor(classifier, self.plan.execution_of(classifier).tuned.tuning, self.plan.level)
        return self._predictors[key]

    def at_once(self, classifier: Classifier) -> int:
        """Returns the number of images of a batch that are explained and scored together."""
        return self._at_once.get(key_of(classifier), self.plan.execution_of(classifier).at_once)

    def _write_masks(self, classifier: Classifier, maps: Maps) -> None:
        for method, masks in maps.masks.items():
            levels = (masks * 65535).round().to(torch.int32).cpu()
            folder = Path("maps") / file_name(classifier.name) / file_name(classifier.head_name) / file_name(method)
            for name, target, level in zip(maps.names, maps.target.names(), levels, strict=True):
                several = f"@{file_name(target)}" if maps.target_rule.startswith(PER_LABEL) else ""
                with self.store.whole(map_file(folder, f"{name}{several}")) as path:
                    _picture(level).save(path, format="PNG")


class _Entry(NamedTuple):
    """One explanation of an image: the class index that the rule uses as its label, and its label in the rows."""

    explained: int | None
    label: float | None


def _entries(classifier: Classifier, rule: TargetRule, image: NamedImage, output: Tensor | None) -> list[_Entry]:
    """Lists the explanations of an image: one, or one for each of its labels or of the pictures that it is paired with.

    Args:
        classifier: the explained classifier.
        rule: how its targets are chosen.
        image: decoded, with its label.
        output: output for the image, `(K,)`, if the rule chooses the target from it.

    Raises:
        NameUnknownError: no class has that name.
        InputError: the target needs a label and the image has none, or has several where one is needed; or no label is predicted.
    """
    if isinstance(rule, Pairs):
        return [_Entry(number, None) for number in rule.others_of(key_of(classifier), image.name)]
    known = () if image.label is None else labels_of(classifier, image.label)
    own = known[0] if len(known) == 1 else None
    if isinstance(rule, OfOutput) and output is not None:
        return [_Entry(index, own) for index in rule.predicted(classifier, output)]
    if classifier.regression:
        return [_Entry(None, own)]
    if rule.needs_labels and (not known or (len(known) > 1 and not rule.per_label)):
        several = f"has {len(known)}: give target 'labels'" if known else "has none"
        raise InputError(f"target '{rule.text}' needs a label, and the image {several}")
    return [_Entry(int(index), index) for index in known] if rule.per_label else [_Entry(None if own is None else int(own), own)]


def map_file(folder: Path, name: str) -> Path:
    """Returns the file of a mask; a name that is too long is shortened to its beginning and a digest."""
    path = folder / f"{name}.png"
    if len(os.fsencode(path.name)) <= LONGEST_NAME and len(os.fsencode(path)) <= LONGEST_PATH:
        return path
    start = os.fsencode(path.stem)[:LONGEST_START].decode(errors="ignore")
    parent = path.parent if len(os.fsencode(path)) <= LONGEST_PATH else folder
    return parent / f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.png"


def file_name(text: str) -> str:
    """Makes text safe for use in a file name."""
    return "".join(character if character.isalnum() or character in "-_.+=" else "_" for character in text).strip(".") or "_"


def _picture(level: Tensor) -> Image.Image:
    return Image.fromarray(level.numpy().astype("uint16"))
