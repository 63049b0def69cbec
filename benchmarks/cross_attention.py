"""Attributions with and without a stream: Table 1 of CA-Stream, and the same at matched confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from claims import Line, cell, claim, page
from confidence import confidence, logits_of, matching, scores_at
from estimates import apart
from printed import CA_ACCURACY, CA_TABLE_1
from trained import Budget, Trainings, by_net, drawn, pictures, test_birds

import xattn
from xattn.birds import SketchBirds

CAMS = ("grad-cam", "grad-cam++", "score-cam")
SCORES = {"average-drop": "AD ↓", "average-gain": "AG ↑", "average-increase": "AI ↑", "insertion": "I ↑", "deletion": "D ↓"}


def cross_attention_page(work: Path, trainings: Trainings) -> str:
    """CA-Stream, Table 1.

    Args:
        work: where scores are stored.
        trainings: trainings of the streams.
    """
    budget = trainings.budget
    pooled = xattn.load("birds:gap")
    nets = {"gap": [pooled], "ca-stream": [trainings.stream("ca-stream", seed) for seed in budget.seeds]}
    held_out, answers = pictures(SketchBirds("validation", budget.matched))
    logits = {head: [logits_of(net, held_out) for net in of] for head, of in nets.items()}
    sure = {head: [confidence(each, answers) for each in of] for head, of in logits.items()}
    least = min(min(of) for of in sure.values())
    temperatures = {head: [matching(each, answers, least) for each in of] for head, of in logits.items()}
    images, labels = test_birds(budget.compared, False)
    frames = {}
    for head, of in nets.items():
        found = []
        for net, temperature in zip(of, temperatures[head], strict=True):
            file = work / "scores" / f"{net.digest()[:12]}-{drawn()}-{len(images)}-{temperature:.4f}.csv"
            methods = [*CAMS, *(["raw-attention"] if head == "ca-stream" else [])]
            rows = scores_at(file, net, images, labels, methods, list(SCORES), temperature)
            found.append(rows.assign(model=net.name))
        frames[head] = pd.concat(found)

    def values(head: str, method: str, metric: str, matched: bool) -> torch.Tensor:
        rows = frames[head]
        return by_net(rows[(rows["method"] == method) & (rows["metric"] == metric) & (rows["matched"] == matched)])

    table, lines = [], []
    for method in (*CAMS, "raw-attention"):
        for matched, head in product((False, True), nets):
            if head == "ca-stream" or method in CAMS:
                cells = {SCORES[metric]: cell(values(head, method, metric, matched)) for metric in SCORES}
                printed = None if matched else CA_TABLE_1.get((method, head))
                table.append({"attribution": method, "pooling": f"{head}{', matched' * matched}"} | cells | beside(printed))
    for matched in (False, True):
        for place, (metric, symbol) in enumerate(SCORES.items()):
            for method in CAMS:
                before, after = (values(head, method, metric, matched) for head in ("gap", "ca-stream"))
                way = 1 if CA_TABLE_1[method, "ca-stream"][place] > CA_TABLE_1[method, "gap"][place] else -1
                text = f"{symbol[:-2]} of {method} {'rises' if way == 1 else 'falls'} with the stream"
                lines.append(claim(f"{text}{', at matched confidence' * matched}", apart(after, before[0]), way))
    usual, hard = ({head: trainings.accuracy(of, hard=hard) for head, of in nets.items()} for hard in (False, True))
    for of, which in ((usual, ""), (hard, ", of hard birds")):
        text = f"the stream is as accurate as average pooling{which}"
        lines.append(claim(text, apart(of["ca-stream"], of["gap"][0]), 0, margin=1))
    about = [
        f"Streams beside the frozen birds:gap, {streams_of(budget)}. n = {len(images)} test birds, explained for their labels. ± is half "
        "of the 95 % interval: of streams over seeds × birds, of the network, which is one, over birds. Printed: ResNet-50 on ImageNet, "
        "in the order of the columns. A claim goes the way that the printed values go: AD of Grad-CAM++ rises.",
        f"{_answered(trainings, nets)} Printed: gap {CA_ACCURACY['gap']}, ca-stream {CA_ACCURACY['ca-stream']}.",
        f"On {budget.matched} held-out birds the mean probability of the label is {listed(sure['gap'], 4)} with average pooling, with the "
        f"streams {listed(sure['ca-stream'], 4)}. Rows that are *matched* score the same maps, the logits divided by the temperature at "
        f"which this mean is that of the least sure of them: gap {listed(temperatures['gap'], 2)}, ca-stream "
        f"{listed(temperatures['ca-stream'], 2)}. All birds count, and no prediction changes. The means are alike then, not the "
        "probabilities of every bird.",
        "The same on a real network: [streams of twenty seeds](../trained-ca-stream-seeds-imagenette.md) on photographs, "
        "[MobileNetV2 on imagenette](../trained-ca-stream-imagenette.md), [Score-CAM](../trained-ca-stream-score-cam.md).",
    ]
    return page("CA-Stream, Table 1: attributions with and without the stream", about, pd.DataFrame(table), lines)


def _answered(trainings: Trainings, nets: dict[str, list[xattn.Classifier]]) -> str:
    """Returns how well test birds are recognised, in words, by head."""
    of, found = trainings, []
    for hard in (False, True):
        for head, some in nets.items():
            accuracy, loss = cell(of.accuracy(some, hard=hard)), cell(of.cross_entropy(some, hard=hard), 3)
            found.append(f"{head} accuracy {accuracy} %, cross-entropy {loss} nats{', of hard birds' * hard}")
    return f"On {of.budget.tested} test birds: {'; '.join(found)}."


def listed(values: Sequence[float], digits: int) -> str:
    """Formats values in words; NaN becomes "none"."""
    return ", ".join("none" if math.isnan(value) else f"{value:.{digits}f}" for value in values)


def streams_of(budget: Budget) -> str:
    """Returns how streams are trained, in words."""
    return (
        f"{len(budget.seeds)} seeds, {budget.stream} epochs of {budget.count} pictures on features that are computed once; no setting was "
        "searched, all streams have the same"
    )


def beside(printed: Sequence[float] | None) -> Line:
    """Formats a cell of printed values."""
    return {"printed": "" if printed is None else " · ".join(f"{value:.2f}" for value in printed)}
