"""Training and scores by episodes: what is learnt, that a cut-off run goes on, and the mean over episodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn import functional

import xattn
from tests import networks
from tests.training.killing import CUT, WHOLE, trained_with_and_without_a_kill
from xattn.birds import export_few_shot
from xattn.cli import main
from xattn.data.images import ImageSource
from xattn.errors import DivergedError, InputError, RunError
from xattn.fewshot import Embedding, Episodes, EpisodeShape
from xattn.metrics.statistics import mean_interval
from xattn.models import Classifier
from xattn.models.checkpoints import InnerLoop
from xattn.tasks import score
from xattn.tasks.base import Data
from xattn.tasks.few_shot import FewShot
from xattn.training import PRESETS, Fitted, distillation, fit, fit_episodes, with_ways
from xattn.training.episodes import EpisodeTraining

TASK = "few-shot:ways=3,shots=1,queries=2"
SCORED = f"{TASK},episodes=25"
SHAPE = EpisodeShape(3, 1, 2)
QUICK = PRESETS["few-shot"].with_(epochs=2, episodes=3, lr=0.02, base_lr=0.05)


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_few_shot(tmp_path_factory.mktemp("birds"), 4)


def fresh(head: str = "gap", high_res: tuple[str, ...] = ()) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.small(8)
        for stage in high_res:
            network.get_submodule(stage).stride = (1, 1)
        return with_ways(xattn.attach(network, head=head, input_size=32, resize=36, name="small"), 3)


def state(clf: Classifier) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in clf.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("head", ["gap", "b-cnn:n=2"])
def test_convolutions_are_scaled_and_the_start_of_the_last_layer_is_learnt_and_nothing_else(head: str, birds: Path, tmp_path: Path) -> None:
    clf = fresh(head)
    before, flags, place = state(clf), [p.requires_grad for p in clf.parameters()], Embedding(clf).place
    fitted = fit_episodes(clf, f"cifar-fs:{birds}", tmp_path / "out.safetensors", task=TASK, recipe=QUICK, workers=0, progress=False)
    after = state(clf)
    assert (fitted.epochs, fitted.validation, 0 <= fitted.score <= 100) == (2, 3, True)
    assert after.keys() == before.keys()
    convolutions = {name for name, module in clf.named_modules() if isinstance(module, torch.nn.Conv2d)}
    for key, value in before.items():
        learnt = key.rpartition(".")[0] in {*convolutions, place}
        assert torch.equal(after[key], value) != learnt, key
    ratio = after["network.0.weight"] / before["network.0.weight"]
    assert torch.allclose(ratio, ratio[:, :, :1, :1].expand_as(ratio), rtol=1e-4)  # one scale for each kernel
    assert [p.requires_grad for p in clf.parameters()] == flags
    assert (clf.inner, clf.class_count, clf.labels) == (InnerLoop(), 3, None)


def test_a_teachers_answers_are_those_of_its_own_layer_fitted_to_the_support_set() -> None:
    clf, teacher = fresh(), fresh("b-cnn:n=2")
    module = EpisodeTraining(clf, [], FewShot(3, 1, 2), QUICK.with_(alpha=0.3, temperature=2.0), teacher)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    crops = (networks.pictures(SHAPE.pictures) * 255).byte()
    loss = module.training_step((crops, SHAPE.labels()), 0)
    logits = []
    for each in (clf, teacher):
        adapted = torch.nn.Linear(each.head.linear.in_features if hasattr(each.head, "linear") else 16, 3)
        adapted.load_state_dict(Embedding(each).linear.state_dict())
        vectors = Embedding(each)(crops / 255).detach()
        optimiser = torch.optim.SGD(adapted.parameters(), lr=0.01)
        for _ in range(50):
            optimiser.zero_grad()
            functional.cross_entropy(adapted(vectors[:3]), torch.arange(3)).backward()
            optimiser.step()
        logits.append(adapted(vectors[3:]).detach())
    wanted = distillation(*logits, SHAPE.labels()[3:], alpha=0.3, temperature=2.0)
    assert float(loss.detach()) == pytest.approx(float(wanted), abs=1e-5)


def test_training_from_a_teacher_leaves_it_as_it_is_and_comes_closer_to_its_answers(birds: Path, tmp_path: Path) -> None:
    teacher, plain, taught = fresh(), fresh(high_res=("3.0",)), fresh(high_res=("3.0",))
    with torch.no_grad():
        Embedding(teacher).linear.weight.mul_(3)
    before = state(teacher)
    quick = QUICK.with_(epochs=1, episodes=12, smallest_crop=1.0)
    options = {"task": TASK, "workers": 0, "progress": False}
    fit_episodes(plain, f"cifar-fs:{birds}", tmp_path / "plain.safetensors", recipe=quick, **options)
    fit_episodes(taught, f"cifar-fs:{birds}", tmp_path / "taught.safetensors", recipe=quick.with_(alpha=0.0), teacher=teacher, **options)
    assert same(state(teacher), before)
    source = ImageSource(f"cifar-fs:{birds}:train")
    images = torch.stack([source.decode(image, teacher.preprocessing)[1] for image in source.images]) / 255
    classes = sorted({str(image.label) for image in source.images})
    targets = [classes.index(str(image.label)) for image in source.images]
    drawn = Episodes(targets, SHAPE, 10, seed=1)
    module = EpisodeTraining(taught, [], FewShot(3, 1, 2), quick, teacher)

    def distance(clf: Classifier) -> float:
        """Mean divergence of a student's answers from the teacher's."""
        found = []
        with torch.no_grad():
            for number in range(10):
                given = images[drawn.drawn(0, number)]
                own, its = (module._logits(Embedding(each), given)[0].log_softmax(dim=1) for each in (clf, teacher))
                found.append(float(functional.kl_div(own, its, log_target=True, reduction="batchmean")))
        return sum(found) / len(found)

    assert distance(taught) < 0.7 * distance(plain)
    assert distance(taught) < 0.7 * distance(fresh(high_res=("3.0",)))


def saved(tmp_path: Path, *scales: float) -> list[Path]:
    """Files of their own weights, which are those of one network of three ways times a scale."""
    (tmp_path / "mine.py").write_text("from tests import networks\n\n\ndef build():\n    return networks.small(8)\n")
    found = []
    for scale in scales:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            clf = xattn.load(f"{tmp_path / 'mine.py'}:build", head="gap", input_size=32, resize=36, device="cpu", trust_code=True)
            clf = with_ways(clf, 3)
        with torch.no_grad():
            for parameter in clf.parameters():
                parameter.mul_(scale)
        clf.trained = True
        found.append(tmp_path / f"{scale:g}" / "small.safetensors")
        found[-1].parent.mkdir()
        clf.save(str(found[-1]))
    return found


def test_a_training_goes_on_only_from_the_weights_that_it_began_with(birds: Path, tmp_path: Path) -> None:
    one, two = saved(tmp_path, 1.0, 2.0)
    out, quick = tmp_path / "out.safetensors", QUICK.with_(epochs=1, episodes=2)

    def train(file: Path) -> Fitted:
        clf = xattn.load(str(file), device="cpu", trust_code=True)
        return fit_episodes(clf, f"cifar-fs:{birds}", out, task=TASK, recipe=quick, workers=0, progress=False)

    first = train(one)
    assert train(one) == first
    with pytest.raises(RunError, match=r"holds another training \(network: digest was \w{16}, is \w{16}\)"):
        train(two)
    settings = tmp_path / "out.training" / "training.json"
    stored = json.loads(settings.read_text())
    stored["network"]["digest"] = ""  # as an earlier version wrote it
    settings.write_text(json.dumps(stored))
    assert train(one) == first


def test_on_the_command_line_a_teacher_by_episodes_does_not_give_the_student_its_weights(birds: Path, tmp_path: Path) -> None:
    student, teacher = saved(tmp_path, 1.0, 2.0)
    out = tmp_path / "out.safetensors"
    files = ["--model", str(student), "--teacher", str(teacher), "--trust-code", "--out", str(out), "--data", f"cifar-fs:{birds}"]
    quick = ["--epochs", "1", "--episodes", "1", "--lr", "1e-6", "--base-lr", "1e-6", "--accelerator", "cpu", "--workers", "0"]
    done = CliRunner().invoke(main, ["train", "--task", TASK, *files, *quick])
    assert done.exit_code == 0, done.output
    assert f"  learns the answers of {teacher}\n" in done.stderr
    assert "starts from" not in done.stderr
    before, after = (state(xattn.load(str(file), device="cpu", trust_code=True)) for file in (student, out))
    assert all(torch.allclose(after[key], value, atol=1e-4) for key, value in before.items())


def test_a_training_that_diverges_keeps_its_best_epoch(birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clf, wanted, out = fresh(), fresh(), tmp_path / "out.safetensors"
    options = {"task": TASK, "workers": 0, "progress": False}
    quick = QUICK.with_(schedule="constant")
    fit_episodes(wanted, f"cifar-fs:{birds}", tmp_path / "one.safetensors", recipe=quick.with_(epochs=1), **options)
    steps, loss = [], FewShot.loss

    def diverging(task: FewShot, output: Tensor, targets: Tensor) -> Tensor:
        steps.append(len(targets))
        return loss(task, output, targets) * (float("nan") if len(steps) > 6 else 1.0)  # an epoch is 3 episodes and 3 for validation

    monkeypatch.setattr(FewShot, "loss", diverging)
    with pytest.raises(DivergedError, match=r"loss is nan in epoch 2, episode 1: .* The best epoch before it, 1, is in .*out\.safetensors"):
        fit_episodes(clf, f"cifar-fs:{birds}", out, recipe=quick, **options)
    assert same(state(clf), state(wanted))


def test_a_training_ends_where_no_epoch_is_better(birds: Path, tmp_path: Path) -> None:
    quick = QUICK.with_(epochs=9, episodes=1, lr=1e-12, base_lr=1e-12, patience=2)
    found = fit_episodes(fresh(), f"cifar-fs:{birds}", tmp_path / "out.safetensors", task=TASK, recipe=quick, workers=0, progress=False)
    assert (found.best, found.epochs) == (1, 3)


def test_a_training_by_episodes_that_is_killed_goes_on_to_the_same_weights_and_its_file_is_scored_and_adapted(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("from tests import networks\n\n\ndef build():\n    return networks.small(8)\n")

    def arguments(out: str) -> list[str]:
        shape = ["--input-size", "32", "--resize", "36", "--head", "gap", "--epochs", "6", "--episodes", "3", "--lr", "0.02"]
        where = ["--accelerator", "cpu", "--workers", "0", "--seed", "3", "--task", TASK, "--data", f"cifar-fs:{birds}"]
        return ["train", "--model", f"{tmp_path / 'mine.py'}:build", "--out", out, *shape, *where]

    monkeypatch.chdir(tmp_path)
    trained_with_and_without_a_kill(arguments)
    whole, cut = (xattn.load(name, device="cpu", trust_code=True) for name in (WHOLE, CUT))
    assert same(state(whole), state(cut))
    assert cut.inner == InnerLoop()
    given = ["cut.safetensors", "--trust-code", "--device", "cpu"]
    scored = CliRunner().invoke(main, ["evaluate", *given, "--task", SCORED, "--data", f"cifar-fs:{birds}:test", "--workers", "0"])
    assert scored.exit_code == 0, scored.output
    assert "accuracy" in scored.stdout
    few = tmp_path / "few"
    for kind in ("duskspoon", "goldhook", "mintspear"):
        (few / kind).mkdir(parents=True)
        (few / kind / "0.png").write_bytes((birds / "data" / kind / "0000.png").read_bytes())
    adapted = CliRunner().invoke(main, ["adapt", *given, "--data", str(few), "--out", "few.safetensors"])
    assert adapted.exit_code == 0, adapted.output
    assert xattn.load("few.safetensors", device="cpu", trust_code=True).labels == ("duskspoon", "goldhook", "mintspear")
    assert f"{SCORED} · cut · gap · " in scored.stdout
    for given in (["--search", "2"], ["--classes", "wnid"]):
        other = CliRunner().invoke(main, [*arguments("other.safetensors"), *given])
        assert other.exit_code == 2
        assert f"{' '.join(given) if '--classes' in given else given[0]} does not apply to training by episodes" in other.output


def test_the_score_is_the_mean_over_episodes_of_layers_fitted_one_by_one(birds: Path) -> None:
    clf = fresh()
    clf.inner = InnerLoop(30, 0.5)
    found = score(clf, f"cifar-fs:{birds}:test", task=SCORED, workers=0, progress=False, batch_size=5)
    source = ImageSource(f"cifar-fs:{birds}:test")
    images = torch.stack([source.decode(image, clf.preprocessing)[1] for image in source.images]) / 255
    classes = sorted({str(image.label) for image in source.images})
    targets = [classes.index(str(image.label)) for image in source.images]
    drawn = Episodes(targets, SHAPE, 25, seed=0)
    accuracies = []
    for number in range(25):
        numbers = drawn.drawn(0, number)
        adapted = xattn.adapt(clf, images[numbers[:3]], [0, 1, 2])
        predicted = adapted.predict(images[numbers[3:]]).argmax(dim=1)
        accuracies.append(100 * float((predicted == SHAPE.labels()[3:]).double().mean()))
    assert found.scores["accuracy"] == pytest.approx(mean_interval(accuracies, (0, 100)))
    assert found.scores["accuracy"].n == 25
    assert found.n == 16
    assert found.task == SCORED


def test_what_does_not_fit_is_named(birds: Path, tmp_path: Path) -> None:
    clf, out, data = fresh(), tmp_path / "out.safetensors", f"cifar-fs:{birds}"
    with pytest.raises(InputError, match=r"the classifier, small, is not one of 5 ways for episodes: make it by xattn.training.with_ways"):
        fit_episodes(clf, data, out, task="few-shot:ways=5")
    with pytest.raises(InputError, match=r"the teacher, small, is not one of 3 ways"):
        fit_episodes(clf, data, out, task=TASK, teacher=xattn.attach(networks.small(3), input_size=32, name="small"))
    with pytest.raises(InputError, match=r"needs classes for validation that are not trained on: cifar-fs:ROOT, in its layout; got"):
        fit_episodes(clf, str(birds / "data"), out, task=TASK)
    with pytest.raises(InputError, match=r"classes of split train, and those of val for validation; got split test: give only ROOT"):
        fit_episodes(clf, f"{data}:test", out, task=TASK)
    opened = FewShot().open(f"{data}:train")
    assert opened.names == FewShot().open(data).names
    with pytest.raises(InputError, match=r"needs classes for validation that are not trained on; cifar-fs:.* has '\w+' in both"):
        fit_episodes(clf, replace(opened, validation=replace(opened, validation=None)), out, task=TASK)
    with pytest.raises(InputError, match=r"precision 'bf16-true' would convert the weights of small"):
        fit_episodes(clf, data, out, task=TASK, precision="bf16-true")
    with pytest.raises(InputError, match=r"takes 1 \+ 15 pictures per class .* class 'bandspoon' of cifar-fs:.*:test has 4"):
        score(clf, f"{data}:test", task="few-shot:ways=3", workers=0, progress=False)
    with pytest.raises(InputError, match="the setting episodes of task few-shot is for the score"):
        fit_episodes(clf, data, out, task=SCORED)
    for given, named in ((QUICK.with_(batch_size=8), "batch_size"), (QUICK.with_(dropout=0.1), "dropout")):
        with pytest.raises(InputError, match=rf"{named} \(--{named.replace('_', '-')}\) needs a training by batches"):
            fit_episodes(clf, data, out, task=TASK, recipe=given)
    with pytest.raises(InputError, match=r"is for task few-shot; got 'classification'"):
        fit_episodes(clf, data, out, task="classification")
    with pytest.raises(InputError, match=r"few-shot is trained by episodes: xattn train --task few-shot"):
        fit(clf, data, out, task=TASK, workers=0)


def test_too_many_ways_are_refused_before_anything_is_run(birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clf, five = fresh(), with_ways(xattn.attach(networks.small(8), input_size=32, resize=36, name="small"), 5)
    monkeypatch.setattr(Classifier, "forward", lambda *_: pytest.fail("the network was run"))
    monkeypatch.setattr("xattn.tasks.few_shot.Embedding", lambda *_: pytest.fail("the network was run"))
    for place in (f"cifar-fs:{birds}:test", f"cifar-fs:{birds}:val"):
        with pytest.raises(InputError, match=r"5 ways needs as many classes, but .* has 4: give fewer ways"):
            FewShot(5, 1, 1).score(clf, Data(place))
    monkeypatch.undo()
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match=r"5 ways needs as many classes, but cifar-fs:.*:val has 4: give fewer ways"):
        fit_episodes(five, f"cifar-fs:{birds}", out, task="few-shot:queries=1", workers=0, progress=False)
    assert not out.with_suffix(".training").exists()


def test_the_ways_are_those_that_a_file_was_trained_for_and_other_ways_are_said(
    birds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clf, plain = fresh(), xattn.attach(networks.small(8), input_size=32, resize=36, name="plain")
    assert [FewShot(shots=2).of(each).ways for each in (clf, plain)] == [3, 5]
    assert FewShot(4).of(clf).ways == 4
    own = score(clf, f"cifar-fs:{birds}:test", task="few-shot:queries=2,episodes=3", workers=0, progress=False)
    assert own.task == "few-shot:ways=3,shots=1,queries=2,episodes=3"
    assert "starts from zeros" not in caplog.text
    score(clf, f"cifar-fs:{birds}:test", task="few-shot:ways=2,queries=2,episodes=3", workers=0, progress=False)
    assert "small was trained by episodes of 3 ways: for 2 classes the layer starts from zeros" in caplog.text
    caplog.clear()
    xattn.adapt(clf, networks.pictures(2), [0, 1])
    assert "for 2 classes the layer starts from zeros" in caplog.text
    caplog.clear()
    with_ways(clf, 2)
    assert "the weights that its layer learnt to start from are left out for new ones of 2 ways" in caplog.text
    fitted = fit_episodes(
        clf,
        f"cifar-fs:{birds}",
        tmp_path / "out.safetensors",
        task="few-shot:queries=2",
        recipe=QUICK.with_(epochs=1, episodes=1),
        workers=0,
        progress=False,
    )
    assert fitted.epochs == 1
