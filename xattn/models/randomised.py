"""Randomises the parameters of a classifier's layers, on a copy, for tests of parameter randomisation."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from xattn.errors import UnsupportedError
from xattn.models.classifier import Classifier

JOIN = " … "


@dataclass(frozen=True)
class Layer:
    """Neighbouring layers whose parameters are drawn together.

    Attributes:
        name: of the module, without `network.` before it; of several modules the first and the last.
        parameters: their names in the classifier.
    """

    name: str
    parameters: tuple[str, ...]


def copied(classifier: Classifier) -> Classifier:
    """A copy with its own weights, in eval mode; the classifier is not changed.

    Raises:
        UnsupportedError: the network cannot be copied.
    """
    try:
        return copy.deepcopy(classifier).eval()
    except Exception as error:  # attributes of users' modules may raise any error
        raise UnsupportedError(
            f"{classifier.name} cannot be copied, and its own weights must not change: {type(error).__name__}: {error}."
        ) from error


def layers_of(classifier: Classifier, steps: int | None = None) -> list[Layer]:
    """The layers that can be randomised, from the input to the output, in the order in which one forward runs them.

    A layer is a module with parameters of its own. Those of a module that no forward calls, such as the projection inside
    `nn.MultiheadAttention`, belong to the nearest module around it that is called. Tensors with equal values (scales of a folded batch
    norm) would not change when drawn, and do not count; neither do integers.

    Args:
        classifier: a copy, which runs once.
        steps: number of groups of neighbouring layers, of about the same size; None, or more than the number of layers: each layer is a
            group.

    >>> import xattn
    >>> [layer.name for layer in layers_of(xattn.load("birds:gap", device="cpu"))][-1]
    'fc'
    """
    called = _called(classifier)
    parts: dict[str, list[str]] = {}
    for name, parameter in sorted(classifier.named_parameters(), key=lambda pair: _place(called, pair[0])[1]):
        if parameter.is_floating_point() and bool(parameter.detach().flatten()[:1].ne(parameter.detach()).any()):
            parts.setdefault(_place(called, name)[0], []).append(name)
    layers = [Layer(module.removeprefix("network."), tuple(names)) for module, names in parts.items()]
    if steps is None or steps >= len(layers):
        return layers
    edges = [len(layers) * step // steps for step in range(steps + 1)]
    return [_joined(layers[start:stop]) for start, stop in pairwise(edges)]


def _called(classifier: Classifier) -> dict[str, int]:
    """The order in which a forward first calls each module, by its name."""
    order: dict[str, int] = {}

    def entered(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any) -> None:
            order.setdefault(name, len(order))

        return hook

    handles = [module.register_forward_pre_hook(entered(name)) for name, module in classifier.named_modules()]
    try:
        classifier.predict(classifier.probe())
    finally:
        for handle in handles:
            handle.remove()
    return order


def _place(called: dict[str, int], parameter: str) -> tuple[str, int]:
    """The module that a parameter belongs to, and its position in the forward."""
    module = parameter.rpartition(".")[0]
    while module and module not in called:
        module = module.rpartition(".")[0]
    return module, called.get(module, 0)


def _joined(layers: list[Layer]) -> Layer:
    first, last = layers[0].name, layers[-1].name
    return Layer(first if first == last else f"{first}{JOIN}{last}", tuple(name for layer in layers for name in layer.parameters))


def redraw(classifier: Classifier, layer: Layer, seed: int = 0) -> None:
    """Redraws the parameters of a layer, in place: each tensor from a normal distribution of its own mean and standard deviation.

    The drawn values depend only on the seed, the parameter's name and its trained mean and deviation: a layer gets the same values,
    independent of the layers drawn before.

    **Differs** from Adebayo et al. 2018, who draw from the initial distribution of training: for a network without batch norms, or with
    folded ones, its scale differs, and after about ten layers the features of every picture would be determined by the biases.

    Args:
        classifier: a copy, see `copied`.
        layer: from `layers_of`.
        seed: of the random draw.
    """
    found = dict(classifier.named_parameters())
    with torch.no_grad():
        for name in layer.parameters:
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            trained = found[name].double().cpu()
            drawn = torch.randn(trained.shape, generator=generator, dtype=torch.float64)
            found[name].copy_(drawn * trained.std(correction=0) + trained.mean())
