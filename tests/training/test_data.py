"""Training data in every layout that is taken, its splits and its augmentation."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import pytest
import scipy.io
import torch
from PIL import Image
from torch.utils.data import Dataset

from tests.training.conftest import paint
from xattn.birds import SketchBirds, pixels
from xattn.errors import InputError, NameUnknownError
from xattn.models import Preprocessing
from xattn.training import open_data
from xattn.training.data import Crops, EpochOrder, held_out, splits

SMALL = Preprocessing(input_size=(32, 32), resize=36)


def picture(path: Path, colour: tuple[int, int, int] = (10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(path)


@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_a_class(painted: Path, relative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(painted.parent)
    data = open_data("painted" if relative else painted)
    assert data.names == ("blue", "green", "red")
    assert data.targets == (0,) * 12 + (1,) * 12 + (2,) * 12
    assert data.pictures.picture(13).size == (40, 40)


def test_an_empty_class_folder_and_no_folders_are_told(painted: Path, tmp_path: Path) -> None:
    (painted / "yellow").mkdir()
    with pytest.raises(InputError, match=r"1 class folders of .* have no pictures: yellow. Fill or remove them"):
        open_data(painted)
    with pytest.raises(InputError, match="needs one folder per class, for at least two classes; it has none"):
        open_data(painted / "red")
    with pytest.raises(InputError, match=r"is not a folder, not a CSV, and not one of cifar-fs:ROOT, cifar10:ROOT, .* cub:ROOT"):
        open_data(tmp_path / "nowhere")


def test_folders_called_by_wordnet_ids_are_imagenet_s_classes(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n03394916", "n15075141"):
        picture(tmp_path / wnid / "a.png")
    data = open_data(tmp_path, "wnid")
    assert data.names is None
    assert data.targets == (0, 566, 999)  # tench, French horn, toilet tissue
    picture(tmp_path / "n00000000" / "a.png")
    with pytest.raises(NameUnknownError, match="Unknown ImageNet class"):
        open_data(tmp_path, "wnid")


def test_a_csv_with_names_or_indices(painted: Path, tmp_path: Path) -> None:
    rows = [(f"painted/{name}/{number:02d}.png", name) for name in ("red", "blue") for number in range(2)]
    path = tmp_path / "names.csv"
    path.write_text("image,label\n" + "".join(f"{image},{label}\n" for image, label in rows))
    data = open_data(path)
    assert data.names == ("blue", "red")
    assert data.targets == (1, 1, 0, 0)
    path.write_text("image,label\npainted/red/00.png,7\npainted/red/01.png,0\n")
    data = open_data(path)
    assert data.names is None
    assert data.targets == (7, 0)
    path.write_text("image,label\npainted/red/00.png,\n")
    with pytest.raises(InputError, match=r"has no label for painted/red/00.png"):
        open_data(path)


def test_cub_as_it_is_published_without_its_test_split(tmp_path: Path) -> None:
    files = ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auklet/c.jpg"]
    for file in files:
        picture(tmp_path / "images" / file)
    (tmp_path / "images.txt").write_text("".join(f"{n} {file}\n" for n, file in enumerate(files, 1)))
    (tmp_path / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n")
    (tmp_path / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n")
    with pytest.raises(InputError, match=r"needs .*classes.txt, as in CUB_200_2011"):
        open_data(f"cub:{tmp_path}")
    (tmp_path / "classes.txt").write_text("1 001.Albatross\n2 002.Auklet\n")
    data = open_data(f"cub:{tmp_path}")
    assert data.names == ("001.Albatross", "002.Auklet")
    assert data.targets == (0, 1)
    assert [data.pictures.called(number).rpartition("/")[2] for number in range(2)] == ["a.jpg", "c.jpg"]


def test_fgvc_aircraft_has_a_validation_split_of_its_own(tmp_path: Path) -> None:
    root = tmp_path / "fgvc-aircraft-2013b" / "data"
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        for name in names:
            picture(root / "images" / f"{name}.jpg")
        (root / f"images_variant_{split}.txt").write_text("".join(f"{name} {'707-320' if name < 'b' else 'A300'}\n" for name in names))
    (root / "variants.txt").write_text("707-320\nA300\n")
    data = open_data(f"fgvc-aircraft:{tmp_path}")
    assert data.names == ("707-320", "A300")
    assert data.targets == (0, 1)
    assert data.validation is not None
    assert data.validation.targets == (1,)
    assert data.pictures.picture(0).mode == "RGB"


def test_stanford_cars_and_oxford_pets_as_they_are_published(tmp_path: Path) -> None:
    cars = tmp_path / "stanford_cars"
    for name in ("00001.jpg", "00002.jpg"):
        picture(cars / "cars_train" / name)
    (cars / "devkit").mkdir()
    annotations = [{"fname": "00001.jpg", "class": 2}, {"fname": "00002.jpg", "class": 1}]
    scipy.io.savemat(cars / "devkit" / "cars_train_annos.mat", {"annotations": annotations})
    scipy.io.savemat(cars / "devkit" / "cars_meta.mat", {"class_names": ["Acura", "Dodge"]})
    data = open_data(f"stanford-cars:{tmp_path}")
    assert (data.names, data.targets) == (("Acura", "Dodge"), (1, 0))
    pets = tmp_path / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "beagle_1"):
        picture(pets / "images" / f"{name}.jpg")
    (pets / "annotations").mkdir()
    (pets / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_1 2 2 1\n")
    data = open_data(f"oxford-pets:{tmp_path}")
    assert (data.names, data.targets) == (("Abyssinian", "Beagle"), (0, 1))
    with pytest.raises(InputError, match=r"oxford-pets:/nowhere could not be opened \(.*torchvision.datasets says"):
        open_data("oxford-pets:/nowhere")


def test_cifar_as_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    for number in range(1, 6):
        with open(root / f"data_batch_{number}", "wb") as file:
            pickle.dump({"data": torch.zeros(2, 3072, dtype=torch.uint8).numpy(), "labels": [number, 0]}, file)
    with open(root / "batches.meta", "wb") as file:
        pickle.dump({"label_names": [f"class {k}" for k in range(10)]}, file)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = open_data(f"cifar10:{tmp_path}")
    assert len(data) == 10
    assert data.targets[:2] == (1, 0)
    assert data.pictures.picture(0).size == (32, 32)
    assert data.names == tuple(f"class {k}" for k in range(10))


def test_data_go_into_workers_that_are_spawned(painted: Path) -> None:
    crops = Crops(open_data(painted), SMALL, 0.3, seed=1)
    copied = pickle.loads(pickle.dumps(crops))
    assert torch.equal(copied[1, 5][0], crops[1, 5][0])


def test_a_share_of_each_class_is_held_out_by_the_seed() -> None:
    targets = [0] * 20 + [1] * 10 + [2] * 2 + [3]
    kept, out = held_out(targets, 0.1, seed=3)
    assert sorted(kept + out) == list(range(33))
    assert [sum(targets[number] == k for number in out) for k in range(4)] == [2, 1, 1, 0]  # a class of one keeps it
    assert held_out(targets, 0.1, seed=3) == (kept, out)
    assert held_out(targets, 0.1, seed=4) != (kept, out)


def test_augmentation_is_keyed_by_seed_epoch_and_number(tmp_path: Path) -> None:
    data = open_data(paint(tmp_path / "painted", count=2))
    crops = Crops(data, SMALL, 0.3, seed=1)
    state = torch.random.get_rng_state()
    one = crops[2, 3][0]
    torch.rand(5)
    assert torch.equal(crops[2, 3][0], one)
    assert not torch.equal(crops[3, 3][0], one)
    assert not torch.equal(Crops(data, SMALL, 0.3, seed=2)[2, 3][0], one)
    assert one.dtype == torch.uint8
    assert one.shape == (3, 32, 32)
    torch.random.set_rng_state(state)
    plain = Crops(data, SMALL, None, seed=1)[3]
    assert torch.equal(plain[0], SMALL.crop(data.pictures.picture(3)))
    assert plain[1] == data.targets[3]


def test_the_order_is_that_of_the_epoch() -> None:
    epoch = 0
    order = EpochOrder([5, 6, 7, 8, 9, 10], 0, lambda: epoch)
    first = list(order)
    assert list(order) == first
    assert sorted(number for _, number in first) == [5, 6, 7, 8, 9, 10]
    epoch = 1
    second = list(order)
    assert {e for e, _ in second} == {1}
    assert [number for _, number in second] != [number for _, number in first]


def test_wordnet_ids_are_those_of_the_data_s_own_list(data: Path) -> None:
    found = open_data(data / "imagenette" / "val", "wnid")
    with open(data / "imagenet_classes.csv", encoding="utf-8") as file:
        index = {row["wnid"]: int(row["index"]) for row in csv.DictReader(file)}
    assert [found.targets[number] for number in range(len(found))] == [
        index[Path(found.pictures.called(n)).parent.name] for n in range(len(found))
    ]


def test_a_torch_data_set_with_classes_and_targets_is_trained_on_as_it_is() -> None:
    birds = SketchBirds("train", 40, seed=2)
    data = open_data(birds)
    assert data.names == birds.classes
    assert data.targets == birds.targets
    assert data.pictures.picture(3).tobytes() == birds[3][0].tobytes()
    assert data.name == "SketchBirds(train, 40, seed=2, spurious=None)"


def test_a_data_set_that_cannot_be_trained_on_is_told_and_one_without_a_name_is_called_by_its_type() -> None:
    class Plain(Dataset[Any]):
        classes = ("a", "b")
        targets = (0, 1)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(3, 8, 8), index

    assert " at 0x" not in open_data(Plain()).name
    assert open_data(Plain()).name.endswith("Plain")
    with pytest.raises(InputError, match="is a Tensor; training needs PIL pictures"):
        open_data(Plain()).pictures.picture(0)
    with pytest.raises(InputError, match="TensorDataset lacks classes"):
        open_data(torch.utils.data.TensorDataset(torch.zeros(2)))
    Plain.targets = ()  # type: ignore[assignment]
    with pytest.raises(InputError, match="Plain has no pictures: training needs some"):
        open_data(Plain())


def test_without_a_smallest_crop_training_pictures_are_the_classifiers_own_crop() -> None:
    data = open_data(SketchBirds("train", 32))
    training, numbers, _ = splits(data, Preprocessing((64, 64), 64), 0.5, None, 0)
    crop, label = training[(3, numbers[0])]
    assert torch.equal(crop, pixels(SketchBirds("train", 32).scene(numbers[0])))
    assert label == numbers[0] % 16


def plain_crops(painted: Path, **options: Any) -> tuple[Crops, Crops]:
    data = open_data(painted)
    return Crops(data, SMALL, None, 3, **options), Crops(data, SMALL, None, 3)


@pytest.mark.parametrize("grid", [4, 3])
def test_deletion_takes_one_patch_of_half_of_the_pictures_to_the_mean_colour(painted: Path, grid: int) -> None:
    changed, whole = plain_crops(painted, deletion_grid=grid)
    colour = torch.tensor([round(255 * value) for value in SMALL.mean]).view(3, 1, 1)
    edges = [32 * k // grid for k in range(grid + 1)]
    seen, kept = set(), 0
    for epoch in range(30):
        for number in range(len(whole)):
            (found, label), (before, _) = changed[epoch, number], whole[epoch, number]
            assert label == number // 12
            gone = (found != before).any(dim=0).nonzero()
            if not len(gone):
                kept += 1
                continue
            row, column = (next(k for k in range(grid) if edges[k] <= at < edges[k + 1]) for at in gone[0].tolist())
            area = (slice(edges[row], edges[row + 1]), slice(edges[column], edges[column + 1]))
            assert bool((found[:, *area] == colour).all())
            outside = torch.ones(32, 32, dtype=torch.bool)
            outside[area] = False
            assert torch.equal(found[:, outside], before[:, outside])
            seen.add((row, column))
    assert len(seen) == grid**2  # every patch
    assert 0.45 < kept / (30 * len(whole)) < 0.55


def test_a_deletion_depends_on_seed_epoch_and_number_alone_and_never_on_the_crop(painted: Path) -> None:
    changed, _ = plain_crops(painted, deletion_grid=4)
    again, _ = plain_crops(painted, deletion_grid=4)
    one = [changed[epoch, 5][0] for epoch in range(8)]
    assert all(torch.equal(a, again[epoch, 5][0]) for epoch, a in reversed(list(enumerate(one))))
    assert len({tuple(crop.flatten().tolist()) for crop in one}) > 2
    cropped, without = (Crops(open_data(painted), SMALL, 0.5, 3, deletion_grid=grid) for grid in (4, None))
    for epoch, plain in enumerate(one):  # the same patch, whatever the crop
        gone = (cropped[epoch, 5][0] != without[epoch, 5][0]).any(dim=0)
        expected = (plain != Crops(open_data(painted), SMALL, None, 3)[epoch, 5][0]).any(dim=0)
        assert bool(gone.any()) == bool(expected.any())


def test_validation_pictures_keep_their_patches(painted: Path) -> None:
    data = open_data(painted)
    training, numbers, validation = splits(data, SMALL, 0.25, None, 0, deletion_grid=4)
    whole = Crops(data, SMALL, None, 0)
    held = sorted(set(range(len(data))) - set(numbers))
    assert all(torch.equal(validation[k][0], whole[number][0]) for k, number in enumerate(held))
    assert any(not torch.equal(training[1, number][0], whole[1, number][0]) for number in numbers)


def test_a_grid_finer_than_the_crop_is_refused(painted: Path) -> None:
    with pytest.raises(InputError, match="an image of 32 × 32 pixels has no 40 × 40 patches: choose a smaller grid"):
        Crops(open_data(painted), SMALL, None, 0, deletion_grid=40)


def test_padded_crops_are_the_own_crop_moved_by_at_most_the_padding_and_flipped_half_of_the_time(painted: Path) -> None:
    data = open_data(painted)
    crops, whole = Crops(data, SMALL, None, 3, padding=2), Crops(data, SMALL, None, 3)
    moved, flips = set(), 0
    for epoch in range(40):
        found, own = crops[epoch, 5][0], whole[5][0].float()
        padded = torch.nn.functional.pad(own[None], (2, 2, 2, 2), mode="replicate")[0].byte()
        places = [
            (down, across, flip)
            for down in range(5)
            for across in range(5)
            for flip in (False, True)
            if torch.equal(padded[:, down : down + 32, across : across + 32].flip([2] if flip else []), found)
        ]
        assert len(places) == 1
        moved.add(places[0][:2])
        flips += places[0][2]
        assert torch.equal(crops[epoch, 5][0], found)
    assert len(moved) > 10
    assert 10 < flips < 30


def test_erasing_takes_a_rectangle_of_a_share_of_the_crops_to_the_mean_colour_after_the_crop(painted: Path) -> None:
    data = open_data(painted)
    colour = torch.tensor([round(255 * value) for value in SMALL.mean]).view(3, 1, 1)
    erased = 0
    for options in ({"smallest": None}, {"smallest": 0.5}, {"smallest": None, "padding": 2}):
        changed, plain = Crops(data, SMALL, seed=3, erasing=0.5, **options), Crops(data, SMALL, seed=3, **options)
        for epoch in range(20):
            for number in (0, 13):
                found, before = changed[epoch, number][0], plain[epoch, number][0]
                gone = (found != before).any(dim=0)
                if not bool(gone.any()):
                    continue
                erased += 1
                rows, columns = gone.any(dim=1).nonzero(), gone.any(dim=0).nonzero()
                area = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
                assert bool((found[:, *area] == colour).all())  # a whole rectangle
                assert int(gone[area].numel()) <= 0.45 * 32 * 32
    assert 40 < erased < 80
    _, _, validation = splits(data, SMALL, 0.25, None, 0, padding=2, erasing=1.0)
    assert torch.equal(validation[0][0], Crops(data, SMALL, None, 0)[validation.indices[0]][0])  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="do not apply to pictures with label maps: leave out erasing=0.5"):
        splits(data, SMALL, 0.25, None, 0, per_pixel=True, erasing=0.5)
    with pytest.raises(InputError, match="padding=1000000000 must be below the shorter side of the network's crop, 32 pixels"):
        splits(data, SMALL, 0.25, None, 0, padding=10**9)
