"""Alignment functions and distributions, their registries, and attention composed of the two.

An alignment is a pure function `(query (B, d_q), keys (B, n, d_k)) → scores (B, n)`, or, if it has weights, a frozen dataclass of settings
that builds a module with the same call. A distribution is a function `scores (…, n) → weights (…, n)`.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xattn.errors import InputError, MissingPackageError, SettingError
from xattn.registry import Registry

Alignment = Callable[[Tensor, Tensor], Tensor]
Distribution = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AlignmentMetadata:
    """Metadata that an alignment is registered with.

    Attributes:
        formula: a(q, kᵢ), the score of key i; q is the query, kᵢ the key, d its width, n the number of keys.
        source: where it was published, as Chaudhari et al. (arXiv 1904.02874) cite it.
        kernel: whether its scores are non-negative values of a kernel, which are divided by their sum.
        fixed: whether the number of keys is fixed when it is built.
    """

    formula: str
    source: str
    kernel: bool = False
    fixed: bool = False


@dataclass(frozen=True)
class DistributionMetadata:
    """Metadata that a distribution is registered with.

    Attributes:
        formula: the weight of key i for scores s.
        source: where it was published.
        kernel: whether it takes the values of a kernel; otherwise it takes scores of either sign.
        package: a further package that it needs; empty: none.
    """

    formula: str
    source: str
    kernel: bool = False
    package: str = ""


class AlignmentSettings(ABC):
    """Base class of registered alignments with weights: frozen dataclasses of settings that build the module."""

    @abstractmethod
    def build(self, d_q: int, d_k: int, n: int | None) -> nn.Module:
        """The module, `(query (B, d_q), keys (B, n, d_k)) → scores (B, n)`, with new weights.

        Args:
            d_q: width of the query.
            d_k: width of the keys.
            n: number of keys; None: any.
        """


alignments: Registry[AlignmentMetadata, Any] = Registry("alignment")
distributions: Registry[DistributionMetadata, Distribution] = Registry("distribution")


class Attention(NamedTuple):
    """The result of attention.

    Attributes:
        output: the weighted sum of the values, `(B, d_v)`.
        weights: `(B, n)`, ≥ 0, with the sum 1; in float32 at least.
        scores: of the alignment, `(B, n)`.
    """

    output: Tensor
    weights: Tensor
    scores: Tensor


def align(name: str, d_q: int | None = None, d_k: int | None = None, n: int | None = None) -> Alignment:
    """Creates an alignment by name: `(query (B, d_q), keys (B, n, d_k)) → scores (B, n)`.

    Args:
        name: `name[:key=value,…]`; `xattn list alignments` shows all.
        d_q: width of the query, for an alignment with weights.
        d_k: width of the keys, for an alignment with weights; None: that of the query.
        n: number of keys, for "location-based".

    Returns:
        A pure function, or a `torch.nn.Module` with new weights.

    Raises:
        NameUnknownError: there is no such alignment.
        SettingError: there is no such setting, or a value is out of range.
        InputError: the alignment has weights, but a size that they need is missing.

    >>> import torch
    >>> align("dot")(torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]))
    tensor([[3., 8.]])
    """
    found = alignments.create(name).instance
    if not isinstance(found, AlignmentSettings):
        function: Alignment = found
        return function
    if d_q is None:
        raise InputError(
            f"'{name}' has weights, so it needs their sizes: align('{name}', d_q=64), with d_k if the keys have another width."
        )
    return found.build(d_q, d_q if d_k is None else d_k, n)


def distribution(name: str) -> Distribution:
    """Returns a distribution by name: scores `(…, n)` → weights `(…, n)`, ≥ 0, with the sum 1 over the last dimension.

    Raises:
        NameUnknownError: there is no such distribution.
        MissingPackageError: the distribution needs a package that is not installed.

    >>> import torch
    >>> distribution("sum")(torch.tensor([1.0, 3.0]))
    tensor([0.2500, 0.7500])
    """
    component = distributions.create(name)
    package = component.metadata.package
    if package and importlib.util.find_spec(package) is None:
        raise MissingPackageError(package, "sparse", f"the distribution '{name}'")
    return component.instance


named_align, named_distribution = align, distribution  # functions below have arguments of these names


def check_names(align: str | None, distribution: str) -> None:
    """Checks that an alignment and a distribution exist and are compatible.

    Args:
        align: its name; None: scores of either sign that do not come from an alignment.
        distribution: its name.

    Raises:
        NameUnknownError: there is no such alignment or distribution.
        SettingError: only one of them is for the values of a kernel.
        MissingPackageError: the distribution needs a package that is not installed.
    """
    kernel = align is not None and alignments.create(align).metadata.kernel
    if distributions.create(distribution).metadata.kernel != kernel:
        fitting = sorted(name for name, entry in distributions.entries.items() if entry.metadata.kernel == kernel)
        what = "the values of a kernel, which are divided by their sum" if kernel else "scores of either sign"
        raise SettingError(
            f"distribution={distribution} does not fit {what}, as {f'align={align}' if align else 'this head'} gives them. Write "
            f"distribution={' or distribution='.join(fitting)}."
        )
    named_distribution(distribution)


def attend(query: Tensor, keys: Tensor, values: Tensor, align: str | Alignment, distribution: str | Distribution) -> Attention:
    """Attention of one query to n keys: Σᵢ a(q, kᵢ) vᵢ.

    With the Gaussian kernel as alignment and the sum as distribution this is the Nadaraya–Watson estimator.

    Args:
        query: `(B, d_q)`.
        keys: `(B, n, d_k)`.
        values: `(B, n, d_v)`.
        align: the name of an alignment without weights, or any function of query and keys, such as the result of `align(…)`.
        distribution: the name of a distribution, or any function of the scores.

    Raises:
        NameUnknownError: there is no such alignment or distribution.
        SettingError: both are named, and only one of them is for the values of a kernel.
        InputError: the alignment has weights, or the numbers of values and keys differ.

    >>> import torch
    >>> keys, values = torch.tensor([[[0.0], [9.0]]]), torch.tensor([[[1.0], [2.0]]])
    >>> attend(torch.tensor([[1.0]]), keys, values, "dot", "softmax").output.round(decimals=2)
    tensor([[2.]])
    """
    if isinstance(align, str) and isinstance(distribution, str):
        check_names(align, distribution)
    if values.dim() != 3 or values.shape[:2] != keys.shape[:2]:
        raise InputError(
            f"attend takes one value per key, values (batch, n, d_v) and keys (batch, n, d_k); got {tuple(values.shape)} and "
            f"{tuple(keys.shape)}."
        )
    scores = (named_align(align) if isinstance(align, str) else align)(query, keys)
    weights = (named_distribution(distribution) if isinstance(distribution, str) else distribution)(scores)
    output = torch.bmm(values.transpose(1, 2), weights[:, :, None].to(values.dtype)).squeeze(2)
    return Attention(output, weights, scores)


def check_shapes(name: str, query: Tensor, keys: Tensor, widths: tuple[int, int] | None = None) -> None:
    """Checks the arguments of an alignment.

    Args:
        name: of the alignment, in messages.
        query: should be `(B, d_q)`.
        keys: should be `(B, n, d_k)`.
        widths: d_q and d_k that it was built for; None: it multiplies both channel by channel, and any equal widths are valid.

    Raises:
        InputError: the shapes are wrong; the message names them.
    """
    if query.dim() != 2 or keys.dim() != 3 or len(query) != len(keys):
        raise InputError(
            f"{name} takes a query (batch, d_q) and keys (batch, n, d_k) of one batch; got {tuple(query.shape)} and {tuple(keys.shape)}."
        )
    came = query.shape[1], keys.shape[2]
    if widths is None and came[0] != came[1]:
        raise InputError(
            f"{name} multiplies query and keys channel by channel; the query has {came[0]} channels, the keys {came[1]}. Use "
            f"general, concat or additive, which take any widths."
        )
    if widths is not None and came != widths:
        raise InputError(
            f"{name} was built for a query of {widths[0]} channels and keys of {widths[1]}; got {came[0]} and {came[1]}. Build it with "
            f"d_q={came[0]}, d_k={came[1]}."
        )


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common precision, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def product(query: Tensor, keys: Tensor) -> Tensor:
    """qᵀkᵢ, `(B, n)`, in float32 at least, in any surrounding precision: in half precision it could overflow."""
    with torch.autocast(query.device.type, enabled=False):
        query, keys = widened(query, keys)
        return torch.bmm(query[:, None], keys.transpose(1, 2)).squeeze(1)
