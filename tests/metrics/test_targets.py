"""Targets: score, probability, names and indexing of each kind, and every metric on each of them."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests import networks
from tests.metrics.strips import known
from xattn import metrics as functions
from xattn.errors import InputError, UnsupportedError
from xattn.metrics import ClassTarget, Contrast, OutputFunction, Region, Similarity, Target, metrics
from xattn.metrics.targets import as_target

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 3.0]], dtype=torch.float64)


def half(output: Tensor) -> Tensor:
    return output[:, 0] / 2


def targets() -> dict[str, Target]:
    """One of each kind, for a batch of four images of 32 × 32."""
    generator = torch.Generator().manual_seed(0)
    return {
        "class": ClassTarget(torch.tensor([0, 4, 2, 1])),
        "label of several": ClassTarget(torch.tensor([0, 4, 2, 1]), multi_label=True),
        "contrast": Contrast(torch.tensor([[0, 1], [4, 2], [2, 3], [1, 0]]), torch.tensor([1.0, -0.6])),
        "similarity": Similarity(torch.rand((4, 5), generator=generator, dtype=torch.float64)),
        "region": Region(torch.tensor([0, 4, 2, 1]), torch.rand((4, 32, 32), generator=generator) > 0.7),
        "function": OutputFunction(half, count=4),
        "function with a probability": OutputFunction(half, lambda output: output[:, 0].sigmoid(), count=4),
    }


KINDS = list(targets())


def network(kind: str):
    """A network whose output the kind of target is taken of."""
    small = networks.small().double().requires_grad_(False)
    if kind != "region":
        return small
    return lambda images: functional.interpolate(small[:4](images)[:, :5], size=images.shape[2:], mode="bilinear")


def test_a_class_s_probability_is_its_softmax_or_its_sigmoid() -> None:
    classes = torch.tensor([0, 2])
    p = LOGITS.softmax(dim=1)
    found = ClassTarget(classes).probability(LOGITS)
    assert torch.allclose(found.p, torch.stack([p[0, 0], p[1, 2]]))
    assert torch.allclose(found.rest, 1 - found.p)
    found = ClassTarget(classes, multi_label=True).probability(LOGITS)
    assert torch.allclose(found.p, torch.sigmoid(torch.tensor([2.0, 3.0]).double()))
    assert ClassTarget(classes).score(LOGITS).tolist() == [2.0, 3.0]
    assert ClassTarget(classes).names() == ["0", "2"]


def test_a_contrast_of_two_classes_is_the_softmax_over_these_two() -> None:
    target = Contrast([0, 1], [1.0, -1.0])
    assert target.expanded(2).score(LOGITS).tolist() == [3.0, -3.0]
    pair = LOGITS[:, :2].softmax(dim=1)
    found = target.expanded(2).probability(LOGITS)
    assert torch.allclose(found.p, pair[:, 0])
    assert torch.allclose(found.rest, pair[:, 1])


def test_a_contrast_weighs_each_class_and_is_written_as_a_user_writes_it() -> None:
    target = Contrast(torch.tensor([[0, 1], [2, 0]]), torch.tensor([[1.0, -0.6], [-1.0, 2.0]]))
    expected = [2.0 + 0.6, -3.0 + 0.0]
    assert target.score(LOGITS).tolist() == pytest.approx(expected)
    assert target.names() == ["0 - 0.6*1", "- 2 + 2*0"]


def test_a_similarity_is_a_cosine_and_has_no_probability() -> None:
    reference = torch.tensor([1.0, 1.0, 0.0])
    target = Similarity(reference, name="a face").expanded(2)
    expected = functional.cosine_similarity(LOGITS, reference.double()[None], dim=1)
    assert torch.allclose(target.score(LOGITS), expected)
    assert target.names() == ["a face", "a face"]
    assert target.predicted(LOGITS) is None
    with pytest.raises(UnsupportedError, match="a similarity has no probability"):
        target.probability(LOGITS)
    with pytest.raises(InputError, match="gives vectors of 3 values; the reference has 2"):
        Similarity(torch.ones(2)).expanded(2).score(LOGITS)


def test_a_region_is_a_mean_over_its_mask() -> None:
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 1, 1] = masks[0, 2, 3] = masks[1, 0, 0] = True
    target = Region(torch.tensor([0, 2]), masks)
    assert target.score(maps).tolist() == pytest.approx([float(maps[0, 0, 1, 1] + maps[0, 0, 2, 3]) / 2, float(maps[1, 2, 0, 0])])
    p = maps.softmax(dim=1)
    found = target.probability(maps)
    assert found.p.tolist() == pytest.approx([float(p[0, 0, 1, 1] + p[0, 0, 2, 3]) / 2, float(p[1, 2, 0, 0])])
    assert torch.allclose(found.rest, 1 - found.p)
    finer = target.masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(Region(torch.tensor([0, 2]), finer).score(maps), target.score(maps))
    with pytest.raises(InputError, match="got a mask without any pixel"):
        Region(torch.tensor([0, 1]), torch.zeros(2, 4, 4))


def test_a_function_of_the_output_is_a_target() -> None:
    assert as_target(half, 2).score(LOGITS).tolist() == [1.0, 0.0]
    assert as_target(half, 2).names() == ["half", "half"]
    with pytest.raises(UnsupportedError, match="the function half has no probability"):
        as_target(half, 2).probability(LOGITS)
    followed = OutputFunction(half, lambda output: output.softmax(dim=1)[:, 0], count=2).probability(LOGITS)
    assert torch.allclose(followed.p, LOGITS.softmax(dim=1)[:, 0])
    with pytest.raises(InputError, match=r"the target function <lambda> must give one value per image, \(2,\); got \(2, 3\)"):
        as_target(lambda output: output, 2).score(LOGITS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_follows_the_images_that_are_perturbed(kind: str) -> None:
    target, predict, images = targets()[kind], network(kind), networks.pictures(4).double()
    whole = target.score(predict(images))
    order = torch.tensor([2, 2, 0, 3, 1, 1])
    assert torch.allclose(target[order].score(predict(images[order])), whole[order])
    assert torch.allclose(target[1:3].score(predict(images[1:3])), whole[1:3])
    assert target[order].names() == [target.names()[number] for number in order.tolist()]
    assert len(target) == 4
    assert len(target[order]) == 6
    with pytest.raises(InputError, match="3 images need one target per image; got 4"):
        target.expanded(3)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_a_target_join_to_the_whole(kind: str) -> None:
    target, output = targets()[kind], network(kind)(networks.pictures(4).double())
    joined = target[:3].joined([target[:3], target[3:]])
    assert torch.equal(joined.score(output), target.score(output))
    assert len(joined) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_has_the_gradient_of_differences(kind: str) -> None:
    target = targets()[kind]
    output = network(kind)(networks.pictures(4).double())[..., :4, :4] if kind == "region" else network(kind)(networks.pictures(4).double())
    assert torch.autograd.gradcheck(target.score, output.detach().requires_grad_())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if targets()[kind].has_probability])
def test_a_probability_lies_in_0_and_1_beside_its_complement(kind: str) -> None:
    found = targets()[kind].probability(network(kind)(networks.pictures(4).double()))
    assert found.p.dtype == found.rest.dtype == torch.float64
    assert ((found.p >= 0) & (found.p <= 1)).all()
    assert torch.allclose(found.p + found.rest, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("function")])
def test_a_target_travels_to_another_process(kind: str) -> None:
    target, output = targets()[kind], network(kind)(networks.pictures(4).double())
    assert torch.equal(pickle.loads(pickle.dumps(target)).score(output), target.score(output))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(metrics.entries))
def test_every_metric_takes_every_target_or_says_why_not(name: str, kind: str) -> None:
    target = targets()[kind]
    function = getattr(functions, name.replace("-", "_"))
    images = networks.pictures(4).double()
    masks = networks.pictures(4, seed=1)[:, 0].double()
    offered = {"predict": network(kind), "images": images, "masks": masks, "raw_maps": masks, "targets": target}
    offered |= {"fill": [0.5, 0.5, 0.5], "explain": lambda others: others.mean(dim=1), "regions": masks > 0.5}
    offered |= {"parts": known(images, torch.tensor([0, 4, 2, 1])), "rivals": torch.stack([masks, masks.flip(1)], dim=1)}
    given = {key: offered[key] for key in inspect.signature(function).parameters if key in offered}
    if metrics.create(name).instance.perturbations and not target.has_probability:
        with pytest.raises(UnsupportedError, match=f"{name} follows the target's probability, and .* has none"):
            function(**given)
        return
    found = function(**given)
    low, high = metrics.entry(name).metadata.limits
    assert found.shape == (4,)
    assert ((found >= low) & (found <= high) | found.isnan()).all()


def test_a_target_of_the_wrong_output_says_what_came() -> None:
    maps = torch.zeros(1, 3, 4, 4)
    with pytest.raises(UnsupportedError, match=r"a class is taken of one row per image, .*; the network gives \(1, 3, 4, 4\)"):
        ClassTarget(torch.tensor([0])).score(maps)
    with pytest.raises(UnsupportedError, match=r"a region is taken of a map of logits, .*; the network gives \(1, 3\)"):
        Region(torch.tensor([0]), torch.ones(1, 4, 4)).score(torch.zeros(1, 3))
    with pytest.raises(InputError, match="Contrast"):
        Contrast([0, 1], [1.0])
    with pytest.raises(InputError, match="targets are class indices .* got str"):
        as_target("predicted", 1)


def test_a_region_is_brought_to_the_network_s_size_along_each_axis() -> None:
    """A mask of one pixel covers a share of a cell, also where only one of the sides shrinks."""
    mask = torch.zeros(8, 16)
    mask[3, 4] = 1
    output = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = Region(torch.tensor([1]), mask)
    assert found.score(output).item() == pytest.approx(output[0, 1, 3, 2].item())
    assert found.probability(output).p.item() == pytest.approx(output[0, :, 3, 2].softmax(0)[1].item())


def test_a_region_of_many_cells_does_not_overflow_in_half_precision() -> None:
    output = torch.full((1, 2, 300, 300), 0.5, dtype=torch.float16)
    assert Region(torch.tensor([1]), torch.ones(300, 300)).score(output).item() == pytest.approx(0.5, rel=1e-3)


def test_a_contrast_of_weights_for_other_rows_is_refused() -> None:
    with pytest.raises(InputError, match="a contrast needs one weight for each class"):
        Contrast(torch.zeros(3, 2, dtype=torch.long), torch.ones(2, 2))
