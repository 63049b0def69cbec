"""What is done on a device that is not here: by the meta device, which has shapes, types and layouts and no values, and by stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.inference import Predictor, Tuning
from xattn.inference.backends import pytorch
from xattn.inference.benchmark import Benchmark
from xattn.inference.cloning import clone_of
from xattn.inference.memory import free_memory, peak_bytes
from xattn.inference.predictor import plain_tuning
from xattn.inference.tuning import _key
from xattn.models import Classifier
from xattn.models.concurrency import evaluating

GPU = torch.device("cuda", 0)


@pytest.fixture
def classifier() -> Classifier:
    return xattn.attach(networks.small(), input_size=32, name="small")


@pytest.fixture
def on_meta(classifier: Classifier) -> Classifier:
    return classifier.to("meta")


class OnGPU(SimpleNamespace):
    """As much of a classifier as a predictor asks, which says that it is on a GPU; its numbers are computed here."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network=network, name="stand-in", device=GPU, level=None, channels_last=True)

    def normalise(self, images: Tensor) -> Tensor:
        return images

    def logits(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images)
        return found


@contextmanager
def seen_by(network: nn.Module) -> Iterator[list[Tensor]]:
    """What enters each convolution."""
    found: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("memory_format", ["channels-last", "contiguous"])
@pytest.mark.parametrize("precision", ["own", "bfloat16", "float16"])
@pytest.mark.parametrize("folded", [False, True])
def test_every_convolution_of_a_device_gets_the_layout_and_precision_of_the_tuning(
    on_meta: Classifier, memory_format: Any, precision: Any, folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    monkeypatch.setattr(pytorch, "clone_of", lambda *args, **kwargs: built.append(clone_of(*args, **kwargs)) or built[-1])
    run = Predictor(on_meta, Tuning(3, memory_format, folded, precision=precision), "fast")
    form = torch.channels_last if memory_format == "channels-last" else torch.contiguous_format
    dtype = {"own": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    network = (built[0] if built else on_meta).network
    with seen_by(network) as given:
        found = run(torch.empty(7, 3, 32, 32, device="meta"))
    assert found.is_meta
    assert found.shape == (7, on_meta.class_count)
    assert found.dtype == torch.float32  # whatever the network computes in
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert len(given) == 3 * convolutions  # chunks of 3, 3 and 1
    assert {tensor.dtype for tensor in given} == {dtype}
    assert all(tensor.is_contiguous(memory_format=form) for tensor in given[::convolutions])  # on meta, further layouts are not a GPU's
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert {weight.dtype for weight in weights} == {dtype}


def test_images_go_to_the_network_s_device_whatever_theirs(on_meta: Classifier) -> None:
    assert Predictor(on_meta, Tuning(2))(torch.rand(3, 3, 32, 32)).is_meta


def test_memory_of_a_forward_is_counted_on_a_device_without_values_about_as_here(classifier: Classifier) -> None:
    images = torch.rand(4, 3, 32, 32)
    here = peak_bytes(lambda: Predictor(classifier, Tuning(4))(images))
    there = classifier.to("meta")
    assert peak_bytes(lambda: Predictor(there, Tuning(4))(images.to("meta"))) == pytest.approx(here, rel=0.5)  # kernels differ in scratch


def test_a_gpu_takes_more_images_a_forward() -> None:
    assert plain_tuning(OnGPU(nn.Identity())).chunk > plain_tuning(SimpleNamespace(device=torch.device("cpu"))).chunk  # type: ignore[arg-type]


@pytest.mark.parametrize(("device", "graphs"), [(GPU, True), (torch.device("cpu"), False)])
def test_a_compiled_network_is_captured_in_a_graph_on_a_gpu_alone_and_its_answer_is_copied_out(
    device: torch.device, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[dict[str, Any]] = []
    answer = torch.zeros(2, 5)  # which a graph fills anew at each run

    def compiled(run: Any, *, dynamic: bool, options: dict[str, Any], into: Any = options) -> Any:
        into.append(options)
        return lambda images: answer.copy_(run(images))

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(pytorch, "clone_of", lambda runnable, *_, **__: runnable)
    one = OnGPU(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
    one.device = device
    run = pytorch.built(one, Tuning(2, compiled=True))  # type: ignore[arg-type]
    first, second = (run(images) for images in (torch.rand(2, 3, 2, 2), torch.ones(2, 3, 2, 2)))
    assert options == [{"triton.cudagraphs": True} if graphs else {}]
    assert not torch.equal(first, second)
    assert torch.equal(second, answer)
    assert first.data_ptr() != answer.data_ptr()


def _with_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes torch say that there is a GPU; what is asked of it is noted."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("empty"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: asked.append("wait"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (7 * 2**30, 16 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    return asked


@pytest.mark.parametrize(("level", "rounds"), [("exact", False), ("fast", True)])
def test_products_and_convolutions_are_rounded_to_tf32_at_level_fast_alone_and_only_inside(
    classifier: Classifier, level: Any, rounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_gpu(monkeypatch)
    run, seen = Predictor(classifier, Tuning(4), level), []
    monkeypatch.setattr(
        run, "_logits", lambda images: seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)) or images
    )
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    run(torch.rand(4, 3, 32, 32))
    assert seen == [(rounds or before[0], rounds)]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    with evaluating(classifier):
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("training", [True, False])
def test_a_recurrent_layer_has_a_backward_on_a_gpu_and_answers_as_in_eval_mode(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.ModuleList([nn.LSTM(3, 4, 2, dropout=0.5), nn.Dropout(0.5)]).train(training)
    steps = torch.rand(5, 2, 3)
    with evaluating(layers):
        assert not layers[0].training
        expected = layers[0](steps)[0]
    _with_gpu(monkeypatch)
    with evaluating(layers):
        with evaluating(layers):
            assert torch.equal(layers[0](steps)[0], expected)
        assert (layers[0].training, layers[0].dropout, layers[1].training) == (True, 0.0, False)  # cuDNN refuses a backward in eval mode
        assert torch.equal(layers[0](steps)[0], expected)
    assert (layers[0].training, layers[0].dropout, layers[1].training) == (training, 0.5, training)


class _Noisy(nn.LSTM):
    """A layer that drops weights itself while it is trained."""

    def forward(self, steps: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(nn.functional.dropout(steps, 0.5, self.training))[0]


def test_a_recurrent_layer_with_a_forward_of_its_own_stays_in_eval_mode_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, steps = _Noisy(3, 4).eval(), torch.rand(5, 2, 3)
    expected = layer(steps)
    _with_gpu(monkeypatch)
    with evaluating(layer):
        assert torch.equal(layer(steps), expected)
        assert not layer.training


def test_where_a_gpu_s_memory_runs_out_its_cache_is_emptied_and_the_work_goes_on_in_halves(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, sizes = _with_gpu(monkeypatch), []
    run = Predictor(classifier, Tuning(8))
    plain = run._logits

    def short(images: Tensor) -> Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return plain(images)

    monkeypatch.setattr(run, "_logits", short)
    images = torch.rand(5, 3, 32, 32)
    found = run(images)
    assert sizes == [5, 4, 2, 2, 1]
    assert asked == ["empty", "empty"]
    assert torch.allclose(found, classifier.predict(images).float(), atol=1e-5)


def test_free_memory_and_the_kept_measurement_are_those_of_the_gpu(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_gpu(monkeypatch)
    assert free_memory(GPU) == 7 * 2**30
    here = _key(classifier, "exact")
    monkeypatch.setattr(type(classifier), "device", GPU)
    first = _key(classifier, "exact")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "another GPU")
    assert len({here, first, _key(classifier, "exact")}) == 3


def test_a_clock_stops_when_the_gpu_is_done_and_half_precisions_are_those_that_it_has(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _with_gpu(monkeypatch)
    bench = Benchmark(classifier, "fast", torch.rand(2, 3, 32, 32), 4)
    tried: list[str] = []
    monkeypatch.setattr(bench, "_better", lambda best, others, *_, **__: tried.extend(other.precision for other in others) or best)
    bench.best(Tuning(2), compiling=False)
    assert set(tried) == {"own", "bfloat16"}
    monkeypatch.setattr(type(classifier), "device", GPU)
    bench.best(Tuning(2), compiling=False)
    assert "float16" in tried
    monkeypatch.setattr("xattn.inference.benchmark.TURN_S", 0.0)
    bench._timed(Tuning(2), lambda images: asked.append("forward"))  # type: ignore[arg-type, func-returns-value]
    assert asked == ["wait", "forward", "wait"]
    asked.clear()
    monkeypatch.setattr(torch.mps, "synchronize", lambda: asked.append("wait for Apple's"))
    monkeypatch.setattr(type(classifier), "device", torch.device("mps"))
    bench._timed(Tuning(2), lambda images: asked.append("forward"))  # type: ignore[arg-type, func-returns-value]
    assert asked == ["wait for Apple's", "forward", "wait for Apple's"]
