"""What cannot be used as an argument of `adapt`, `tasks.score` and `patches.find` is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import xattn
import xattn.patches
import xattn.tasks
from xattn.errors import XattnError

NOTHING = (True, 1.5, "red", float("nan"), 10**30, {}, object())
IMAGES = torch.rand(2, 3, 64, 64)


def adapted(classifier: Any, **changes: Any) -> object:
    return xattn.adapt(classifier, **{"images": IMAGES, "labels": [0, 1], "names": None, "steps": 1} | changes)


def found(classifier: Any, **changes: Any) -> object:
    return xattn.patches.find(classifier, **{"images": IMAGES, "finder": "random"} | changes)


def scored(classifier: Any, **changes: Any) -> object:
    return xattn.tasks.score(classifier, **{"data": "nowhere"} | changes)


@pytest.mark.parametrize("call", [adapted, found, scored])
def test_what_is_no_classifier_is_refused(call: Callable[..., object]) -> None:
    for value in (None, *NOTHING):
        with pytest.raises(XattnError, match="a classifier of xattn is needed"):
            call(value)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        *((adapted, argument) for argument in ("labels", "names", "steps", "batch_size")),
        *((found, argument) for argument in ("images", "n", "side")),
    ],
)
def test_arguments_of_another_kind_are_refused(call: Callable[..., object], argument: str) -> None:
    classifier = xattn.load("birds:gap", device="cpu")
    for value in NOTHING:
        if value == 10**30 and argument in ("steps", "batch_size", "n"):
            continue  # a whole number
        with pytest.raises(XattnError):
            call(classifier, **{argument: value})


def test_a_data_set_at_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(XattnError, match="null bytes"):
        scored(xattn.load("birds:gap", device="cpu"), data="cub:\0")
