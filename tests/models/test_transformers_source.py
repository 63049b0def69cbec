"""Networks of transformers from folders: image classifiers with their processor and labels, CLIP and SigLIP with classes by text."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import xattn
from xattn.errors import InputError, MissingPackageError, UnsupportedError, UntrustedCodeError, WeightsError
from xattn.models import sources
from xattn.models.building import Prompts, Request

transformers = pytest.importorskip("transformers")

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def saved(folder: Path, config: Any, processor: Any = None) -> str:
    """The name of a random model in a folder."""
    torch.manual_seed(0)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return f"hf:{folder}"


def resnet(folder: Path, **more: Any) -> str:
    config = transformers.ResNetConfig(**RESNET, id2label={0: "cat", 1: "dog", 2: "owl"}, **more)
    return saved(folder, config, transformers.ViTImageProcessor(size={"height": 64, "width": 64}))


def test_a_classifier_has_its_logits_labels_and_size_and_is_explained(tmp_path: Path) -> None:
    clf = xattn.load(resnet(tmp_path), device="cpu")
    assert (clf.labels, clf.input_size, clf.preprocessing.resize) == (("cat", "dog", "owl"), (64, 64), (64, 64))
    images = torch.rand(2, 3, 64, 64)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.allclose(clf.predict(images), model((images - 0.5) / 0.5).logits, atol=1e-5)
    maps = xattn.explain(clf, images, ["grad-cam"], target="dog")
    assert maps.targets.tolist() == [1, 1]
    clf.save(str(tmp_path / "mine.safetensors"))
    assert torch.equal(xattn.load(str(tmp_path / "mine.safetensors"), device="cpu").predict(images), clf.predict(images))


@pytest.mark.parametrize("kind", ["ConvNext", "RegNet", "PoolFormer"])
def test_convolutional_classifiers_have_stages(kind: str, tmp_path: Path) -> None:
    small: dict[str, dict[str, Any]] = {
        "ConvNext": {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2},
        "RegNet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "groups_width": 4},
        "PoolFormer": {"hidden_sizes": [8, 8, 8, 12], "depths": [1, 1, 1, 1]},
    }
    config = getattr(transformers, f"{kind}Config")(num_labels=3, **small[kind])
    clf = xattn.load(saved(tmp_path, config), input_size=64, device="cpu")
    maps = xattn.explain(clf, torch.rand(1, 3, 64, 64), ["grad-cam"])
    assert maps.raw["grad-cam"].shape[-2:] == clf.stages[-1].size
    assert min(clf.stages[-1].size) > 1


@pytest.mark.parametrize(
    ("processor", "settings", "resize", "crop"),
    [
        ("ViT", {}, (224, 224), 224),
        ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.9}, 248, 224),
        ("ConvNext", {}, (384, 384), 384),
        ("Bit", {"size": {"shortest_edge": 256}}, 256, 224),
        ("DeiT", {}, (256, 256), 224),
        ("Levit", {}, 256, 224),
        ("MobileNetV2", {}, 256, 224),
        ("PoolFormer", {}, 248, 224),
        ("EfficientNet", {"rescale_factor": 1 / 127.5, "rescale_offset": True}, (346, 346), 346),
        ("CLIP", {}, 224, 224),
    ],
)
def test_preprocessing_is_the_image_processor_s(processor: str, settings: dict[str, Any], resize: Any, crop: int, tmp_path: Path) -> None:
    theirs = getattr(transformers, f"{processor}ImageProcessor")(**settings)
    theirs.save_pretrained(tmp_path)
    transformers.ResNetConfig(**RESNET).save_pretrained(tmp_path)
    weights = transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET)).state_dict()
    found = sources.build(Request(f"hf:{tmp_path}", weights)).preprocessing
    assert (found.resize, found.input_size) == (resize, (crop, crop))
    picture = Image.effect_noise((20, 15), 90).resize((500, 380), Image.Resampling.BICUBIC).convert("RGB")
    ours = found.crop(picture) / 255
    wanted = theirs(picture, return_tensors="pt")["pixel_values"][0]
    wanted = wanted * torch.tensor(found.std)[:, None, None] + torch.tensor(found.mean)[:, None, None]
    assert float((ours - wanted).abs().max()) < 4 / 255
    assert float((ours - wanted).abs().mean()) < 0.7 / 255


def test_an_image_processor_that_does_more_is_refused(tmp_path: Path) -> None:
    reversed_channels = transformers.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    name = saved(tmp_path, transformers.ResNetConfig(**RESNET), reversed_channels)
    with pytest.raises(UnsupportedError, match=r"MobileViTImageProcessor, does more than resize, crop and normalise: .* levels of 255"):
        sources.build(Request(name))


def test_a_vision_transformer_is_built_with_its_size_and_without_a_processor_the_size_is_its_configuration_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = saved(
        tmp_path, transformers.ViTConfig(**TINY, image_size=32, patch_size=8, num_labels=2, problem_type="multi_label_classification")
    )
    with caplog.at_level(logging.WARNING, "xattn"):
        built = sources.build(Request(name))
    assert "no image processor" in caplog.text
    assert (built.preprocessing.input_size, built.labels, built.multi_label) == ((32, 32), None, True)


def test_local_weights_of_another_number_of_classes(tmp_path: Path) -> None:
    name = resnet(tmp_path / "three")
    other = transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET, num_labels=5))
    torch.save({"state_dict": {f"module.{key}": value for key, value in other.state_dict().items()}}, tmp_path / "five.pth")
    clf = xattn.load(name, weights=tmp_path / "five.pth", device="cpu")
    images = torch.rand(1, 3, 64, 64)
    assert clf.labels is None
    assert torch.allclose(clf.predict(images), other.eval()((images - 0.5) / 0.5).logits, atol=1e-5)


def test_what_is_not_at_hand_or_no_classifier_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"hf:nobody/nothing is neither a folder .* nor in its cache, .*save_pretrained"):
        xattn.load("hf:nobody/nothing")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="is not an image classifier"):
        xattn.load(f"hf:{tmp_path}")
    with pytest.raises(InputError, match="classes of its own; classes by text are for CLIP and SigLIP"):
        xattn.load(f"hf:{tmp_path}", classes=["a", "b"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'xattn\[hf\]'"):
        xattn.load("hf:nobody/nothing")


def test_a_folder_without_a_classifier_s_weights_is_untrained_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.ViTConfig(**TINY, image_size=32, patch_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    clf = xattn.load(f"hf:{tmp_path}", device="cpu")
    assert not clf.trained
    assert "has no weights for classifier.bias, classifier.weight: they are new" in caplog.text


def test_weights_that_are_damaged_or_of_another_configuration_are_refused_in_words(tmp_path: Path) -> None:
    name = resnet(tmp_path / "a")
    other = json.loads((tmp_path / "a" / "config.json").read_text()) | {"hidden_sizes": [8, 16]}
    (tmp_path / "a" / "config.json").write_text(json.dumps(other))
    with pytest.raises(WeightsError, match="cannot be read, or are not those of its configuration"):
        xattn.load(name, device="cpu")
    name = resnet(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"damaged" * 40)
    with pytest.raises(WeightsError, match="cannot be read, or are not those of its configuration"):
        xattn.load(name, device="cpu")


def test_a_model_of_values_is_a_regression_and_one_of_grey_pictures_takes_one_channel(tmp_path: Path) -> None:
    values = transformers.ResNetConfig(**RESNET, num_labels=1, problem_type="regression", num_channels=1)
    size = {"height": 32, "width": 32}
    processor = transformers.ViTImageProcessor(size=size, image_mean=[0.4] * 3, image_std=[0.2] * 3)
    clf = xattn.load(saved(tmp_path, values, processor), device="cpu")
    assert (clf.regression, clf.class_count, clf.channels) == (True, 1, 1)
    assert clf.preprocessing.mean == pytest.approx((0.4,), abs=1e-5)
    assert xattn.load(f"hf:{tmp_path}", device="cpu", multi_label=True).multi_label
    processor = transformers.ViTImageProcessor(size=size, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    assert xattn.load(saved(tmp_path, values, processor), device="cpu").preprocessing.mean == (0.5,)  # of colours, and of no use to grey


def test_code_in_a_model_s_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UntrustedCodeError, match=r"comes with code of its own.*trust_code=True"):
        xattn.load(f"hf:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_a_configuration_does_not_choose_the_code_of_the_attention(tmp_path: Path) -> None:
    name = saved(tmp_path, transformers.ViTConfig(**TINY, image_size=32, patch_size=8))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_implementation": "someone/kernels:attention"}))
    assert sources.build(Request(name)).network.config._attn_implementation == "eager"


WORDS = ["a", "photo", "of", "cat", "dog", "owl", "."]


def by_text(folder: Path, kind: str) -> tuple[str, Any, Any]:
    """The name of a tiny CLIP or SigLIP in a folder, the model and its tokenizer."""
    letters = sorted({letter for word in WORDS for letter in word})
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges, words = [], []
    for word in WORDS:
        left, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for right in rest:
            if (pair := f"{left} {right}") not in merges:
                merges.append(pair)
                words.append(left + right)
            left += right
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate([*tokens, *words])}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)
    tokenizer.save_pretrained(folder)
    text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**TINY, "image_size": 32, "patch_size": 8}
    torch.manual_seed(1)
    if kind == "clip":
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
        transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    model.save_pretrained(folder)
    return f"hf:{folder}", model.eval(), tokenizer


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_classes_by_text_have_the_logits_of_transformers(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, model, tokenizer = by_text(tmp_path, kind)
    request = Request(name, prompts=Prompts(("cat", "dog", "owl"), ("a photo of a {}.",)))
    with caplog.at_level(logging.INFO, "xattn"):
        built = sources.build(request)
    assert ("the sigmoid of its logit" if kind == "siglip" else "the softmax over these classes") in caplog.text
    assert (built.labels, built.multi_label) == (("cat", "dog", "owl"), kind == "siglip")
    normalised = torch.randn(3, 3, 32, 32)
    padding = {"padding": "max_length", "max_length": 12} if kind == "siglip" else {"padding": True}
    tokens = tokenizer([f"a photo of a {text}." for text in built.labels], return_tensors="pt", **padding)
    with torch.no_grad():
        wanted = model(pixel_values=normalised, **tokens).logits_per_image
        found = built.network(normalised)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert float((found[:, 0] - found[:, 1]).abs().min()) > 1e-3  # the texts differ, and so do their logits


def test_classes_by_text_are_asked_for_and_must_fit(tmp_path: Path) -> None:
    name, *_ = by_text(tmp_path, "clip")
    with pytest.raises(InputError, match=r"compares images with texts: give the text of each class, --classes FILE"):
        xattn.load(name)
    with pytest.raises(InputError, match="longer than the 12 tokens"):
        xattn.load(name, classes=["cat", "a photo of a photo of a photo of a photo of a dog"])
    with pytest.raises(InputError, match="distinct and not empty"):
        xattn.load(name, classes=["cat", "cat"])
    with pytest.raises(InputError, match="in place of the class"):
        xattn.load(name, classes=["cat", "dog"], templates=["a photo"])
