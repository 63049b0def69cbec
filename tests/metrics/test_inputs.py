"""What users hand to the functions of `xattn.metrics`: taken where the meaning is plain, refused with a sentence where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from xattn import metrics as m
from xattn.errors import InputError

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MASKS = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 2])
FILL = torch.tensor([0.5, 0.5, 0.5])
WEIGHTS = torch.randn(3 * 16 * 16, 4, generator=torch.Generator().manual_seed(2))


def logits(images: Tensor) -> Tensor:
    return (images.flatten(1) @ WEIGHTS) / 10


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "average_drop": m.average_drop,
    "average_gain": m.average_gain,
    "average_drop_deletion": m.average_drop_deletion,
    "insertion": lambda *given, **more: m.insertion(*given, fill=FILL, **more),
    "deletion": lambda *given, **more: m.deletion(*given, fill=FILL, **more),
    "insertion_correlation": lambda *given, **more: m.insertion_correlation(*given, fill=FILL, **more),
    "deletion_correlation": lambda *given, **more: m.deletion_correlation(*given, fill=FILL, **more),
    "adcc": lambda *given, **more: m.adcc(*given, lambda images: MASKS, **more),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_probabilities_are_refused_and_give_the_values_of_logits_once_said(name: str) -> None:
    metric = FUNCTIONS[name]
    right = metric(logits, IMAGES, MASKS, TARGETS)
    with pytest.raises(InputError, match=r"predict must give logits, before any softmax.*outputs='probabilities'"):
        metric(lambda images: logits(images).softmax(1), IMAGES, MASKS, TARGETS)
    found = metric(lambda images: logits(images).double().softmax(1), IMAGES, MASKS, TARGETS, outputs="probabilities")
    assert torch.allclose(found, right, rtol=1e-4, atol=1e-4)
    sigmoid = metric(logits, IMAGES, MASKS, TARGETS, multi_label=True)
    with pytest.raises(InputError, match="before any sigmoid"):
        metric(lambda images: logits(images).sigmoid(), IMAGES, MASKS, TARGETS, multi_label=True)
    found = metric(lambda images: logits(images).double().sigmoid(), IMAGES, MASKS, TARGETS, multi_label=True, outputs="probabilities")
    assert torch.allclose(found, sigmoid, rtol=1e-4, atol=1e-4)


def test_outputs_said_to_be_logits_are_taken_as_they_are_and_logits_are_no_probabilities() -> None:
    def soft(images: Tensor) -> Tensor:
        return logits(images).softmax(1)

    assert torch.isfinite(m.average_drop(soft, IMAGES, MASKS, TARGETS, outputs="logits")).all()
    with pytest.raises(InputError, match=r"probabilities lie in \[0, 1\]; predict gave"):
        m.average_drop(logits, IMAGES, MASKS, TARGETS, outputs="probabilities")
    with pytest.raises(InputError, match="outputs is 'logits' or 'probabilities'"):
        m.average_drop(logits, IMAGES, MASKS, TARGETS, outputs="softmax")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_masks_that_are_not_finite_are_refused_and_their_images_named(name: str, value: float) -> None:
    masks = MASKS.clone()
    masks[1, 3, 3] = value
    with pytest.raises(InputError, match=r"of 1 of 2 images hold NaN or infinity \(numbers 1\)"):
        FUNCTIONS[name](logits, IMAGES, masks, TARGETS)
    with pytest.raises(InputError, match="masks that explain gives are finite"):
        m.coherency(IMAGES, MASKS, lambda images: masks)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arrays_and_masks_with_an_axis_for_channels_give_the_same_values(name: str) -> None:
    right = FUNCTIONS[name](logits, IMAGES, MASKS, TARGETS)
    found = FUNCTIONS[name](lambda images: logits(images).numpy(), IMAGES.numpy(), MASKS[:, None].numpy(), TARGETS.numpy())
    assert torch.equal(torch.nan_to_num(found), torch.nan_to_num(right))
    one = FUNCTIONS["deletion"](logits, IMAGES[:1], MASKS[0], [0])
    assert torch.equal(one, FUNCTIONS["deletion"](logits, IMAGES, MASKS, TARGETS)[:1])


def test_metrics_of_maps_alone_take_the_same_forms() -> None:
    assert torch.equal(m.complexity(MASKS[:, None]), m.complexity(MASKS))
    assert torch.equal(m.sparsity(MASKS.numpy()), m.sparsity(MASKS))
    assert torch.equal(m.to_masks(MASKS[:, None], (16, 16)).masks, m.to_masks(MASKS, (16, 16)).masks)
    with pytest.raises(InputError, match=r"masks lie in \[0, 1\]"):
        m.complexity(MASKS * 5)
    with pytest.raises(InputError, match=r"One map is maps\[None\]"):
        m.complexity(MASKS[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": IMAGES[0]}, r"got \(3, 16, 16\). One image is images\[None\]"),
        ({"images": IMAGES[:0]}, "at least one"),
        ({"images": (IMAGES * 255).byte()}, "Divide 8-bit images by 255"),
        ({"images": IMAGES * 255}, "in pixel space"),
        ({"images": IMAGES * 2 - 1}, "leave out any normalisation"),
        ({"images": "cat.png"}, "got str"),
        ({"masks": MASKS[:1]}, "one for each of 2 images"),
        ({"masks": None}, "got NoneType"),
        ({"masks": torch.rand(2, 3, 16, 16)}, r"got \(2, 3, 16, 16\)"),
        ({"targets": torch.tensor([0, 9])}, "class 9 is outside the 4 classes"),
        ({"targets": torch.tensor([-1, 0])}, "class -1 is outside"),
        ({"targets": torch.eye(4)[:2]}, "For one-hot rows, give the argmax"),
        ({"targets": torch.tensor([0.0, 1.0])}, r"whole numbers; got \(2,\) float32"),
        ({"targets": [None, 1]}, "targets are class indices"),
        ({"targets": m.Contrast([[0, 1], [2, 2]], [[1.0, -1.0], [1.0, -1.0]])}, r"the contrast 2 - 2 is 0 for every output of predict"),
        ({"chunk": 0}, "chunk is the number of images per forward, 1 or more; got 0"),
        ({"predict": "resnet"}, "predict is a function from images to logits"),
        ({"predict": lambda images: None}, "it gave NoneType"),
        ({"predict": lambda images: {"logits": logits(images)}}, "Wrap it, for example as lambda images"),
        ({"predict": lambda images: logits(images)[:1]}, r"for 8 images it gave \(1, 4\)"),
        ({"fill": "red"}, r"a fill is a colour in pixel space.*got 'red'"),
        ({"fill": [124, 116, 104]}, r"one number in \[0, 1\]"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(changed: dict[str, Any], message: str) -> None:
    given = {"predict": logits, "images": IMAGES, "masks": MASKS, "targets": TARGETS, "fill": FILL} | changed
    with pytest.raises(InputError, match=message):
        m.deletion(**given)
