"""Tuning: what it chooses, keeps, refuses, and what it may not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.errors import InputError, SettingError
from xattn.inference import Predictor, Tuning, benchmark, fastest, tuned
from xattn.inference import tuning as module
from xattn.inference.benchmark import Benchmark
from xattn.models import Classifier


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any work is worth a measurement, a short one, and none a compilation."""
    monkeypatch.setattr(benchmark, "TURN_S", 0.001)
    monkeypatch.setattr(module, "WORTH_MEASURING_S", 0.0)
    monkeypatch.setattr(module, "WORTH_COMPILING_S", float("inf"))  # also for work without end


def cached(home: Path) -> list[Path]:
    return list((home / "xattn" / "tuning").glob("*.json"))


@pytest.mark.usefixtures("measuring")
def test_what_was_measured_is_kept_and_taken_the_next_time(tiny: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = tuned(tiny, forwards=10_000)
    assert first.origin == "measured"
    assert first.speed[str(first.tuning)] > max(first.speed.values()) / 4  # turns of a millisecond: other work can halve a rate
    assert len(cached(tmp_path)) == 1
    again = tuned(tiny, forwards=10_000)
    assert (again.tuning, again.origin) == (first.tuning, "kept from an earlier measurement")


@pytest.mark.usefixtures("measuring")
def test_a_damaged_cache_is_measured_anew_and_one_that_cannot_be_written_does_no_harm(
    tiny: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned(tiny)
    cached(tmp_path)[0].write_text("{")
    assert tuned(tiny).origin == "measured"
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert tuned(tiny).origin == "measured"


@pytest.mark.usefixtures("measuring")
def test_what_was_measured_in_little_memory_is_not_kept(tiny: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned(tiny, memory=2_000_000)
    assert cached(tmp_path) == []


def test_compilation_is_kept_for_work_that_pays_for_it() -> None:
    kept = module.Tuned(Tuning(8, compiled=True), "exact", "kept", {str(Tuning(8, compiled=True)): 100.0})
    assert module._for_work(kept, 1000).tuning == Tuning(8)
    assert module._for_work(kept, 1_000_000).tuning == Tuning(8, compiled=True)
    untried = module.Tuned(Tuning(8), "exact", "kept", {str(Tuning(8)): 100.0})
    assert module._for_work(untried, 1_000_000) is None


@pytest.mark.parametrize(
    ("rates", "chunk"),
    [
        ({8: 10.0, 16: 20.0, 32: 20.1}, 16),  # not for a gain within noise
        ({8: 10.0, 16: 10.1, 4: 10.0, 2: 9.9}, 4),  # the smaller of two that are as fast: it holds less
        ({8: 10.0, 16: 9.0, 4: 9.9}, 8),
    ],
)
def test_a_forward_is_larger_where_that_is_faster_and_smaller_where_it_is_no_slower(
    tiny: Classifier, rates: dict[int, float], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(self: Benchmark, tuning: Tuning, _predictor: Predictor) -> float:
        rate = rates[tuning.chunk] if tuning.memory_format == "channels-last" and not tuning.folded else 0.0
        self.rates[str(tuning)] = rate
        return rate

    monkeypatch.setattr(Benchmark, "_timed", timed)
    assert Benchmark(tiny, "exact", networks.pictures(4), 32).best(Tuning(8), compiling=False).chunk == chunk


def test_a_way_is_judged_by_the_turns_it_takes_beside_its_rival(tiny: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0

    def timed(self: Benchmark, tuning: Tuning, _predictor: Predictor) -> float:
        nonlocal turns
        turns += 1
        rate = {8: 10.0, 16: 12.0}.get(tuning.chunk, 1.0) * (1.0 if tuning.memory_format == "channels-last" else 0.5)
        rate *= 2.0 if turns <= 2 * benchmark.ROUNDS else 1.0  # the machine slows down after the first question
        self.rates[str(tuning)] = max(rate, self.rates.get(str(tuning), 0.0))
        return rate

    monkeypatch.setattr(Benchmark, "_timed", timed)
    assert Benchmark(tiny, "exact", networks.pictures(4), 32).best(Tuning(8), compiling=False).chunk == 16


@pytest.mark.usefixtures("measuring")
def test_what_is_kept_is_taken_only_where_it_still_gives_the_networks_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "WORTH_COMPILING_S", 1e9)
    classifier = xattn.attach(networks.small(), input_size=32, name="small")
    tuned(classifier, forwards=10_000)
    path = cached(tmp_path)[0]
    path.write_text(path.read_text().replace('"precision": "own"', '"precision": "bfloat16"'))
    found = tuned(classifier, forwards=10_000)
    assert (found.origin, found.tuning.precision) == ("measured", "own")


def test_little_work_is_not_measured_and_off_never_is(tiny: Classifier) -> None:
    assert tuned(tiny, forwards=10).origin == "too little work to measure"
    assert tuned(tiny, tune="off").tuning == Tuning(8)


def test_another_network_head_or_level_is_another_measurement(tiny: Classifier) -> None:
    other = xattn.attach(networks.small(classes=6), input_size=32, name="tiny")
    keys = {module._key(tiny, "exact"), module._key(tiny, "fast"), module._key(other, "exact")}
    assert len(keys) == 3


def test_half_precision_is_for_fast_alone(tiny: Classifier, images: Tensor) -> None:
    with pytest.raises(SettingError, match="precision=bfloat16 is not exact"):
        tuned(tiny, tune="precision=bfloat16")
    predictor = fastest(tiny, "fast", "precision=bfloat16,chunk=4")
    found = predictor(images)
    assert found.dtype == torch.float32
    assert 0 < float((found - tiny.predict(images)).abs().max()) < 0.1


@pytest.mark.usefixtures("measuring")
def test_exact_never_measures_half_precision(tiny: Classifier) -> None:
    ways = tuned(tiny, "exact").speed
    assert not any("bfloat16" in way for way in ways)
    assert any("bfloat16" in way for way in tuned(tiny, "fast").speed)


def test_an_unknown_effort_says_what_there_is(tiny: Classifier) -> None:
    with pytest.raises(SettingError, match=r"off, auto, full, or settings such as chunk=16,compiled=true; got 'fastest'"):
        tuned(tiny, tune="fastest")


def test_a_chunk_fits_the_memory_that_is_given(tiny: Classifier) -> None:
    def chunk(memory: int) -> int:
        return tuned(tiny, tune="off", memory=memory).tuning.chunk

    assert 1 <= chunk(1_000_000) < chunk(2_000_000) <= 8
    with pytest.raises(InputError, match="needs .* for a forward of one image"):
        tuned(tiny, tune="off", memory=1000)


@pytest.mark.usefixtures("measuring")
def test_a_way_that_fails_is_refused_with_its_reason_and_the_others_remain() -> None:
    class Single(nn.Sequential):
        def __deepcopy__(self, _memo: object) -> None:
            raise TypeError("no copy of this module can be made")

    found = tuned(xattn.attach(Single(*networks.small().children()), input_size=32, name="single"))
    assert found.tuning.memory_format == "channels-last"
    assert any("no copy of this module" in why for why in found.refused.values())


def test_the_predictor_of_a_tuning_is_what_explain_takes(tiny: Classifier, images: Tensor) -> None:
    plain = xattn.explain(tiny, images, ["score-cam"])
    by_hand = xattn.explain(tiny, images, ["score-cam"], predictor=fastest(tiny, tune="chunk=5"))
    assert float((plain["score-cam"] - by_hand["score-cam"]).abs().max()) <= 1e-5
    assert isinstance(fastest(tiny, tune="off"), Predictor)
