"""Bad command lines: cases as in `hostile.py`."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner
from hostile import Case, drawn

import xattn.training  # noqa: F401  so that no case includes its import
from xattn.cli import main

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
    "--regions",
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
    "--centre-crop",
    "--padding",
    "--erasing",
    "--head-lr",
    "--deletion-grid",
    "--teacher",
    "--power",
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
    "srg:fill=nothing",
    "road-morf:measure=x",
    "saco:groups=0",
    "sensitivity-n:subsets=-1",
    "infidelity:share=nan",
    "irof:superpixels=1000000000000",
    "max-sensitivity:radius=inf",
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
    "score-cam:budget=0",
    "score-cam:tolerance=nan",
    "rise:budget=²",
    "greedy:grid=1000000",
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
    "few-shot:",
    "few-shot:resnet12:width=0",
    "rga:",
    "rga:birds:gap:height=-1",
    "ocr:",
    "ocr:birds:gap:regions=x",
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
    "dg-net",
    "dg-net:pooling=x",
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
ADAPT = (
    "--steps",
    "--lr",
    "--batch-size",
    "--device",
    "--input-size",
    "--resize",
    "--mean",
    "--std",
    "--labels-csv",
    "--labels",
    "--weights",
)
EVALUATE = ("--batch-size", "--workers", "--device", "--input-size", "--resize", "--labels-csv", "--labels-from", "--classes", "--task")
TASKS = (
    "",
    ":",
    "nothing",
    "\x00",
    "few-shot",
    "few-shot:ways=0",
    "few-shot:ways=1000000000000",
    "few-shot:shots=-1",
    "few-shot:queries=nan",
    "multi-label",
    "re-identification",
    "classification:x=1",
    "segmentation",
    "segmentation:auxiliary=nan",
)
DATA = (
    "",
    "\x00",
    "nowhere",
    "voc:",
    "voc:/proc",
    "market:",
    "market:/proc:query",
    "cifar-fs:/proc:nothing",
    "cub:\x00",
    "dogs::",
    "mit67:/proc:test",
    "x:y:z",
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
    """Generates command lines with one invalid argument.

    Args:
        seed: seed of the selection, if fewer cases are wanted than exist.
        count: number of cases.
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
    adapt = ["adapt", "birds:gap", "--data", birds, "--device", "cpu", "--out", "{folder}/new.safetensors"]
    evaluate = ["evaluate", "birds:gap", "--data", birds, "--device", "cpu", "--workers", "0"]
    lines += [[*adapt, f"{option}={value}"] for option in ADAPT for value in NUMBERS]
    lines += [[*evaluate, f"{option}={value}"] for option in EVALUATE for value in NUMBERS]
    lines += [["adapt", model, *adapt[2:]] for model in MODELS] + [["evaluate", model, *evaluate[2:]] for model in MODELS]
    lines += [[*adapt, f"--data={data}"] for data in DATA] + [[*evaluate, f"--data={data}"] for data in DATA]
    lines += [[*adapt, f"--out={out}"] for out in OUTS] + [[*evaluate, f"--out={out}"] for out in (*OUTS, "x.json", "x.png", "/proc/x.csv")]
    lines += [[*evaluate, f"--task={task}"] for task in TASKS] + [[*train, f"--task={task}"] for task in TASKS]
    lines += [[*train, "--task=few-shot", f"{option}={value}"] for option in ("--episodes", "--base-lr", "--factor") for value in NUMBERS]
    lines += [[*explain, f"--gallery={image}"] for image in (*IMAGES, *DATA, birds)]
    score = ["score", birds, "--images", birds, "--model", "birds:gap", "--device", "cpu", "--out", "{folder}/run", "--workers", "0"]
    lines += [["score", image, *score[2:]] for image in (*IMAGES, "{folder}/pipe.png")]
    lines += [[*score, f"--covers={value}"] for value in NUMBERS] + [[*score, f"--metric={spec}"] for spec in SPECS]
    randomise = ["randomise", birds, "--model", "birds:gap", "--device", "cpu", "--out", "{folder}/random"]
    lines += [[*randomise, f"{option}={value}"] for option in ("--steps", "--smooth", "--threshold", "--seed") for value in NUMBERS]
    lines += [[*randomise, f"--method={method}"] for method in METHODS]
    app = ["app", "--method=nothing"]  # always refused, so that no server starts
    lines += [[*app, f"--port={value}"] for value in NUMBERS] + [[*app, f"--host={host}"] for host in HOSTS]
    lines += [[*app, f"--model={model}"] for model in MODELS] + [[*app, f"--method={method}"] for method in METHODS]
    lines += [[*app, f"--device={value}"] for value in NUMBERS]
    lines += [["explain", "{folder}/pipe.png", *explain[2:]], [*explain, f"--labels-csv={birds}/../billion.csv"]]
    lines += [
        [command, value]
        for command in (
            "compare",
            "figure",
            "list",
            "demo",
            "train",
            "patches",
            "adapt",
            "evaluate",
            "app",
            "score",
            "randomise",
            "trial",
            "nothing",
        )
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
    """Changes to the working folder of a case, so that relative paths write there."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
