"""Engines that do the work of a plan: this process (`local`) or the actors of a Ray cluster (`ray`).

A unit of work is one batch. Its part depends on the plan only and is written atomically. So any engine may compute it, computing it twice
does no harm, and one engine can finish what another one started.
"""

from __future__ import annotations

import importlib.util

from xattn.errors import InputError, MissingPackageError, NameUnknownError
from xattn.study.engines.base import Engine
from xattn.study.engines.local import in_process

ENGINES = ("local", "ray")


def engine(name: str, actors: int | None) -> Engine:
    """Returns the engine with a given name.

    Args:
        name: "local" or "ray".
        actors: Ray processes that hold the classifiers; None: as many as fit on the cluster.

    Raises:
        NameUnknownError: there is no engine of that name.
        MissingPackageError: Ray is not installed.
        InputError: `actors` is given without Ray, or is less than one.
    """
    if name not in ENGINES:
        raise NameUnknownError("engine", name, ENGINES)
    if actors is not None and (name != "ray" or actors < 1):
        raise InputError(f"actors are the processes of engine 'ray', one or more; got {actors} for engine '{name}'.")
    if name == "local":
        return in_process
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError("ray", "ray", "engine 'ray'")
    from xattn.study.engines.ray import on_cluster

    return on_cluster(actors)
