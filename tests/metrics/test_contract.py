"""Every registered metric × what holds of all of them."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import xattn
from tests import networks
from tests.metrics.strips import known
from xattn import metrics as functions
from xattn.errors import UnsupportedError
from xattn.metrics import MetricMetadata, metrics
from xattn.models import Classifier

NAMES = sorted(metrics.entries)


def function(name: str):
    return getattr(functions, name.replace("-", "_"))


def kind(name: str) -> str:
    return metrics.entry(name).metadata.kind


def again(images: Tensor) -> Tensor:
    """What a method shows of other images: in these tests their luminance."""
    return images.mean(dim=1)


def objects(images: Tensor) -> Tensor:
    """Regions of images: in these tests what is brighter than the mean."""
    light = images.mean(dim=1)
    return light > light.mean(dim=(1, 2), keepdim=True)


def call(name: str, predict, images: Tensor, maps: Tensor, masks: Tensor, targets: Tensor) -> Tensor:
    """A metric's function, given what its signature asks for."""
    offered = {"predict": predict, "images": images, "masks": masks, "targets": targets, "raw_maps": maps, "explain": again}
    offered["fill"], offered["regions"] = torch.tensor([0.5, 0.4, 0.3]), objects(images)
    classes = targets if isinstance(targets, Tensor) else torch.zeros(len(images), dtype=torch.long)
    offered["parts"], offered["rivals"] = known(images, classes), torch.stack([masks, masks.flip(1)], dim=1)
    return function(name)(**{key: offered[key] for key in inspect.signature(function(name)).parameters if key in offered})


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    maps = torch.rand(4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return networks.pictures(4).double(), maps, functions.to_masks(maps, (32, 32)).masks, torch.tensor([0, 4, 2, 1])


def predict(images: Tensor) -> Tensor:
    return networks.small().double().requires_grad_(False)(images)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_gives_one_float64_per_image_within_its_limits(name: str, inputs) -> None:
    found = call(name, predict, *inputs)
    low, high = metrics.entry(name).metadata.limits
    assert found.shape == (4,)
    assert found.dtype == torch.float64
    assert torch.isfinite(found).all()
    assert ((found >= low) & (found <= high)).all()
    assert not found.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_an_image_s_value_is_the_same_alone_and_in_any_order(name: str, inputs) -> None:
    whole = call(name, predict, *inputs)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(call(name, predict, *(part[order] for part in inputs)), whole[order], atol=1e-10)
    for i in range(4):
        assert torch.allclose(call(name, predict, *(part[i : i + 1] for part in inputs)), whole[i : i + 1], atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_changes_none_of_its_inputs(name: str, inputs) -> None:
    before = [part.clone() for part in inputs]
    call(name, predict, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_declares_its_metadata_and_has_a_public_documented_function(name: str) -> None:
    metadata = metrics.entry(name).metadata
    assert isinstance(metadata, MetricMetadata)
    assert metadata.better in ("lower", "higher")
    assert metadata.symbol
    assert metadata.source
    assert name.replace("-", "_") in functions.__all__
    assert ">>>" in (function(name).__doc__ or "")
    expected = {
        "mask": ["masks"],
        "raw map": ["raw_maps"],
        "responses": ["predict", "images", "masks", "targets"],
        "curve": ["predict", "images", "masks", "targets", "fill"],
        "explanation": ["images", "masks", "explain"],
        "region": ["raw_maps" if name.startswith("relevance") else "masks", "regions"],
        "parts": {"background-independence": ["parts"], "target-sensitivity": ["rivals", "parts"]}.get(name, ["masks", "parts"]),
    }[metadata.kind]
    found = list(inspect.signature(function(name)).parameters)
    assert [parameter for parameter in found if parameter in expected] == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_s_kind_says_what_it_asks_for(name: str) -> None:
    metric = metrics.create(name).instance
    assert bool(metric.perturbations) == (kind(name) in ("responses", "curve")) or kind(name) == "explanation"
    assert bool(metric.explained) == (kind(name) == "explanation")
    assert metric.needs_regions == (kind(name) == "region")
    assert metric.needs_parts == (kind(name) == "parts")
    assert metric.exact == metric


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_travels_to_another_process(name: str) -> None:
    metric = metrics.create(name).instance
    assert pickle.loads(pickle.dumps(metric)) == metric


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_the_same_through_evaluate(name: str, tiny: Classifier, images: Tensor) -> None:
    maps = xattn.explain(tiny, images, ["grad-cam"])
    rows = xattn.evaluate(tiny, images, maps, [name], regions=objects(images), parts=known(images, maps.targets))
    offered = {"predict": tiny.predict, "images": images, "masks": maps["grad-cam"], "targets": maps.targets, "fill": tiny.mean}
    offered["raw_maps"], offered["regions"] = maps.raw["grad-cam"], objects(images)
    offered["parts"] = parts = known(images, maps.targets)
    others = [xattn.explain(tiny, images, ["grad-cam"], target=rival)["grad-cam"] for rival in parts.rivals.unbind(dim=1)]
    offered["rivals"] = torch.stack(others, dim=1)
    offered["explain"] = lambda others: xattn.explain(tiny, others, ["grad-cam"], target=maps.targets)["grad-cam"]
    expected = function(name)(**{key: offered[key] for key in inspect.signature(function(name)).parameters if key in offered})
    assert torch.allclose(torch.tensor(rows["value"].to_list(), dtype=torch.float64), expected, atol=0.01, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in NAMES if metrics.create(name).instance.perturbations])
def test_a_metric_that_follows_a_probability_refuses_a_target_without_one_by_name(name: str, inputs) -> None:
    images, maps, masks, _ = inputs
    with pytest.raises(UnsupportedError, match=f"^{name} follows the target's probability, and a similarity has none"):
        call(name, predict, images, maps, masks, functions.Similarity(torch.ones(5)))


class Brightness(torch.nn.Module):
    """Two classes: bright and not."""

    def forward(self, images: Tensor) -> Tensor:
        bright = 4 * images.mean(dim=(1, 2, 3)) - 1
        return torch.stack([bright, torch.zeros_like(bright)], dim=1)


def test_average_drop_is_a_peer_s_difference_divided_by_what_was_there(images: Tensor) -> None:
    """pytorch-grad-cam's DropInConfidence is o − e; the papers' average drop is (o − e)/o."""
    image_metrics = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    masks, bright = networks.pictures(7, seed=3)[:, 0], torch.zeros(7, dtype=torch.long)
    targets = [ClassifierOutputSoftmaxTarget(0)] * 7
    theirs = torch.as_tensor(image_metrics.DropInConfidence()(images.clone(), masks.numpy(), targets, Brightness())).double()
    o = functions.ClassTarget(bright).probability(Brightness()(images)).p
    ours = functions.average_drop(Brightness(), images, masks, bright)
    assert torch.allclose(ours, 100 * theirs / o, atol=1e-3)
    assert float((ours - 100 * theirs).min()) > 5


GROWTH = """
import resource, sys, tempfile, torch, xattn
from tests import networks
from torch.utils.data import Dataset
torch.set_num_threads(1)

class Many(Dataset):
    def __len__(self): return int(sys.argv[1])
    def __getitem__(self, k): return networks.pictures(1, seed=k)[0]

clf = xattn.attach(networks.small(), input_size=32, resize=36)
with tempfile.TemporaryDirectory() as out:
    xattn.Study([clf], ["grad-cam", "edges"], ["average-drop", "sparsity"], Many(), out, workers=0, progress=False).run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def peak(count: int) -> int:
        run = subprocess.run([sys.executable, "-c", GROWTH, str(count)], capture_output=True, text=True, check=True)
        return int(run.stdout.split()[-1])

    few, many = peak(80), peak(1600)
    assert many - few < 15_000  # KiB; the images alone would be 19,000
