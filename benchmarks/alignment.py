"""Alignments and distributions in a CA-Stream on SketchBirds: accuracy, parameters, gain and increase."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from claims import Line, cell, page, question
from estimates import apart
from trained import Trainings, by_net

import xattn
from xattn.attention import alignments

Scores = Callable[[str, Sequence[xattn.Classifier], Sequence[str], Sequence[str]], pd.DataFrame]
OWN = "scaled-dot"
RANDOM_FEATURES = "generalised-kernel:random_features=64"
SPARSE = ("entmax15", "sparsemax")
METRICS = {"average-gain": "AG ↑", "average-increase": "AI ↑"}


def heads() -> dict[str, tuple[str, str]]:
    """Returns the streams: name of the head → its alignment and distribution."""
    found = {}
    for align in [OWN, *sorted(set(alignments.entries) - {OWN}), RANDOM_FEATURES]:
        kernel = alignments.create(align).metadata.kernel
        found[f"ca-stream:align={align}{',distribution=sum' if kernel else ''}" if align != OWN else "ca-stream"] = (
            align,
            "sum" if kernel else "softmax",
        )
    return found | {f"ca-stream:distribution={distribution}": (OWN, distribution) for distribution in SPARSE}


def alignment_page(trainings: Trainings, scores: Scores) -> str:
    """Makes the table of the alignments, each trained with the same seeds."""
    budget = trainings.budget
    table: list[Line] = []
    values: dict[str, dict[str, torch.Tensor]] = {}
    for head, (align, distribution) in list(heads().items())[: budget.streams]:
        nets = [trainings.stream(head, seed) for seed in budget.seeds]
        found = {"accuracy": trainings.accuracy(nets), "cross-entropy": trainings.cross_entropy(nets)}
        found["accuracy, hard birds"] = trainings.accuracy(nets, hard=True)
        rows = scores(nets[0].name.rpartition("-")[0], nets, ["grad-cam", "raw-attention"], list(METRICS))
        for method in ("grad-cam", "raw-attention"):
            for metric, symbol in METRICS.items():
                found[f"{symbol} {method}"] = by_net(rows[(rows["method"] == method) & (rows["metric"] == metric)])
        size = sum(parameter.numel() for parameter in nets[0].head.parameters())
        cells = {name: cell(each, 3 if name == "cross-entropy" else 2) for name, each in found.items()}
        table.append({"alignment": align, "distribution": distribution, "parameters": f"{size:,}"} | cells)
        values[head] = found
    own = values.pop("ca-stream")
    lines = [
        question(f"{' with '.join(heads()[head])}: is {what} above that of {OWN} with softmax?", apart(found[name], own[name]))
        for what, name in (("the accuracy", "accuracy"), ("AG of Grad-CAM", "AG ↑ grad-cam"))
        for head, found in values.items()
    ]
    about = [
        f"Streams beside the frozen birds:gap, {budget.stream} epochs of {budget.count} pictures on kept features, {len(budget.seeds)} "
        f"seeds; ± is half of the 95 % interval over seeds × birds; accuracy on {budget.tested} test birds and as many hard ones, "
        f"cross-entropy in nats, gain and increase on {budget.explained}, explained for their labels. No setting was searched: all "
        "alignments have the same. Parameters are those of the whole stream, hidden layers 128 wide. The survey and the lecture print no "
        "numbers. feature-based does not read the query, so that the last stage alone decides; location-based does not read the features, "
        "so that the map of the first stage is the same for all images.",
    ]
    return page("Alignment functions (Chaudhari et al., arXiv 1904.02874) in the stream", about, pd.DataFrame(table), lines)
