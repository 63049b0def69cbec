"""Finds the rows that a part of a run lacks, and merges computed rows into it: methods and metrics can be added to a run later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from xattn.data.images import MOMENTARY
from xattn.explainers.base import MethodComponent
from xattn.study.pairs import Pairs
from xattn.study.plan import MetricComponent, Plan, Unit
from xattn.study.schema import Row, arrow_table, run_key

OF_LABEL = "label: "
"""The beginning of errors of images whose label does not fit the target."""
_KEYS = ("image", "model", "head", "method", "metric", "target", "error", "pixels")

_Explained = tuple[str, str | None, str | None]  # image, model, head
_Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Missing:
    """Rows that a part lacks.

    Attributes:
        methods: the methods whose rows are missing.
        metrics: the metrics that are missing; the rows with the methods' maps are always missing with them.
    """

    methods: tuple[MethodComponent, ...]
    metrics: tuple[MetricComponent, ...]


class PartContents:
    """Expected contents of the parts of a plan.

    A complete part holds, for each image, classifier and target, one row for every method and metric, and one row with each method's map;
    or one row with the reason why the image failed.

    Args:
        plan: the run's plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._groups = [
            {(clf.name, clf.head_name): [method.spec for method in plan.methods_of(clf)] for clf in classifiers}
            for _, classifiers in plan.groups()
        ]
        self._method_order = {method.spec: place for place, method in enumerate(plan.methods)}
        self._metric_order = {metric.spec: place for place, metric in enumerate(plan.metrics)}

    def missing(self, unit: Unit, part: pa.Table | None) -> list[Missing]:
        """Returns what a part lacks; methods that lack the same metrics are grouped.

        Args:
            unit: the unit of the part.
            part: its rows; None if there is no part. Images that failed for a reason that may have passed count as missing.
        """
        if part is None:
            return [Missing(self.plan.methods, self.plan.metrics)]
        rows = [row for row in part.select(_KEYS).to_pylist() if not _is_momentary(row)]
        failed = {_explained(row) for row in rows if row["error"] is not None}
        held: dict[_Explained, dict[str, set[tuple[str, str | None]]]] = {}
        for row in rows:
            if row["method"] is not None:
                held.setdefault(_explained(row), {}).setdefault(row["target"], set()).add((row["method"], row["metric"]))
        wanted = {None, *self._metric_order}  # None: the row with the map
        lacking: dict[str, set[str | None]] = {}
        for (model, head), methods in self._groups[unit.group].items():
            for image in self.plan.names(unit):
                if {(image, None, None), (image, model, head)} & failed:
                    continue
                if isinstance(self.plan.target, Pairs) and not self.plan.target.others[run_key(model, head)].get(image):
                    continue
                for found in held.get((image, model, head), {"": set()}).values():
                    for method in methods:
                        if left := {metric for metric in wanted if (method, metric) not in found}:
                            lacking.setdefault(method, set()).update(left)
        together: dict[tuple[MetricComponent, ...], list[MethodComponent]] = {}
        for component in self.plan.methods:
            if component.spec in lacking:
                metrics = tuple(metric for metric in self.plan.metrics if metric.spec in lacking[component.spec])
                together.setdefault(metrics, []).append(component)
        return [Missing(tuple(methods), metrics) for metrics, methods in together.items()]

    def merged(self, unit: Unit, before: pa.Table | None, computed: pa.Table) -> pa.Table:
        """Merges missing rows into a part, in the order of a run that had them from the start; existing rows stay unchanged.

        Args:
            unit: the unit of the part.
            before: the part's rows; None if there was none.
            computed: the newly computed rows.
        """
        if before is None:
            return computed
        old = before.select(_KEYS).to_pylist()
        stays = [not _is_momentary(row) for row in old]
        kept = [row for row, stay in zip(old, stays, strict=True) if stay]
        failed = {_explained(row) for row in kept if row["error"] is not None}
        targets: dict[_Explained, set[str]] = {}
        for row in kept:
            if row["method"] is not None:
                targets.setdefault(_explained(row), set()).add(row["target"])
        known = {_identity(row) for row in kept}
        other: dict[_Explained, str] = {}
        chosen = []
        for row in computed.select(_KEYS).to_pylist():
            explained, is_score = _explained(row), row["error"] is None and row["model"] is not None
            has_other_target = is_score and explained in targets and row["target"] not in targets[explained]
            if has_other_target and explained not in failed:
                other[explained] = row["target"]
            is_new = _identity(row) not in known and not has_other_target and not (is_score and explained in failed)
            chosen.append(is_new)
            if is_new:
                known.add(_identity(row))
        errors = [Row(*explained, seed=self.plan.seed, error=_changed(target, targets[explained])) for explained, target in other.items()]
        table = pa.concat_tables([before.filter(pa.array(stays)), computed.filter(pa.array(chosen, pa.bool_())), arrow_table(errors)])
        return table.take(pa.array(self._order(unit, table), pa.int64()))

    def _order(self, unit: Unit, table: pa.Table) -> list[int]:
        """Returns the positions of rows in the order in which a process writes a complete part."""
        images = {name: place for place, name in enumerate(self.plan.names(unit))}
        classifiers = {key: place for place, key in enumerate(self._groups[unit.group])}
        targets: dict[tuple[_Explained, str | None], int] = {}
        most = len(table)

        def place(row: _Keys) -> tuple[int, ...]:
            image = images.get(row["image"], most)
            if row["model"] is None:
                return (0 if row["error"] is not None else 1, image)
            classifier = classifiers.get((row["model"], row["head"]), most)
            if row["error"] is not None and row["error"].startswith(OF_LABEL):
                return (2, classifier, image)
            target = targets.setdefault((_explained(row), row["target"]), len(targets))
            method = self._method_order.get(row["method"], most)
            if row["is map"]:
                return (3, classifier, 1, method, image, target)
            return (3, classifier, 0, image, target, method, self._metric_order.get(row["metric"], most))

        rows = table.select(_KEYS).append_column("is map", pc.is_valid(table["map"])).to_pylist()
        places = [place(row) for row in rows]
        return sorted(range(len(rows)), key=places.__getitem__)


def _explained(row: _Keys) -> _Explained:
    return row["image"], row["model"], row["head"]


def _identity(row: _Keys) -> tuple[Any, ...]:
    return (*(row[key] for key in _KEYS[:6]), row["error"] is not None, row["pixels"])


def _is_momentary(row: _Keys) -> bool:
    return row["error"] is not None and row["error"].startswith(MOMENTARY)


def _changed(now: str, before: set[str]) -> str:
    return (
        f"explained for target {now} now, and for {', '.join(sorted(before))} in the rows that are there: the network answers differently "
        "than it did"
    )
