"""What tests share: tiny networks, photographs, and the real data where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import xattn
from tests import networks
from xattn.models import Classifier

torch.set_num_threads(1)

DATA = Path(os.environ.get("XATTN_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured of tiny networks stays out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """A test draws the same weights alone and among others."""
    torch.manual_seed(0)


@pytest.fixture
def data() -> Path:
    """The folder of real networks and photographs; tests that need it are skipped where it is absent."""
    if not (DATA / "weights").is_dir():
        pytest.skip(f"no real networks and photographs at {DATA}: set XATTN_DATA")
    return DATA


@pytest.fixture
def tiny() -> Classifier:
    """A small random convolutional network for images of 32 × 32."""
    return xattn.attach(networks.small(), input_size=32, resize=36, name="tiny", labels=[f"class {k}" for k in range(5)])


@pytest.fixture
def images() -> torch.Tensor:
    """Seven images of 32 × 32 in pixel space."""
    return networks.pictures(7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of ten small photographs of noise, two of them in a folder below."""
    made = tmp_path / "photos"
    (made / "below").mkdir(parents=True)
    for number, picture in enumerate(networks.pictures(10, size=40)):
        place = made / ("below" if number > 7 else "") / f"{number}.png"
        Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(place)
    return made
