"""Methods that follow the attention of a transformer's layers: slow replicas, and what holds of every method on tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import xattn
from tests import networks
from tests.explainers.test_contract import same, state
from tests.own_methods import OF_LAYERS, OWN
from xattn.errors import SettingError, UnsupportedError
from xattn.models import Classifier

METHODS = [*OF_LAYERS, "attention:layer=0,head=1", *(spec for spec in OWN if spec != "raw-attention"), "grad-cam:EigenCAM"]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 6**0.5).softmax(dim=-1)
        self.seen = weights  # for the replicas, which take it from here
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        return tokens + self.mlp(tokens)


class Small(nn.Module):
    """A transformer of three layers over 4 × 4 patches, pooled by a class token or by a mean."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.embed, self.token = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(1, 1, 12))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.fc = nn.LayerNorm(12), nn.Linear(12, 4)

    def read(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        return self.fc(tokens[:, 0] if self.pool == "class" else tokens[:, 1:].mean(dim=1))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.read(tokens)


def small(pool: str) -> Classifier:
    return xattn.attach(networks.seeded(lambda: Small(pool)).double().eval(), input_size=32, resize=36, name="small")


def seen(clf: Classifier, images: Tensor, target: int) -> tuple[list[Tensor], list[Tensor]]:
    """The attention of each layer of `Small`, and its gradient, by the network's own attributes."""
    score = clf(images)[:, target].sum()
    layers = [block.attention.seen for block in clf.network.blocks]
    return layers, list(torch.autograd.grad(score, layers))


def of_layer(matrix: Tensor, pool: str) -> Tensor:
    """The map in a matrix `(17, 17)` of what each token is made of."""
    row = matrix[0] if pool == "class" else matrix[1:].mean(dim=0)
    return row[1:].view(4, 4)


def replica(method: str, clf: Classifier, images: Tensor, pool: str, target: int) -> Tensor:
    layers, gradients = seen(clf, images, target)
    maps = []
    for number in range(len(images)):
        whole = torch.eye(17, dtype=torch.float64)
        for layer, gradient in zip(layers, gradients, strict=True):
            a, g = layer[number].detach(), gradient[number]
            if method == "rollout":
                whole = (a.mean(0) + torch.eye(17, dtype=torch.float64)) / 2 @ whole
            elif method == "grad-rollout":
                step = (a * g.clamp(min=0)).mean(0) + torch.eye(17, dtype=torch.float64)
                whole = step / step.sum(dim=1, keepdim=True) @ whole
            elif method == "generic-attention":
                whole = whole + (a * g).clamp(min=0).mean(0) @ whole
            else:
                whole = a.mean(0)
        maps.append(of_layer(whole, pool))
    return torch.stack(maps)


def replica_of_legrad(clf: Classifier, images: Tensor, target: int) -> Tensor:
    network = clf.network
    maps = []
    for image in clf.normalise(images):
        tokens = network.embed(image[None]).flatten(2).transpose(1, 2)
        tokens = torch.cat([network.token, tokens], dim=1)
        received = []
        for block in network.blocks:
            tokens = block(tokens)
            (gradient,) = torch.autograd.grad(network.read(tokens)[0, target], block.attention.seen, retain_graph=True)
            received.append(gradient[0].clamp(min=0).mean(dim=(0, 1)))
        maps.append(torch.stack(received).mean(dim=0)[1:].view(4, 4))
    return torch.stack(maps)


@pytest.mark.parametrize("pool", ["class", "mean"])
@pytest.mark.parametrize("method", ["attention", "rollout", "grad-rollout", "generic-attention"])
def test_a_method_of_layers_is_its_formula(method: str, pool: str) -> None:
    clf, images = small(pool), networks.pictures(3).double()
    assert clf.pooled_tokens == ((0,) if pool == "class" else tuple(range(1, 17)))
    found = xattn.explain(clf, images, [method], target=2).raw[method]
    assert torch.allclose(found, replica(method, clf, images, pool, 2), atol=1e-10)
    assert found.std() > 0


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_legrad_is_the_mean_of_each_layer_s_own_gradient(pool: str) -> None:
    clf, images = small(pool), networks.pictures(3).double()
    found = xattn.explain(clf, images, ["legrad"], target=2).raw["legrad"]
    assert torch.allclose(found, replica_of_legrad(clf, images, 2), rtol=1e-9, atol=1e-14)
    assert found.std() > 0


def vit() -> Classifier:
    def make() -> nn.Module:
        network = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5)
        nn.init.normal_(network.heads.head.weight)
        return network

    return xattn.attach(networks.seeded(make).eval(), input_size=32, resize=36, name="vit")


@pytest.mark.parametrize("spec", METHODS)
def test_every_method_on_a_transformer_leaves_no_trace_and_takes_each_image_alone(spec: str, images: Tensor) -> None:
    if spec.startswith("guided"):
        spec += ":activations=all"
    clf = vit()
    clf.network.encoder.layers[0].train()
    before = state(clf)
    maps = xattn.explain(clf, images[:3], [spec])
    for key, value in before.items():
        assert same(value, state(clf)[key]), key
    assert torch.allclose(maps.logits, clf.predict(images[:3]), atol=1e-5)
    (name,) = maps
    assert maps[name].shape == (3, 32, 32)
    assert torch.isfinite(maps.raw[name]).all()
    alone = torch.cat([xattn.explain(clf, image[None], [spec]).raw[name] for image in images[:3]])
    tolerance = 1e-4 * float(alone.abs().max())
    assert torch.allclose(maps.raw[name], alone, atol=tolerance)


def test_all_methods_of_layers_cost_one_forward_and_one_backward_and_two_methods_one_more(images: Tensor) -> None:
    clf = vit()
    assert clf.attention_layers == 3
    calls: list[int] = []
    handle = clf.network.conv_proj.register_forward_hook(lambda *_: calls.append(1))
    xattn.explain(clf, images[:3], [name for name in OF_LAYERS if name not in ("chefer", "legrad")])
    assert len(calls) == 1
    xattn.explain(clf, images[:3], ["legrad"])
    assert len(calls) == 3
    xattn.explain(clf, images[:3], ["chefer"])
    handle.remove()
    assert len(calls) == 5


def test_what_cannot_be_followed_is_refused_with_what_to_do(images: Tensor, tmp_path: Any) -> None:
    clf = vit()
    with pytest.raises(SettingError, match="vit has 3 layers of attention; got layer=3"):
        xattn.explain(clf, images[:1], ["attention:layer=3"])
    with pytest.raises(SettingError, match="has 2 heads; got head=2"):
        xattn.explain(clf, images[:1], ["attention:head=2"])
    convolutional = xattn.attach(networks.small(), input_size=32, resize=36, name="convolutional")
    with pytest.raises(UnsupportedError, match="convolutional has no layers of attention that alone mix its tokens.*use a CAM"):
        xattn.explain(convolutional, images[:1], ["rollout"])
    source = torch.utils.data.TensorDataset(images[:2], torch.tensor([0, 1]))
    study = xattn.Study([clf, convolutional], ["rollout", "grad-cam"], ["sparsity"], source, tmp_path / "both")
    assert not study.run().failed
    assert set(study.scores().query("method == 'rollout'")["model"]) == {"vit"}
    with pytest.raises(UnsupportedError, match="rollout does not run on convolutional · gap"):
        xattn.Study([convolutional], ["rollout"], ["sparsity"], source, tmp_path / "one")
    with pytest.warns(UserWarning, match="starts with a fresh classifier"):
        headed = xattn.attach(vit().network, input_size=32, head="br-npa:n=2", name="headed")
    with pytest.raises(UnsupportedError, match="br-npa:n=2 replaces it"):
        xattn.explain(headed, images[:1], ["rollout"], untrained=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("spec", METHODS)
def test_a_gpu_gives_the_cpu_s_maps_of_tokens(spec: str, images: Tensor) -> None:
    clf = small("class")
    expected = xattn.explain(clf, images.double(), methods=[spec])
    found = xattn.explain(clf.cuda(), images.double().cuda(), methods=[spec])
    assert torch.allclose(found[spec].cpu(), expected[spec], atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_attention_of_torch_s_own_layers(images: Tensor) -> None:
    network = networks.seeded(lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4))
    nn.init.normal_(network.heads.head.weight)
    clf = xattn.attach(network.double().eval(), input_size=32)
    expected = xattn.explain(clf, images.double(), methods=OF_LAYERS)
    found = xattn.explain(clf.cuda(), images.double().cuda(), methods=OF_LAYERS)
    assert all(torch.allclose(found[name].cpu(), expected[name], atol=1e-6) for name in OF_LAYERS)
