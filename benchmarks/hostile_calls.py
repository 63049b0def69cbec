"""Bad calls of the Python API: cases as in `hostile.py`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hostile import Case, drawn
from hostile_lines import DATA, FINDERS, HEADS, METHODS, MODELS, TASKS, inside
from torch import Tensor

import xattn
import xattn.metrics as metrics
import xattn.patches
import xattn.tasks
from xattn.models import Classifier, load
from xattn.study import Study


def calls(seed: int, count: int) -> Iterator[Case]:
    """Generates calls of the Python API with one invalid argument."""
    classifier = load("birds:gap", device="cpu")
    images = torch.rand(2, 3, 64, 64)
    bad_images = (
        torch.rand(0, 3, 64, 64),
        torch.rand(3, 64, 64),
        torch.rand(2, 64, 64, 3),
        torch.full((2, 3, 64, 64), float("nan")),
        images * 255,
        (images * 255).to(torch.uint8),
        torch.rand(2, 3, 1, 1),
        torch.rand(2, 1, 64, 64),
        [],
        "",
        ["nowhere.png"],
        "\x00",
    )
    bad_targets = (
        99,
        -1,
        "nothing",
        [0],
        [0, 1, 2],
        torch.tensor([0.5, 1.0]),
        torch.zeros(2, 2),
        "second - ",
        [None, 0],
        10**30,
        True,
        "²",
    )
    tries: list[tuple[str, Callable[[], object]]] = []
    tries += [
        (f"explain(images {number})", lambda given=given: xattn.explain(classifier, given)) for number, given in enumerate(bad_images)
    ]
    tries += [
        (f"explain(target {given!r:.30})", lambda given=given: xattn.explain(classifier, images, target=given)) for given in bad_targets
    ]
    tries += [(f"explain(method {given!r:.30})", lambda given=given: xattn.explain(classifier, images, [given])) for given in METHODS]
    tries += [(f"load({given!r:.30})", lambda given=given: xattn.load(given, device="cpu")) for given in MODELS]
    tries += [(f"load(head {given!r:.30})", lambda given=given: xattn.load("birds:gap", head=given, device="cpu")) for given in HEADS]
    tries += [
        (f"load(input_size {given!r:.30})", lambda given=given: xattn.load("birds:gap", input_size=given, device="cpu"))
        for given in (0, -1, 10**7, 10**30, (1, 2, 3), (10**6, 10**6), 3)
    ]
    tries += [
        (f"Study({key} {given!r:.30})", lambda key=key, given=given: Study([classifier], images=drawn(Path.cwd()), **{key: given}))
        for key, values in {
            "batch_size": (0, -1),
            "shard": ((0, 1), (2, 1), (1, 10**12)),
            "memory": ("x", "-1GB", 0),
            "methods": ("grad-cam", [], ["x"]),
            "metrics": ("x", ["insertion:blur=2"]),
            "tune": ("x", "chunk=0", "chunk=²"),
            "engine": ("x",),
            "threshold": (2.0,),
            "depth": (99,),
        }.items()
        for given in values
    ]
    tries += _of_metrics(classifier, images) + _of_others(classifier, images) + _of_new_classes_and_scores(classifier, images)
    random.Random(seed).shuffle(tries)
    for name, call in tries[:count]:

        def attempt(folder: Path, call: Callable[[], object] = call) -> None:
            with inside(folder):
                call()

        yield Case(name, attempt)


NOTHING: tuple[Any, ...] = (0, -1, 1.5, True, "red", "", "²", float("nan"), float("inf"), 10**30, [], {}, object())
Tries = list[tuple[str, Callable[[], object]]]


def _of_metrics(classifier: Classifier, images: Tensor) -> Tries:
    """Generates calls of metrics as functions, and of `evaluate`, with one invalid argument."""
    masks = torch.rand(2, 64, 64)
    shapes = (torch.rand(0, 64, 64), torch.rand(3, 64, 64), torch.rand(2, 8, 8), torch.rand(2, 3, 64, 64), torch.rand(64, 64))
    values = (masks * 255, masks - 1, masks * float("nan"), masks.to(torch.complex64), (masks * 255).to(torch.uint8), masks > 0.5)
    bad: dict[str, tuple[Any, ...]] = {
        "predict": (None, 3, "birds:gap", lambda _: None, lambda x: x, lambda x: x.mean(), lambda x: classifier(x)[:1], lambda x: "x"),
        "images": (*shapes, images * 255, images - 0.5, images[:1], "folder", *NOTHING),
        "masks": (*shapes[:2], *shapes[3:], *values, "mask", *NOTHING),
        "targets": (
            torch.tensor([0, 99]),
            torch.tensor([-1, 0]),
            torch.tensor([0]),
            torch.tensor([[0, 1]]),
            torch.rand(2),
            "cat",
            *NOTHING,
        ),
    }
    given: dict[str, Any] = {"predict": classifier.predict, "images": images, "masks": masks, "targets": torch.tensor([0, 1])}
    of: Tries = []
    for function in (metrics.average_drop, partial(metrics.insertion, fill=classifier.mean)):
        called = getattr(function, "func", function).__name__
        for name, values_of in bad.items():
            for number, value in enumerate(values_of):
                arguments = [value if key == name else good for key, good in given.items()]
                of.append((f"{called}({name} {number})", partial(function, *arguments)))
        of += [(f"{called}(chunk {value!r:.20})", partial(function, *given.values(), chunk=value)) for value in (0, -1, "x")]
    for key in ("fill", "step", "blur"):
        of += [
            (f"insertion({key} {value!r:.20})", partial(metrics.insertion, *given.values(), **{"fill": classifier.mean, key: value}))
            for value in NOTHING
        ]
    maps = xattn.explain(classifier, images, ["random"])
    of += [(f"evaluate(images {number})", partial(xattn.evaluate, classifier, value, maps)) for number, value in enumerate(bad["images"])]
    of += [
        (f"evaluate(masks {number})", partial(xattn.evaluate, classifier, images, {"mine": value}))
        for number, value in enumerate(bad["masks"])
    ]
    of += [(f"evaluate(maps {value!r:.20})", partial(xattn.evaluate, classifier, images, value)) for value in NOTHING]
    return of + [(f"evaluate(classifier {value!r:.20})", partial(xattn.evaluate, value, images, maps)) for value in NOTHING]


def _of_others(classifier: Classifier, images: Tensor) -> Tries:
    """Generates calls that load, draw and print, with one invalid argument."""
    maps, network = xattn.explain(classifier, images, ["random"]), classifier.network
    of: Tries = [(f"explain(classifier {value!r:.20})", partial(xattn.explain, value, images)) for value in NOTHING]
    for key in ("batch_size", "seed", "stage", "threshold", "labels"):
        of += [(f"explain({key} {value!r:.20})", partial(xattn.explain, classifier, images, **{key: value})) for value in NOTHING]
    for key in ("input_size", "mean", "std", "output", "labels", "head"):
        of += [(f"attach({key} {value!r:.20})", partial(xattn.attach, network, **{"input_size": 64, key: value})) for value in NOTHING]
    of += [(f"attach({value!r:.20})", partial(xattn.attach, value, input_size=64)) for value in NOTHING]
    for key in ("alpha", "cmap", "interpolation", "contour"):
        of += [(f"overlay({key} {value!r:.20})", partial(maps.overlay, "random", **{key: value})) for value in NOTHING]
    return of


def _of_new_classes_and_scores(classifier: Classifier, images: Tensor) -> Tries:
    """Generates calls of `adapt`, `tasks.score` and `patches.find` with one invalid argument."""
    labels = [0, 1]
    of: Tries = [(f"adapt(classifier {value!r:.20})", partial(xattn.adapt, value, images, labels)) for value in NOTHING]
    of += [(f"adapt(images {value!r:.20})", partial(xattn.adapt, classifier, value, labels)) for value in NOTHING]
    of += [
        (f"adapt(labels {value!r:.20})", partial(xattn.adapt, classifier, images, value))
        for value in (*NOTHING, [0], [0, 0], [0, 2], [-1, 0], [0, 10**30], torch.rand(2), torch.zeros(2, 2, dtype=torch.long))
    ]
    for key in ("names", "steps", "lr", "batch_size"):
        of += [(f"adapt({key} {value!r:.20})", partial(xattn.adapt, classifier, images, labels, **{key: value})) for value in NOTHING]
    score = partial(xattn.tasks.score, progress=False, workers=0)
    of += [(f"score(classifier {value!r:.20})", partial(score, value, "nowhere")) for value in NOTHING]
    of += [(f"score(data {value!r:.20})", partial(score, classifier, value)) for value in (*NOTHING, *DATA)]
    for key in ("task", "labels_csv", "labels_from", "batch_size", "workers"):
        of += [(f"score({key} {value!r:.20})", partial(score, classifier, "nowhere", **{key: value})) for value in NOTHING]
    of += [(f"score(task {value!r:.20})", partial(score, classifier, "nowhere", task=value)) for value in TASKS]
    of += [(f"find(classifier {value!r:.20})", partial(xattn.patches.find, value, images)) for value in NOTHING]
    of += [(f"find(images {value!r:.20})", partial(xattn.patches.find, classifier, value)) for value in NOTHING]
    of += [(f"find(finder {value!r:.20})", partial(xattn.patches.find, classifier, images, value)) for value in (*NOTHING, *FINDERS)]
    for key in ("n", "side", "classes", "rows"):
        of += [(f"find({key} {value!r:.20})", partial(xattn.patches.find, classifier, images, **{key: value})) for value in NOTHING]
    return of
