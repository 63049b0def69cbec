"""Alignments by a small network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional

from xattn.attention.base import AlignmentMetadata, AlignmentSettings, alignments, check_shapes
from xattn.errors import InputError, SettingError
from xattn.registry import AtMost

Width = Annotated[int, AtMost(65_536)]


def _check_width(name: str, hidden: int) -> None:
    if hidden < 1:
        raise SettingError(f"{name} takes a hidden width of at least 1; got hidden={hidden}.")


@alignments.register("concat", AlignmentMetadata(formula="vᵀ tanh(W [q; kᵢ] + b)", source="Luong et al. 2015a"))
@dataclass(frozen=True)
class Concat(AlignmentSettings):
    """A network with one hidden layer scores query and key, concatenated.

    Attributes:
        hidden: width of the hidden layer.
    """

    hidden: Width = 128

    def __post_init__(self) -> None:
        _check_width("concat", self.hidden)

    def build(self, d_q: int, d_k: int, n: int | None = None) -> ConcatNetwork:
        """The module, weights Xavier-uniform, b zero."""
        return ConcatNetwork(d_q, d_k, self.hidden)


class ConcatNetwork(nn.Module):
    """`concat` as a module: query `(B, d_q)`, keys `(B, n, d_k)` → scores `(B, n)`.

    Args:
        d_q: width of the query.
        d_k: width of the keys.
        hidden: width of the hidden layer.
    """

    def __init__(self, d_q: int, d_k: int, hidden: int) -> None:
        super().__init__()
        self.widths = d_q, d_k
        self.linear = nn.Linear(d_q + d_k, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        _begin(self)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        check_shapes("concat", query, keys, self.widths)
        of_query, of_keys = self.linear.weight.split(self.widths, dim=1)  # W [q; k] without a copy of the query for each key
        hidden = functional.linear(query, of_query)[:, None] + functional.linear(keys, of_keys, self.linear.bias)
        scores: Tensor = self.score(hidden.tanh())[..., 0]
        return scores


@alignments.register("additive", AlignmentMetadata(formula="vᵀ tanh(W₁ q + W₂ kᵢ + b)", source="Bahdanau et al. 2015"))
@dataclass(frozen=True)
class Additive(AlignmentSettings):
    """A network with one hidden layer scores the sum of a projection of the query and one of the key.

    Attributes:
        hidden: width of the hidden layer.
    """

    hidden: Width = 128

    def __post_init__(self) -> None:
        _check_width("additive", self.hidden)

    def build(self, d_q: int, d_k: int, n: int | None = None) -> DeepNetwork:
        """The module, weights Xavier-uniform, b zero."""
        return DeepNetwork("additive", d_q, d_k, self.hidden, 1)


@alignments.register(
    "deep",
    AlignmentMetadata(formula="vᵀE⁽ᴸ⁾, E⁽ˡ⁾ = tanh(Wₗ E⁽ˡ⁻¹⁾ + bₗ), E⁽¹⁾ = tanh(W₁ kᵢ + W₀ q + b₁)", source="Pavlopoulos et al. 2017"),
)
@dataclass(frozen=True)
class Deep(AlignmentSettings):
    """A network with several hidden layers scores query and key; with one layer it is additive.

    Attributes:
        layers: number of hidden layers L.
        hidden: width of each.

    Differs: without the bias of the score, since no distribution for such scores depends on a constant that is added to all of them.
    """

    layers: Annotated[int, AtMost(64)] = 2
    hidden: Width = 128

    def __post_init__(self) -> None:
        _check_width("deep", self.hidden)
        if self.layers < 1:
            raise SettingError(f"deep takes layers of at least 1; got layers={self.layers}.")

    def build(self, d_q: int, d_k: int, n: int | None = None) -> DeepNetwork:
        """The module, weights Xavier-uniform, biases zero."""
        return DeepNetwork("deep", d_q, d_k, self.hidden, self.layers)


class DeepNetwork(nn.Module):
    """`additive` and `deep` as a module: query `(B, d_q)`, keys `(B, n, d_k)` → scores `(B, n)`.

    Args:
        name: of the alignment, in messages.
        d_q: width of the query.
        d_k: width of the keys.
        hidden: width of the hidden layers.
        layers: their number.
    """

    def __init__(self, name: str, d_q: int, d_k: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.name = name
        self.query = nn.Linear(d_q, hidden, bias=False)
        self.key = nn.Linear(d_k, hidden)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 1))
        self.score = nn.Linear(hidden, 1, bias=False)
        _begin(self)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        check_shapes(self.name, query, keys, (self.query.in_features, self.key.in_features))
        hidden = (self.query(query)[:, None] + self.key(keys)).tanh()
        for layer in self.hidden:
            hidden = layer(hidden).tanh()
        scores: Tensor = self.score(hidden)[..., 0]
        return scores


@alignments.register("location-based", AlignmentMetadata(formula="wᵢᵀq", source="Luong et al. 2015a", fixed=True))
@dataclass(frozen=True)
class LocationBased(AlignmentSettings):
    """The score of a position is the product of the query with the position's own weights; the keys are not read.

    The number of positions is fixed when the module is built: it does not take maps of another size.
    """

    def build(self, d_q: int, d_k: int, n: int | None = None) -> Locations:
        """The module, weights Xavier-uniform.

        Raises:
            InputError: the number of keys is not given.
        """
        if n is None:
            raise InputError("location-based has weights for each position: give their number, align('location-based', d_q=64, n=49).")
        return Locations(d_q, d_k, n)


class Locations(nn.Module):
    """`location-based` as a module: query `(B, d_q)`, keys `(B, n, d_k)` → scores `(B, n)`.

    Args:
        d_q: width of the query.
        d_k: width of the keys.
        n: number of positions.
    """

    def __init__(self, d_q: int, d_k: int, n: int) -> None:
        super().__init__()
        self.widths = d_q, d_k
        self.linear = nn.Linear(d_q, n, bias=False)
        _begin(self)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        check_shapes("location-based", query, keys, self.widths)
        if keys.shape[1] != self.linear.out_features:
            raise InputError(
                f"location-based has weights for each of {self.linear.out_features} positions; got a map of {keys.shape[1]}. Give images "
                "of the size that it was built for, or use another alignment, which takes any size."
            )
        scores: Tensor = self.linear(query)
        return scores


@alignments.register("feature-based", AlignmentMetadata(formula="vᵀ tanh(W₁ φ₁(K)ᵢ + W₂ φ₂(K)ᵢ + b)", source="Li et al. 2019a"))
@dataclass(frozen=True)
class FeatureBased(AlignmentSettings):
    """A network with one hidden layer scores two features of the keys, the key itself and the mean of all; the query is not read.

    In ca-stream, only the last stage then has an effect, since only the query carries information from earlier stages.

    Attributes:
        hidden: width of the hidden layer.

    Differs: Chaudhari et al. leave φ₁ and φ₂ open; here φ₁(K)ᵢ = kᵢ and φ₂(K)ᵢ = Σⱼ kⱼ / n.
    """

    hidden: Width = 128

    def __post_init__(self) -> None:
        _check_width("feature-based", self.hidden)

    def build(self, d_q: int, d_k: int, n: int | None = None) -> Features:
        """The module, weights Xavier-uniform, b zero."""
        return Features(d_q, d_k, self.hidden)


class Features(nn.Module):
    """`feature-based` as a module: query `(B, d_q)`, keys `(B, n, d_k)` → scores `(B, n)`.

    Args:
        d_q: width of the query.
        d_k: width of the keys.
        hidden: width of the hidden layer.
    """

    def __init__(self, d_q: int, d_k: int, hidden: int) -> None:
        super().__init__()
        self.widths = d_q, d_k
        self.key = nn.Linear(d_k, hidden)
        self.mean = nn.Linear(d_k, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        _begin(self)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        check_shapes("feature-based", query, keys, self.widths)
        hidden = self.key(keys) + self.mean(keys.mean(dim=1))[:, None]
        scores: Tensor = self.score(hidden.tanh())[..., 0]
        return scores


def _begin(module: nn.Module) -> None:
    """Weights Xavier-uniform, biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
