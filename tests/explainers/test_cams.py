"""The CAMs of users' lists against their formulas, written out slowly, and what they give where a formula has an edge."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import xattn
from tests import networks
from tests.explainers.test_replicas import double
from xattn.errors import SettingError, UnsupportedError
from xattn.explainers import methods, trace
from xattn.metrics.targets import Contrast, Similarity
from xattn.models import Classifier

STAGE = "2"  # its gradient differs from place to place; that of what is averaged does not
TARGETS = torch.tensor([4, 0, 2])
GRADIENT_CAMS = ["layer-cam", "hires-cam", "xgrad-cam"]


@pytest.fixture
def classifier() -> Classifier:
    return double(networks.small())


@pytest.fixture
def images() -> Tensor:
    return networks.pictures(3).double()


def run(spec: str, classifier: Classifier, images: Tensor, target: object = TARGETS, stage: str = STAGE) -> Tensor:
    component = methods.create(spec)
    return component.instance(trace(classifier, images, target, stage=stage, needs=component.metadata.needs)).detach()


def given(spec: str, features: Tensor, gradients: Tensor | None = None) -> Tensor:
    """The map of features and gradients given by hand."""
    return methods.create(spec).instance(SimpleNamespace(features=features, gradients=gradients))


def cut(classifier: Classifier, image: Tensor, score) -> tuple[Tensor, Tensor]:
    """Features of the stage and the gradient of a score of the logits, of the network cut by hand."""
    features = classifier.network[:3](classifier.normalise(image[None])).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(score(classifier.network[3:](features)[0]), features)
    return features.detach()[0], gradients[0]


def by_hand(spec: str, features: Tensor, gradients: Tensor) -> Tensor:
    """Channel by channel and cell by cell."""
    expected = torch.zeros_like(features[0])
    for channel, gradient in zip(features, gradients, strict=True):
        share = 0.0
        for y in range(channel.shape[0]):
            for x in range(channel.shape[1]):
                share += float(channel[y, x] / (channel.sum() or 1) * gradient[y, x])
        for y in range(channel.shape[0]):
            for x in range(channel.shape[1]):
                f, g = float(channel[y, x]), float(gradient[y, x])
                expected[y, x] += {"layer-cam": max(g, 0.0), "hires-cam": g, "xgrad-cam": share}[spec] * f
    return expected.clamp(min=0)


@pytest.mark.parametrize("spec", GRADIENT_CAMS)
def test_a_gradient_cam_is_its_formula(spec: str, classifier: Classifier, images: Tensor) -> None:
    found = run(spec, classifier, images)
    for i in (0, 2):
        features, gradients = cut(classifier, images[i], lambda logits, i=i: logits[TARGETS[i]])
        assert torch.allclose(found[i], by_hand(spec, features, gradients), atol=1e-12)
        assert found[i].any()


def test_where_the_network_ends_with_pooling_and_one_layer_hires_and_xgrad_cam_are_grad_cam(classifier: Classifier, images: Tensor) -> None:
    grad_cam = run("grad-cam", classifier, images, stage="3")
    for spec, factor in (("hires-cam", 1), ("xgrad-cam", 1), ("finer-cam:alpha=0", 1)):
        assert torch.allclose(run(spec, classifier, images, stage="3"), factor * grad_cam, atol=1e-12)


@pytest.mark.parametrize("similar", [1, 3, 9])
def test_finer_cam_is_grad_cam_of_the_class_against_the_nearest_ones(similar: int, classifier: Classifier, images: Tensor) -> None:
    found = run(f"finer-cam:similar={similar},alpha=0.7", classifier, images)
    for i in range(3):
        logits = classifier.predict(images[i : i + 1])[0].tolist()
        own = int(TARGETS[i])
        others = sorted((k for k in range(5) if k != own), key=lambda k: abs(logits[k] - logits[own]))[: min(similar, 4)]
        features, gradients = cut(
            classifier, images[i], lambda z, own=own, others=others: z[own] - 0.7 * sum(z[k] for k in others) / len(others)
        )
        expected = sum(g.mean() * f for f, g in zip(features, gradients, strict=True))
        assert torch.allclose(found[i], expected.clamp(min=0), atol=1e-12)


def test_finer_cam_of_a_contrast_is_grad_cam_of_it_and_of_what_has_no_classes_an_error(classifier: Classifier, images: Tensor) -> None:
    contrast = Contrast([1, 3], [1.0, -0.6])
    assert torch.equal(run("finer-cam", classifier, images, contrast), run("grad-cam", classifier, images, contrast))
    with pytest.raises(UnsupportedError, match="finer-cam compares a class with similar ones, and a similarity has none"):
        run("finer-cam", classifier, images, Similarity(torch.ones(5)))
    one = xattn.attach(networks.small(1).double(), input_size=32, resize=36, multi_label=True)
    with pytest.raises(UnsupportedError, match="gives a single logit. Use grad-cam"):
        run("finer-cam", one, images, torch.tensor([0, 0, 0]))
    with pytest.raises(SettingError, match="at least one class; got similar=0"):
        methods.create("finer-cam:similar=0")
    with pytest.raises(SettingError, match="got alpha=-1"):
        methods.create("finer-cam:alpha=-1")


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [(20, 3, 4), (4, 5, 6)])
def test_eigen_cam_is_the_projection_on_the_first_right_singular_vector(shape: tuple[int, int, int], centred: bool) -> None:
    features = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = given(f"eigen-cam:centred={str(centred).lower()}", features)
    for own, one in zip(found, features, strict=True):
        vectors = one.flatten(1).T
        vectors = vectors - vectors.mean(dim=0) if centred else vectors
        projected = vectors @ torch.linalg.svd(vectors).Vh[0]
        projected = projected if projected.max() > -projected.min() else -projected
        assert torch.allclose(own.flatten(), projected, atol=1e-9)
        assert float(own.max()) == float(own.abs().max())
    assert (given("eigen-cam", features.relu()) >= -1e-9).all()


def test_eigen_cam_of_one_channel_is_that_channel_and_of_what_is_not_finite_nan_for_that_image_alone() -> None:
    features = torch.rand(2, 1, 3, 3)
    assert torch.allclose(given("eigen-cam", features), features[:, 0])
    assert torch.allclose(given("eigen-cam", -features), features[:, 0])
    features[1, 0, 1, 1] = torch.inf
    found = given("eigen-cam", features)
    assert found[1].isnan().all()
    assert torch.allclose(found[0], features[0, 0])


def test_xgrad_cam_gives_a_map_whose_sum_cancels_no_weight_and_keeps_the_sign_of_a_sum() -> None:
    cancels = torch.tensor([[[[1.0, -1.0]]]])
    assert torch.equal(given("xgrad-cam", cancels, torch.tensor([[[[1.0, 5.0]]]])), torch.zeros(1, 1, 2))
    negative = torch.tensor([[[[-1.0, -3.0]]]])
    assert torch.allclose(given("xgrad-cam", negative, torch.full((1, 1, 1, 2), -2.0)), torch.tensor([[[2.0, 6.0]]]))


@pytest.mark.parametrize("spec", [*GRADIENT_CAMS, "eigen-cam", "eigen-cam:centred=true"])
@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 1, 1), (1, 5, 3, 2)])
def test_dead_features_zero_gradients_and_constant_features_give_finite_flat_maps(spec: str, shape: tuple[int, ...]) -> None:
    from xattn.metrics.masking import degenerate

    gradients = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    gradient_based = "eigen" not in spec
    assert not given(spec, torch.zeros(shape), gradients).any()
    if gradient_based:
        assert not given(spec, torch.rand(shape), torch.zeros(shape)).any()
    constant = given(spec, torch.full(shape, 0.1), gradients.mean(dim=(2, 3), keepdim=True).expand(shape))
    assert torch.isfinite(constant).all()
    assert degenerate(constant).all()


def opti_by_hand(classifier: Classifier, image: Tensor, target: int, iterations: int, lr: float) -> Tensor:
    """One image at a time, with Adam written out."""
    features = classifier.network[:4](classifier.normalise(image[None])).detach()
    u, first, second = torch.zeros(1, 16, 1, 1).double(), torch.zeros(1, 16, 1, 1).double(), torch.zeros(1, 16, 1, 1).double()
    for step in range(1, iterations + 1):
        u.requires_grad_()
        large = functional.interpolate((u.softmax(1) * features).sum(1, keepdim=True), size=(32, 32), mode="bilinear", align_corners=False)
        mask = (large - large.min()) / (large.max() - large.min())
        (gradient,) = torch.autograd.grad(classifier(image * mask)[0, target], u)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        u = (u + lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)).detach()
    return (u.softmax(1) * features).sum(1)[0]


def test_opti_cam_climbs_the_score_of_the_masked_image_by_adam(classifier: Classifier, images: Tensor) -> None:
    found = run("opti-cam:iterations=4,lr=0.2", classifier, images, stage="3")
    for i in range(3):
        assert torch.allclose(found[i], opti_by_hand(classifier, images[i], int(TARGETS[i]), 4, 0.2), atol=1e-10)


def test_more_iterations_of_opti_cam_score_higher(classifier: Classifier, images: Tensor) -> None:
    scores = []
    for iterations in (1, 12):
        masks = xattn.explain(classifier, images, [f"opti-cam:iterations={iterations}"], target=TARGETS.tolist())
        (mask,) = masks.values()
        scores.append(classifier.predict(images * mask[:, None]).gather(1, TARGETS[:, None]))
    assert (scores[1] > scores[0]).all()


def test_opti_cam_of_dead_features_is_a_blank_map_beside_images_that_it_leaves_alone(classifier: Classifier, images: Tensor) -> None:
    traced = trace(classifier, images, TARGETS)
    alone = methods.create("opti-cam:iterations=2").instance(traced)
    traced.captured.data[1] = 0
    found = methods.create("opti-cam:iterations=2").instance(traced)
    assert not found[1].any()
    assert torch.allclose(found[0], alone[0], atol=1e-12)
    with pytest.raises(SettingError, match="got iterations=0"):
        methods.create("opti-cam:iterations=0")
    with pytest.raises(SettingError, match="got lr=0"):
        methods.create("opti-cam:lr=0")


NEW = [*GRADIENT_CAMS, "finer-cam", "eigen-cam", "opti-cam:iterations=2", "occlusion:window=16", "rise:masks=12"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_get_maps_in_float32_near_those_of_float32(dtype: torch.dtype) -> None:
    half, full = (xattn.attach(networks.small().to(own), input_size=32, resize=36) for own in (dtype, torch.float32))
    specs = [*NEW, "integrated-gradients:steps=2", "smooth-grad:samples=2"]
    found, expected = (xattn.explain(classifier, networks.pictures(2), specs, target=1) for classifier in (half, full))
    for spec in specs:
        assert found.raw[spec].dtype == torch.float32
        assert torch.isfinite(found.raw[spec]).all()
        # bfloat16 leaves few digits to the differences of responses that occlusion takes.
        assert float((found[spec] - expected[spec]).abs().mean()) < (0.1 if dtype == torch.float16 else 0.25), spec
