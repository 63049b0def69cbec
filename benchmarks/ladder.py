"""Gain of each execution setting, added one after the other: images per second of a network alone, measured in turns.

    python benchmarks/ladder.py [--networks squeezenet1_0,mobilenet_v2,resnet50,vit_tiny_patch16_224] [--threads 2] [--rounds 5] [--out DIR]

Writes DIR/ladder.json and DIR/ladder.md. A setting for which the machine lacks instructions is measured like the others; its row says so.
OpenVINO's rows need xattn[openvino], int8 also NNCF (xattn[bench]); rows of missing packages are left out.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import click
import torch
from measure import conditions, repeated
from speed import DATA, RESULTS
from speed_page import number, spread, table
from subjects import Subject, photographs, subject
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from xattn.inference import Predictor, Tuning
from xattn.inference.backends import openvino, others
from xattn.inference.benchmark import FAR, TOLERANCE
from xattn.inference.cloning import clone_of
from xattn.inference.memory import kept_pages

RUNGS: dict[str, tuple[Tuning | int, bool]] = {
    "contiguous, 32 images (as the others run it)": (32, False),
    "contiguous, 8 images": (8, False),
    "channels-last, 8 images": (Tuning(8), False),
    "+ pages kept": (Tuning(8), True),
    "+ batch norms folded": (Tuning(8, folded=True), True),
    "+ compiled and frozen": (Tuning(8, folded=True, compiled=True), True),
    "folded, bfloat16, not compiled": (Tuning(8, folded=True, precision="bfloat16"), True),
    "folded, bfloat16, compiled and frozen": (Tuning(8, folded=True, compiled=True, precision="bfloat16"), True),
    "OpenVINO": (Tuning(8, folded=True, backend="openvino"), True),
    "OpenVINO, bfloat16": (Tuning(8, folded=True, precision="bfloat16", backend="openvino"), True),
}
INT8 = "OpenVINO, int8, the rest in bfloat16"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLOCKED_S = 2.0
SEEN, CALIBRATED = 16, 24  # photographs on which errors are measured, and others on which int8 is calibrated; each also under a random mask
CHUNK = 8
Ways = dict[str, tuple[Callable[[Tensor], Tensor], int, bool]]


def matrix_gflops(dtype: torch.dtype) -> float:
    """Measures this machine's peak matrix-product rate, GFLOP per second: no forward of convolutions is faster."""
    a, b = torch.rand(2048, 2048).to(dtype), torch.rand(2048, 2048).to(dtype)
    return 2 * 2048**3 / min(repeated(lambda: a @ b, torch.device("cpu"), CLOCKED_S)) / 1e9


def gflop_an_image(one: Subject) -> float:
    """Counts floating-point operations of a forward of one image, in billions."""
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        one.network(one.normalised(one.classifier.probe()))
    return counted.get_total_flops() / 1e9


def copied_gib() -> float:
    """Measures this machine's peak memory bandwidth, GiB per second, for tensors as large as a chunk's features."""
    a, b = torch.rand(8, 96, 112, 112), torch.empty(8, 96, 112, 112)
    return 2 * a.nbytes / 2**30 / min(repeated(lambda: b.copy_(a), torch.device("cpu"), CLOCKED_S))


def layered(one: Subject, gflops: float, gib: float, dtype: torch.dtype, chunk: int = 8) -> float:
    """Returns images per second if every convolution and linear layer took only the longer of two times: its arithmetic at the rate of a
    matrix product, or reading its input and weights and writing its output once in this precision; and everything else took none."""
    seconds = 0.0

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seconds
        weight: Tensor = module.weight  # type: ignore[assignment]
        work = 2 * output.numel() * weight[0].numel() / 1e9
        moved = (args[0].numel() + weight.numel() + output.numel()) * dtype.itemsize / 2**30
        seconds += max(work / gflops, moved / gib)

    handles = [module.register_forward_hook(after) for module in one.network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        one.network(one.normalised(one.classifier.probe().expand(chunk, -1, -1, -1)))
    for handle in handles:
        handle.remove()
    return chunk / seconds


def masked(images: Tensor) -> Tensor:
    """Returns images `(n, C, H, W)` followed by the same images under smooth random masks, as metrics and perturbing methods use them."""
    masks = torch.rand(len(images), 1, 7, 7, generator=torch.Generator().manual_seed(0)).to(images.device)
    return torch.cat([images, images * functional.interpolate(masks, size=images.shape[-2:], mode="bilinear")])


def quantised(one: Subject, calibration: Tensor) -> Callable[[Tensor], Tensor]:
    """Quantises the network to int8 with NNCF's defaults, calibrated on the given images; layers left in floats use bfloat16.

    Args:
        one: the network.
        calibration: images in pixel space, a multiple of the chunk.
    """
    os.environ.setdefault("NNCF_CI", "1")  # without it, NNCF reports each use to its makers
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    clone = copy.deepcopy(clone_of(one.classifier, torch.contiguous_format, folded=True))
    model = openvino.converted(clone, one.classifier.probe().repeat(CHUNK, 1, 1, 1))
    chunks = [chunk.numpy() for chunk in calibration.split(CHUNK)]
    kind = nncf.ModelType.TRANSFORMER if one.classifier.token_stages else None
    small = nncf.quantize(model, nncf.Dataset(chunks), subset_size=len(chunks), model_type=kind)
    request = openvino.compiled(small, "bfloat16").create_infer_request()
    return lambda images: torch.from_numpy(request.infer([images.contiguous().numpy()])[0].copy())


def runs(one: Subject, calibration: Tensor) -> Ways:
    """Yields each available setting: the function that runs a chunk, its size, whether pages are kept."""
    found: Ways = {}
    backends = {"torch", *others(one.classifier)}
    for name, (way, keep) in RUNGS.items():
        if isinstance(way, int):
            found[name] = (lambda images: one.network(one.normalised(images)), way, keep)
        elif way.backend in backends:
            found[name] = (Predictor(one.classifier, way, "fast" if way.precision != "own" else "exact"), way.chunk, keep)
    if "openvino" in backends and find_spec("nncf"):
        found[INT8] = (quantised(one, calibration), CHUNK, True)
    return found


def errors(one: Subject, ways: Ways, images: Tensor) -> dict[str, list[float]]:
    """Returns the deviation of the predicted class's probability from the plain network's, in points: mean and largest over the images."""
    plain = one.classifier.predict(images).double().softmax(dim=1)
    first = plain.argmax(dim=1, keepdim=True)
    found = {}
    for name, (run, _, _) in ways.items():
        with torch.no_grad():
            logits = torch.cat([run(chunk) for chunk in images.split(CHUNK)])
        apart = 100 * (logits.double().softmax(dim=1) - plain).gather(1, first).abs()
        found[name] = [float(apart.mean()), float(apart.max())]
    return found


def rates(one: Subject, ways: Ways, images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Measures images per second of each setting, in turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for round_ in range(rounds + 1):
        for turn in range(len(names)):
            name = names[(round_ + turn) % len(names)]
            run, chunk, keep = ways[name]
            given = images[:1].expand(chunk, -1, -1, -1).contiguous()
            with torch.no_grad(), kept_pages() if keep else nullcontext():
                run(given)
                seconds = repeated(lambda run=run, given=given: run(given), one.classifier.device, CLOCKED_S)
            if round_:  # the first round compiles
                found[name].append(len(seconds) * chunk / sum(seconds))
    return found


@click.command()
@click.option("--networks", default="squeezenet1_0,mobilenet_v2,resnet50,vit_tiny_patch16_224", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), envvar="XATTN_DATA", default=DATA)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(networks: str, threads: int, rounds: int, device: str, data: Path, out: Path) -> None:
    """Measures and writes the table."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    found, needs, ones, far = {}, {}, {}, {}
    products: dict[str, float] = dict.fromkeys(PRECISIONS, 0.0)
    copied = 0.0
    for name in networks.split(","):
        ones[name] = one = subject(name, data, torch.device(device))
        needs[name] = gflop_an_image(one)
        products |= {precision: max(products[precision], matrix_gflops(dtype)) for precision, dtype in PRECISIONS.items()}
        copied = max(copied, copied_gib())
        images = photographs(data, one.classifier, SEEN + CALIBRATED)
        ways = runs(one, masked(images[SEEN:]))
        far[name] = errors(one, ways, masked(images[:SEEN]))
        found[name] = rates(one, ways, images, rounds)
        click.echo(f"{name}: " + "; ".join(f"{way} {median(rate):.1f}" for way, rate in found[name].items()), err=True)
    about = conditions(torch.device(device))
    measured = list(dict.fromkeys(way for rate in found.values() for way in rate))
    rows = [[way, *(spread(rate[way]) if way in rate else "–" for rate in found.values())] for way in measured]
    apart = [[way, *("{:.2g}, {:.2g}".format(*each[way]) if way in each else "–" for each in far.values())] for way in measured]
    limits: dict[str, dict[str, dict[str, float]]] = {}
    if device == "cpu":
        first = next(iter(RUNGS))
        for precision, dtype in PRECISIONS.items():
            product = {name: products[precision] / needs[name] for name in found}
            layers = {name: layered(one, products[precision], copied, dtype) for name, one in ones.items()}
            limits[precision] = {"product": product, "layers": layers}
            rows += [
                [f"{precision}, at the rate of one large matrix product (the limit of direct convolution)", *map(number, product.values())],
                [f"{precision}, layer by layer, each no faster than that or than its tensors can be moved", *map(number, layers.values())],
                [
                    f"the most that any way in {precision} could gain over the first row, ×",
                    *(number(layers[name] / median(found[name][first])) for name in found),
                ],
            ]
    out.mkdir(parents=True, exist_ok=True)
    limit = {"matrix_gflops": products, "copied_gib": copied, "limits": limits}
    kept = {"rates": found, "errors": far, "gflop_an_image": needs, **limit, "conditions": about}
    (out / "ladder.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = (
        "# What each way of running forwards brings\n\n"
        "Images per second of the network alone at 224 px, by turns; median [lowest, highest]. "
        f"Made by `benchmarks/ladder.py`.\n\n{table(('', *found), rows)}\n\n## How far they are from the plain network\n\n"
        f"The probability of the predicted class, in points: mean difference and the largest, of {SEEN} photographs and the same under "
        f"random masks. The scales of int8 (NNCF, its defaults) are of {CALIBRATED} others, likewise. Level `exact` takes what is within "
        f"{100 * TOLERANCE[torch.float32]:g} on its sample, `fast` what is within {100 * FAR:g}.\n\n{table(('', *far), apart)}\n\n"
        f"<sub>{about['processor']}, {about['threads']} of {about['cores']} cores, {torch.backends.cpu.get_cpu_capability()}; "
        f"{about['date']}; torch {about['versions']['torch']}; `{about['command']}`.</sub>\n"
    )
    (out / "ladder.md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
