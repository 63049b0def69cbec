"""True effects, and how maps are held against them."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import xattn
from xattn.birds import CLASSES, PARTS, effects, ground_truth, in_parts, known_parts, masks, pixels, rank_correlation, scene, share_inside
from xattn.birds.drawing import thing_masks
from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError
from xattn.metrics.known_parts import effects_of

SCENES = [scene(number, split="test") for number in range(3)]


def test_shapley_values_are_the_mean_gain_over_all_orders_of_the_parts() -> None:
    values = torch.randn(2, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slow = torch.zeros(2, 5, dtype=torch.float64)
    for order in itertools.permutations(range(5)):
        shown = 0
        for part in order:
            slow[:, part] += values[:, shown | 1 << part] - values[:, shown]
            shown |= 1 << part
    found = effects_of(values)
    assert torch.allclose(found.shapley, slow / math.factorial(5))
    assert torch.allclose(found.shapley.sum(dim=1), values[:, 31] - values[:, 0])
    assert torch.allclose(found.removal[:, 2], values[:, 31] - values[:, 27])


def test_the_effects_of_a_sum_are_its_terms() -> None:
    weights = torch.tensor([3.0, -1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    shown = torch.tensor([[number >> part & 1 for part in range(5)] for number in range(32)], dtype=torch.float64)
    found = effects_of((shown @ weights)[None])
    assert torch.allclose(found.shapley[0], weights)
    assert torch.allclose(found.removal[0], weights)


def test_effects_of_a_network_sum_to_the_difference_between_the_whole_bird_and_the_bare_body() -> None:
    classifier = xattn.load("birds:gap", device="cpu")
    found = effects(classifier.predict, SCENES)
    whole = classifier.predict(torch.stack([xattn.birds.pixels(shown) for shown in SCENES]).float() / 255)
    assert found.values.shape == (3, 32)
    assert torch.allclose(found.values[:, 31].float(), whole[torch.arange(3), torch.tensor([0, 1, 2])], atol=1e-3)
    assert torch.allclose(found.shapley.sum(dim=1), found.values[:, 31] - found.values[:, 0])


def test_a_part_that_a_bird_lacks_has_no_effect() -> None:
    def predict(images: Tensor) -> Tensor:
        return torch.stack([images.mean(dim=(1, 2, 3)), images.amax(dim=(1, 2, 3))], dim=1)

    found = effects(predict, [SCENES[0].without("tail")], [1])
    assert found.shapley[0, PARTS.index("tail")] == 0
    assert found.removal[0, PARTS.index("tail")] == 0


def test_targets_are_one_a_scene() -> None:
    with pytest.raises(InputError, match="got 3 scenes and 1 targets"):
        effects(lambda images: images, SCENES, [0])


def test_saliency_in_parts_is_the_mean_over_the_visible_pixels() -> None:
    visible = masks(SCENES[0]).visible
    saliency = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(1))
    found = in_parts(saliency, visible[None])[0]
    assert found[2] == pytest.approx(float(saliency[0][visible[2]].mean()), rel=1e-6)
    assert in_parts(saliency, torch.zeros_like(visible)[None]).isnan().all()


def test_rank_correlation_is_scipys_with_ties_and_without_what_is_undefined() -> None:
    generator = torch.Generator().manual_seed(2)
    found = torch.randint(0, 4, (50, 5), generator=generator).double()
    true = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    found[7, 3] = torch.nan
    r = rank_correlation(found, true)
    for row in range(50):
        if len(set(found[row].tolist())) > 1:
            defined = ~found[row].isnan()
            assert r[row] == pytest.approx(spearmanr(found[row][defined], true[row][defined]).statistic, abs=1e-12)
    assert rank_correlation(torch.ones(1, 5), true[:1]).isnan().all()
    few = torch.tensor([[1.0, 2.0, torch.nan, torch.nan, torch.nan]])
    assert rank_correlation(few, true[:1]).isnan().all()


def test_the_share_of_energy_inside_is_one_for_a_map_that_is_the_mask() -> None:
    bird = masks(SCENES[0]).bird[None]
    assert share_inside(bird.float(), bird) == pytest.approx(1)
    assert share_inside(torch.ones(1, 64, 64), bird) == pytest.approx(float(bird.float().mean()))
    assert share_inside(torch.zeros(1, 64, 64), bird).isnan().all()


def test_shapes_that_do_not_go_together_are_told() -> None:
    visible = masks(SCENES[0]).visible
    for saliency, parts in ((torch.rand(1, 64, 64), visible), (torch.rand(1, 8, 8), visible[None]), (torch.rand(64, 64), visible[None])):
        with pytest.raises(InputError, match="not raw maps, and .visible\\[None\\] of one scene"):
            in_parts(saliency, parts)
    with pytest.raises(InputError, match="a list of scenes"):
        effects(lambda images: images, SCENES[0])  # type: ignore[arg-type]  # what a user might write


def test_known_parts_are_what_the_network_says_of_renders_and_where_the_parts_are() -> None:
    classifier = xattn.load("birds:gap", device="cpu")
    birds = [scene(number, split="test", spurious=0.0) for number in (0, 5)]
    found = known_parts(classifier.predict, [birds[0], None, birds[1]], [3, 0, 5])
    assert found.known.tolist() == [True, False, True]
    assert torch.equal(found.visible[2], masks(birds[1]).visible)
    assert found.values[[0, 2]].tolist() == [
        pytest.approx(row, abs=1e-4) for row in effects(classifier.predict, birds, [3, 5]).values.tolist()
    ]
    place = int(found.cue[0])
    assert place == len(birds[0].clutter) - 1
    bare = dataclasses.replace(birds[0], clutter=birds[0].clutter[:-1])  # the cue is the last
    logit = classifier.predict(pixels(bare)[None].float() / 255)[0, 3]
    assert float(found.without[0, place]) == pytest.approx(float(logit), abs=1e-4)
    assert torch.equal(found.objects[0, place], masks(birds[0]).cue)
    assert found.cue.tolist()[1] == -1
    assert found.rivals[1].tolist() == [-1, -1]


def test_rivals_share_parts_with_the_bird_none_with_each_other_and_the_network_tells_them_apart() -> None:
    classifier = xattn.load("birds:gap", device="cpu")
    birds = [scene(number, split="test") for number in range(8)]
    found = known_parts(classifier.predict, birds, range(8))
    codes = torch.tensor(list(CLASSES.values()))
    assert bool((found.rivals >= 0).any())
    for number, (rivals, shared) in enumerate(zip(found.rivals.tolist(), found.shared, strict=True)):
        if rivals == [-1, -1]:
            continue
        assert number not in rivals
        assert not bool((shared[0] & shared[1]).any())
        for place, rival in enumerate(rivals):
            assert torch.equal(shared[place], codes[rival] == codes[number])
            kept = [31 - sum(1 << part for part in range(5) if shared[which, part]) for which in (place, 1 - place)]
            own, other = found.logits[number, kept, rival].tolist()
            assert own < other
    swapped = known_parts(classifier.predict, birds, range(8), classes=None)
    assert swapped.rivals.unique().tolist() == [-1]


def test_the_parts_of_a_crop_are_those_that_the_network_sees() -> None:
    half = Preprocessing(input_size=(32, 32), resize=(40, 40))

    def predict(images: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 32, 32)
        return images.mean(dim=(2, 3))

    found = known_parts(predict, SCENES[:1], [1], preprocessing=half)
    assert found.visible.shape == (1, 5, 32, 32)
    y = torch.tensor([int((4 + row + 0.5) * 64 / 40) for row in range(32)])
    assert torch.equal(found.visible[0], masks(SCENES[0]).visible[:, y][:, :, y])


def test_pieces_of_clutter_are_where_the_clutter_is() -> None:
    for shown in (scene(3, split="test", spurious=1.0), SCENES[1]):
        found, every = thing_masks(shown), masks(shown)
        assert len(found) == len(shown.clutter)
        assert torch.equal(found.any(dim=0), every.clutter | every.cue)
    assert thing_masks(dataclasses.replace(SCENES[0], clutter=())).shape == (0, 64, 64)


def test_the_renders_of_large_pictures_take_no_more_memory_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ground_truth.seen_by(scene(0, split="test"), None)
    assert ground_truth.seen_by(scene(0, split="test"), None) is one
    monkeypatch.setattr(ground_truth, "MOST_KEPT", 2 * one.size)
    for index in range(1, 6):
        ground_truth.seen_by(scene(index, split="test"), None)
        assert sum(each.size for each in ground_truth._kept.values()) <= 2 * one.size
    assert ground_truth.seen_by(scene(0, split="test"), None) is not one
