"""One forward of a batch, with the features of a stage and the attention of the head and the network."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from xattn.heads.base import Attended
from xattn.models.attention import attention_kept, between_tokens
from xattn.models.capture import captured
from xattn.models.classifier import Classifier
from xattn.models.concurrency import evaluating
from xattn.models.gates import gates_kept, regions_kept
from xattn.models.layout import Stage
from xattn.models.streams import Looks, looks_kept


class Forward(NamedTuple):
    """Features and attention of a forward.

    Attributes:
        features: by the name of the stage, in the network's own layout.
        attended: output and attention of the head.
        layers: attention of the network's layers, as they computed it; empty unless it is needed.
        pooling: attention by which the network pools its tokens, if it does.
        looks: how a two-stream network looked at the patches; None for other networks.
        gates: gates of positions of a network with relation-aware attention, by stage; empty for other networks.
        regions: weights of the positions in the region vectors of the classes of an OCR network; None for other networks.
    """

    features: dict[str, Tensor]
    attended: Attended
    layers: list[Tensor]
    pooling: Tensor | None
    looks: Looks | None
    gates: dict[str, Tensor]
    regions: Tensor | None


def run_forward(classifier: Classifier, images: Tensor, stage: Stage | None, *, layers: bool, cut: bool, graph_from_image: bool) -> Forward:
    """Runs a classifier on a batch in eval mode.

    Args:
        classifier: the network with its head.
        images: `(B, 3, H, W)` in pixel space.
        stage: the stage whose features are kept; None: no features.
        layers: keep attention of the network's layers.
        cut: begin the graph at the stage's features, and run the earlier layers without a graph.
        graph_from_image: build the graph from the images onwards.
    """
    with torch.inference_mode(False), ExitStack() as stack:
        stack.enter_context(evaluating(classifier))
        classes = classifier.asked_classes(images)  # a separate forward, before features are kept
        stack.enter_context(torch.set_grad_enabled(graph_from_image))
        kept = stack.enter_context(attention_kept()) if layers else []  # first, so that functions inside are not counted
        looks = stack.enter_context(looks_kept(classifier.network))
        gates = stack.enter_context(gates_kept(classifier.network))
        regions = stack.enter_context(regions_kept(classifier.network))
        found = stack.enter_context(captured(classifier.network, [] if stage is None else [stage], cut=cut))
        attended = classifier.run(images, classes)
    tokens, size = classifier.token_stages, len(images)
    count = tokens[-1].layout.count if tokens else 0
    pooled = between_tokens(kept, size, count, queries=1)
    between = between_tokens(kept, size, count)
    last, weights = looks[-1] if looks else None, regions[-1] if regions else None
    return Forward(found, attended, between, pooled[-1] if pooled else None, last, gates, weights)
