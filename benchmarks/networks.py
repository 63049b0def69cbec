"""Which networks xattn takes: every torchvision classifier, the smallest of every timm family, and families of transformers.

    python benchmarks/networks.py              # all, with random weights; writes results/networks.md
    python benchmarks/networks.py timm:vit     # those whose names begin so, printed

A network *works* if its default stage is a map whose cells are at their places: of at least four of five cells the gradient at the picture
lies nearest to the cell's own place. It is *undecided* where the gradients of the cells lie close together, as after attention that has
not been trained. It has *no stage* where xattn says that it has no default, and is *refused* where xattn says why it cannot be attached. A
reason that is not true, a cell at a wrong place and any other error are faults.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import xattn
from xattn.errors import XattnError
from xattn.models import Classifier
from xattn.models.capture import captured
from xattn.models.layout import to_nchw

RESULT = Path(__file__).parent / "results" / "networks.md"
CENTRES = ((0.16, 0.22), (0.22, 0.78), (0.5, 0.42), (0.78, 0.3), (0.84, 0.84))
CLEAR = 0.3  # of a side: how far apart the gradients of cells lie that differ clearly
LARGEST = 200e6  # weights; a family whose smallest member has more is left out, and listed
HF = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 64, "patch_size": 16}
PYRAMID = {"image_size": 64, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViT": HF,
    "DeiT": HF,
    "Beit": HF,
    "Dinov2": HF,
    "Dinov2WithRegisters": HF,
    "ViTMSN": HF,
    "Swin": {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 2], "num_heads": [2, 2, 2], "window_size": 4},
    "Swinv2": {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 2], "num_heads": [2, 2, 2], "window_size": 4},
    "Pvt": {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 1, 1], "depths": [1, 1, 2, 2]},
    "PvtV2": {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 1, 1], "depths": [1, 1, 1, 1]},
    "Segformer": {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 1, 1], "depths": [1, 1, 1, 1]},
    "FocalNet": {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 1, 1]},
    "PoolFormer": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "ConvNext": PYRAMID,
    "ConvNextV2": PYRAMID,
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
    "RegNet": {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "groups_width": 16},
    "MobileNetV1": {},
    "MobileNetV2": {},
    "EfficientNet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, "image_size": 64},
}


class Outcome(NamedTuple):
    """Result of testing a network."""

    name: str
    kind: str
    stage: str
    detail: str


def networks() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Returns names, and how to build each with random weights."""
    from torchvision import models

    quiet = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
    for name in models.list_models(module=models):
        yield f"torchvision:{name}", lambda name=name: models.get_model(name, weights=None, **quiet.get(name, {}))
    import timm

    for family in timm.list_modules():
        yield f"timm:{family}", lambda family=family: smallest(family)
    import transformers

    for kind, settings in TRANSFORMERS.items():

        def make(kind: str = kind, settings: dict[str, Any] = settings) -> nn.Module:
            config = getattr(transformers, f"{kind}Config")(**settings, num_labels=5)
            network: nn.Module = getattr(transformers, f"{kind}ForImageClassification")(config)
            return network

        yield f"transformers:{kind}", make


def smallest(family: str) -> nn.Module:
    """Returns the member of a timm family with the fewest weights."""
    import timm

    with torch.device("meta"):
        sizes = {}
        for name in timm.list_models(module=family):
            try:
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
            except (RuntimeError, NotImplementedError):  # some cannot be built without memory
                continue
    name = min(sizes, key=lambda name: sizes[name]) if sizes else timm.list_models(module=family)[0]
    if sizes and sizes[name] > LARGEST:
        raise LookupError(f"its smallest, {name}, has {sizes[name] / 1e6:.0f} million weights")
    network: nn.Module = timm.create_model(name)
    return network


def outcome(name: str, make: Callable[[], nn.Module]) -> Outcome:
    """Builds, attaches and checks one network."""
    torch.manual_seed(0)
    try:
        network = make().eval()
    except LookupError as error:
        return Outcome(name, "left out", "", str(error))
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)  # a part that is initialised to zero passes nothing on
    try:
        clf = xattn.attach(network)
        if not clf.stages:
            return Outcome(name, "no stage", "", str(reason_of(clf)))
        hits, clear = answered(clf)
        xattn.explain(clf, clf.probe(), ["grad-cam"], target=0)
    except XattnError as error:
        return Outcome(name, "refused", "", str(error))
    except Exception as error:
        return Outcome(name, "crash", "", f"{type(error).__name__}: {error}")
    kind = "works" if hits >= 4 else "wrong" if clear else "undecided"
    return Outcome(name, kind, str(clf.stages[-1]), clf.stages[-1].found)


def reason_of(clf: Classifier) -> XattnError:
    """Returns why a classifier has no default stage."""
    try:
        clf.stage()
    except XattnError as error:
        return error
    raise AssertionError("it has one")


def answered(clf: Classifier) -> tuple[int, bool]:
    """Returns for how many of five cells the gradient is nearest to the cell's own place, and whether their places differ clearly."""
    stage = clf.stages[-1]
    image = clf.probe().requires_grad_()
    cells = [(int(row * stage.size[0]), int(column * stage.size[1])) for row, column in CENTRES]
    with torch.enable_grad(), captured(clf.network, [stage]) as found:
        clf(image)
    features = to_nchw(found[stage.name], stage.layout)[0]
    weights = torch.randn(len(features), generator=torch.Generator().manual_seed(0)).to(features)
    centres = [_centre(torch.autograd.grad(weights @ features[:, r, c], image, retain_graph=True)[0]) for r, c in cells]
    places = torch.tensor([[(r + 0.5) / stage.size[0], (c + 0.5) / stage.size[1]] for r, c in cells], dtype=torch.float64)
    off = torch.cdist(torch.stack(centres), places)
    spread = float((torch.stack(centres).amax(dim=0) - torch.stack(centres).amin(dim=0)).min())
    nearest = off.amin(dim=1)
    return int((off.diagonal() <= nearest + 1e-9).sum()), spread > CLEAR


def _centre(gradient: Tensor) -> Tensor:
    """Returns the location of an image's gradient: the mean position weighted by its squares, as shares of height and width."""
    energy = gradient[0].double().square().sum(dim=0)
    total = energy.sum().clamp(min=1e-300)
    rows, columns = ((torch.arange(side) + 0.5) / side for side in energy.shape)
    return torch.stack([(energy.sum(dim=1) @ rows.double()) / total, (energy.sum(dim=0) @ columns.double()) / total])


def page(found: list[Outcome]) -> str:
    """Writes the result as Markdown."""
    counts = Counter(each.kind for each in found)
    lines = [
        "# Which networks xattn takes",
        "",
        "Made by `benchmarks/networks.py`, with random weights: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()) + ".",
        (__doc__ or "").rpartition("\n\n")[2].strip().replace("\n", " "),
        "",
        "| network | | default stage | how it was found, or the reason |",
        "|---|---|---|---|",
    ]
    for each in found:
        detail = " ".join(each.detail.split())
        lines.append(f"| {each.name} | {each.kind} | {each.stage} | {detail[:240]} |")
    return "\n".join(lines) + "\n"


def swept(name: str) -> Outcome:
    """Tests a network in a separate process."""
    found = outcome(name, dict(networks())[name])
    gc.collect()
    return found


def prepare() -> None:
    """Loads what a process needs before its first network."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("beginning", nargs="*", help="names of networks, or how they begin; without any, all are swept and written down")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time, a thread each")
    asked = parser.parse_args()
    names = [name for name, _ in networks() if not asked.beginning or name.startswith(tuple(asked.beginning))]
    found = []
    with multiprocessing.get_context("spawn").Pool(asked.jobs, initializer=prepare) as pool:
        for each in pool.imap(swept, names):
            found.append(each)
            print(" ".join(f"{each.name}: {each.kind}. {each.stage} {each.detail}".split())[:300], flush=True)
    if not asked.beginning:
        RESULT.write_text(page(found), encoding="utf-8")
    if any(each.kind in ("wrong", "crash") for each in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
