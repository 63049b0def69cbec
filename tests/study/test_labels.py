"""What labels mean to the classifiers of a run, and what a run says of labels that seem to mean other classes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import xattn
from xattn.errors import InputError, NameUnknownError
from xattn.models import class_names
from xattn.models.repeatability import instability
from xattn.study.summary import LabelCounts

NAMES = ["5", "10", "crane", "crane", "20"]


class Brightness(nn.Module):
    """Five classes by the brightness of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.linear(self.convolution(images).relu().mean((2, 3)))
        return found


def classifier(labels: Any = NAMES) -> xattn.Classifier:
    torch.manual_seed(0)
    return xattn.attach(Brightness(), input_size=8, labels=labels)


def pictures(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def run(images: Any, out: Path, clf: xattn.Classifier | None = None, **more: Any) -> xattn.Study:
    study = xattn.Study([clf or classifier()], ["random"], ["complexity"], images, out, tune="off", workers=0, progress=False, **more)
    study.run()
    return study


def test_a_number_is_the_class_of_that_name_and_an_int_is_an_index(tmp_path: Path) -> None:
    clf = classifier()
    assert [clf.class_index(each) for each in ("5", "20", 4)] == [0, 4, 4]
    with pytest.raises(NameUnknownError, match="have numbers as names"):
        clf.class_index("1")
    assert classifier(["a", "b", "c", "d", "e"]).class_index("1") == 1
    assert [classifier(["a", "b", "c", "d", "e"]).class_index("1.0"), clf.class_index("20.0")] == [1, 4]
    for wrong in ("²", "9" * 5000, "--1", 1.5, None):
        with pytest.raises(xattn.errors.XattnError):
            classifier(["a", "b", "c", "d", "e"]).class_index(wrong)  # type: ignore[arg-type]
    (pictures(tmp_path, ["a.png"]) / "l.csv").write_text("image,label\na.png,5\n")
    assert run(tmp_path, tmp_path / "run", labels_csv=tmp_path / "l.csv").scores()["label"].tolist() == [0]


def test_a_name_of_two_classes_is_refused_with_both_indices() -> None:
    for ask in (lambda clf: clf.class_index("crane"), lambda clf: xattn.explain(clf, torch.rand(1, 3, 8, 8), target="crane - 5")):
        with pytest.raises(InputError, match="'crane' is the name of 2 classes of Brightness, 2 and 3: give the index"):
            ask(classifier())


def test_wordnet_ids_are_imagenet_s_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tuple(f"n{number:08d}" for number in range(1000))
    monkeypatch.setattr(class_names, "imagenet_wnids", lambda: ids)
    assert class_names.index_of("n00000007", None, 1000, "net") == 7
    with pytest.raises(InputError, match="is given by name"):
        class_names.index_of("n00000007", None, 999, "net")


def test_one_hot_labels_are_taken_if_they_have_one_entry_per_class(tmp_path: Path) -> None:
    hot = torch.utils.data.TensorDataset(torch.rand(3, 3, 8, 8), torch.eye(5)[[4, 0, 1]])
    assert run(hot, tmp_path / "a").scores()["label"].tolist() == [4, 0, 1]
    maps = xattn.explain(classifier(), torch.rand(2, 3, 8, 8), target="label", labels=torch.eye(5)[[3, 1]])
    assert maps.targets.tolist() == [3, 1]
    other = torch.utils.data.TensorDataset(torch.rand(3, 3, 8, 8), torch.eye(3))
    study = xattn.Study([classifier()], ["random"], ["complexity"], other, tmp_path / "b", tune="off", workers=0, progress=False)
    assert all("has 5 classes, the vector 3" in reason for _, reason in study.run().failed)
    soft = torch.utils.data.TensorDataset(torch.rand(3, 3, 8, 8), torch.full((3, 5), 0.2))
    with pytest.raises(InputError, match="soft labels, give the argmax"):
        run(soft, tmp_path / "c")


def test_folders_named_as_classes_are_labels_by_themselves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = pictures(tmp_path / "in", ["e/a.png", "b/b.png"])
    clf = classifier(["a", "b", "c", "d", "e"])
    with caplog.at_level(logging.INFO, "xattn"):
        study = run(folder, tmp_path / "a", clf)
    assert study.scores()["label"].tolist() == [1, 4]
    assert study.plan.target == "label"
    assert "labels: the names of 2 folders, all of them classes (b is 1, e is 4)" in caplog.text
    assert run(folder, tmp_path / "b", clf, labels_from="none").plan.target == "predicted"
    assert run(folder, tmp_path / "c", classifier()).plan.target == "predicted"  # no classes of this one
    (folder / "l.csv").write_text("image,label\nb/b.png,0\ne/a.png,1\n")
    with pytest.raises(InputError, match=r"labels are indices of the folders \(0 to 1\), which are other classes"):
        run(folder, tmp_path / "d", clf, labels_csv=folder / "l.csv")


class Items(torch.utils.data.Dataset[Any]):
    """Images with labels that count the data set's own classes."""

    def __init__(self, *classes: str) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 8, 8), index / 2), index


def test_labels_of_a_data_set_with_other_classes_go_by_name_or_are_refused(tmp_path: Path) -> None:
    clf = classifier(["a", "b", "c", "d", "e"])
    assert run(Items("d", "b"), tmp_path / "a", clf).scores()["label"].tolist() == [3, 1]
    with pytest.raises(InputError, match=r"among the data set's 2 classes \(x, y, …\), and Brightness has 5"):
        run(Items("x", "y"), tmp_path / "b", clf)
    assert run(Items("x", "y"), tmp_path / "c", clf, labels_from="none").plan.target == "predicted"


def test_labels_that_are_predicted_as_by_chance_are_reported() -> None:
    def counts(pairs: list[tuple[int, int]]) -> LabelCounts:
        found = LabelCounts()
        for label, predicted in pairs:
            found.add(label, predicted)
        return found

    assert "subtract 1; 6 of 6 are predicted then" in str(counts([(k + 1, k) for k in range(6)]).warning(10))
    assert "in the order of the network's classes" in str(counts([(k % 5, 9) for k in range(30)]).warning(10))
    assert counts([(k % 5, 9) for k in range(10)]).warning(10) is None  # too few
    assert counts([(k + 1, k + 1) for k in range(6)]).warning(10) is None


class Odd(Brightness):
    """A network that draws random numbers in eval mode, or looks at the whole batch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        found = self.convolution(images).relu().mean((2, 3))
        if self.kind == "random":
            found = nn.functional.dropout(found, 0.5, training=True)
        return super().forward(images) * 0 + self.linear(found - found.mean(0) if self.kind == "batch" else found)


def test_a_network_that_answers_differently_the_second_time_or_in_a_batch_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    image = torch.rand(1, 3, 8, 8)
    for kind, said in (("random", "differently the second time"), ("batch", "differently in a batch")):
        torch.manual_seed(0)
        odd = Odd(kind).eval()
        state = torch.random.get_rng_state()
        assert said in str(instability(odd, odd, image, "odd"))
        assert torch.equal(torch.random.get_rng_state(), state)
        xattn.attach(odd, input_size=8)
        assert said in caplog.text
    calm = Odd("").eval()
    assert instability(calm, calm, image, "calm") is None


def test_evaluate_refuses_other_images_and_maps_of_another_classifier() -> None:
    clf, images = classifier(), torch.rand(2, 3, 8, 8)
    maps = xattn.explain(clf, images, ["random"])
    for wrong, message in (
        ((images * 255).byte(), "Divide 8-bit images by 255"),
        (images * 2 - 1, "do not normalise"),
        (1 - images, "maps are from other images"),
        (images[:1], "Pass the images that were explained"),
    ):
        with pytest.raises(InputError, match=message):
            xattn.evaluate(clf, wrong, maps, ["average-drop"])
    torch.manual_seed(1)
    with pytest.raises(InputError, match="maps are from another classifier"):
        xattn.evaluate(xattn.attach(Brightness(), input_size=8), images, maps, ["average-drop"])
    with pytest.raises(InputError, match="batch_size is the number of images per forward"):
        xattn.evaluate(clf, images, maps, batch_size=0)
    calls: list[Any] = [
        lambda given: xattn.explain(given, images),
        lambda given: xattn.Study([given]),
        lambda given: xattn.evaluate(given, images, maps),
    ]
    for call in calls:
        for given in ("birds:gap", clf.network):
            with pytest.raises(InputError, match="a classifier of xattn is needed"):
                call(given)
    with pytest.raises(NameUnknownError, match="Did you mean 'exact'"):
        xattn.Study([clf], ["random"], ["complexity"], Items("a"), labels_from="none", level="Exact")  # type: ignore[arg-type]


def test_a_contrast_of_a_class_with_itself_has_no_value_and_says_so(tmp_path: Path) -> None:
    clf = classifier()
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    best = [int(index) for index in clf.predict(images).argmax(dim=1)]
    labels = torch.tensor([best[0], (best[1] + 1) % 5, best[2]])
    given = {"methods": ["centre", "grad-cam"], "metrics": ["insertion", "sparsity"], "tune": "off", "workers": 0, "progress": False}
    made = xattn.Study([clf], images=torch.utils.data.TensorDataset(images, labels), out=tmp_path, target="label - predicted", **given)
    assert made.run().failed == []
    rows = made.scores()
    same = rows["image"] != "1"
    assert rows["value"][same].isna().all()
    assert set(rows["reason"][same]) == {"the target is a class less itself in this picture, and 0 whatever the network gives"}
    assert rows["value"][~same].notna().any()
    assert made.table()["insertion"].notna().all()
