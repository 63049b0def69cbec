"""Settings that are given and not used are refused; defaults and presets are not."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import xattn
from tests.training.conftest import fresh
from xattn.cli import main
from xattn.errors import InputError, SettingError
from xattn.training import PRESETS, Recipe, open_data
from xattn.training.checks import check, refuse_unused
from xattn.training.search import search

SGD = Recipe(backbone=True, optimiser="sgd")
UNUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "momentum": ({"momentum": 0.5}, {"optimiser": "sgd"}),
    "nesterov": ({"nesterov": True}, {"optimiser": "sgd"}),
    "step": ({"step": 3}, {"schedule": "step"}),
    "factor": ({"factor": 0.5}, {"schedule": "step"}),
    "power": ({"power": 2.0}, {"schedule": "poly"}),
    "alpha": ({"alpha": 0.2}, {}),
    "temperature": ({"temperature": 4.0}, {}),
    "episodes": ({"episodes": 7}, {}),
    "base_lr": ({"base_lr": 0.1}, {}),
    "head_lr": ({"head_lr": 0.1}, {"backbone": True}),
    "freeze_statistics": ({"freeze_statistics": True}, {"backbone": True}),
}


@pytest.mark.parametrize("name", UNUSED)
def test_a_setting_that_is_given_and_not_used_is_refused_and_one_that_is_used_is_not(name: str) -> None:
    given, used = UNUSED[name]
    for recipe in (Recipe(**given), PRESETS["head"].with_(**given)):
        with pytest.raises(InputError, match=rf"^{name} \(--{name.replace('_', '-')}\) needs .*: leave it out\.$"):
            refuse_unused(recipe, taught=False)
    by_episodes = name in ("episodes", "base_lr")
    refuse_unused(Recipe(**given, **used), taught=name in ("alpha", "temperature"), by_episodes=by_episodes)


def test_settings_of_batches_are_refused_in_a_training_by_episodes() -> None:
    for given in (
        {"batch_size": 8},
        {"validation": 0.2},
        {"dropout": 0.1},
        {"freeze_statistics": True},
        {"ranking": 0.1},
        {"head_lr": 0.1},
    ):
        with pytest.raises(InputError, match=rf"{next(iter(given))} .* needs a training by batches, and this is one by episodes"):
            refuse_unused(PRESETS["few-shot"].with_(**given), taught=False, by_episodes=True)


def test_defaults_and_presets_are_silent_and_the_temperature_is_that_of_answers_that_count() -> None:
    for name, recipe in PRESETS.items():
        assert not recipe.given
        assert not pickle.loads(pickle.dumps(recipe)).given
        refuse_unused(recipe, taught=False, by_episodes=name == "few-shot")
    refuse_unused(PRESETS["voc"].with_(schedule="constant"), taught=False)  # its period came with the preset
    with pytest.raises(InputError, match="base_lr .* needs task few-shot"):
        refuse_unused(PRESETS["few-shot"], taught=False)
    with pytest.raises(InputError, match="temperature .* needs a teacher whose answers count"):
        refuse_unused(Recipe(alpha=1.0, temperature=2.0), taught=True)
    assert Recipe(lr=0.1).given == {"lr"}
    assert PRESETS["full"].with_(lr=3e-4).given == {"lr"}  # also where it is the preset's
    assert Recipe.from_json(Recipe(lr=0.1).to_json()) == Recipe(lr=0.1)
    assert "given" not in Recipe().to_json()


def test_settings_that_the_network_or_the_data_do_not_use_are_refused(painted: Path) -> None:
    data, gap = open_data(painted), fresh("gap")
    own = replace(data, validation=data)
    for recipe, opened, said in (
        (SGD.with_(ranking=0.1), data, r"ranking .* needs a two-stream network \(focus:BACKBONE\), and small is none"),
        (SGD.with_(margin=0.1), data, "margin .* needs a two-stream network"),
        (SGD.with_(head_lr=0.1), data, "head_lr .* needs a head with weights of its own, and gap has none"),
        (SGD.with_(validation=0.2), own, "validation .* needs data without a validation split, and .*painted has one"),
        (SGD.with_(local_lr=0.1), data, "has no local stream"),
    ):
        with pytest.raises(InputError, match=said):
            check(gap, opened, None, recipe, "32-true")
    check(gap, data, None, SGD.with_(validation=0.2, momentum=0.5, freeze_statistics=True), "32-true")
    plain = xattn.attach(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)),
        input_size=32,
        name="plain",
    )
    with pytest.raises(InputError, match="freeze_statistics .* needs a network with BatchNorm, and plain has none"):
        check(plain, data, None, SGD.with_(freeze_statistics=True), "32-true")


@pytest.mark.parametrize(
    "given",
    [
        ["--momentum", "0.9"],
        ["--episodes", "100"],
        ["--base-lr", "0.1"],
        ["--alpha", "0.5"],
        ["--temperature", "1"],
        ["--power", "0.9"],
        ["--factor", "0.1"],
        ["--step", "30"],
        ["--schedule", "step", "--period", "3"],
        ["--head-lr", "0.1", "--preset", "head"],
        ["--freeze-statistics", "--preset", "head"],
    ],
)
def test_on_the_command_line_also_the_default_counts_as_given_and_nothing_is_loaded(given: list[str]) -> None:
    done = CliRunner().invoke(main, ["train", "--model", "nowhere:none", "--data", "nowhere", "--out", "a.safetensors", *given])
    name = next(option for option in reversed(given) if option.startswith("--") and option not in ("--preset", "--schedule"))
    assert done.exit_code == 2
    assert f"({name}) needs " in done.output


def test_options_beside_the_recipe_that_are_not_used_are_refused(painted: Path, tmp_path: Path, factory: str) -> None:
    base = ["train", "--model", factory, "--data", str(painted), "--out", str(tmp_path / "a.safetensors"), "--accelerator", "cpu"]
    for given, said in (
        (["--teacher-weights", "w.pth"], "--teacher-weights is of a teacher's network: give --teacher too"),
        (["--dilate"], "(--high-res): give them too, or leave it out"),
        (["--search", "1", "--lr", "0.1"], "a search chooses lr (--lr) itself"),
        (["--search", "1", "--episodes", "3"], "episodes (--episodes) needs task few-shot"),
        (["--task", "re-identification:flip=true"], "flip is for the score of re-identification, and not used in training"),
    ):
        done = CliRunner().invoke(main, [*base, "--head", "br-npa", "--input-size", "32", "--workers", "0", *given])
        assert done.exit_code == 2, done.output
        assert said in done.output


def test_a_search_takes_the_momentum_of_its_trials_with_sgd(painted: Path, tmp_path: Path, factory: str) -> None:
    clf = xattn.load(factory, head="ca-stream", input_size=32, resize=36, device="cpu")
    with pytest.raises(InputError, match=r"a search chooses optimiser \(--optimiser\) itself"):
        search(clf, painted, tmp_path / "b.safetensors", 1, recipe=Recipe(optimiser="sgd"))
    found = search(clf, painted, tmp_path / "c.safetensors", 2, recipe=Recipe(epochs=1, momentum=0.5), workers=0, progress=False)
    assert found.recipe.momentum == 0.5


def test_padding_and_random_crops_take_each_others_place() -> None:
    assert PRESETS["full"].with_(padding=4).smallest_crop is None
    assert PRESETS["re-identification"].with_(smallest_crop=0.5).padding is None
    with pytest.raises(SettingError, match=r"padding=4 and smallest_crop=0.5 are two ways to crop"):
        Recipe(padding=4, smallest_crop=0.5)
    with pytest.raises(SettingError, match="cannot have padding=0, erasing=2"):
        Recipe(smallest_crop=None, padding=0, erasing=2)
