"""Segmentation: mIoU by hand, the loss written out, joint crops, a training from pictures of birds' parts to its score and maps."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassJaccardIndex

import xattn
from xattn.birds import export_parts
from xattn.cli import main
from xattn.data.preprocessing import Preprocessing, Region, pixels
from xattn.errors import InputError, SettingError
from xattn.tasks import score, tasks
from xattn.tasks.segmentation import Segmentation, predicted_pixels
from xattn.training import Fitted, Recipe, fit, open_data
from xattn.training.data import LabelMapCrops, splits
from xattn.training.module import Training, schedule_of

TASK = tasks.create("segmentation").instance
V = 255


def written(root: Path, split: str, pictures: Sequence[tuple[list[list[int]], list[list[int]]]], shades: Sequence[int] = ()) -> Path:
    """Pictures in Cityscapes' layout, of what is to be predicted and what is labelled at each pixel.

    Each pixel is black but for one of the first three channels, the class to be predicted; 3 is white. With `shades` it is grey, by class.
    """
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    for number, (shown, labels) in enumerate(pictures):
        for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
            (root / kind / split / "x").mkdir(parents=True, exist_ok=True)
            values = labels if kind == "gtFine" else shown
            made = Image.new("L" if kind == "gtFine" else "RGB", (len(values[0]), len(values)))
            flat = [value for row in values for value in row]
            made.putdata(flat if kind == "gtFine" else [(shades[k],) * 3 if shades else COLOURS[k] for k in flat])
            made.save(root / kind / split / "x" / f"x_{number}_{ending}.png")
    return root


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def reading(size: tuple[int, int], resize: Any = None, labels: Sequence[str] | None = ("a", "b", "c", "d")) -> xattn.Classifier:
    """A classifier that predicts each pixel by its colour."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    with torch.no_grad():
        network[0].weight[:] = torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2], [1, 1, 1]])[:, :, None, None]
        network[0].bias[:] = torch.tensor([0.0, 0, 0, -2])
    return xattn.attach(network, input_size=size, resize=resize or size, mean=[0.0], std=[1.0], labels=labels, name="reading")


FIRST = ([[0, 0, 1, 1], [0, 3, 1, 2]], [[0, 0, 0, 1], [0, V, 1, 2]])  # of a 3 of 4, of b 2 of 3, of c 1 of 1; d where nothing counts
SECOND = ([[0, 0, 0, 0], [1, 0, 0, 0]], [[0, 0, 0, 0], [0, V, V, V]])  # of a 4 of 5, of b 0 of 1


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_miou_by_hand_with_ignored_pixels_and_a_class_that_is_nowhere(batch_size: int, tmp_path: Path) -> None:
    root = written(tmp_path, "val", [FIRST, SECOND])
    found = score(reading((2, 4)), f"cityscapes:{root}", task="segmentation", batch_size=batch_size, workers=0, progress=False)
    expected = [100 * 7 / 9, 100 * 2 / 4, 100.0]
    assert [found.classes[name].mean for name in "abc"] == pytest.approx(expected)
    assert math.isnan(found.classes["d"].mean)
    assert [found.classes[name].n for name in "abcd"] == [2, 2, 1, 0]
    assert math.isnan(found.classes["c"].low)
    assert found.scores["mIoU"].mean == pytest.approx(sum(expected) / 3)
    assert (found.n, found.data) == (2, f"cityscapes:{root}:val")
    both = [torch.tensor([first, second]) for first, second in zip(FIRST, SECOND, strict=True)]
    theirs = MulticlassJaccardIndex(4, ignore_index=V)(*both)
    assert found.scores["mIoU"].mean == pytest.approx(100 * float(theirs))
    assert f"  a {expected[0]:.2f} %" in str(found)
    assert "  d –" in str(found)


def test_the_interval_is_that_of_pictures_drawn_with_replacement(tmp_path: Path) -> None:
    root = written(tmp_path, "val", [FIRST, SECOND, FIRST, SECOND, SECOND])
    found = score(reading((2, 4)), f"cityscapes:{root}", task="segmentation", workers=0, progress=False)
    counts = {0: ((3, 4), (2, 3), (1, 1)), 1: ((4, 5), (0, 1), (0, 0))}
    drawn = []
    for numbers in torch.randint(5, (1000, 5), generator=torch.Generator().manual_seed(0)).tolist():
        pairs = [[counts[(0, 1, 0, 1, 1)[number]][k] for number in numbers] for k in range(3)]
        sums = [(sum(a for a, _ in of), sum(b for _, b in of)) for of in pairs]
        known = [100 * a / b for a, b in sums if b]
        drawn.append(sum(known) / len(known))
    low, high = torch.tensor(drawn, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert found.scores["mIoU"][1:3] == pytest.approx((low, high))


def test_classes_are_matched_by_name_and_a_prediction_of_another_class_is_wrong(tmp_path: Path) -> None:
    root = written(tmp_path, "val", [FIRST, SECOND])
    (root / "classes.txt").write_text("c\na\nb\n")  # the maps' 0 is c now, what is shown in the first colour
    (root / "gtFine/val/x/x_1_gtFine_labelTrainIds.png").write_bytes((root / "gtFine/val/x/x_0_gtFine_labelTrainIds.png").read_bytes())
    (root / "leftImg8bit/val/x/x_1_leftImg8bit.png").write_bytes((root / "leftImg8bit/val/x/x_0_leftImg8bit.png").read_bytes())
    found = score(reading((2, 4), labels=("c", "a", "other", "b")), f"cityscapes:{root}", task="segmentation", workers=0, progress=False)
    # c is 3 of 4, a 2 of 3; the pixel of b is predicted as "other", which is no class of the data
    assert {name: found.classes[name].mean for name in "cab"} == pytest.approx({"c": 75, "a": 200 / 3, "b": 0})
    assert found.scores["mIoU"].mean == pytest.approx((75 + 200 / 3) / 3)
    with pytest.raises(InputError, match=r"reading has 4 classes without names, 'cityscapes.*' 3: give their names"):
        score(reading((2, 4), labels=None), f"cityscapes:{root}", task="segmentation", workers=0, progress=False)


def test_labels_are_compared_at_their_own_size_where_the_crop_shows_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown = [[0] * 4 + [1] * 4 + [2] * 4 for _ in range(4)]
    root = written(tmp_path, "val", [(shown, shown), (shown, shown)])
    place = f"cityscapes:{root}"
    halved = score(reading((2, 6)), place, task="segmentation", workers=0, progress=False)  # borders lie between cells
    assert halved.scores["mIoU"].mean == 100
    assert "do not count" not in caplog.text
    with caplog.at_level(logging.WARNING):
        middle = score(reading((4, 4), 4), place, task="segmentation", workers=0, progress=False)
    assert "reading sees crops of 4×4, in one picture only 33 % of the pixels; the others do not count" in caplog.text
    assert middle.classes["b"].mean == 100
    assert math.isnan(middle.classes["a"].mean)


def test_predicted_pixels_are_those_of_the_resized_logits() -> None:
    logits = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0))
    wanted = functional.interpolate(logits[None], size=(17, 24), mode="bilinear", align_corners=False)[0].argmax(dim=0)
    found, rows, columns = predicted_pixels(logits, Region(0, 0, 24, 17), (24, 17))
    assert (rows, columns) == (slice(0, 17), slice(0, 24))
    assert torch.equal(found, wanted)
    part, rows, columns = predicted_pixels(logits, Region(3, 2, 11, 8), (20, 10))  # one cell per pixel
    assert (rows, columns) == (slice(2, 8), slice(3, 11))
    assert torch.equal(part, logits.argmax(dim=0))


def slow_terms(output: Tensor, targets: Tensor) -> list[tuple[float, float]]:
    """Of each pixel that counts, the cross-entropy and the probability of its own class."""
    found = []
    for logits, labels in zip(output.tolist(), targets.tolist(), strict=True):
        for row, line in enumerate(labels):
            for column, label in enumerate(line):
                if label != V:
                    powers = [math.exp(of[row][column]) for of in logits]
                    p = powers[label] / sum(powers)
                    found.append((-math.log(p), p))
    return found


def test_the_loss_is_the_mean_over_the_pixels_that_count_and_mining_takes_the_least_probable_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 3, (2, 4, 5), generator=generator).to(torch.uint8)
    targets[0, :2], targets[1, 3, 1] = V, V
    terms = slow_terms(output, targets)
    loss = TASK.loss(output, targets)
    assert loss.item() == pytest.approx(sum(term for term, _ in terms) / len(terms))
    (gradient,) = torch.autograd.grad(loss, output)
    assert (gradient.abs().sum(dim=1) == 0).tolist() == (targets == V).tolist()
    assert TASK.loss(output, torch.full_like(targets, V)).item() == 0
    for threshold, least in ((0.4, 1), (0.01, 7), (1.0, 1), (0.3, 10_000)):
        mined = tasks.create(f"segmentation:ohem={threshold},ohem_pixels={least}").instance.loss(output, targets)
        worst = sorted(terms, key=lambda term: term[1])
        kept = [term for number, (term, p) in enumerate(worst) if p < threshold or number < least]
        assert mined.item() == pytest.approx(sum(kept) / len(kept)), (threshold, least)
    small = torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64)
    resized = functional.interpolate(small, size=(4, 5), mode="bilinear")
    assert TASK.loss(small, targets).item() == pytest.approx(TASK.loss(resized, targets).item())
    for wrong in ("auxiliary=-1", "ohem=0", "ohem_pixels=0"):
        with pytest.raises(SettingError, match="auxiliary is a weight of 0 or more"):
            tasks.create(f"segmentation:{wrong}")


def test_the_auxiliary_classifier_s_loss_is_added_with_its_weight() -> None:
    classifier = xattn.load("ocr:birds:gap:width=8,keys=4", classes=4, input_size=16, device="cpu")
    crops = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(1))
    returned = classifier.network(classifier.normalise(pixels(crops, classifier.device)))
    own, beside = (TASK.loss(returned[name], targets).item() for name in ("out", "aux"))
    for spec, weight in (("segmentation", 0.4), ("segmentation:auxiliary=0.1", 0.1), ("segmentation:auxiliary=0", 0)):
        module = Training(classifier, tasks.create(spec), Recipe(), None, False, 0)
        assert module._of_head(crops, targets).item() == pytest.approx(own + weight * beside, rel=1e-5)


def test_crops_keep_picture_and_label_map_aligned(tmp_path: Path) -> None:
    shades = (10, 80, 160, 240)
    blocks = torch.randint(0, 4, (6, 9), generator=torch.Generator().manual_seed(0))
    shown = blocks.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1).tolist()
    root = written(tmp_path, "train", [(shown, shown)] * 2, shades)
    data = open_data(f"cityscapes:{root}")
    preprocessing = Preprocessing((20, 30), (24, 36), interpolation="nearest")
    crops = LabelMapCrops(data, preprocessing, 0.25, 0)
    colour = torch.tensor([round(255 * value) for value in preprocessing.mean], dtype=torch.uint8)
    covered, made = [], set()
    for epoch in range(40):
        crop, labels = crops[epoch, epoch % 2]
        assert crop.shape == (3, 20, 30)
        assert labels.shape == (20, 30)
        inside = labels != V
        assert torch.equal(crop[0][inside], torch.tensor(shades, dtype=torch.uint8)[labels[inside].long()])
        assert bool((crop[:, ~inside] == colour[:, None]).all())
        assert all(torch.equal(one, other) for one, other in zip(crops[epoch, epoch % 2], (crop, labels), strict=True))
        covered.append(float(inside.float().mean()))
        made.add(crop.numpy().tobytes())
    assert len(made) == 40
    assert min(covered) < 0.6 < max(covered) == 1
    crop, labels = LabelMapCrops(data, preprocessing, None, 0)[0]
    assert torch.equal(labels, torch.tensor(shown, dtype=torch.uint8)[2:22, 3:33])
    assert torch.equal(crop[1], torch.tensor(shades, dtype=torch.uint8)[labels.long()])
    with pytest.raises(InputError, match="does not apply to pictures with label maps: leave out centre_crop=0.9"):
        splits(data, preprocessing, 0.5, None, 0, 0.9, per_pixel=True)
    with pytest.raises(InputError, match="not deleted from pictures with label maps: leave out deletion_grid=4"):
        splits(data, preprocessing, 0.5, None, 0, per_pixel=True, deletion_grid=4)


def test_a_picture_is_flipped_together_with_its_label_map(tmp_path: Path) -> None:
    shades, shown = (10, 80, 160, 240), [[0] * 8 + [1] * 8 for _ in range(8)]
    data = open_data(f"cityscapes:{written(tmp_path, 'train', [(shown, shown)], shades)}")
    crops = LabelMapCrops(data, Preprocessing((8, 16), (8, 16), interpolation="nearest"), 1.0, 0)  # scale 1, the whole picture
    first = {int(crops[epoch, 0][1][0, 0]) for epoch in range(20)}
    assert first == {0, 1}


def test_the_poly_schedule_falls_to_zero_by_its_power() -> None:
    factor = schedule_of(Recipe(epochs=2, schedule="poly"), 10)
    assert [factor(step) for step in (0, 5, 10, 11)] == pytest.approx([1, 0.5**0.9, 0, 0])
    assert schedule_of(Recipe(epochs=2, schedule="poly", power=2), 10)(5) == 0.25
    with pytest.raises(SettingError, match="power=0"):
        Recipe(power=0)


def test_what_is_no_segmentation_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path, "val", [FIRST])
    place, birds = f"cityscapes:{root}", xattn.load("birds:gap", device="cpu")
    with pytest.raises(InputError, match=r"birds:gap · gap gives no map of logits, but segmentation needs one.*: use ocr:BACKBONE"):
        score(birds, place, task="segmentation", workers=0, progress=False)
    with pytest.raises(InputError, match="segmentation is scored on cityscapes:ROOT"):
        score(reading((2, 4)), root, task="segmentation", workers=0, progress=False)
    with pytest.raises(InputError, match="has labels of its own"):
        score(reading((2, 4)), place, task="segmentation", labels_from="folders", workers=0, progress=False)
    with pytest.raises(InputError, match="learning a teacher's answers needs one class per picture"):
        TASK.check_training(reading((2, 4)), True)
    (tmp_path / "labels.csv").write_text("image,label\nleftImg8bit/val/x/x_0_leftImg8bit.png,a\n")
    with pytest.raises(InputError, match="has no label maps, but segmentation needs the class of every pixel"):
        TASK.open(tmp_path / "labels.csv")


def test_a_label_map_of_another_size_and_an_unreadable_picture_are_named(tmp_path: Path) -> None:
    root = written(tmp_path, "val", [FIRST, SECOND])
    (root / "leftImg8bit/val/x/x_0_leftImg8bit.png").write_bytes(b"torn")
    found = score(reading((2, 4)), f"cityscapes:{root}", task="segmentation", workers=0, progress=False)
    assert (found.n, [name for name, _ in found.failed]) == (1, ["x_0_leftImg8bit.png"])
    Image.new("L", (8, 4)).save(root / "gtFine/val/x/x_1_gtFine_labelTrainIds.png")
    with pytest.raises(InputError, match=r"x_1_gtFine_labelTrainIds.png' has 8 × 4 pixels, and its picture 4 × 2 pixels"):
        score(reading((2, 4)), f"cityscapes:{root}", task="segmentation", workers=0, progress=False)


NETWORK = "ocr:birds:gap:width=8,keys=4,regions=representatives"


def test_from_parts_of_birds_to_a_network_its_score_and_maps_of_a_region(tmp_path: Path) -> None:
    root = export_parts(tmp_path / "birds", train=8, validation=3)
    net, run = str(tmp_path / "net.safetensors"), str(tmp_path / "run")

    def command(*arguments: str) -> str:
        done = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    shared = ("--workers", "0", "--data", f"cityscapes:{root}", "--task", "segmentation")
    trained = ("--input-size", "32", "--resize", "32", "--epochs", "1", "--batch-size", "4", "--preset", "ocr", "--accelerator", "cpu")
    said = command("train", "--model", NETWORK, *trained, *shared, "--out", net)
    assert "8 pictures of 6 classes" in said
    assert "mIoU" in said
    classifier = xattn.load(net, device="cpu")
    assert classifier.labels == ("ground", "crest", "beak", "wing", "tail", "legs")
    out = command("evaluate", net, *shared, "--device", "cpu", "--out", str(tmp_path / "scores.json"))
    assert "mIoU " in out
    assert "  wing " in out
    content = json.loads((tmp_path / "scores.json").read_text())
    assert (content["task"], content["data"], content["n"]) == ("segmentation", f"cityscapes:{root}:val", 3)
    assert list(content["classes"]) == list(classifier.labels)
    methods = ("--method", "grad-cam", "--method", "raw-attention", "--method", "integrated-gradients:steps=2")
    options = ("--metric", "average-drop", "--workers", "0", "--device", "cpu", "--tune", "off")
    command("explain", f"cityscapes:{root}:val", "--model", net, *methods, *options, "--out", run)
    rows = pd.read_csv(f"{run}/scores.csv")
    assert len(rows) == 3 * 3
    assert rows["value"].notna().all()


def test_resumed_equals_uninterrupted_and_the_epoch_of_the_highest_miou_is_kept(tmp_path: Path) -> None:
    root = export_parts(tmp_path / "birds", train=8, validation=1)
    recipe = Recipe(backbone=True, epochs=3, batch_size=4, lr=3e-3, smallest_crop=0.5, schedule="poly", validation=0.25)

    class Cut(Exception):
        pass

    scores: dict[int, float] = {}

    def cut(epoch: int, value: float) -> None:
        if epoch == 1:
            raise Cut

    def train(name: str, on_epoch: Any) -> tuple[xattn.Classifier, Fitted]:
        torch.manual_seed(0)
        classifier = xattn.load(NETWORK, classes=6, input_size=16, resize=16, device="cpu")
        options: dict[str, Any] = {"recipe": recipe, "workers": 0, "progress": False, "on_epoch": on_epoch}
        return classifier, fit(classifier, f"cityscapes:{root}", tmp_path / name, task="segmentation", **options)

    whole, expected = train("whole.safetensors", scores.__setitem__)
    with pytest.raises(Cut):
        train("cut.safetensors", cut)
    resumed, found = train("cut.safetensors", None)
    assert resumed.digest() == whole.digest()
    assert (found.best, found.score) == (expected.best, expected.score)
    assert expected.score == max(scores.values())
    assert expected.validation == 2


def test_a_network_of_maps_is_trained_without_a_head_being_named_and_other_heads_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = export_parts(tmp_path / "birds", train=6, validation=1)
    (tmp_path / "mine.py").write_text(
        "from tests.models.test_maps_of_logits import Segmenting\n\n\ndef build():\n    return Segmenting(6)\n"
    )
    monkeypatch.chdir(tmp_path)
    shared = ["--task", "segmentation", "--data", f"cityscapes:{root}", "--accelerator", "cpu", "--workers", "0"]
    shape = ["--model", "mine.py:build", "--input-size", "16", "--resize", "16", "--epochs", "1", "--batch-size", "2"]
    done = CliRunner().invoke(main, ["train", *shape, *shared, "--out", "net.safetensors"])
    assert done.exit_code == 0, done.output
    assert "mine.py:build · gap · 6 classes" in done.output
    assert xattn.load("net.safetensors", device="cpu", trust_code=True).reader.dense
    other = CliRunner().invoke(main, ["train", *shape, *shared, "--head", "ca-stream", "--out", "other.safetensors"])
    assert other.exit_code in (1, 2)
    assert "Use gap" in other.output
    assert "b-cnn" not in other.output


@pytest.mark.parametrize("labels", [None, ("a", "b", "c", "d")])
def test_a_network_of_other_classes_is_told_what_to_do(tmp_path: Path, labels: tuple[str, ...] | None) -> None:
    root = export_parts(tmp_path / "birds", train=2, validation=1)
    classifier = reading((16, 16), labels=labels)
    with pytest.raises(InputError, match="Load a network of these 6 classes: with classes=6 one of ocr: or torchvision gets") as raised:
        fit(classifier, f"cityscapes:{root}", tmp_path / "out.safetensors", task="segmentation", workers=0, progress=False)
    assert "b-cnn" not in str(raised.value)


def test_settings_of_the_loss_that_nothing_uses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="ohem_pixels=5 is for hard example mining: give ohem too"):
        Segmentation(ohem_pixels=5)
    plain = reading((2, 4))
    with pytest.raises(InputError, match=r"auxiliary=0.2 needs an auxiliary classifier, and .* has none: leave it out"):
        Segmentation(auxiliary=0.2).check_training(plain, False)
    Segmentation().check_training(plain, False)


def test_a_network_of_segmentation_models_is_a_classifier_of_regions() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(32, 16, 16), classes=3)
    classifier = xattn.attach(network.eval(), input_size=32, resize=32, labels=["ground", "bird", "tree"], name="unet")
    assert classifier.reader.dense
    images = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    predicted = classifier.predict(images).argmax(dim=1)
    k = int(predicted[0].mode().values.mode().values)
    maps = xattn.explain(classifier, images[:1], ["grad-cam", "score-cam", "occlusion:window=16,stride=16"], target=classifier.labels[k])
    assert all(bool(torch.isfinite(maps[method]).all()) and maps[method].shape == (1, 32, 32) for method in maps.raw)
    output = classifier(images[:1])
    torch.testing.assert_close(maps.target.score(output), output[0, k][predicted[0] == k].mean()[None])  # the mean logit over the region
