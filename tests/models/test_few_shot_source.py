"""The network of meta-transfer learning, its pictures, and the crops that it is trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

import xattn
from tests import networks
from xattn.birds import export_few_shot
from xattn.cli import main
from xattn.data.labelled import Labelled
from xattn.data.seeds import mixed
from xattn.errors import NameUnknownError, SettingError
from xattn.models.few_shot_source import MEAN, STD
from xattn.resnet12 import ResNet12
from xattn.training import PRESETS
from xattn.training.data import Crops


def test_the_published_network_has_twelve_blocks_of_160_320_and_640_maps_and_its_parameters() -> None:
    with torch.device("meta"):
        net = ResNet12()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [len(stage) for stage in (net.layer1, net.layer2, net.layer3)] == [4, 4, 4]
    assert len(convolutions) == 1 + 24 + 3
    wanted, came = 3 * 80 * 9 + 80 + 2 * 80, 80  # the first convolution alone has a bias
    for channels in (160, 320, 640):
        wanted += came * channels * 9 + 7 * channels * channels * 9 + came * channels + 9 * 2 * channels
        came = channels
    assert sum(p.numel() for p in net.parameters()) == wanted + 640 * 64 + 64
    assert net(torch.empty(1, 3, 80, 80, device="meta")).shape == (1, 64)


def test_a_forward_is_that_of_its_blocks_written_out() -> None:
    net = ResNet12(5, width=2).double().eval()
    images = networks.pictures(2).double()

    def normed(x: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
        return functional.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    x = normed(functional.conv2d(images, net.conv1.weight, net.conv1.bias, padding=1), net.bn1).relu()
    for stage in (net.layer1, net.layer2, net.layer3):
        for number, block in enumerate(stage):
            stride = 2 if number == 0 else 1
            inner = normed(functional.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1).relu()
            inner = normed(functional.conv2d(inner, block.conv2.weight, padding=1), block.bn2)
            if number == 0:
                x = normed(functional.conv2d(x, block.downsample[0].weight, stride=2), block.downsample[1])
            x = (x + inner).relu()
    wanted = x.mean(dim=(2, 3)) @ net.fc.weight.T + net.fc.bias
    assert torch.allclose(net(images), wanted, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.* starts with a fresh classifier")
def test_it_is_loaded_with_the_published_transform_and_its_maps_grow_from_10_to_40() -> None:
    clf = xattn.load("few-shot:resnet12:width=2", head="br-npa", classes=6, device="cpu")
    assert (clf.stages[-1].size, clf.class_count, clf.trained) == ((10, 10), 6, False)
    high = xattn.load("few-shot:resnet12:width=2", head="b-cnn", classes=6, high_res=["layer2", "layer3"], device="cpu")
    assert high.stages[-1].size == (40, 40)
    assert xattn.load("few-shot:resnet12:width=2", device="cpu").class_count == 64
    picture = Image.fromarray((networks.pictures(1, size=32)[0].permute(1, 2, 0) * 255).byte().numpy())
    published = v2.Compose(
        [v2.Resize(92), v2.CenterCrop(80), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    seen = (clf.preprocessing.crop(picture) / 255 - clf.mean.view(3, 1, 1)) / clf.std.view(3, 1, 1)
    assert torch.allclose(seen, published(picture), atol=1e-6)


def test_unknown_networks_and_widths_are_named() -> None:
    with pytest.raises(NameUnknownError, match=r"Unknown network for few shots 'resnet18'"):
        xattn.load("few-shot:resnet18")
    with pytest.raises(SettingError, match="a width is 1 or more; got width=0"):
        xattn.load("few-shot:resnet12:width=0")
    with pytest.raises(SettingError, match=r"resnet12 takes hidden of 0 \(no hidden layer\) or more; got hidden=-1"):
        xattn.load("few-shot:resnet12:hidden=-1")


def test_training_crops_are_the_inner_80_of_random_crops_of_88() -> None:
    class One:
        def picture(self, number: int) -> Image.Image:
            return Image.fromarray((networks.pictures(1, size=92)[0].permute(1, 2, 0) * 255).byte().numpy())

    recipe = PRESETS["few-shot-base"]
    preprocessing = xattn.load("few-shot:resnet12:width=1", device="cpu").preprocessing
    data = Labelled("one", ("one",), (0,), One())  # type: ignore[arg-type]
    crops = Crops(data, preprocessing, recipe.smallest_crop, 7, recipe.centre_crop)
    flip = v2.RandomHorizontalFlip()
    wanted = v2.Compose([v2.RandomResizedCrop(88), v2.CenterCrop(80), flip, v2.PILToTensor()])
    for epoch in range(4):
        found, _ = crops[(epoch, 0)]
        with torch.random.fork_rng():
            torch.manual_seed(mixed(7, epoch, 0))
            assert torch.equal(found, wanted(One().picture(0)))


@pytest.mark.parametrize(
    ("network", "head"),
    [("width=8", "br-npa"), ("width=8", "br-npa:hidden=12"), ("width=8", "b-cnn:n=2,hidden=12"), ("width=8,hidden=12", "gap")],
)
def test_it_is_trained_on_base_classes_then_by_episodes_and_adapted_and_a_query_is_explained_for_its_class(
    network: str, head: str, tmp_path: Path
) -> None:
    birds = export_few_shot(tmp_path / "birds", 4)
    base, meta = tmp_path / "base.safetensors", tmp_path / "meta.safetensors"
    where = ["--data", f"cifar-fs:{birds}", "--workers", "0", "--accelerator", "cpu", "--epochs", "1"]
    small = ["--model", f"few-shot:resnet12:{network}", "--head", head, "--input-size", "32", "--resize", "32"]
    done = CliRunner().invoke(main, ["train", *small, *where, "--preset", "few-shot-base", "--batch-size", "8", "--out", str(base)])
    assert done.exit_code == 0, done.output
    based = xattn.load(str(base), device="cpu")
    assert len(based.labels or ()) == 8
    assert sum(tensor.shape[:1] == (12,) for tensor in based.state_dict().values()) == 2 * ("hidden" in network + head)
    task = ["--task", "few-shot:ways=3,shots=1,queries=2", "--episodes", "2"]
    done = CliRunner().invoke(main, ["train", "--model", str(base), *where, *task, "--out", str(meta)])
    assert done.exit_code == 0, done.output
    images = torch.stack([networks.pictures(4, size=32)[number] for number in range(4)])
    assert not any(tensor.shape[:1] == (12,) for tensor in xattn.load(str(meta), device="cpu").state_dict().values())
    new = xattn.adapt(xattn.load(str(meta), device="cpu"), images[:3], [0, 1, 2], ["a", "b", "c"])
    methods = ["grad-cam"] if head == "gap" else ["grad-cam", "raw-attention"]
    maps = [xattn.explain(new, images[3:], methods, target=torch.tensor([k])).raw for k in (0, 1)]
    assert maps[0]["grad-cam"].shape == (1, 4, 4)
    assert head == "gap" or torch.equal(maps[0]["raw-attention"], maps[1]["raw-attention"])  # the head's maps are of no class
