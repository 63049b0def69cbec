"""Checks which methods a classifier supports, and what it lacks for the others."""

from __future__ import annotations

from xattn.errors import UnsupportedError
from xattn.explainers.attention import OF_CLASSES, without_rank
from xattn.explainers.base import MethodComponent, Need
from xattn.heads.base import heads
from xattn.models.classifier import Classifier
from xattn.models.gates import gate_at, gated_stages, has_regions
from xattn.models.layout import Stage
from xattn.models.streams import LOCAL_STAGE, attends, steps_in
from xattn.study.schema import run_key

NO_ATTENTION = "this head has no attention"


def lacking(classifier: Classifier, method: MethodComponent, stage: Stage | None) -> str | None:
    """Returns in words what a method needs and a classifier does not have; None if the classifier supports the method.

    Args:
        classifier: the classifier to explain.
        method: the method.
        stage: the stage from which its features would be taken; None: it has no default stage.
    """
    needs = method.metadata.needs
    has_head = heads.create(classifier.head_name).metadata.attention
    if Need.ATTENTION in needs and not has_head and (gated := gated_stages(classifier.network)):
        if stage is None or gate_at(stage.name, gated) is None:
            return f"its attention is at stages {', '.join(gated)}"
        if getattr(method.instance, "attention", "softmax") != "softmax":
            return "its gates have no kept scores"
    elif Need.ATTENTION in needs and not has_head and has_regions(classifier.network):
        if getattr(method.instance, "attention", "softmax") != "softmax" or getattr(method.instance, "rank", "mean") != "mean":
            return OF_CLASSES
    elif Need.ATTENTION in needs and not (has_head or attends(classifier.network)):
        return NO_ATTENTION
    if Need.ATTENTION in needs and attends(classifier.network):
        if stage is None or stage.name != LOCAL_STAGE:
            return f"its attention is that of the steps, at stage {LOCAL_STAGE}"
        if getattr(method.instance, "attention", "softmax") != "softmax":
            return "the attention of its steps has no kept scores"
    if unranked := without_rank(classifier.head, getattr(method.instance, "rank", "mean")):
        return unranked
    last = getattr(method.instance, "step", None)
    if Need.STEPS in needs or (last is not None and Need.ATTENTION in needs):
        count = steps_in(classifier.network)
        if last is not None and last > count:
            return f"this network has {count or 'no'} step{'s' * (count != 1)}"
        if stage is None or not stage.boxes:
            return "the steps are of the local stream, and this stage is of the whole picture"
    if needs & {Need.FEATURES, Need.GRADIENTS} and stage is None:
        return "this network has no default stage"
    if needs & {Need.LAYERS, Need.LAYER_GRADIENTS}:
        if not classifier.attention_layers:
            return "this network has no layers of attention that alone mix its tokens"
        if classifier.attachment.replaces != "nothing":
            return "this head replaces what the network pools its tokens by"
    return None


def refuse_unsupported(method: MethodComponent, lacks: str | None, classifier: Classifier) -> None:
    """Raises an error that says what a classifier lacks for a method, and what to do.

    Args:
        method: the unsupported method.
        lacks: the result of `lacking`.
        classifier: the classifier to explain.

    Raises:
        UnsupportedError: always.
    """
    named = run_key(classifier.name, classifier.head_name)
    if Need.ATTENTION in method.metadata.needs and lacks == NO_ATTENTION:
        raise UnsupportedError(
            f"{method.spec} shows a head's attention, and {named} has none: use ca-stream, br-npa or b-cnn, or another method."
        )
    if getattr(method.instance, "rank", "mean") != "mean" or lacks == OF_CLASSES:
        raise UnsupportedError(f"{method.spec} on {named}: {lacks}.")
    if {Need.LAYERS, Need.LAYER_GRADIENTS} & method.metadata.needs:
        raise UnsupportedError(f"{method.spec} does not run on {named}: {lacks}. Use a CAM.")
    if Need.ATTENTION in method.metadata.needs and gated_stages(classifier.network):
        raise UnsupportedError(f"{method.spec} on {named}: {lacks}. Give such a stage, or leave the setting out.")
    if Need.ATTENTION in method.metadata.needs or getattr(method.instance, "step", None) is not None:
        raise UnsupportedError(
            f"{method.spec} shows steps of a two-stream network (focus:BACKBONE); of {named}: {lacks}. Give a network "
            "that has them, its stage local, or another method."
        )
    classifier.stage()  # its error says why there is none, and what to do
