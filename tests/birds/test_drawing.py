"""Pictures and masks: what changes when a part goes, and where."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from xattn.birds import PARTS, Scene, masks, pixels, scene, subsets
from xattn.birds.drawing import SIDE
from xattn.errors import InputError

MAGENTA = (255, 0, 255)
SCENES = [scene(number, split="test") for number in range(24)]


def _changed(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one != other).any(dim=0)


def _plain(shown: Scene) -> Scene:
    """The same without clutter and in full light, where nothing is lost to rounding."""
    return Scene(shown.label, shown.pose, shown.looks, shown.plumage, shown.habitat, shown.background)


@pytest.mark.parametrize("part", PARTS)
def test_removing_a_part_changes_no_pixel_outside_its_visible_mask(part: str) -> None:
    for shown in SCENES:
        seen = masks(shown).visible[PARTS.index(part)]
        assert not (_changed(pixels(shown), pixels(shown, remove=[part])) & ~seen).any()


@pytest.mark.parametrize("part", PARTS)
def test_removing_a_part_changes_every_pixel_of_its_visible_mask_before_a_plain_ground(part: str) -> None:
    changed = total = 0
    for shown in SCENES:
        bare = _plain(shown)
        seen = masks(bare).visible[PARTS.index(part)]
        found = _changed(pixels(bare, background=MAGENTA), pixels(bare, [part], MAGENTA))
        assert not (found & ~seen).any()
        changed, total = changed + int((found & seen).sum()), total + int(seen.sum())
    assert changed >= 0.995 * total  # a sixteenth of a pixel may round away over what lies beneath in a like colour


def test_the_full_mask_holds_the_visible_one_and_what_is_hidden_comes_to_light_when_what_hides_it_goes() -> None:
    hidden = 0
    for shown in SCENES:
        found = masks(shown)
        assert not (found.visible & ~found.full).any()
        bare = masks(_plain(shown).without(*(part for part in PARTS if part != "tail")))
        assert torch.equal(bare.full[PARTS.index("tail")], found.full[PARTS.index("tail")])
        hidden += int((found.full & ~found.visible).sum())
    assert hidden > 0


def test_a_part_that_is_absent_has_no_mask_and_removing_it_changes_nothing() -> None:
    shown = SCENES[3].without("crest")
    assert not masks(shown).visible[0].any()
    assert not masks(shown).full[0].any()
    assert torch.equal(pixels(shown), pixels(shown, remove=["crest"]))
    assert torch.equal(pixels(SCENES[3], remove=["crest"]), pixels(shown))


def test_the_cue_and_the_clutter_are_where_the_picture_changes_without_them() -> None:
    for number in range(12):
        shown = scene(number, split="test", spurious=1.0)
        found = masks(shown)
        without_cue = replace(shown, clutter=shown.clutter[:-1])
        changed = _changed(pixels(shown), pixels(without_cue))
        assert not (changed & ~found.cue).any()
        assert (changed & found.cue).sum() > 0.9 * found.cue.sum()
        changed = _changed(pixels(without_cue), pixels(replace(shown, clutter=())))
        assert not (changed & ~masks(without_cue).clutter).any()
        assert changed.any()


def test_the_bird_is_all_that_is_not_ground_before_a_plain_ground() -> None:
    for shown in SCENES[:6]:
        bare = _plain(shown)
        ground = torch.tensor(MAGENTA, dtype=torch.uint8).view(3, 1, 1)
        assert torch.equal((pixels(bare, background=MAGENTA) != ground).any(dim=0), masks(bare).bird)


def test_subsets_are_the_renders_with_those_parts() -> None:
    shown = SCENES[1]
    made = subsets(shown)
    assert made.shape == (32, 3, SIDE, SIDE)
    for number in (0, 1, 6, 21, 31):
        left_out = [part for place, part in enumerate(PARTS) if not number >> place & 1]
        assert torch.equal(made[number], pixels(shown, remove=left_out))


def test_a_part_is_found_by_name() -> None:
    with pytest.raises(InputError, match="no 'claws'"):
        pixels(SCENES[0], remove=["claws"])


def _digest() -> str:
    digest = hashlib.sha256()
    for number in range(8):
        digest.update(pixels(scene(number, spurious=0.5)).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("threads", ["1", "3"])
def test_pixels_are_the_same_in_another_process_with_another_number_of_threads(threads: str) -> None:
    code = "import sys; sys.path.insert(0, 'tests/birds'); from test_drawing import _digest; print(_digest())"
    environment = {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PATH": ""}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert made.stdout.strip() == _digest()


def test_pixels_are_those_that_the_shipped_classifiers_were_trained_on() -> None:
    with Image.open(Path(__file__).parents[2] / "benchmarks" / "results" / "papers" / "birds.png") as sheet:
        drawn = pil_to_tensor(sheet)[:, ::2, ::2].short()  # two rows of sixteen, each pixel twice
    made = torch.cat(
        [torch.cat([pixels(scene(16 * row + place, split="test")) for place in range(16)], dim=2) for row in range(2)], dim=1
    ).short()
    assert ((made - drawn).abs() > 2).double().mean() < 0.0005, "the drawing has changed: run benchmarks/train_birds.py and birds.py again"
