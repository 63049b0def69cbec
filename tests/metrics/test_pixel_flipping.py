"""Symmetric relevance gain, ROAD and IROF by known answers and slow replicas."""

from __future__ import annotations

import pytest
import torch
from skimage.segmentation import slic
from torch import Tensor

from tests import networks
from tests.metrics.test_fills import replaced_plainly
from tests.metrics.test_known_answers import FILL, additive, logits_of, share_kept, white, zeros
from tests.metrics.test_responses import plain_area, plain_ranks
from xattn import metrics as m
from xattn.errors import InputError
from xattn.metrics.curves import Deletion, Insertion
from xattn.metrics.pixel_flipping import SRG, ROADLeRF, ROADMoRF
from xattn.metrics.segments import superpixels


def distinct(size: int, seed: int = 1) -> Tensor:
    """A mask without ties."""
    return (torch.randperm(size * size, generator=torch.Generator().manual_seed(seed)) / size**2).view(1, size, size).double()


@pytest.mark.parametrize("step", [1, 7, 128])
def test_no_order_gains_where_the_probability_is_the_share_of_pixels_kept(step: int) -> None:
    assert float(m.srg(share_kept, white(1), distinct(16), zeros(1), fill=FILL, step=step)) == pytest.approx(0, abs=1e-9)


def test_an_additive_classifier_explained_by_its_own_weights_gains_100_minus_twice_its_deletion() -> None:
    weights = torch.rand(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    arguments = (additive(weights / weights.sum()), white(1, 8), weights[None], zeros(1))
    gain = float(m.srg(*arguments, fill=FILL, step=1))
    assert gain == pytest.approx(100 - 2 * float(m.deletion(*arguments, fill=FILL, step=1)))
    assert gain > 10


def test_the_gain_of_an_order_turned_round_is_negative() -> None:
    network, mask = networks.small().double().requires_grad_(False), distinct(32)
    gains = [float(m.srg(network, networks.pictures(1).double(), each, zeros(1), fill=FILL, step=64)) for each in (mask, 1 - mask)]
    assert gains[0] == pytest.approx(-gains[1])


def test_the_gain_shares_its_forwards_with_insertion_and_deletion_of_the_same_fill() -> None:
    seen = 0

    def predict(images: Tensor) -> Tensor:
        nonlocal seen
        seen += len(images)
        return share_kept(images)

    asked = dict.fromkeys([*SRG(fill="black").perturbations, Insertion(blur=0, fill="black").curve, Deletion(fill="black").curve])
    m.evaluate_perturbations(predict, white(1, 32), zeros(1), {"": distinct(32)}, list(asked), chunk=1)
    assert seen == 2 + 2 * 3  # the image, its baseline, and three steps of each curve


def test_curves_of_a_contrast_follow_the_first_class_given_it_or_the_second() -> None:
    network, images, mask = networks.small().double().requires_grad_(False), networks.pictures(1).double(), distinct(32)
    contrast, order = m.Contrast([3, 1], [1.0, -1.0]), plain_ranks(mask[0])
    p = []
    for k in range(5):
        logits = network(replaced_plainly(images[0], order[: 256 * k], "black")[None])[0]
        p.append(float(torch.sigmoid(logits[3] - logits[1])))
    found = m.deletion(network, images, mask, contrast, fill=None, step=256, replace_with="black")
    assert float(found) == pytest.approx(plain_area([k / 4 for k in range(5)], p))
    turned = m.deletion(network, images, mask, m.Contrast([1, 3], [1.0, -1.0]), fill=None, step=256, replace_with="black")
    assert float(found + turned) == pytest.approx(100)


@pytest.mark.parametrize("fill", ["mean", "noisy-linear"])
def test_road_is_the_mean_over_the_shares_that_are_removed(fill: str) -> None:
    network = networks.small().double().requires_grad_(False)
    image, mask, colour = networks.pictures(1)[:, :, :12, :12].double(), distinct(12), torch.tensor([0.485, 0.456, 0.406])
    order = plain_ranks(mask[0])
    for function, lowest_first in ((m.road_morf, False), (m.road_lerf, True)):
        p, hits = [], []
        for percent in range(10, 100, 10):
            count = 144 * percent // 100 if not lowest_first else 144 - 144 * (100 - percent) // 100
            gone = order[-count:] if lowest_first else order[:count]
            output = network(replaced_plainly(image[0], gone, fill)[None]).softmax(1)[0]
            p.append(float(output[4]))
            hits.append(float(output.argmax() == 4))
        found = function(network, image, mask, torch.tensor([4]), fill=colour, replace_with=fill)
        assert float(found) == pytest.approx(100 * sum(p) / 9, abs=1e-3)
        found = function(network, image, mask, torch.tensor([4]), fill=colour, replace_with=fill, measure="accuracy")
        assert float(found) == pytest.approx(100 * sum(hits) / 9)


def test_road_s_accuracy_is_the_share_of_steps_at_which_the_network_answers_with_the_target() -> None:
    def predict(images: Tensor) -> Tensor:  # class 0 while more than 45 % of the pixels are white
        return logits_of(torch.where(images.mean(dim=(1, 2, 3)) > 0.45, 0.9, 0.2))

    for function in (m.road_morf, m.road_lerf):
        arguments = (predict, white(1, 10), distinct(10), zeros(1))
        found = function(*arguments, replace_with="black", measure="accuracy")
        assert float(found) == pytest.approx(100 * 5 / 9)  # 10 to 50 % removed
        assert float(function(*arguments, replace_with="black")) == pytest.approx(100 * (5 * 0.9 + 4 * 0.2) / 9)


def test_one_curve_of_road_costs_nine_forwards_and_a_wrong_count_of_steps_is_refused() -> None:
    assert m.metrics.entry("road-morf").metadata.cost == m.metrics.entry("road-lerf").metadata.cost == "9"
    for settings in (ROADMoRF, ROADLeRF):
        with pytest.raises(InputError, match="the number of steps must be a whole number from 2 to 1000; got 1"):
            settings(steps=1)


def test_irof_deletes_superpixels_one_by_one_and_pictures_may_have_as_many_as_they_like() -> None:
    network = networks.small().double().requires_grad_(False)
    images, masks = networks.pictures(3).double(), networks.pictures(3, seed=5)[:, 0].double()
    images[2] = 0.5
    counts, expected = [], []
    for image, mask in zip(images, masks, strict=True):
        labels = torch.as_tensor(slic((image * 255).round().permute(1, 2, 0).numpy() / 255, n_segments=20, start_label=0))
        means = {int(label): float(mask[labels == label].mean()) for label in labels.unique()}
        picture, p = image.clone(), [float(network(image[None]).softmax(1)[0, 2])]
        for label in sorted(means, key=means.__getitem__, reverse=True):
            picture[:, labels == label] = 0
            p.append(float(network(picture[None]).softmax(1)[0, 2]))
        counts.append(len(means))
        expected.append(100 - plain_area([k / len(means) for k in range(len(means) + 1)], p) / p[0])
    assert len(set(counts)) > 1
    found = m.irof(network, images, masks, torch.tensor([2] * 3), fill=None, superpixels=20, replace_with="black")
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_irof_of_a_constant_classifier_is_0_and_of_one_that_needs_every_superpixel_nearly_100() -> None:
    arguments = (networks.pictures(1).double(), distinct(32), zeros(1))
    constant = m.irof(lambda images: logits_of(torch.full((len(images),), 0.3)), *arguments, fill=None, replace_with="black")
    assert float(constant) == pytest.approx(0, abs=1e-9)
    whole = networks.pictures(1).double().mean()

    def all_or_nothing(images: Tensor) -> Tensor:
        return logits_of(torch.where((images.double().mean(dim=(1, 2, 3)) - whole).abs() < 1e-9, 0.9, 1e-9))

    steps = superpixels(arguments[0], 100).unique().numel()
    assert float(m.irof(all_or_nothing, *arguments, fill=None, replace_with="black")) == pytest.approx(100 - 50 / steps, abs=1e-5)
