"""The perturbation engine against slow, plain replicas."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from tests import networks
from xattn import metrics as m
from xattn.errors import InputError, NameUnknownError
from xattn.metrics.curves import Deletion, Insertion
from xattn.metrics.fills import Baseline, baseline_images
from xattn.metrics.perturbations import KEPT, ORIGINAL, REMOVED, ranks
from xattn.metrics.protocols import PROTOCOLS
from xattn.metrics.responses import evaluate_perturbations
from xattn.metrics.targets import ClassTarget

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)


@pytest.fixture
def predict():
    network = networks.small().double().requires_grad_(False)
    return lambda images: network(images)


def plain_ranks(mask: Tensor) -> list[int]:
    """Pixels from the highest to the lowest, ties in the order of the fixed permutation."""
    count = mask.numel()
    permutation = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    place = {pixel: number for number, pixel in enumerate(permutation)}
    values = [round(value * 65536) for value in mask.flatten().tolist()]
    return sorted(range(count), key=lambda pixel: (-values[pixel], place[pixel]))


def plain_curve(
    predict, image: Tensor, mask: Tensor, target: int, start: Tensor, end: Tensor, step: int
) -> tuple[list[float], list[float]]:
    """Shares and probabilities, one forward per step."""
    order, count = plain_ranks(mask), mask.numel()
    shares, found = [], []
    for changed in [*range(0, count, step), count]:
        picture = start.clone().flatten(1)
        picture[:, order[:changed]] = end.flatten(1)[:, order[:changed]]
        probabilities = predict(picture.view_as(image)[None]).double().softmax(1)[0]
        shares.append(changed / count)
        found.append(float(probabilities[target]))
    return shares, found


def plain_area(shares: list[float], p: list[float]) -> float:
    return 100 * sum((b - a) * (p[i] + p[i + 1]) / 2 for i, (a, b) in enumerate(pairwise(shares)))


def plain_blur(image: Tensor, side: int) -> Tensor:
    impulse = torch.zeros(side, side, dtype=torch.float64)
    impulse[side // 2, side // 2] = 1
    kernel = torch.as_tensor(gaussian_filter(impulse.numpy(), 5))
    colour = MEAN.view(3, 1, 1)
    padded = colour.expand(3, image.shape[1] + side - 1, image.shape[2] + side - 1).clone()
    half = side // 2
    padded[:, half : half + image.shape[1], half : half + image.shape[2]] = image
    return functional.conv2d(padded[:, None], kernel[None, None])[:, 0]


@pytest.mark.parametrize(("protocol", "side"), [("ca-stream", 5), ("rise", 11)])
@pytest.mark.parametrize("step", [None, 100])
def test_insertion_and_deletion_agree_with_one_forward_a_step(predict, protocol: str, side: int, step: int | None) -> None:
    images = networks.pictures(3).double()
    masks = networks.pictures(3, seed=5)[:, 0].double()
    masks[0] = masks[0].round(decimals=1)  # ties
    targets = torch.tensor([0, 3, 2])
    insertion = m.insertion(predict, images, masks, targets, fill=MEAN, protocol=protocol, step=step)
    deletion = m.deletion(predict, images, masks, targets, fill=MEAN, protocol=protocol, step=step)
    for i in range(3):
        filled = MEAN.view(3, 1, 1).expand_as(images[i])
        pixels = step or 8 * 32
        expected = plain_area(*plain_curve(predict, images[i], masks[i], int(targets[i]), images[i], filled, pixels))
        assert float(deletion[i]) == pytest.approx(expected, abs=1e-9)
        blurred = plain_blur(images[i], side)
        expected = plain_area(*plain_curve(predict, images[i], masks[i], int(targets[i]), blurred, images[i], pixels))
        assert float(insertion[i]) == pytest.approx(expected, abs=1e-9)


def test_gomez_ranks_the_cells_of_the_map_and_deletes_to_black(predict) -> None:
    images, targets = networks.pictures(2).double(), torch.tensor([1, 4])
    cells = torch.rand(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    found = m.deletion(predict, images, cells, targets, fill=None, protocol="gomez")
    for i in range(2):
        order, p = plain_ranks(cells[i]), []
        for changed in range(17):
            picture = images[i].clone()
            for cell in order[:changed]:
                y, x = divmod(cell, 4)
                picture[:, y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] = 0
            p.append(float(predict(picture[None]).softmax(1)[0, targets[i]]))
        assert float(found[i]) == pytest.approx(plain_area([k / 16 for k in range(17)], p), abs=1e-9)


def written_br_npa(predict, image: Tensor, maps: Tensor, target: int, insertion: bool) -> float:
    """BR-NPA's curve of a head's maps `(N, h, w)`, cell by cell in normalised space; among equal cells the one first in the permutation."""
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    normalised = (image - MEAN.view(3, 1, 1)) / std
    low, high = float(maps.min()), float(maps.max())
    stored = [int(255 * (float(value) - low) / (high - low)) for value in maps[0].flatten()]
    height, width = maps.shape[1:]
    side = image.shape[1] // height
    permutation = torch.randperm(height * width, generator=torch.Generator().manual_seed(0)).tolist()
    changed, filled = normalised.clone(), torch.zeros_like(normalised)
    if insertion:
        kernel = torch.full((3, 1, 121, 121), 1 / 121**2, dtype=torch.float64)
        changed, filled = functional.conv2d(normalised[None], kernel, padding=60, groups=3)[0], normalised
    p = []
    while max(stored) >= 0:
        cell = next(cell for cell in permutation if stored[cell] == max(stored))
        stored[cell] = -1
        y, x = divmod(cell, width)
        area = (slice(None), slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
        changed[area] = filled[area]
        p.append(float(predict((changed * std + MEAN.view(3, 1, 1))[None]).softmax(1)[0, target]))
    return 100 * sum((a + b) / 2 for a, b in pairwise(p)) / (len(p) - 1)


def test_br_npa_is_its_curve_written_out(predict) -> None:
    images, targets = networks.pictures(2).double(), torch.tensor([1, 4])
    maps = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    maps[:, 0] = maps[:, 0] ** 6  # many cells of one byte
    low, high = (extreme[:, None, None, None] for extreme in maps.flatten(1).aminmax(dim=1))
    given = ((maps - low) / (high - low))[:, 0]  # over the range of all three maps, as these are stored
    for metric, insertion in ((m.insertion, True), (m.deletion, False)):
        found = metric(predict, images, given, targets, fill=MEAN, protocol="br-npa")
        expected = [written_br_npa(predict, images[i], maps[i], int(targets[i]), insertion) for i in range(2)]
        assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_bytes_that_were_stored_stay_as_they_are() -> None:
    stored = torch.arange(256)
    for dtype in (torch.float32, torch.float64):
        assert ranks((stored.to(dtype) / 255).view(1, 16, 16), as_bytes=True).flatten().tolist() == list(reversed(range(256)))
    between = torch.linspace(0, 1, 2**12 + 1)[None, None]
    assert len((ranks(between, as_bytes=True) != ranks(between)).nonzero()) > 0


def test_gomez_takes_at_most_196_steps_and_its_areas_use_the_true_shares_where_cells_differ_in_size(predict) -> None:
    cells = torch.rand(1, 15, 15, dtype=torch.float64)
    curve = Deletion(protocol="gomez").curve
    images = networks.pictures(1).double()
    found = evaluate_perturbations(predict, images, torch.tensor([0]), {"": cells}, [curve])[""].curve(curve)
    assert found.p.shape[1] == 114  # 225 cells, two per step
    assert float(found.shares[0, -1]) == 1
    assert len(found.shares.diff(dim=1).unique()) > 1


def test_the_box_blur_of_gomez_has_black_outside() -> None:
    image = torch.ones(1, 3, 32, 32, dtype=torch.float64)
    blurred = baseline_images(image, Baseline("box", "black"), None)
    assert float(blurred[0, 0, 16, 16]) == pytest.approx(1)
    assert float(blurred[0, 0, 0, 0]) == pytest.approx((5 / 9) ** 2)  # side max(32 // 5, 9)


def test_28_steps_and_29_scores_at_224() -> None:
    found = evaluate_perturbations(
        lambda images: images.mean(dim=(2, 3)),
        torch.rand(1, 3, 224, 224),
        torch.tensor([0]),
        {"": torch.rand(1, 224, 224)},
        [Insertion().curve],
        mean=MEAN,
    )
    assert found[""].curve(Insertion().curve).p.shape == (1, 29)


def test_ties_follow_one_fixed_permutation_whatever_the_image() -> None:
    masks = torch.zeros(2, 6, 6)
    masks[1, 0, 0] = 1
    found = ranks(masks)
    permutation = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found[0].flatten()[permutation], torch.arange(36))
    assert int(found[1, 0, 0]) == 0


def test_differences_below_rounding_order_no_pixels() -> None:
    mask = (torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) * 8).round() / 8
    noise = 2e-6 * torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(1)) - 1e-6
    assert torch.equal(ranks((mask + noise).clamp(0, 1)), ranks(mask).expand(5, -1, -1))
    assert not torch.equal(ranks((mask + 64 * noise).clamp(0, 1)), ranks(mask).expand(5, -1, -1))
    assert torch.equal(ranks(mask.half()), ranks(mask))
    assert torch.equal(ranks(1e-5 * mask + 3), ranks(mask))  # maps of any scale
    assert torch.equal(ranks(1e-5 * mask), ranks(mask))


@pytest.mark.parametrize("chunk", [1, 5, 8, 1000])
def test_the_size_of_a_chunk_changes_nothing_and_every_chunk_is_full(predict, chunk: int) -> None:
    sizes = []

    def counted(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return predict(images)

    images, targets = networks.pictures(3).double(), torch.tensor([0, 1, 2])
    masks = {"a": networks.pictures(3, seed=1)[:, 0].double(), "b": networks.pictures(3, seed=2)[:, 0].double()}
    asked = [ORIGINAL, KEPT, REMOVED, Insertion().curve, Deletion().curve]
    found = evaluate_perturbations(counted, images, targets, masks, asked, mean=MEAN, chunk=chunk)
    assert set(sizes) == {chunk}
    whole = evaluate_perturbations(predict, images, targets, masks, asked, mean=MEAN, chunk=7)
    for name in masks:
        assert torch.allclose(found[name].curve(asked[3]).p, whole[name].curve(asked[3]).p, atol=1e-12)
        assert torch.allclose(found[name].probability(KEPT).p, whole[name].probability(KEPT).p, atol=1e-12)


def test_the_image_and_its_baselines_are_run_once_for_all_masks(predict) -> None:
    count = 0

    def counted(images: Tensor) -> Tensor:
        nonlocal count
        count += len(images)
        return predict(images)

    images = networks.pictures(2).double()
    masks = {str(k): networks.pictures(2, seed=k)[:, 0].double() for k in range(5)}
    evaluate_perturbations(
        counted, images, torch.tensor([0, 1]), masks, [ORIGINAL, KEPT, Insertion().curve, Deletion().curve], mean=MEAN, chunk=1
    )
    steps = 32 * 32 // (8 * 32)
    assert count == 2 * (1 + 2) + 2 * 5 * (1 + 2 * (steps - 1))


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_a_missing_mean_colour_is_asked_for_unless_the_protocol_fills_with_black(name: str, predict) -> None:
    arguments = (predict, networks.pictures(1).double(), torch.rand(1, 32, 32), torch.tensor([0]))
    if name == "gomez":
        assert torch.isfinite(m.deletion(*arguments, fill=None, protocol=name)).all()
    else:
        with pytest.raises(InputError, match=r"pass fill=classifier\.mean"):
            m.deletion(*arguments, fill=None, protocol=name)


def test_masks_of_another_size_than_the_images_are_refused_with_what_to_do(predict) -> None:
    with pytest.raises(InputError, match=r"\(1, 32, 32\).*got \(1, 7, 7\).*to_masks"):
        m.average_drop(predict, networks.pictures(1).double(), torch.rand(1, 7, 7), torch.tensor([0]))
    with pytest.raises(InputError, match=r"one class index per image, \(1,\), whole numbers; got \(2,\)"):
        m.average_drop(predict, networks.pictures(1).double(), torch.rand(1, 32, 32), torch.tensor([0, 1]))


def test_an_even_blur_and_a_step_below_one_are_refused(predict) -> None:
    arguments = (predict, networks.pictures(1).double(), torch.rand(1, 32, 32), torch.tensor([0]))
    with pytest.raises(InputError, match="odd, from 1 to 1001, or 0 for none; got 4"):
        m.insertion(*arguments, fill=MEAN, blur=4)
    for step in (0, -1):
        with pytest.raises(InputError, match="whole number of pixels, at least one; got"):
            m.deletion(*arguments, fill=MEAN, step=step)
    with pytest.raises(InputError, match="three values"):
        m.deletion(*arguments, fill=0)
    with pytest.raises(NameUnknownError, match="Unknown protocol 'rize'. Did you mean 'rise'"):
        m.deletion(*arguments, fill=MEAN, protocol="rize")
    with pytest.raises(InputError, match=r"masks lie in \[0, 1\]; these reach from 0 to 2.*to_masks"):
        m.average_drop(arguments[0], arguments[1], 2 * torch.eye(32)[None], arguments[3])


def test_correlation_is_undefined_for_a_constant_mask(predict) -> None:
    found = m.deletion_correlation(predict, networks.pictures(1).double(), torch.ones(1, 32, 32), torch.tensor([0]), fill=MEAN)
    assert found.isnan().all()


def test_multi_label_probabilities_are_sigmoids() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.0, 50.0]])
    found = ClassTarget(torch.tensor([0, 1]), multi_label=True).probability(logits)
    assert torch.allclose(found.p, torch.sigmoid(torch.tensor([2.0, 50.0]).double()))
    assert float(found.rest[1]) == pytest.approx(float(torch.sigmoid(torch.tensor(-50.0).double())), rel=1e-12)


def test_a_softmax_over_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="multi_label=True"):
        ClassTarget(torch.zeros(2, dtype=torch.long)).probability(torch.zeros(2, 1))


def test_what_two_masks_show_alike_is_run_once_and_given_to_both(predict) -> None:
    count = 0

    def counted(images: Tensor) -> Tensor:
        nonlocal count
        count += len(images)
        return predict(images)

    images, targets = networks.pictures(3).double(), torch.tensor([0, 1, 2])
    a, b = (networks.pictures(3, seed=k)[:, 0].double() for k in (1, 2))
    some = torch.stack([b[0], a[1], b[2]])  # the second image's is a's
    masks = {"a": a, "b": b, "again": a.clone(), "some": some}
    asked = [ORIGINAL, KEPT, REMOVED, Insertion().curve, Deletion().curve]
    found = evaluate_perturbations(counted, images, targets, masks, asked, mean=MEAN, chunk=1)
    inner = 32 * 32 // (8 * 32) - 1
    assert count == 3 * 3 + 2 * 3 * (2 + 2 * inner)
    for name, mask in masks.items():
        alone = evaluate_perturbations(predict, images, targets, {name: mask}, asked, mean=MEAN, chunk=1)[name]
        for perturbation in asked[1:3]:
            assert torch.equal(found[name].probability(perturbation).p, alone.probability(perturbation).p)
            assert torch.equal(found[name].probability(perturbation).rest, alone.probability(perturbation).rest)
        for perturbation in asked[3:]:
            assert torch.equal(found[name].curve(perturbation).p, alone.curve(perturbation).p)


def test_masks_that_are_alike_over_cells_that_are_not_are_run_apart(predict) -> None:
    images, targets = networks.pictures(2).double(), torch.tensor([0, 1])
    masks = {name: networks.pictures(2, seed=1)[:, 0].double() for name in ("a", "b")}
    generator = torch.Generator().manual_seed(0)
    cells = {name: torch.rand(2, 4, 4, dtype=torch.float64, generator=generator) for name in masks}
    curve = Deletion(protocol="gomez").curve
    found = evaluate_perturbations(predict, images, targets, masks, [curve], low_res_masks=cells, mean=MEAN)
    assert not torch.equal(found["a"].curve(curve).p, found["b"].curve(curve).p)
