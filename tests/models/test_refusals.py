"""Networks that cannot be explained say why when they are attached, and errors of a network's own code are reported as such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.errors import UnsupportedError


class After(nn.Module):
    """`small`, and something of its logits."""

    def __init__(self, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.after = networks.small(), after

    def forward(self, images: Tensor) -> Any:
        return self.after(self.network(images))


def raising(error: Exception) -> Callable[[Tensor], Tensor]:
    def step(_: Tensor) -> Tensor:
        raise error

    return step


def compiled_in_part() -> nn.Module:
    network = networks.small()
    network[2] = torch.compile(network[2], backend="eager")
    return network


def without_forward() -> nn.Module:
    network = nn.Module()
    network.inner = networks.small()
    return network


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return networks.small()


def compiled_in_place() -> nn.Module:
    network = networks.small()
    network.compile(backend="eager")
    return network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.small().to("meta"), r"on the meta device: '0.weight' has no values\. Load its weights first"),
        (lambda: networks.small().to(torch.complex64), r"complex weights \('0.weight'\)"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), r"lazy layers: '0.weight' has no shape yet\. Run the network once"),
        (compiled_in_part, r"Sequential.2 is compiled; compiled code runs no hooks that are added later"),
        (compiled_in_place, r"Sequential is compiled; compiled code runs no hooks that are added later"),
        (without_forward, r'missing the required "forward" function\. Attach a module whose forward takes images and returns logits'),
        (made_in_inference_mode, r"Its weights were made under torch.inference_mode: build the network outside of it"),
        (lambda: After(lambda z: z[:, :0]), r"must give logits .* it gave \(1, 0\)"),
        (lambda: After(lambda z: torch.complex(z, z)), r"it gave torch.complex64 \(1, 5\)"),
        (lambda: After(lambda z: z.to_sparse()), r"it gave torch.sparse_coo \(1, 5\)"),
        (lambda: After(lambda z: z[:1]), r"gives 1 outputs for 2 images: its forward must give one for each image"),
        (lambda: After(raising(KeyError("odd"))), r"cannot run an image \(1, 3, 32, 32\): KeyError: 'odd'\. If it takes"),
        (lambda: After(raising(ZeroDivisionError())), r"cannot run an image \(1, 3, 32, 32\): ZeroDivisionError\. If it takes"),
        (lambda: After(raising(StopIteration())), r"cannot run an image .*: StopIteration\."),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules", "ignore:Lazy modules")
def test_a_network_that_cannot_be_explained_says_why(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        xattn.attach(make().eval(), input_size=32, resize=36)


@pytest.mark.parametrize("error", [KeyError("odd"), RuntimeError("odd"), OSError("odd")])
def test_what_a_network_raises_later_is_reported_as_its_own(error: Exception, images: Tensor, tmp_path: Path) -> None:
    clf = xattn.attach(After(lambda z: raising(error)(z) if len(z) == 7 else z), input_size=32, resize=36)
    message = rf"After cannot run images \(7, 3, 32, 32\): {type(error).__name__}: '?odd'?\. It ran one image of noise"
    with pytest.raises(UnsupportedError, match=message) as caught:
        xattn.explain(clf, images)
    assert caught.value.__cause__ is error
    study = xattn.Study([clf], ["grad-cam"], ["sparsity"], torch.utils.data.TensorDataset(images), tmp_path, batch_size=7, progress=False)
    with pytest.raises(UnsupportedError, match=message):
        study.run()


def test_that_memory_ran_out_stays_torch_s_error(images: Tensor) -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    clf = xattn.attach(After(lambda z: raising(error)(z) if len(z) == 7 else z), input_size=32, resize=36)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        clf.predict(images)


class Undifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("derivative is not implemented")


def test_a_backward_that_fails_names_methods_that_need_none(images: Tensor) -> None:
    clf = xattn.attach(After(Undifferentiable.apply), input_size=32, resize=36)
    with pytest.raises(
        UnsupportedError, match=r"passes no gradient from its output back \(derivative is not implemented\)\. Use a method w"
    ):
        xattn.explain(clf, images, ["grad-cam"])
    assert xattn.explain(clf, images[:1], ["activation-map"]).raw["activation-map"].shape == (1, 8, 8)
