"""Boxes: crops and maps of crops, against known answers and slow replicas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from tests import networks
from xattn.boxes import check_boxes, crop, lay_back, overlaps, squares, whole
from xattn.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_whole_picture_at_its_own_size_is_the_picture_itself(dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 7, 9, dtype=dtype)
    assert torch.equal(crop(images, whole(images), (7, 9))[:, 0], images)
    assert torch.equal(lay_back(images, whole(images).expand(2, 3, 4), (7, 9)), images)


def test_a_box_of_whole_pixels_at_its_own_size_is_copied() -> None:
    images = torch.rand(2, 3, 64, 64)
    boxes = torch.tensor([[[3.0, 10.0, 35.0, 42.0], [32.0, 0.0, 64.0, 32.0]], [[0.0, 32.0, 32.0, 64.0], [7.0, 7.0, 39.0, 39.0]]])
    found = crop(images, boxes, 32)
    for image in range(2):
        for number in range(2):
            x1, y1, x2, y2 = boxes[image, number].int().tolist()
            assert torch.equal(found[image, number], images[image, :, y1:y2, x1:x2])


def test_an_enlarged_crop_is_the_bilinear_one_inside_and_a_shrunk_one_averages() -> None:
    images = networks.pictures(1, 32)
    found = crop(images, torch.tensor([[[8.0, 4.0, 16.0, 12.0]]]), 24)[0, 0]
    expected = functional.interpolate(images[:, :, 2:14, 6:18], size=36, mode="bilinear", align_corners=False)[0, :, 6:30, 6:30]
    assert torch.allclose(found, expected, atol=1e-6)
    shrunk = crop(images, whole(images), 8)[0, 0]
    assert torch.allclose(shrunk, functional.avg_pool2d(images, 4)[0], atol=1e-6)


def test_crops_are_differentiable_in_the_images_and_maps_that_are_laid_back_in_the_maps() -> None:
    boxes = torch.tensor([[[1.0, 0.0, 5.0, 4.0], [0.5, 1.5, 6.0, 5.0]]], dtype=torch.float64)
    images = torch.rand(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: crop(x, boxes, 3), images)
    maps = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: lay_back(x, boxes, (6, 6)), maps)


def slowly_laid_back(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of whole pixels: each map resized by torch and put there; where they are a pixel wide or high, the mean."""
    found = torch.zeros(*maps.shape[:2], *size, dtype=maps.dtype)
    for image in range(len(maps)):
        for number in range(maps.shape[1]):
            x1, y1, x2, y2 = boxes[image, number].int().tolist()
            own = maps[image : image + 1, number : number + 1]
            own = own.mean(dim=2, keepdim=True) if y2 - y1 == 1 else own
            own = own.mean(dim=3, keepdim=True) if x2 - x1 == 1 else own
            large = functional.interpolate(own, size=(y2 - y1, x2 - x1), mode="bilinear")
            found[image, number, y1:y2, x1:x2] = large[0, 0]
    return found


def test_maps_lie_where_their_boxes_are_resized_as_torch_does_it() -> None:
    maps = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    boxes = torch.tensor([[[0, 0, 20, 16], [3, 5, 11, 9], [2, 2, 7, 6]], [[1, 1, 20, 2], [10, 6, 20, 16], [0, 0, 1, 1]]]).double()
    assert torch.allclose(lay_back(maps, boxes, (16, 20)), slowly_laid_back(maps, boxes, (16, 20)))


def test_a_map_that_is_finer_than_its_box_loses_no_cell() -> None:
    box = torch.tensor([[[2.0, 1.0, 5.0, 4.0]]])
    for cell in range(5):
        maps = torch.zeros(1, 1, 5, 5)
        maps[0, 0, cell, 2] = 1.0
        back = lay_back(maps, box, (6, 6))[0, 0]
        assert back[1:4, 2:5].sum() == pytest.approx(9 / 25)  # a pixel is 5/3 of a cell wide
        assert back.sum() == back[1:4, 2:5].sum()


def test_crops_of_half_precision_are_those_of_the_image_in_float() -> None:
    images, box = torch.rand(1, 3, 40, 400).bfloat16(), torch.tensor([[[301.0, 3.0, 333.0, 35.0]]])
    assert torch.equal(crop(images, box, 32)[0, 0], images[0, :, 3:35, 301:333])


def test_a_crop_s_map_returns_to_the_pixels_that_it_came_from() -> None:
    images = torch.rand(1, 1, 16, 16)
    box = torch.tensor([[[4.0, 2.0, 12.0, 10.0]]])
    back = lay_back(crop(images, box, 8)[:, :, 0], box, (16, 16))[0, 0]
    assert torch.equal(back[2:10, 4:12], images[0, 0, 2:10, 4:12])
    back[2:10, 4:12] = 0
    assert not back.any()


def test_overlaps_are_torchvision_s_intersections_over_unions() -> None:
    lows = 9 * torch.rand(2, 1, 6, 2)
    boxes, others = torch.cat([lows, lows + 1 + 5 * torch.rand(2, 1, 6, 2)], dim=3)
    assert torch.allclose(overlaps(boxes, others)[0], box_iou(boxes[0], others[0]))


def test_squares_are_shifted_into_the_image() -> None:
    found = squares(torch.tensor([[0.0, 0.0], [9.0, 5.0], [5.0, 3.0]]), 4, (6, 10))
    assert found.tolist() == [[0, 0, 4, 4], [6, 2, 10, 6], [3, 1, 7, 5]]


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        (torch.zeros(2, 4), r"boxes are \(batch, n, 4\).* for 2 images; got \(2, 4\)"),
        (torch.tensor([[[0.0, 0, 8, 8]], [[4.0, 4, 4, 8]]]), r"box 0 of image 1 is \[4.0, 4.0, 4.0, 8.0\]: x1 < x2"),
        (torch.tensor([[[0.0, 0, 8, 8]], [[0.0, 0, 9, 8]]]), r"inside the image of 8 × 8 pixels"),
        (torch.tensor([[[0.0, 0, 8, torch.nan]], [[0.0, 0, 8, 8]]]), r"box 0 of image 0"),
    ],
)
def test_wrong_boxes_are_named(boxes: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        crop(torch.rand(2, 3, 8, 8), boxes, 4)


def test_other_wrong_calls_are_refused() -> None:
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"crop takes images .* float; got \(3, 8, 8\)"):
        crop(images[0], whole(images), 4)
    with pytest.raises(InputError, match=r"at least one pixel per side; got 0 × 0"):
        crop(images, whole(images), 0)
    with pytest.raises(InputError, match=r"one for each box of .* got \(1, 3, 8, 8\)"):
        lay_back(images, whole(images), (8, 8))
    with pytest.raises(InputError, match=r"boxes of side 9 do not fit into an image of 8 × 8"):
        squares(torch.zeros(1, 2), 9, (8, 8))
    check_boxes(torch.empty(1, 0, 4), 1, (8, 8))
