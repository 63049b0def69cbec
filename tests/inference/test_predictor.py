"""Forwards of perturbed images: however they are run, the probabilities are the plain network's."""

from __future__ import annotations

import importlib.util
import shutil
import warnings

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.errors import NameUnknownError, SettingError
from xattn.inference import Predictor, Tuning, tuned
from xattn.inference.cloning import clone_of
from xattn.models import Classifier


def apart(found: Tensor, plain: Tensor) -> float:
    return float((found.double().softmax(1) - plain.double().softmax(1)).abs().max())


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, features: Tensor) -> Tensor:
        return (features + self.body(features)).relu()


def normed() -> nn.Module:
    """Convolutions with batch norms that do something."""
    return networks.seeded(
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            Block(8),
            nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True)),
            Block(12),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 5),
        )
    )


@pytest.fixture
def classifier() -> Classifier:
    return xattn.attach(normed(), input_size=32, name="normed")


WAYS = [
    Tuning(3),
    Tuning(2, "contiguous"),
    Tuning(7, folded=True),
    Tuning(1, "contiguous", folded=True),
    *(
        pytest.param(way, marks=pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs xattn[openvino]"))
        for way in (Tuning(3, backend="openvino"), Tuning(8, folded=True, backend="openvino"))
    ),
]


@pytest.mark.parametrize("tuning", WAYS, ids=str)
@pytest.mark.parametrize("head", ["gap", "br-npa", "b-cnn", "ca-stream"])
def test_however_forwards_are_run_the_probabilities_are_the_plain_networks(images: Tensor, tuning: Tuning, head: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = xattn.attach(normed(), input_size=32, name="normed", head=head)
    assert apart(Predictor(classifier, tuning)(images), classifier.predict(images)) <= 1e-5


def test_in_float64_they_agree_to_1e_10(images: Tensor) -> None:
    classifier = xattn.attach(normed().double(), input_size=32, name="normed")
    assert apart(Predictor(classifier, Tuning(4, folded=True))(images), classifier.predict(images)) <= 1e-10


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", ["gap", "ca-stream"])
def test_a_compiled_network_gives_the_same_probabilities(images: Tensor, head: str) -> None:
    classifier = xattn.attach(networks.small(), input_size=32, name="small", head=head)
    predictor = Predictor(classifier, Tuning(7, compiled=True))
    assert apart(predictor(images), classifier.predict(images)) <= 1e-5
    assert apart(predictor(images.flip(0)), classifier.predict(images.flip(0))) <= 1e-5


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_networks_weights_are_frozen(images: Tensor) -> None:
    classifier = xattn.attach(networks.small(), input_size=32, name="small")
    predictor = Predictor(classifier, Tuning(7, compiled=True))
    before = predictor(images)
    with torch.no_grad():
        for weight in classifier.network.parameters():
            weight.zero_()
    assert torch.equal(predictor(images), before)  # they are constants in the compiled code, packed as its kernels like them


def test_folding_takes_the_norms_behind_convolutions_out_and_leaves_the_classifier_as_it_was(
    classifier: Classifier, images: Tensor
) -> None:
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    clone = clone_of(classifier, torch.channels_last, folded=True)
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in some.network.modules()) for some in (classifier, clone)]
    assert norms[0] > 0
    assert norms[1] == 0
    assert all(torch.equal(before[key], value) for key, value in classifier.state_dict().items())
    assert [type(module) for module in classifier.modules()] != [type(module) for module in clone.modules()]


def test_a_clone_shares_the_weights_that_it_does_not_change(classifier: Classifier) -> None:
    clone = clone_of(classifier, torch.contiguous_format)
    mine, its = (dict(some.named_parameters()) for some in (classifier, clone))
    assert all(mine[name].data_ptr() == its[name].data_ptr() for name in mine)


class Forked(nn.Module):
    """A convolution whose output is wanted beside its norm: folding would change what the other way sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images)
        return self.fc(self.last(found + self.norm(found)).relu().mean(dim=(2, 3)))


def test_tuning_refuses_to_fold_where_the_output_of_the_convolution_is_wanted_elsewhere() -> None:
    from xattn.inference.benchmark import Benchmark

    classifier = xattn.attach(networks.seeded(Forked), input_size=32, name="forked")
    bench = Benchmark(classifier, "exact", networks.pictures(4), 8)
    assert bench.rate(Tuning(4, folded=True)) == 0
    assert "probabilities differ" in bench.refused[str(Tuning(4, folded=True))]
    assert bench.rate(Tuning(4)) > 0


def test_a_norm_behind_an_in_place_rectifier_or_beside_another_is_not_folded(images: Tensor) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Linear(6, 5)

        def forward(self, images: Tensor) -> Tensor:
            found = self.conv(images)
            return self.fc((self.a(found) + self.b(found)).relu().mean(dim=(2, 3)))

    def behind() -> nn.Module:
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(6)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )

    for make in (Two, behind):
        classifier = xattn.attach(networks.seeded(make), input_size=32, name="unusual")
        assert apart(Predictor(classifier, Tuning(7, folded=True))(images), classifier.predict(images)) <= 1e-5


def test_a_wrong_fold_by_hand_is_refused_at_both_levels() -> None:
    classifier = xattn.attach(networks.seeded(Forked), input_size=32, name="forked")
    for level in ("exact", "fast"):
        with pytest.raises(SettingError, match="forked cannot run in .* batch norms folded: probabilities differ"):
            tuned(classifier, level, "folded=true")


class Cramped(nn.Module):
    """A network on a device where two images are the most that fit."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = networks.small()
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        if len(images) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.inner(images)


def test_memory_that_runs_out_halves_the_chunk_and_loses_nothing(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    network = Cramped()
    classifier = xattn.attach(network, input_size=32, name="cramped")
    predictor = Predictor(classifier, Tuning(8))
    found = predictor(images)
    assert "memory ran out: cramped continues with chunks of 4" in caplog.text
    assert predictor.chunk == 2
    assert apart(found, network.inner(classifier.normalise(images)).detach()) <= 1e-5
    network.seen.clear()
    predictor(images)
    assert max(network.seen) == 2


def test_an_error_that_is_not_of_memory_is_told(images: Tensor) -> None:
    classifier = xattn.attach(networks.small(), input_size=32, name="small")
    predictor = Predictor(classifier, Tuning(8))
    predictor._logits = lambda piece: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        predictor(images)


def test_a_tuning_by_hand_reads_as_it_is_written() -> None:
    assert Tuning.read("chunk=16,folded=true,memory-format=contiguous") == Tuning(16, "contiguous", folded=True)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("chunks=3", NameUnknownError, "Unknown setting of tune 'chunks'. Did you mean 'chunk'"),
        ("chunk=many", SettingError, "tune cannot take chunk=many"),
        ("chunk=0", SettingError, "at least one image"),
    ],
)
def test_a_tuning_by_hand_that_does_not_read_says_why(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Tuning.read(text)
