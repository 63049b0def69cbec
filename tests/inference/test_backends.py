"""Other backends than torch: chosen where they are installed, right and faster; the contract of predictors is in test_predictor.py."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.errors import MissingPackageError, NameUnknownError, SettingError
from xattn.explainers import api
from xattn.inference import Predictor, Tuning, backends, fastest, tuned
from xattn.inference import tuning as module
from xattn.inference.backends import openvino
from xattn.inference.backends.quiet import quiet
from xattn.inference.benchmark import Benchmark
from xattn.inference.context import shared_predictor
from xattn.models import Classifier


def _has_openvino() -> bool:
    try:
        return bool(importlib.metadata.version("openvino"))
    except importlib.metadata.PackageNotFoundError:
        return False


installed = pytest.mark.skipif(not _has_openvino(), reason="needs xattn[openvino]")


def apart(found: Tensor, plain: Tensor) -> float:
    return float((found.double().softmax(1) - plain.double().softmax(1)).abs().max())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes the other backend one that is off by so much in the first logit."""

    def off_by(much: float) -> None:
        def built(classifier: Classifier, tuning: Tuning) -> Callable[[Tensor], Tensor]:
            off = torch.tensor([much, 0, 0, 0, 0])
            return lambda images: classifier.predict(images) + off

        monkeypatch.setattr(backends, "others", lambda classifier: {"openvino": "1.0"})
        monkeypatch.setattr(module, "others", lambda classifier: {"openvino": "1.0"})
        monkeypatch.setattr(openvino, "built", built)

    return off_by


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Images per second by words of a tuning's description; the others run at 1."""
    rates: dict[str, float] = {"compiled": 0.0}

    def timed(self: Benchmark, tuning: Tuning, _predictor: Predictor) -> float:
        rate = next((rate for words, rate in rates.items() if words in str(tuning)), 1.0)
        self.rates[str(tuning)] = rate
        return rate

    monkeypatch.setattr(Benchmark, "_timed", timed)
    monkeypatch.setattr(module, "WORTH_COMPILING_S", float("inf"))
    return rates


def test_the_tuner_takes_a_backend_that_is_faster_says_so_and_keeps_it(
    tiny: Classifier, stand_in: Callable[[float], None], clocked: dict[str, float]
) -> None:
    stand_in(0.0)
    clocked["openvino"] = 2.0
    found = tuned(tiny, forwards=10_000)
    assert found.tuning.backend == "openvino"
    told = f"chunks of {found.tuning.chunk}, openvino (measured; 2 images per second here; 1 in chunks of 8, channels-last)"
    assert str(found) == told
    again = tuned(tiny, forwards=10_000)
    assert (again.origin, again.tuning) == ("kept from an earlier measurement", found.tuning)
    assert module.Tuned.of(json.loads(json.dumps(found.as_dict())), "kept").tuning == found.tuning


def test_the_tuner_stays_with_torch_where_the_other_is_no_faster_or_the_work_too_little(
    tiny: Classifier, stand_in: Callable[[float], None], clocked: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(0.0)
    clocked["openvino"] = 1.02
    assert tuned(tiny, forwards=10_000).tuning.backend == "torch"
    clocked["openvino"] = 2.0
    monkeypatch.setattr(module, "_earlier", lambda key: None)
    assert "openvino" not in str(tuned(tiny, forwards=30).speed)


@pytest.mark.parametrize(("level", "off", "limit"), [("exact", 1e-3, "1e-05"), ("fast", 2.0, "0.1")])
def test_a_backend_that_gives_other_probabilities_is_refused_and_the_log_says_why(
    tiny: Classifier,
    stand_in: Callable[[float], None],
    clocked: dict[str, float],
    caplog: pytest.LogCaptureFixture,
    level: Any,
    off: float,
    limit: str,
) -> None:
    stand_in(off)
    clocked["openvino"] = 2.0
    with caplog.at_level(logging.INFO, "xattn"):
        found = tuned(tiny, level, forwards=10_000)
    assert found.tuning.backend == "torch"
    assert f"more than {limit}" in next(why for way, why in found.refused.items() if "openvino" in way)
    assert "tiny is not run by openvino: probabilities differ by" in caplog.text


def test_heads_on_one_backbone_run_alone_where_a_backend_gives_them_other_probabilities(
    tiny: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [tiny, xattn.attach(tiny.network, input_size=32, resize=36, name="tiny", head="ca-stream")]
    right = openvino.built if _has_openvino() else None
    for off in (0.0, 1e-3):
        monkeypatch.setattr(openvino, "built", lambda shared, tuning, off=off: lambda images: shared(images) + off * torch.eye(10)[0])
        assert (shared_predictor(heads, Tuning(4, backend="openvino"), "exact") is None) == (off > 0)
    if right is not None:
        monkeypatch.setattr(openvino, "built", right)
        together = shared_predictor(heads, Tuning(4, backend="openvino"), "exact")
        assert together is not None
        for classifier, logits in zip(heads, together.predict(networks.pictures(6)), strict=True):
            assert apart(logits, classifier.predict(networks.pictures(6))) <= 1e-5


def test_a_cached_measurement_is_adapted_to_the_work() -> None:
    ways = {"plain": Tuning(8), "openvino": Tuning(8, backend="openvino"), "compiled": Tuning(8, compiled=True)}
    speed = {str(way): rate for way, rate in zip(ways.values(), (1.0, 3.0, 4.0), strict=True)}
    kept = module.Tuned(ways["compiled"], "exact", "kept", speed)

    def at(seconds: float) -> Tuning | None:
        found = module._for_work(kept, int(4 * seconds), ["openvino"])
        return None if found is None else found.tuning

    assert at(10) == ways["plain"]
    assert at(100) == ways["openvino"]  # compiling pays later
    assert at(1000) == ways["compiled"]
    untried = module.Tuned(ways["plain"], "exact", "kept", {str(ways["plain"]): 1.0})
    assert module._for_work(untried, 100, ["openvino"]) is None
    assert module._for_work(untried, 100) is untried


def test_a_backend_by_hand_that_is_not_there_or_does_not_exist_says_what_to_do(tiny: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="tune cannot take backend=tensorflow"):
        tuned(tiny, tune="backend=tensorflow")
    with pytest.raises(NameUnknownError, match="Unknown backend 'tensorflow'"):
        Tuning(backend="tensorflow")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="compiled=true is for torch, not for backend=openvino"):
        tuned(tiny, tune="backend=openvino,compiled=true")
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "openvino":  # a folder of this name may still be there to import
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(MissingPackageError, match=r"pip install 'xattn\[openvino\]'"):
        tuned(tiny, tune="backend=openvino")
    assert backends.others(tiny) == {}


def test_explain_measures_what_its_methods_run_again(tiny: Classifier, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = xattn.explain(tiny, images, ["occlusion"])
    asked: list[int | None] = []

    def measured(classifier: Classifier, *, forwards: int | None, sample: Tensor) -> Predictor:
        asked.append(forwards)
        return fastest(classifier, tune="chunk=5,folded=true")

    monkeypatch.setattr(api, "fastest", measured)
    again = xattn.explain(tiny, images, ["occlusion", "grad-cam"])
    each = len(range(0, 32 - 4 + 2, 2)) ** 2  # windows of 4 pixels, 2 apart
    assert asked == [7 * each]
    assert (plain["occlusion"] - again["occlusion"]).abs().max() <= 1e-4
    xattn.explain(tiny, images[:1], ["rise:masks=100", "grad-cam"])
    assert len(asked) == 1  # too little work to look at


@installed
def test_openvino_keeps_the_weights_of_when_it_was_built(images: Tensor) -> None:
    classifier = xattn.attach(networks.small(), input_size=32, name="small")
    predictor = Predictor(classifier, Tuning(7, backend="openvino"))
    before = predictor(images)
    with torch.no_grad():
        for weight in classifier.network.parameters():
            weight.zero_()
    assert torch.equal(predictor(images), before)


@installed
@pytest.mark.parametrize("cores", [1, 3])
def test_openvino_gives_the_same_in_batches_of_any_size_and_in_threads(tiny: Classifier, cores: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(cores)
        predictor, pictures = Predictor(tiny, Tuning(4, backend="openvino")), networks.pictures(32)
    finally:
        torch.set_num_threads(before)
    assert predictor.streams == cores
    whole = predictor(pictures)
    assert apart(whole, tiny.predict(pictures)) <= 1e-5
    for size in (1, 3, 7):
        assert torch.equal(torch.cat([predictor(batch) for batch in pictures.split(size)]), whole)
    found: dict[int, Tensor] = {}

    def run(number: int) -> None:
        for _ in range(20):
            found[number] = predictor(pictures.roll(number, 0)).roll(-number, 0)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(torch.equal(each, whole) for each in found.values())
    alone = xattn.explain(tiny, pictures[:3], ["score-cam", "occlusion", "rise:masks=40"], predictor=Predictor(tiny, Tuning(4)))
    streamed = xattn.explain(tiny, pictures[:3], ["score-cam", "occlusion", "rise:masks=40"], predictor=predictor)
    for method in alone:
        torch.testing.assert_close(streamed.raw[method], alone.raw[method], rtol=1e-3, atol=1e-4)


class Unknown(nn.Module):
    """A network with an operation that OpenVINO does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = networks.small()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) + torch.linalg.svdvals(images.mean(dim=1)).mean()


@installed
@pytest.mark.parametrize(("network", "why"), [(networks.Branching, "data-dependent"), (Unknown, "OpenVINO cannot convert it")])
def test_a_network_that_does_not_convert_is_run_by_torch_and_the_log_says_why(
    network: type[nn.Module],
    why: str,
    clocked: dict[str, float],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    classifier = xattn.attach(networks.seeded(network), input_size=32, name="odd")
    with caplog.at_level(logging.INFO, "xattn"):
        found = tuned(classifier, forwards=10_000)
    assert found.tuning.backend == "torch"
    (told,) = [record for record in caplog.records if "not run by openvino" in record.message]
    assert why in told.message
    assert told.levelno == logging.INFO
    assert capfd.readouterr().err == ""
    with pytest.raises(SettingError, match="odd cannot run in chunks of 8, openvino: .*Leave it to tune=auto"):
        tuned(classifier, tune="backend=openvino")


def test_what_another_thread_writes_while_a_network_is_converted_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("of torch", file=sys.stderr)
        other = threading.Thread(target=lambda: print("of a user", file=sys.stderr))
        other.start()
        other.join()
        print("kept")
    assert capsys.readouterr() == ("kept\n", "of a user\n")


@installed
def test_a_network_in_float64_is_not_rounded_by_openvino() -> None:
    classifier = xattn.attach(networks.precise(), input_size=32, name="precise")
    with pytest.raises(SettingError, match="backend=openvino runs float32 networks on a CPU; precise is float64 on cpu. Leave it to"):
        tuned(classifier, tune="backend=openvino")


@installed
def test_openvino_rounds_only_where_it_is_asked_to(tiny: Classifier, images: Tensor) -> None:
    plain = tiny.predict(images)
    assert apart(Predictor(tiny, Tuning(7, backend="openvino"))(images), plain) <= 1e-6  # bfloat16 is its own choice where there is one
    with pytest.raises(SettingError, match="precision=bfloat16 is not exact"):
        tuned(tiny, tune="backend=openvino,precision=bfloat16")


@installed
def test_the_use_of_openvino_is_reported_to_nobody(tiny: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = pytest.importorskip("openvino_telemetry")
    sent: list[object] = []
    monkeypatch.setattr(telemetry.Telemetry, "init", lambda self, *args, **kwargs: sent.append(args))
    monkeypatch.setattr(telemetry.Telemetry, "send_event", lambda self, *args, **kwargs: sent.append(args))
    Predictor(tiny, Tuning(2, backend="openvino"))
    assert sent == []


@installed
def test_a_run_keeps_its_backend_and_goes_on_with_it(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    def study(**more: Any) -> xattn.Study:
        return xattn.Study([tiny], ["occlusion"], ["average-drop"], folder, tmp_path / "run", batch_size=8, **more)

    study(tune="backend=openvino,chunk=4").run()
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert '"backend": "openvino"' in json.dumps(stored)
    xattn.Study([tiny], ["occlusion"], ["average-drop"], folder, tmp_path / "plain", batch_size=8, tune="off").run()
    ours, plain = (xattn.Study([tiny], ["occlusion"], ["average-drop"], folder, tmp_path / name, batch_size=8) for name in ("run", "plain"))
    assert (ours.scores()["value"] - plain.scores()["value"]).abs().max() <= 1e-2


@installed
def test_openvino_runs_a_copy_in_eval_mode_and_never_touches_the_networks_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(networks.small(), nn.Dropout(0.9)).train()
    classifier = xattn.attach(network, input_size=32, resize=36)
    images = torch.rand(4, 3, 32, 32)
    expected = classifier.predict(images)
    predictors = {backend: Predictor(classifier, Tuning(4, backend=backend)) for backend in ("openvino", "torch")}
    assert apart(predictors["torch"](images), expected) < 1e-6

    def refuse(_module: nn.Module) -> None:
        raise AssertionError("the mode is set")

    monkeypatch.setattr("xattn.inference.predictor.evaluating", refuse)
    assert apart(predictors["openvino"](images), expected) < 1e-5
    assert all(part.training for part in network.modules())
    with pytest.raises(AssertionError, match="the mode is set"):
        predictors["torch"](images)
