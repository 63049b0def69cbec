"""Layer-wise relevance propagation through the operations of a forward, by the rules of Chefer et al. 2021a (CVPR), Sec. 3.

An operation distributes the relevance R of its output over its inputs. A linear map of x with weights w distributes it over its positive
products (Eq. 6), without biases:

    R_j = Σ_i R_i · (x_j w_ji)⁺ / Σ_k (x_k w_ki)⁺

A sum or a product L of two tensors u and v, of matrices or of elements, passes to each (Eq. 7)

    R_u = u ⊙ ∂L/∂u · R / L,    R_v = v ⊙ ∂L/∂v · R / L

normalised over the image so that Σ R_u + Σ R_v = Σ R (Eq. 9 and 10):

    R_u ← R_u · |Σ R_u| / (|Σ R_u| + |Σ R_v|) · Σ R / Σ R_u,    and R_v in the same way

A product passes Σ R to each, so the normalisation halves both. A mean is a linear map with equal weights. Softmax, functions of single
elements and normalisations pass R on unchanged, as in the authors' release; so do factors, divisors and terms that do not depend on the
image. Operations that move elements move their relevance with them. R / L is 0 where L is 0. Every other operation raises an error.

**Differs** from the release: sums are taken over each image, not over the batch; and the forward and R are computed in float64 where the
device has it, since R / L is large where a sum is near 0, and a map in float32 would show the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from xattn.errors import UnsupportedError
from xattn.explainers.trace import Trace
from xattn.models.attention import attention_kept, between_tokens, by_head
from xattn.models.concurrency import evaluating
from xattn.models.operations import Operation, Operations, Value, operations

SMALLEST = 1e-9  # added to the magnitude of a divisor

RECTIFIERS = frozenset({"elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "silu", "softplus"})
FUNCTIONS = frozenset({"_to_copy", "hardsigmoid", "neg", "pow", "sigmoid", "tanh"})
SOFTMAX_AND_NORMS = frozenset({"_softmax", "native_batch_norm", "native_group_norm", "native_layer_norm"})
VIEWS = frozenset({"_unsafe_view", "alias", "detach", "expand", "permute", "squeeze", "t", "transpose", "unsqueeze", "view"})
PARTS = frozenset({"index", "index_select", "masked_fill", "select", "slice", "split", "split_with_sizes", "unbind"})
COPIES = frozenset({"cat", "clone", "flip", "repeat", "roll", "stack"})
MEANS = frozenset({"_adaptive_avg_pool2d", "avg_pool2d", "mean", "sum"})
OF_A_NORM = frozenset({"clamp", "clamp_min", "expand", "linalg_vector_norm", "pow", "sqrt", "sum"})


@dataclass(frozen=True)
class _Step:
    """One operation in the backward propagation of relevance.

    Attributes:
        call: the operation.
        forward: all operations of the forward.
        received: relevance of each of its results; None for a result without relevance.
        per_image: a tensor → its sum over each image, of a shape that broadcasts with it.
    """

    call: Operation
    forward: Operations
    received: tuple[Tensor | None, ...]
    per_image: Callable[[Tensor], Tensor]

    @property
    def relevance(self) -> Tensor:
        """Relevance of the result that later operations use."""
        return next(each for each in self.received if each is not None)

    def operand(self, position: int) -> Tensor:
        """A tensor among the arguments, in the precision of the relevance."""
        argument = self.call.arguments[position]
        found: Tensor = self.forward.values[argument.number] if isinstance(argument, Value) else argument
        return found.to(self.relevance.dtype)

    def inputs(self, *positions: int) -> list[Value]:
        """The arguments, of those given, that depend on the image.

        Raises:
            UnsupportedError: other arguments depend on the image, too.
        """
        found = [each for each in (self.call.arguments[position] for position in positions) if isinstance(each, Value)]
        if len(found) != len(self.call.inputs):
            raise _no_rule(self.call, ", of which more than one input depends on the image")
        return found

    def summed(self, value: Value, relevance: Tensor) -> tuple[Value, Tensor]:
        """Relevance of a tensor that was broadcast, summed to its shape."""
        return value, relevance.sum_to_size(self.forward.values[value.number].shape)


Handed = list[tuple[Value, Tensor]]
"""The inputs of an operation, with their relevance."""


def _no_rule(call: Operation, which: str = "") -> UnsupportedError:
    return UnsupportedError(f"there is no rule to propagate relevance through the operation '{call.name}'{which}. Use generic-attention.")


def _ratio(relevance: Tensor, divisor: Tensor) -> Tensor:
    return torch.where(divisor == 0, 0, relevance / (divisor + SMALLEST * divisor.sign()))


def _unchanged(step: _Step) -> Handed:
    (value,) = step.inputs(0)
    return [(value, step.relevance)]


def _adjoint(step: _Step, received: Sequence[Tensor | None], leaf: Callable[[Tensor], Tensor]) -> Handed:
    """Applies the transposed map of a linear operation to the relevance of its results."""
    if not all(step.forward.values[value.number].is_floating_point() for value in step.call.inputs):
        raise _no_rule(step.call, ", of which an index or a mask depends on the image")
    leaves = {value: leaf(step.forward.values[value.number]).requires_grad_() for value in dict.fromkeys(step.call.inputs)}

    def filled(given: Any) -> Any:
        if isinstance(given, Value):
            return leaves[given]
        return given.clone() if isinstance(given, Tensor) and given.is_inference() else given

    with torch.enable_grad():
        arguments, keywords = tree_map(filled, (step.call.arguments, step.call.keywords))
        result = step.call.function(*arguments, **keywords)
    results = result if isinstance(result, (tuple, list)) else [result]
    pairs = [(each, came) for each, came in zip(results, received, strict=True) if came is not None]
    handed = torch.autograd.grad([each for each, _ in pairs], list(leaves.values()), [came for _, came in pairs], allow_unused=True)
    return [(value, each) for value, each in zip(leaves, handed, strict=True) if each is not None]


def _moved(step: _Step) -> Handed:
    dtype = step.relevance.dtype
    return _adjoint(step, step.received, lambda value: torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device))


def _averaged(step: _Step) -> Handed:
    (value,) = step.inputs(0)
    positive = step.operand(0).clamp(min=0)
    result = step.call.function(positive, *step.call.arguments[1:], **step.call.keywords)
    ((_, share),) = _adjoint(step, [_ratio(step.relevance, result)], lambda _: positive.clone())
    return [(value, positive * share)]


def _matrix_product(step: _Step, left: int, right: int) -> Handed:
    inputs, a, b = step.inputs(left, right), step.operand(left), step.operand(right)
    if len(inputs) == 2:
        share = _ratio(step.relevance, a @ b) / 2
        return [(inputs[0], a * (share @ b.mT)), (inputs[1], b * (a.mT @ share))]
    signs = [(a.clamp(min=0), b.clamp(min=0)), (a.clamp(max=0), b.clamp(max=0))]
    share = _ratio(step.relevance, sum(x @ w for x, w in signs))  # type: ignore[arg-type]
    if isinstance(step.call.arguments[left], Value):
        return [(inputs[0], sum(x * (share @ w.mT) for x, w in signs))]  # type: ignore[list-item]
    return [(inputs[0], sum(x * (w.mT @ share) for w, x in signs))]  # type: ignore[list-item]


def _sum_of_two(step: _Step, sign: int = 1) -> Handed:
    inputs, relevance = step.inputs(0, 1), step.relevance
    if len(inputs) == 1:
        return [step.summed(inputs[0], relevance)]
    u, v = step.operand(0), step.operand(1) * (sign * step.call.keywords.get("alpha", 1))
    share = _ratio(relevance, u + v)
    handed = [u * share, v * share]
    sums = [step.per_image(each) for each in handed]
    whole = _ratio(step.per_image(relevance), sums[0].abs() + sums[1].abs())
    return [step.summed(value, each * own.sign() * whole) for value, each, own in zip(inputs, handed, sums, strict=True)]


def _product(step: _Step) -> Handed:
    inputs, relevance = step.inputs(0, 1), step.relevance
    if len(inputs) == 2:
        relevance = torch.where(step.operand(0) * step.operand(1) == 0, 0, relevance) / 2
    return [step.summed(value, relevance) for value in inputs]


def _quotient(step: _Step) -> Handed:
    divided, divisor = step.call.arguments[:2]
    if isinstance(divided, Value) and isinstance(divisor, Value) and _is_norm(step.forward, divisor, divided):
        return [(divided, step.relevance)]
    (value,) = step.inputs(0)
    return [step.summed(value, step.relevance)]


def _is_norm(forward: Operations, value: Value, of: Value) -> bool:
    """Whether a tensor is a norm of another one."""
    for call in reversed(forward.calls):
        if value in call.results:
            if call.name not in OF_A_NORM or len(call.inputs) != 1:
                return False
            (value,) = call.inputs
            if value == of:
                return True
    return False


RULES: dict[str, Callable[[_Step], Handed]] = {
    **dict.fromkeys(RECTIFIERS | FUNCTIONS | SOFTMAX_AND_NORMS, _unchanged),
    **dict.fromkeys(VIEWS | PARTS | COPIES, _moved),
    **dict.fromkeys(MEANS, _averaged),
    "add": _sum_of_two,
    "sub": lambda step: _sum_of_two(step, -1),
    "mul": _product,
    "div": _quotient,
    "mm": lambda step: _matrix_product(step, 0, 1),
    "bmm": lambda step: _matrix_product(step, 0, 1),
    "addmm": lambda step: _matrix_product(step, 1, 2),
    "baddbmm": lambda step: _matrix_product(step, 1, 2),
}
"""Rules by the name of the operation."""


def propagated(forward: Operations, start: Tensor, to: Sequence[Value], per_image: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Propagates relevance from the output of a forward back to some of its tensors.

    Args:
        forward: its operations.
        start: relevance of its output.
        to: results of operations, in order.
        per_image: a tensor → its sum over each image, of a shape that broadcasts with it.

    Raises:
        UnsupportedError: an operation on the way has no rule.
    """
    received = {forward.output: start}
    first = next(number for number, call in enumerate(forward.calls) if to[0] in call.results)
    with torch.inference_mode(False), torch.no_grad():
        for call in reversed(forward.calls[first + 1 :]):
            came = tuple(None if result is None else received.get(result) for result in call.results)
            if all(each is None for each in came):
                continue
            if call.name not in RULES:
                raise _no_rule(call)
            for value, relevance in RULES[call.name](_Step(call, forward, came, per_image)):
                received[value] = received[value] + relevance if value in received else relevance
            for result in call.results:
                if result is not None and result not in to:
                    received.pop(result, None)
    return [received[value] if value in received else torch.zeros_like(forward.values[value.number]) for value in to]


def attention_relevance(trace: Trace) -> list[Tensor]:
    """LRP relevance of each layer's attention for the score, `(B, heads, N, N)`; runs one more forward of the batch, without gradients.

    It starts at the output with the gradient of the score: 1 at the explained class, and 0 elsewhere.

    Raises:
        UnsupportedError: the network has no layers of attention that can be followed, or uses an operation without a rule.
    """
    classifier, layers, size = trace.classifier, trace.layers, len(trace.images)
    with evaluating(classifier), attention_kept():
        precise = trace.images.float() if trace.images.device.type == "mps" else trace.images.double()  # mps has no float64
        forward = operations(lambda images: classifier.run(images).output, precise)
    softmaxes = [result for call in forward.calls if call.name == "_softmax" for result in call.results if result is not None]
    shapes = {value: forward.values[value.number] for value in softmaxes}
    found = [value for value, attention in shapes.items() if between_tokens([attention], size, layers[0].shape[-1])]
    if len(found) != len(layers):
        raise UnsupportedError(
            f"{classifier.name} computes {len(layers)} layers of attention by {len(found)} softmaxes. Use generic-attention."
        )
    with torch.inference_mode(False), torch.enable_grad():
        output = forward.values[forward.output.number].clone().requires_grad_()
        (start,) = torch.autograd.grad(trace.target.score(output).sum(), output)
    tokens_first = classifier.token_stages[-1].layout.axes == "LNC"

    def per_image(tensor: Tensor) -> Tensor:
        axis = 1 if tokens_first and tensor.dim() == 3 else 0
        if tensor.shape[axis] != size:
            raise UnsupportedError(
                f"{classifier.name} adds tensors {tuple(tensor.shape)}, and it is unknown which axis is that of the images."
            )
        return tensor.sum(dim=[each for each in range(tensor.dim()) if each != axis], keepdim=True)

    return [by_head(relevance, size).to(layers[0].dtype) for relevance in propagated(forward, start, found, per_image)]
