"""Small data to train on: three classes told apart by their colour."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import xattn
from tests import networks
from xattn.heads import heads
from xattn.models import Classifier

COLOURS = {"blue": (0.2, 0.2, 0.9), "green": (0.2, 0.9, 0.2), "red": (0.9, 0.2, 0.2)}


def paint(folder: Path, count: int = 12) -> Path:
    """A folder per class, of noise in its colour."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for index, noise in enumerate(networks.pictures(count, size=40, seed=number)):
            picture = 0.7 * torch.tensor(colour)[:, None, None] + 0.3 * noise
            Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(folder / name / f"{index:02d}.png")
    return folder


@pytest.fixture
def painted(tmp_path: Path) -> Path:
    return paint(tmp_path / "painted")


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """A file with a factory, so that a network can be built again by a name."""
    (tmp_path / "mine.py").write_text("from tests import networks\n\n\ndef build():\n    return networks.small(3)\n")
    return f"{tmp_path / 'mine.py'}:build"


def fresh(head: str = "br-npa:n=2", classes: int = 3) -> Classifier:
    """A head on `networks.small`, the same at each call."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        own = heads.create(head).metadata.replaces == "classifier"
        return xattn.attach(networks.small(5 if own else classes), head=head, classes=classes, input_size=32, resize=36, name="small")
