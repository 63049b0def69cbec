"""The vector that a classifier's last linear layer takes, and that layer exchanged for one of other classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import InputError, UnsupportedError
from xattn.heads import heads
from xattn.hidden import Hidden
from xattn.models import Classifier, evaluating
from xattn.models.concurrency import in_this_thread
from xattn.registry import Component, written
from xattn.resnet12 import PREFIX, networks


class Embedding:
    """Images → the vectors that the last linear layer of a classifier takes: of its head (br-npa, b-cnn), or else of its network.

    A hidden layer of the base classes (`hidden=`) counts as part of that last layer: the vectors are those that it takes.

    Args:
        classifier: whose head's or network's own last layer is linear.

    Attributes:
        linear: that layer, `(D → K)`; with a hidden layer, the first of the two.
        hidden: whether there is a hidden layer.
        place: dotted name, in the classifier, of the module that gives the logits for the vectors.

    Raises:
        UnsupportedError: its output is not that of a linear layer on one vector per picture.

    >>> import torch, xattn
    >>> Embedding(xattn.load("birds:br-npa", device="cpu"))(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 384])
    """

    def __init__(self, classifier: Classifier) -> None:
        if classifier.head.vector_length:
            raise UnsupportedError(
                f"{classifier.name} · {classifier.head_name} compares pictures by vectors and has no last layer for new classes: use a "
                "classifier with gap, br-npa or b-cnn."
            )
        given: dict[str, tuple[Tensor, Tensor]] = {}

        def note(place: str, args: tuple[Any, ...], output: Tensor) -> None:
            if len(args) == 1:
                given[place] = args[0], output

        layers = {place: module for place, module in classifier.named_modules() if isinstance(module, (nn.Linear, Hidden))}
        handles = [
            module.register_forward_hook(in_this_thread(lambda _m, args, output, place=place: note(place, args, output)))
            for place, module in layers.items()
        ]
        try:
            with torch.no_grad(), evaluating(classifier):
                logits = classifier(classifier.probe())
        finally:
            for handle in handles:
                handle.remove()
        last = [place for place, (vector, output) in given.items() if vector.dim() == 2 and torch.equal(output, logits)]
        last = [place for place in last if not isinstance(layers.get(place.rpartition(".")[0]), Hidden)]
        if len(last) != 1:
            raise UnsupportedError(
                f"{classifier.name} · {classifier.head_name} has no vector for a classifier of new classes: its logits must be the "
                f"output of one linear layer on one vector per picture, as for most networks with gap and for br-npa and b-cnn on "
                f"any network."
            )
        self.classifier = classifier
        self.place = last[0]
        found = layers[self.place]
        first = found[0] if isinstance(found, Hidden) else found
        assert isinstance(first, nn.Linear)
        self.linear = first
        self.hidden = isinstance(found, Hidden)

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors `(B, D)` of images `(B, C, H, W)` in pixel space. Differentiable; the classifier's mode, eval or train, stays."""
        found: list[Tensor] = []
        hook = in_this_thread(lambda _m, args, _output: found.append(args[0]))  # behind the hook by which a head puts in its vector
        handle = self.linear.register_forward_hook(hook)
        try:
            self.classifier(images)
        finally:
            handle.remove()
        return found[-1]


def with_linear(classifier: Classifier, linear: nn.Linear, names: Sequence[str] | None) -> Classifier:
    """A copy of a classifier with another linear layer in the place of its last one, and of a hidden layer before that.

    It saves and loads as every classifier.

    Args:
        classifier: see `Embedding`.
        linear: `(D → K)`, of which a copy is taken.
        names: of the K classes; None: they have none.

    Raises:
        UnsupportedError: there is no such layer, or its head has other weights for each of its classes.
        InputError: the layer takes vectors of another size.
    """
    last = Embedding(classifier)
    if linear.in_features != last.linear.in_features:
        raise InputError(
            f"{classifier.name} · {classifier.head_name} has vectors of {last.linear.in_features}; the layer takes {linear.in_features}."
        )
    own = copy.deepcopy(linear).to(last.linear.weight)
    network, (part, _, place) = copy.deepcopy(classifier.network), last.place.partition(".")
    state = dict(classifier.head.state_dict())
    head, source = classifier.head_name, classifier.source
    if last.hidden and part == "head":
        head = _without_hidden(heads.create(head))
        state = {key: value for key, value in state.items() if not key.startswith(f"{place}.")}
    elif last.hidden and source is not None:
        named = source.model.startswith(PREFIX)  # else nothing rebuilds the network without its hidden layer
        source = replace(source, model=PREFIX + _without_hidden(networks.create(source.model.removeprefix(PREFIX)))) if named else None
    if part == "network":
        parent, _, name = place.rpartition(".")
        setattr(network.get_submodule(parent), name, own)
    else:
        state |= {f"{place}.{key}": value for key, value in own.state_dict().items()}
    found = Classifier(
        network,
        name=classifier.name if source is None or classifier.source is None or classifier.name != classifier.source.model else source.model,
        preprocessing=classifier.preprocessing,
        labels=names,
        head=head,
        classes=linear.out_features if part == "head" else None,
        fresh=False,
        source=source,
        output=classifier.reader.path,
        inputs=classifier.inputs,
        reads=tuple(stage.name for stage in classifier.attachment.stages),
    )
    if apart := [key for key, value in found.head.state_dict().items() if key not in state or state[key].shape != value.shape]:
        raise UnsupportedError(
            f"{classifier.head_name} has weights for each of its classes outside the last layer ({apart[0]}): leave out its settings "
            "rank_probes or per_class."
        )
    found.head.load_state_dict(state)
    found.trained = True
    return found.eval()


def _without_hidden(component: Component[Any, Any]) -> str:
    """The name of a head or network, with its settings, without its hidden layer."""
    return written(component.spec.partition(":")[0], replace(component.instance, hidden=0))
