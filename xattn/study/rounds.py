"""Runs the units of a plan: all at once, or in rounds until a metric has decided."""

from __future__ import annotations

import logging

from xattn.errors import RunError
from xattn.progress import Progress
from xattn.study.engines.base import Running
from xattn.study.missing import PartContents
from xattn.study.plan import Plan, Unit
from xattn.study.sequential import Evidence, ends_of_rounds
from xattn.study.store import Store
from xattn.text import counted

logger = logging.getLogger("xattn")


def work(plan: Plan, store: Store, running: Running, *, progress: bool) -> int:
    """Computes everything in a plan that the store lacks.

    A plan with `until_decided` is computed in rounds of pictures; each round extends the total by about a quarter. After each round, the
    stored parts decide whether another one follows, so an interrupted run gives the same rows and the same end as an uninterrupted one.

    Args:
        plan: the plan with its execution settings.
        store: the run folder, already created.
        running: the engine.
        progress: whether to show progress.

    Returns:
        The number of images whose rows are in the store.

    Raises:
        RunError: parts were deleted during the run.
    """
    contents, units, size = PartContents(plan), plan.units(), plan.batch_size
    left = {unit for unit in units if contents.missing(unit, store.part(unit.name))}
    evidence = None if plan.until_decided is None else Evidence(plan.until_decided, plan.pairs())
    ends = [len(plan.source)] if evidence is None else ends_of_rounds(len(plan.source), size)
    done: list[Unit] = []
    with Progress(sum(plan.count(unit) for unit in units), progress) as bar:
        bar.skip(sum(plan.count(unit) for unit in units) - sum(plan.count(unit) for unit in left))
        for start, end in zip([0, *ends], ends, strict=False):
            now = [unit for unit in units if start <= unit.number * size < end]
            if lacking := [unit for unit in now if unit in left]:
                running.work(plan, store, lacking, bar.add)
            _refuse_gone(store, now, len(units))
            done += now
            if evidence is None:
                continue
            evidence.take([image.name for image in plan.source.images[start:end]], [store.part(unit.name) for unit in now])
            undecided = evidence.undecided()
            logger.info(
                "%s: %s has decided %d of %d pairs",
                counted(end, "picture"),
                evidence.until.metric,
                len(evidence.pairs) - undecided,
                len(evidence.pairs),
            )
            if not undecided and not ({unit.name for unit in units} - {unit.name for unit in done}) & store.done():
                break
    if evidence is not None:
        store.note(sequence=evidence.as_json(len(plan.source)))
    return sum(plan.count(unit) for unit in done if unit.group == 0)


def _refuse_gone(store: Store, units: list[Unit], count: int) -> None:
    if gone := {unit.name for unit in units} - store.done():
        raise RunError(
            f"of {counted(count, 'part')} of '{store.folder}', {counted(len(gone), 'is', 'are')} gone: were files deleted while it ran? "
            "What is left is kept: run the same command to continue."
        )
