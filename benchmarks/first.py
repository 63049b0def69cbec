"""Two measurements without a rival: adaptive curves beside full ones, and how long it takes until the first map."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ours
import torch
from measure import forwards
from subjects import Subject
from torch import Tensor

import xattn
from xattn.classifiers import Predictor, Tuning
from xattn.errors import XattnError

TOLERANCES, ASKED = {"insertion": 2.0, "deletion": 1.0}, 0.5  # points of an image's area, of a table's cell
CELL = "the mean over the images"
FIRST_MAP = """
import xattn
from xattn.birds import SketchBirds, pixels
images = pixels(SketchBirds("test", 1).scene(0))[None] / 255
print(xattn.explain(xattn.load("birds:gap"), images, ["grad-cam"])["grad-cam"].mean())
"""
COMMANDS: dict[str, list[str]] = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import xattn": [sys.executable, "-c", "import xattn"],
    "xattn --help": [str(Path(sys.executable).parent / "xattn"), "--help"],
    "import torch, torchvision": [sys.executable, "-c", "import torch, torchvision"],
    "first map: birds:gap loaded, Grad-CAM of one image": [sys.executable, "-c", FIRST_MAP],
    "import torchcam.methods": [sys.executable, "-c", "import torchcam.methods"],
    "import pytorch_grad_cam": [sys.executable, "-c", "import pytorch_grad_cam"],
}


def adaptive(subject: Subject, images: Tensor, say: Callable[[str], None]) -> dict[str, Any]:
    """Passes and areas of adaptive insertion and deletion beside the full curves', image by image; a forward holds one image."""
    full, short = tuple(TOLERANCES), tuple(f"{metric}:tolerance={points:g}" for metric, points in TOLERANCES.items())
    passes: dict[str, list[int]] = {spec: [] for spec in full + short}
    areas: dict[str, list[float]] = {spec: [] for spec in full + short}
    about = f"{' and '.join(short)}, of Grad-CAM, on {len(images)} images; passes of each metric by itself, without those of the map."
    entry: dict[str, Any] = {"job": "adaptive", "title": "Adaptive insertion and deletion", "about": about, "checks": [], "contenders": {}}
    claims = [
        {"text": f"passes of adaptive over full, {metric}", "of": [], "ratios": [], "target": 0.25, "at_least": False} for metric in full
    ]
    claims += [
        {"text": f"|Δ area|, points, {metric}, {of}", "of": [], "ratios": [], "target": ASKED, "at_least": False, "worst": of != CELL}
        for metric in full
        for of in (CELL, "each image")
    ]
    entry["claims"] = claims
    one_by_one = Predictor(subject.classifier, Tuning(1, folded=True))
    try:
        for number, image in enumerate(images):
            targets = subject.classifier.predict(image[None]).argmax(dim=1)
            found = ours.maps(subject.classifier, image[None], targets, ["grad-cam"], "exact")
            for spec in passes:
                with forwards(subject.classifier.network) as seen:
                    rows = xattn.evaluate(subject.classifier, image[None], found, [spec], predictor=one_by_one)
                passes[spec].append(sum(seen))
                areas[spec].append(float(rows["value"].iloc[0]))
            if number % 10 == 0:
                say(f"adaptive: image {number + 1} of {len(images)}")
    except XattnError as error:
        entry["left out"] = str(error)
        return entry
    for place, metric in enumerate(full):
        other = short[place]
        claims[place]["ratios"] = [sum(passes[other]) / sum(passes[metric])]
        apart = torch.tensor(areas[other]) - torch.tensor(areas[metric])
        claims[2 * place + 2]["ratios"] = [float(apart.mean().abs())]
        claims[2 * place + 3]["ratios"] = apart.abs().tolist()
    return entry | {"passes": passes, "areas": areas}


def start(times: int, few: bool, clocked: Callable[[Callable[[], Any], torch.device], float], say: Callable[[str], None]) -> dict[str, Any]:
    """Wall-clock seconds of processes, by turns; of those that load no torch alone where they are to be few."""
    seconds: dict[str, list[float]] = {name: [] for name in list(COMMANDS)[: 3 if few else None]}
    for number in range(times + 1):
        for name in seconds:
            found = clocked(lambda name=name: subprocess.run(COMMANDS[name], check=True, capture_output=True), torch.device("cpu"))
            if number:  # the first fills the system's cache of files
                seconds[name].append(found)
        say(f"start: round {number} of {times}")
    contenders = {name: {"note": "", "passes": None, "images": [], "seconds": found} for name, found in seconds.items()}
    about = "Processes from their start to their end, files in the system's cache."
    return {"job": "start", "title": "Start", "about": about, "checks": [], "contenders": contenders, "claims": []}
