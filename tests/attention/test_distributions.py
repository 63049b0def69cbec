"""Distributions against slow definitions, and what holds of each."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from xattn.attention import attend, check_names, distribution, distributions
from xattn.errors import MissingPackageError, SettingError

OF_SCORES = ["softmax", "sparsemax", "entmax15"]


def scores(rows: int = 20, n: int = 9, scale: float = 1.0) -> Tensor:
    return scale * torch.randn((rows, n), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def threshold(score: Tensor, weights) -> Tensor:  # type: ignore[no-untyped-def]
    """The weights of the threshold τ at which they have the sum 1, by bisection."""
    low, high = score.min() - 10, score.max() + 10
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if weights(score, middle).sum() > 1 else (low, middle)
    return weights(score, low)


def test_sparsemax_is_the_projection_onto_the_simplex() -> None:
    """No point of the simplex is nearer to the scores than it: of many random ones, corners included, and by its threshold."""
    given = scores()
    found = distribution("sparsemax")(given)
    torch.manual_seed(0)
    others = torch.cat([torch.distributions.Dirichlet(torch.full((9,), 0.3, dtype=torch.float64)).sample((2000,)), torch.eye(9).double()])
    for score, weight in zip(given, found, strict=True):
        assert (score - weight).square().sum() <= (score - others).square().sum(dim=1).min()
        assert torch.allclose(weight, threshold(score, lambda s, t: (s - t).clamp(min=0)), atol=1e-12)


def test_entmax15_is_its_threshold_and_maximises_its_entropy() -> None:
    given = scores()
    found = distribution("entmax15")(given)

    def objective(score: Tensor, weight: Tensor) -> Tensor:
        return (weight * score).sum(dim=-1) + (weight - weight**1.5).sum(dim=-1) / (1.5 * 0.5)

    torch.manual_seed(0)
    others = torch.distributions.Dirichlet(torch.full((9,), 0.5, dtype=torch.float64)).sample((2000,))
    for score, weight in zip(given, found, strict=True):
        assert objective(score, weight) >= objective(score, others).max()
        assert torch.allclose(weight, threshold(score, lambda s, t: (s / 2 - t).clamp(min=0) ** 2), atol=1e-12)


def test_entmax15_is_between_softmax_and_sparsemax() -> None:
    given = scores(200)
    soft, between, sparse = (distribution(name)(given) for name in ("softmax", "entmax15", "sparsemax"))
    zeros = [int((weights == 0).sum()) for weights in (soft, between, sparse)]
    assert zeros[0] == 0 < zeros[1] < zeros[2]
    assert soft.amax(dim=1).mean() < between.amax(dim=1).mean() < sparse.amax(dim=1).mean()


@pytest.mark.parametrize("name", OF_SCORES)
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 100.0])
def test_weights_are_positive_with_the_sum_1_and_do_not_see_what_all_scores_have_in_common(name: str, scale: float) -> None:
    given = scores(4, 3136, scale)
    found = distribution(name)(given)
    assert (found >= 0).all()
    assert torch.allclose(found.sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(distribution(name)(given + 7), found, atol=1e-9)
    single = distribution(name)(given.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), found, atol=2e-5)
    if scale == 0:
        assert torch.allclose(found, torch.full_like(found, 1 / 3136))


@pytest.mark.parametrize("name", OF_SCORES)
def test_gradients_are_those_of_differences(name: str) -> None:
    assert torch.autograd.gradcheck(distribution(name), scores(3, 5).requires_grad_())


@pytest.mark.parametrize("name", OF_SCORES)
def test_half_precision_and_autocast_give_weights_in_float32(name: str) -> None:
    given = scores(3, 5).bfloat16()
    expected = distribution(name)(given.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distribution(name)(given), expected)
    assert torch.equal(distribution(name)(given), expected)


@pytest.mark.parametrize("name", OF_SCORES)
def test_scores_that_are_no_numbers_give_weights_that_are_none_in_their_row_alone(name: str) -> None:
    found = distribution(name)(torch.tensor([[1.0, float("nan")], [1.0, 3.0]]))
    assert found[0].isnan().all()
    assert torch.allclose(found[1].sum(), torch.tensor(1.0))


def test_the_sum_of_a_kernel_that_is_0_everywhere_gives_equal_weights() -> None:
    values = torch.tensor([[0.0, 0.0], [1.0, 3.0]], requires_grad=True)
    found = distribution("sum")(values)
    assert torch.equal(found, torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), values)
    assert torch.allclose(gradient, torch.tensor([[0.0, 0.0], [3 / 16, -1 / 16]]))


def test_without_its_package_a_distribution_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "entmax" else find(name, *rest))
    for ask in (lambda: distribution("sparsemax"), lambda: check_names("dot", "entmax15")):
        with pytest.raises(MissingPackageError, match=r"needs the package 'entmax', which is not installed: pip install 'xattn\[sparse\]'"):
            ask()
    distribution("softmax")


def test_a_distribution_belongs_to_a_kernel_or_to_scores() -> None:
    for name, entry in distributions.entries.items():
        fits, other = ("generalised-kernel", "dot") if entry.metadata.kernel else ("dot", "generalised-kernel")
        check_names(fits, name)
        with pytest.raises(SettingError, match=f"distribution={name} does not fit .*, as align={other} gives them"):
            check_names(other, name)


def test_attention_with_sparse_weights_leaves_out_what_weighs_nothing() -> None:
    keys = torch.tensor([[[0.0], [5.0], [5.5]]])
    values = torch.tensor([[[1e9], [1.0], [2.0]]])
    found = attend(torch.tensor([[1.0]]), keys, values, "dot", "sparsemax")
    assert torch.allclose(found.weights, torch.tensor([[0.0, 0.25, 0.75]]))
    assert torch.allclose(found.output, torch.tensor([[1.75]]))
