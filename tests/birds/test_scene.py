"""Classes, scenes and the sets of parts that tell a class."""

from __future__ import annotations

import itertools

import pytest

from xattn.birds import CLASSES, PARTS, Scene, scene, sufficient
from xattn.birds.scene import CUES, SPLITS, VARIANTS
from xattn.errors import InputError

CODES = list(CLASSES.values())


def _apart(one: tuple[int, ...], other: tuple[int, ...]) -> list[int]:
    return [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


def test_each_part_is_the_only_evidence_between_one_pair_of_classes_and_all_other_pairs_differ_in_two_or_more() -> None:
    apart = [_apart(one, other) for one, other in itertools.combinations(CODES, 2)]
    assert sorted(places for places in apart if len(places) == 1) == [[0], [1], [2], [3], [4]]
    assert sum(len(places) >= 2 for places in apart) == len(apart) - 5
    assert any(len(places) == 3 for places in apart)


def test_every_variant_occurs_and_no_part_has_one_colour_twice() -> None:
    for place, part in enumerate(PARTS):
        assert {code[place] for code in CODES} == set(range(len(VARIANTS[part])))
        assert len({colour for _, colour in VARIANTS[part]}) == len({shape for shape, _ in VARIANTS[part]}) == len(VARIANTS[part])


@pytest.mark.parametrize("label", range(len(CODES)))
def test_a_set_of_parts_is_sufficient_exactly_if_no_other_class_looks_the_same_in_it(label: int) -> None:
    minimal = sufficient(label)
    for count in range(len(PARTS) + 1):
        for chosen in itertools.combinations(range(len(PARTS)), count):
            alike = [code for code in CODES if all(code[place] == CODES[label][place] for place in chosen)]
            contains_one = any({PARTS[place] for place in chosen} >= set(some) for some in minimal)
            assert (len(alike) == 1) == contains_one
    assert not any(a < b for a, b in itertools.permutations(minimal, 2))


def test_a_class_of_a_close_pair_cannot_do_without_the_part_that_differs() -> None:
    for pair, part in enumerate(PARTS):
        for label in (2 * pair, 2 * pair + 1):
            assert all(part in some for some in sufficient(label))


def test_a_scene_is_a_pure_function_of_seed_split_and_number_and_differs_with_each() -> None:
    assert scene(5) == scene(5)
    others = [scene(21), scene(5, split="test"), scene(5, seed=1), scene(5, spurious=0.5), scene(5, hard=True)]
    assert all(other != scene(5) for other in others)


def test_birds_lack_parts_and_clutter_in_training_alone_and_every_subset_of_the_parts_comes_up() -> None:
    whole = [scene(number, split=split) for split in SPLITS[1:] for number in range(50)]
    assert all(not shown.absent for shown in whole)
    trained = [scene(number) for number in range(4000)]
    assert len({shown.absent for shown in trained}) == 32
    mean = [sum(len(shown.clutter) for shown in some) / len(some) for some in (trained, whole)]
    assert mean[0] < 0.8 * mean[1]


def test_clutter_has_all_colours_whatever_the_class() -> None:
    by_class: dict[int, list[str]] = {}
    for number in range(3200):
        shown = scene(number, split="test")
        by_class.setdefault(shown.label, []).extend(thing.colour for thing in shown.clutter)
    for colours in by_class.values():
        assert all(0.07 < colours.count(colour) / len(colours) < 0.18 for colour in set(colours))
        assert len(set(colours)) == 8


def test_the_cue_is_that_of_the_class_in_the_given_share_of_pictures() -> None:
    def share(spurious: float) -> float:
        shown = [scene(number, spurious=spurious) for number in range(800)]
        return sum(one.cue == one.label for one in shown) / len(shown)

    assert share(1.0) == 1
    assert share(0.0) == 0
    assert share(0.7) == pytest.approx(0.7, abs=0.05)
    assert len(CUES) == len(set(CUES)) == len(CODES)
    assert scene(0).cue is None


def test_a_name_that_is_no_part_and_a_split_that_is_none_are_told() -> None:
    with pytest.raises(InputError, match="no 'nose'. Parts: crest, beak, wing, tail, legs"):
        scene(0).without("nose")
    with pytest.raises(InputError, match="not one of train, validation, test"):
        scene(0, split="val")  # type: ignore[arg-type]  # what a user might write


def test_without_adds_to_what_a_bird_lacks() -> None:
    shown: Scene = scene(0, split="test").without("wing").without("legs")
    assert shown.present == ("crest", "beak", "tail")
