"""Two measurements without other libraries: adaptive curves compared with full ones, and the time to the first map."""

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
from xattn.errors import XattnError
from xattn.inference import Predictor, Tuning
from xattn.metrics import to_masks
from xattn.metrics.curves import Deletion, Insertion
from xattn.metrics.responses import evaluate_perturbations

TOLERANCES, ASKED, QUARTER = {"insertion": 4.0, "deletion": 3.0}, 0.5, 0.25  # points of an image's area, of a table's cell; of the passes
GAMES = {"insertion": Insertion().curve, "deletion": Deletion().curve}
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
    """Returns passes and areas of adaptive insertion and deletion and of the full curves, image by image; a forward holds one image."""
    full, short = tuple(TOLERANCES), tuple(f"{metric}:tolerance={points:g}" for metric, points in TOLERANCES.items())
    passes: dict[str, list[int]] = {spec: [] for spec in full + short}
    areas: dict[str, list[float]] = {spec: [] for spec in full + short}
    curves: dict[str, list[Tensor]] = {spec: [] for spec in full}
    about = f"{' and '.join(short)}, of Grad-CAM, on {len(images)} images; passes of each metric by itself, without those of the map."
    entry: dict[str, Any] = {"job": "adaptive", "title": "Adaptive insertion and deletion", "about": about, "checks": [], "contenders": {}}
    claims = [
        {"text": f"passes of adaptive over full, {metric}", "of": [], "ratios": [], "target": QUARTER, "at_least": False} for metric in full
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
            masks = {"": to_masks(found["grad-cam"], image.shape[-2:]).masks}
            mean = subject.classifier.mean.flatten()
            seen = evaluate_perturbations(one_by_one, image[None], targets, masks, list(GAMES.values()), mean=mean, chunk=1)[""]
            for metric, curve in GAMES.items():
                curves[metric].append(seen.curve(curve).p)
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
    entry["roughness"] = {metric: rough(torch.cat(found)) for metric, found in curves.items()}
    return entry | {"passes": passes, "areas": areas}


def rough(p: Tensor) -> dict[str, float]:
    """Estimates how far curves jump from step to step, and the error of an area that this alone causes when steps are skipped.

    A fourth difference is insensitive to anything cubic over five steps; independent jumps have seventy times their variance in it. An
    estimator that knew everything except the jumps at the skipped steps would err by their mean.

    Args:
        p: `(N, T + 1)`, full curves.

    Returns:
        The jumps' mean deviation in points of probability, the mean |Δ area| that they cause at a quarter of the steps, and the share of
        the curves whose error would exceed the tolerance; the last two for normal jumps.
    """
    jumps = 100 * (p.diff(n=4, dim=1).square().mean(dim=1) / 70).sqrt()
    steps = p.shape[1] - 1
    off = jumps * ((1 - QUARTER) * (steps + 1)) ** 0.5 / steps
    beyond = torch.special.erfc(ASKED / off / 2**0.5)
    return {"jumps": float(jumps.mean()), "mean": float((off * (2 / torch.pi) ** 0.5).mean()), "beyond": float(beyond.mean())}


def start(times: int, few: bool, clocked: Callable[[Callable[[], Any], torch.device], float], say: Callable[[str], None]) -> dict[str, Any]:
    """Measures the wall-clock seconds of processes, in turns; with `few`, only of those that load no torch."""
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
