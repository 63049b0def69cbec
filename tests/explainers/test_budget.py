"""Maps from a share of their passes: what is predicted, how well, and how far off it says that it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import xattn
from tests import networks
from tests.explainers.test_replicas import double
from xattn.errors import SettingError
from xattn.explainers import methods, trace
from xattn.explainers.gaussian_process import rectified_error
from xattn.explainers.occlusion import Occlusion, _hidden, _windows
from xattn.explainers.reasons import DOUBTFUL, log_doubts
from xattn.explainers.regression import DRAWN, FEWEST, Budget, Estimate, Masks, estimates, expected_similarity
from xattn.models import Classifier


def smooth(count: int = 160, seed: int = 0) -> tuple[Masks, Tensor]:
    """Masks of 3 × 3 cells, and latent values that are a smooth function of them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, 9, generator=generator, dtype=torch.float64)
    effects = torch.rand(count, 9, generator=generator, dtype=torch.float64)
    weights = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    return Masks(inputs, effects), 2 * torch.sin(inputs @ weights).sum(dim=1) - 1


def estimate(masks: Masks, latents: Tensor, budget: Budget, response=torch.sigmoid, seed: int = 0) -> Estimate:
    return estimates([masks], lambda wanted: [latents[numbers] for numbers in wanted], response, budget, [seed])[0]


def test_a_linear_function_of_the_mask_is_known_from_few_passes() -> None:
    masks, _ = smooth()
    latents = masks.inputs @ torch.arange(9).double() - 3
    found = estimate(masks, latents, Budget(0.15), torch.clone)
    assert found.passes == 24
    assert (found.responses - latents).abs().max() < 5e-3 * latents.std()


def test_what_was_run_is_not_predicted() -> None:
    masks, latents = smooth()
    asked: list[int] = []

    def ask(wanted: list[list[int]]) -> list[Tensor]:
        asked.extend(wanted[0])
        return [latents[wanted[0]]]

    found = estimates([masks], ask, torch.sigmoid, Budget(0.2))[0]
    assert len(set(asked)) == len(asked) == found.passes == 32
    torch.testing.assert_close(found.responses[asked], latents.sigmoid()[asked], rtol=1e-9, atol=0)
    whole = estimate(masks, latents, Budget(1.0))
    assert torch.equal(whole.responses, latents.sigmoid())
    assert not whole.error.any()


def test_the_errors_cover_the_map_of_all_passes() -> None:
    inside = []
    for seed in range(12):
        masks, latents = smooth(seed=seed)
        latents = latents + 0.3 * torch.randn(160, generator=torch.Generator().manual_seed(seed)).double()  # no function of the mask
        found = estimate(masks, latents, Budget(0.2))
        off = (found.responses - latents.sigmoid()) @ masks.effects
        inside.append((off.abs() <= 1.96 * found.error).double().mean())
        assert found.error.mean() < 0.13 * (latents.sigmoid() @ masks.effects).mean()
    assert torch.stack(inside).mean() > 0.9


def test_a_tolerance_ends_the_passes_once_the_map_is_known_so_well() -> None:
    masks, latents = smooth()
    passes = [estimate(masks, latents, Budget(1.0, tolerance)).passes for tolerance in (0.2, 0.02, 1e-9)]
    assert FEWEST <= passes[0] < passes[1] < passes[2] == 160
    cells = latents.sigmoid() @ masks.effects
    found = estimate(masks, latents, Budget(1.0, 0.02))
    assert ((found.responses @ masks.effects - cells).pow(2).mean().sqrt() / (cells.max() - cells.min())) < 0.04


def test_equal_responses_and_masks_have_no_error_to_speak_of() -> None:
    masks, _ = smooth()
    found = estimate(masks, torch.full((160,), -2.0).double(), Budget(0.1))
    assert torch.allclose(found.responses, torch.sigmoid(torch.tensor(-2.0)).double().expand(160), atol=1e-4)
    same = Masks(torch.ones(40, 4).double(), torch.ones(40, 4).double())
    assert torch.isfinite(estimate(same, torch.zeros(40).double(), Budget(0.3)).responses).all()


def test_an_answer_that_is_no_number_leaves_no_map() -> None:
    masks, latents = smooth()
    found = estimate(masks, latents * torch.nan, Budget(0.2))
    assert found.responses.isnan().all()
    assert found.error.isnan().all()
    drawn_after = [True, False]

    def ask(wanted: list[list[int]]) -> list[Tensor]:
        is_number = drawn_after.pop(0) if drawn_after else True
        return [latents[wanted[0]] if is_number else latents[wanted[0]] * torch.nan]

    late = estimates([masks], ask, torch.sigmoid, Budget(0.1, unbiased=True), [0])[0]  # 8 by regression, then 8 that are drawn
    assert late.passes == 16
    assert late.error.isnan().all()


def test_a_rectified_map_has_the_error_of_what_is_left_of_it() -> None:
    mean = torch.linspace(-3, 3, 7).double()
    drawn = mean[:, None] + 0.8 * torch.randn(7, 400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    replica = (drawn.relu() - mean.relu()[:, None]).pow(2).mean(dim=1).sqrt()
    torch.testing.assert_close(rectified_error(mean, torch.full((7,), 0.8).double()), replica, rtol=0.02, atol=2e-3)


def test_what_is_rectified_away_costs_no_passes() -> None:
    taken = {}
    for rectified in (False, True):
        masks, latents = smooth()
        far = torch.arange(160) < 80  # these masks do much, to a cell that stays far below 0, and nothing else
        effects = torch.where(far[:, None], torch.zeros(9).double(), masks.effects)
        effects[:, 0] = torch.where(far, -20.0, 0.0).double()
        asked: list[int] = []

        def ask(wanted: list[list[int]], asked: list[int] = asked, known: Tensor = latents) -> list[Tensor]:
            asked.extend(wanted[0])
            return [known[wanted[0]]]

        found = estimates([Masks(masks.inputs, effects, rectified)], ask, torch.sigmoid, Budget(0.4))[0]
        taken[rectified] = sum(number < 80 for number in asked)
        assert (found.error[0] < 1e-9) == rectified
    assert taken[True] < taken[False] / 2


def test_the_mean_of_unbiased_estimates_is_the_exact_map() -> None:
    masks, latents = smooth()
    latents = latents + torch.randn(160, generator=torch.Generator().manual_seed(0)).double()  # no function of the mask
    exact = latents.sigmoid() @ masks.effects
    found = [estimate(masks, latents, Budget(0.2, unbiased=True), seed=draw) for draw in range(100)]
    maps = torch.stack([one.responses @ masks.effects for one in found])
    error = maps.std(dim=0) / len(found) ** 0.5
    assert {one.passes for one in found} == {32}
    assert ((maps.mean(dim=0) - exact).abs() < 3.5 * error).all()
    biased = estimate(masks, latents, Budget(0.1)).responses @ masks.effects
    assert ((biased - exact).abs() > 3.5 * error).any()  # the same passes by regression alone are off by more than this can tell
    within = torch.stack([((one.responses @ masks.effects - exact).abs() <= 1.96 * one.error).double().mean() for one in found])
    assert within.mean() > 0.93


def test_what_is_drawn_counts_by_its_probability() -> None:
    """A slow replica: how often each mask is drawn, over many draws, is the probability that its residual is divided by."""
    masks, latents = smooth(60)
    plain = estimate(masks, latents, Budget(32 / 60 * DRAWN)).responses
    drawn, weights = torch.zeros(60), [[] for _ in range(60)]
    for seed in range(100):
        responses = estimate(masks, latents, Budget(32 / 60, unbiased=True), seed=seed).responses
        for number in (responses != plain).nonzero()[:, 0].tolist():
            drawn[number] += 1
            weights[number].append(float((responses - plain)[number] / (latents.sigmoid() - plain)[number]))
    for number in drawn.nonzero()[:, 0].tolist():
        assert max(weights[number]) == pytest.approx(min(weights[number]), rel=1e-6)
        assert drawn[number] / 100 == pytest.approx(1 / weights[number][0], abs=0.2)
    assert drawn.sum() == 100 * 16


def test_a_map_that_is_likely_to_be_wrong_is_never_silent(caplog: pytest.LogCaptureFixture) -> None:
    raw = {"score-cam:budget=0.1": torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))}
    logged: set[tuple[str, str]] = set()
    spread = raw["score-cam:budget=0.1"].flatten(1).std(dim=1, correction=0)[:, None, None].expand(2, 4, 4)
    known = spread * torch.tensor([0.0, 0.3])[:, None, None]
    assert expected_similarity(*raw.values(), known).tolist() == pytest.approx([1, (1 / 1.09) ** 0.5], abs=1e-6)
    log_doubts(raw, {"score-cam:budget=0.1": known}, ["a", "b"], "net", logged)
    assert not caplog.records
    for _ in range(2):
        log_doubts(raw, {"score-cam:budget=0.1": known * 2}, ["a", "b"], "net", logged)
    (record,) = caplog.records
    assert (
        "the map of b by score-cam:budget=0.1 on net may differ much from the exact map: its own standard errors give a correlation of "
        "about 0.86" in record.getMessage()
    )
    assert DOUBTFUL > 0.86
    log_doubts(raw, {"score-cam:budget=0.1": known * torch.nan}, ["a", "b"], "net", set())
    assert len(caplog.records) == 1
    log_doubts(raw, {"score-cam:budget=0.1": known * 2}, ["a", "b"], "other", logged)
    assert "on other may differ much" in caplog.records[1].getMessage()  # each network's maps have errors of their own


@pytest.fixture
def classifier() -> Classifier:
    return double(networks.small())


@pytest.fixture
def images() -> Tensor:
    return networks.pictures(3).double()


@pytest.mark.parametrize(("spec", "exact"), [(spec, spec) for spec in ("score-cam", "rise:masks=60,grid=3", "occlusion:window=8,stride=4")])
def test_the_whole_budget_is_the_method_itself(spec: str, exact: str, classifier: Classifier, images: Tensor) -> None:
    traced = trace(classifier, images)
    joint = "," if ":" in spec else ":"
    assert torch.equal(methods.create(f"{spec}{joint}budget=1").instance(traced), methods.create(exact).instance(traced))
    assert not traced.errors
    instance = methods.create(f"{spec}{joint}budget=0.4").instance
    assert instance.exact == methods.create(exact).instance


SPECS = ["score-cam:budget=0.6", "rise:masks=60,grid=3,budget=0.4", "occlusion:window=8,stride=2,budget=0.4"]


@pytest.mark.parametrize("spec", [*SPECS, "occlusion:window=8,stride=2,budget=0.6,unbiased=true"])
def test_a_budget_runs_its_share_and_a_batch_changes_nothing(spec: str, classifier: Classifier, images: Tensor) -> None:
    seen: list[int] = []
    handle = classifier.network.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    maps = xattn.explain(classifier, images, [spec], target=1)
    handle.remove()
    alone = [xattn.explain(classifier, image[None], [spec], target=1) for image in images]
    assert torch.allclose(maps.raw[spec], torch.cat([one.raw[spec] for one in alone]), atol=1e-10)
    assert torch.allclose(maps.errors[spec], torch.cat([one.errors[spec] for one in alone]), atol=1e-8)
    assert maps.errors[spec].shape == maps.raw[spec].shape
    exact = xattn.explain(
        classifier, images, [methods.create(spec).spec.replace("budget=0.6", "budget=1").replace("budget=0.4", "budget=1")], target=1
    )
    (raw,) = exact.raw.values()
    off = (maps.raw[spec] - raw).flatten(1).norm(dim=1) / (raw - raw.mean(dim=(1, 2), keepdim=True)).flatten(1).norm(dim=1)
    assert (off < 0.4).all()


def test_explain_says_once_which_maps_it_doubts(classifier: Classifier, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    few = "occlusion:window=8,stride=2,budget=0.05"
    xattn.explain(classifier, images, [few, "occlusion:window=8,stride=2,budget=0.9"], target=1, batch_size=1)
    (record,) = [record for record in caplog.records if "may differ much from the exact map" in record.getMessage()]
    assert f"by {few} on {classifier.name} may differ much" in record.getMessage()


def test_the_effects_of_windows_add_up_to_the_map_of_occlusion(classifier: Classifier, images: Tensor) -> None:
    traced = trace(classifier, images[:1], target=1)
    asked: list[Tensor] = []
    respond = traced.respond
    traced.respond = lambda *given: asked.append(respond(*given)) or asked[0]  # type: ignore[method-assign]
    raw = Occlusion(window=8, stride=4)(traced)[0]
    lines = _hidden(32, 8, 4)
    masks = _windows(lines, lines, (8, 8))
    whole = traced.target.probability(traced.output).p
    cells = (whole + asked[0] @ masks.effects).view(8, 8)
    torch.testing.assert_close(cells.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1), raw, rtol=1e-9, atol=1e-12)
    assert masks.inputs[8].tolist() == [1, 1]


def test_windows_are_refused_that_a_regression_would_take_hours_for() -> None:
    fine = Occlusion(window=32, stride=1, budget=0.05)
    message = r"at most 10000 windows; got 37249, by a stride of 1 in an image of 224 × 224: give a larger stride, or leave budget and"
    with pytest.raises(SettingError, match=message):
        fine.forwards(512, (224, 224))
    assert fine.exact.forwards(512, (224, 224)) == 37249


def test_the_errors_of_close_windows_are_of_cells_an_eighth_as_wide(classifier: Classifier, images: Tensor) -> None:
    traced = trace(classifier, images[:1, :, :24], target=1)
    found = {}
    for stride in (1, 2):
        instance = Occlusion(window=16, stride=stride, budget=0.5)
        assert torch.allclose(instance(traced), instance.exact(traced), atol=1e-3)
        found[stride] = traced.errors[repr(instance)]
        assert found[stride].shape == (1, 24, 32)
    masks = _windows(_hidden(24, 16, 1), _hidden(32, 16, 1), (12, 16))
    assert torch.allclose(masks.effects.sum(dim=0), -torch.ones(192).double())


def test_rise_predicts_scores_too(classifier: Classifier, images: Tensor) -> None:
    spec = "rise:masks=80,grid=3,response=score"
    maps = xattn.explain(classifier, images, [spec, f"{spec},budget=0.5"], target=1)
    few, full = maps.raw[f"{spec},budget=0.5"], maps.raw[spec]
    assert ((few - full).abs() / full.abs().amax(dim=(1, 2), keepdim=True)).max() < 0.05


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("score-cam:budget=0", "above 0 and at most 1; got budget=0"),
        ("score-cam:budget=1.5", "got budget=1.5"),
        ("score-cam:tolerance=0", "got tolerance=0"),
        ("score-cam:budget=0.1,top=4", "give only one"),
        ("score-cam:budget=0.1,weighting=increase", "got weighting=increase: leave one out"),
        ("score-cam:unbiased=true", "give budget, and leave tolerance out"),
        ("rise:budget=0.1,tolerance=0.1,unbiased=true", "give budget, and leave tolerance out"),
        ("occlusion:tolerance=2", "occlusion's tolerance is an error as a share of the map's range, between 0 and 1; got tolerance=2"),
        ("rise:budget=-1", "got budget=-1"),
        ("rise:masks=20000,budget=0.1", "at most 10000 masks; got masks=20000"),
    ],
)
def test_settings_that_make_no_sense_are_refused(spec: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        methods.create(spec)


def test_a_budget_beyond_what_a_regression_takes_is_refused() -> None:
    masks = Masks(torch.rand(9000, 1).double(), torch.ones(9000, 1).double())
    with pytest.raises(SettingError, match="at most 4000: give a smaller budget"):
        estimates([masks], lambda wanted: [], torch.sigmoid, Budget(0.9))
