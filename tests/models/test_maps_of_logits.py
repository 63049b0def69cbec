"""Networks that give maps of logits as classifiers of regions: target rules, gradients, metrics, runs, torchvision's networks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import xattn
from xattn.errors import InputError, UnsupportedError
from xattn.metrics.targets import Region
from xattn.models.asked_targets import target_rule
from xattn.models.target_rules import PredictedRegion

CLASSES = ("ground", "bird", "tree")


class Segmenting(nn.Module):
    """A small network: images `(B, 3, H, W)` → maps of logits `(B, 3, H, W)`, in a mapping as torchvision's give them."""

    def __init__(self, classes: int = 3, never: int | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(8, classes, 1)
        self.never = never

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = functional.interpolate(self.classifier(self.features(images)), size=images.shape[2:], mode="bilinear")
        if self.never is not None:
            logits = torch.cat([logits[:, : self.never], logits[:, self.never, None] - 1e3, logits[:, self.never + 1 :]], dim=1)
        return {"out": logits, "aux": logits * 2}


def segmenting(never: int | None = None, multi_label: bool = False) -> xattn.Classifier:
    torch.manual_seed(1)
    network = Segmenting(never=never).eval()
    with torch.no_grad():
        network.classifier.weight.mul_(8)  # all classes are predicted somewhere
    return xattn.attach(network, input_size=16, resize=16, labels=CLASSES, name="small", multi_label=multi_label)


def pictures(count: int = 3) -> Tensor:
    return torch.rand((count, 3, 16, 16), generator=torch.Generator().manual_seed(2))


def test_a_map_of_logits_is_recognised_and_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        classifier = segmenting()
    assert classifier.reader.dense
    assert classifier.class_count == 3
    assert "small gives a map of logits, 3 classes on 16 × 16 cells: a class is explained over the cells" in caplog.text


def test_the_score_of_a_class_and_its_gradient_are_those_of_the_mean_over_the_pixels_predicted_as_it() -> None:
    classifier, images = segmenting(), pictures()
    output = classifier.predict(images).clone()
    for asked in ("predicted", "bird", 1, 2):
        target = target_rule(classifier, asked).bind(classifier, output, [])
        given = images.clone().requires_grad_()
        (found,) = torch.autograd.grad(target.score(classifier(given)).sum(), given)
        for number in range(len(images)):
            picture = images[number : number + 1].clone().requires_grad_()
            logits, winners = classifier(picture)[0], output[number].argmax(dim=0)
            counts = [int((winners == k).sum()) for k in range(3)]
            index = counts.index(max(counts)) if asked == "predicted" else CLASSES.index(asked) if isinstance(asked, str) else asked
            total = torch.zeros(())
            for row in range(16):
                for column in range(16):
                    if winners[row, column] == index:
                        total = total + logits[index, row, column]
            (wanted,) = torch.autograd.grad(total / counts[index], picture)
            assert target.names()[number] == f"{index} in region"
            assert torch.allclose(found[number], wanted[0], atol=1e-7)
            probability = output[number].double().softmax(dim=0)[index][winners == index].mean()
            assert target.probability(output).p[number] == pytest.approx(float(probability))


def test_several_labels_have_the_pixels_where_their_own_logit_is_positive() -> None:
    classifier = segmenting(multi_label=True)
    output = classifier.predict(pictures(2)).clone()
    target = target_rule(classifier, 2).bind(classifier, output, [])
    assert isinstance(target, Region)
    assert torch.equal(target.masks, output[:, 2] > 0)
    assert target.probability(output).p[0] == pytest.approx(float(output[0, 2].double().sigmoid()[output[0, 2] > 0].mean()))


def test_a_class_that_no_pixel_is_predicted_as_is_an_error_that_names_the_most_frequent_class(caplog: pytest.LogCaptureFixture) -> None:
    classifier, images = segmenting(never=1), pictures(1)
    rule = target_rule(classifier, "bird")
    assert isinstance(rule, PredictedRegion)
    with pytest.raises(InputError, match=r"no pixel is predicted as 'bird', so .* most are '(ground|tree)'"):
        rule.bind(classifier, classifier.predict(images), [])
    with pytest.raises(InputError, match="no image has one"), caplog.at_level(logging.WARNING):
        xattn.explain(classifier, images, ["grad-cam"], target="bird")
    assert "0 has no map: no pixel is predicted as 'bird'" in caplog.text


@pytest.mark.parametrize("asked", ["label", "labels", "predicted - second", "bird - tree", "0.5*bird", "second"])
def test_what_is_no_single_class_is_refused(asked: str) -> None:
    with pytest.raises(UnsupportedError, match="gives a map of logits, so a target is one class over the pixels predicted as it"):
        target_rule(segmenting(), asked)


def test_every_kind_of_method_and_metric_runs_in_a_study_and_a_picture_without_the_class_has_a_row_with_the_reason(tmp_path: Path) -> None:
    from PIL import Image

    torch.manual_seed(0)
    for number in range(2):
        Image.fromarray((torch.rand(16, 16, 3) * 255).byte().numpy()).save(tmp_path / f"{number}.png")
    methods = ["grad-cam", "score-cam", "guided-backprop", "integrated-gradients:steps=4", "occlusion:window=8,stride=8"]
    metrics = ["average-drop", "sparsity"]
    plain = segmenting()
    missing = segmenting(never=1)
    missing.name = "without birds"
    study = xattn.Study(
        [plain, missing], methods, metrics, str(tmp_path / "*.png"), tmp_path / "run", target="bird", workers=0, tune="chunk=64"
    )
    outcome = study.run()
    rows = study.scores()
    found = rows[rows["error"].isna() & (rows["model"] == "small")]
    assert len(found) == 2 * len(methods) * len(metrics)
    assert found["value"].notna().all()
    assert set(found["target"]) == {"1 in region"}
    assert set(rows["model"]) == {"small"}
    assert [name for name, _ in outcome.failed] == ["0.png", "1.png"]
    assert all("no pixel is predicted as 'bird'" in reason for _, reason in outcome.failed)


def test_a_network_of_torchvision_is_built_from_a_file_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_args, **_more: pytest.fail("something was downloaded"))
    torch.manual_seed(0)
    network = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    torch.save(network.state_dict(), tmp_path / "net.pth")
    classifier = xattn.load("torchvision:lraspp_mobilenet_v3_large", weights=tmp_path / "net.pth", input_size=32, device="cpu")
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        wanted = network(classifier.normalise(image))["out"]
    assert torch.allclose(classifier.predict(image), wanted, atol=1e-5)
    assert classifier.class_count == 4
    assert classifier.reader.dense
