"""Classifiers of new classes: what of them changes, that they are ordinary ones, and what has no vector to tell classes by."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import xattn
from tests import networks
from tests.data import published
from tests.training.conftest import paint
from xattn.birds import export_few_shot
from xattn.cli import main
from xattn.data.images import ImageSource
from xattn.data.labelled import open_data
from xattn.errors import ImageError, InputError, NameUnknownError, SettingError, UnsupportedError, WeightsError
from xattn.fewshot import Embedding, fit_linear, with_linear
from xattn.models import Classifier
from xattn.models.checkpoints import InnerLoop, read_header
from xattn.tasks import tasks

IMAGES = networks.pictures(6)
LABELS = [0, 1, 2, 0, 1, 2]


def headed(head: str, classes: int | None = None) -> Classifier:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return xattn.attach(networks.small(), head=head, classes=classes, input_size=32, resize=36, name="small")


def pooled(clf: Classifier) -> Tensor:
    """The mean of the last map, and for each head its vector of it by a slow way."""
    features = clf.features(IMAGES, [clf.stages[-1].name])[clf.stages[-1].name]
    match clf.head_name.partition(":")[0]:
        case "gap":
            return features.mean(dim=(2, 3))
        case "br-npa":
            maps = clf.run(IMAGES).attention[clf.stages[-1].name]
            return torch.cat([(features * maps[:, rank, None]).sum(dim=(2, 3)) for rank in range(maps.shape[1])], dim=1)
        case "b-cnn":
            maps = clf.run(IMAGES).attention[clf.stages[-1].name]
            return torch.cat([(features * maps[:, rank, None]).mean(dim=(2, 3)) for rank in range(maps.shape[1])], dim=1)
        case _:
            return clf.head(features)


@pytest.mark.parametrize(("head", "size"), [("gap", 16), ("br-npa:n=2", 32), ("b-cnn:n=3", 48), ("simpool", 16)])
def test_a_linear_layer_on_the_heads_vector_is_fitted_and_nothing_else_changes(head: str, size: int) -> None:
    clf = headed(head)
    before = {key: value.clone() for key, value in clf.state_dict().items()}
    found = xattn.adapt(clf, IMAGES, LABELS, ["a", "b", "c"], steps=20, lr=0.1)
    assert all(torch.equal(value, before[key]) for key, value in clf.state_dict().items())
    vectors = pooled(clf).detach()
    assert vectors.shape == (6, size)
    weight, bias = fit_linear(vectors[None], torch.tensor([LABELS]), torch.zeros(3, size), torch.zeros(3), steps=20, lr=0.1)
    assert torch.allclose(found.predict(IMAGES), functional.linear(vectors, weight[0], bias[0]), atol=1e-5)
    assert (found.class_count, found.labels, found.trained) == (3, ("a", "b", "c"), True)
    changed = [key for key, value in found.state_dict().items() if key not in before or not torch.equal(value, before[key])]
    place = Embedding(clf).place
    assert set(changed) == {f"{place}.weight", f"{place}.bias"}
    assert found.state_dict().keys() == before.keys()


def test_a_few_birds_of_kinds_that_the_network_never_saw_make_a_file_that_explains(tmp_path: Path) -> None:
    root = export_few_shot(tmp_path / "birds", 4)
    kinds = (root / "splits" / "bertinetto" / "test.txt").read_text().split()
    few = tmp_path / "few"
    for kind in kinds:
        (few / kind).mkdir(parents=True)
        for number in range(2):
            name = f"{number:04d}.png"
            (few / kind / name).write_bytes((root / "data" / kind / name).read_bytes())
    for model in ("birds:gap", "birds:br-npa"):
        out = tmp_path / f"{model.partition(':')[2]}.safetensors"
        result = CliRunner().invoke(main, ["adapt", model, "--data", str(few), "--out", str(out), "--steps", "200", "--device", "cpu"])
        assert result.exit_code == 0, result.output
        assert f"8 pictures of 4 classes: {', '.join(sorted(kinds))}" in result.output
        loaded = xattn.load(str(out), device="cpu")
        assert (loaded.class_count, loaded.labels, loaded.trained) == (4, tuple(sorted(kinds)), True)
        again = xattn.adapt(xattn.load(model, device="cpu"), few, steps=200)
        paths = [str(root / "data" / kind / "0003.png") for kind in kinds]
        queries = next(ImageSource(paths).batches(loaded.preprocessing, 4)).crops / 255
        assert torch.allclose(loaded.predict(queries), again.predict(queries), atol=1e-5)
        target = torch.tensor([loaded.class_index(kind) for kind in kinds])
        maps = xattn.explain(loaded, queries, methods=["grad-cam"], target=target)
        assert float(maps["grad-cam"].abs().sum()) > 0
        rows = xattn.evaluate(loaded, queries, maps, metrics=["average-drop"], target=target)
        assert len(rows) == 4
        assert not read_header(out).head_alone  # both came with their own weights


def test_a_layer_that_was_trained_for_it_is_where_the_fit_starts_and_says_how_long_it_takes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from tests import networks\n\n\ndef build():\n    return networks.small(5)\n")
    plain = xattn.load(f"{tmp_path / 'mine.py'}:build", input_size=32, device="cpu")
    layer = nn.Linear(16, 3)
    learnt = with_linear(plain, layer, None)
    learnt.inner = InnerLoop(7, 0.2)
    learnt.save(str(tmp_path / "learnt.safetensors"))
    loaded = xattn.load(str(tmp_path / "learnt.safetensors"), device="cpu", trust_code=True)
    assert loaded.inner == InnerLoop(7, 0.2)
    assert (loaded.class_count, loaded.labels) == (3, None)
    vectors = pooled(plain)
    found = xattn.adapt(loaded, IMAGES, LABELS)
    weight, bias = fit_linear(vectors[None], torch.tensor([LABELS]), layer.weight, layer.bias, steps=7, lr=0.2)
    assert torch.allclose(found.predict(IMAGES), functional.linear(vectors, weight[0], bias[0]), atol=1e-5)
    assert found.inner is None
    two = xattn.adapt(loaded, IMAGES[:2], [0, 1])  # of another number of classes: from zeros
    weight, bias = fit_linear(vectors[None, :2], torch.tensor([[0, 1]]), torch.zeros(2, 16), torch.zeros(2), steps=7, lr=0.2)
    assert torch.allclose(two.predict(IMAGES), functional.linear(vectors, weight[0], bias[0]), atol=1e-5)


class TwoParts(nn.Module):
    """Logits that are a sum of two layers' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=4)
        self.one, self.other = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        vector = self.conv(images).relu().mean(dim=(2, 3))
        return self.one(vector) + self.other(vector)


def test_what_has_no_vector_before_a_linear_layer_is_refused() -> None:
    convolutional = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for network, head in ((TwoParts(), "gap"), (convolutional, "gap"), (networks.small(), "protopnet:per_class=2")):
        clf = xattn.attach(network, head=head, input_size=32)
        with pytest.raises(UnsupportedError, match=rf"· {head}.* has no vector for a classifier of new classes: its logits must be"):
            xattn.adapt(clf, IMAGES, LABELS)
    for head, key in (("br-npa:rank_probes=true", "probes.ranks_"), ("ca-stream:per_class=true", "")):
        with pytest.raises(UnsupportedError, match=rf"has weights for each of its classes outside the last layer \(.*{key}"):
            xattn.adapt(headed(head), IMAGES, LABELS)
    with pytest.raises(InputError, match=r"small is multi-label"):
        xattn.adapt(xattn.attach(networks.small(), input_size=32, name="small", multi_label=True), IMAGES, LABELS)


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (None, None, "needs labels"),
        ([0, 1], None, r"one class index per image; got \(2,\)"),
        ([0.0, 1.0, 2.0, 0.0, 1.0, 2.0], None, "torch.float32"),
        ([0, 1, 3, 0, 1, 3], None, "class 2 has no picture"),
        ([0, 1, 2, 0, 1, 2], ["a", "b"], r"in 0 … 1, one for each name; got 2"),
        ([0, 1, -1, 0, 1, 2], None, "got -1"),
        ([0, 0, 0, 0, 0, 0], None, "at least two new classes"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels: list[int] | None, names: list[str] | None, said: str, tiny: Classifier) -> None:
    with pytest.raises(InputError, match=said):
        xattn.adapt(tiny, IMAGES, labels, names)


def test_folders_that_do_not_fit_and_steps_that_cannot_be_are_named(tmp_path: Path, tiny: Classifier) -> None:
    folder = paint(tmp_path / "painted", 2)
    assert xattn.adapt(tiny, folder, batch_size=4).labels == ("blue", "green", "red")
    with pytest.raises(NameUnknownError, match=r"Unknown class 'blue'"):
        xattn.adapt(tiny, folder, names=["red", "green"])
    with pytest.raises(InputError, match=r"class 'pink' has no picture"):
        xattn.adapt(tiny, folder, names=["blue", "green", "pink", "red"])
    for steps in (0, 10**30):
        with pytest.raises(SettingError, match=rf"1 to 1,000,000 steps, and a learning rate above 0; got {steps}"):
            xattn.adapt(tiny, folder, steps=steps)
    with pytest.raises(InputError, match=r"the learning rate 1e\+40 is too high"):
        xattn.adapt(tiny, folder, lr=10**40)
    with pytest.raises(InputError, match=r"of tiny is not finite: the vectors are not finite, or the learning rate 1e\+40 is too high"):
        xattn.adapt(tiny, folder, lr=1e40)
    (folder / "red" / "00.png").write_bytes(b"torn")
    with pytest.raises(ImageError, match=r"picture red/00.png: .*Replace it"):
        xattn.adapt(tiny, folder)


def test_pictures_with_several_labels_are_refused_before_anything_is_run(tmp_path: Path, tiny: Classifier) -> None:
    folder = paint(tmp_path / "painted", 2)
    rows = [f"{path.parent.name}/{path.name}" for path in sorted(folder.rglob("*.png"))]
    (folder / "two.csv").write_text("\n".join(["image,label", *(f"{row},a|b" if row == rows[3] else f"{row},a" for row in rows)]))
    (folder / "one.csv").write_text("\n".join(["image,label", *(f"{row},{row.partition('/')[0]}" for row in rows)]))
    voc = published.voc(tmp_path / "voc")
    several = f"one class per picture is needed; {rows[3]} has 2 labels, a, b. Give each picture one, or leave it out."
    of_voc = "one class per picture is needed; 2007_000000.jpg has 2 labels, cat, person."
    for place, said in ((folder / "two.csv", several), (f"voc:{voc}:train", of_voc)):
        with pytest.raises(InputError, match=re.escape(said)):
            xattn.adapt(tiny, place)
        with pytest.raises(InputError, match=re.escape(said)):
            xattn.tasks.score(tiny, place, task="few-shot:ways=2,queries=1", workers=0, progress=False)
    labelled = open_data(f"voc:{voc}")
    with pytest.raises(InputError, match=r"voc:.* has several labels per picture, and few-shot training needs one class of each"):
        tasks.create("few-shot").instance.open(replace(labelled, validation=labelled))
    assert xattn.adapt(tiny, folder / "one.csv").labels == ("blue", "green", "red")
    (folder / "red").rename(folder / "red|pink")  # a folder is one class, whatever its name
    assert xattn.adapt(tiny, folder).labels == ("blue", "green", "red|pink")
    xattn.tasks.score(tiny, folder, task="few-shot:ways=3,queries=1", workers=0, progress=False)
    hot = [(Image.new("RGB", (32, 32)), torch.tensor(entries)) for entries in ([1, 0, 0], [0, 1, 0], [0, 1, 1])]
    assert xattn.adapt(tiny, hot[:2]).labels == ("0", "1")
    with pytest.raises(InputError, match="one class per picture is needed; 2 has 2 labels, 1, 2"):
        xattn.adapt(tiny, hot)


def test_a_layer_of_another_width_and_damaged_settings_in_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has vectors of 16; the layer takes 4"):
        with_linear(headed("gap"), nn.Linear(4, 2), None)
    clf = xattn.load("birds:gap", device="cpu")
    clf.inner = InnerLoop(3)
    path = tmp_path / "f.safetensors"
    clf.save(str(path))
    path.write_bytes(path.read_bytes().replace(b'\\"steps\\": 3', b'\\"steps\\":-3'))
    with pytest.raises(WeightsError, match=r"the header of .* is damaged: inner.steps"):
        read_header(path)


@pytest.mark.parametrize("head", ["br-npa:n=2,hidden=5", "b-cnn:n=2,hidden=5"])
def test_new_classes_are_told_apart_by_the_vector_before_a_hidden_layer(head: str) -> None:
    clf = headed(head, classes=4)
    assert not clf.grafted
    first, relu, second = clf.head.linear
    vectors = Embedding(clf)(IMAGES)
    assert torch.allclose(second(relu(first(vectors))), clf(IMAGES), atol=1e-6)
    linear = nn.Linear(vectors.shape[1], 3)
    found = with_linear(clf, linear, ["a", "b", "c"])
    assert found.head_name == head.replace(",hidden=5", "")
    assert torch.allclose(found.predict(IMAGES), linear(vectors), atol=1e-6)
    assert {name for name, _ in found.head.named_parameters()} & {"linear.weight", "linear.0.weight"} == {"linear.weight"}


def test_of_a_network_with_a_hidden_layer_a_copy_without_it_is_saved(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clf = xattn.load("few-shot:resnet12:width=1,hidden=6", classes=4, input_size=32, resize=32, device="cpu")
    with torch.no_grad():
        clf.network.conv1.weight.mul_(1.5)  # trained, so that all weights are saved
    found = with_linear(clf, nn.Linear(8, 3), None)
    found.save(str(tmp_path / "new.safetensors"))
    loaded = xattn.load(str(tmp_path / "new.safetensors"), device="cpu")
    assert read_header(tmp_path / "new.safetensors").source.model == found.name == "few-shot:resnet12:width=1"
    assert torch.equal(loaded.predict(IMAGES), found.predict(IMAGES))
    vectors = Embedding(clf)(IMAGES)
    assert torch.allclose(found.predict(IMAGES), found.network.fc(vectors), atol=1e-6)


@pytest.mark.parametrize("head", ["ca-stream", "simpool"])
def test_a_head_in_the_place_of_the_pooling_gives_the_vectors(head: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clf = xattn.load("few-shot:resnet12:width=2", head=head, input_size=32, resize=36, device="cpu")
    vectors = Embedding(clf)(IMAGES)
    assert torch.allclose(Embedding(clf).linear(vectors), clf(IMAGES), atol=1e-6)
    new = xattn.adapt(clf, IMAGES, LABELS, steps=2000, lr=0.5)
    assert new.predict(IMAGES).argmax(dim=1).tolist() == LABELS


def test_a_network_of_one_s_own_with_a_hidden_layer_is_adapted_but_has_no_name_to_be_saved_by(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from xattn.resnet12 import ResNet12\n\n\ndef build():\n    return ResNet12(6, 2, 7).eval()\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clf = xattn.load(f"{tmp_path / 'own.py'}:build", input_size=32, resize=36, device="cpu", trust_code=True)
    new = xattn.adapt(clf, IMAGES, LABELS)
    assert new.class_count == 3
    with pytest.raises(UnsupportedError, match="nothing says how to rebuild it"):
        new.save(str(tmp_path / "new.safetensors"))
