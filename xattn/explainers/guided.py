"""Guided backpropagation: the gradient at the image, where every rectifier passes only positive gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional

from xattn.errors import UnsupportedError
from xattn.explainers.base import Need, register
from xattn.explainers.cams import GradCAM, GradCAMPlusPlus
from xattn.explainers.trace import Trace

Activations = Literal["rectifiers", "all"]

RECTIFIERS = ("ReluBackward", "HardtanhBackward", "ClampBackward", "ClampMinBackward")
OTHERS = tuple(
    f"{name}Backward"
    for name in [
        "Gelu",
        "Silu",
        "Hardswish",
        "LeakyRelu",
        "PreluKernel",
        "RreluWithNoise",
        "Elu",
        "Selu",
        "Celu",
        "Mish",
        "Softplus",
        "Softshrink",
        "Threshold",
    ]
)
CAUTION = "fails parameter-randomisation tests (Adebayo et al. 2018): it may show edges independently of what the network has learnt"


@contextmanager
def rectified_gradients(output: Tensor, activations: Activations = "rectifiers") -> Iterator[int]:
    """Clamps the gradient at every rectifier in `output`'s graph to ≥ 0, be it a module, functional, in-place or reused.

    The network is not modified; the graph's hooks are removed at the end. Yields the number of rectifiers.
    """
    kinds = RECTIFIERS if activations == "rectifiers" else RECTIFIERS + OTHERS
    nodes = [node for node in _graph(output) if type(node).__name__.startswith(kinds)]
    handles = [node.register_prehook(_clamp) for node in nodes]
    try:
        yield len(nodes)
    finally:
        for handle in handles:
            handle.remove()


def _clamp(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else gradient.clamp(min=0) for gradient in gradients)


def _graph(output: Tensor) -> Iterator[Node]:
    seen: set[Node] = set()
    stack = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(child for child, _ in node.next_functions)


def guided_gradients(trace: Trace, activations: Activations = "rectifiers") -> Tensor:
    """Guided gradient of the score at the image in pixel space, signed, `(B, 3, H, W)`.

    Raises:
        UnsupportedError: the network has no rectifier.
    """
    with rectified_gradients(trace.output, activations) as count:
        if count == 0 and activations == "rectifiers":
            raise UnsupportedError(
                f"guided backpropagation clamps gradients at rectifiers (ReLU, ReLU6, clamp); {trace.classifier.name} has none. "
                "activations=all clamps at GELU, SiLU and the like instead, which its paper does not cover."
            )
        key = f"guided gradients at {activations}"
        if key not in trace.memo:  # all guided methods of a batch share one backward
            (trace.memo[key],) = torch.autograd.grad(trace.score, trace.images, retain_graph=True)
    return trace.memo[key]


@register("guided-backprop", needs={Need.IMAGE_GRADIENTS}, source="Springenberg et al. 2015", caution=CAUTION)
@dataclass(frozen=True)
class GuidedBackprop:
    """Gradient at the image, where every rectifier passes only positive gradients.

    Attributes:
        activations: "rectifiers" (ReLU, ReLU6, clamp), or "all" (also GELU, SiLU, Hardswish and similar ones).

    Differs: taken in pixel space; libraries that take it at the normalised image differ by a factor 1/std per channel.
    """

    activations: Activations = "rectifiers"

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, H, W)`, ≥ 0: the largest magnitude over the channels."""
        return guided_gradients(trace, self.activations).abs().amax(dim=1)


@dataclass(frozen=True)
class _Guided:
    activations: Activations = "rectifiers"

    def product(self, cam: Callable[[Trace], Tensor], trace: Trace) -> Tensor:
        guided = guided_gradients(trace, self.activations).abs().amax(dim=1)
        upsampled = functional.interpolate(
            trace.on_image(cam(trace))[:, None], size=guided.shape[-2:], mode="bilinear", align_corners=False
        )
        return upsampled[:, 0] * guided


GUIDED_NEEDS = frozenset({Need.FEATURES, Need.GRADIENTS, Need.IMAGE_GRADIENTS})


@register("guided-grad-cam", needs=GUIDED_NEEDS, source="Selvaraju et al. 2017, Sec. 3.2", caution=CAUTION)
@dataclass(frozen=True)
class GuidedGradCAM(_Guided):
    """Grad-CAM at the image's size times guided backpropagation.

    Attributes:
        activations: as for guided-backprop.
    """

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, H, W)`, ≥ 0."""
        return self.product(GradCAM(), trace)


@register("guided-grad-cam++", needs=GUIDED_NEEDS, source="Chattopadhay et al. 2018, Sec. 3.3", caution=CAUTION)
@dataclass(frozen=True)
class GuidedGradCAMPlusPlus(_Guided):
    """Grad-CAM++ at the image's size times guided backpropagation.

    Attributes:
        activations: as for guided-backprop.
    """

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, H, W)`, ≥ 0."""
        return self.product(GradCAMPlusPlus(), trace)
