"""The two-stream network against slow replicas of its equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests import networks
from tests.focus import tiny
from xattn.boxes import crop
from xattn.errors import InputError, NameUnknownError, SettingError
from xattn.focus import TwoStreams, TwoStreamSettings, parsed
from xattn.focus.local_stream import spatial_basis


def pictures(count: int = 4) -> Tensor:
    return networks.pictures(count).double() * 4 - 2


def lstm_step(given: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One step of an LSTM, gate by gate, from W_ih, W_hh, b_ih and b_hh."""
    gates = given @ weights[0].T + weights[2] + hidden @ weights[1].T + weights[3]
    i, f, g, o = gates.chunk(4, dim=1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def weights_of(module: nn.Module, layer: str) -> list[Tensor]:
    return [getattr(module, f"{kind}{layer}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def looks_of_lstm(stream: nn.Module, pooled: Tensor, steps: int) -> list[Tensor]:
    """The top layer's output at each step, the pooled features given at each."""
    states = [(torch.zeros_like(pooled), torch.zeros_like(pooled)) for _ in range(2)]
    found = []
    for _ in range(steps):
        given = pooled
        for layer in range(2):
            states[layer] = lstm_step(given, *states[layer], weights_of(stream.looks, f"_l{layer}"))
            given = states[layer][0]
        found.append(given)
    return found


def test_the_local_stream_is_lstm_then_attention_then_linear_with_its_gradients() -> None:
    stream = tiny.network().double().local_stream
    patches = pictures()[:, :, :16, :16].requires_grad_()
    found = stream(patches)
    hidden = looks_of_lstm(stream, stream.features(patches).mean(dim=(2, 3)), 3)
    scores = [h @ stream.attention.weight[0] + stream.attention.bias for h in hidden]
    total = sum(score.exp() for score in scores)
    alpha = [score.exp() / total for score in scores]
    collected = sum(weight[:, None] * h for weight, h in zip(alpha, hidden, strict=True))
    logits = collected @ stream.classifier.weight.T + stream.classifier.bias
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.alpha, torch.stack(alpha, dim=1))
    torch.testing.assert_close(found.hidden, torch.stack(hidden, dim=1))
    assert found.alpha.std() > 1e-3
    parameters = [patches, *stream.parameters()]
    weights = torch.rand_like(logits)
    for one, other in zip(*(torch.autograd.grad((given * weights).sum(), parameters) for given in (found.logits, logits)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_self_attention_is_that_of_the_thesis_with_its_gradients(scaled: bool) -> None:
    stream = tiny.network(self_attention=True, keys=6, scaled=scaled).double().local_stream
    patches = pictures()[:, :, :16, :20].requires_grad_()
    found = stream(patches)
    looks, features = stream.looks, stream.features(patches)
    count, channels, height, width = features.shape
    basis = spatial_basis(4, (height, width)).double()
    states = [(torch.zeros(count, channels).double(), torch.zeros(count, channels).double()) for _ in range(2)]
    maps, hidden = [], []
    for _ in range(3):
        query = looks.query(states[1][0])
        scores = torch.zeros(count, height, width).double()
        for c in range(6):
            scores = scores + query[:, c, None, None] * features[:, c]
        for c in range(4):
            scores = scores + query[:, 6 + c, None, None] * basis[c]
        scores = (scores / math.sqrt(6 + 4) if scaled else scores).exp()
        attended = scores / scores.sum(dim=(1, 2), keepdim=True)
        values = torch.cat([features[:, 6:], basis.expand(count, -1, -1, -1)], dim=1)
        given = looks.answer((attended[:, None] * values).sum(dim=(2, 3)))
        for layer in range(2):
            states[layer] = lstm_step(given, *states[layer], weights_of(looks.cells[layer], ""))
            given = states[layer][0]
        maps.append(attended)
        hidden.append(given)
    torch.testing.assert_close(found.attention, torch.stack(maps, dim=1))
    torch.testing.assert_close(found.hidden, torch.stack(hidden, dim=1))
    assert (found.attention[:, 0] - found.attention[:, 2]).abs().max() > 1e-3
    one = torch.autograd.grad(found.hidden.square().sum(), [patches, *looks.parameters()])
    other = torch.autograd.grad(torch.stack(hidden, dim=1).square().sum(), [patches, *looks.parameters()])
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_spatial_basis_is_products_of_cosines() -> None:
    basis = spatial_basis(9, (4, 5))
    for u in range(3):
        for v in range(3):
            for i in range(4):
                for j in range(5):
                    expected = math.cos(math.pi * u * i / 3) * math.cos(math.pi * v * j / 4)
                    assert float(basis[3 * u + v, i, j]) == pytest.approx(expected, abs=1e-6)


def test_without_an_lstm_the_local_stream_is_a_plain_cnn() -> None:
    stream = tiny.network(local="cnn").double().local_stream
    patches = pictures()[:, :, :16, :16]
    torch.testing.assert_close(stream(patches).logits, stream.classifier(stream.features(patches).mean(dim=(2, 3))))
    assert stream(patches).alpha.tolist() == [[1.0]] * 4
    assert not any(isinstance(part, nn.LSTM) for part in stream.modules())


def test_of_one_step_all_ways_of_adding_steps_are_one() -> None:
    patches = pictures()[:, :, :16, :16]
    ways = ({}, {"local": "lstm"}, {"sum_to": 1}, {"only_step": 1})
    weights = tiny.network(steps=1).double().local_stream.state_dict()
    found = []
    for way in ways:
        stream = tiny.network(steps=1, **way).double().local_stream
        stream.load_state_dict({key: weights[key] for key in stream.state_dict()})
        found.append(stream(patches).logits)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("way", [{}, {"local": "lstm"}])
def test_of_one_step_with_open_gates_the_local_stream_is_the_plain_cnn(way: dict[str, object]) -> None:
    """Gates at 1 and inputs near 0, where tanh is the identity, let the pooled features through the LSTM."""
    patches, small = pictures()[:, :, :16, :16], 1e-5
    plain = tiny.network(local="cnn").double().local_stream
    stream = tiny.network(steps=1, **way).double().local_stream
    stream.load_state_dict(plain.state_dict(), strict=False)
    for layer, scale in enumerate((small, 1.0)):
        given, _, bias, other = weights_of(stream.looks, f"_l{layer}")
        i, f, g, o = (slice(n * tiny.CHANNELS, (n + 1) * tiny.CHANNELS) for n in range(4))
        given.data.zero_()
        given.data[g] = scale * torch.eye(tiny.CHANNELS)
        other.data.zero_()
        for gate in (i, f, o):
            bias.data[gate] = 40
        bias.data[g] = 0
    stream.classifier.weight.data /= small
    torch.testing.assert_close(stream(patches).logits, plain(patches).logits)


@pytest.mark.parametrize(("way", "weights"), [({"local": "lstm"}, [0, 0, 1]), ({"sum_to": 2}, [1, 1, 0]), ({"only_step": 2}, [0, 1, 0])])
def test_the_ablations_weigh_the_steps(way: dict[str, object], weights: list[int]) -> None:
    stream = tiny.network(**way).double().local_stream
    found = stream(pictures()[:, :, :16, :16])
    expected = sum(weight * found.hidden[:, t] for t, weight in enumerate(weights))
    torch.testing.assert_close(found.logits, stream.classifier(expected))
    assert found.alpha[0].tolist() == weights


@pytest.mark.parametrize("test_patch", ["mean", "first", "random"])
def test_the_logits_are_those_of_the_picture_plus_those_of_its_patches(test_patch: str) -> None:
    network = tiny.network(test_patch=test_patch, weight=0.7).double()
    given = pictures()
    found = network.streams(given)
    assert found.boxes.shape == (4, 3 if test_patch == "mean" else 1, 4)
    features = network.global_stream.features(given)
    for i in range(4):
        strongest = int(features[i].norm(dim=0).flatten().argmax())
        y, x = divmod(strongest, features.shape[3])
        if test_patch != "random":
            low = [min(max(round(4 * (place + 0.5) - 8), 0), 16) for place in (x, y)]
            assert found.boxes[i, 0].tolist() == [*low, low[0] + 16, low[1] + 16]
        local = [
            network.local_stream(given[i : i + 1, :, int(y1) : int(y2), int(x1) : int(x2)]).logits[0]
            for x1, y1, x2, y2 in found.boxes[i].tolist()
        ]
        expected = network.global_stream.classifier(features[i].mean(dim=(1, 2))) + 0.7 * sum(local) / len(local)
        torch.testing.assert_close(network(given)[i], expected)
        torch.testing.assert_close(network(given[i : i + 1])[0], expected)  # in a batch as alone
    assert not found.boxes.requires_grad


def test_a_picture_has_a_gradient_through_both_streams() -> None:
    network = tiny.network().double()
    given = pictures(1).requires_grad_()
    (both,) = torch.autograd.grad(network(given)[0, 0], given)
    (whole,) = torch.autograd.grad(network.global_stream(given)[1][0, 0], given)
    boxes = network.streams(given).boxes
    (part,) = torch.autograd.grad(network.local_stream(crop(given, boxes, 16).flatten(0, 1)).logits.mean(dim=0)[0], given)
    torch.testing.assert_close(both, whole + part)


def test_in_training_one_patch_of_a_picture_is_drawn() -> None:
    network = tiny.network().train()
    given = pictures(1).float().expand(64, -1, -1, -1)
    boxes = torch.tensor([[[0.0, 0, 16, 16], [8, 8, 24, 24], [16, 16, 32, 32]]]).expand(64, -1, -1)
    torch.manual_seed(0)
    found = network.streams(given, boxes).boxes
    assert found.shape == (64, 1, 4)
    assert sorted(set(found[:, 0, 0].tolist())) == [0, 8, 16]
    torch.manual_seed(0)
    assert torch.equal(network.streams(given, boxes).boxes, found)


def test_a_name_has_a_backbone_and_settings() -> None:
    assert parsed("focus:vgg19") == ("torchvision:vgg19", TwoStreamSettings())
    assert parsed("focus:timm:resnet18.a1_in1k:local=lstm,steps=5") == ("timm:resnet18.a1_in1k", TwoStreamSettings("lstm", 5))
    for name, said in (
        ("focus:", "names no backbone"),
        ("focus:vgg19:basis=5", "basis=5"),
        ("focus:vgg19:sum_to=11", "sum_to=11"),
        ("focus:vgg19:local=lstm,sum_to=2", "replace the attention"),
        ("focus:vgg19:local=cnn,self_attention=true", "has no LSTM"),
        ("focus:vgg19:step=2", "Did you mean 'steps'"),
    ):
        with pytest.raises((InputError, NameUnknownError, SettingError), match=said):
            parsed(name)


def test_more_patches_than_cells_and_keys_than_channels_are_told() -> None:
    with pytest.raises(InputError, match="65 patches cannot be told apart in a map of 8 × 8 cells"):
        tiny.network(patches=65)(pictures(1).float())
    with pytest.raises(SettingError, match="16 keys leave no channel for values"):
        tiny.network(self_attention=True, keys=16)


def test_the_ranking_loss_is_that_of_the_thesis() -> None:
    from xattn.focus import Looked, Streams
    from xattn.training.streams import two_stream_loss

    whole, part = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
    labels = torch.tensor([0, 0])
    network = TwoStreams(nn.Identity(), nn.Identity(), 3, 3, TwoStreamSettings("cnn", weight=0.7))
    found = Streams(whole, torch.zeros(2, 1, 4), Looked(part, part[:, None], torch.ones(2, 1), None))
    expected = 0.0
    for one, other in zip(whole.tolist(), part.tolist(), strict=True):
        p_g, p_l = (math.exp(logits[0]) / sum(map(math.exp, logits)) for logits in (one, other))
        expected += (-math.log(p_g) - 0.7 * math.log(p_l) + 0.4 * max(0.0, p_g - p_l + 0.5)) / 2
    assert float(two_stream_loss(network, found, labels, ranking=0.4, margin=0.5)) == pytest.approx(expected, rel=1e-6)
    plain = functional.cross_entropy(whole, labels) + 0.7 * functional.cross_entropy(part, labels)
    torch.testing.assert_close(two_stream_loss(network, found, labels, ranking=0, margin=0.5), plain)


def test_with_an_lstm_alone_every_step_is_trained() -> None:
    from xattn.training.streams import two_stream_loss

    network = tiny.network(local="lstm")
    found = network.streams(pictures(2).float(), torch.tensor([[[0.0, 0, 16, 16]]]).expand(2, 1, 4))
    labels = torch.tensor([1, 2])
    steps = [functional.cross_entropy(network.local_stream.classifier(found.looked.hidden[:, t]), labels) for t in range(3)]
    expected = functional.cross_entropy(found.logits, labels) + sum(steps) / 3
    torch.testing.assert_close(two_stream_loss(network, found, labels, ranking=0, margin=0.5), expected)
