"""One classifier used by eight threads at a time: cases as in `hostile.py`.

Each thread must get the same result as alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hostile import Case, Wrong
from hostile_networks import fingerprint
from odd_plain import SIDE, plain
from torch import Tensor
from torch.nn import functional

import xattn
from xattn.metrics import average_drop, deletion, insertion
from xattn.metrics.base import metrics as metric_registry
from xattn.study import Study

THREADS, TIMES, TOLERANCE = 8, 3, 1e-5
METHODS = (
    "activation-map",
    "grad-cam",
    "grad-cam++",
    "layer-cam",
    "score-cam",
    "guided-backprop",
    "guided-grad-cam",
    "integrated-gradients:steps=4",
    "smooth-grad:samples=4",
    "occlusion:window=8,stride=8",
    "rise:masks=8",
    "opti-cam:iterations=2",
    "random",
    "edges",
    "captum:Saliency",
    "captum:GuidedBackprop",
    "grad-cam:GradCAM",
    "grad-cam:AblationCAM",
)
HEADS = ("gap", "br-npa:n=2", "b-cnn", "ca-stream", "simpool")

Call = Callable[[int], Any]


def pictures(number: int) -> Tensor:
    """Returns images for one thread."""
    generator = torch.Generator().manual_seed(number)
    return functional.interpolate(torch.rand(2, 3, 5, 5, generator=generator), size=SIDE, mode="bicubic").clamp(0, 1)


def classifier(head: str = "gap") -> xattn.Classifier:
    """Returns a classifier with a head that counts as trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = xattn.attach(plain(), head=head, input_size=SIDE, resize=SIDE, name="plain")
    found.trained = True
    return found


def at_once(call: Call) -> list[Any]:
    """Returns the result of a call in each thread; all start together.

    Args:
        call: function of the thread's number.
    """
    gate = threading.Barrier(THREADS)

    def begin(number: int) -> Any:
        gate.wait(timeout=60)
        return call(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def compared(found: Any, expected: Any) -> None:
    """Raises if the results of two calls differ by more than rounding."""
    if isinstance(expected, Tensor):
        if found.shape != expected.shape or not torch.allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE, equal_nan=True):
            raise Wrong("another thread's values")
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, atol=1e-3, rtol=TOLERANCE)
    elif found != expected:
        raise Wrong(f"{found} in the place of {expected}")


def threads() -> Iterator[Case]:
    """Generates calls of the API from eight threads."""
    tiny = classifier()
    several = {head: classifier(head) for head in HEADS}
    tries: dict[str, Call] = {}

    def explained(clf: xattn.Classifier, method: str) -> Call:
        return lambda number: xattn.explain(clf, pictures(number), [method], progress=False).raw[method]

    def evaluated(number: int) -> pd.DataFrame:
        images = pictures(number)
        maps = xattn.explain(tiny, images, ["grad-cam", "random"], progress=False)
        return xattn.evaluate(tiny, images, maps, metric_registry.names(), progress=False)

    def measured(number: int) -> Tensor:
        images, masks, targets = (
            pictures(number),
            torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(number)),
            torch.tensor([0, 1]),
        )
        values = [average_drop(tiny.predict, images, masks, targets)]
        values += [metric(tiny.predict, images, masks, targets, fill=tiny.mean) for metric in (insertion, deletion)]
        return torch.stack(values)

    for method in METHODS:
        tries[f"explain by {method}"] = explained(tiny, method)
    tries["explain, a method each"] = lambda number: explained(tiny, METHODS[number * 2])(number)
    for head, clf in several.items():
        method = "grad-cam" if head == "gap" else "raw-attention"
        tries[f"explain {head} by {method}"] = explained(clf, method)
    tries["explain, a head each"] = lambda number: explained(several[HEADS[number % len(HEADS)]], "grad-cam")(number)
    tries["evaluate, all metrics"] = evaluated
    tries["the metrics' functions"] = measured
    tries["predict"] = lambda number: tiny.predict(pictures(number))
    tries["features"] = lambda number: tiny.features(pictures(number))[tiny.stages[0].name]
    tries["stages by name"] = lambda number: tiny.stage(["body.0", "body.2", "body.3", "body.4"][number % 4])
    tries["attach"] = lambda number: [stage.name for stage in xattn.attach(tiny.network, input_size=SIDE, resize=SIDE).stages]
    tries["load"] = lambda number: xattn.load("birds:gap", device="cpu").predict(functional.interpolate(pictures(number), size=64))
    tries["digest"] = lambda number: tiny.digest()
    for name, call in tries.items():

        def attempt(_: Path, call: Call = call) -> None:
            before = [fingerprint(clf, True) for clf in (tiny, *several.values())]
            expected = [call(number) for number in range(THREADS)]
            for _ in range(TIMES):
                for found, wanted in zip(at_once(call), expected, strict=True):
                    compared(found, wanted)
            if [fingerprint(clf, True) for clf in (tiny, *several.values())] != before:
                raise Wrong("the network is not as it was")

        yield Case(name, attempt)
    yield Case("runs, a folder each", lambda folder: _runs(tiny, folder))
    yield Case("a network in training mode", lambda folder: _training_mode())


def _runs(clf: xattn.Classifier, folder: Path) -> None:
    images = [(picture, number % 2) for number, picture in enumerate(torch.cat([pictures(0), pictures(1)]))]

    def run(number: int) -> bytes:
        place = folder / f"run{number}"
        Study([clf], ["grad-cam"], ["average-drop"], images, place, batch_size=2, workers=0, tune="off", progress=False).run()
        return (place / "scores.csv").read_bytes()

    wanted = run(THREADS)
    for found in at_once(run):
        compared(found, wanted)


def _training_mode() -> None:
    clf = xattn.attach(plain().train(), input_size=SIDE, resize=SIDE)
    before = fingerprint(clf, True)
    expected = [clf.predict(pictures(number)) for number in range(THREADS)]
    for _ in range(10):
        for found, wanted in zip(at_once(lambda number: clf.predict(pictures(number))), expected, strict=True):
            compared(found, wanted)
    if fingerprint(clf, True) != before:
        raise Wrong("the network is not as it was")
