"""What is done for a GPU outside `inference`, where there is none: by stand-ins, and by the meta device."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

import xattn
from tests import networks
from xattn.data.batches import Batch
from xattn.data.images import ImageSource
from xattn.data.preprocessing import pixels
from xattn.inference import Tuning
from xattn.inference.tuning import Tuned
from xattn.models import Classifier
from xattn.models.concurrency import evaluating
from xattn.models.repeatability import instability
from xattn.study import execution

GPU, APPLE = torch.device("cuda", 1), torch.device("mps")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes torch say that there is a GPU; what is asked of it is noted."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("empty"))
    return asked


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices whose generators are kept as they are."""
    found: list[Any] = []

    @contextlib.contextmanager
    def fork_rng(devices: Any = None) -> Iterator[None]:
        found.append(devices)
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    return found


def test_decoded_batches_are_pinned_where_there_is_a_gpu_alone(gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def loader(*args: Any, pin_memory: bool, **kwargs: Any) -> list[Batch]:
        asked.append(pin_memory)
        return []

    monkeypatch.setattr(torch.utils.data, "DataLoader", type("Loader", (), {"__class_getitem__": classmethod(lambda cls, _: loader)}))
    source = ImageSource([Image.new("RGB", (40, 40))])
    preprocessing = xattn.load("birds:gap", device="cpu").preprocessing
    list(source.batches(preprocessing, 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    list(source.batches(preprocessing, 1))
    assert asked == [True, False]


def test_pinning_a_batch_pins_its_crops_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, *_: pinned.append(self) or self.clone())
    batch = Batch(3, crops=torch.ones(2, 3, 4, 4, dtype=torch.uint8), failed=[("a", "why")])  # type: ignore[list-item]
    found = pin_memory(batch)  # as torch's loader does
    assert len(pinned) == 1
    assert pinned[0] is batch.crops
    assert (found.number, found.failed, found.crops is batch.crops) == (3, batch.failed, False)
    assert pin_memory(Batch(0)).number == 0  # nothing was decoded: there is nothing to pin
    assert len(pinned) == 1


def test_crops_are_copied_while_the_gpu_computes_and_are_channels_last_there(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[bool] = []
    copy = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], torch.device):
            waits.append(not kwargs.get("non_blocking", False))
        return copy(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", to)
    found = pixels(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.device("meta"))
    assert waits == [False]
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.float32, (2, 3, 8, 8))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert pixels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.device("meta"), torch.float64).dtype == torch.float64


def test_a_classifier_is_loaded_on_the_gpu_where_there_is_one_and_none_is_named(gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Classifier, "to", lambda self, device: asked.append(device) or self)
    xattn.load("birds:gap")
    xattn.load("birds:gap", device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    xattn.load("birds:gap")
    assert asked == ["cuda", "cpu", "cpu"]


def test_tf32_is_off_until_the_last_of_several_forwards_has_ended_and_then_as_before(gpu: list[str]) -> None:
    before = torch.backends.cudnn.allow_tf32
    first, second = (evaluating(networks.small()) for _ in range(2))
    try:
        torch.backends.cudnn.allow_tf32 = True
        first.__enter__()
        assert not torch.backends.cudnn.allow_tf32
        second.__enter__()
        first.__exit__(None, None, None)
        assert not torch.backends.cudnn.allow_tf32
        second.__exit__(None, None, None)
        assert torch.backends.cudnn.allow_tf32
        with pytest.raises(ZeroDivisionError), evaluating(networks.small()):
            _ = 1 / 0
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Placed(Tensor):
    """A tensor that says that it is elsewhere; it is computed with here."""

    device = GPU  # type: ignore[assignment]


def test_the_gpu_s_generator_is_kept_where_a_network_is_asked_twice(forked: list[Any]) -> None:
    image = torch.rand(1, 3, 8, 8)
    network = networks.small()
    forked.clear()
    assert instability(network, lambda images: images.as_subclass(Tensor).flatten(1), image.as_subclass(Placed), "net") is None
    instability(network, lambda images: images.flatten(1), image, "net")
    assert forked == [[GPU], []]


@pytest.mark.parametrize(
    ("device", "devices", "wanted"),
    [(GPU, 1, ("gpu", [1])), (GPU, 2, ("gpu", 2)), (APPLE, 1, ("mps", 1)), (torch.device("cpu"), 1, ("cpu", 1))],
)
def test_training_runs_on_the_classifier_s_own_device(
    device: torch.device, devices: int, wanted: tuple[str, Any], forked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    fit: Any = importlib.import_module("xattn.training.fit")
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(fit.lightning, "Trainer", lambda *, accelerator, devices, **_: asked.append((accelerator, devices)))
    monkeypatch.setattr(fit, "loggers", lambda folder: [])
    given: Any = SimpleNamespace(device=device, epochs=1)
    fit.trainer_for(given, Path(), given, [], accelerator=None, devices=devices)
    assert asked == [wanted]
    classifier = xattn.attach(networks.small(), input_size=32)
    monkeypatch.setattr(Classifier, "device", device)
    monkeypatch.setattr(Classifier, "to", lambda self, _: self)
    forked.clear()
    with fit.as_it_was(classifier):
        pass
    assert forked == [[device] if device.type == "cuda" else []]


@pytest.mark.parametrize(
    ("device", "level", "measures"), [(GPU, "fast", True), (GPU, "exact", False), (torch.device("cpu"), "fast", False)]
)
def test_what_tf32_changes_is_measured_on_a_gpu_at_level_fast(
    device: torch.device, level: Any, measures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Measured(Exception):
        pass

    def predictor(*_: Any) -> None:
        raise Measured

    monkeypatch.setattr(execution, "Predictor", predictor)
    plan: Any = SimpleNamespace(methods_of=lambda _: [], metrics=[])
    with pytest.raises(Measured) if measures else contextlib.nullcontext():
        assert execution._deviation(plan, SimpleNamespace(device=device), Tuned(Tuning(4), level, "by hand"), 4) is None  # type: ignore[arg-type]


def test_actors_get_the_gpu_s_memory_and_classifiers_come_back_to_their_devices(gpu: list[str]) -> None:
    pytest.importorskip("ray")
    from xattn.study.engines import ray as engine

    moved: list[Any] = []
    one: Any = SimpleNamespace(device=GPU, to=moved.append)
    seen: list[Any] = []
    with contextlib.suppress(KeyboardInterrupt), engine._on_the_cpu([one]):
        seen += [list(moved), list(gpu)]
        raise KeyboardInterrupt
    assert seen == [["cpu"], ["empty"]]
    assert moved == ["cpu", GPU]
