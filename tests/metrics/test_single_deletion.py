"""The single-deletion score and the relative drop: known answers, scipy, and what they share and refuse."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from tests import networks
from tests.metrics.test_known_answers import FILL, logits_of, white, zeros
from xattn import metrics as m
from xattn.errors import InputError
from xattn.metrics.fills import Baseline
from xattn.metrics.perturbations import Highest, Patches
from xattn.metrics.relative_drop import RelativeDrop
from xattn.metrics.single_deletion import IDSDS
from xattn.metrics.targets import ClassTarget, Contrast

SIZE = 8


def weights(size: int = SIZE) -> Tensor:
    return torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def linear(terms: Tensor):
    """A network whose first logit is Σ w_i · [pixel i is white]."""

    def predict(images: Tensor) -> Tensor:
        logit = (images[:, 0].double() * terms).sum(dim=(1, 2))
        return torch.stack([logit, 0 * logit], dim=1)

    return predict


@pytest.mark.parametrize(("size", "grid"), [(8, 4), (8, 2), (8, 8), (10, 4), (7, 3)])
def test_a_linear_network_explained_by_its_own_terms_has_idsds_1_and_turned_round_minus_1(size: int, grid: int) -> None:
    terms = weights(size)
    given = linear(terms), white(1, size)
    assert float(m.idsds(*given, terms[None], zeros(1), fill=FILL, grid=grid)) == pytest.approx(1.0)
    assert float(m.idsds(*given, -terms[None], zeros(1), fill=FILL, grid=grid)) == pytest.approx(-1.0)


def test_idsds_ranks_the_fall_of_the_logit_and_not_of_the_probability() -> None:
    """Where the first patch goes, the other class's logit goes too: the logit falls by 2, the probability does not."""

    def predict(images: Tensor) -> Tensor:
        kept = images[:, 0].double().flatten(1)
        return torch.stack([2 * kept[:, 0] + kept[:, 1], 2 * kept[:, 0]], dim=1)

    masks = torch.tensor([[[2.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    found = m.idsds(predict, white(1, 2), masks, zeros(1), fill=FILL, grid=2)
    assert float(found) == pytest.approx(1.0)
    p = [float(logits.softmax(0)[0]) for logits in predict(torch.cat([white(1, 2), white(1, 2) * torch.tensor([[0.0, 1], [1, 1]])]))]
    assert p[0] == pytest.approx(p[1])


def test_idsds_is_scipy_s_rank_correlation_of_sums_and_falls_patch_by_patch() -> None:
    network, images, targets = networks.small().double().requires_grad_(False), networks.pictures(3).double(), torch.tensor([1, 3, 0])
    maps = torch.randn(3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = m.idsds(network, images, maps, targets, fill=[0.5, 0.4, 0.3])
    colour = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64)[:, None, None]
    for image, values, target, own in zip(images, maps, targets.tolist(), found.tolist(), strict=True):
        sums, falls = [], []
        for y in range(0, 32, 8):
            for x in range(0, 32, 8):
                changed = image.clone()
                changed[:, y : y + 8, x : x + 8] = colour
                sums.append(float(values[y : y + 8, x : x + 8].sum()))
                falls.append(float(network(image[None])[0, target] - network(changed[None])[0, target]))
        assert own == pytest.approx(spearmanr(sums, falls).statistic, abs=1e-9)


def test_patches_that_matter_alike_tie_whatever_a_batch_rounds() -> None:
    """Of four patches two lower the logit by 1, but for noise, and the map tells these two apart: ranks 1.5, 1.5, 3, 4 and 1, 2, 3, 4."""

    def predict(images: Tensor) -> Tensor:
        logit = (images[:, 0].double().flatten(1) * torch.tensor([1.0, 1.0 + 1e-9, 2.0, 3.0])).sum(dim=1) + 10
        return torch.stack([logit, 0 * logit], dim=1)

    for order in ([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 4.0]):
        masks = torch.tensor(order, dtype=torch.float64).view(1, 2, 2)
        found = m.idsds(predict, white(1, 2), masks, zeros(1), fill=FILL, grid=2)
        assert float(found) == pytest.approx(spearmanr([1, 2, 3, 4], [1.5, 1.5, 3, 4]).statistic)


def test_idsds_of_a_flat_map_or_a_network_that_nothing_changes_is_undefined() -> None:
    assert m.idsds(linear(weights()), white(1, SIZE), torch.full((1, SIZE, SIZE), 0.3), zeros(1), fill=FILL).isnan().all()
    constant = lambda images: logits_of(torch.full((len(images),), 0.4))  # noqa: E731
    assert m.idsds(constant, white(1, SIZE), weights()[None], zeros(1), fill=FILL).isnan().all()


def test_patches_are_run_once_for_all_masks() -> None:
    seen = 0

    def predict(images: Tensor) -> Tensor:
        nonlocal seen
        seen += len(images)
        return linear(weights())(images)

    masks = {str(number): weights()[None].roll(number, 1) for number in range(3)}
    m.evaluate_perturbations(predict, white(1, SIZE), zeros(1), masks, [Patches(4, Baseline("colour", "black"))], chunk=1)
    assert seen == 1 + 16


def softmax_of(rows: list[list[float]]):
    """A network of three classes: one row of probabilities with a black pixel at the upper left, another without."""

    def predict(images: Tensor) -> Tensor:
        whole, gone = (torch.tensor(row, dtype=torch.float64).log() for row in rows)
        return torch.where(images[:, :1, 0, 0].double() > 0.5, whole, gone)

    return predict


FIRST = torch.zeros(1, 4, 4, dtype=torch.float64)
FIRST[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (([0, 1], [1.0, -1.0]), (0.7 - 0.2) - (0.2 - 0.5)),  # the target falls by 0.5, the other rises by 0.3
        (([0, 1], [1.0, -0.6]), 0.8),  # weights say the side alone
        (([0, 1, 2], [1.0, -0.3, -0.3]), (0.7 - 0.2) - (0.15 - 0.4)),  # the mean of both others
        (([1, 0], [1.0, -1.0]), -0.8),
        (([0], [1.0]), 2 * (0.7 / 1.7 - 0.2 / 1.2)),  # nothing against it: twice the fall of its own probability, σ(log p)
    ],
)
def test_the_relative_drop_is_the_target_s_fall_less_the_other_s(terms: tuple[list[int], list[float]], expected: float) -> None:
    network = softmax_of([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]])
    found = m.relative_drop(network, white(1, 4), FIRST, Contrast(*terms), fill=FILL, share=1 / 16)
    assert float(found) == pytest.approx(expected)


def test_the_relative_drop_of_a_class_is_twice_its_fall_and_of_labels_that_of_their_sigmoids() -> None:
    network = softmax_of([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]])
    for target in (zeros(1), ClassTarget(zeros(1))):
        assert float(m.relative_drop(network, white(1, 4), FIRST, target, fill=FILL, share=1 / 16)) == pytest.approx(1.0)
    labels = Contrast([0, 1], [1.0, -1.0], multi_label=True)
    sigmoids = [torch.tensor(row).log().sigmoid() for row in ([0.7, 0.2], [0.2, 0.5])]
    expected = float((sigmoids[0][0] - sigmoids[1][0]) - (sigmoids[0][1] - sigmoids[1][1]))
    assert float(m.relative_drop(network, white(1, 4), FIRST, labels, fill=FILL, share=1 / 16)) == pytest.approx(expected)


def test_the_relative_drop_deletes_the_highest_share_and_sees_what_deletion_cannot() -> None:
    """Pixel 0 holds what is common to two classes, pixel 1 what tells them apart: both lower the first class alike."""

    def predict(images: Tensor) -> Tensor:
        common, own = images[:, 0, 0, 0].double(), images[:, 0, 0, 1].double()
        p = 0.6 - 0.3 * (1 - common) - 0.3 * (1 - own)
        q = 0.3 - 0.2 * (1 - common)
        return torch.stack([p, q, 1 - p - q], dim=1).log()

    target, images = Contrast([0, 1], [1.0, -1.0]), white(1, 4)
    values, drops = [], []
    for pixel in (0, 1):
        mask = torch.zeros(1, 4, 4, dtype=torch.float64)
        mask[0, 0, pixel] = 1
        values.append(float(m.relative_drop(predict, images, mask, target, fill=FILL, share=1 / 16)))
        drops.append(float(m.average_drop_deletion(predict, images, mask, zeros(1))))
    assert values == pytest.approx([0.3 - 0.2, 0.3])
    assert drops[0] == pytest.approx(drops[1])


def test_equal_masks_are_run_once_and_have_one_relative_drop() -> None:
    seen = 0

    def predict(images: Tensor) -> Tensor:
        nonlocal seen
        seen += len(images)
        return softmax_of([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]])(images)

    asked = Highest(1 / 16, Baseline("colour", "black"))
    masks = {"a": FIRST, "b": FIRST.clone()}
    found = m.evaluate_perturbations(predict, white(1, 4), Contrast([0, 1], [1.0, -1.0]), masks, [asked], chunk=1)
    assert seen == 2
    assert torch.equal(found["a"].margins[asked], found["b"].margins[asked])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="the number of patches along a side must be a whole number from 2 to 32; got 1"):
        IDSDS(grid=1)
    with pytest.raises(InputError, match="the share of pixels that are deleted lies between 0 and 1; got 1"):
        RelativeDrop(share=1.0)
    with pytest.raises(InputError, match="an image of 4 × 4 pixels has no 8 × 8 patches: choose a smaller grid"):
        m.idsds(linear(weights(4)), white(1, 4), weights(4)[None], zeros(1), fill=FILL, grid=8)
