"""Networks of open_clip, with classes given by text."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import xattn
from xattn.errors import InputError, MissingPackageError, NameUnknownError, WeightsError

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
CLASSES = ["cat", "a dog", "an owl"]
TEMPLATES = ["a photo of {}.", "{} in the wild"]


@pytest.fixture(scope="module", autouse=True)
def _tiny_architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("architectures")
    for name, more in (("tiny-resnet", {}), ("tiny-sigmoid", {"init_logit_bias": -10.0, "custom_text": True})):
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": RESNET, "text_cfg": TEXT, **more}))
    open_clip.add_model_config(folder)
    yield
    for name in ("tiny-resnet", "tiny-sigmoid"):
        open_clip.factory._MODEL_CONFIGS.pop(name, None)


def weights(folder: Path, name: str) -> tuple[Any, Path]:
    """A random model and its file."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False).eval()
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, folder / "tiny.pt")
    return model, folder / "tiny.pt"


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-sigmoid"])
def test_logits_are_those_of_open_clip_s_zero_shot_classifier(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, file = weights(tmp_path, name)
    with caplog.at_level(logging.INFO, "xattn"):
        clf = xattn.load(f"open_clip:{name}", weights=file, classes=CLASSES, templates=TEMPLATES, device="cpu")
    sigmoid = name == "tiny-sigmoid"
    assert f"3 classes by text, templates: {' | '.join(TEMPLATES)}" in caplog.text
    assert ("the sigmoid of its logit" if sigmoid else "the softmax over these classes") in caplog.text
    assert (clf.multi_label, clf.labels, clf.input_size) == (sigmoid, tuple(CLASSES), (64, 64))
    images = torch.rand(2, 3, 64, 64)
    texts = open_clip.build_zero_shot_classifier(model, open_clip.get_tokenizer(name), CLASSES, TEMPLATES)
    with torch.no_grad():
        wanted = model.logit_scale.exp() * model.encode_image(clf.normalise(images), normalize=True) @ texts
    wanted = wanted + model.logit_bias if sigmoid else wanted
    assert torch.allclose(clf.predict(images), wanted, atol=1e-5)
    assert clf.class_index("an owl") == 2
    assert len(xattn.explain(clf, images, ["grad-cam"], target="an owl")["grad-cam"]) == 2
    assert clf.stages[-1].name == "encoder.layer4"


def test_preprocessing_is_open_clip_s(tmp_path: Path) -> None:
    model, file = weights(tmp_path, "tiny-resnet")
    clf = xattn.load("open_clip:tiny-resnet", weights=file, classes=CLASSES, device="cpu")
    picture = Image.effect_noise((150, 120), 90).convert("RGB")
    config = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    theirs = open_clip.transform.image_transform_v2(config, is_train=False)(picture)
    assert torch.allclose(clf.normalise(clf.preprocessing.crop(picture)[None] / 255)[0], theirs, atol=1e-6)


@pytest.mark.filterwarnings("ignore:br-npa on .* starts with a fresh classifier")
@pytest.mark.parametrize("tuned", [False, True])
def test_a_saved_classifier_keeps_its_texts(tuned: bool, tmp_path: Path) -> None:
    _, file = weights(tmp_path, "tiny-resnet")
    clf = xattn.load("open_clip:tiny-resnet", weights=file, classes=CLASSES, templates=TEMPLATES, head="br-npa", device="cpu")
    if tuned:
        with torch.no_grad():
            clf.network.scale.mul_(0.5)
    clf.save(str(tmp_path / "mine.safetensors"))
    again = xattn.load(str(tmp_path / "mine.safetensors"), device="cpu")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(again.predict(images), clf.predict(images))
    assert torch.equal(again.network(images), clf.network(images))
    assert (again.labels, again.source.prompts, again.source.templates) == (tuple(CLASSES), tuple(CLASSES), tuple(TEMPLATES))
    with pytest.raises(InputError, match="has its own classes"):
        xattn.load(str(tmp_path / "mine.safetensors"), classes=["a", "b"], device="cpu")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = weights(tmp_path, "tiny-resnet")
    name = "open_clip:tiny-resnet"
    with pytest.raises(InputError, match="compares images with texts: give the text of each class"):
        xattn.load(name, weights=file)
    with pytest.raises(InputError, match="longer than the 16 tokens"):
        xattn.load(name, weights=file, classes=["cat", "very " * 20 + "long"])
    with pytest.raises(WeightsError, match="has no default weights: give a local file"):
        xattn.load(name, classes=CLASSES)
    with pytest.raises(WeightsError, match="has no default weights: .* openai"):
        xattn.load("open_clip:RN50", classes=CLASSES)
    with pytest.raises(InputError, match=r"there is no weights file 'opnai'.* open_clip has for it: openai"):
        xattn.load("open_clip:RN50", weights="opnai", classes=CLASSES)
    with pytest.raises(NameUnknownError, match="Did you mean 'tiny-resnet'"):
        xattn.load("open_clip:tiny-resnt", classes=CLASSES)
    with pytest.raises(InputError, match="has classes of its own"):
        xattn.load("birds:gap", classes=CLASSES)
    with pytest.raises(InputError, match="templates are for classes given by text"):
        xattn.load("birds:gap", templates=TEMPLATES)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"open_clip_torch.*pip install 'xattn\[clip\]'"):
        xattn.load(name, classes=CLASSES)
