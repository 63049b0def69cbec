"""Heads trained on networks whose classes are texts, on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import xattn
from tests import networks
from tests.models.test_transformers_source import by_text
from xattn.cli import main
from xattn.cli.explain import explain
from xattn.cli.train import train

TEXTS = ["owl", "dog", "cat"]  # not in the order of the folders
COLOURS = {"cat": (1.0, 0.0, 0.0), "dog": (0.0, 1.0, 0.0), "owl": (0.0, 0.0, 1.0)}


@pytest.fixture
def painted(tmp_path: Path) -> Path:
    folder = tmp_path / "painted"
    for number, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for index, noise in enumerate(networks.pictures(8, size=32, seed=number)):
            picture = 0.7 * torch.tensor(colour)[:, None, None] + 0.3 * noise
            Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(folder / name / f"{index}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS) + "\n")
    return folder


def run(*arguments: Any, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.filterwarnings("ignore:The '.*' does not have many workers")
@pytest.mark.parametrize(("kind", "head"), [("clip", "ca-stream"), ("siglip", "ep:queries=2")])
def test_a_head_is_trained_on_classes_by_text(kind: str, head: str, painted: Path, tmp_path: Path) -> None:
    name, *_ = by_text(tmp_path, kind)
    out, prompts = tmp_path / "head.safetensors", tmp_path / "prompts.txt"
    texts = ["--classes", prompts, "--template", "a photo of a {}."]
    base = ["train", "--model", name, "--head", head, "--data", painted, "--accelerator", "cpu", "--workers", 0, "--epochs", 1]
    said = run(*base, *texts, "--cache-features", tmp_path / "kept", "--out", out)
    assert "3 classes by text, templates: a photo of a {}." in said
    clf = xattn.load(str(out), device="cpu")
    assert (clf.labels, clf.source.prompts, clf.source.templates) == (tuple(TEXTS), tuple(TEXTS), ("a photo of a {}.",))
    assert clf.trained
    assert not clf.multi_label
    plain = xattn.load(name, classes=TEXTS, templates=["a photo of a {}."], device="cpu")
    images = networks.pictures(2)
    assert torch.equal(clf.network(clf.normalise(images)), plain.network(plain.normalise(images)))  # the network and its texts are frozen
    assert xattn.explain(clf, images, ["raw-attention"])["raw-attention"].any()


def test_the_texts_are_asked_for_and_folders_are_named_by_them(painted: Path, tmp_path: Path) -> None:
    name, *_ = by_text(tmp_path, "clip")
    base = ["train", "--model", name, "--data", painted, "--accelerator", "cpu", "--out", tmp_path / "x.safetensors"]
    assert "give the text of each class, --classes FILE" in run(*base, "--head", "ca-stream", code=2)
    assert "'folders', 'wnid' or a text file" in run(*base, "--classes", "prompts", code=2)
    (tmp_path / "others.txt").write_text("owl\ndog\nmouse\n")
    assert "knows no class 'cat'" in run(*base, "--head", "ca-stream", "--classes", tmp_path / "others.txt", code=2)


def test_train_describes_a_network_by_the_options_of_explain() -> None:
    options = {command: {option.name: option.help for option in command.params if hasattr(option, "help")} for command in (explain, train)}
    shared = ("templates", "labels", "output", "input_size", "resize", "mean", "std", "trust_code")
    assert {key: options[explain][key] for key in shared} == {key: options[train][key] for key in shared}
