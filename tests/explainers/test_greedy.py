"""The greedy search against one that is written out, and against every order of few cells."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import xattn
from tests import networks
from xattn.birds import pixels, scene
from xattn.catalogue import is_bound, is_planted
from xattn.errors import SettingError, UnsupportedError
from xattn.explainers.greedy import Greedy
from xattn.metrics import deletion
from xattn.metrics.fills import Baseline, baseline_images
from xattn.study import Store


def probabilities(classifier: xattn.Classifier, images: Tensor, target: int) -> Tensor:
    return classifier.predict(images).double().softmax(dim=1)[:, target]


@pytest.mark.parametrize("curve", ["deletion", "insertion"])
def test_each_step_changes_the_cell_that_helps_most(curve: str, images: Tensor) -> None:
    classifier = xattn.attach(networks.precise(), input_size=32, resize=36)
    pictures = images[:2].double()
    (raw,) = xattn.explain(classifier, pictures, [f"greedy:curve={curve},grid=3"], target=1).raw.values()
    blurred = baseline_images(pictures, Baseline("gaussian", side=5), classifier.mean)
    edges = [0, 11, 22, 32]  # pixel k is in cell 3k // 32
    for i in range(2):
        colour = classifier.mean.expand_as(pictures[i])
        now, other = (pictures[i].clone(), colour) if curve == "deletion" else (blurred[i].clone(), pictures[i])
        left = [(row, column) for row in range(3) for column in range(3)]
        for place in range(9):
            tried = []
            for row, column in left:
                one = now.clone()
                part = (slice(None), slice(edges[row], edges[row + 1]), slice(edges[column], edges[column + 1]))
                one[part] = other[part]
                tried.append((probabilities(classifier, one[None], 1).item(), one))
            best = (min if curve == "deletion" else max)(range(len(tried)), key=lambda k: round(tried[k][0], 6))
            row, column = left.pop(best)
            now = tried[best][1]
            assert raw[i, edges[row] : edges[row + 1], edges[column] : edges[column + 1]].unique().item() == pytest.approx(1 - place / 9)


class Additive(nn.Module):
    """Two classes whose logits are sums over the pixels: what a cell does depends on no other."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(3)).repeat_interleave(64).view(4, 4, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        weights = self.weights.permute(0, 2, 1, 3).reshape(32, 32)
        score = (images.mean(dim=1) * weights).sum(dim=(1, 2)) / 100
        return torch.stack([score, -score], dim=1)


def test_of_an_additive_network_no_order_of_cells_deletes_sooner() -> None:
    classifier = xattn.attach(Additive(), input_size=32, resize=32, mean=[0.5] * 3, std=[1.0] * 3)
    images = networks.pictures(1)
    found = xattn.explain(classifier, images, ["greedy:grid=2"], target=0)
    area = float(deletion(classifier.predict, images, found["greedy:grid=2"], torch.tensor([0]), fill=classifier.mean))
    areas = []
    for order in permutations(range(4)):
        mask = torch.empty(1, 2, 2).view(1, 4).index_copy(1, torch.tensor(order), torch.tensor([[1, 0.66, 0.33, 0]])).view(1, 2, 2)
        mask = mask.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
        areas.append(float(deletion(classifier.predict, images, mask, torch.tensor([0]), fill=classifier.mean)))
    assert area == pytest.approx(min(areas), abs=1e-6)
    assert area < sorted(areas)[1]


def test_heads_on_one_backbone_search_each_for_itself(tmp_path: Path, folder: Path) -> None:
    network = networks.small()
    heads = [xattn.attach(network, head=head, input_size=32, resize=36, name="net") for head in ("gap", "br-npa")]
    with torch.no_grad():
        heads[1].head.linear.weight.mul_(torch.randn(heads[1].head.linear.weight.shape, generator=torch.Generator().manual_seed(0)))
    xattn.Study(heads, ["greedy:grid=3"], ["deletion"], folder, tmp_path / "both", workers=0, progress=False).run()
    xattn.Study(heads[1:], ["greedy:grid=3"], ["deletion"], folder, tmp_path / "alone", workers=0, progress=False).run()
    one, other = (Store(tmp_path / name).rows() for name in ("both", "alone"))
    one = one[one["head"] == heads[1].head_name]
    assert one["value"].to_list() == pytest.approx(other["value"].to_list(), abs=0.01)


def test_forwards_are_what_it_says_and_it_is_a_bound() -> None:
    assert Greedy().forwards(0, (224, 224)) == sum(range(2, 50)) == 1224
    assert is_bound("greedy:curve=insertion")
    assert not is_bound("grad-cam")


def test_a_misplaced_map_is_grad_cam_s_rolled_by_half(tiny: xattn.Classifier, images: Tensor) -> None:
    raw = xattn.explain(tiny, images, ["grad-cam", "misplaced-cam"]).raw
    assert torch.equal(raw["misplaced-cam"][:, :4, :4], raw["grad-cam"][:, 4:, 4:])
    assert torch.equal(raw["misplaced-cam"][:, 4:, :4], raw["grad-cam"][:, :4, 4:])
    assert is_planted("misplaced-cam")


def test_the_map_of_another_image_is_grad_cam_s_of_a_drawn_bird_for_the_same_target(tiny: xattn.Classifier, images: Tensor) -> None:
    targets = torch.arange(len(images)) % 3
    raw = xattn.explain(tiny, images, ["other-image-cam"], target=targets).raw["other-image-cam"]
    bird = functional.interpolate(pixels(scene(0, split="test"))[None] / 255, size=images.shape[-2:], mode="bilinear", antialias=True)
    expected = xattn.explain(tiny, bird.expand(len(images), -1, -1, -1), ["grad-cam"], target=targets).raw["grad-cam"]
    assert torch.allclose(raw, expected, atol=1e-6)
    assert raw.flatten(1).amax(dim=1).max() > 0
    assert is_planted("other-image-cam")
    assert is_planted("centre")
    assert not is_planted("grad-cam")


def test_what_cannot_be_searched_says_why(tiny: xattn.Classifier, images: Tensor) -> None:
    with pytest.raises(SettingError, match="at least two cells per side; got grid=1"):
        Greedy(grid=1)
    with pytest.raises(SettingError, match=r"33 cells per side is finer than the image of \(32, 32\)"):
        xattn.explain(tiny, images[:1], ["greedy:grid=33"])
    with pytest.raises(UnsupportedError, match="greedy follows the target's probability"):
        xattn.explain(tiny, images[:1], ["greedy"], target=lambda output: output[:, 0])
