"""The names of networks, read without importing the libraries that have them."""

from __future__ import annotations

import open_clip
import timm
import torchvision

from xattn.models import model_names


def test_the_names_are_those_that_the_libraries_list() -> None:
    names = model_names()
    assert len(set(names)) == len(names)
    listed = {
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "timm": timm.list_models(),
        "open_clip": open_clip.list_models(),
    }
    for source, theirs in listed.items():
        assert {name.partition(":")[2] for name in names if name.startswith(f"{source}:")} == set(theirs)
