"""Adds methods and metrics to an existing run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from xattn.errors import RunError, XattnError
from xattn.explainers.base import MethodComponent
from xattn.metrics.base import metrics as metric_registry
from xattn.study.map_files import method_of_run
from xattn.study.plan import MetricComponent, Plan
from xattn.study.store import Store


def extended_plan(make: partial[Plan], store: Store, methods: Sequence[MethodComponent], metrics: Sequence[MetricComponent]) -> Plan | None:
    """Returns the plan of an existing run with methods and metrics added; None if the folder holds no run, or a run with other settings.

    Args:
        make: makes the plan for given methods and metrics.
        store: the run folder.
        methods: methods to add if the run lacks them.
        metrics: metrics to add if the run lacks them.

    Raises:
        RunError: the run has a method or metric that is unknown here.
    """
    if not store.begun:
        return None
    run = store.read_run()
    kept = run["settings"]
    try:
        names = [image.name for image in make.keywords["source"].images]
        all_methods = [*(method_of_run(spec, methods, run, names) for spec in kept["methods"]), *methods]
        all_metrics = [*metric_registry.create_all(kept["metrics"], allow_none=True), *metrics]
    except XattnError as error:
        raise RunError(f"'{store.folder}' holds a run with a method or metric that is not known here: {error}") from error
    try:
        plan = make(
            methods=tuple({method.spec: method for method in all_methods}.values()),
            metrics=tuple({metric.spec: metric for metric in all_metrics}.values()),
        )
    except XattnError:  # the run is of other classifiers, or the additions do not fit these
        return None
    return None if store.differences(plan.settings(), plan.protocols()) else plan
