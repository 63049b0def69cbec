"""Relevance of attention by LRP (`chefer`): a replica layer by layer, conservation, one map in three libraries, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import xattn
from tests import networks
from tests.explainers.test_transformers import Block, Small, of_layer, seen, small
from xattn.errors import UnsupportedError
from xattn.explainers import trace
from xattn.explainers.relevance import attention_relevance, propagated
from xattn.models import Classifier
from xattn.models.operations import Operations, operations


def through_linear(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Of x `(tokens, inputs)`, by the relevance `(tokens, outputs)`."""
    found = torch.zeros_like(x)
    for token in range(len(x)):
        for i, row in enumerate(weight):
            products = (x[token] * row).clamp(min=0)
            if products.sum() > 0:
                found[token] += products / products.sum() * relevance[token, i]
    return found


def normalised(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    both = a.sum().abs() + b.sum().abs()
    return a * a.sum().abs() / both * relevance.sum() / a.sum(), b * b.sum().abs() / both * relevance.sum() / b.sum()


def through_sum(u: Tensor, v: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    return normalised(u * relevance / (u + v), v * relevance / (u + v), relevance)


def through_product(u: Tensor, v: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    share = relevance / (u @ v)
    return normalised(u * (share @ v.mT), v * (u.mT @ share), relevance)


def through_block(block: Any, tokens: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the block's input `(17, 12)`, and of its attention `(2, 17, 17)`, by that of its output."""
    attention, mlp = block.attention, block.mlp
    q, k, v = attention.qkv(tokens).unflatten(1, (3, 2, 6)).permute(1, 2, 0, 3)
    weights = (q @ k.mT / 6**0.5).softmax(dim=-1)
    collected = (weights @ v).transpose(0, 1).flatten(1)
    middle = tokens + attention.out(collected)
    hidden = mlp[1](mlp[0](middle))
    skip, deep = through_sum(middle, mlp[3](hidden.relu()), relevance)
    deep = through_linear(mlp[0](middle), mlp[1].weight, through_linear(hidden.relu(), mlp[3].weight, deep))
    skip, deep = through_sum(tokens, attention.out(collected), skip + deep)
    deep = through_linear(collected, attention.out.weight, deep).unflatten(1, (2, 6)).transpose(0, 1)
    of_weights, of_v = through_product(weights, v, deep)
    of_q, of_k = through_product(q, k.mT, of_weights)
    joined = torch.stack([of_q, of_k.mT, of_v]).permute(2, 0, 1, 3).flatten(1)
    return skip + through_linear(tokens, attention.qkv.weight, joined), of_weights


def replica(clf: Classifier, image: Tensor, pool: str, target: int) -> list[Tensor]:
    """The relevance of each layer's attention for one image, by the formulas, layer by layer."""
    network: Any = clf.network
    with torch.no_grad():
        embedded = network.embed(clf.normalise(image[None])).flatten(2)[0].T
        inputs = [torch.cat([network.token[0], embedded])]
        for block in network.blocks:
            inputs.append(block(inputs[-1][None])[0])
        tokens = network.norm(inputs[-1])
        pooled = tokens[:1] if pool == "class" else tokens[1:].mean(dim=0, keepdim=True)
        of_pooled = through_linear(pooled, network.fc.weight, functional.one_hot(torch.tensor([target]), 4).double())
        relevance = torch.zeros_like(tokens)
        if pool == "class":
            relevance[:1] = of_pooled
        else:
            positive = tokens[1:].clamp(min=0)
            relevance[1:] = positive / positive.sum(dim=0) * of_pooled
        found = []
        for block, given in zip(reversed(network.blocks), reversed(inputs[:-1]), strict=True):
            relevance, of_weights = through_block(block, given, relevance)
            found.insert(0, of_weights)
        return found


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_chefer_is_its_formulas_layer_by_layer(pool: str) -> None:
    clf, images = small(pool), networks.pictures(2).double()
    relevances = [replica(clf, image, pool, 2) for image in images]
    for layer, found in enumerate(attention_relevance(trace(clf, images, 2))):
        expected = torch.stack([each[layer] for each in relevances])
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    _, gradients = seen(clf, images, 2)
    maps = xattn.explain(clf, images, ["chefer"], target=2).raw["chefer"]
    for number, image_relevances in enumerate(relevances):
        whole = torch.eye(17, dtype=torch.float64)
        for relevance, gradient in zip(image_relevances, gradients, strict=True):
            whole = (torch.eye(17, dtype=torch.float64) + (gradient[number] * relevance).clamp(min=0).mean(dim=0)) @ whole
        expected = of_layer(whole, pool)
        assert float((maps[number] - expected).abs().max()) < 1e-5 * float(expected.abs().max())
        assert maps[number].std() > 0


WEIGHT = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
WEIGHT[:, 0] = 1  # relevance of an output all of whose products are negative goes nowhere
CONSERVING: dict[str, Callable[[Tensor], Tensor]] = {
    "linear, its bias left out": lambda x: functional.linear(x, WEIGHT, torch.ones(5)),
    "a matrix on the left": lambda x: WEIGHT[:, :4] @ x,
    "matrix product": lambda x: x @ x.mT,
    "product of elements": lambda x: x * x.sigmoid(),
    "product, broadcast": lambda x: x * x[:, :1],
    "product with a constant": lambda x: x * torch.arange(1.0, 7),
    "sum": lambda x: x + x.flip(1),
    "sum, broadcast": lambda x: x + x[:, :1],
    "sum with a constant": lambda x: 2 + x + torch.ones(6),
    "difference": lambda x: x - 3 * x.roll(1, 2),
    "sum in place": lambda x: x.clone().add_(x.flip(1)).relu_(),
    "mean": lambda x: x.mean(dim=1),
    "softmax": lambda x: x.softmax(dim=-1),
    "layer norm": lambda x: functional.layer_norm(x, (6,), torch.ones(6), torch.ones(6)),
    "functions of elements": lambda x: functional.silu(functional.gelu(x)),
    "division by the norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "normalisation": lambda x: functional.normalize(x, dim=-1),
    "moves": lambda x: torch.cat([part.transpose(1, 2).flatten(1) for part in x.chunk(2, dim=1)], dim=1)[:, ::2],
    "copies": lambda x: x[:, None].expand(-1, 3, -1, -1),
    "half precision inside": lambda x: (x.half().float() @ WEIGHT.half().float().T).relu(),
}


def followed(forward: Operations, start: Tensor) -> Tensor:
    """The relevance of what the first operation gave."""
    first = forward.calls[0].results[0]
    assert first is not None
    (found,) = propagated(forward, start, [first], lambda tensor: tensor.sum(dim=list(range(1, tensor.dim())), keepdim=True))
    return found


@pytest.mark.parametrize("name", CONSERVING)
def test_what_an_operation_takes_has_the_relevance_of_what_it_gives(name: str) -> None:
    images = 0.1 + torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    forward = operations(lambda x: CONSERVING[name](x * 1), images)
    output = forward.values[forward.output.number]
    assert output.dtype == torch.float64
    start = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = followed(forward, start)
    assert torch.allclose(found.flatten(1).sum(dim=1), start.flatten(1).sum(dim=1), atol=1e-6)
    assert float(found.abs().sum()) > 0


class Changed(Small):
    """`Small` whose last step changes the tokens."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__("class")
        self.change = change

    def read(self, tokens: Tensor) -> Tensor:
        return super().read(self.change(tokens))


def changed(change: Callable[[Tensor], Tensor]) -> Classifier:
    return xattn.attach(networks.seeded(lambda: Changed(change)).eval(), input_size=32, resize=36, name="changed")


def halved(tokens: Tensor) -> Tensor:
    tokens = tokens + 0
    tokens[:, 0] /= 2
    return tokens


def written(tokens: Tensor) -> Tensor:
    joined = torch.zeros_like(tokens)
    joined[:, 0] = tokens[:, 0]
    return joined


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "without a rule": (lambda tokens: tokens.cumsum(dim=2), "no rule .* the operation 'cumsum'. Use generic-attention"),
    "of other inputs": (lambda tokens: tokens / (1 + tokens.abs()), "'div', of which more than one input depends on the image"),
    "at places that the image decides": (
        lambda tokens: tokens.masked_fill(tokens < 0, 0),
        "'masked_fill', of which an index or a mask depends on the image",
    ),
    "in place on a part": (halved, "a tensor that was overwritten in place, in part or as a part of another"),
    "in place on a constant": (written, "a tensor that was overwritten in place, in part or as a part of another"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_that_cannot_be_followed_is_refused_by_name(name: str) -> None:
    change, message = REFUSED[name]
    clf = changed(change)
    xattn.explain(clf, networks.pictures(1), ["generic-attention"])
    with pytest.raises(UnsupportedError, match=message):
        xattn.explain(clf, networks.pictures(1), ["chefer"])


class InPlace(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.attention(tokens).add_(tokens)
        return self.mlp[3](self.mlp[1](self.mlp[0](tokens)).relu_()).add_(tokens)


def test_what_is_computed_in_place_has_the_same_map() -> None:
    clf = small("class")
    plain = xattn.explain(clf, networks.pictures(2).double(), ["chefer"], target=2).raw["chefer"]
    for block in clf.network.blocks:  # type: ignore[union-attr]
        block.__class__ = InPlace
    assert torch.allclose(xattn.explain(clf, networks.pictures(2).double(), ["chefer"], target=2).raw["chefer"], plain, rtol=1e-9)


def test_a_value_that_is_overwritten_later_is_kept() -> None:
    def later(x: Tensor) -> Tensor:
        before = x * 1
        found = before @ WEIGHT.T
        before.add_(5)
        return found

    images = torch.rand(2, 4, 6, dtype=torch.float64)
    start = torch.rand(2, 4, 5, dtype=torch.float64)
    plain = followed(operations(lambda x: (x * 1) @ WEIGHT.T, images), start)
    assert torch.equal(followed(operations(later, images), start), plain)


SAME: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "a difference is a sum": (lambda x: x - 3 * x.roll(1, 2), lambda x: torch.add(x, x.roll(1, 2), alpha=-3)),
    "a mean has equal weights": (lambda x: x.mean(dim=2), lambda x: (x @ torch.ones(6, 1))[..., 0]),
    "QuickGELU is a GELU": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: functional.gelu(x)),
}


@pytest.mark.parametrize("name", SAME)
def test_two_ways_to_write_a_thing_have_one_relevance(name: str) -> None:
    images = 0.1 + torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    first, second = (operations(lambda x, way=way: way(x * 1), images) for way in SAME[name])  # type: ignore[misc]
    start = torch.randn(first.values[first.output.number].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.allclose(followed(first, start), followed(second, start), atol=1e-7)
