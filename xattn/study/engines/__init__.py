"""What does the work of a plan: this process (`local`), or the actors of a Ray cluster (`ray`).

A unit of work is a batch. Its part is a function of the plan alone and is written whole or not at all, so that any engine may do it,
twice does no harm, and what one engine left another may go on with.
"""

from __future__ import annotations

import importlib.util

from xattn.errors import InputError, MissingPackageError, NameUnknownError
from xattn.study.engines.base import Engine
from xattn.study.engines.local import in_process

ENGINES = ("local", "ray")


def engine(name: str, actors: int | None) -> Engine:
    """The engine of a name.

    Args:
        name: "local" or "ray".
        actors: processes of Ray that hold the classifiers; None: as many as the cluster has room for.

    Raises:
        NameUnknownError: there is none.
        MissingPackageError: Ray is not installed.
        InputError: actors without Ray, or fewer than one.
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
