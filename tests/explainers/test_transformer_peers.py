"""Methods for transformers: one network in three libraries, and the same inputs through txv 0.0.2, torch-cam 0.5 and legrad 1.1.

legrad needs open_clip 2.23 and so an environment of its own: `pip install -e . legrad_torch pytest`, then
`pytest -o addopts= -o filterwarnings= tests/explainers/test_transformer_peers.py -k release`.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.explainers import trace
from xattn.explainers.relevance import attention_relevance
from xattn.models import Classifier

TARGETS = [4, 0, 2]


def attached(network: nn.Module, name: str) -> Classifier:
    return xattn.attach(network.double().eval(), input_size=32, resize=36, name=name)


def timm_vit(heads: int = 2) -> Any:
    timm = pytest.importorskip("timm")
    network = networks.seeded(
        lambda: timm.models.VisionTransformer(
            32, 8, embed_dim=24, depth=3, num_heads=heads, num_classes=5, norm_layer=partial(nn.LayerNorm, eps=1e-6)
        )
    )
    return networks.seeded(lambda: _spread(network))


def _spread(network: nn.Module) -> nn.Module:
    """Weights large enough that attention and scores differ from place to place."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def torchvision_vit(heads: int = 2) -> Any:
    """The same network."""
    network = torchvision.models.VisionTransformer(32, 8, 3, heads, 24, 96, num_classes=5)
    class_token, position, weight, bias, *rest = timm_vit(heads).state_dict().values()
    network.load_state_dict(dict(zip(network.state_dict(), [class_token, weight, bias, position, *rest], strict=True)))
    return network


class Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images).logits
        return found


def transformers_vit() -> nn.Module:
    """The same network."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96, image_size=32, patch_size=8, num_labels=5
    )
    config.layer_norm_eps = 1e-6
    network = transformers.ViTForImageClassification(config)
    given = timm_vit().state_dict()
    found: list[Tensor] = []
    for layer in range(3):
        block = {key.split(".", 2)[2]: value for key, value in given.items() if key.startswith(f"blocks.{layer}.")}
        for weight, bias in zip(block["attn.qkv.weight"].chunk(3), block["attn.qkv.bias"].chunk(3), strict=True):
            found += [weight, bias]
        found += [block[f"{name}.{kind}"] for name in ("attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")]
    values = list(given.values())
    network.load_state_dict(dict(zip(network.state_dict(), [*values[:4], *found, *values[-4:]], strict=True)))
    return Logits(network)


OF_LAYERS = ("rollout", "grad-rollout", "generic-attention", "chefer", "legrad")


def test_a_network_has_the_same_maps_in_timm_torchvision_and_transformers() -> None:
    images = networks.pictures(2)
    made = {"timm": timm_vit(), "torchvision": torchvision_vit(), "transformers": transformers_vit()}
    found = {}
    for name, network in made.items():
        clf = xattn.attach(network.eval(), input_size=32, resize=36, name=name)
        found[name] = xattn.explain(clf, images, OF_LAYERS, target=[4, 0])
    for name in ("torchvision", "transformers"):
        assert torch.allclose(found[name].logits, found["timm"].logits, atol=1e-4)
        for method in OF_LAYERS:
            expected = found["timm"].raw[method]
            assert float((found[name].raw[method] - expected).abs().max()) < 1e-4 * float(expected.abs().max()), (name, method)
            assert expected.std() > 0


def txv_vit(kind: str, heads: int) -> Any:
    """The same network, with txv's layers: "lrp_models" or "models"."""
    models = pytest.importorskip(f"txv.{kind}")
    norm = pytest.importorskip("txv.lrp_modules").LayerNorm if kind == "lrp_models" else nn.LayerNorm
    make = models.LRPVisionTransformer if kind == "lrp_models" else models.VisionTransformer
    network = make(32, 8, num_classes=5, embed_dim=24, depth=3, num_heads=heads, qkv_bias=True, norm_layer=partial(norm, eps=1e-6))
    given = timm_vit(heads).state_dict()
    network.load_state_dict({key: given[key] for key in network.state_dict()})
    return network.eval()


def through_block(block: Any, relevance: Tensor, alpha: float, **_: Any) -> Tensor:
    """By txv's rules. Its own block takes the relevance of a skip connection for that of the layers beside it."""
    skip, deep = block.add2.relprop(relevance, alpha)
    relevance = block.clone2.relprop((skip, block.norm2.relprop(block.mlp.relprop(deep, alpha), alpha)), alpha)
    skip, deep = block.add1.relprop(relevance, alpha)
    found: Tensor = block.clone1.relprop((skip, block.norm1.relprop(block.attn.relprop(deep, alpha), alpha)), alpha)
    return found


def test_relevance_of_attention_is_that_of_txv_s_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    clf, network = attached(timm_vit(), "vit"), txv_vit("lrp_models", 2).double()
    monkeypatch.setattr(type(network.blocks[0]), "relprop", through_block)
    explainer = pytest.importorskip("txv.exp").BeyondAttention(network)
    for image, target in zip(networks.pictures(2).double(), TARGETS, strict=False):  # one by one: its sums are taken over the batch
        explainer.explain(clf.normalise(image[None]).contiguous(), index=target)
        for found, block in zip(attention_relevance(trace(clf, image[None], target)), network.blocks, strict=True):
            expected = block.attn.get_attn_cam().detach()
            assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    # The map that it makes of them is another: it divides the rows of I + Ā by their sums, which the paper's Eq. 13 does not.


def test_rollout_and_generic_attention_are_those_of_txv() -> None:
    network, explainers = txv_vit("models", 1), pytest.importorskip("txv.exp")
    clf = xattn.attach(timm_vit(1).eval(), input_size=32, resize=36, name="vit")
    for image, target in zip(networks.pictures(2), TARGETS, strict=False):
        maps = xattn.explain(clf, image[None], ["rollout", "generic-attention"], target=target).raw
        given = clf.normalise(image[None]).contiguous()
        rollout = explainers.AttentionRollout(network).explain(given).detach()
        assert torch.allclose(maps["rollout"].flatten(1), rollout, rtol=1e-4)
        # With one head: it averages ∇A ⊙ A over the heads before the rectifier, the paper's Eq. 5 after it.
        generic = explainers.GenericAttention(network).explain(given, index=target).detach()
        assert torch.allclose(maps["generic-attention"].flatten(1), generic, rtol=1e-3, atol=1e-6)


def test_legrad_is_that_of_torch_cam() -> None:
    methods = pytest.importorskip("torchcam.methods")
    if not hasattr(methods, "LeGrad"):
        pytest.skip("torch-cam has LeGrad since 0.5")
    clf = attached(torchvision_vit(), "vit")
    network, images = clf.network, networks.pictures(3).double()

    def of_class_token(tokens: Tensor) -> Tensor:
        """What this network classifies; by default it projects the mean of all tokens, as the method's release does for CLIP."""
        logits: Tensor = network.heads(network.encoder.ln(tokens)[:, 0])  # type: ignore[operator, union-attr]
        return logits

    with methods.LeGrad(network, list(network.encoder.layers), score_projection=of_class_token) as extractor:  # type: ignore[union-attr, arg-type]
        network(clf.normalise(images).contiguous())
        (theirs,) = extractor(TARGETS, normalized=False)
    ours = xattn.explain(clf, images, ["legrad"], target=TARGETS).raw["legrad"]
    assert float((ours - theirs.detach()).abs().max()) < 1e-5 * float(ours.max())


def test_legrad_is_that_of_its_release() -> None:
    legrad = pytest.importorskip("legrad")
    from open_clip.transformer import VisionTransformer

    class MeanOfAllTokens(VisionTransformer):  # type: ignore[misc]
        """Pooled as the release pools every layer, whatever the network does."""

        def _global_pool(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return tokens.mean(dim=1), tokens

    class TwoTowers(nn.Module):
        def __init__(self, visual: nn.Module, texts: Tensor) -> None:
            super().__init__()
            self.visual = visual
            self.texts = nn.Parameter(texts)

        def encode_image(self, images: Tensor) -> Tensor:
            found: Tensor = self.visual(images)
            return found

        def forward(self, images: Tensor) -> Tensor:
            return 10 * nn.functional.normalize(self.encode_image(images), dim=-1) @ self.texts.T

    def made() -> TwoTowers:
        visual = _spread(MeanOfAllTokens(32, 8, 24, 3, 2, 4.0, output_dim=12, final_ln_after_pool=True))
        return TwoTowers(visual, nn.functional.normalize(torch.randn(5, 12), dim=-1)).double().eval()

    network = networks.seeded(made)
    clf, images = attached(deepcopy(network), "clip"), networks.pictures(3).double()
    theirs = legrad.LeWrapper(network, layer_index=0)
    ours = xattn.explain(clf, images, ["legrad"], target=TARGETS).raw["legrad"]
    for image, target, found in zip(images, TARGETS, ours, strict=True):  # one by one: it normalises over the batch
        expected = theirs.compute_legrad(network.texts[target][None], clf.normalise(image[None]).contiguous())[0, 0]
        resized = nn.functional.interpolate(found[None, None], scale_factor=8, mode="bilinear")[0, 0]
        resized = (resized - resized.min()) / (resized.max() - resized.min())
        assert torch.allclose(resized, expected.detach(), atol=1e-10)
