"""Each method against its formula, written out slowly in float64, and the known answers that concern explainers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import xattn
from tests import networks
from xattn.errors import UnsupportedError
from xattn.explainers import methods, trace
from xattn.explainers.bilinear import Interpolation, interpolated
from xattn.explainers.guided import guided_gradients
from xattn.models import Classifier


def double(network: nn.Module) -> Classifier:
    return xattn.attach(network.double(), input_size=32, resize=36, name="double")


def run(spec: str, classifier: Classifier, images: Tensor, targets: Tensor | None = None) -> Tensor:
    component = methods.create(spec)
    target = "predicted" if targets is None else targets
    return component.instance(trace(classifier, images, target, needs=component.metadata.needs)).detach()


def features_and_gradients(classifier: Classifier, image: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Of the network cut by hand: everything before the pooling, then pooling and linear."""
    network = classifier.network
    features = network[:4](classifier.normalise(image[None])).detach().requires_grad_()
    network[4:](features)[0, target].backward()
    assert features.grad is not None
    return features.detach()[0], features.grad[0]


@pytest.fixture
def classifier() -> Classifier:
    return double(networks.small())


@pytest.fixture
def images() -> Tensor:
    return networks.pictures(3).double()


TARGETS = torch.tensor([4, 0, 2])


def test_activation_map_is_the_mean_over_channels(classifier: Classifier, images: Tensor) -> None:
    found = run("activation-map", classifier, images)
    for i in range(3):
        features, _ = features_and_gradients(classifier, images[i], 0)
        assert torch.allclose(found[i], sum(features) / len(features))


def test_grad_cam_weighs_channels_by_their_mean_gradient(classifier: Classifier, images: Tensor) -> None:
    found = run("grad-cam", classifier, images, TARGETS)
    for i in range(3):
        features, gradients = features_and_gradients(classifier, images[i], int(TARGETS[i]))
        expected = torch.zeros_like(features[0])
        for c in range(len(features)):
            expected += gradients[c].mean() * features[c]
        assert torch.allclose(found[i], expected.clamp(min=0), atol=1e-12)


@pytest.mark.parametrize("normalised", [False, True])
def test_grad_cam_plus_plus_is_equation_19(classifier: Classifier, images: Tensor, normalised: bool) -> None:
    found = run(f"grad-cam++:normalise_alpha={str(normalised).lower()}", classifier, images, TARGETS)
    for i in range(3):
        features, gradients = features_and_gradients(classifier, images[i], int(TARGETS[i]))
        expected = torch.zeros_like(features[0])
        for c in range(len(features)):
            total = float(features[c].sum())
            alphas = {}
            for y in range(8):
                for x in range(8):
                    g = float(gradients[c, y, x])
                    denominator = 2 * g**2 + total * g**3
                    alphas[y, x] = g**2 / denominator if abs(denominator) > 1e-12 * g**2 else 0.0
            whole = sum(alpha for place, alpha in alphas.items() if gradients[c][place] > 0) if normalised else 1.0
            weight = sum(alpha / (whole or 1.0) * max(float(gradients[c][place]), 0.0) for place, alpha in alphas.items())
            expected += weight * features[c]
        assert torch.allclose(found[i], expected.clamp(min=0), atol=1e-10)


def test_grad_cam_plus_plus_holds_gradients_whose_cube_leaves_float32() -> None:
    network = networks.small()
    with torch.no_grad():
        network[-1].weight.mul_(1e-20)
    single = xattn.attach(network, input_size=32, resize=36, name="tiny gradients")
    found = run("grad-cam++", single, networks.pictures(2))
    assert torch.isfinite(found).all()
    assert found.any()


@pytest.mark.parametrize("weighting", ["probability", "logit-softmax", "increase"])
@pytest.mark.parametrize(("chunk", "aligned"), [(1, False), (7, False), (7, True), (64, False)])
def test_score_cam_weighs_channels_by_what_is_left_of_the_target(
    classifier: Classifier, images: Tensor, weighting: str, chunk: int, aligned: bool
) -> None:
    found = run(f"score-cam:weighting={weighting},chunk={chunk},align_corners={aligned}".lower(), classifier, images, TARGETS)
    nothing = classifier(torch.zeros_like(images[:1])).detach()[0].softmax(0)  # the baseline of the increase
    for i in range(3):
        features, _ = features_and_gradients(classifier, images[i], 0)
        scores = []
        for channel in features:
            mask = functional.interpolate(channel[None, None], size=(32, 32), mode="bilinear", align_corners=aligned)[0, 0]
            if mask.max() == mask.min():
                scores.append(0.0 if weighting == "probability" else -torch.inf)
                continue
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            logits = classifier((images[i] * mask)[None]).detach()[0]
            p = logits.softmax(0)[TARGETS[i]]
            answers = {"logit-softmax": logits[TARGETS[i]], "probability": p, "increase": p - nothing[TARGETS[i]]}
            scores.append(float(answers[weighting]))
        weights = torch.tensor(scores).double()
        weights = weights if weighting == "probability" else weights.softmax(0)
        expected = sum(weight * channel for weight, channel in zip(weights, features, strict=True))
        assert torch.allclose(found[i], expected.clamp(min=0), atol=1e-10)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("cells", "pixels"),
    [((7, 7), (224, 224)), ((13, 9), (100, 64)), ((1, 2), (8, 8)), ((16, 16), (9, 12)), ((5, 5), (5, 5)), ((3, 2), (1, 1))],
)
def test_own_interpolation_is_that_of_torch_and_its_outermost_pixels_hold_the_extremes(
    cells: tuple[int, int], pixels: tuple[int, int], align_corners: bool
) -> None:
    maps = torch.randn(50, *cells, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sides = [Interpolation.between(*side, maps, align_corners) for side in zip(cells, pixels, strict=True)]
    whole = interpolated(maps, sides)
    theirs = functional.interpolate(maps[:, None], size=pixels, mode="bilinear", align_corners=align_corners)[:, 0]
    torch.testing.assert_close(whole, theirs, rtol=1e-12, atol=1e-12)
    some = interpolated(maps, [side.outermost() for side in sides])
    for found, expected in zip(some.flatten(1).aminmax(dim=1), whole.flatten(1).aminmax(dim=1), strict=True):
        assert torch.equal(found, expected)
    assert some.numel() <= whole.numel()


def test_score_cam_never_runs_a_constant_channel(images: Tensor) -> None:
    network = networks.small()
    with torch.no_grad():
        network[3][1].weight[:10] = 0  # ten dead channels of sixteen
        network[3][1].bias[:10] = -1
    classifier = double(network)
    seen = []
    classifier.network.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    traced = trace(classifier, images)
    seen.clear()
    methods.create("score-cam:chunk=1").instance(traced)
    alive = int(((traced.features.amax((2, 3)) - traced.features.amin((2, 3))) > 0).sum())
    assert sum(seen) == alive <= 18


def test_score_cam_runs_channels_of_one_mask_once_and_weighs_each(images: Tensor) -> None:
    classifier = double(networks.small())
    seen = []
    classifier.network.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    twice, half = trace(classifier, images), trace(classifier, images)
    twice.captured.data[:, 8:] = twice.captured.data[:, :8]
    half.captured.data[:, 8:] = 0
    seen.clear()
    found = methods.create("score-cam:chunk=1").instance(twice)
    assert sum(seen) == int(((half.features.amax((2, 3)) - half.features.amin((2, 3))) > 0).sum())
    assert torch.allclose(found, 2 * methods.create("score-cam").instance(half), atol=1e-12)


def test_score_cam_of_the_top_channels_runs_those_alone_and_is_off_by_no_more_than_the_rest(classifier: Classifier, images: Tensor) -> None:
    seen = []
    handle = classifier.network.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    traced = trace(classifier, images)
    seen.clear()
    found = methods.create("score-cam:top=5,chunk=1").instance(traced)
    handle.remove()
    assert sum(seen) == 5 * len(images)
    full = methods.create("score-cam").instance(traced)
    energy = traced.features.abs().sum(dim=(2, 3))
    left = torch.ones_like(energy).scatter_(1, energy.topk(5, dim=1).indices, 0.0)
    bound = (left[:, :, None, None] * traced.features.abs()).sum(dim=1)
    assert ((found - full).abs() <= bound + 1e-12).all()
    assert torch.allclose(methods.create("score-cam:top=16").instance(traced), full, atol=1e-12)


def plain_guided(network: networks.Rectifiers, image: Tensor, target: int, classifier: Classifier) -> Tensor:
    """Guided backpropagation by hand: convolution by convolution, from the logit to the image."""

    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(context, x: Tensor) -> Tensor:
            y = x.clamp(0, 6) if network.kind == "relu6" else x.clamp(min=0)
            context.save_for_backward(x)
            return y

        @staticmethod
        def backward(context, g: Tensor) -> Tensor:
            (x,) = context.saved_tensors
            passed = (x > 0) & ((x < 6) if network.kind == "relu6" else (x == x))
            return g.clamp(min=0) * passed

    leaf = image[None].clone().requires_grad_()
    x = classifier.normalise(leaf)
    for layer in (network.first, network.second, network.third):
        x = Guided.apply(layer(x))
    network.last(x.mean(dim=(2, 3)))[0, target].backward()
    assert leaf.grad is not None
    return leaf.grad[0]


@pytest.mark.parametrize("kind", networks.RECTIFIERS)
def test_guided_backprop_clamps_at_every_kind_of_rectifier(kind: str, images: Tensor) -> None:
    network = networks.seeded(lambda: networks.Rectifiers(kind))
    classifier = double(network)
    traced = trace(classifier, images, TARGETS)
    found = guided_gradients(traced)
    for i in range(3):
        expected = plain_guided(network, images[i], int(TARGETS[i]), classifier)
        assert torch.allclose(found[i], expected, atol=1e-12)
    assert torch.allclose(run("guided-backprop", classifier, images, TARGETS), found.abs().amax(dim=1))


def test_guided_backprop_refuses_a_network_without_rectifiers_by_name(images: Tensor) -> None:
    classifier = double(networks.seeded(lambda: networks.Rectifiers("gelu")))
    with pytest.raises(UnsupportedError, match="double has none.*activations=all"):
        run("guided-backprop", classifier, images)
    assert run("guided-backprop:activations=all", classifier, images).any()


def test_without_rectifiers_the_signed_guided_gradient_is_the_gradient(images: Tensor) -> None:
    linear = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    traced = trace(double(linear.eval()), images, TARGETS)
    assert torch.equal(guided_gradients(traced, "all"), traced.image_gradients)


def test_guided_grad_cam_is_the_upsampled_cam_times_the_guided_map(classifier: Classifier, images: Tensor) -> None:
    guided = run("guided-backprop", classifier, images, TARGETS)
    for cam in ("grad-cam", "grad-cam++"):
        raw = run(cam, classifier, images, TARGETS)
        expected = functional.interpolate(raw[:, None], size=(32, 32), mode="bilinear", align_corners=False)[:, 0] * guided
        assert torch.allclose(run(f"guided-{cam}", classifier, images, TARGETS), expected, atol=1e-12)


def test_of_a_pooled_linear_network_grad_cam_before_its_relu_is_cam(classifier: Classifier, images: Tensor) -> None:
    traced = trace(classifier, images, TARGETS)
    signed = (traced.gradients.mean(dim=(2, 3), keepdim=True) * traced.features).sum(dim=1)
    weights = classifier.network[-1].weight[TARGETS].detach()
    cam = torch.einsum("bc,bchw->bhw", weights, traced.features)
    assert torch.allclose(signed * 64, cam, atol=1e-10)  # 64 cells: the gradient of the mean


def test_controls_know_nothing_of_the_network_and_are_what_their_names_say(images: Tensor) -> None:
    one, two = double(networks.small()), double(networks.seeded(networks.small, seed=9))
    for name in ("random", "centre", "edges", "uniform", "fake-cam"):
        assert torch.equal(run(name, one, images), run(name, two, images))
    assert torch.equal(run("uniform", one, images), torch.ones(3, 32, 32).double())
    fake = run("fake-cam", one, images)
    assert float(fake.sum()) == 3 * (32 * 32 - 1)
    assert not fake[:, 0, 0].any()
    centre = run("centre", one, images)[0]
    assert centre.argmax() in (15 * 32 + 15, 15 * 32 + 16, 16 * 32 + 15, 16 * 32 + 16)
    assert float(centre[15, 23] / centre[15, 15]) == pytest.approx(float(torch.exp(torch.tensor(-(7.5**2 - 0.5**2) / 128))), rel=1e-5)
    step = torch.zeros(1, 3, 32, 32).double()
    step[..., 16:] = 1
    assert run("edges", one, step)[0, 10].nonzero().flatten().tolist() == [15, 16]


def test_random_is_seeded_by_the_image_s_content_and_the_run_s_seed(classifier: Classifier, images: Tensor) -> None:
    whole = run("random", classifier, images)
    assert torch.equal(run("random", classifier, images.flip(0)), whole.flip(0))
    assert torch.equal(run("random", classifier, images[1:2])[0], whole[1])
    assert not torch.equal(whole[0], whole[1])
    other = methods.create("random").instance(trace(classifier, images, needs=(), seed=1))
    assert not torch.equal(other, whole)
