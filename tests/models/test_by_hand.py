"""Networks as people write them by hand: the maps are those of Grad-CAM written out at the place that enters the pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import xattn
from tests import networks
from tests.networks import pictures
from xattn.errors import UnsupportedError
from xattn.inference.predictor import Predictor
from xattn.inference.settings import Tuning
from xattn.models import Classifier


def trunk(channels: int = 3) -> nn.Module:
    layers = [nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers)


def pooled(net: Net, features: Tensor) -> Tensor:
    return features.mean((2, 3))


class Net(nn.Module):
    """A trunk and a pooling written as a function of the network and the map; `kept` is what enters the pooling."""

    def __init__(self, pool: Callable[[Net, Tensor], Tensor] = pooled, channels: int = 3) -> None:
        super().__init__()
        self.trunk, self.pool = trunk(channels), pool
        self.queries, self.norm = nn.Parameter(torch.randn(1, 16, 16)), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc = nn.Linear(16, 4)

    def keep(self, tensor: Tensor) -> Tensor:
        self.kept = tensor
        return tensor

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.pool(self, self.keep(self.trunk(images))))


def attended(net: Net, features: Tensor) -> Tensor:
    tokens = features.flatten(2).transpose(1, 2)
    return net.norm(net.attention(net.queries.expand(len(tokens), -1, -1), tokens, tokens)[0]).mean(dim=1)


def generalised_mean(net: Net, features: Tensor) -> Tensor:
    return features.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


def viewed(net: Net, features: Tensor) -> Tensor:
    return features.view(len(features), -1).unflatten(1, (16, -1)).amax(dim=2)


POOLINGS = {
    "queries that attend": attended,
    "a generalised mean": generalised_mean,
    "log-sum-exp": lambda net, features: features.exp().mean((2, 3)).log(),
    "a view": viewed,
    "a norm of tokens": lambda net, features: net.keep(net.norm(features.flatten(2).transpose(1, 2))).mean(dim=1),
}


def by_hand(clf: Classifier, images: Tensor, target: int) -> Tensor:
    """Grad-CAM before its ReLU at what the network keeps."""
    logits = clf.network(clf.normalise(images))
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), clf.network.kept)
    features, gradient = (of_tokens(tensor) for tensor in (clf.network.kept, gradient))
    return (gradient.mean((2, 3), keepdim=True) * features).sum(dim=1).detach()


def of_tokens(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 4 else tensor.transpose(1, 2).unflatten(2, (8, 8))


@pytest.mark.parametrize("kind", POOLINGS)
def test_the_default_stage_is_what_enters_the_pooling(kind: str) -> None:
    clf = xattn.attach(networks.seeded(lambda: Net(POOLINGS[kind])), input_size=32)
    maps = xattn.explain(clf, pictures(3), ["grad-cam:signed=true"], target=1).raw["grad-cam:signed=true"]
    expected = by_hand(clf, pictures(3), 1)
    assert torch.allclose(maps, expected, atol=1e-5 * float(expected.abs().max()))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(tokens)


class Tokens(nn.Module):
    """A transformer on 8 × 8 patches, then what `after` makes of its tokens."""

    def __init__(self, after: Callable[[Tokens, Tensor], Tensor], queries: int = 4) -> None:
        super().__init__()
        self.embed, self.blocks, self.after = nn.Conv2d(3, 16, 4, 4), nn.ModuleList(Block() for _ in range(4)), after
        self.queries, self.read = nn.Parameter(torch.randn(1, queries, 16)), nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks[:3]:
            tokens = block(tokens)
        self.kept = tokens
        return self.fc(self.after(self, tokens).mean(dim=1))


def latents(net: Tokens, tokens: Tensor) -> Tensor:
    found = net.read(net.queries.expand(len(tokens), -1, -1), tokens, tokens)[0]
    return found + net.blocks[3].mlp(found)


def pruned(net: Tokens, tokens: Tensor) -> Tensor:
    kept = tokens.norm(dim=2).topk(16, dim=1).indices
    return net.blocks[3](tokens.gather(1, kept[:, :, None].expand(-1, -1, 16)))


AFTER = {"4 queries": (latents, 4), "16 queries": (latents, 16), "64 queries": (latents, 64), "the 16 largest": (pruned, 4)}


@pytest.mark.parametrize("kind", AFTER)
def test_learnt_queries_and_chosen_tokens_are_no_cells_of_a_map(kind: str) -> None:
    clf = xattn.attach(networks.seeded(lambda: Tokens(*AFTER[kind])), input_size=32)
    assert (clf.stages[-1].name, clf.stages[-1].size) == ("blocks.2", (8, 8))
    maps = xattn.explain(clf, pictures(3), ["grad-cam:signed=true"], target=1).raw["grad-cam:signed=true"]
    expected = by_hand(clf, pictures(3), 1)
    assert torch.allclose(maps, expected, atol=1e-5 * float(expected.abs().max()))


class Relative(nn.Module):
    """Self-attention whose scores have a learnt term for each two places."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.places = nn.Linear(16, 48), nn.Parameter(torch.randn(64, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys, values = self.qkv(tokens).chunk(3, dim=2)
        return tokens + (queries @ keys.transpose(1, 2) + queries @ self.places.T).softmax(dim=-1) @ values


class Gate(nn.Module):
    """A gate, or a dense mixture of experts, that every token has for itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score, self.value = nn.Linear(16, width), nn.Linear(width, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.value(self.score(tokens).softmax(dim=-1))


class Thinned(nn.Module):
    """Every second token in both directions, as a stride has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(64).view(8, 8)[::2, ::2].flatten())

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.kept]


MIDDLES = {"a gate over channels": lambda: Gate(16), "experts": lambda: Gate(4), "a relative term": Relative, "fixed tokens": Thinned}


@pytest.mark.parametrize("kind", MIDDLES)
def test_a_softmax_over_channels_a_relative_term_and_fixed_tokens_leave_a_map_behind_them(kind: str) -> None:
    def build() -> nn.Module:
        net = Tokens(lambda net, tokens: net.blocks[3](tokens))
        net.blocks.insert(1, MIDDLES[kind]())
        net.after = lambda net, tokens: net.blocks[4](net.blocks[3](tokens))
        return net

    clf = xattn.attach(networks.seeded(build), input_size=32)
    side = 4 if kind == "fixed tokens" else 8
    assert (clf.stages[-1].name, clf.stages[-1].size) == ("blocks.4", (side, side))


class MixedHeads(nn.Module):
    """Self-attention of a map's places whose scores are mixed over the heads by a convolution, as EfficientFormer's are."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.qkv, self.mix = trunk(), nn.Conv2d(16, 48, 1), nn.Conv2d(2, 2, 1)
        self.last, self.fc = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(images)
        queries, keys, values = self.qkv(features).reshape(len(images), 3, 2, 8, -1).unbind(1)
        weights = self.mix(queries.transpose(2, 3) @ keys).softmax(dim=-1)
        mixed = (values @ weights.transpose(2, 3)).reshape(features.shape)
        return self.fc(self.last(features + mixed).mean((2, 3)))


def test_scores_that_are_mixed_over_heads_are_not_those_of_learnt_queries() -> None:
    clf = xattn.attach(networks.seeded(MixedHeads), input_size=32)
    assert clf.stages[-1].name == "last"


class Copies(Net):
    """The batch is multiplied inside the network."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.cat([images, images.flip(-1)])).unflatten(0, (2, -1)).mean(dim=0)


class Crops(Net):
    def forward(self, images: Tensor) -> Tensor:
        crops = torch.stack([images[:, :, :24, :24], images[:, :, 8:, 8:], images[:, :, 4:-4, 4:-4]], dim=1)
        return super().forward(crops.flatten(0, 1)).unflatten(0, (len(images), -1)).mean(dim=1)


@pytest.mark.parametrize("kind", [Copies, Crops])
def test_maps_of_copies_and_crops_of_an_image_are_none_of_the_image(kind: Any) -> None:
    clf = xattn.attach(networks.seeded(kind), input_size=32, name="net")
    assert clf.stages == ()
    maps = xattn.explain(clf, pictures(2), ["captum:IntegratedGradients", "occlusion"])
    assert maps["occlusion"].shape == (2, 32, 32)
    with pytest.raises(UnsupportedError, match="net makes several copies or pieces of an image, such as flips.*: name a stage"):
        xattn.explain(clf, pictures(2), ["grad-cam"])
    with pytest.raises(UnsupportedError, match=r"'trunk' gives \([23], 16, \d, \d\) for one image: the network makes several copies"):
        clf.stage("trunk")


def with_views() -> nn.Module:
    return networks.seeded(lambda: Net(viewed))


def test_a_network_that_views_its_maps_is_loaded_and_runs_in_that_memory_format() -> None:
    images = pictures(3)
    plain = with_views()
    for clf in (xattn.load(f"{__name__}:with_views", device="cpu", input_size=32), xattn.attach(with_views(), input_size=32)):
        expected = plain(clf.normalise(images).contiguous())
        assert not clf.channels_last
        assert torch.allclose(clf.predict(images), expected, atol=1e-6)
        for tuning in (Tuning(2), Tuning(2, "contiguous"), Tuning(2, folded=True)):
            assert torch.allclose(Predictor(clf, tuning)(images), expected, atol=1e-5)
    assert xattn.attach(networks.small(), input_size=32).channels_last


def test_a_grey_network_that_views_its_maps_is_attached_loaded_and_run_by_a_predictor() -> None:
    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(8 * 16 * 16, 4)

        def forward(self, images: Tensor) -> Tensor:
            maps = functional.relu(self.conv(images))
            return self.fc(maps.view(len(maps), -1))

    clf = xattn.attach(networks.seeded(Grey), input_size=32)
    images = torch.rand(3, 1, 32, 32)
    expected = clf.network((images - clf.mean) / clf.std)
    images = images.clone(memory_format=torch.channels_last)
    assert torch.allclose(clf.predict(images), expected, atol=1e-5)
    assert torch.allclose(Predictor(clf, Tuning(2, folded=True))(images), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_part_under_a_reentrant_checkpoint_is_refused_and_under_another_is_seen() -> None:
    def recomputed(reentrant: bool) -> nn.Module:
        network = networks.seeded(Net)
        network.pool = lambda net, features: net.keep(checkpoint(net.more, features, use_reentrant=reentrant)).mean((2, 3))
        network.more = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        return network

    clf = xattn.attach(recomputed(False), input_size=32)
    assert (clf.stages[-1].name, clf.stages[-1].size) == ("more", (4, 4))
    with pytest.raises(UnsupportedError, match=r"under torch.utils.checkpoint with use_reentrant=True.*set use_reentrant=False"):
        xattn.attach(recomputed(True), input_size=32)


class NormOfRows(Net):
    """Spectrograms of one channel, whose rows are normalised before the first convolution."""

    def __init__(self) -> None:
        super().__init__(channels=1)
        self.rows = nn.BatchNorm2d(32)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.rows(images.transpose(1, 2)).transpose(1, 2))


class Split(Net):
    """Colours go to one convolution, and what else there is to another."""

    def __init__(self, further: int) -> None:
        super().__init__(channels=8)
        self.colours, self.others = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(further, 8, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.colours(images[:, :3]) + self.others(images[:, 3:]))


class Checked(Net):
    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1] == 1
        return super().forward(images.expand(-1, 3, -1, -1))


CHANNELS = {"norm of rows": (NormOfRows, 1), "3 + 1": (lambda: Split(1), 4), "3 + 10": (lambda: Split(10), 13), "checked": (Checked, 1)}


@pytest.mark.parametrize(("make", "channels"), CHANNELS.values(), ids=CHANNELS)
def test_channels_are_told_by_the_first_layers_that_take_all_of_them(make: Any, channels: int) -> None:
    clf = xattn.attach(networks.seeded(make), input_size=32)
    assert clf.channels == channels
    images = torch.rand(2, channels, 32, 32)
    expected = by_hand(clf, images, 0)
    maps = xattn.explain(clf, images, ["grad-cam:signed=true"], target=0).raw["grad-cam:signed=true"]
    assert torch.allclose(maps, expected, atol=1e-5 * float(expected.abs().max()))


def test_channels_that_are_taken_as_frames_are_a_volume() -> None:
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv3d(1, 8, 3, 2, 1), nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(functional.relu(self.conv(images[:, None])).mean((2, 3, 4)))

    with pytest.raises(UnsupportedError, match=r"first layer of Volume is a Conv3d, over videos or volumes"):
        xattn.attach(Volume(), input_size=32)
