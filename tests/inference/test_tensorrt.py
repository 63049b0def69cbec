"""TensorRT without a GPU: a stand-in for `torch_tensorrt.dynamo` takes what that of 2.14 takes, and no more."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from tests import networks
from xattn.errors import MissingPackageError, SettingError, UnsupportedError
from xattn.inference import Predictor, Tuning, backends, tuned
from xattn.inference import tuning as module
from xattn.inference.backends import tensorrt
from xattn.inference.benchmark import Benchmark
from xattn.models import Classifier

HERE = "cpu"


class Engine:
    """A compiled network: for images of one shape, type and layout, from one thread at a time, into the memory of its last answer."""

    def __init__(self, network: Callable[[Tensor], Tensor], example: Tensor, off: float) -> None:
        self.network, self.example, self.off = network, example, off
        self.running = False

    def __call__(self, images: Tensor) -> Tensor:
        assert not self.running, "two threads run one engine"
        self.running = True
        assert images.shape == self.example.shape
        assert images.dtype == self.example.dtype
        assert images.is_contiguous()
        found = self.network(images).clone()
        found[:, 0] += self.off
        self.running = False
        return found


class Compiler(ModuleType):
    """Stands in for `torch_tensorrt.dynamo`; the real `compile` would take misspelt settings without a word."""

    def __init__(self) -> None:
        super().__init__("torch_tensorrt.dynamo")
        self.calls: list[dict[str, Any]] = []
        self.off = 0.0

    def compile(
        self,
        exported_program: torch.export.ExportedProgram,
        inputs: Sequence[Tensor] | None = None,
        *,
        device: torch.device | None = None,
        disable_tf32: bool = False,
        require_full_compilation: bool = False,
        min_block_size: int = 5,
        immutable_weights: bool = True,
    ) -> Engine:
        assert isinstance(exported_program, torch.export.ExportedProgram)
        assert inputs is not None
        (example,) = inputs
        graph = exported_program.run_decompositions({}).module()
        self.calls.append({"inputs": example, "device": device, "disable_tf32": disable_tf32})
        return Engine(graph, example, self.off)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Torch-TensorRT as if it were installed, and this processor a GPU."""
    found = Compiler()
    known = importlib.metadata.version
    monkeypatch.setitem(sys.modules, "torch_tensorrt", ModuleType("torch_tensorrt"))
    monkeypatch.setitem(sys.modules, "torch_tensorrt.dynamo", found)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.14.0" if name == "torch-tensorrt" else known(name))
    monkeypatch.setattr(tensorrt, "DEVICE", HERE)
    monkeypatch.setattr(backends.openvino, "version", lambda classifier: None)
    return found


def apart(found: Tensor, plain: Tensor) -> float:
    return float((found.double().softmax(1) - plain.double().softmax(1)).abs().max())


@pytest.mark.parametrize("tuning", [Tuning(3, backend="tensorrt"), Tuning(8, folded=True, backend="tensorrt")], ids=str)
@pytest.mark.parametrize("head", ["gap", "br-npa", "b-cnn", "ca-stream"])
@pytest.mark.filterwarnings("ignore")
def test_probabilities_are_the_plain_network_s_in_chunks_of_one_size(compiler: Compiler, images: Tensor, tuning: Tuning, head: str) -> None:
    classifier = xattn.attach(networks.small(), input_size=32, name="small", head=head)
    predictor = Predictor(classifier, tuning)
    assert apart(predictor(images), classifier.predict(images)) <= 1e-5
    (call,) = compiler.calls
    assert call["inputs"].shape == (tuning.chunk, 3, 32, 32)
    assert call["device"] == classifier.device
    assert call["disable_tf32"]
    whole = predictor(images)
    for size in (1, 2):
        assert torch.equal(torch.cat([predictor(batch) for batch in images.split(size)]), whole)


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_half_precision_is_that_of_the_network_and_its_images_and_answers_are_float32(
    compiler: Compiler, tiny: Classifier, images: Tensor, precision: Any, dtype: torch.dtype
) -> None:
    found = Predictor(tiny, Tuning(4, precision=precision, backend="tensorrt"), "fast")(images)
    assert compiler.calls[0]["inputs"].dtype == dtype
    assert found.dtype == torch.float32
    assert 0 < apart(found, tiny.predict(images)) <= 0.05


def test_an_engine_keeps_the_weights_of_when_it_was_built(compiler: Compiler, images: Tensor) -> None:
    classifier = xattn.attach(networks.small(), input_size=32, name="small")
    predictor = Predictor(classifier, Tuning(7, backend="tensorrt"))
    before = predictor(images)
    with torch.no_grad():
        for weight in classifier.network.parameters():
            weight.zero_()
    assert torch.equal(predictor(images), before)


def test_threads_take_turns_with_an_engine(compiler: Compiler, tiny: Classifier) -> None:
    predictor, pictures = Predictor(tiny, Tuning(4, backend="tensorrt")), networks.pictures(16)
    whole, found = predictor(pictures), {}

    def run(number: int) -> None:
        for _ in range(10):
            found[number] = predictor(pictures)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(torch.equal(each, whole) for each in found.values())


@pytest.mark.parametrize(("off", "chosen"), [(0.0, "tensorrt"), (1e-3, "torch")])
def test_the_tuner_takes_it_where_it_is_faster_and_within_the_tolerance_and_says_so(
    compiler: Compiler, tiny: Classifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, off: float, chosen: str
) -> None:
    def timed(self: Benchmark, tuning: Tuning, _predictor: Predictor) -> float:
        rate = self.rates[str(tuning)] = 2.0 if tuning.backend == "tensorrt" else 1.0
        return rate

    monkeypatch.setattr(Benchmark, "_timed", timed)
    monkeypatch.setattr(module, "WORTH_COMPILING_S", float("inf"))
    compiler.off = off
    with caplog.at_level(logging.INFO, "xattn"):
        found = tuned(tiny, forwards=10_000)
    assert found.tuning.backend == chosen
    if chosen == "tensorrt":
        assert "tensorrt (measured; 2 images per second here" in str(found)
    else:
        assert "tiny is not run by tensorrt: probabilities differ by" in caplog.text


def test_what_it_cannot_run_says_why(compiler: Compiler, tiny: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = xattn.attach(networks.seeded(networks.Branching), input_size=32, name="odd")
    with pytest.raises(SettingError, match="odd cannot run in chunks of 8, tensorrt: .*data-dependent"):
        tuned(odd, tune="backend=tensorrt")
    precise = xattn.attach(networks.precise(), input_size=32, name="precise")
    with pytest.raises(UnsupportedError, match="runs float32 networks on a GPU .* precise is float64 on cpu"):
        Predictor(precise, Tuning(backend="tensorrt"))
    monkeypatch.setitem(sys.modules, "torch_tensorrt.dynamo", None)  # cannot be imported, as without TensorRT's libraries
    with pytest.raises(UnsupportedError, match=r"torch_tensorrt cannot be imported: .*torch_tensorrt\.dynamo"):
        Predictor(tiny, Tuning(2, backend="tensorrt"))
    monkeypatch.setattr(tensorrt, "DEVICE", "cuda")
    assert backends.others(tiny) == {}
    with pytest.raises(UnsupportedError, match=r"on a GPU \(cuda\); tiny is float32 on cpu"):
        Predictor(tiny, Tuning(2, backend="tensorrt"))
    monkeypatch.setattr(tensorrt, "_version", lambda: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'xattn\[tensorrt\]'"):
        tuned(tiny, tune="backend=tensorrt")


def test_shapes_types_and_devices_are_right_where_tensors_have_no_values(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "DEVICE", "meta")
    classifier = xattn.attach(networks.small(), input_size=32, name="small").to("meta")
    found = Predictor(classifier, Tuning(4, backend="tensorrt"))(torch.empty(6, 3, 32, 32))
    assert found.is_meta
    assert found.shape == (6, classifier.class_count)
    assert compiler.calls[0]["inputs"].is_meta
    assert compiler.calls[0]["device"] == torch.device("meta")
