"""What is no picture, and counts of work that would never end, are answered with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import xattn
from xattn.errors import ImageError, InputError, SettingError
from xattn.explainers import methods
from xattn.heads import heads
from xattn.metrics import insertion
from xattn.models import Classifier


@pytest.mark.parametrize(
    "given",
    [3, None, 3.5, True, b"x", object(), print, {"a": 1}, {}, [3], [None], [["a.png"]], torch.tensor(3.0)],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_image_is_told_what_images_are(tiny: Classifier, given: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images (are|must be) "):
        xattn.explain(tiny, given, ["random"])
    with pytest.raises(InputError, match=r"images (are a folder, a glob, a file|must be one data set)"):
        xattn.Study([tiny], ["random"], ["sparsity"], given, tmp_path / "run", progress=False)


def test_content_that_is_no_picture_is_named_by_its_number(tiny: Classifier) -> None:
    with pytest.raises(ImageError, match=r"^0: not a picture in a known format\. A study continues"):
        xattn.explain(tiny, [b"x.png"], ["random"])  # type: ignore[list-item]


def test_one_picture_is_told_to_be_a_list_of_one(tiny: Classifier) -> None:
    picture: Any = Image.new("RGB", (40, 40))
    with pytest.raises(InputError, match=r"got Image\. One picture is \[picture\]"):
        xattn.explain(tiny, picture, ["random"])
    assert xattn.explain(tiny, [picture], ["random"])["random"].shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smooth-grad:samples=2000000000", "takes samples=int up to 10,000; got '2000000000'"),
        ("integrated-gradients:steps=10001", "takes steps=int up to 10,000; got '10001'"),
        ("rise:masks=2000000000", "takes masks=int up to 1,000,000"),
        ("rise:grid=2000000000", "takes grid=int up to 256"),
        ("score-cam:chunk=2000000000", "takes chunk=int up to 4,096"),
        ("opti-cam:iterations=2000000000", "takes iterations=int up to 100,000"),
        ("finer-cam:similar=2000000000", "takes similar=int up to 10,000"),
        ("captum:KernelShap:n_samples=2000000000", "integers for other libraries are at most 1,000,000; got 2000000000"),
    ],
)
def test_a_count_without_end_is_refused(spec: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        methods.create(spec)


@pytest.mark.parametrize("spec", ["ep:queries=2000000000", "abmilp:hidden=2000000000", "br-npa:n=2000000000", "map:mlp_ratio=1e9"])
def test_a_head_that_would_fill_the_memory_is_refused(spec: str) -> None:
    with pytest.raises(SettingError, match="up to"):
        heads.create(spec)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda clf, images: xattn.explain(clf, images, seed="red"), "a seed is a whole number; got str"),
        (lambda clf, images: xattn.explain(clf, images, labels=3), "labels are a list or tensor with one label per image; got int"),
        (lambda clf, images: xattn.explain(clf, images, stage=3), "a stage is named by a text, .*; got int"),
        (lambda clf, images: xattn.explain(clf, images, target=True), "target"),
        (lambda clf, images: xattn.attach(clf.network, input_size=1.5), "a size is one whole number, or height and width; got 1.5"),
        (
            lambda clf, images: xattn.attach(clf.network, input_size=32, mean="red"),
            "mean and std are numbers, one for each channel; got 'red'",
        ),
        (lambda clf, images: xattn.attach(clf.network, input_size=32, labels=3), "labels are the names of the classes, .*; got int"),
        (lambda clf, images: xattn.attach(clf.network, input_size=32, head=3), "a head is named by a text, .*; got int"),
        (lambda clf, images: xattn.evaluate(clf, 3, xattn.explain(clf, images)), "images must be those that were explained, .*; got int"),
        (lambda clf, images: xattn.explain(clf, images).overlay("grad-cam", cmap=3), "a colour map is named by a text, .*; got int"),
        (
            lambda clf, images: xattn.explain(clf, images).overlay("grad-cam", alpha="x"),
            "alpha and contour are numbers from 0 to 1; got 'x'",
        ),
        (
            lambda clf, images: insertion(clf.predict, images, images[:, 0], [0], fill=clf.mean, step="x"),
            "a step is a whole number of pixels",
        ),
        (lambda clf, images: insertion(clf.predict, images, images[:, 0], [0], fill=clf.mean, blur="x"), "a blur's side must be odd"),
    ],
)
def test_a_value_of_another_kind_is_answered_with_a_sentence(tiny: Classifier, call: Any, message: str) -> None:
    with pytest.raises(InputError if "head" not in message else SettingError, match=message):
        call(tiny, torch.rand(1, 3, 32, 32))
