"""Attention poolings against their formulas, written out slowly, and against timm's."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.errors import SettingError, UnsupportedError
from xattn.heads import (
    MAP,
    AbMILP,
    AbMILPHead,
    ClassifierHead,
    EfficientProbing,
    EfficientProbingHead,
    Head,
    MAPHead,
    PoolingHead,
    SimPool,
    SimPoolHead,
)

POOLINGS = {"abmilp": 1, "ep:queries=4": 4, "map:heads=4": 4, "simpool": 1}


def given(channels: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((2, channels, 3, 4), generator=torch.Generator().manual_seed(0), dtype=dtype)


def softmax(scores: list[Tensor]) -> Tensor:
    powers = torch.stack([score.exp() for score in scores])
    return powers / powers.sum()


@torch.no_grad()
def scattered(head: nn.Module) -> nn.Module:
    """The head with weights that make attention far from uniform, in eval mode and float64."""
    generator = torch.Generator().manual_seed(1)
    for parameter in head.double().parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return head.eval()


@pytest.mark.parametrize("gamma", [None, 1.25, 2.0])
def test_simpool_is_algorithm_1(gamma: float | None) -> None:
    head, features = scattered(SimPoolHead(12, SimPool(gamma=gamma))), given()
    found = head.attend(features, "here")
    for number, image in enumerate(features.flatten(2)):
        rows = image.T
        normed = [(x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt() * head.norm.weight + head.norm.bias for x in rows]
        query = head.query.weight @ rows.mean(dim=0)
        alpha = softmax([query @ (head.key.weight @ x) / math.sqrt(12) for x in normed])
        low = torch.stack(normed).min()
        expected = sum(weight * (x if gamma is None else (x - low + 1e-6) ** gamma) for weight, x in zip(alpha, normed, strict=True))
        assert torch.allclose(found.output[number], expected if gamma is None else expected ** (1 / gamma))
        assert torch.allclose(found.attention["here"][number, 0].flatten(), alpha)


@pytest.mark.parametrize(("queries", "d_out", "width"), [(4, 1, 12), (2, 3, 4), (5, 1, 10), (32, 1, 32)])
def test_each_query_of_ep_weights_its_own_slice_of_the_values(queries: int, d_out: int, width: int) -> None:
    head, features = scattered(EfficientProbingHead(12, 5, EfficientProbing(queries=queries, d_out=d_out))), given()
    assert head.value.out_features == width
    found, each = head.attend(features, "here"), width // queries
    for number, image in enumerate(features.flatten(2)):
        vector = []
        for m, query in enumerate(head.queries):
            alpha = softmax([query @ x / math.sqrt(12) for x in image.T])
            assert torch.allclose(found.attention["here"][number, m].flatten(), alpha)
            values = head.value.weight[m * each : (m + 1) * each] @ image
            vector.append(values @ alpha)
        assert torch.allclose(found.output[number], head.linear(torch.cat(vector) / math.sqrt(1 + 1e-6)))


def test_parameters_of_ep_are_the_queries_one_projection_and_the_classifier() -> None:
    head = EfficientProbingHead(768, 1000)
    assert sum(p.numel() for p in head.parameters()) == 32 * 768 + 768 * 768 + 769 * 1000


@pytest.mark.parametrize("gated", [False, True])
def test_abmilp_is_equations_7_to_9(gated: bool) -> None:
    head, features = scattered(AbMILPHead(12, 5, AbMILP(hidden=6, gated=gated))), given()
    found = head.attend(features, "here")
    for number, image in enumerate(features.flatten(2)):
        scores = []
        for x in image.T:
            hidden = torch.tanh(head.hidden(x)) * (torch.sigmoid(head.gate(x)) if gated else 1)
            scores.append(head.score(hidden)[0])
        alpha = softmax(scores)
        assert torch.allclose(found.scores["here"][number, 0].flatten(), torch.stack(scores))
        assert torch.allclose(found.output[number], head.linear(image @ alpha))
    assert head.head_maps(features, found.attention["here"]) is None


@pytest.mark.parametrize("heads", [1, 4])
def test_map_is_timm_s_attention_pool_of_siglip(heads: int) -> None:
    theirs = scattered(AttentionPoolLatent(16, num_heads=heads, mlp_ratio=2, norm_layer=partial(nn.LayerNorm, eps=1e-6)))
    head = MAPHead(16, 5, MAP(heads=heads, mlp_ratio=2)).double().eval()
    key_value = theirs.kv.state_dict()
    weights = {
        "latent": theirs.latent[0],
        **{f"query.{name}": value for name, value in theirs.q.state_dict().items()},
        **{f"key.{name}": value.chunk(2)[0] for name, value in key_value.items()},
        **{f"value.{name}": value.chunk(2)[1] for name, value in key_value.items()},
        **{f"project.{name}": value for name, value in theirs.proj.state_dict().items()},
        **{f"norm.{name}": value for name, value in theirs.norm.state_dict().items()},
        **{name.replace("fc1", "0").replace("fc2", "2"): value for name, value in theirs.state_dict().items() if "mlp" in name},
    }
    head.load_state_dict(weights, strict=False)
    features = given(16)
    expected = theirs(features.flatten(2).transpose(1, 2))
    assert torch.allclose(head(features), head.linear(expected))
    attention = head.attend(features, "here").attention["here"]
    query = theirs.q(theirs.latent[0, 0]).view(heads, -1)
    keys = theirs.kv(features.flatten(2).transpose(1, 2))[..., :16].unflatten(2, (heads, -1))
    by_hand = (torch.einsum("md,bpmd->bmp", query, keys) / math.sqrt(16 / heads)).softmax(dim=2)
    assert torch.allclose(attention.flatten(2), by_hand)


def made(head: str, **options: object) -> xattn.Classifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xattn.attach(networks.small(), head=head, input_size=32, resize=36, **options)


@pytest.mark.parametrize("spec", POOLINGS)
def test_attention_sums_to_1_and_its_mean_is_the_saliency(spec: str, images: Tensor) -> None:
    clf = made(spec)
    attended = clf.run(images)
    maps, scores = attended.attention["3"], attended.scores["3"]
    assert maps.shape == scores.shape == (len(images), POOLINGS[spec], 8, 8)
    assert torch.allclose(maps.sum(dim=(2, 3)), torch.ones(maps.shape[:2]))
    assert torch.allclose(scores.flatten(2).softmax(dim=2), maps.flatten(2))
    shown = xattn.explain(clf, images, ["raw-attention"], untrained=True)
    assert torch.allclose(shown.raw["raw-attention"], maps.mean(dim=1), atol=1e-6)
    assert (shown.ranked is None) == (POOLINGS[spec] == 1)
    assert shown.ranked is None or shown.ranked.shape == maps.shape


@pytest.mark.parametrize("spec", POOLINGS)
def test_an_image_s_output_does_not_depend_on_the_others(spec: str, images: Tensor) -> None:
    clf = made(spec)
    together, alone = clf.predict(images), torch.cat([clf.predict(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    "head", [SimPoolHead(16), AbMILPHead(16, 4), EfficientProbingHead(16, 4), MAPHead(16, 4)], ids=lambda head: type(head).__name__
)
def test_half_precision_does_not_overflow_over_a_large_map(head: Head) -> None:
    assert isinstance(head, (ClassifierHead, PoolingHead))
    features = 60 * torch.rand((1, 16, 56, 56), generator=torch.Generator().manual_seed(0)).half()
    assert torch.isfinite(head.half().eval()(features)).all()


def test_wrong_settings_say_what_is_needed() -> None:
    for settings, message in (
        (lambda: SimPool(gamma=0), "simpool takes a gamma above 0, or none; got gamma=0"),
        (lambda: EfficientProbing(queries=0), "ep takes queries and d_out of at least 1; got queries=0"),
        (lambda: AbMILP(hidden=0), "abmilp takes a hidden width of at least 1; got hidden=0"),
        (lambda: MAP(heads=0), "map takes heads of at least 1"),
    ):
        with pytest.raises(SettingError, match=message):
            settings()
    with pytest.raises(SettingError, match=r"3 of Sequential has 16, which is not a multiple of heads=12. .* as map:heads=16"):
        made("map:heads=12")
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    with pytest.raises(UnsupportedError, match="simpool replaces the pooled vector"):
        xattn.attach(layers, head="simpool", input_size=32, resize=36)
