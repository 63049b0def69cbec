"""Pictures with several birds: what they show, where the birds are, and their folder in VOC's layout."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from xattn.birds import CLASSES, SketchBirds, export_voc, flock, flock_of, masks, render
from xattn.birds.drawing import render_together
from xattn.data.preprocessing import channels_first
from xattn.data.published import open_published
from xattn.errors import InputError


def test_a_flock_has_one_to_three_birds_of_different_kinds_and_is_always_the_same() -> None:
    counts = set()
    for index in range(32):
        found = flock(index)
        counts.add(len(found.birds))
        assert len(set(found.labels)) == len(found.labels)
        assert found.labels[0] == index % 16
        assert found == flock(index)
    assert counts == {1, 2, 3}
    assert flock(3) != flock(3, seed=1) != flock(3, split="validation")


def test_one_bird_is_drawn_as_in_its_scene() -> None:
    scene = SketchBirds("test", 3).scene(2)
    assert render_together([scene]).tobytes() == render(scene).tobytes()


def test_masks_hold_all_that_is_seen_of_each_bird_and_what_others_hide() -> None:
    shown = next(found for found in map(flock, range(64)) if len(found.birds) == 3)
    for number, own in enumerate(shown.masks()):
        assert (own.visible <= own.full).all()
        assert torch.equal(own.full, masks(shown.birds[number]).full)
        if number == 0:  # the surroundings are the first one's
            continue
        others = [bird for place, bird in enumerate(shown.birds) if place != number]
        changed = (channels_first(shown.render()) != channels_first(render_together(others))).any(dim=0)
        assert not (changed & ~own.bird).any()


def test_the_folder_is_voc_and_names_the_flock_of_each_picture(tmp_path: Path) -> None:
    root = export_voc(tmp_path / "birds", train=48, validation=4)
    train, val = (open_published("voc", root, split) for split in ("train", "val"))
    assert train.classes == tuple(sorted(CLASSES))
    assert (len(train.files), len(val.files)) == (48, 4)
    kinds, targets = tuple(CLASSES), torch.tensor(train.targets)
    assert set(targets.unique().tolist()) == {-1, 0, 1}
    for path, target in zip(train.paths, targets, strict=True):
        shown = flock_of(path)
        assert shown is not None
        seen = {train.classes[k] for k in target.nonzero()[:, 0].tolist()}
        assert seen <= {kinds[label] for label in shown.labels}
        objects = ElementTree.parse(root / "Annotations" / f"{path.stem}.xml").findall("object")
        assert {item.findtext("name") for item in objects} == seen
        found = dict(zip(shown.labels, shown.masks(), strict=True))
        for item in objects:
            mask = found[kinds.index(str(item.findtext("name")))].bird
            left, top, right, bottom = (int(str(item.findtext(f"bndbox/{side}"))) for side in ("xmin", "ymin", "xmax", "ymax"))
            assert mask[top - 1 : bottom, left - 1 : right].sum() == mask.sum()
            assert all(edge.any() for edge in (mask[top - 1], mask[bottom - 1], mask[:, left - 1], mask[:, right - 1]))
    for number, kind in enumerate(train.classes):
        rows = [line.split()[1] for line in (root / "ImageSets" / "Main" / f"{kind}_train.txt").read_text().splitlines()]
        assert [{"1": 1, "0": -1, "-1": 0}[entry] for entry in rows] == targets[:, number].tolist()
    with pytest.raises(InputError, match="contains other pictures, such as train_000040"):
        export_voc(root, train=40, validation=4)
    with pytest.raises(InputError, match="each split needs at least one picture"):
        export_voc(tmp_path / "none", train=0)
    SketchBirds("test", 1).export(tmp_path / "single")
    assert flock_of(next((tmp_path / "single").glob("*/*.png"))) is None
