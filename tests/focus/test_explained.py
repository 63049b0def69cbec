"""A two-stream network is explained at both of its streams, and at each step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import xattn
from tests import networks
from tests.figures.test_paper import check_width_and_text
from tests.focus import tiny
from xattn.boxes import lay_back
from xattn.errors import InputError, UnsupportedError
from xattn.figures import FigureStyle, figure
from xattn.figures.base import pages
from xattn.figures.run_data import read_runs
from xattn.figures.steps import step_of, steps
from xattn.models import Classifier
from xattn.patches import find
from xattn.study.store import Store

LABELS = [0, 1, 2, 1]


def explained(clf: Classifier, methods: list[str], stage: str | None = None) -> tuple[Tensor, xattn.Maps]:
    images = networks.pictures(4)
    return images, xattn.explain(clf, images, methods, target="label", labels=LABELS, stage=stage)


def local_features(clf: Classifier, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, and of the local stream's patches, cut out by hand, the features as leaves, the logits and the hidden states."""
    network = clf.network
    normalised = clf.normalise(images)
    boxes = network.streams(normalised).boxes
    patches = torch.stack(
        [normalised[i, :, int(y1) : int(y2), int(x1) : int(x2)] for i in range(len(images)) for x1, y1, x2, y2 in boxes[i].tolist()]
    )
    features = network.local_stream.features(patches).detach().requires_grad_()
    hidden, _ = network.local_stream.looks(features.mean(dim=(2, 3))[:, None].expand(-1, 3, -1))
    alpha = network.local_stream.attention(hidden).softmax(dim=1)
    return boxes, features, network.local_stream.classifier((alpha * hidden).sum(dim=1)), hidden


def cam(score: Tensor, features: Tensor, elementwise: bool) -> Tensor:
    """Grad-CAM, or LayerCAM, of the maps of three patches per image, whose cells are those of one map: `(B, 3, h, w)`."""
    (gradient,) = torch.autograd.grad(score, features, retain_graph=True)
    found = torch.zeros(4, 3, *features.shape[2:])
    for i in range(4):
        of_image, maps = gradient[3 * i : 3 * i + 3], features[3 * i : 3 * i + 3].detach()
        weights = of_image.relu() if elementwise else of_image.mean(dim=(0, 2, 3))[None, :, None, None]
        found[i] = (weights * maps).sum(dim=1).relu()
    return found


def test_maps_of_patches_are_laid_back_and_added() -> None:
    clf = tiny.classifier(weight=0.7)
    assert [(stage.name, stage.boxes) for stage in clf.stages] == [("global", False), ("local", True)]
    images, maps = explained(clf, ["grad-cam", "layer-cam"])
    boxes, features, logits, _ = local_features(clf, images)
    score = 0.7 * logits.view(4, 3, -1).mean(dim=1)[torch.arange(4), torch.tensor(LABELS)].sum()
    for method, elementwise in (("grad-cam", False), ("layer-cam", True)):
        expected = cam(score, features, elementwise)
        torch.testing.assert_close(maps.of_patches[method], expected, rtol=1e-4, atol=1e-7)
        on_image = torch.zeros(4, 32, 32)
        for i in range(4):
            for n in range(3):
                x1, y1, x2, y2 = (int(edge) for edge in boxes[i, n])
                on_image[i, y1:y2, x1:x2] += functional.interpolate(expected[i, n][None, None], size=(16, 16), mode="bilinear")[0, 0]
        torch.testing.assert_close(maps.raw[method], on_image, rtol=1e-4, atol=1e-7)
        assert maps[method].shape == (4, 32, 32)
    assert torch.equal(maps.boxes, boxes)
    assert maps.alpha.shape == (4, 3, 3)


def test_at_the_global_stream_maps_are_of_the_whole_picture() -> None:
    clf = tiny.classifier()
    images, maps = explained(clf, ["grad-cam"], "global")
    features = clf.network.global_stream.features(clf.normalise(images)).detach().requires_grad_()
    scores = clf.network.global_stream.classifier(features.mean(dim=(2, 3)))[torch.arange(4), torch.tensor(LABELS)]
    (gradient,) = torch.autograd.grad(scores.sum(), features)
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * features.detach()).sum(dim=1).relu()
    torch.testing.assert_close(maps.raw["grad-cam"], expected, rtol=1e-4, atol=1e-7)
    assert not maps.of_patches


def test_score_cam_masks_the_picture_by_channels_that_are_laid_back() -> None:
    clf = tiny.classifier()
    images, maps = explained(clf, ["score-cam"])
    boxes, features, _, _ = local_features(clf, images)
    features = features.detach().view(4, 3, *features.shape[1:])
    for i in range(4):
        total = torch.zeros(1, 3, *features.shape[3:])
        for channel in range(tiny.CHANNELS):
            own = features[i, :, channel]
            if float(own.max() - own.min()) == 0:
                continue
            mask = lay_back(own[None], boxes[i : i + 1], (32, 32)).sum(dim=1)
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            probability = clf.predict(images[i : i + 1] * mask).double().softmax(dim=1)[0, LABELS[i]]
            total += float(probability) * own
        torch.testing.assert_close(maps.of_patches["score-cam"][i], total[0].relu(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step", [1, 3])
def test_a_step_is_explained_by_the_classifier_on_its_output_alone(step: int) -> None:
    clf = tiny.classifier()
    methods = [f"step-cam:step={step}", f"step-cam:step={step},cam=layer-cam"]
    images, maps = explained(clf, [*methods, "grad-cam"])
    _, features, _, hidden = local_features(clf, images)
    of_step = clf.network.local_stream.classifier(hidden[:, step - 1]).view(4, 3, -1).mean(dim=1)
    score = of_step[torch.arange(4), torch.tensor(LABELS)].sum()
    for method, elementwise in zip(methods, (False, True), strict=True):
        name = next(name for name in maps if name in (method, method.replace("step=1,", "").replace(":step=1", "")))
        torch.testing.assert_close(maps.of_patches[name], cam(score, features, elementwise), rtol=1e-4, atol=1e-7)
    assert (maps.raw["grad-cam"] - maps.raw[next(iter(maps))]).abs().max() > 1e-6


def test_of_one_step_that_step_is_all() -> None:
    _, maps = explained(tiny.classifier(steps=1), ["step-cam", "grad-cam"])
    torch.testing.assert_close(maps.raw["step-cam"], maps.raw["grad-cam"])


def test_self_attention_is_shown_step_by_step() -> None:
    clf = tiny.classifier(self_attention=True)
    images, maps = explained(clf, ["raw-attention", "raw-attention:step=2"])
    normalised = clf.normalise(images)
    looked = clf.network.streams(normalised).looked
    torch.testing.assert_close(maps.of_patches["raw-attention:step=2"].flatten(0, 1), looked.attention[:, 1])
    expected = (looked.alpha[:, :, None, None] * looked.attention).sum(dim=1)
    torch.testing.assert_close(maps.of_patches["raw-attention"].flatten(0, 1), expected)


def test_any_module_of_the_local_stream_has_maps_of_patches() -> None:
    clf = tiny.classifier()
    _, maps = explained(clf, ["grad-cam"], "local_stream.features.2")
    assert maps.of_patches["grad-cam"].shape == (4, 3, 8, 8)
    assert maps.raw["grad-cam"].shape == (4, 32, 32)


def test_maps_of_patches_are_the_same_in_a_batch_as_alone() -> None:
    clf = tiny.classifier(test_patch="random")
    images, maps = explained(clf, ["grad-cam", "eigen-cam"])
    for i in range(4):
        alone = xattn.explain(clf, images[i : i + 1], ["grad-cam", "eigen-cam"], target="label", labels=LABELS[i : i + 1])
        for method in maps:
            torch.testing.assert_close(alone.raw[method][0], maps.raw[method][i], rtol=1e-4, atol=1e-7)


def test_what_cannot_be_shown_is_told() -> None:
    clf = tiny.classifier()
    for method, stage, said in (
        ("step-cam:step=4", None, "has 3 steps, and step 4 was asked for"),
        ("step-cam", "global", "stage 'global' shows the whole picture: give stage local"),
        ("raw-attention", None, "self_attention=true"),
        ("grad-cam:GradCAM", None, "has maps of patches"),
    ):
        with pytest.raises(UnsupportedError, match=said):
            explained(clf, [method], stage)
    plain = xattn.attach(networks.small(), input_size=32, name="plain")
    with pytest.raises(UnsupportedError, match="plain has no steps"):
        xattn.explain(plain, networks.pictures(1), ["step-cam"])
    with pytest.raises(UnsupportedError, match="two streams"):
        xattn.attach(tiny.network(), head="br-npa", input_size=32)


def test_a_run_leaves_out_steps_that_a_network_has_not(folder: Path, tmp_path: Path) -> None:
    plain = xattn.attach(networks.small(3), input_size=32, resize=(32, 32), name="plain")
    both = [tiny.classifier(self_attention=True), plain]
    methods = ["step-cam", "raw-attention:step=2", "raw-attention", "activation-map"]
    xattn.Study(both, methods, ["sparsity"], folder, tmp_path / "run", progress=False).run()
    kept = {(model, method) for _, model, _, method in Store(tmp_path / "run").maps(["0.png"])}
    assert kept == {("two", method) for method in methods} | {("plain", "activation-map")}
    for method, stage, said in (
        ("step-cam:step=4", None, "this network has 3 steps"),
        ("step-cam:step=2", "global", "this stage is of the whole picture"),
        ("raw-attention", None, "has none"),
    ):
        with pytest.raises(UnsupportedError, match=said):
            xattn.Study([tiny.classifier()], [method], ["sparsity"], folder, tmp_path / "other", stage=stage, progress=False).run()


def test_a_run_keeps_boxes_and_weights_of_steps_and_a_figure_shows_them(folder: Path, tmp_path: Path) -> None:
    clf = tiny.classifier()
    methods = ["grad-cam", *(f"step-cam:step={step}" for step in (3, 2, 1))]
    study = xattn.Study([clf], methods, ["sparsity"], folder, tmp_path / "run", progress=False)
    study.run()
    name = "0.png"
    looks = Store(tmp_path / "run").looks([name])["0.png", "two", "gap"]
    with torch.no_grad():
        maps = xattn.explain(clf, [str(folder / name)], ["grad-cam"])
    torch.testing.assert_close(torch.from_numpy(looks.boxes), maps.boxes[0])
    torch.testing.assert_close(torch.from_numpy(looks.alpha), maps.alpha[0].mean(dim=0))
    (page,) = pages([tmp_path / "run"], "steps", count=2)
    shown = [text.get_text() for text in page.axes[0].texts]
    assert [text for text in shown if text.startswith("step")] == ["step 1", "step 2", "step 3"]
    assert [text for text in shown if text.startswith("α")][:3] == [f"α\u00a0=\u00a0{weight:.2f}" for weight in looks.alpha.tolist()]
    for style in (FigureStyle("column", title="A title"), FigureStyle("page", title="A title", transpose=True)):
        check_width_and_text(tmp_path / "run", "steps", style)
    figure([tmp_path / "run"], tmp_path / "steps.png", "steps", count=1)
    assert (tmp_path / "steps.png").stat().st_size > 1000
    with pytest.raises(InputError, match="maps of the steps"):
        pages([tmp_path / "run"], "steps", methods=["grad-cam"])
    read = read_runs([tmp_path / "run"], None, None)
    both = replace(read, maps=read.maps | {(image, "another", *rest): found for (image, _, *rest), found in read.maps.items()})
    with pytest.raises(InputError, match="of one network"):
        steps(both, FigureStyle("column"))


def test_the_step_of_a_method_is_that_of_its_settings() -> None:
    for method, step in (
        ("step-cam:step=2", 2),
        ("step-cam", 1),
        ("raw-attention:step=3", 3),
        ("raw-attention", None),
        ("raw-attention:rank=1", None),
        ("grad-cam", None),
        ("captum:Saliency", None),
        ("no-such-method", None),
    ):
        assert step_of(method) == step


def test_finders_of_patches_read_the_global_stream() -> None:
    clf, images = tiny.classifier(), networks.pictures(2)
    for finder in ("activation", "representative"):
        assert torch.equal(find(clf, images, finder, 3), find(clf, images, f"{finder}:stage=global", 3))
        with pytest.raises(InputError, match="maps of patches, not of the picture: use stage=global"):
            find(clf, images, f"{finder}:stage=local", 3)


def test_score_cam_has_values_where_boxes_are_smaller_than_the_maps_of_their_patches() -> None:
    clf = tiny.classifier(box=0.1, side=32)
    raw = xattn.explain(clf, networks.pictures(2), ["score-cam"], stage="local").raw["score-cam"]
    assert torch.isfinite(raw).all()


def test_self_attention_is_left_out_at_the_global_stage(folder: Path, tmp_path: Path) -> None:
    clf = tiny.classifier(self_attention=True)
    for method, stage, said in (("raw-attention", "global", "at stage local"), ("raw-attention:attention=logits", None, "no kept scores")):
        with pytest.raises(UnsupportedError, match=said):
            xattn.Study([clf], [method], ["sparsity"], folder, tmp_path / "other", stage=stage, progress=False).run()
