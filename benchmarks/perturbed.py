"""Occlusion, RISE, integrated gradients and SmoothGrad of xattn and captum: writes benchmarks/results/perturbed-DEVICE.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from measure import clocked, conditions
from subjects import Subject, photographs, subject
from torch import Tensor

from xattn.explainers import methods, trace
from xattn.inference import Predictor, Tuning, fastest

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data"
STEPS = 50
SIGMA = 0.15
MASKS = 200
PACKAGES = ("xattn", "torch", "openvino", "captum")
OURS = {
    "occlusion": "occlusion",
    "rise": f"rise:masks={MASKS}",
    "integrated-gradients": f"integrated-gradients:steps={STEPS}",
    "smooth-grad": f"smooth-grad:samples={STEPS}",
}
CAPTUMS = {
    "occlusion": "captum:Occlusion",
    "integrated-gradients": f"captum:IntegratedGradients:n_steps={STEPS}",
    "smooth-grad": f"captum:NoiseTunnel:nt_type=smoothgrad,nt_samples={STEPS},stdevs={SIGMA}",
}
TUNED = ("occlusion", "rise")  # the others' forwards have gradients, which tuning does not change
XATTN, FAST, PLAIN = "xattn", "xattn, level fast", "xattn, forwards by torch, not compiled"
BY_NAME = "captum, by its name in xattn"
DEFAULTS, BATCHED = "captum, its defaults", "captum, forwards as large as ours"


def ours(of: Subject, spec: str, images: Tensor, targets: Tensor, predictor: Predictor) -> Tensor:
    method = methods.create(spec)
    traced = trace(of.classifier, images, target=targets, predictor=predictor, needs=method.metadata.needs)
    found: Tensor = method.instance(traced)
    return found


def captums(of: Subject, method: str, images: Tensor, targets: Tensor, batch: int | None) -> Tensor:
    given = of.normalised(images)
    if method == "occlusion":
        window, more = max(1, of.side // 7), {} if batch is None else {"perturbations_per_eval": max(1, batch // len(images))}
        shape, stride = (3, window, window), (3, window // 2, window // 2)
        found = Occlusion(of.network).attribute(given, sliding_window_shapes=shape, strides=stride, target=targets, **more)
    elif method == "integrated-gradients":
        found = IntegratedGradients(of.network).attribute(given, target=targets, n_steps=STEPS, internal_batch_size=batch)
    else:
        more = {} if batch is None else {"nt_samples_batch_size": max(1, batch // len(images))}
        tunnel = NoiseTunnel(Saliency(of.network))
        found = tunnel.attribute(given, nt_type="smoothgrad", nt_samples=STEPS, stdevs=SIGMA, target=targets, abs=False, **more)
    return found.detach()


@click.command()
@click.option("--networks", default="mobilenet_v2,resnet50,vit_b_16", show_default=True)
@click.option("--batch", default=8, show_default=True, help="Pictures at once.")
@click.option("--forward", default=8, show_default=True, help="Images per forward.")
@click.option("--rounds", default=5, show_default=True, help="Each runs everything once, in turn.")
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), envvar="XATTN_DATA", default=DATA)
@click.option("--out", type=click.Path(path_type=Path))
def main(networks: str, batch: int, forward: int, rounds: int, threads: int, device: str, data: Path, out: Path | None) -> None:
    """Times xattn's and captum's form of each method in turn, on the same network and pictures, with given targets."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # captum would run a GPU's convolutions in TF32, by torch's default; ours are exact
    place = torch.device(device)
    rows: list[str] = []
    tunings: list[str] = []
    for name in networks.split(","):
        of = subject(name, data, place)
        images = photographs(data, of.classifier, batch)
        with torch.inference_mode():
            targets = of.classifier(images).argmax(dim=1).clone()
        plain = Predictor(of.classifier, Tuning(chunk=forward, folded=True))
        exact, fast = fastest(of.classifier, "exact"), fastest(of.classifier, "fast")  # tuned as in a longer run
        tunings.append(f"{name}: {exact.tuning}; at level fast {fast.tuning}.")
        for method, spec in OURS.items():
            tuned = method in TUNED
            runs: dict[str, Callable[[], Any]] = {XATTN: partial(ours, of, spec, images, targets, exact if tuned else plain)}
            if tuned:
                runs[FAST] = partial(ours, of, spec, images, targets, fast)
                runs[PLAIN] = partial(ours, of, spec, images, targets, plain)
            if method in CAPTUMS:
                runs[BY_NAME] = partial(ours, of, CAPTUMS[method], images, targets, plain)
                runs[DEFAULTS] = partial(captums, of, method, images, targets, None)
                runs[BATCHED] = partial(captums, of, method, images, targets, forward)
            seconds: dict[str, list[float]] = {label: [] for label in runs}
            for number in range(rounds + 1):
                for label, run in runs.items():
                    took = clocked(run, place)
                    if number:
                        seconds[label].append(took)
            for label, found in seconds.items():
                ratios = sorted(each / own for each, own in zip(found, seconds[XATTN], strict=True))
                spread = "" if label == XATTN else f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
                rows.append(f"| {name} | {method} | {label} | {median(found):.3f} | {spread} |")
                click.echo(rows[-1], err=True)
    about = conditions(place)
    versions = ", ".join(
        f"{package} {about['versions'][package]}" for package in ("xattn", "torch", "openvino", "captum") if package in about["versions"]
    )
    where = about["gpu"] or f"{about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)} of {about['cores']} cores"
    lines = [
        "# Occlusion, RISE, integrated gradients and SmoothGrad, and captum's",
        "",
        f"{batch} picture{'s' * (batch > 1)} at once, {forward} images per forward, {STEPS} steps or samples, {MASKS} masks, windows of a",
        f"seventh of the side at half their width; {rounds} rounds in which each runs once, in turn, after one that is not timed. Seconds:",
        "median. Ratio: to xattn in that round: median [least, most]; above 1, xattn is faster. All compute in float32 without TF32, but",
        "level fast; captum at the normalised picture, xattn in pixel space. captum has no RISE.",
        "",
        "Forwards of occlusion and RISE as a run with `--tune auto` takes them:",
        "",
        *tunings,
        "",
        "| network | method | | seconds | × xattn |",
        "|---|---|---|---:|---:|",
        *rows,
        "",
        f"Made by `{about['command']}` on {about['date']}: {where}, load {about['load']:.1f}; {versions}.",
        "",
    ]
    target = out or RESULTS / f"perturbed-{place.type}.md"
    target.write_text("\n".join(lines), encoding="utf-8")
    click.echo(target, err=True)


if __name__ == "__main__":
    main()
