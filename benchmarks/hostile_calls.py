"""Bad command lines and bad calls of the Python API: cases as in `hostile.py`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from hostile import Case, drawn
from torch import Tensor

import xattn
import xattn.metrics as metrics
import xattn.training  # so that no case pays for its import
from xattn.cli import main
from xattn.models import Classifier, load
from xattn.study import Study

# --- command lines ----------------------------------------------------------------------------------------------------------------------

NUMBERS = ("-1", "0", "nan", "inf", "-inf", "²", "١", "9" * 5000, "1e400", "1_0", "x", "", " ", "\x00", "1.5", "999999999999")
EXPLAIN = (
    "--batch-size",
    "--workers",
    "--depth",
    "--window",
    "--max-pixels",
    "--seed",
    "--threshold",
    "--input-size",
    "--resize",
    "--mean",
    "--std",
    "--memory",
    "--shard",
    "--actors",
    "--target",
    "--device",
    "--tune",
    "--level",
    "--engine",
    "--stage",
    "--output",
)
TRAIN = (
    "--epochs",
    "--batch-size",
    "--lr",
    "--momentum",
    "--weight-decay",
    "--step",
    "--smallest-crop",
    "--dropout",
    "--patience",
    "--validation",
    "--alpha",
    "--temperature",
    "--devices",
    "--nodes",
    "--precision",
    "--accelerator",
    "--search",
    "--preset",
    "--schedule",
    "--optimiser",
    "--high-res",
    "--head",
    "--classes",
)
SPECS = (
    "insertion:blur=999999",
    "insertion:tolerance=inf",
    "insertion:step=0",
    "deletion:step=²",
    "insertion:protocol=",
    "a:b:c=d",
    ":",
    "=",
    ",,,",
    "average-drop:,,,",
    "sparsity:x=1",
    "insertion:blur=" + "9" * 5000,
    "insertion:blur=1,blur=3",
    "\x00",
    "",
)
METHODS = (
    "score-cam:,,,",
    "score-cam:top=-1",
    "smooth-grad:samples=0",
    "smooth-grad:sigma=nan",
    "occlusion:window=99999",
    "grad-cam:x",
    "captum:",
    "captum:Nothing",
    "grad-cam:ScoreCAM:x=1",
    "finer-cam:alpha=inf",
    "random:",
    "opti-cam:steps=0",
    "..",
    "\x00",
)
MODELS = (
    "..",
    "..:..",
    "/proc:x",
    "os:system",
    "os.path:join",
    "birds:",
    "birds:\x00",
    "torchvision:../x",
    "timm:\x00",
    "hf:",
    "hf:/proc",
    "x.py:f",
    "/dev/null.py:f",
    ".py:f",
    ":",
    "::",
    "a..b:c",
    "x.safetensors",
    "\x00.safetensors",
    "",
)
HEADS = (
    "br-npa:n=1000000000000",
    "br-npa:n=-1",
    "ca-stream:start=99",
    "b-cnn:n=²",
    "ep:d_out=2000000000",
    "gap:x=1",
    "map:mlp_ratio=inf",
    "",
)
PATCHES = ("--count", "--side", "--target", "--batch-size", "--device", "--input-size", "--resize", "--mean", "--std", "--labels-csv")
FINDERS = (
    "random:",
    "random:x=1",
    "activation:,,,",
    "activation:stage=",
    "activation:stage=nowhere",
    "prototype",
    "file",
    "file:path=",
    "file:path=nowhere.npy",
    "file:path=/dev/null",
    "file:path={folder}/pipe.png",
    "nothing",
    ":",
    "\x00",
    "",
)
HOSTS = ("", " ", "\x00", "999.0.0.1", "::x", "nowhere.invalid", "http://x", "x" * 300)
OUTS = ("/proc", "/proc/x", "/dev/null", "/dev/full/x", "", "\x00", "x" * 300)
TARGETS = (
    "--1",
    "²",
    "1000000000",
    "-1",
    "predicted - ",
    "nan*predicted",
    "9" * 400 + "*predicted",
    "second",
    "label",
    "- -",
    "*",
    "0*0",
    "\x00",
)
IMAGES = ("", " ", "\x00", "..\x00", "/proc/self/mem", "/dev/null", "/dev/zero", "[", "**[", "nowhere", "nowhere://x", "file://", "zip://x")


def command_lines(seed: int, count: int, base: Path) -> Iterator[Case]:
    """Command lines with one argument that cannot be used.

    Args:
        seed: of the choice, where fewer are wanted than there are.
        count: of cases.
        base: a folder for the pictures.
    """
    birds = str(drawn(base))
    explain = ["explain", birds, "--model", "birds:gap", "--device", "cpu", "--out", "{folder}/run", "--workers", "0", "--tune", "off"]
    explain += ["--metric", "sparsity"]
    train = [
        "train",
        "--data",
        "{folder}/nowhere",
        "--model",
        "birds:gap",
        "--out",
        "{folder}/x.safetensors",
        "--accelerator",
        "cpu",
        "--workers",
        "0",
    ]
    lines = [[*explain, f"{option}={value}"] for option in EXPLAIN for value in NUMBERS]
    lines += [[*train, f"{option}={value}"] for option in TRAIN for value in NUMBERS]
    lines += [[*explain, f"--metric={spec}"] for spec in SPECS] + [[*explain, f"--method={spec}"] for spec in METHODS]
    lines += [[*explain, f"--target={target}"] for target in TARGETS] + [[*explain, f"--head={head}"] for head in HEADS]
    lines += [["explain", birds, f"--model={model}", "--out", "{folder}/run", "--device", "cpu"] for model in MODELS]
    lines += [["explain", birds, "--model", "birds:gap", f"--out={out}", "--device", "cpu", "--metric=sparsity"] for out in OUTS]
    lines += [["explain", image, "--model", "birds:gap", "--out", "{folder}/run", "--device", "cpu"] for image in IMAGES]
    boxes = ["patches", birds, "--model", "birds:gap", "--device", "cpu", "--count", "2"]
    patches = [*boxes, "--out", "{folder}/boxes.csv"]
    lines += [[*patches, f"{option}={value}"] for option in PATCHES for value in NUMBERS]
    lines += [[*patches, f"--finder={finder}"] for finder in FINDERS]
    lines += [[*boxes, f"--out={out}"] for out in (*OUTS, "boxes", "boxes.png", "/dev/full", "/proc/x.csv", "{folder}/no/x.npy", ".csv")]
    lines += [["patches", birds, f"--model={model}", *patches[4:]] for model in MODELS]
    lines += [["patches", image, *patches[2:]] for image in (*IMAGES, "{folder}/pipe.png")]
    app = ["app", "--method=nothing"]  # refused whatever else is asked for, so that no server starts
    lines += [[*app, f"--port={value}"] for value in NUMBERS] + [[*app, f"--host={host}"] for host in HOSTS]
    lines += [[*app, f"--model={model}"] for model in MODELS] + [[*app, f"--method={method}"] for method in METHODS]
    lines += [[*app, f"--device={value}"] for value in NUMBERS]
    lines += [["explain", "{folder}/pipe.png", *explain[2:]], [*explain, f"--labels-csv={birds}/../billion.csv"]]
    lines += [
        [command, value]
        for command in ("compare", "figure", "list", "demo", "train", "patches", "nothing")
        for value in (*OUTS, "--x", "..")
    ]
    (base / "billion.csv").write_text("image,label\n" + "".join(f"{path.name},1000000000\n" for path in Path(birds).glob("*.png")))
    random.Random(seed).shuffle(lines)
    for line in lines[:count]:

        def invoke(folder: Path, line: list[str] = line) -> int:
            os.mkfifo(folder / "pipe.png")
            with inside(folder):
                result = CliRunner().invoke(main, [part.replace("{folder}", str(folder)) for part in line], prog_name="xattn")
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            return result.exit_code

        yield Case(" ".join(part[:40] for part in (line[0], *line[1:2], line[-1])), invoke)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The working folder of a case, so that relative paths write there."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# --- calls ------------------------------------------------------------------------------------------------------------------------------


def calls(seed: int, count: int) -> Iterator[Case]:
    """Calls of the Python API with one argument that cannot be used."""
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
    tries += _of_metrics(classifier, images) + _of_others(classifier, images)
    random.Random(seed).shuffle(tries)
    for name, call in tries[:count]:

        def attempt(folder: Path, call: Callable[[], object] = call) -> None:
            with inside(folder):
                call()

        yield Case(name, attempt)


NOTHING: tuple[Any, ...] = (0, -1, 1.5, True, "red", "", "²", float("nan"), float("inf"), 10**30, [], {}, object())
Tries = list[tuple[str, Callable[[], object]]]


def _of_metrics(classifier: Classifier, images: Tensor) -> Tries:
    """Metrics as functions, and `evaluate`, with one argument that cannot be used."""
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
    """What is loaded, drawn and printed, with one argument that cannot be used."""
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
