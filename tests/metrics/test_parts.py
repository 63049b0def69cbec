"""Metrics of known parts, against slow replicas and known answers."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from xattn import metrics as m
from xattn.errors import InputError
from xattn.metrics import KnownParts
from xattn.metrics.parts_base import PartsMetric

PARTS, THINGS, SIDE = 4, 3, 12
CORRELATIONS = ("parts-removal", "parts-shapley")


def areas(count: int) -> Tensor:
    """Seven areas of different sizes that do not overlap, `(count, 7, 12, 12)` bool."""
    found = torch.zeros(PARTS + THINGS, SIDE, SIDE, dtype=torch.bool)
    for number in range(len(found)):
        found[number, number : number + 1, : 4 + number] = True
    return found.expand(count, -1, -1, -1)


@pytest.fixture
def parts() -> KnownParts:
    """Eight pictures with outputs of three classes for every subset; one has a hidden part, one hidden objects and no cue."""
    draw = torch.Generator().manual_seed(5)
    logits = torch.randn(8, 2**PARTS, 3, generator=draw, dtype=torch.float64)
    targets = logits[:, -1].argmax(dim=1)
    targets[7] = (targets[7] + 1) % 3  # what the network does not answer
    where = areas(8).clone()
    where[2, 1] = False
    where[3, PARTS:] = False
    own = logits[torch.arange(8), -1, targets][:, None]
    without = own - torch.randn(8, THINGS, generator=draw, dtype=torch.float64).abs() * torch.tensor([0.01, 1, 1])
    cue = torch.tensor([2, 2, 1, -1, 0, 2, 1, 2])
    rivals = torch.tensor([[1, 2]] * 7 + [[-1, -1]])
    shared = torch.tensor([[True, False, True, False], [False, True, False, True]]).expand(8, -1, -1)
    return KnownParts(where[:, :PARTS], logits, targets, where[:, PARTS:], without, cue, rivals, shared)


@pytest.fixture
def masks() -> Tensor:
    return torch.rand(8, SIDE, SIDE, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def mean_in(mask: Tensor, area: Tensor) -> float:
    inside = [float(value) for value, there in zip(mask.flatten(), area.flatten(), strict=True) if there]
    return sum(inside) / len(inside) if inside else math.nan


class Picture:
    """A slow replica of every metric on one picture."""

    def __init__(self, parts: KnownParts, masks: Tensor, number: int) -> None:
        self.logits, self.target = parts.logits[number], int(parts.targets[number])
        self.values = self.logits[:, self.target].tolist()
        self.visible = [part for part in range(PARTS) if bool(parts.visible[number, part].any())]
        self.in_part = {part: mean_in(masks[number], parts.visible[number, part]) for part in self.visible}
        self.things = [thing for thing in range(THINGS) if bool(parts.objects[number, thing].any())]
        self.in_thing = {thing: mean_in(masks[number], parts.objects[number, thing]) for thing in self.things}
        self.fall = {thing: self.values[-1] - float(parts.without[number, thing]) for thing in self.things}
        self.removal = {part: self.values[-1] - self.values[15 - (1 << part)] for part in range(PARTS)}
        self.cue = int(parts.cue[number])
        self.answers = self.logits.argmax(dim=1).tolist()

    def shapley(self) -> list[float]:
        found = [0.0] * PARTS
        for order in itertools.permutations(range(PARTS)):
            shown = 0
            for part in order:
                found[part] += (self.values[shown | 1 << part] - self.values[shown]) / math.factorial(PARTS)
                shown |= 1 << part
        return found

    def correlation(self, effects: list[float]) -> float:
        return float(spearmanr([self.in_part[part] for part in self.visible], [effects[part] for part in self.visible]).statistic)

    def check(self, *, keeps: bool) -> float:
        if self.answers[-1] != self.target:
            return math.nan
        order = sorted(self.visible, key=lambda part: -self.in_part[part]) + [part for part in range(PARTS) if part not in self.visible]
        held = []
        for k in range(1, PARTS):
            kept = sum(1 << part for part in order[:k])
            held.append(self.answers[kept] == self.target if keeps else self.answers[15 - kept] != self.target)
        return 100 * sum(held) / len(held)

    def spares(self, fall: float) -> bool:
        return fall < 0.05 * abs(self.values[-1])

    def distractibility(self) -> float:
        all_falls = [(self.in_part[part], self.removal[part]) for part in self.visible]
        all_falls += [(self.in_thing[thing], self.fall[thing]) for thing in self.things]
        matters, others = ([mean for mean, fall in all_falls if self.spares(fall) == spared] for spared in (False, True))
        pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in matters for b in others]
        return 100 * sum(pairs) / len(pairs) if pairs else math.nan

    def independence(self) -> float:
        return 100 * sum(self.spares(fall) for fall in self.fall.values()) / len(self.fall) if self.fall else math.nan

    def clever_hans(self) -> float:
        if self.cue not in self.things:
            return math.nan
        right = [(self.in_part[part] > self.in_thing[self.cue]) == (self.removal[part] > self.fall[self.cue]) for part in self.visible]
        return 100 * sum(right) / len(right)


def test_every_metric_of_parts_has_the_value_of_a_slow_replica(parts: KnownParts, masks: Tensor) -> None:
    slow = [Picture(parts, masks, number) for number in range(8)]
    removal = [[each.removal[part] for part in range(PARTS)] for each in slow]
    expected = {
        m.parts_removal: [each.correlation(effects) for each, effects in zip(slow, removal, strict=True)],
        m.parts_shapley: [each.correlation(each.shapley()) for each in slow],
        m.parts_preservation: [each.check(keeps=True) for each in slow],
        m.parts_deletion: [each.check(keeps=False) for each in slow],
        m.distractibility: [each.distractibility() for each in slow],
        m.clever_hans: [each.clever_hans() for each in slow],
    }
    for function, values in expected.items():
        assert function(masks, parts).tolist() == pytest.approx(values, nan_ok=True), function.__name__
        assert len(set(values)) > 2, f"{function.__name__} is nearly the same for all pictures: nothing is tested"
    independence = [each.independence() for each in slow]
    assert m.background_independence(parts).tolist() == pytest.approx(independence, nan_ok=True)
    assert math.isnan(independence[3])


def test_a_map_of_the_true_effects_scores_1_and_100_and_its_opposite_the_lowest(parts: KnownParts) -> None:
    every = torch.cat([parts.visible, parts.objects], dim=1).double()
    whole = parts.values[:, -1:]
    removal = whole - torch.stack([parts.values[:, 15 - (1 << part)] for part in range(PARTS)], dim=1)
    falls = torch.cat([removal, whole - parts.without], dim=1)
    scaled = (falls - falls.amin(dim=1, keepdim=True)) / (falls.amax(dim=1, keepdim=True) - falls.amin(dim=1, keepdim=True))
    for function, best, worst in ((m.parts_removal, 1, -1), (m.distractibility, 100, 0), (m.clever_hans, 100, 0)):
        for values, score in ((scaled, best), (1 - scaled, worst)):
            found = function(torch.einsum("bn,bnhw->bhw", values, every), parts)
            assert found[found.isfinite()].tolist() == pytest.approx([score] * int(found.isfinite().sum()), abs=1e-9)
            assert found.isfinite().sum() >= 6


def test_a_uniform_map_orders_no_parts_and_a_map_of_zeros_has_no_value(parts: KnownParts) -> None:
    uniform, nothing = torch.full((8, SIDE, SIDE), 0.3), torch.zeros(8, SIDE, SIDE)
    for name, entry in m.metrics.entries.items():
        if entry.metadata.kind != "parts" or name in ("background-independence", "target-sensitivity"):
            continue
        function = getattr(m, name.replace("-", "_"))
        assert function(nothing, parts).isnan().all()
        found = function(uniform, parts)
        assert found.isnan().all() if name.startswith("parts-") else set(found[found.isfinite()].tolist()) == {50.0}


def test_a_picture_whose_parts_are_not_known_has_no_value_and_the_others_have_theirs(parts: KnownParts, masks: Tensor) -> None:
    hidden = parts.visible.clone()
    hidden[0] = False
    unknown = KnownParts(hidden, parts.logits, parts.targets, parts.objects, parts.without, parts.cue, parts.rivals, parts.shared)
    for name, entry in m.metrics.entries.items():
        if entry.metadata.kind != "parts":
            continue
        of = m.metrics.create(name).instance
        rivals = torch.stack([masks, masks.flip(2)], dim=1)
        evidence = [m.Evidence(masks, masks, parts=which, rivals=rivals) for which in (parts, unknown)]
        before, after = (of.value(some) for some in evidence)
        assert math.isnan(float(after[0]))
        assert after[1:].tolist() == pytest.approx(before[1:].tolist(), nan_ok=True)
        assert isinstance(of, PartsMetric)
        assert of.reasons(unknown)[0] is not None


def test_reasons_say_why_a_metric_has_no_value_of_any_map(parts: KnownParts, masks: Tensor) -> None:
    for name in ("parts-preservation", "parts-deletion", "clever-hans", "background-independence", "distractibility", "target-sensitivity"):
        of = m.metrics.create(name).instance
        rivals = torch.stack([masks, masks.flip(2)], dim=1)
        values = of.value(m.Evidence(masks, masks, parts=parts, rivals=rivals))
        assert isinstance(of, PartsMetric)
        assert [reason is not None for reason in of.reasons(parts)] == values.isnan().tolist(), name
    assert "does not answer with the target" in str(m.metrics.create("parts-deletion").instance.reasons(parts)[7])  # type: ignore[attr-defined]


def test_maps_for_two_classes_count_where_each_lies_more_on_its_own_parts(parts: KnownParts) -> None:
    shares = parts.visible.double()
    first = shares[:, 0] + shares[:, 2] + 0.1
    second = shares[:, 1] + shares[:, 3] + 0.1
    right = m.target_sensitivity(torch.stack([first, second], dim=1) / 2, parts)
    assert right[:7].tolist() == [100.0] * 7
    assert math.isnan(float(right[7]))  # no rivals
    wrong = m.target_sensitivity(torch.stack([second, first], dim=1) / 2, parts)
    assert wrong[[0, 1, 3, 4, 5, 6]].tolist() == [0.0] * 6
    assert m.target_sensitivity(torch.stack([first, first], dim=1) / 2, parts)[:7].tolist() == [0.0] * 7
    empty = m.target_sensitivity(torch.stack([first / 2, torch.zeros_like(first)], dim=1), parts)
    assert empty[:7].tolist() == [50.0] * 7


def test_effects_that_differ_by_rounding_alone_are_ties(parts: KnownParts, masks: Tensor) -> None:
    noise = torch.rand(parts.logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    level = KnownParts(parts.visible, 5 + 1e-6 * noise, parts.targets)
    assert m.parts_removal(masks, level).isnan().all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda parts, masks: KnownParts(parts.visible, parts.logits[:, :8], parts.targets), "logits \\(batch, 2 to the power of parts"),
        (lambda parts, masks: KnownParts(parts.visible, parts.logits, parts.targets[:3]), "one of their tensors has another length"),
        (lambda parts, masks: m.parts_removal(masks[:, :4], parts), "of the same size"),
        (lambda parts, masks: m.parts_removal(3 * masks, parts), "masks lie in \\[0, 1\\]"),
        (lambda parts, masks: m.clever_hans(masks, KnownParts(parts.visible, parts.logits, parts.targets)), "needs the objects"),
        (lambda parts, masks: m.target_sensitivity(masks, parts), "of two classes; got"),
        (lambda parts, masks: m.parts_deletion(masks, None), "takes xattn.metrics.KnownParts, for birds from .*; got none"),
        (lambda parts, masks: m.background_independence(masks), "KnownParts, for birds from .*; got Tensor"),
    ],
)
def test_what_does_not_go_together_is_said(wrong, said: str, parts: KnownParts, masks: Tensor) -> None:
    with pytest.raises(InputError, match=said):
        wrong(parts, masks)


@pytest.mark.parametrize("of", ["logits", "without"])
def test_an_output_that_is_not_finite_gives_no_metric_a_value(of: str, parts: KnownParts, masks: Tensor) -> None:
    broken = getattr(parts, of).clone()
    broken[0, 1] = math.nan
    known = dataclasses.replace(parts, **{of: broken})
    assert known.known.tolist() == [False, *parts.known.tolist()[1:]]
    assert math.isnan(float(m.background_independence(known)[0]))
    for function in (m.parts_removal, m.parts_preservation, m.parts_deletion, m.distractibility, m.clever_hans):
        assert math.isnan(float(function(masks, known)[0]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"visible": torch.ones(8)}, r"known parts are visible \(batch, parts, height, width\)"),
        ({"without": torch.zeros(8, 1)}, r"objects are \(batch, objects, height, width\)"),
        ({"objects": torch.ones(8, THINGS, 3, 3, dtype=torch.bool)}, r"objects are .* at the size of the parts"),
        ({"without": None}, "give both, or neither"),
        ({"cue": torch.full((8,), 5)}, "a cue is the number of one of the 3 objects"),
        ({"rivals": torch.full((8, 2), 99)}, "rivals are indices of the 3 classes"),
    ],
)
def test_known_parts_that_do_not_fit_are_refused(changed: dict[str, Tensor], said: str, parts: KnownParts) -> None:
    with pytest.raises(InputError, match=said):
        dataclasses.replace(parts, **changed)
