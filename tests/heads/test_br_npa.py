"""BR-NPA against its algorithm written out, its known answers, and the features that break careless code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xattn.errors import InputError, SettingError
from xattn.heads import BRNPA, BRNPAHead, heads, representatives


def written_out(features: Tensor, n: int, *, suppression: str = "cosine", rectify: bool = True) -> tuple[Tensor, Tensor]:
    """Algorithm 1, an image and a position at a time, in float64."""
    height, width = features.shape[2:]
    all_vectors, all_maps = [], []
    for image in features.double():
        f = [image[:, y, x] for y in range(height) for x in range(width)]
        a = [float(v.norm()) for v in f]
        vectors, maps = [], []
        for _ in range(n):
            m = max(range(len(f)), key=lambda i: a[i])
            s = [float(v @ f[m]) / max(float(v.norm()) * float(f[m].norm()), 1e-12) for v in f]
            if rectify:
                s = [max(value, 0.0) for value in s]
            w = [value / sum(s) for value in s] if sum(s) else [1 / len(f)] * len(f)
            vectors.append(sum(weight * v for weight, v in zip(w, f, strict=True)))
            maps.append(torch.tensor(w, dtype=torch.float64).view(height, width))
            lowering = s if suppression == "cosine" else w
            a = [max(1 - value, 0.0) * level for value, level in zip(lowering, a, strict=True)]
        all_vectors.append(torch.stack(vectors))
        all_maps.append(torch.stack(maps))
    return torch.stack(all_vectors), torch.stack(all_maps)


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("suppression", ["cosine", "weight"])
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_it_is_algorithm_1(suppression: Any, rectify: bool, relu: bool) -> None:
    given = features(3, 6, 4, 5)
    given = given.relu() if relu else given + 0.5
    vectors, maps = representatives(given, 4, suppression=suppression, rectify=rectify)
    wanted_vectors, wanted_maps = written_out(given, 4, suppression=suppression, rectify=rectify)
    assert torch.allclose(maps, wanted_maps, atol=1e-12)
    assert torch.allclose(vectors, wanted_vectors, atol=1e-12)


def two_clusters() -> Tensor:
    """Six positions of norm 2 on one axis, three of norm 1.5 on another."""
    given = torch.zeros(1, 4, 3, 3, dtype=torch.float64)
    given[0, 0].view(-1)[:6] = 2.0
    given[0, 1].view(-1)[6:] = 1.5
    return given


def test_two_orthogonal_clusters_give_the_stronger_then_the_other() -> None:  # known answer 8
    vectors, maps = representatives(two_clusters(), 2)
    first, second = maps[0].flatten(1)
    assert torch.allclose(first, torch.tensor([1 / 6] * 6 + [0.0] * 3, dtype=torch.float64))
    assert torch.allclose(second, torch.tensor([0.0] * 6 + [1 / 3] * 3, dtype=torch.float64))
    assert torch.allclose(vectors[0, :, :2], torch.tensor([[2.0, 0.0], [0.0, 1.5]], dtype=torch.float64))


def test_suppression_by_weight_takes_the_first_cluster_twice() -> None:  # known answer 8: 2 · (1 − 1/6) > 1.5
    _, maps = representatives(two_clusters(), 2, suppression="weight")
    assert torch.equal(maps[0, 0], maps[0, 1])


@pytest.mark.parametrize("settings", [{}, {"suppression": "weight"}, {"refine": False}, {"rectify": False}])
def test_gradients_are_those_of_differences(settings: dict[str, Any]) -> None:
    given = features(2, 5, 3, 3).abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: representatives(f, 3, **settings), (given,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["zero", "constant", "large", "one cell"])
def test_all_zero_constant_large_and_lonely_features_stay_finite(kind: str, dtype: torch.dtype) -> None:
    given = torch.zeros(2, 16, 4, 4, dtype=dtype)
    if kind == "constant":
        given += 3
    elif kind == "large":
        given += torch.rand(given.shape, generator=torch.Generator().manual_seed(0)).to(dtype) * 2000  # its square leaves float16
    elif kind == "one cell":
        given[:, :, 1, 2] = 5
    given.requires_grad_()
    vectors, maps = representatives(given, 3)
    (vectors.sum() + (maps**2).sum()).backward()
    assert given.grad is not None
    for found in (vectors, maps, given.grad):
        assert torch.isfinite(found).all()
    assert torch.allclose(maps.sum(dim=(2, 3)), torch.ones(2, 3, dtype=maps.dtype))
    if kind in ("zero", "constant"):
        assert torch.allclose(maps, torch.full_like(maps, 1 / 16))
    if kind == "zero":
        assert not vectors.any()


def test_random_selection_is_fresh_at_each_rank_and_seeded_by_the_image() -> None:
    given = features(4, 6, 7, 7).abs()
    seeds = [3, 1, 4, 1]
    vectors, _ = representatives(given, 3, selection="random", refine=False, seeds=seeds)
    again, _ = representatives(given[2:3], 3, selection="random", refine=False, seeds=seeds[2:3])
    assert torch.equal(vectors[2:3], again)
    assert len({tuple(vector.tolist()) for vector in vectors[0]}) == 3
    flat = given[0].flatten(1).T
    assert all(any(torch.equal(vector, cell) for cell in flat) for vector in vectors[0])


def test_a_vector_that_is_not_refined_is_the_strongest_and_maps_stay() -> None:
    given = features(2, 6, 4, 4).abs()
    vectors, maps = representatives(given, 2, refine=False)
    assert torch.equal(maps, representatives(given, 2)[1])
    strongest = given.flatten(2).norm(dim=1).argmax(dim=1)
    assert torch.equal(vectors[:, 0], given.flatten(2)[torch.arange(2), :, strongest])


def test_nothing_of_the_size_of_all_maps_times_the_features_is_made() -> None:
    n, channels, side = 8, 32, 6
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for made in out if isinstance(out, (tuple, list)) else (out,):
                largest = max(largest, made.numel() if isinstance(made, Tensor) else 0)
            return out

    given = torch.rand(1, channels, side, side, requires_grad=True)
    with Watch():
        vectors, maps = representatives(given, n)
        (vectors.sum() + maps.square().sum()).backward()
    assert largest <= max(channels * side * side, n * side * side, n * channels)


def test_more_vectors_than_positions_and_what_is_no_map_are_refused() -> None:
    with pytest.raises(InputError, match="5 vectors cannot be told apart in a map of 2 × 2"):
        representatives(torch.rand(1, 3, 2, 2), 5)
    with pytest.raises(InputError, match="takes features"):
        representatives(torch.rand(3, 4))
    with pytest.raises(SettingError, match="n of at least 1"):
        BRNPA(n=0)


def test_a_grafted_head_begins_at_the_mean_of_its_logits() -> None:
    linear = nn.Linear(16, 5).double()
    head = BRNPAHead(16, 5).double()
    head.graft(linear)
    given = features(3, 16, 4, 4).relu()
    vectors, _ = representatives(given, 3)
    assert torch.allclose(head(given), linear(vectors).mean(dim=1), atol=1e-12)


def test_rank_probes_look_at_some_ranks_and_send_no_gradient_back() -> None:
    head = BRNPAHead(6, 4, BRNPA(rank_probes=True))
    given = torch.rand(2, 6, 4, 4, requires_grad=True)
    attended = head.attend(given)
    assert {name: logits.shape for name, logits in attended.probes.items()} == {
        f"ranks_{ranks}": (2, 4) for ranks in ("12", "23", "1", "2", "3")
    }
    vectors, _ = representatives(given, 3)
    assert torch.allclose(attended.probes["ranks_23"], head.probes["ranks_23"](vectors[:, 1:].flatten(1)))
    sum(logits.sum() for logits in attended.probes.values()).backward()
    assert given.grad is None
    assert head.probes["ranks_1"].weight.grad is not None


def test_its_saliency_is_the_mean_map_times_the_norm() -> None:
    given = features(2, 6, 4, 4).relu()
    head = BRNPAHead(6, 4).double()
    maps = head.attend(given).attention[""]
    assert torch.allclose(head.saliency(given, maps), maps.mean(dim=1) * given.norm(dim=1))


def test_settings_are_written_as_users_write_them() -> None:
    part = heads.create("br-npa:n=2,suppression=weight,refine=false")
    assert part.spec == "br-npa:n=2,suppression=weight,refine=false"
    assert part.instance == BRNPA(n=2, suppression="weight", refine=False)
    with pytest.raises(SettingError, match=r"suppression=cosine\|weight; got 'cos'"):
        heads.create("br-npa:suppression=cos")
