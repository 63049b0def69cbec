"""Layer-wise relevance propagation through attention by the rules of lxt, as `lxt:NAME`.

lxt's own ways to set its rules change classes of torch for the whole process, or trace the network with transformers before version 5. Here
its rules replace torch's functions while one image runs, and only in this thread; any network works whose functions all have a rule.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from xattn.errors import MissingPackageError, NameUnknownError, SettingError, UnsupportedError
from xattn.explainers.adapters.base import AdaptedMethod, spec_of
from xattn.explainers.base import Method, MethodMetadata, methods
from xattn.explainers.trace import Trace
from xattn.registry import Adapter, Component

EPSILON = 1e-6  # lxt's own for a linear map
MOVES = frozenset(
    {
        *("reshape", "reshape_as", "view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "squeeze", "unsqueeze"),
        *("expand", "expand_as", "repeat_interleave", "contiguous", "clone", "to", "type_as", "float", "double", "requires_grad_"),
        *("cat", "concat", "stack", "chunk", "split", "tensor_split", "unbind", "select", "narrow", "index_select", "getitem", "get"),
        *("roll", "flip", "pad", "dropout"),
    }
)
"""Functions that move values; relevance moves back with them."""
SINGLE = frozenset(
    {"gelu", "relu", "relu6", "silu", "elu", "leaky_relu", "hardswish", "mish", "softplus", "tanh", "sigmoid", "hardsigmoid"}
)
"""Elementwise functions, with lxt's identity rule."""
LINEAR = frozenset({"conv2d", "mean", "sum", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm"})
"""Linear maps of one tensor, up to a bias, with lxt's ε-rule."""
_MULTI_HEAD = inspect.signature(functional.multi_head_attention_forward)


class _Rules(TorchFunctionMode):
    """Replaces torch's functions by lxt's rules; functions without a rule raise an error.

    Args:
        refuse: reason → error.
    """

    constant = False
    """Whether attention gets no relevance."""

    def __init__(self, refuse: Callable[[str], UnsupportedError]) -> None:
        super().__init__()
        self.refuse = refuse
        self.functional: Any = importlib.import_module("lxt.explicit.functional")
        self.rules: Any = importlib.import_module("lxt.explicit.rules")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _followed((args, kwargs)):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").removeprefix("__").removesuffix("__")
        if name in SINGLE:
            rest = {key: value for key, value in kwargs.items() if key != "inplace"}
            return self.rules.identity(lambda x: func(x, *(a for a in args[1:] if not isinstance(a, bool)), **rest), args[0])
        if name in LINEAR:
            return self.rules.epsilon_lrp(lambda x: func(x, *args[1:], **kwargs), EPSILON, args[0])
        if name in OWN:
            return OWN[name](self, *args, **kwargs)
        result = func(*args, **kwargs)
        if name not in MOVES and _followed(result):
            raise self.refuse(f"lxt has no rule for the function '{name}'")
        return result

    def add(self, a: Any, b: Any, *, alpha: float = 1) -> Any:
        if alpha != 1:
            b = self.multiply(b, alpha)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return self.functional.add2(a, b)
        tensor, number = (a, b) if isinstance(a, Tensor) else (b, a)
        return self.rules.epsilon_lrp(lambda x: x + number, EPSILON, tensor)

    def subtract(self, a: Any, b: Any, *, alpha: float = 1) -> Any:
        return self.add(a, b, alpha=-alpha)

    def multiply(self, a: Any, b: Any) -> Any:
        return self.functional.mul2(a, b) if _followed(a) or _followed(b) else a * b

    def divide(self, a: Any, b: Any) -> Any:
        if _followed(b):
            raise self.refuse("lxt has no rule for a division by what depends on the image")
        return self.multiply(a, 1 / b)

    def matmul(self, a: Tensor, b: Tensor) -> Any:
        both = a.requires_grad and b.requires_grad
        return self.functional.matmul(a, b) if both else self.rules.epsilon_lrp(torch.matmul, EPSILON, a, b)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return self.functional.linear_epsilon(x, weight, bias)

    def softmax(self, x: Tensor, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Any:
        if dim not in (-1, x.dim() - 1):
            raise self.refuse("lxt's softmax is over the last axis alone")
        found: Tensor = self.functional.softmax(x, dim, dtype)
        return found.detach() if self.constant else found

    def layer_norm(self, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Any:
        if len(shape) != 1:
            raise self.refuse("lxt's layer norm is over the last axis alone")
        return self.functional.layer_norm(x, weight, bias, eps)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
            raise self.refuse("masked and grouped attention are not followed")
        scores = self.multiply(self.matmul(query, key.mT), 1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if attn_mask is not None:
            scores = self.add(scores, attn_mask)
        return self.matmul(self.softmax(scores, -1), value)

    def multi_head(self, *args: Any, **kwargs: Any) -> Any:
        bound = _MULTI_HEAD.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        masks = (given[name] is not None for name in ("bias_k", "bias_v", "static_k", "static_v", "attn_mask", "key_padding_mask"))
        if any(masks) or given["add_zero_attn"] or given["in_proj_weight"] is None:
            raise self.refuse("nn.MultiheadAttention with masks, static keys or projections of their own is not followed")
        weights = given["in_proj_weight"].chunk(3)
        biases = (None, None, None) if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
        heads = []
        for tokens, weight, bias in zip((given["query"], given["key"], given["value"]), weights, biases, strict=True):
            length, batch, _ = tokens.shape
            heads.append(self.linear(tokens, weight, bias).reshape(length, batch, given["num_heads"], -1).permute(1, 2, 0, 3))
        attended = self.attend(*heads).permute(2, 0, 1, 3).flatten(2)
        return self.linear(attended, given["out_proj_weight"], given["out_proj_bias"]), None


class AttnLRP(_Rules):
    """Relevance passes through the softmax by its Taylor decomposition, and is halved between the factors of a product."""


class CPLRP(_Rules):
    """Relevance passes only through the values: attention is a constant."""

    constant = True


NAMES: dict[str, type[_Rules]] = {"AttnLRP": AttnLRP, "CP-LRP": CPLRP}


def _followed(found: Any) -> bool:
    """Whether any tensor in it depends on the image."""
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_flatten(found)[0])


OWN: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("add", "radd"), _Rules.add),
    **dict.fromkeys(("sub", "subtract"), _Rules.subtract),
    "rsub": lambda rules, a, b: rules.subtract(b, a),
    **dict.fromkeys(("mul", "rmul", "multiply"), _Rules.multiply),
    **dict.fromkeys(("neg", "negative"), lambda rules, a: rules.multiply(a, -1)),
    **dict.fromkeys(("truediv", "div", "divide"), _Rules.divide),
    **dict.fromkeys(("matmul", "bmm"), _Rules.matmul),
    "rmatmul": lambda rules, a, b: rules.matmul(b, a),
    "linear": _Rules.linear,
    "softmax": _Rules.softmax,
    "layer_norm": _Rules.layer_norm,
    "scaled_dot_product_attention": _Rules.attend,
    "multi_head_attention_forward": _Rules.multi_head,
}
"""Rules by the function's name, without its underscores."""


def _installed() -> bool:
    return importlib.util.find_spec("lxt") is not None


def _names() -> dict[str, type[_Rules]]:
    return NAMES if _installed() else {}


def _create(name: str, settings: Mapping[str, str]) -> Component[MethodMetadata, Method]:
    spec = spec_of("lxt", name, settings)
    if not _installed():
        raise MissingPackageError("lxt", "lxt", f"'{spec}'")
    if name not in NAMES:
        raise NameUnknownError("lxt method", name, NAMES)
    if settings:
        raise SettingError(f"lxt:{name} has no settings; got '{next(iter(settings))}'.")

    def refuse(reason: str) -> UnsupportedError:
        return UnsupportedError(f"{spec}: {reason}. Use chefer or generic-attention.")

    def run(network: nn.Module, image: Tensor, target: int, trace: Trace) -> Tensor:
        for parameter in network.parameters():
            parameter.requires_grad_(False)  # only what depends on the image requires a gradient
        image.requires_grad_()
        with NAMES[name](refuse):
            score = network(image)[0, target]
        if not score.requires_grad:
            raise refuse("no relevance reaches the image")
        (relevance,) = torch.autograd.grad(score, image, score.detach())
        found: Tensor = relevance[0].sum(dim=0)
        if not found.isfinite().all():
            raise refuse("its relevance is not finite here")
        return found

    return Component(spec, AdaptedMethod(spec, run), MethodMetadata(frozenset(), "Achtibat et al. 2024 (lxt)"))


methods.register_adapter("lxt", Adapter(_names, _create, "lxt"))
