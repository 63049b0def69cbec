"""What replaced pixels show, against slow replicas and pytorch-grad-cam's imputation."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from tests import networks
from tests.metrics.test_responses import plain_area, plain_ranks
from xattn import metrics as m
from xattn.errors import InputError
from xattn.metrics.fills import NOISE, Baseline, Fill, baseline_images
from xattn.metrics.inpainting import interpolated
from xattn.metrics.seeds import content_seeds

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)


def plain_interpolation(image: Tensor, missing: Tensor) -> Tensor:
    """One equation per missing pixel, solved exactly."""
    height, width = missing.shape
    holes = [divmod(place, width) for place in missing.flatten().nonzero()[:, 0].tolist()]
    if not holes:
        return image
    system, right = lil_matrix((len(holes), len(holes))), torch.zeros(len(holes), len(image), dtype=torch.float64)
    for row, (y, x) in enumerate(holes):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy or dx) and 0 <= y + dy < height and 0 <= x + dx < width:
                    weight = 1 / 12 if dy and dx else 1 / 6
                    system[row, row] += weight
                    if missing[y + dy, x + dx]:
                        system[row, holes.index((y + dy, x + dx))] -= weight
                    else:
                        right[row] += weight * image[:, y + dy, x + dx].double()
    filled = image.clone()
    filled[:, missing] = torch.as_tensor(spsolve(system.tocsc(), right.numpy())).view(len(holes), len(image)).T.to(image)
    return filled


def holes(count: int, height: int, width: int) -> Tensor:
    """A corner, everything but one pixel, and scattered pixels."""
    found = torch.rand(count, height, width, generator=torch.Generator().manual_seed(4)) < 0.7
    found[0] = False
    found[0, : height // 2, width // 3 :] = True
    found[1] = True
    found[1, height // 2, 1] = False
    return found


@pytest.mark.parametrize(("height", "width"), [(12, 17), (5, 3)])
def test_interpolated_pixels_solve_the_system_of_their_neighbours(height: int, width: int) -> None:
    images = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    missing = holes(3, height, width)
    found = interpolated(images, missing)
    for image, hole, filled in zip(images, missing, found, strict=True):
        assert torch.allclose(filled, plain_interpolation(image, hole), atol=1e-3)
        assert torch.equal(filled[:, ~hole], image[:, ~hole])


def test_interpolation_solves_the_system_of_pytorch_grad_cam() -> None:
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    images, missing = networks.pictures(3), holes(3, 32, 32)[[0, 2]]
    found = interpolated(images[:2], missing)
    for image, hole, filled in zip(images, missing, found, strict=False):
        system, right = road.NoisyLinearImputer.setup_sparse_system((~hole).numpy().astype(int), image.numpy(), road.neighbors_weights)
        assert torch.allclose(filled[:, hole].T, torch.as_tensor(spsolve(system.tocsc(), right)).float(), atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_interpolated_image_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    images, missing = networks.pictures(7).to(dtype), holes(7, 32, 32)
    whole, atol = interpolated(images, missing), 1e-5 if dtype == torch.float32 else 1e-12
    for i in range(7):
        assert torch.allclose(interpolated(images[i : i + 1], missing[i : i + 1]), whole[i : i + 1], atol=atol)


def test_where_no_pixel_is_left_an_image_shows_its_own_mean_colour() -> None:
    images = networks.pictures(2)
    missing = torch.ones(2, 32, 32, dtype=torch.bool)
    missing[1, 3, 3] = False
    found = interpolated(images, missing)
    assert torch.allclose(found[0], images[0].mean(dim=(1, 2), keepdim=True).expand(3, 32, 32))
    assert torch.allclose(found[1], images[1, :, 3, 3].view(3, 1, 1).expand(3, 32, 32), atol=1e-3)


@pytest.mark.parametrize("kind", ["noise", "noisy-linear"])
def test_noise_is_that_of_the_image_and_not_of_its_batch(kind: str) -> None:
    images = networks.pictures(3)
    whole = baseline_images(images, Baseline(kind), None)
    assert torch.equal(baseline_images(images[[2, 0]], Baseline(kind), None), whole[[2, 0]])
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1


def test_noise_is_not_that_of_the_control_random() -> None:
    image = networks.pictures(1)
    control = torch.rand(32, 32, generator=torch.Generator().manual_seed(content_seeds(image)[0]))
    shown = baseline_images(image, Baseline("noise"), None)[0]
    assert all(not torch.equal(channel, control) for channel in shown)


def test_noise_can_be_rebuilt_from_the_image() -> None:
    image = networks.pictures(1)
    generator = torch.Generator().manual_seed(content_seeds(image, stream="fill")[0])
    assert torch.equal(baseline_images(image, Baseline("noise"), None)[0], torch.rand(3, 32, 32, generator=generator))
    noise = torch.randn(3, 32, 32, generator=generator.manual_seed(content_seeds(image, stream="fill")[0]))
    replaced = torch.zeros(1, 32, 32, dtype=torch.bool)
    replaced[0, 4:9, 10:20] = True
    found = Fill(image, Baseline("noisy-linear"), None)(torch.tensor([0]), replaced)[0]
    expected = (plain_interpolation(image[0], replaced[0]) + NOISE * noise).clamp(0, 1)
    assert torch.allclose(found[:, replaced[0]], expected[:, replaced[0]], atol=1e-3)
    assert torch.equal(found[:, ~replaced[0]], image[0][:, ~replaced[0]])


@pytest.fixture
def predict():
    network = networks.small().double().requires_grad_(False)
    return lambda images: network(images)


def replaced_plainly(image: Tensor, gone: list[int], fill: str) -> Tensor:
    """The image without some pixels."""
    missing = torch.zeros(image[0].numel(), dtype=torch.bool)
    missing[gone] = True
    missing = missing.view(image.shape[1:])
    noise = torch.Generator().manual_seed(content_seeds(image[None], stream="fill")[0])
    if fill == "noisy-linear":
        left = plain_interpolation(image, missing) if not missing.all() else image.mean(dim=(1, 2), keepdim=True).expand_as(image)
        shown = (left + NOISE * torch.randn(image.shape, generator=noise)).clamp(0, 1)
    elif fill == "noise":
        shown = torch.rand(image.shape, generator=noise).to(image)
    elif fill == "blur":
        padded = MEAN.view(3, 1, 1).expand(3, image.shape[1] + 8, image.shape[2] + 8).clone()  # a box of side 9
        padded[:, 4:-4, 4:-4] = image
        shown = torch.nn.functional.avg_pool2d(padded, 9, stride=1)
    else:
        shown = (MEAN if fill == "mean" else 0 * MEAN).view(3, 1, 1).expand_as(image)
    return torch.where(missing, shown, image)


@pytest.mark.parametrize("fill", ["mean", "black", "blur", "noise", "noisy-linear"])
def test_curves_with_each_fill_agree_with_one_forward_a_step(predict, fill: str) -> None:
    image, mask = networks.pictures(2)[1:, :, :16, :16].double(), networks.pictures(2, seed=5)[1, 0, :16, :16].double()
    order, shares = plain_ranks(mask), [k / 4 for k in range(5)]
    p = {
        insertion: [
            float(predict(replaced_plainly(image[0], order[64 * k :] if insertion else order[: 64 * k], fill)[None]).softmax(1)[0, 3])
            for k in range(5)
        ]
        for insertion in (False, True)
    }
    arguments = (predict, image, mask[None], torch.tensor([3]))
    tolerance = 1e-3 if fill == "noisy-linear" else 1e-9
    found = m.deletion(*arguments, fill=MEAN, step=64, replace_with=fill)
    assert float(found) == pytest.approx(plain_area(shares, p[False]), abs=tolerance)
    if fill != "blur":  # insertion begins at a blur anyway
        colour = fill in ("mean", "black")
        found = m.insertion(*arguments, fill=MEAN, step=64, replace_with=fill, blur=0 if colour else None)
        assert float(found) == pytest.approx(plain_area(shares, p[True]), abs=tolerance)
    found = m.srg(*arguments, fill=MEAN, step=64, replace_with=fill)
    assert float(found) == pytest.approx(plain_area(shares, p[True]) - plain_area(shares, p[False]), abs=tolerance)


def test_a_blur_and_noise_at_once_are_refused(predict) -> None:
    arguments = (predict, networks.pictures(1).double(), torch.rand(1, 32, 32), torch.tensor([0]))
    with pytest.raises(InputError, match="fill=noise replaces the blur: leave out blur=5"):
        m.insertion(*arguments, fill=MEAN, replace_with="noise", blur=5)
