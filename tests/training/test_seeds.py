"""Heads of several seeds trained at once: each as it would be alone, and what interrupts or spoils one of them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.func import vmap

import xattn
from tests.training.conftest import fresh, paint
from xattn.cli import main
from xattn.errors import DivergedError, InputError, RunError, UnsupportedError
from xattn.heads.base import Head
from xattn.heads.ca_stream import CAStreamHead
from xattn.models import Classifier
from xattn.training import Recipe, fit, fit_seeds
from xattn.training.stacked import SeedsCheckpointing, TrainingOfSeeds, _Product

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, optimiser="sgd", smallest_crop=None)


def loaded(model: str, head: str) -> Classifier:
    """A head on the network of a factory, the same at each call."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return xattn.load(model, head=head, classes=3, input_size=32, resize=36, device="cpu", trust_code=True)


def at_once(
    model: str, head: str, data: Path, out: Path, seeds: tuple[int, ...] = (3, 7), **options: object
) -> dict[int, dict[str, Tensor]]:
    """Trains heads of several seeds; the state dict of each, as saved."""
    arguments: dict[str, object] = {"recipe": RECIPE, "workers": 0, "progress": False, "cache_features": out.parent / "features"}
    fit_seeds(loaded(model, head), data, out, seeds, **arguments | options)
    found = {}
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found[seed] = xattn.load(str(out.with_stem(f"{out.stem}-{seed}")), device="cpu", trust_code=True).head.state_dict()
    return found


def assert_as_alone(head: str, painted: Path, factory: str, tmp_path: Path, within: float = 1e-5, **options: object) -> None:
    """Each of two heads that are trained at once ends as one that is trained alone, from the same start."""
    found = at_once(factory, head, painted, tmp_path / "some.safetensors", **options)
    for seed in found:
        alone = loaded(factory, head)
        start = {name: tensor.clone() for name, tensor in alone.new_head(seed).state_dict().items()}
        alone.head.load_state_dict(start)
        fit(alone, painted, tmp_path / f"alone-{seed}.safetensors", recipe=RECIPE, workers=0, progress=False, seed=3, **options)
        assert any(not torch.allclose(tensor.float(), start[name].float(), atol=1e-3) for name, tensor in found[seed].items())
        for name, tensor in alone.head.state_dict().items():
            assert torch.allclose(found[seed][name].float(), tensor.float(), rtol=0, atol=within), (seed, name)


@pytest.mark.parametrize(
    "head",
    [
        "ca-stream",
        "ca-stream:per_class=true",
        "ca-stream:projection=true",
        "ca-stream:align=additive",
        "simpool",
        "ep:queries=4",
        "abmilp",
        "map:heads=4",
        "br-npa:n=3,rank_probes=true",
        "b-cnn:n=2",
        "b-cnn:n=2,hidden=6",
    ],
)
def test_each_head_ends_as_it_would_alone(head: str, painted: Path, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = []
    runs = TrainingOfSeeds._runs_at_once
    monkeypatch.setattr(TrainingOfSeeds, "_runs_at_once", lambda self: ways.append(runs(self)) or ways[-1])
    assert_as_alone(head, painted, factory, tmp_path)
    assert ways == [True]


def test_heads_that_cannot_run_at_once_run_one_after_the_other(
    painted: Path, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = []
    own, runs = CAStreamHead.step, TrainingOfSeeds._runs_at_once

    class NoVmap(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, given: Tensor) -> Tensor:
            return given.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient

    def step(self: CAStreamHead, number: int, query: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return own(self, number, NoVmap.apply(query), features)

    monkeypatch.setattr(CAStreamHead, "step", step)
    monkeypatch.setattr(TrainingOfSeeds, "_runs_at_once", lambda self: ways.append(runs(self)) or ways[-1])
    assert_as_alone("ca-stream", painted, factory, tmp_path)
    assert ways == [False]


@pytest.mark.parametrize("head", ["b-cnn:n=2", "ep:queries=4", "simpool"])
def test_mixed_precision_is_that_of_a_head_alone(head: str, painted: Path, factory: str, tmp_path: Path) -> None:
    assert_as_alone(head, painted, factory, tmp_path, 1e-4, precision="bf16-mixed")


@pytest.mark.parametrize("head", ["ca-stream", "simpool"])
def test_a_classifier_of_several_layers_gets_the_vectors_of_all_heads(head: str, painted: Path, tmp_path: Path) -> None:
    lines = ["import torch", "from tests import networks", "", "def build():", "    network = networks.small(3)"]
    lines += ["    network[6] = torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 3))", "    return network"]
    (tmp_path / "layers.py").write_text("\n".join(lines))
    assert loaded(f"{tmp_path / 'layers.py'}:build", head).attachment.entry.linear is None
    assert_as_alone(head, painted, f"{tmp_path / 'layers.py'}:build", tmp_path)


def test_dropout_differs_between_heads(painted: Path, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loaded(factory, "b-cnn:n=2,dropout=0.5").new_head(0)
    monkeypatch.setattr(Classifier, "new_head", lambda *_: first)
    one, other = at_once(factory, "b-cnn:n=2,dropout=0.5", painted, tmp_path / "some.safetensors").values()
    assert any(not torch.allclose(one[name], other[name], atol=1e-3) for name in one)


def test_the_best_epoch_is_each_head_s_own(painted: Path, factory: str, tmp_path: Path) -> None:
    clf = loaded(factory, "abmilp")
    before = {name: tensor.clone() for name, tensor in clf.state_dict().items()}
    options = {"workers": 0, "progress": False, "cache_features": tmp_path / "features"}
    seeds = range(8)
    rough = RECIPE.with_(lr=5.0, epochs=6)
    kept = fit_seeds(clf, painted, tmp_path / "some.safetensors", seeds, recipe=rough, **options)
    assert len({fitted.best for fitted in kept}) > 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in clf.state_dict().items())
    assert not clf.trained
    for seed, fitted in zip(seeds, kept, strict=True):
        alone = loaded(factory, "abmilp")
        alone.head.load_state_dict(alone.new_head(seed).state_dict())
        expected = fit(alone, painted, tmp_path / f"alone-{seed}.safetensors", recipe=rough, workers=0, progress=False, seed=0)
        assert (fitted.best, fitted.epochs, fitted.validation) == (expected.best, expected.epochs, expected.validation)
        assert fitted.loss == pytest.approx(expected.loss, rel=1e-3)


def test_an_interrupted_training_ends_the_same(painted: Path, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = at_once(factory, "ca-stream", painted, tmp_path / "whole.safetensors")
    monkeypatch.setattr(SeedsCheckpointing, "pause", 0.0)
    with monkeypatch.context() as cut:
        cut.setattr(SeedsCheckpointing, "tell", _interrupted)
        with pytest.raises(InterruptedError):
            at_once(factory, "ca-stream", painted, tmp_path / "cut.safetensors")
    assert not (tmp_path / "cut-3.safetensors").exists()
    steps = []
    step = TrainingOfSeeds.training_step

    def counted(self: TrainingOfSeeds, *batch: object) -> Tensor:
        steps.append(self.current_epoch)
        return step(self, *batch)

    monkeypatch.setattr(TrainingOfSeeds, "training_step", counted)
    found = at_once(factory, "ca-stream", painted, tmp_path / "cut.safetensors")
    assert set(steps) == {1, 2}
    steps.clear()
    again = at_once(factory, "ca-stream", painted, tmp_path / "cut.safetensors")
    assert not steps  # it was finished
    for seed, weights in expected.items():
        for name, tensor in weights.items():
            assert torch.equal(found[seed][name], tensor)
            assert torch.equal(again[seed][name], tensor)


def _interrupted(*_: object) -> None:
    raise InterruptedError


def test_a_checkpoint_is_not_written_after_every_epoch_but_after_the_last(
    painted: Path, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(SeedsCheckpointing, "_save", lambda self, *_: saved.append(self.kept["epochs"]))
    monkeypatch.setattr(SeedsCheckpointing, "best", lambda _: {})
    options = {"recipe": RECIPE, "workers": 0, "progress": False, "cache_features": tmp_path / "features"}
    fit_seeds(loaded(factory, "abmilp"), painted, tmp_path / "some.safetensors", [0], **options)
    assert saved == [3]


def test_a_head_that_diverges_spoils_no_other(painted: Path, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = at_once(factory, "ca-stream", painted, tmp_path / "good.safetensors", (3, 7))
    new = Classifier.new_head

    def broken(self: Classifier, seed: int) -> Head:
        head = new(self, seed)
        if seed == 5:
            with torch.no_grad():
                next(head.parameters()).fill_(float("nan"))
        return head

    monkeypatch.setattr(Classifier, "new_head", broken)
    with pytest.raises(DivergedError, match=r"NaN with seed 5; there, .* if there was one\. The others are saved in"):
        at_once(factory, "ca-stream", painted, tmp_path / "some.safetensors", (3, 5, 7))
    assert not (tmp_path / "some-5.safetensors").exists()
    for seed in (3, 7):
        found = xattn.load(str(tmp_path / f"some-{seed}.safetensors"), device="cpu", trust_code=True).head.state_dict()
        assert all(torch.allclose(found[name], tensor, atol=1e-5) for name, tensor in expected[seed].items())
    with pytest.raises(DivergedError, match="the loss of every head is infinite or NaN in epoch 1, step 1"):
        at_once(factory, "ca-stream", painted, tmp_path / "none.safetensors", (5,))


def test_heads_that_all_diverge_later_keep_their_best_epochs(
    painted: Path, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TrainingOfSeeds.training_step

    def spoilt(self: TrainingOfSeeds, *batch: object) -> Tensor:
        if self.current_epoch == 1:
            with torch.no_grad():
                for weight in self.weights:
                    weight.fill_(float("nan"))
        return step(self, *batch)

    monkeypatch.setattr(TrainingOfSeeds, "training_step", spoilt)
    with pytest.raises(DivergedError, match=r"NaN with seeds 3, 7; there, .*, if there was one\. Give a lower"):
        at_once(factory, "ca-stream", painted, tmp_path / "some.safetensors")
    for seed in (3, 7):
        found = xattn.load(str(tmp_path / f"some-{seed}.safetensors"), device="cpu", trust_code=True)
        assert all(bool(tensor.isfinite().all()) for tensor in found.head.state_dict().values())


def test_what_cannot_be_trained_at_once_is_refused(painted: Path, factory: str, tmp_path: Path) -> None:
    out = tmp_path / "some.safetensors"
    for seeds, options, message in (
        ((), {}, "one seed each from 0 to 2147483647, all different; got []"),
        ((1, 1), {}, "one seed each from 0 to 2147483647, all different; got [1, 1]"),
        ((-1,), {}, "one seed each from 0 to 2147483647, all different; got [-1]"),
        (("1", "2"), {}, "seeds are whole numbers, one per head, as in range(20); got ('1', '2')"),
        (3, {}, "seeds are whole numbers, one per head, as in range(20); got 3"),
        ((1,), {"cache_features": None}, "cache_features is the folder for the network's features; got NoneType"),
        ((1,), {"recipe": RECIPE.with_(patience=2)}, "leave out patience"),
        ((1,), {"precision": "16-mixed"}, "use 32-true or bf16-mixed"),
        ((1,), {"recipe": RECIPE.with_(smallest_crop=0.3)}, "random crops (smallest_crop=0.3) change them"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            at_once(factory, "abmilp", painted, out, seeds, **options)
    with pytest.raises(InputError, match="br-npa starts as the classifier of .* whatever the seed, so that all heads would be the same"):
        at_once(factory, "br-npa", painted, out)
    assert len(at_once(factory, "br-npa:dropout=0.3", painted, tmp_path / "dropout.safetensors")) == 2
    trained = xattn.load(str(tmp_path / "dropout-3.safetensors"), device="cpu", trust_code=True)
    with pytest.raises(InputError, match="is trained already, but heads of several seeds start from new weights"):
        fit_seeds(trained, painted, out, [0, 1], recipe=RECIPE, cache_features=tmp_path / "features")
    with pytest.raises(RunError, match=r"holds another training \(seeds was \[3, 7\], is None\)"):
        fit(loaded(factory, "br-npa:dropout=0.3"), painted, tmp_path / "dropout.safetensors", recipe=RECIPE, workers=0, seed=3)
    with pytest.raises(UnsupportedError, match="small was attached from a module in hand, but heads are saved by name: load it by a name"):
        fit_seeds(fresh("abmilp"), painted, out, [0], recipe=RECIPE, cache_features=tmp_path / "features")
    with pytest.raises(UnsupportedError, match="sets weights from the training pictures: train one head at a time, without seeds"):
        at_once(factory, "protopnet", painted, out)


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (1, None), (None, 2), (2, 1)])
def test_a_product_with_a_shared_factor_has_torch_s_values_and_gradients(dims: tuple[int | None, int | None]) -> None:
    heads = 3
    left, right = (
        torch.rand(shape if dim is None else (*shape[:dim], heads, *shape[dim:]), dtype=torch.float64, requires_grad=True)
        for shape, dim in zip(((2, 4, 5), (2, 5, 6)), dims, strict=True)
    )

    def gradients(function: object) -> list[Tensor]:
        found = vmap(function, in_dims=dims)(left, right)
        return [found, *torch.autograd.grad((found**2).sum(), (left, right))]

    for one, other in zip(gradients(_Product.apply), gradients(torch.bmm), strict=True):
        assert torch.allclose(one, other)


def test_a_product_that_all_heads_share_has_its_gradient() -> None:
    left, right = (torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (2, 4, 3)))
    assert torch.autograd.gradcheck(_Product.apply, (left, right))


def test_the_command_trains_heads_at_once(tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "some", count=4)
    base = [
        "train",
        "--model",
        factory,
        "--data",
        "some",
        "--epochs",
        "1",
        "--input-size",
        "32",
        "--resize",
        "36",
        "--out",
        "a.safetensors",
    ]
    options = ["--head", "map:heads=4", "--workers", "0", "--accelerator", "cpu", "--seed", "4", "--seeds", "2"]
    done = CliRunner().invoke(main, [*base, *options, "--cache-features", "kept"])
    assert done.exit_code == 0, done.output
    assert "seed 4: kept epoch 1 of 1: validation loss" in done.stderr
    assert done.stdout.split() == ["a-4.safetensors", "a-5.safetensors"]
    four, five = (xattn.load(f"a-{seed}.safetensors", device="cpu", trust_code=True) for seed in (4, 5))
    assert four.trained
    assert four.labels == ("blue", "green", "red")
    assert four.digest() != five.digest()
    for given, message in (
        ([], "--seeds trains heads on features that are computed once: give --cache-features DIR too"),
        (["--cache-features", "kept", "--search", "2"], "--search does not apply to heads that are trained at once"),
        (["--cache-features", "kept", "--task", "few-shot"], "--seeds does not apply to training by episodes"),
        (["--cache-features", "kept", "--devices", "2"], "--devices does not apply to heads that are trained at once"),
    ):
        refused = CliRunner().invoke(main, [*base, *options, *given])
        assert refused.exit_code == 2
        assert message in refused.output.replace("\n", " ")
