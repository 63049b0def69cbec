"""Finders of patches: slow replicas, known answers, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.boxes import picked, squares
from xattn.data.npy import npy
from xattn.errors import InputError, NameUnknownError, SettingError, UnsupportedError
from xattn.heads import representatives
from xattn.models import Classifier
from xattn.patches import find, finders
from xattn.patches.file import read_patches, write_patches
from xattn.patches.prototype import bounding_boxes


def plain(head: str = "gap") -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clf = xattn.attach(networks.small(), head=head, input_size=32, resize=(32, 32), name="small")
    clf.trained = True
    return clf


@pytest.fixture(scope="module")
def clf() -> Classifier:
    return plain("protopnet:per_class=4,width=6")


@pytest.fixture
def file(tmp_path: Path) -> str:
    write_patches(tmp_path / "boxes.npy", find(plain(), networks.pictures(5), "random", 4, 9), (32, 32))
    return f"file:path={tmp_path / 'boxes.npy'}"


NAMES = [name for name in sorted(finders.entries) if name != "file"]


@pytest.mark.parametrize("finder", [*NAMES, "file"])
@pytest.mark.parametrize("side", [None, 9])
def test_boxes_lie_in_the_image_are_repeatable_and_depend_on_it_alone(finder: str, side: int | None, clf: Classifier, file: str) -> None:
    images, spec = networks.pictures(5), file if finder == "file" else finder
    flags = [part.training for part in clf.modules()]
    boxes = find(clf, images, spec, 4, side, rows=range(5))
    assert boxes.shape == (5, 4, 4)
    assert boxes.dtype == torch.float32
    assert not boxes.requires_grad
    assert bool((boxes >= 0).all() and (boxes <= 32).all() and (boxes[..., 2:] > boxes[..., :2]).all())
    if side is not None:
        assert bool((boxes[..., 2:] - boxes[..., :2] == side).all())
    for order in ([4, 2], [0]):
        assert torch.equal(find(clf, images[order], spec, 4, side, rows=order), boxes[order])
    assert [part.training for part in clf.modules()] == flags
    assert find(clf, images[:0], spec, 4, side, rows=[]).shape == (0, 4, 4)


@pytest.mark.parametrize("finder", NAMES)
def test_wrong_images_and_numbers_are_refused_alike(finder: str, clf: Classifier) -> None:
    with pytest.raises(InputError, match=r"patches are found in images .* got \(3, 32, 32\)"):
        find(clf, torch.rand(3, 32, 32), finder)
    with pytest.raises(InputError, match=r"n is the number of boxes per image, 1 or more; got 0"):
        find(clf, torch.rand(1, 3, 32, 32), finder, 0)
    with pytest.raises(InputError, match=r"boxes of side 33 do not fit"):
        find(clf, torch.rand(1, 3, 32, 32), finder, 4, 33)


def slowly_picked(scores: Tensor, candidates: Tensor, n: int, overlap: float) -> Tensor:
    """One map: maxima without overlap, then other cells without overlap, then those that overlap, each by value."""
    h, w = scores.shape
    maximum = [
        all(scores[y, x] >= scores[b, a] for b in range(max(0, y - 1), min(h, y + 2)) for a in range(max(0, x - 1), min(w, x + 2)))
        for y in range(h)
        for x in range(w)
    ]
    values = scores.flatten().tolist()
    chosen: list[int] = []

    def iou(one: Tensor, other: Tensor) -> float:
        across = max(0.0, float(min(one[2], other[2]) - max(one[0], other[0])))
        down = max(0.0, float(min(one[3], other[3]) - max(one[1], other[1])))
        areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (one, other)]
        return across * down / (sum(areas) - across * down)

    while len(chosen) < n:
        left = [cell for cell in range(h * w) if cell not in chosen]
        free = [cell for cell in left if all(iou(candidates[cell], candidates[taken]) <= overlap for taken in chosen)]
        among = [cell for cell in free if maximum[cell]] or free or [c for c in left if maximum[c]] or left
        chosen.append(max(among, key=lambda cell: (values[cell], -cell)))
    return candidates[chosen]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6, 1.0])
def test_local_maxima_are_taken_by_value_and_what_overlaps_them_is_suppressed(overlap: float) -> None:
    scores = (6 * torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0))).round()  # with ties
    centres = torch.tensor([[4 * x + 2.0, 4 * y + 2.0] for y in range(5) for x in range(6)])
    candidates = squares(centres, 8, (20, 24))
    found = picked(scores, candidates, 12, overlap)
    for image in range(4):
        assert torch.equal(found[image], slowly_picked(scores[image], candidates, 12, overlap))


def test_activation_finds_the_bright_spots_of_a_picture_in_their_order() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.constant_(network[0].weight, 1.0)
    clf = xattn.attach(network, input_size=32, resize=32, mean=[0.0] * 3, std=[1.0] * 3)
    image = torch.zeros(1, 3, 32, 32)
    image[0, :, 4:8, 20:24], image[0, :, 24:28, 8:12], image[0, :, 28:32, 28:32] = 0.5, 1.0, 0.25
    assert find(clf, image, n=3, side=8)[0].tolist() == [[6, 22, 14, 30], [18, 2, 26, 10], [24, 24, 32, 32]]
    with pytest.raises(InputError, match=r"65 boxes cannot be told apart in a map of 8 × 8 cells"):
        find(clf, image, n=65)


def test_representative_centres_are_the_vectors_that_br_npa_picks(clf: Classifier) -> None:
    images = networks.pictures(3)
    features = clf.features(images, [clf.stage().name])[clf.stage().name]
    vectors, _ = representatives(features, 5, refine=False)
    boxes = find(clf, images, "representative", 5, 4)
    centres = ((boxes[..., :2] + boxes[..., 2:]) / 2).int() // 4  # cells of 4 pixels
    for image in range(3):
        for rank in range(5):
            x, y = centres[image, rank].tolist()
            assert torch.equal(features[image, :, y, x], vectors[image, rank])


def test_random_boxes_are_uniform_over_all_places(clf: Classifier) -> None:
    boxes = find(clf, networks.pictures(1), "random", 20_000, 16)[0]
    for axis in (0, 1):
        counts = boxes[:, axis].long().bincount(minlength=17)
        assert len(counts) == 17
        assert float((counts / 20_000 - 1 / 17).abs().max()) < 0.008
    assert not torch.equal(find(clf, networks.pictures(1), "random:seed=1"), find(clf, networks.pictures(1), "random"))


def test_boxes_hold_what_is_above_the_95th_percentile_of_the_enlarged_similarity() -> None:
    cv2 = pytest.importorskip("cv2")
    maps = torch.rand(2, 3, 7, 7)
    found = bounding_boxes(maps, (56, 84), 95.0)
    for image in range(2):
        for number in range(3):
            large = cv2.resize(maps[image, number].numpy(), dsize=(84, 56), interpolation=cv2.INTER_CUBIC)
            inside = large >= np.percentile(large, 95)
            rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
            assert found[image, number].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert bounding_boxes(torch.ones(1, 1, 4, 4), (8, 8), 95.0).tolist() == [[[0, 0, 8, 8]]]


def test_prototypes_are_those_of_the_predicted_class_unless_labels_are_given(clf: Classifier) -> None:
    images = networks.pictures(4)
    predicted = clf.predict(images).argmax(dim=1)
    boxes = find(clf, images, "prototype", 4)
    assert torch.equal(find(clf, images, "prototype", 4, classes=predicted), boxes)
    others = (predicted + 1) % 5
    assert not torch.equal(find(clf, images, "prototype", 4, classes=others), boxes)
    similar = clf.head.similarities(clf.features(images, [clf.stage().name])[clf.stage().name])
    for image in range(4):
        own = similar[image, 4 * predicted[image] : 4 * predicted[image] + 4]
        order = own.amax(dim=(1, 2)).argsort(descending=True)
        assert torch.equal(boxes[image], bounding_boxes(own[order][None], (32, 32), 95.0)[0])
    with pytest.raises(InputError, match=r"a class has 4 prototypes, and 10 boxes were asked for"):
        find(clf, images, "prototype")
    with pytest.raises(InputError, match=r"classes are one index below 5 for each of 4 images"):
        find(clf, images, "prototype", 4, classes=torch.tensor([0, 1, 2, 5]))
    with pytest.raises(UnsupportedError, match=r"needs the head protopnet, and this classifier has gap"):
        find(plain(), images, "prototype", 4)


def test_a_square_lies_where_the_picture_holds_the_prototype_itself() -> None:
    clf, images = plain("protopnet:per_class=4,width=6"), networks.pictures(1)
    head = clf.head
    vectors = head.vectors(clf.features(images, [clf.stage().name])[clf.stage().name]).detach()[0]
    cells = [(2, 6), (5, 1), (4, 4), (7, 2)]  # row and column of 8 × 8, each 4 pixels wide
    with torch.no_grad():
        for number, (row, column) in enumerate(cells):
            head.prototypes[4 * 3 + number] = vectors[:, row, column]
    boxes = find(clf, images, "prototype", 4, 4, classes=torch.tensor([3]))[0].tolist()
    assert sorted(boxes) == sorted([4 * column, 4 * row, 4 * column + 4, 4 * row + 4] for row, column in cells)


def test_files_as_they_are_released_are_read_and_written(tmp_path: Path) -> None:
    released = np.zeros((3, 10, 5))
    released[...] = [100, 212, 50, 162, 7]  # y1, y2, x1, x2, class
    np.save(tmp_path / "train.npy", released)
    boxes, classes = read_patches(tmp_path / "train.npy", 3)
    assert boxes.shape == (3, 10, 4)
    assert boxes[0, 0].tolist() == [50, 100, 162, 212]
    assert classes.unique().tolist() == [7]
    write_patches(tmp_path / "again.npy", boxes, (448, 448), classes)
    again = np.load(tmp_path / "again.npy")
    assert again.dtype == np.float64
    assert np.array_equal(again, released)
    write_patches(tmp_path / "small.npy", boxes / 7, (64, 64))
    small = np.load(tmp_path / "small.npy")
    assert np.allclose(small[..., :4], released[..., :4], atol=1e-4)
    assert np.unique(small[..., 4]).tolist() == [-1]
    found = find(plain(), networks.pictures(2), f"file:path={tmp_path / 'train.npy'}", 4, rows=[2, 0])
    assert torch.allclose(found, torch.tensor([50, 100, 162, 212.0]).expand(2, 4, 4) / 14)


def test_the_class_of_a_row_changes_nothing(tmp_path: Path) -> None:
    boxes = torch.tensor([[[50.0, 100, 162, 212]]]).expand(2, 10, 4)
    found = []
    for number, classes in enumerate((None, torch.tensor([3, 4]))):
        write_patches(tmp_path / f"{number}.npy", boxes, (448, 448), classes)
        found.append(find(plain(), networks.pictures(2), f"file:path={tmp_path / f'{number}.npy'}", rows=[0, 1]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a[..., :4], r"has the shape \(3, 10, 4\): \(pictures, boxes, 5\)"),
        (lambda a: a[:2], r"has boxes for 2 pictures, but the data set has 3"),
        (lambda a: np.where(np.arange(5) == 1, 449, a), r"box 0 of image 0 is \[50.0, 100.0, 162.0, 449.0\]"),
        (lambda a: np.where(np.arange(5) == 0, 212, a), r"x1 < x2 and y1 < y2"),
        (lambda a: a * np.nan, r"box 0 of image 0 is \[nan"),
        (lambda a: np.where(np.arange(5) == 4, 1.5, a), r"has a class that is neither an index from 0"),
        (lambda a: a.astype("<c16"), r"holds values of type '<c16'"),
        (lambda a: a.astype(object), r"holds values of type '\|O'"),
    ],
)
def test_a_damaged_file_is_named(change: object, said: str, tmp_path: Path) -> None:
    released = np.zeros((3, 10, 5))
    released[...] = [100, 212, 50, 162, 7]
    np.save(tmp_path / "boxes.npy", change(released), allow_pickle=True)  # type: ignore[operator]
    with pytest.raises(InputError, match=said):
        read_patches(tmp_path / "boxes.npy", 3)


def test_files_that_are_none_or_torn_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "boxes.npy"
    with pytest.raises(InputError, match=r"could not be read \(No such file"):
        read_patches(path)
    content = npy(torch.ones(2, 10, 5), torch.float64)
    for torn, said in (
        (content[:-8], "it is cut off"),
        (content[:20], "damaged"),
        (b"PK\x03\x04", "not a NumPy file"),
    ):
        path.write_bytes(torn)
        with pytest.raises(InputError, match=said):
            read_patches(path)
    np.save(path, np.asfortranarray(np.arange(6).reshape(2, 3).astype("<f4")))
    from xattn.data.npy import read_npy

    assert read_npy(path).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_rows_are_needed_and_must_exist_and_crops_are_refused(file: str) -> None:
    clf, images = plain(), networks.pictures(2)
    with pytest.raises(InputError, match=r"file needs the row of each image"):
        find(clf, images, file, 4)
    with pytest.raises(InputError, match=r"has rows 0 to 4; 0 to 5 were asked for"):
        find(clf, images, file, 4, rows=[0, 5])
    with pytest.raises(InputError, match=r"has 4 boxes per picture; 10 were asked for"):
        find(clf, images, file, rows=[0, 1])
    for resize in (36, 32):  # of the shorter side; the longer one is cropped
        clf.preprocessing = replace(clf.preprocessing, resize=resize)
        with pytest.raises(InputError, match=r"are for whole pictures, but small crops them .* load it with resize=\(32, 32\)"):
            find(clf, images, file, 4, rows=[0, 1])


def test_names_and_settings_are_checked() -> None:
    with pytest.raises(NameUnknownError, match=r"Unknown patch finder 'activations'. Did you mean 'activation'"):
        finders.create("activations")
    wrong = {"file": "needs a path", "activation:overlap=2": r"overlap in \[0, 1\]", "prototype:percentile=100": "below 100"}
    for spec, said in wrong.items():
        with pytest.raises(SettingError, match=said):
            finders.create(spec)
