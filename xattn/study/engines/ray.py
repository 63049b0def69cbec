"""The Ray engine: computes a plan on a Ray cluster with Ray Data; actors hold the classifiers, decode, compute and write parts themselves.

An actor receives batch numbers and returns the number of images in each batch: rows and pictures never pass through the driver. If an
actor dies, it is restarted, and those of its batches whose parts are missing are handed out again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import ray
import torch
from ray import cloudpickle
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from xattn.counter import EventCounter
from xattn.errors import InputError, RunError, UnsupportedError
from xattn.inference.memory import kept_pages
from xattn.models.classifier import Classifier
from xattn.study.engines.base import Engine, Running
from xattn.study.executor import Executor
from xattn.study.plan import Plan, Unit
from xattn.study.store import Store

ORDER = 16  # most batches that an actor is given at once; they are decoded ahead
ORDERS_LEFT = 4  # an order is at most this fraction of the remaining work per actor, so the last orders are single batches
ANSWERS_S = 10.0  # seconds within which a running cluster accepts a connection
DEATHS = 5  # number of times an actor may die on the same batches before the run stops


@dataclass(frozen=True)
class _Share:
    """Resources of the cluster for each actor.

    Attributes:
        actors: number of actors.
        cpus: CPUs per actor; also its number of torch threads.
        gpus: GPUs per actor.
    """

    actors: int
    cpus: int
    gpus: int


def on_cluster(actors: int | None) -> Engine:
    """Returns an engine on the cluster this process is connected to, or that `RAY_ADDRESS` or `ray start` names; else on a new local one.

    Args:
        actors: number of actors; None: as many as fit on the cluster.
    """

    @contextlib.contextmanager
    def ready(plan: Plan) -> Iterator[Running]:
        with contextlib.redirect_stdout(sys.stderr), _connected():  # Ray prints messages about dead nodes; stdout is reserved for data
            share = _share(actors, plan.classifiers[0].device.type)
            about = {"engine": "ray", "ray": ray.__version__, "actors": share.actors, "threads": share.cpus}
            yield Running(about, partial(_work, share))

    return ready


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    _refuse_a_cluster_that_is_gone()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ part writes to stderr regardless of the Python loggers' levels
    ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_a_cluster_that_is_gone() -> None:
    """Raises if the named cluster ended without `ray stop`: its address file still exists, and Ray would wait silently for minutes.

    Raises:
        RunError: nothing answers at the address.
    """
    place = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    named = os.environ.get("RAY_ADDRESS", "auto")
    address, source = (named, "RAY_ADDRESS") if named != "auto" else (place.read_text().strip() if place.exists() else "", f"'{place}'")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:  # no cluster is named, or the address is in a form that Ray resolves itself
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWERS_S).close()
    except OSError as error:
        raise RunError(
            f"no Ray cluster answers at {address} ({error}), although {source} names one. Start it, or clear the address: "
            "`ray stop`, or unset RAY_ADDRESS."
        ) from error


def _share(actors: int | None, device: str) -> _Share:
    """Gives each actor as many CPUs as possible while all actors fit."""
    if device not in ("cpu", "cuda"):
        raise InputError(f"Ray schedules CPUs and CUDA GPUs; the classifiers are on {device}: load them with device='cpu'.")
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    if device == "cuda":
        if not sum(gpus):
            raise InputError("the classifiers are on a GPU, but no machine of the Ray cluster has one: load them with device='cpu'.")
        wanted = actors or sum(gpus)
        fits = (c for c in range(max(cores), 0, -1) if sum(min(g, n // c) for g, n in zip(gpus, cores, strict=True)) >= wanted)
    else:
        wanted = actors or max(1, sum(cores))
        fits = (c for c in range(max(cores), 0, -1) if sum(n // c for n in cores) >= wanted)
    return _Share(wanted, next(fits, 1), int(device == "cuda"))


def _work(share: _Share, plan: Plan, store: Store, units: Sequence[Unit], report: Callable[[int], object]) -> None:
    orders = _orders(units, share.actors)
    with _on_the_cpu(plan.classifiers), _quiet():
        # Ray Data restarts dead actors and resubmits their orders without limit; this count ends it.
        begun = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(EventCounter).remote()
        arguments = (ray.put(_packed(plan, store)), begun, share, os.getcwd())
        # Orders are in the object store from the start: no reader needs a CPU after actors have claimed all of them.
        data = ray.data.from_items(orders, override_num_blocks=len(orders)).map_batches(
            _Actor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=arguments,
            compute=ActorPoolStrategy(size=min(share.actors, len(orders)), max_tasks_in_flight_per_actor=2),
            num_cpus=share.cpus,
            num_gpus=share.gpus,
        )
        try:
            for block in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in block.to_pylist():
                    if row["error"] is not None:
                        raise pickle.loads(row["error"])
                    report(row["images"])
        except RayError as error:
            raise RunError(
                f"the cluster failed ({type(error).__name__}: {str(error).strip().splitlines()[0]}). What was finished is kept: see Ray's "
                "logs for why its processes died (out of memory, for example), and run the same command to continue."
            ) from error
    store.files.tidy()


def _orders(units: Sequence[Unit], actors: int) -> list[dict[str, Any]]:
    """Splits the units into orders of one group each; orders shrink towards the end, so that the actors finish at about the same time."""
    found, left = [], len(units)
    for group, together in groupby(units, key=attrgetter("group")):
        numbers = [unit.number for unit in together]
        while numbers:
            size = max(1, min(ORDER, left // (actors * ORDERS_LEFT)))
            found.append({"group": group, "numbers": numbers[:size]})
            left -= len(numbers[:size])
            numbers = numbers[size:]
    return found


class _Actor:
    """Computes orders of batches. Errors are not raised here: they are sent to the driver, which raises them unchanged."""

    def __init__(self, packed: Any, begun: Any, share: _Share, folder: str) -> None:
        self.packed = packed
        self.begun = begun
        self.share = share
        self.folder = folder
        self.executor: Executor | None = None
        self.pages = contextlib.ExitStack()

    def __call__(self, orders: pa.Table) -> Iterator[pa.Table]:
        try:
            if self.executor is None:
                self.executor = Executor(*self._unpacked())
                self.pages.enter_context(
                    kept_pages()
                )  # for the life of the process: pages that are returned after each order would be faulted in again
            images = sum(self._do(self.executor, order["group"], order["numbers"]) for order in orders.to_pylist())
            yield _answer(images, None)
        except Exception as error:
            yield _answer(0, _sendable(error))

    def _unpacked(self) -> tuple[Plan, Store]:
        torch.set_num_threads(self.share.cpus)
        with contextlib.suppress(OSError):
            os.chdir(self.folder)  # relative paths start here
        plan, folder = pickle.loads(ray.get(self.packed))
        store = Store(folder)
        for classifier in plan.classifiers:
            classifier.to("cuda" if self.share.gpus else "cpu")
        seen = (
            f"from {socket.gethostname()}: several machines need a folder that all of them mount under one path, or a URL as "
            f"s3://bucket/run."
        )
        if not store.files.exists("run.json"):
            raise RunError(f"the run folder '{store.folder}' is not visible {seen}")
        first = plan.source.images[0].path
        if isinstance(first, Path) and not first.parent.exists():
            raise InputError(f"the images' folder '{first.parent}' is not visible {seen}")
        return plan, store

    def _do(self, executor: Executor, group: int, numbers: Sequence[int]) -> int:
        """Computes the batches of an order whose parts are incomplete, decoding ahead, and returns the number of images in all of them."""
        plan, store = executor.plan, executor.store
        preprocessing, _ = plan.groups()[group]
        units = [Unit(group, number) for number in numbers]
        wanted = [unit for unit in units if executor.contents.missing(unit, store.part(unit.name))]
        batches = plan.source.by_number(preprocessing, plan.batch_size)
        with ThreadPoolExecutor(max(1, plan.workers)) as pool:
            for unit, batch in zip(wanted, pool.map(lambda unit: batches[unit.number], wanted), strict=True):
                if ray.get(self.begun.count.remote(unit.name)) > DEATHS:
                    first = plan.source.images[unit.number * plan.batch_size].name
                    raise RunError(
                        f"batch {unit.number}, which begins with {first}, killed {DEATHS} processes: out of memory? "
                        "What was finished is kept: give --memory, or fewer --actors, so that each has more memory."
                    )
                store.write_part(unit.name, executor.part(unit, batch))
        return sum(plan.count(unit) for unit in units)


def _answer(images: int, error: bytes | None) -> pa.Table:
    return pa.table({"images": pa.array([images], pa.int64()), "error": pa.array([error], pa.binary())})


def _sendable(error: Exception) -> bytes:
    """Serializes an error with its traceback as a note; an error that cannot be pickled becomes a RuntimeError with its text."""
    error.add_note(f"in an actor on {socket.gethostname()}:\n{traceback.format_exc()}")
    try:
        sent: bytes = cloudpickle.dumps(error)
        pickle.loads(sent)
    except Exception:
        sent = cloudpickle.dumps(RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    return sent


def _packed(plan: Plan, store: Store) -> bytes:
    """Serializes the plan with its classifiers and with user code that is not installed and may be missing on the actors' machines.

    Raises:
        UnsupportedError: a part of it cannot be sent to another process.
    """
    own = [module for name, module in list(sys.modules.items()) if _is_own(name, module)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        packed: bytes = cloudpickle.dumps((plan, store.folder))
    except Exception as error:  # pickling fails in many ways
        names = ", ".join(classifier.name for classifier in plan.classifiers)
        raise UnsupportedError(
            f"engine 'ray' could not send the plan to other processes ({type(error).__name__}: {str(error).splitlines()[0]}). "
            f"Look for locks, open files or generators in {names} or the data set, or use engine 'local' with --shard on each machine."
        ) from error
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)
    return packed


def _is_own(name: str, module: ModuleType) -> bool:
    """Checks whether a module is a user's file, not part of an installed package."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or getattr(module, "__name__", None) != name or name.partition(".")[0] in ("xattn", "__mp_main__"):
        return False
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return not installed and not Path(file).is_relative_to(sysconfig.get_path("stdlib"))


@contextlib.contextmanager
def _on_the_cpu(classifiers: Sequence[Classifier]) -> Iterator[None]:
    """Keeps the classifiers on the CPU while the actors compute: any machine can load them, and the GPU is free for the actors."""
    devices = [classifier.device for classifier in classifiers]
    try:
        for classifier in classifiers:
            classifier.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for an actor on this machine
        yield
    finally:
        for classifier, device in zip(classifiers, devices, strict=True):
            classifier.to(device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides Ray Data's progress bars and plans; they remain in its log files."""
    context = DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    logger = logging.getLogger("ray.data")
    levels = {handler: handler.level for handler in logger.handlers if isinstance(handler, logging.StreamHandler)}
    context.enable_progress_bars = context.print_on_execution_start = False
    for handler in levels:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before
        for handler, level in levels.items():
            handler.setLevel(level)
