"""Methods that run the network on changed copies of an image, against loops over one copy after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import xattn
from tests import networks
from tests.explainers.test_replicas import double, run
from xattn.errors import SettingError
from xattn.explainers import methods, trace
from xattn.inference import Predictor, Tuning
from xattn.inference.memory import peak_bytes
from xattn.models import Classifier

TARGETS = torch.tensor([4, 0])


@pytest.fixture
def classifier() -> Classifier:
    return double(networks.small())


@pytest.fixture
def images() -> Tensor:
    return networks.pictures(2).double()


def answer(classifier: Classifier, image: Tensor, target: Tensor, response: str) -> float:
    logits = classifier.predict(image[None])[0]
    return float(logits[target] if response == "score" else logits.softmax(0)[target])


@pytest.mark.parametrize("response", ["probability", "score"])
def test_rise_is_the_mean_of_its_masks_weighted_by_the_response(classifier: Classifier, images: Tensor, response: str) -> None:
    found = run(f"rise:masks=9,grid=3,p=0.4,response={response}", classifier, images, TARGETS)
    for image, seed, target, own in zip(images, trace(classifier, images, TARGETS).seeds, TARGETS, found, strict=True):
        generator = torch.Generator().manual_seed(seed)
        grids = (torch.rand((9, 3, 3), generator=generator) < 0.4).double()
        tops, lefts = (torch.randint(11, (9,), generator=generator).tolist() for _ in range(2))  # a cell has ceil(32 / 3) = 11 pixels
        expected = torch.zeros(32, 32).double()
        for grid, top, left in zip(grids, tops, lefts, strict=True):
            large = functional.interpolate(grid[None, None], size=44, mode="bilinear", align_corners=False)[0, 0]
            mask = large[top : top + 32, left : left + 32]
            expected += answer(classifier, image * mask, target, response) * mask / (0.4 * 9)
        assert torch.allclose(own, expected, atol=1e-10)


def test_rise_and_occlusion_find_what_a_network_of_brightness_sees() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
            parameter.fill_(value)
    classifier = xattn.attach(network, input_size=32, resize=36, mean=(0, 0, 0), std=(1, 1, 1), name="brightness")
    image = torch.zeros(1, 3, 32, 32)
    image[..., :16, :16] = 1
    specs = ["rise:masks=300,response=score", "occlusion:response=score,fill=black"]
    for mask in xattn.explain(classifier, image, specs, target=0).values():
        assert float(mask[0, 2:14, 2:14].mean()) > 2 * float(mask[0, 18:, 18:].mean())


def test_rise_holds_no_more_masks_than_a_chunk(images: Tensor) -> None:
    classifier = xattn.attach(networks.small(), input_size=32, resize=36)
    traced = trace(classifier, images.float(), needs=(), predictor=Predictor(classifier, Tuning(4)))
    few, many = (peak_bytes(lambda spec=spec: methods.create(spec).instance(traced)) for spec in ("rise:masks=50", "rise:masks=400"))
    assert many - few < 2 * 350 * 32 * 32 * 4 / 4  # the grids and numbers of 700 masks, not a quarter of the masks


@pytest.mark.parametrize("spec", ["window=10,stride=4", "window=10,stride=7,fill=black,response=score", "window=8,stride=8"])
def test_occlusion_is_the_mean_loss_over_the_windows_that_hide_a_pixel(classifier: Classifier, images: Tensor, spec: str) -> None:
    settings = dict(pair.split("=") for pair in spec.split(","))
    window, stride, response = int(settings["window"]), int(settings["stride"]), settings.get("response", "probability")
    found = run(f"occlusion:{spec}", classifier, images, TARGETS)
    for image, target, own in zip(images, TARGETS, found, strict=True):
        losses, counts = torch.zeros(32, 32).double(), torch.zeros(32, 32).double()
        whole = answer(classifier, image, target, response)
        y = 0
        while True:
            x = 0
            while True:
                hidden = image.clone()
                colour = torch.zeros(3, 1, 1) if "fill" in settings else classifier.mean
                hidden[:, y : y + window, x : x + window] = colour
                losses[y : y + window, x : x + window] += whole - answer(classifier, hidden, target, response)
                counts[y : y + window, x : x + window] += 1
                if x + window >= 32:
                    break
                x += stride
            if y + window >= 32:
                break
            y += stride
        assert torch.allclose(own, losses / counts, atol=1e-10)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("occlusion:window=0", "at least one pixel; got window=0"),
        ("occlusion:window=4,stride=5", "skips pixels between windows of 4"),
        ("occlusion:stride=9", "stride of 9 pixels is larger than the window of 4: give window as well"),
        ("occlusion:window=40", "window of 40 pixels is larger than the image of 32 × 32"),
        ("rise:masks=0", "got masks=0"),
        ("rise:p=1", "got p=1"),
        ("integrated-gradients:steps=0", "got steps=0"),
        ("smooth-grad:samples=0", "got samples=0"),
        ("smooth-grad:sigma=-1", "got sigma=-1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_answered_with_what_came(tiny: Classifier, spec: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        xattn.explain(tiny, networks.pictures(1), [spec])


def gradient(classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
    leaf = image[None].clone().requires_grad_()
    return torch.autograd.grad(classifier(leaf)[0, target], leaf)[0][0]


def test_integrated_gradients_are_the_image_times_its_mean_gradient_from_black(classifier: Classifier, images: Tensor) -> None:
    found = run("integrated-gradients:steps=5,channels=sum", classifier, images, TARGETS)
    for image, target, own in zip(images, TARGETS, found, strict=True):
        steps = [gradient(classifier, image * t, target) for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
        assert torch.allclose(own, (image * sum(steps) / 5).sum(dim=0), atol=1e-12)
    largest = run("integrated-gradients:steps=1", classifier, images, TARGETS)
    assert torch.allclose(largest[0], (images[0] * gradient(classifier, images[0] / 2, TARGETS[0])).abs().amax(dim=0), atol=1e-12)


def test_integrated_gradients_sum_to_the_rise_of_the_score_over_black(classifier: Classifier, images: Tensor) -> None:
    total = run("integrated-gradients:steps=100,channels=sum", classifier, images[:1], TARGETS[:1]).sum()
    rise = classifier.predict(images[:1])[0, 4] - classifier.predict(torch.zeros_like(images[:1]))[0, 4]
    assert float(total) == pytest.approx(float(rise), rel=0.02)


def test_smooth_grad_is_the_mean_gradient_under_noise_seeded_by_the_content(classifier: Classifier, images: Tensor) -> None:
    images = 0.4 * images + 0.3  # a range other than 1
    found = run("smooth-grad:samples=3,sigma=0.2", classifier, images, TARGETS)
    for image, seed, target, own in zip(images, trace(classifier, images, TARGETS).seeds, TARGETS, found, strict=True):
        generator = torch.Generator().manual_seed(seed)
        spread = 0.2 * (image.max() - image.min())
        noisy = [image + spread * torch.randn((3, 32, 32), generator=generator) for _ in range(3)]
        expected = sum(gradient(classifier, copy, target) for copy in noisy) / 3
        assert torch.allclose(own, expected.abs().amax(dim=0), atol=1e-12)
    plain = run("smooth-grad:samples=1,sigma=0,channels=sum", classifier, images, TARGETS)
    assert torch.allclose(plain[1], gradient(classifier, images[1], TARGETS[1]).sum(dim=0), atol=1e-12)
