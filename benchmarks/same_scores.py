"""Five runs whose scores must not change when the code changes, and their comparison between two installations of xattn.

    python benchmarks/same_scores.py run --out before              # with the interpreter of the one installation
    python benchmarks/same_scores.py run --out after               # with that of the other
    python benchmarks/same_scores.py compare before after

Both sides must run on the same machine with the same versions of torch: the runs are float32, tuning is off and the threads are set, so
that the kernels are the same. The networks and photographs are read from XATTN_DATA.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

DATA = Path(os.environ.get("XATTN_DATA", Path(__file__).parents[2] / "shared" / "data")).resolve()
TOLERANCE = 1e-9
KEYS = ["image", "model", "head", "method", "metric"]
CAMS = ["activation-map", "grad-cam", "grad-cam++"]
GUIDED = ["guided-backprop", "guided-grad-cam", "guided-grad-cam++"]
CONTROLS = ["random", "centre", "edges", "uniform", "fake-cam"]
MASKED = ["average-drop", "average-gain", "average-increase", "average-drop-deletion"]
ALONG_CURVES = ["insertion", "deletion", "insertion-correlation", "deletion-correlation"]
PROTOCOLS = ["insertion:protocol=rise", *(f"{name}:protocol=gomez,step=64" for name in ALONG_CURVES)]
HEADS = ["gap", "ca-stream", "b-cnn", "br-npa", "br-npa-high-res"]


def options(name: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (name, value)]


def runs(out: Path) -> dict[str, list[str]]:
    """The arguments of `xattn explain` for each run."""
    birds = out / "birds"
    if not birds.exists():
        from xattn.birds import SketchBirds

        SketchBirds("test", 4).export(birds)
    photographs = [str(path) for path in sorted((DATA / "photos").glob("*.jpg"))[:12]]
    labels = ["--labels-csv", str(DATA / "photos.csv")]
    mobilenet = ["--model", "torchvision:mobilenet_v2", "--weights", str(DATA / "weights" / "mobilenet_v2.pth")]
    squeezenet = ["--model", "torchvision:squeezenet1_0", "--weights", str(DATA / "weights" / "squeezenet1_0.pth")]
    cifar = out / "cifar10.csv"
    names = [path.name for path in sorted((DATA / "cifar10").glob("*.png"))]
    with open(cifar, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *((name, Path(name).stem.rpartition("_")[2]) for name in names)])
    return {
        "heads-on-birds": [
            str(birds),
            *["--labels-csv", str(birds / "labels.csv")],
            *options("--model", [f"birds:{head}" for head in HEADS]),
            *options("--method", [*CAMS, "score-cam", *GUIDED, "raw-attention", *CONTROLS]),
            *options("--metric", [*MASKED, *ALONG_CURVES, *PROTOCOLS, "sparsity", "sparsity:definition=minmax"]),
        ],
        "labels-on-mobilenet": [
            *photographs,
            *labels,
            *mobilenet,
            *options("--method", [*CAMS, "score-cam:top=32", *GUIDED, *CONTROLS]),
            *options("--metric", [*MASKED, *ALONG_CURVES, "insertion:tolerance=2", "deletion:tolerance=1", "sparsity"]),
        ],
        "predictions-on-squeezenet": [
            *photographs,
            *squeezenet,
            *options("--method", [*CAMS, "score-cam:weighting=logit-softmax,top=32", "captum:IntegratedGradients:n_steps=8"]),
            *options("--method", ["grad-cam:LayerCAM", "grad-cam:EigenCAM", "random"]),
            *options("--metric", [*MASKED, "insertion:protocol=rise", "deletion:protocol=rise", "sparsity"]),
        ],
        "one-class-on-a-network-from-a-file": [
            str(DATA / "cifar10"),
            *["--labels-csv", str(cifar), "--target", "3", "--input-size", "32", "--resize", "32"],
            *["--model", "cifar_resnet.py:resnet20"],  # relative, so that rows of two checkouts have the same names
            *["--weights", str(DATA / "weights" / "cifar10_resnet20.th")],
            *options("--method", [*CAMS, "score-cam", *GUIDED, *CONTROLS]),
            *options("--metric", [*MASKED, *ALONG_CURVES, *PROTOCOLS, "sparsity"]),
        ],
        "grafted-heads-at-another-stage": [
            *photographs[:6],
            *["--model", "timm:tf_efficientnet_lite0", "--weights", str(DATA / "weights" / "tf_efficientnet_lite0.pth")],
            *["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--head", "gap", "--head", "br-npa:n=2", "--stage", "blocks.5"],
            *options("--method", ["activation-map", "grad-cam", "grad-cam++", "guided-grad-cam", "edges"]),
            *options("--metric", [*MASKED, "insertion", "deletion:step=3136", "sparsity"]),
        ],
    }


def run(out: Path) -> None:
    """Runs the five studies into folders below `out`."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name, arguments in runs(out).items():
        command = [sys.executable, "-m", "xattn.cli", "explain", *arguments, "--tune", "off", "--device", "cpu", "--out", str(out / name)]
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent, stdout=subprocess.DEVNULL)


def compare(before: Path, after: Path) -> bool:
    """Prints the largest difference of each run; returns whether all are within the tolerance and no row is missing."""
    fine = True
    for folder in sorted(path.name for path in before.iterdir() if (path / "scores.csv").exists()):
        one, other = (pd.read_csv(side / folder / "scores.csv").set_index(KEYS).sort_index() for side in (before, after))
        rows = one.index.equals(other.index)
        values = (one["value"] - other["value"]).abs().max() if rows else float("nan")
        undefined = rows and bool((one["value"].isna() == other["value"].isna()).all())
        others = [column for column in one if column != "value" and rows and not one[column].equals(other[column])]
        fine &= undefined and values <= TOLERANCE and not others
        print(f"{folder}: {len(one)} rows, largest difference {values:.3g}{f', other columns differ: {others}' if others else ''}")
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("--out", type=Path, required=True)
    comparison = commands.add_parser("compare")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.command == "run":
        run(asked.out)
    elif not compare(asked.before, asked.after):
        sys.exit(1)


if __name__ == "__main__":
    main()
