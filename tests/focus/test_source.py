"""Two-stream networks by name, on backbones of several libraries, and their files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import xattn
from tests import networks
from xattn.errors import InputError, NameUnknownError, UnsupportedError
from xattn.focus import TwoStreams, TwoStreamSettings
from xattn.models.focus_source import trunk_of, without_last_pooling

NAME = "focus:birds:gap:steps=2,patches=2,box=0.4"


def test_a_name_gives_a_network_that_is_untrained_and_saved_and_loaded_as_it_is(tmp_path: Path) -> None:
    clf = xattn.load(NAME, classes=3, labels=["a", "b", "c"], device="cpu")
    assert (clf.name, clf.class_count, clf.input_size) == (NAME, 3, (64, 64))
    assert not clf.trained
    images = networks.pictures(2, size=64)
    with pytest.raises(UnsupportedError, match="never trained"):
        xattn.explain(clf, images, ["grad-cam"])
    own = xattn.load("birds:gap", device="cpu")
    torch.testing.assert_close(clf.features(images, ["global"])["global"], own.features(images, ["layer4"])["layer4"])
    clf.trained = True
    clf.save(str(tmp_path / "two.safetensors"))
    again = xattn.load(str(tmp_path / "two.safetensors"), device="cpu")
    assert torch.equal(again.predict(images), clf.predict(images))
    assert again.trained
    assert (again.labels, again.network.settings) == (("a", "b", "c"), TwoStreamSettings(steps=2, patches=2, box=0.4))


def test_weights_of_a_whole_network_keep_its_size_and_their_number_of_classes(tmp_path: Path) -> None:
    clf = xattn.load(NAME, classes=3, device="cpu")
    torch.save(clf.network.state_dict(), tmp_path / "two.pth")
    again = xattn.load(NAME, weights=str(tmp_path / "two.pth"), device="cpu")
    assert (again.preprocessing, again.class_count) == (clf.preprocessing, 3)
    with pytest.raises(InputError, match="the weights are for 3 classes; got classes=4"):
        xattn.load(NAME, weights=str(tmp_path / "two.pth"), classes=4, device="cpu")


def test_other_sources_are_told() -> None:
    for name, said in (
        ("focus:hf:google/vit", "is not one of them"),
        ("focus:mine.py:build", "is not one of them"),
        ("focus:vgg", "vgg1"),
    ):
        with pytest.raises((InputError, NameUnknownError), match=said):
            xattn.load(name, device="cpu")


def test_the_thesis_s_vgg19_and_resnet34_have_the_sizes_of_its_maps() -> None:
    from torchvision import models

    trunk, channels = trunk_of(models.vgg19(weights=None, init_weights=False).eval(), "vgg19")
    assert channels == 512
    network = TwoStreams(trunk, without_last_pooling(copy.deepcopy(trunk)), 512, 5, TwoStreamSettings(patches=2))
    pictures = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert network(pictures).shape == (1, 5)
        assert network.global_stream.features(pictures).shape == (1, 512, 2, 2)  # a 32nd: 14 × 14 of 448
        assert network.local_stream.features(pictures[:, :, :32, :32]).shape == (1, 512, 2, 2)  # a 16th: 14 × 14 of 224
    assert sum(weight.numel() for weight in network.local_stream.looks.parameters()) == 2 * (4 * 512 * (512 + 512) + 8 * 512)
    assert not any(isinstance(part, torch.nn.Dropout) for part in network.modules())  # nothing of VGG's classifier is left
    with torch.no_grad():
        trunk, channels = trunk_of(models.resnet34(weights=None).eval(), "resnet34")
    assert channels == 512


def test_backbones_are_cut_before_their_pooling_or_refused() -> None:
    timm = pytest.importorskip("timm")
    from torchvision import models

    trunk, channels = trunk_of(timm.create_model("resnet10t", pretrained=False).eval(), "timm:resnet10t")
    assert trunk(torch.rand(1, 3, 64, 64)).shape == (1, channels, 2, 2)
    dense = models.DenseNet(8, (2, 2), 16).eval()
    trunk, channels = trunk_of(dense, "densenet")
    assert float(trunk(torch.rand(1, 3, 64, 64)).detach().min()) == 0  # rectified, as what the network pools
    for odd in (
        models.VisionTransformer(64, 16, 1, 2, 16, 32),
        models.GoogLeNet(aux_logits=False, init_weights=False, transform_input=True),
    ):
        with pytest.raises(UnsupportedError, match="cannot be cut|no feature map"):
            trunk_of(odd.eval(), "odd")


def test_a_larger_input_shows_the_whole_picture_too() -> None:
    assert xattn.load(NAME, input_size=32, device="cpu").preprocessing.resize == (32, 32)
    assert xattn.load("birds:gap", input_size=32, device="cpu").preprocessing.resize == 37
