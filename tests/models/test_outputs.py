"""Where a network's answer is found in what it returns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.errors import UnsupportedError


@dataclass
class WithLogits:
    """As a transformers output: the answer is neither the first nor the only tensor."""

    loss: Tensor
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Named(NamedTuple):
    """As torchvision's Inception: logits, then those of a classifier on the side."""

    logits: Tensor
    aux: Tensor


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.network = networks.small()
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.network(images), images)


def other(logits: Tensor) -> Tensor:
    return logits.flip(1) - 3


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tensor": lambda logits, images: logits,
    "with two axes of one": lambda logits, images: logits[:, :, None, None],
    "an object": lambda logits, images: WithLogits(other(logits).mean(), logits, (other(logits),)),
    "an object whose other values are as wide": lambda logits, images: WithLogits(other(logits), logits, (other(logits), logits)),
    "a mapping": lambda logits, images: OrderedDict(loss=other(logits).mean(), hidden=other(logits), logits=logits),
    "a segmentation network's mapping": lambda logits, images: OrderedDict(out=logits, aux=other(logits)),
    "a tuple": lambda logits, images: (logits, other(logits)),
    "a tuple that begins with a map": lambda logits, images: (images, logits, other(logits)),
    "a named tuple": lambda logits, images: Named(logits, other(logits)),
    "a mapping of another name": lambda logits, images: {"loss": other(logits).mean(), "scores": logits},
    "a list with None": lambda logits, images: [None, logits],
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_logits_are_read_out_of_what_a_network_returns(kind: str, images: Tensor) -> None:
    plain = xattn.attach(networks.small(), input_size=32, resize=36)
    clf = xattn.attach(Wrapped(OUTPUTS[kind]).eval(), input_size=32, resize=36)
    assert torch.equal(clf.predict(images), plain.predict(images))
    assert clf.class_count == 5
    maps, expected = (xattn.explain(each, images, ["grad-cam", "score-cam"]) for each in (clf, plain))
    for method in maps:
        assert torch.allclose(maps.raw[method], expected.raw[method], atol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "came"),
    [
        (lambda logits, images: {"count": 3}, "it gave dict"),
        (lambda logits, images: (logits[0], 3), "it gave tuple"),
        (lambda logits, images: logits[:, None], r"it gave \(1, 1, 5\)"),
        (lambda logits, images: "cat", "it gave str"),
    ],
)
def test_an_answer_that_is_not_found_is_reported_with_what_came(wrap: Callable[[Tensor, Tensor], Any], came: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"it must give logits \(batch, classes\).*{came}"):
        xattn.attach(Wrapped(wrap).eval(), input_size=32, resize=36, name="it")


@pytest.mark.parametrize("asked", [2, "2", "class 2", [2] * 7, torch.full((7,), 2)])
def test_a_class_that_is_given_is_explained_and_rows_say_so(asked: object, images: Tensor) -> None:
    labels = [f"class {k}" for k in range(5)]
    clf = xattn.attach(networks.small(), input_size=32, resize=36, labels=labels)
    maps = xattn.explain(clf, images, ["grad-cam"], target=asked)
    assert maps.target_rule == "given"
    assert maps.targets.tolist() == [2] * 7
    rows = xattn.evaluate(clf, images, maps, ["average-drop"])
    assert set(rows["target_rule"]) == {"given"}
    assert set(rows["target"]) == {2}
    assert torch.allclose(torch.tensor(rows["probability"].to_numpy()), clf.predict(images).softmax(1)[:, 2].double(), atol=1e-6)
