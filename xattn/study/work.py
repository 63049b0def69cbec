"""The work of a study in one process: from decoded batches to the rows of their parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from xattn.classifiers.classifier import Classifier
from xattn.classifiers.forwards import Predictor
from xattn.classifiers.preprocessing import pixels
from xattn.classifiers.together import families
from xattn.errors import InputError, NameUnknownError
from xattn.explainers.maps import Maps, resolve_targets
from xattn.images import Batch
from xattn.memory import is_out_of_memory
from xattn.study.families import Member, explained, joint_of, scored
from xattn.study.scoring import COLUMNS, Scores, key_of, rows_of
from xattn.study.store import MAP_COLUMNS, map_columns

if TYPE_CHECKING:
    from xattn.study.study import Study

Row = tuple[object, ...]


class Work:
    """What a process builds to do batches of a study, and does with it: predictors, and what runs several heads at once.

    Args:
        study: whose forwards are settled; each process that works for it makes its own.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        groups = [classifiers for _, classifiers in study.groups()]
        self._keys = [[key_of(classifier) for classifier in group] for group in groups]
        self._families = [families(group) for group in groups]
        self._predictors: dict[str, Predictor] = {}
        self._joints: dict[tuple[str, ...], Callable[[Tensor], list[Tensor]] | None] = {}
        self._at_once: dict[str, int] = {}  # where memory ran out

    def rows(self, group: int, batch: Batch) -> list[Row]:
        """The rows of a batch's part, a pure function of the batch.

        Args:
            group: which of `Study.groups`, whose crops these are.
            batch: decoded.
        """
        blank = (None,) * MAP_COLUMNS
        rows: list[Row] = [(image.name, *(None,) * (len(COLUMNS) - 3), self.study.seed, reason, *blank) for image, reason in batch.failed]
        found: dict[str, list[Row]] = {}
        for family in self._families[group]:
            members: dict[tuple[int, ...], list[Member]] = {}  # by the images that they take: nearly always all
            for classifier in family:
                labels, keep = [], []
                for number, image in enumerate(batch.images):
                    try:
                        labels.append(None if image.label is None else classifier.class_index(image.label))
                    except (InputError, NameUnknownError) as error:  # a dataset tells its labels late
                        here = (image.name, classifier.name, classifier.head_name)
                        rows.append((*here, *(None,) * (len(COLUMNS) - 5), self.study.seed, f"label: {error}", *blank))
                    else:
                        keep.append(number)
                members.setdefault(tuple(keep), []).append(self._member(classifier, labels))
            for kept, some in members.items():
                if kept:
                    crops, names = batch.crops[list(kept)], [batch.images[number].name for number in kept]
                    found |= self._scored(some, pixels(crops, some[0].classifier.device), names)
        return rows + [row for key in self._keys[group] for row in found.get(key, [])]

    def _member(self, classifier: Classifier, labels: Sequence[int | None]) -> Member:
        known = [label for label in labels if label is not None]
        targets, rule = resolve_targets(classifier, self.study.target, known if self.study.target == "label" else None, len(labels))
        methods, stage = self.study.methods_of(classifier), self.study.stage_of(classifier)
        return Member(classifier, methods, targets, rule, labels, stage, self.predictor(classifier))

    def _scored(self, family: Sequence[Member], images: Tensor, names: Sequence[str]) -> dict[str, list[Row]]:
        """The rows of each head of one backbone."""
        rows: list[tuple[list[Row], list[Row]]] = [([], []) for _ in family]
        joint = self._joint(family)
        step, start = min(self.at_once(each.classifier) for each in family), 0
        step = step if self.study.memory is None else max(1, step // len(family))  # the traces of all are held at once
        while start < len(names):
            some = slice(start, start + step)
            part = [each.some(some) for each in family]
            try:
                maps = explained(part, images[some], names[some], self.study.seed, joint)
                scores = scored(part, maps, self.study.metrics, joint)
            except RuntimeError as error:
                if not is_out_of_memory(error) or step == 1:
                    raise
                step = max(1, step // 2)
                warnings.warn(f"memory ran out: {family[0].classifier.name} goes on with {step} images at once.", stacklevel=2)
                self._at_once |= {key_of(each.classifier): step for each in family}
                continue
            for each, found, values, (first, second) in zip(part, maps, scores, rows, strict=True):
                if self.study.save_maps:
                    self._write_masks(each.classifier, found)
                first += [(*row, *(None,) * MAP_COLUMNS) for row in rows_of(each.classifier, found, values, each.labels, self.study.seed)]
                second += self._map_rows(each.classifier, found, values, each.labels)
            start += len(names[some])
        return {key_of(each.classifier): first + second for each, (first, second) in zip(family, rows, strict=True)}

    def _joint(self, family: Sequence[Member]) -> Callable[[Tensor], list[Tensor]] | None:
        """What runs all heads of a family at once."""
        if len(family) == 1:
            return None
        key = tuple(key_of(each.classifier) for each in family)
        if key not in self._joints:
            self._joints[key] = joint_of([each.classifier for each in family], family[0].predictor.tuning, self.study.level)
        return self._joints[key]

    def predictor(self, classifier: Classifier) -> Predictor:
        """What runs a classifier's forwards of changed images here."""
        key = key_of(classifier)
        if key not in self._predictors:
            self._predictors[key] = Predictor(classifier, self.study.forwards[key].tuned.tuning, self.study.level)
        return self._predictors[key]

    def at_once(self, classifier: Classifier) -> int:
        """Images of a batch that are explained and scored together."""
        key = key_of(classifier)
        return self._at_once.get(key, self.study.forwards[key].at_once)

    def _map_rows(self, classifier: Classifier, maps: Maps, scores: Scores, labels: Sequence[int | None]) -> list[Row]:
        targets, size = maps.targets.tolist(), (maps.images.shape[2], maps.images.shape[3])
        seed, whole = self.study.seed, self.study.save_maps
        found: dict[str | None, Tensor] = {method: raw[:, None].cpu() for method, raw in maps.raw.items()}
        if maps.ranked is not None:
            found[None] = maps.ranked.cpu()
        rows: list[Row] = []
        for method, kept in found.items():
            flags = [False] * len(kept) if method is None else maps.degenerate[method].tolist()
            for i, name in enumerate(maps.names):
                if scores.errors[i] is None:
                    here = (name, classifier.name, classifier.head_name, method, None, None)
                    about = (targets[i], maps.target_rule, labels[i], scores.predicted[i], scores.probability[i], flags[i], seed, None)
                    rows.append((*here, *about, *map_columns(kept[i], size, whole=whole)))
        return rows

    def _write_masks(self, classifier: Classifier, maps: Maps) -> None:
        for method, masks in maps.masks.items():
            levels = (masks * 65535).round().to(torch.int32).cpu()
            for name, level in zip(maps.names, levels, strict=True):
                place = Path("maps") / file_name(classifier.name) / file_name(classifier.head_name) / file_name(method) / f"{name}.png"
                with self.study.store.whole(place) as path:
                    _picture(level).save(path, format="PNG")


def file_name(text: str) -> str:
    """Text as part of a file name."""
    return "".join(character if character.isalnum() or character in "-_.+=" else "_" for character in text).strip(".") or "_"


def _picture(level: Tensor) -> Image.Image:
    return Image.fromarray(level.numpy().astype("uint16"))
