"""Runs the authors' own code on generated inputs and stores its results, against which tests/authors/test_values.py checks xattn.

    python benchmarks/authors.py --ca-stream DIR --br-npa DIR --metrics DIR --score-cam DIR --simpool DIR --ep DIR --abmilp DIR

The arguments are clones of github.com/ftorres11/CA_Stream, TristanGomez44/br_npa, TristanGomez44/metrics-saliency-maps,
haofanwang/Score-CAM, billpsomas/simpool, billpsomas/efficient-probing and AMLab-Amsterdam/AttentionDeepMIL; `pip install einops` is needed
too. Stored values of a clone that is not given are kept. Functions and classes are extracted from their files one by one, because the
modules import what they do not need; the only changes replace what Python, NumPy and SciPy have since removed (`np.trapz`,
`scipy.ndimage.filters`), and code that requires a GPU.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import math
import subprocess
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import scipy.ndimage
import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.authors import inputs  # noqa: E402  # the checkout that this file is of

numpy.trapz = getattr(numpy, "trapz", numpy.trapezoid)  # type: ignore[attr-defined]  # until NumPy 2


def taken(file: Path, names: Sequence[str], **given: Any) -> types.SimpleNamespace:
    """Loads functions and classes of a file, without its imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    chosen: list[ast.stmt] = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names]
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": functional, "np": numpy, "numpy": numpy, "copy": copy, "math": math, **given}
    exec(compile(ast.Module(chosen, []), str(file), "exec"), space)
    return types.SimpleNamespace(**{name: space[name] for name in names})


def plain(values: Any) -> Any:
    """Converts numbers of a tensor or an array for JSON."""
    if isinstance(values, (Tensor, numpy.ndarray)):
        return [plain(value) for value in values] if values.ndim else float(f"{float(values):.9g}")
    return float(f"{float(values):.9g}")


def ca_stream_network(clone: Path) -> dict[str, Any]:
    """Returns logits of their ResNet-18 with the stream, and the scores of its last attention."""
    import einops
    from torchvision.models import resnet

    transformer = taken(clone / "models/transformer.py", ["CLS_Attention"], rearrange=einops.rearrange)
    found = taken(
        clone / "models/ResNet/resnet_stream.py",
        ["conv3x3", "conv1x1", "BasicBlock", "Bottleneck", "ResNet"],
        CLS_Attention=transformer.CLS_Attention,
        repeat=einops.repeat,
        rearrange=einops.rearrange,
        Tensor=Tensor,
        resnet=resnet,
        **vars(typing),
    )
    network = inputs.filled(found.ResNet(found.BasicBlock, [2, 2, 2, 2], num_classes=10))
    scores: list[Tensor] = []
    network.l4.register_forward_hook(lambda module, given, output: scores.append(output[0][:, 0]))
    with torch.no_grad():
        logits = network(inputs.normalised(inputs.pictures(2, 96)))
    return {"logits": plain(logits), "scores": plain(scores[0])}


def ca_stream_metrics(clone: Path) -> dict[str, Any]:
    """Returns AD, AI, AG, insertion and deletion of a batch."""
    game = taken(clone / "engine/interpretable/ins_del.py", ["gkern", "auc", "CausalMetric"], gaussian_filter=scipy.ndimage.gaussian_filter)
    recognition = taken(clone / "engine/evaluation.py", ["gradcampp_recognition"], epsilon=sys.float_info.epsilon)
    network, images, masks = inputs.filled(inputs.Small()), inputs.pictures(), inputs.masks(7)
    labels = torch.tensor(inputs.TARGETS)
    with torch.no_grad():
        whole, shown = (network(inputs.normalised(some)).softmax(1) for some in (images, images * masks[:, None]))
        drop, increase, gain = recognition.gradcampp_recognition(whole, shown, labels, argparse.Namespace(multilabel=False))
        kernel = game.gkern(5, 5)
        found = {"average-drop": plain(drop), "average-increase": plain(increase), "average-gain": plain(gain)}
        starts = {"insertion": ("ins", lambda x: functional.conv2d(x, kernel, padding=2)), "deletion": ("del", torch.zeros_like)}
        for name, (mode, start) in starts.items():
            metric = game.CausalMetric(network, mode, inputs.SIDE * 8, start, inputs.SIDE, 5)
            scores = metric.evaluate(inputs.normalised(images), masks.numpy(), len(images), labels)
            found[name] = [plain(100 * game.auc(scores[:, number])) for number in range(len(images))]
    return found


def saliency_metrics(clone: Path) -> dict[str, Any]:
    """Returns DAUC, IAUC, DC, IC, AD, IIC and ADD of each image, for pictures in [0, 1] and for normalised ones."""
    sys.path.insert(0, str(clone))
    from saliency_maps_metrics import multi_step_metrics, single_step_metrics  # type: ignore[import-not-found]

    network, images = inputs.filled(inputs.Small()), inputs.pictures()
    labels = list(inputs.TARGETS)
    found: dict[str, Any] = {}
    for space, given, model in (
        ("pixels", images, lambda x: network(inputs.normalised(x)).softmax(1)),
        ("normalised", inputs.normalised(images), lambda x: network(x).softmax(1)),
    ):
        maps = inputs.raw_maps(14)[:, None]
        for kind, area, correlation in (
            (multi_step_metrics.Deletion, "deletion", "deletion-correlation"),
            (multi_step_metrics.Insertion, "insertion", "insertion-correlation"),
        ):
            metric = kind()
            scores, levels = metric.compute_scores(model, given, maps, labels)
            scores = scores.squeeze()
            found[f"{area}, {space}"] = plain(100 * multi_step_metrics.compute_auc_metric(scores))
            found[f"{correlation}, {space}"] = plain(metric.compute_calibration_metric(scores, levels))
        if space == "pixels":
            one = single_step_metrics.ADD()
            coarse = inputs.raw_maps(4)
            values = [one(model, given[i : i + 1], coarse[i, None, None], labels[i : i + 1])["add"] for i in range(len(given))]
            found["average-drop-deletion"] = plain(100 * numpy.array(values))
    return found


def br_npa(clone: Path) -> dict[str, Any]:
    """Returns vectors, maps and sparsity of three images."""
    model = taken(clone / "code/modelBuilder.py", ["representativeVectors"])
    sparsity = taken(clone / "code/metrics.py", ["compAttMapSparsity"])
    features = inputs.features()
    vectors, maps = model.representativeVectors(features, 3)
    maps = torch.cat(maps, dim=1)
    mean = sparsity.compAttMapSparsity(maps.clone(), features.clone()) / len(features)
    return {"vectors": plain(torch.stack(vectors, dim=1)), "maps": plain(maps), "sparsity": plain(1 / mean)}


def score_cam(clone: Path) -> dict[str, Any]:
    """Returns their saliency map of two images, min-max normalised at the image's size."""

    class BaseCAM:
        def __init__(self, network: nn.Module) -> None:
            self.model_arch = network
            self.activations: dict[str, Tensor] = {}
            network.features.register_forward_hook(lambda module, given, output: self.activations.update(value=output))

    released = taken(clone / "cam/scorecam.py", ["ScoreCAM"], BaseCAM=BaseCAM)
    network = inputs.filled(inputs.Small())
    found = []
    cuda, Tensor.cuda = Tensor.cuda, lambda self, *_: self  # type: ignore[method-assign]  # it always requests a GPU
    try:
        for image, target in zip(inputs.pictures(2), inputs.TARGETS, strict=False):
            found.append(released.ScoreCAM(network)(image[None], class_idx=target)[0, 0, ::8, ::8])
    finally:
        Tensor.cuda = cuda  # type: ignore[method-assign]
    return {"masks": plain(torch.stack(found))}


def simpool(clone: Path) -> dict[str, Any]:
    """Returns vectors of three images, each computed alone, because theirs depend on the smallest value of the batch."""
    found, make = {}, torch.tensor
    released = taken(clone / "sp.py", ["SimPool"])
    for gamma in (None, 1.25, 2.0):
        torch.tensor = lambda values, **_: make(values)  # it always requests a GPU
        try:
            module = released.SimPool(12, gamma=gamma)
        finally:
            torch.tensor = make
        inputs.fill([module.norm_patches.weight, module.norm_patches.bias, module.wq.weight, module.wk.weight])
        with torch.no_grad():
            found[f"gamma={str(gamma).lower()}"] = plain(torch.stack([module(image[None]) for image in inputs.features()]))
    return found


def efficient_probing(clone: Path) -> dict[str, Any]:
    """Returns logits of three images, in training and in eval mode, because the batch normalisation differs."""
    found = {}
    for d_out in (1, 3):
        pooling = taken(clone / "poolings/ep.py", ["EfficientProbing"], **vars(typing)).EfficientProbing(12, num_queries=4, d_out=d_out)
        norm = taken(clone / "probe_heads.py", ["_batchnorm"])._batchnorm(12 // d_out)
        head = nn.Sequential(pooling, norm, nn.Linear(12 // d_out, 5))
        inputs.fill([pooling.cls_token[0], pooling.v.weight, head[2].weight, head[2].bias])
        for mode in ("train", "eval"):  # eval after one step of training
            with torch.no_grad():
                logits = head.train(mode == "train")(inputs.features().flatten(2).transpose(1, 2))
            found[f"d_out={d_out}, {mode}"] = plain(logits)
    return found


def abmilp_of_transformers(clone: Path) -> dict[str, Any]:
    """Returns vectors and maps of three images, without a gate."""
    head = taken(clone / "poolings/abmilp.py", ["ABMILPHead"], **vars(typing)).ABMILPHead(12)
    inputs.fill(head.attention_predictor.parameters())
    with torch.no_grad():
        vectors, maps = head.forward_with_attn_map(inputs.features().flatten(2).transpose(1, 2))
    return {"vectors": plain(vectors), "maps": plain(maps[..., 0])}


def gated_attention(clone: Path) -> dict[str, Any]:
    """Returns probability and map of one bag; its convolutions are left out, and their layer provides the instances."""
    network = taken(clone / "model.py", ["GatedAttention"]).GatedAttention()
    network.feature_extractor_part1 = nn.Identity()
    network.feature_extractor_part2 = nn.Identity()
    instances = inputs.features(network.M, count=1)[0].flatten(1).T
    network.feature_extractor_part2.forward = lambda _: instances
    inputs.fill(parameter for part in ("attention_V", "attention_U", "attention_w") for parameter in getattr(network, part).parameters())
    inputs.fill(network.classifier.parameters())
    with torch.no_grad():
        probability, _, maps = network(torch.zeros(1, len(instances), 800))
    return {"probability": plain(probability), "map": plain(maps[0])}


PARTS = {
    "ca_stream": {"network": ca_stream_network, "metrics": ca_stream_metrics},
    "metrics": {"values": saliency_metrics},
    "br_npa": {"head": br_npa},
    "score_cam": {"maps": score_cam},
    "simpool": {"vectors": simpool},
    "ep": {"logits": efficient_probing, "abmilp": abmilp_of_transformers},
    "abmilp": {"gated": gated_attention},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in PARTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "authors" / "values.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    values: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    for name, parts in PARTS.items():
        clone: Path | None = getattr(given, name)
        if clone is None:
            continue
        commit = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        values[name] = {"commit": commit, "torch": torch.__version__} | {part: run(clone) for part, run in parts.items()}
    given.out.write_text(json.dumps(values, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")
    print(f"{given.out}: {given.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
