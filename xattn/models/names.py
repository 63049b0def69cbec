"""Names of networks, read from files without importing their libraries, which takes seconds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from xattn.birds.pretrained import pretrained_names

DECLARATION = re.compile(r"^@register_model(?:\(\))?\n(?:@.*\n|    .*\n|\)\n)*def (\w+)", re.MULTILINE)  # as in torchvision and timm


def model_names() -> list[str]:
    """Names that `xattn.load` knows: the shipped classifiers, torchvision's classification networks, timm's and open_clip's if they are
    installed. Those on the Hugging Face hub are not listed.
    """
    names = pretrained_names()
    names += [f"torchvision:{name}" for name in _declared("torchvision")]
    names += [f"timm:{name}" for name in _declared("timm")]
    return names + [f"open_clip:{path.stem}" for path in _files("open_clip", "model_configs/*.json")]


def _declared(package: str) -> list[str]:
    """The networks that the modules of an installed package register, in order."""
    return sorted(name for path in _files(package, "models/*.py") for name in DECLARATION.findall(path.read_text(encoding="utf-8")))


def _files(package: str, pattern: str) -> list[Path]:
    """Files of a package, which is not imported; none if it is not installed."""
    spec = importlib.util.find_spec(package)
    places = [] if spec is None else spec.submodule_search_locations or []
    return sorted(path for place in places for path in Path(place).glob(pattern))
