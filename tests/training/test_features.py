"""Training on features that are computed once: equal to running the network in every epoch, and refused where it would not be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Subset

import xattn
from tests import networks
from tests.training.conftest import fresh, paint
from xattn.cli import main
from xattn.errors import InputError, RunError
from xattn.models import Classifier, evaluating
from xattn.training import PRESETS, Recipe, fit, open_data
from xattn.training.data import Crops
from xattn.training.features import attend_features, on_features

ALONE = Recipe(epochs=2, batch_size=8, lr=0.01, optimiser="sgd", smallest_crop=None)


def on_two_layers(head: str) -> Classifier:
    """A network whose classifier is more than a linear layer on the pooled vector."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.small(3)
        network[6] = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))
        return xattn.attach(network, head=head, input_size=32, resize=36, name="two layers")


def trained(clf: Classifier, data: Path, out: Path, cache: Path | None) -> tuple[dict[str, Tensor], float]:
    fitted = fit(clf, data, out, recipe=ALONE, workers=0, progress=False, cache_features=cache)
    return clf.state_dict(), fitted.loss


@pytest.mark.parametrize(
    "head",
    [
        "br-npa:rank_probes=true,dropout=0.3",
        "ca-stream:per_class=true",
        "ep:queries=4",
        "simpool",
        "simpool:align=additive,distribution=entmax15",
    ],
)
def test_training_on_kept_features_equals_running_the_network(head: str, painted: Path, tmp_path: Path) -> None:
    expected, loss = trained(fresh(head), painted, tmp_path / "run.safetensors", None)
    found, cached_loss = trained(fresh(head), painted, tmp_path / "kept.safetensors", tmp_path / "features")
    before = fresh(head).state_dict()
    assert any(not torch.allclose(value, before[key], atol=1e-4) for key, value in expected.items())  # it was trained
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=0, atol=1e-5), key
    assert cached_loss == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("head", ["ca-stream", "simpool"])
def test_a_classifier_of_several_layers_gets_the_vectors(head: str, painted: Path, tmp_path: Path) -> None:
    clf = on_two_layers(head)
    assert clf.attachment.entry.linear is None
    expected, loss = trained(clf, painted, tmp_path / "run.safetensors", None)
    found, cached_loss = trained(on_two_layers(head), painted, tmp_path / "kept.safetensors", tmp_path / "features")
    assert all(torch.allclose(found[key], value, rtol=0, atol=1e-5) for key, value in expected.items())
    assert cached_loss == pytest.approx(loss, abs=1e-5)


def test_without_labels_a_query_per_class_is_that_of_the_network_s_own_prediction(painted: Path, tmp_path: Path) -> None:
    clf = fresh("ca-stream:per_class=true")
    with torch.no_grad():
        clf.head.query.mul_(100)  # so that the logits depend on which query is taken
    pictures = Crops(open_data(painted), clf.preprocessing, None, 0)
    options = {"precision": "32-true", "batch": 8, "workers": 0, "shown": False}
    kept, _ = on_features(clf, pictures, Subset(pictures, [0]), tmp_path / "features", **options)
    given, _ = kept.__getitems__([5, 17, 30])
    images = torch.stack([pictures[number][0] for number in (5, 17, 30)]) / 255
    with evaluating(clf):
        expected, found = clf.run(images), attend_features(clf, given)
        other = attend_features(clf, given, (given.predicted + 1) % 3)
    assert torch.allclose(found.output, expected.output, atol=1e-5)
    first = clf.attachment.stages[0].name  # the query's own attention; what follows hardly depends on it here
    assert torch.allclose(found.attention[first], expected.attention[first], rtol=1e-3)
    assert not torch.allclose(other.attention[first], expected.attention[first], rtol=1e-3)


def test_the_network_runs_once_for_all_heads_and_again_for_what_has_changed(
    painted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xattn")
    cache = tmp_path / "features"

    def files(clf: Classifier) -> int:
        trained(clf, painted, tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors", cache)
        return len(list(cache.iterdir()))

    clf = fresh("ep:queries=4")
    assert files(clf) == 1
    size = 36 * 16 * 8 * 8 * 4
    assert f"features of 3, 36 pictures: {size / 1e6:.2f} MB are written to {cache}" in caplog.text
    (path,) = cache.iterdir()
    assert size < path.stat().st_size < size + 200
    shown = torch.stack([clf.preprocessing.crop(open_data(painted).pictures.picture(number)) for number in range(36)]) / 255
    assert torch.allclose(load_file(path)["3"], clf.features(shown, ["3"])["3"], atol=1e-6)
    assert files(fresh("abmilp")) == 1  # the same stage of the same network
    assert files(fresh("ca-stream")) == 2  # other stages, and a classifier of 3 classes
    other = fresh("abmilp")
    with torch.no_grad():
        other.network[0].weight.mul_(1.1)
    assert files(other) == 3
    shutil.copy(painted / "red" / "00.png", painted / "red" / "01.png")
    assert files(fresh("abmilp")) == 4
    assert not list(cache.glob("*.part"))


def test_what_changes_the_features_or_needs_the_images_is_refused(painted: Path, tmp_path: Path) -> None:
    for head, recipe, options, message in (
        ("abmilp", ALONE.with_(backbone=True), {}, "the network is trained too, which changes them. Train the head alone, as preset probe"),
        ("abmilp", PRESETS["head"], {}, r"random crops \(smallest_crop=0.35\) change them in every epoch. Set it to None, as preset probe"),
        ("abmilp", ALONE.with_(deletion_grid=4), {}, r"deleted patches \(deletion_grid=4\) change them in every epoch"),
        ("abmilp", ALONE, {"teacher": fresh("abmilp")}, "a teacher needs the images"),
        ("br-npa:selection=random", ALONE, {}, "br-npa:selection=random draws random numbers by the images' content"),
        ("abmilp", ALONE, {"devices": 2}, "they are read by one process"),
    ):
        with pytest.raises(InputError, match=f"features cannot be computed once and kept: {message}"):
            fit(fresh(head), painted, tmp_path / "out.safetensors", recipe=recipe, cache_features=tmp_path / "features", **options)
    assert not (tmp_path / "features").exists()
    assert PRESETS["probe"].smallest_crop is None
    assert not PRESETS["probe"].backbone


def test_a_disk_without_room_is_reported_before_anything_is_written(painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(RunError, match=r"the features of 3 of 36 pictures take 0.15 MB, and '.*features' has 0.00 MB free: give a folder"):
        trained(fresh("abmilp"), painted, tmp_path / "out.safetensors", tmp_path / "features")
    assert not list((tmp_path / "features").iterdir())


def test_the_command_keeps_features_with_the_preset_for_them(
    tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "some", count=4)
    base = ["train", "--model", factory, "--data", "some", "--epochs", "1", "--input-size", "32", "--resize", "36"]
    options = ["--head", "map:heads=4", "--workers", "0", "--accelerator", "cpu", "--cache-features", "kept", "--out", "a.safetensors"]
    done = CliRunner().invoke(main, [*base, *options])
    assert done.exit_code == 0, done.output
    assert "the head alone" in done.stderr
    assert len(list((tmp_path / "kept").glob("features-*.safetensors"))) == 1
    assert xattn.load("a.safetensors", device="cpu", trust_code=True).trained
