"""`lxt:NAME` against the same rules as a gradient times the input, and against lxt's own patches where they can be imported."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import xattn
from tests import networks
from tests.explainers.test_transformer_peers import attached, timm_vit, torchvision_vit, transformers_vit
from xattn.errors import MissingPackageError, NameUnknownError, SettingError, UnsupportedError
from xattn.explainers import methods, trace

pytest.importorskip("lxt")


def raw(name: str, classifier: Any, images: Tensor, target: int) -> Tensor:
    found: Tensor = methods.create(name).instance(trace(classifier, images, target=target))
    return found


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def gradient_times_input(network: Any, normalised: Tensor, target: int, constant: bool) -> Tensor:
    """Of timm's ViT, with a gradient in which deviations are constants, f(x) is f(x)/x times x, and a product gives each factor a half."""

    def norm(module: Any, tokens: Tensor) -> Tensor:
        centred = tokens - tokens.mean(dim=-1, keepdim=True)
        deviation = (centred.square().mean(dim=-1, keepdim=True) + module.eps).sqrt().detach()
        found: Tensor = centred / deviation * module.weight + module.bias
        return found

    def half(product: Tensor) -> Tensor:
        return product / 2 + (product / 2).detach()

    image = normalised.clone().requires_grad_()
    tokens = network.patch_embed(image)
    tokens = torch.cat([network.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + network.pos_embed
    for block in network.blocks:
        batch, count, width = tokens.shape
        heads = block.attn.num_heads
        projected = block.attn.qkv(norm(block.norm1, tokens)).reshape(batch, count, 3, heads, width // heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        attention = (half(query @ key.mT) / math.sqrt(width // heads)).softmax(dim=-1)
        attended = attention.detach() @ value if constant else half(attention @ value)
        tokens = tokens + block.attn.proj(attended.transpose(1, 2).flatten(2))
        hidden = block.mlp.fc1(norm(block.norm2, tokens))
        tokens = tokens + block.mlp.fc2(hidden * (functional.gelu(hidden) / hidden).detach())
    score = network.head(norm(network.norm, tokens)[:, 0])[:, target]
    (gradient,) = torch.autograd.grad(score.sum(), image)
    return (gradient * normalised).sum(dim=1)


@pytest.mark.parametrize(("name", "constant"), [("lxt:AttnLRP", False), ("lxt:CP-LRP", True)])
def test_it_is_the_gradient_by_the_rules_times_the_input(name: str, constant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = timm_vit(), networks.pictures(2).double()
    clf = attached(network, "vit")
    expected = gradient_times_input(network, clf.normalise(images), 4, constant)
    assert apart(raw(name, clf, images, 4), expected) < 0.01  # lxt adds 1e-6 or 1e-8 to what it divides by, whatever its sign
    for module in ("functional", "rules"):
        monkeypatch.setattr(f"lxt.explicit.{module}._stabilize", lambda divisor, *_, **__: divisor)
    assert apart(raw(name, clf, images, 4), expected) < 1e-9
    assert apart(expected, gradient_times_input(network, clf.normalise(images), 4, not constant)) > 0.05


@pytest.mark.parametrize("make", [torchvision_vit, transformers_vit])
def test_one_network_has_one_map(make: Any) -> None:
    images = networks.pictures(1).double()
    expected = raw("lxt:AttnLRP", attached(timm_vit(), "timm"), images, 4)
    found = raw("lxt:AttnLRP", attached(make(), "other"), images, 4)
    assert apart(found, expected) < 1e-6


def test_it_leaves_torch_and_the_network_as_they_were() -> None:
    network, images = timm_vit(), networks.pictures(1).double()
    clf = attached(network, "vit")
    before = clf.logits(clf.normalise(images))
    raw("lxt:AttnLRP", clf, images, 4)
    assert torch.equal(clf.logits(clf.normalise(images)), before)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_what_has_no_rule_is_refused_by_its_name() -> None:
    clf = xattn.attach(networks.small(), input_size=32, resize=36, name="small")
    assert float(raw("lxt:AttnLRP", clf, networks.pictures(1), 1).abs().max()) > 0  # convolutions, batch norm, mean: rules for each
    timm = pytest.importorskip("timm")
    mixed = networks.seeded(lambda: timm.create_model("resnet10t", num_classes=5))
    with pytest.raises(UnsupportedError, match=r"lxt:AttnLRP: lxt has no rule for the function 'max_pool2d'\. Use chefer"):
        raw("lxt:AttnLRP", xattn.attach(mixed, input_size=32, resize=36, name="r"), networks.pictures(1), 1)


def test_names_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(methods.adapters["lxt"].names()) == {"AttnLRP", "CP-LRP"}
    with pytest.raises(NameUnknownError, match="AttnLRP"):
        methods.create("lxt:AttnLR")
    with pytest.raises(SettingError, match="has no settings"):
        methods.create("lxt:AttnLRP:gamma=1")
    monkeypatch.setattr("xattn.explainers.adapters.lxt.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"xattn\[lxt\]"):
        methods.create("lxt:AttnLRP")


OWN_PATCHES = """
import torch
from lxt.efficient import monkey_patch  # changes torch's classes for good: in a process of its own
from tests import networks
from tests.explainers.test_lxt import raw
from tests.explainers.test_transformer_peers import attached, torchvision_vit
from torchvision.models import vision_transformer

network, images = torchvision_vit(), networks.pictures(2).double()
clf = attached(network, "vit")
found = raw("lxt:CP-LRP", clf, images, 4)
monkey_patch(vision_transformer)
image = clf.normalise(images).requires_grad_()
(gradient,) = torch.autograd.grad(network(image)[:, 4].sum(), image)
expected = (gradient * image).sum(dim=1)
print(float((found - expected).norm() / expected.norm()))
"""


def test_it_is_what_lxt_s_own_patches_give() -> None:
    transformers = pytest.importorskip("transformers")
    if int(transformers.__version__.split(".")[0]) >= 5:
        pytest.skip("lxt.efficient imports names that transformers 5 no longer has")
    ran = subprocess.run([sys.executable, "-c", OWN_PATCHES], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 0.01
