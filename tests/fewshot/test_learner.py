"""The base learner against torch's own gradients and SGD, episode by episode, and scales and shifts of convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests import networks
from xattn.errors import InputError, SettingError, UnsupportedError
from xattn.fewshot import Episodes, EpisodeShape, episode_logits, fit_linear, scaled_and_shifted

STEPS, LR = 50, 0.05


def episodes(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Vectors, labels and queries of 3 episodes of 4 classes with 2 pictures each, and weights to start from, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(3, 8, 6), (torch.arange(8) % 4).repeat(3, 1), draw(3, 5, 6), draw(4, 6), draw(4)


def test_fitted_weights_are_those_of_torch_sgd_on_a_linear_layer() -> None:
    vectors, labels, _, weight, bias = episodes()
    weights, biases = fit_linear(vectors, labels, weight, bias, steps=STEPS, lr=LR)
    for episode in range(3):
        layer = nn.Linear(6, 4).double()
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        optimiser = torch.optim.SGD(layer.parameters(), lr=LR)
        for _ in range(STEPS):
            optimiser.zero_grad()
            functional.cross_entropy(layer(vectors[episode]), labels[episode]).backward()
            optimiser.step()
        assert torch.allclose(weights[episode], layer.weight, rtol=0, atol=1e-12)
        assert torch.allclose(biases[episode], layer.bias, rtol=0, atol=1e-12)
        assert not torch.allclose(layer.weight, weight, rtol=0, atol=0.1)


def test_the_outer_loss_reaches_vectors_and_start_as_through_autograd_at_each_step() -> None:
    vectors, labels, queries, weight, bias = (tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in episodes())
    answers = labels[:, :5]
    logits = episode_logits(vectors, labels, queries, weight, bias, steps=STEPS, lr=LR)
    found = torch.autograd.grad(functional.cross_entropy(logits.flatten(0, 1), answers.flatten()), (vectors, queries, weight, bias))

    losses = []
    for episode in range(3):
        w, b = weight, bias
        for _ in range(STEPS):
            inner = functional.cross_entropy(functional.linear(vectors[episode], w, b), labels[episode])
            of_w, of_b = torch.autograd.grad(inner, (w, b), create_graph=True)
            w, b = w - LR * of_w, b - LR * of_b
        losses.append(functional.cross_entropy(functional.linear(queries[episode], w, b), answers[episode]))
    wanted = torch.autograd.grad(torch.stack(losses).mean(), (vectors, queries, weight, bias))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
        assert float(one.abs().max()) > 1e-4


def test_shapes_that_do_not_belong_together_are_named() -> None:
    with pytest.raises(InputError, match=r"got \(1, 2, 3\), \(1, 3\) and \(2, 3\)"):
        fit_linear(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.long), torch.zeros(2, 3), torch.zeros(2))


def test_an_episode_has_its_pictures_in_turns_of_its_classes_and_depends_on_seed_epoch_and_number_alone() -> None:
    targets = [number % 7 for number in range(70)]
    shape = EpisodeShape(ways=3, shots=2, queries=4)
    sampler = Episodes(targets, shape, 20, seed=5, epoch=lambda: 1)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 20
    for number, keys in enumerate(drawn):
        assert {epoch for epoch, _ in keys} == {20 + number}  # another augmentation in each
        pictures = [picture for _, picture in keys]
        assert len(set(pictures)) == shape.pictures == 18
        classes = [targets[picture] for picture in pictures]
        assert len(set(classes)) == 3
        assert [classes.index(target) for target in classes] == shape.labels().tolist()
        assert pictures == Episodes(targets, shape, 20, seed=5).drawn(1, number)
    others = [Episodes(targets, shape, 20, seed=seed).drawn(epoch, number) for seed, epoch, number in [(6, 1, 3), (5, 2, 3), (5, 1, 4)]]
    assert [picture for _, picture in drawn[3]] not in others
    assert len({tuple(sorted(targets[number] for _, number in keys[:3])) for keys in drawn}) > 5


def test_too_few_classes_or_pictures_are_named() -> None:
    with pytest.raises(InputError, match=r"of 5 ways needs as many classes, but birds has 2: give fewer ways"):
        Episodes([0, 1], EpisodeShape(), 1, seed=0, name="birds")
    with pytest.raises(InputError, match=r"takes 1 \+ 2 pictures per class .* class 'wren' of birds has 2: give fewer shots"):
        Episodes([0, 0, 0, 1, 1], EpisodeShape(2, 1, 2), 1, seed=0, name="birds", names=["finch", "wren"])
    with pytest.raises(SettingError, match=r"at least two ways, one shot and one query; got 1, 0 and 3"):
        EpisodeShape(1, 0, 3)


def network() -> nn.Module:
    """`networks.small` with a grouped convolution and one without a bias."""
    found = networks.small()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        found[2][0] = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
        found[3][0] = nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False)
    return found.double()


def test_scales_and_shifts_begin_as_the_network_was_and_folding_them_changes_no_output() -> None:
    net, images = network(), networks.pictures(2).double()
    keys, kinds, flags = list(net.state_dict()), [type(m) for m in net.modules()], [p.requires_grad for p in net.parameters()]
    before, weight = net(images), net[2][0].weight.detach().clone()
    with scaled_and_shifted(net) as learnt:
        assert [tuple(parameter.shape) for parameter in learnt] == [(8, 3, 1, 1), (8,), (12, 2, 1, 1), (12,), (16, 12, 1, 1)]
        assert torch.equal(net(images), before)
        assert {parameter for parameter in net.parameters() if parameter.requires_grad} == set(learnt)
        net(images).square().sum().backward()
        assert all(float(parameter.grad.abs().max()) > 0 for parameter in learnt)
        with torch.no_grad():
            for parameter in learnt:
                parameter.add_(torch.linspace(-0.5, 0.5, parameter.numel(), dtype=torch.float64).view_as(parameter))
        changed, scale = net(images), learnt[2].detach().clone()
    assert torch.equal(net(images), changed)
    assert not torch.allclose(changed, before)
    assert torch.allclose(net[2][0].weight, weight * scale, rtol=0, atol=1e-15)
    assert sorted(net.state_dict()) == sorted(keys)
    assert [type(m) for m in net.modules()] == kinds
    assert [p.requires_grad for p in net.parameters()] == flags
    with scaled_and_shifted(net):  # once more, on the folded weights
        assert torch.equal(net(images), changed)


def test_networks_without_convolutions_of_their_own_are_refused_and_stay_as_they_were() -> None:
    with pytest.raises(UnsupportedError, match=r"Linear has none"), scaled_and_shifted(nn.Linear(2, 2)):
        pass
    shared = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    shared[1].weight = shared[0].weight
    with pytest.raises(UnsupportedError, match=r"two convolutions share their weights"), scaled_and_shifted(shared):
        pass
    assert all(parameter.requires_grad for parameter in shared.parameters())
