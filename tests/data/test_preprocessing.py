"""The crop that a network sees, against torchvision's."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from xattn.data.preprocessing import Preprocessing


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize(("size", "resize", "crop"), [((51, 40), 36, 32), ((40, 57), 33, 32), ((32, 32), 32, 32), ((61, 30), (40, 37), 25)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_the_crop_is_torchvision_s(mode: str, size: tuple[int, int], resize: int | tuple[int, int], crop: int, interpolation: str) -> None:
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = torch.randint(256, (size[1] * size[0] * bands,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.frombytes(mode, size, bytes(noise.tolist()))
    own = Preprocessing((crop, crop), resize, (0.5,) * bands, (0.5,) * bands, interpolation).crop(picture)
    short = [resize] if isinstance(resize, int) else list(resize)
    resized = functional.resize(picture, short, interpolation=InterpolationMode(interpolation), antialias=True)
    assert torch.equal(own, functional.pil_to_tensor(functional.center_crop(resized, [crop, crop])))
