"""Runs that take pictures until a metric has the order of the methods."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from torch.utils.data import TensorDataset

import xattn
from tests import networks
from tests.study.test_study import study
from xattn.cli import main
from xattn.data.images import ImageSource
from xattn.errors import InputError, NameUnknownError, RunError, SettingError
from xattn.metrics.confidence_sequences import sequence_interval
from xattn.metrics.statistics import rounded
from xattn.models import Classifier
from xattn.study.compare import compare_runs, significance_of_runs
from xattn.study.engines import local
from xattn.study.sequential import Evidence, UntilDecided, ends_of_rounds, shuffled, stated

METHODS = ["uniform", "random", "centre"]
GIVEN: dict[str, Any] = {"methods": METHODS, "metrics": ["complexity", "average-drop"], "until_decided": "complexity"}


@pytest.fixture
def pictures() -> TensorDataset:
    """Sixty small pictures of noise."""
    return TensorDataset(networks.pictures(60))


def _sequence(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text())["sequence"])


def test_a_run_stops_when_every_pair_is_decided_and_keeps_the_intervals(tiny: Classifier, pictures: TensorDataset, tmp_path: Path) -> None:
    made = study([tiny], pictures, tmp_path / "run", **GIVEN)
    outcome, rows, kept = made.run(), made.scores(), _sequence(tmp_path / "run")
    assert kept["of"] == 60
    assert kept["pictures"] == outcome.images == rows["image"].nunique() < 60
    assert kept["pictures"] in ends_of_rounds(60, 3)
    named = [(pair["first"], pair["second"]) for pair in kept["pairs"]]
    assert named == [("uniform", "random"), ("uniform", "centre"), ("random", "centre")]
    wide = rows[rows["metric"] == "complexity"].pivot(index="image", columns="method", values="value")
    wide = wide.loc[[image.name for image in made.images if image.name in wide.index]]
    for pair in kept["pairs"]:
        wanted = sequence_interval((wide[pair["first"]] - wide[pair["second"]]).to_list(), (-1, 1), 1 - 0.05 / 3)
        assert (pair["difference"], pair["low"], pair["high"]) == pytest.approx(wanted[:3])
        assert 0 < pair["decided_after"] <= kept["pictures"]
        better = pair["first"] if wanted.mean < 0 else pair["second"]  # complexity: lower is better
        assert pair["conclusion"] == f"{better} is better"
    last = max(pair["decided_after"] for pair in kept["pairs"])
    assert last > ends_of_rounds(60, 3)[ends_of_rounds(60, 3).index(kept["pictures"]) - 1]  # it was open a round before


def test_a_run_that_was_cut_off_ends_where_it_would_have_ended(
    tiny: Classifier, pictures: TensorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study([tiny], pictures, tmp_path / "whole", **GIVEN).run()
    wanted = (tmp_path / "whole" / "scores.csv").read_bytes()
    write, written = local.Store.write_part, 0

    def cut_off(store: Any, name: str, table: Any) -> None:
        nonlocal written
        written += 1
        if written == 4:
            raise KeyboardInterrupt
        write(store, name, table)

    with monkeypatch.context() as patched:
        patched.setattr(local.Store, "write_part", cut_off)
        with pytest.raises(KeyboardInterrupt):
            study([tiny], pictures, tmp_path / "run", **GIVEN).run()
    assert not (tmp_path / "run" / "scores.csv").exists()
    for _ in range(2):  # the second time it is finished, and nothing changes
        study([tiny], pictures, tmp_path / "run", **GIVEN).run()
        assert (tmp_path / "run" / "scores.csv").read_bytes() == wanted
        assert _sequence(tmp_path / "run") == _sequence(tmp_path / "whole")


def test_batches_of_any_size_take_the_pictures_in_one_order(tiny: Classifier, pictures: TensorDataset, tmp_path: Path) -> None:
    found = {}
    for size in (1, 7, 32):
        study([tiny], pictures, tmp_path / str(size), **GIVEN, batch_size=size).run()
        found[size] = pd.read_csv(tmp_path / str(size) / "scores.csv").drop_duplicates("image")["image"].to_list()
    fewest = min(map(len, found.values()))
    assert found[1][:fewest] == found[7][:fewest] == found[32][:fewest]
    after = [[pair["decided_after"] for pair in _sequence(tmp_path / str(size))["pairs"]] for size in (1, 7, 32)]
    assert after[0] == after[1] == after[2]


def test_the_order_is_of_the_names_and_the_seed_and_the_source_stays_the_same(folder: Path) -> None:
    source = ImageSource(folder)
    names = [image.name for image in shuffled(source, 0).images]
    assert sorted(names) == sorted(image.name for image in source.images) != names
    assert names == [image.name for image in shuffled(shuffled(source, 1), 0).images]
    assert names != [image.name for image in shuffled(source, 1).images]
    items = ImageSource(TensorDataset(networks.pictures(9)))
    assert shuffled(items, 0).digest() == items.digest()


def test_rounds_grow_by_a_quarter_and_end_with_the_pictures() -> None:
    assert ends_of_rounds(100, 8) == [16, 24, 32, 40, 48, 56, 64, 80, 96, 100]
    assert ends_of_rounds(5, 8) == [5]
    assert ends_of_rounds(30, 1) == [16, 20, 25, 30]


def test_pairs_that_stay_open_are_named_with_the_pictures_that_would_do(
    tiny: Classifier, pictures: TensorDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {**GIVEN, "methods": ["uniform", "fake-cam", "random"], "margin": 0.1}
    few = TensorDataset(pictures.tensors[0][:30])
    with caplog.at_level(logging.INFO, logger="xattn"):
        outcome = study([tiny], few, tmp_path / "run", **given).run()
    assert outcome.images == 30
    assert "30 pictures: complexity has decided 2 of 3 pairs" in caplog.text
    same = _sequence(tmp_path / "run")["pairs"][0]
    assert (same["first"], same["second"], same["decided_after"]) == ("uniform", "fake-cam", None)
    assert 30 < same["needed"] < 200
    assert same["conclusion"].startswith("open: about ")
    study([tiny], pictures, tmp_path / "more", **{**given, "margin": 0.3}).run()
    same = _sequence(tmp_path / "more")["pairs"][0]
    assert same["conclusion"] == "equivalent: within ±0.3"
    assert same["low"] > -0.3
    assert same["high"] < 0.3


def test_a_method_without_values_leaves_its_pairs_open_and_is_said(tiny: Classifier, pictures: TensorDataset, tmp_path: Path) -> None:
    few = TensorDataset(pictures.tensors[0][:4])
    given = {"methods": ["uniform", "random"], "metrics": ["deletion-correlation"], "until_decided": "deletion-correlation"}
    study([tiny], few, tmp_path / "run", **given).run()
    (pair,) = _sequence(tmp_path / "run")["pairs"]
    assert (pair["n"], pair["difference"], pair["low"], pair["high"]) == (0, None, -2, 2)
    assert pair["conclusion"] == "open: no picture has a value of both"


def test_tables_say_that_the_data_chose_n_and_which_intervals_hold(tiny: Classifier, pictures: TensorDataset, tmp_path: Path) -> None:
    study([tiny], pictures, tmp_path / "run", **GIVEN).run()
    table = compare_runs([tmp_path / "run"])
    count = _sequence(tmp_path / "run")["pictures"]
    assert f"Pictures were taken until complexity had the order of all methods: {count} of 60. n was chosen by the data" in table.text(
        "markdown"
    )
    assert any(note.startswith("uniform less random, complexity: 0.") and "random is better" in note for note in table.notes)
    assert any("n was chosen by the data" in note for note in significance_of_runs([tmp_path / "run"]).notes)
    study([tiny], pictures, tmp_path / "fixed", methods=["edges"], metrics=["complexity"]).run()
    joined = compare_runs([tmp_path / "run", tmp_path / "fixed"])
    assert sum(note.startswith(f"{tmp_path / 'run'}: ") for note in joined.notes) == 4
    assert set(joined.frame["n"]) == {count, 60}


def test_pictures_without_a_value_of_both_count_among_those_that_are_needed() -> None:
    def kept(count: int, *, gaps: bool) -> dict[str, Any]:
        until = UntilDecided("complexity", 0.2)
        evidence = Evidence(until, [("net", "gap", "a", "b")])
        names = [str(number) for number in range(count)]
        rows = [
            {**{"image": name, "model": "net", "head": "gap", "method": method, "metric": "complexity", "target": "1"}, "value": value}
            for number, name in enumerate(names)
            for method, value in (("a", 0.5), ("b", None if gaps and number % 3 else 0.5))
        ]
        evidence.take(names, [pa.Table.from_pylist(rows)])
        return evidence.as_json(count)

    whole, gaps = kept(40, gaps=False)["pairs"][0], kept(120, gaps=True)["pairs"][0]
    assert whole["n"] == gaps["n"] == 40
    assert 3 * (whole["decided_after"] - 1) + 1 == gaps["decided_after"] == gaps["needed"]  # one of three pictures has both
    few, fewer = kept(10, gaps=False)["pairs"][0], kept(30, gaps=True)
    assert few["decided_after"] is None
    assert fewer["pairs"][0]["needed"] == 3 * few["needed"]
    assert fewer["pairs"][0]["conclusion"] == f"open: about {rounded(3 * few['needed'])} pictures would decide it"
    assert "on 10 pictures with a value of both, open: about " in stated(fewer)[1]


def test_many_pairs_are_listed_in_part() -> None:
    pair = {"model": "a", "head": "gap", "first": "x", "second": "y", "difference": None, "low": -1.0, "high": 1.0, "decided_after": None}
    pair |= {"n": 0}
    kept = {
        "metric": "complexity",
        "margin": 0.1,
        "confidence": 0.95,
        "pictures": 5,
        "of": 5,
        "pairs": [{**pair, "conclusion": "open"}] * 12,
    }
    said = stated(kept)
    assert "to the last, and complexity leaves 12 of 12 pairs open" in said[0]
    assert len(said) == 12
    assert said[1] == "x less y, complexity: – [−1.000, 1.000], open."
    assert said[-1] == "The other 2 pairs are in run.json, under 'sequence'."


def test_a_method_added_later_takes_as_many_pictures_as_the_larger_family_needs(
    tiny: Classifier, pictures: TensorDataset, tmp_path: Path
) -> None:
    study([tiny], pictures, tmp_path / "run", **{**GIVEN, "methods": ["uniform", "centre"]}).run()
    before = _sequence(tmp_path / "run")["pictures"]
    study([tiny], pictures, tmp_path / "run", **GIVEN).run()
    study([tiny], pictures, tmp_path / "whole", **GIVEN).run()
    after, whole = _sequence(tmp_path / "run"), _sequence(tmp_path / "whole")
    assert before <= after["pictures"] == whole["pictures"]
    rows = [
        pd.read_csv(tmp_path / name / "scores.csv").sort_values(["image", "method", "metric"], ignore_index=True)
        for name in ("run", "whole")
    ]
    pd.testing.assert_frame_equal(*rows)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"shard": (1, 2)}, InputError, "a shard sees only its own"),
        ({"until_decided": "sparsity", "metrics": ["sparsity"]}, InputError, "a metric that is bounded on both sides; sparsity is not"),
        ({"methods": ["random"]}, InputError, "needs at least two methods of one classifier"),
        (
            {"metrics": ["average-drop"]},
            InputError,
            "continue until complexity has decided, but it only scores average-drop: add the metric",
        ),
        ({"until_decided": None, "margin": 1.0}, InputError, "a margin is only for a run that continues until a metric has decided"),
        ({"margin": 0.0}, SettingError, "above 0 and below 1; got 0"),
        ({"margin": True}, SettingError, "above 0 and below 1; got True"),
        ({"margin": "2"}, SettingError, "above 0 and below 1; got '2'"),
        ({"margin": 1.0}, SettingError, "above 0 and below 1; got 1"),
        ({"margin": math.nan}, SettingError, "got nan"),
        ({"until_decided": "complexty"}, NameUnknownError, "Did you mean 'complexity'"),
    ],
)
def test_what_cannot_be_decided_is_refused(
    tiny: Classifier, folder: Path, tmp_path: Path, changed: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        study([tiny], folder, tmp_path / "run", **{**GIVEN, **changed})


def test_a_gallery_is_refused(folder: Path, tmp_path: Path) -> None:
    embedding = xattn.attach(networks.small(), input_size=32, resize=36, name="tiny")
    with pytest.raises(InputError, match="pairs of a gallery share pictures"):
        study(
            [embedding],
            folder,
            tmp_path / "run",
            methods=["random", "centre"],
            metrics=["complexity"],
            until_decided="complexity",
            gallery=folder,
        )


def test_a_run_of_all_pictures_does_not_go_on_as_one_until_decided(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    fixed = {key: value for key, value in GIVEN.items() if key != "until_decided"}
    study([tiny], folder, tmp_path / "run", **fixed).run()
    with pytest.raises(RunError, match=r"until_decided was None, is \{'metric': 'complexity', 'margin': None\}"):
        study([tiny], folder, tmp_path / "run", **GIVEN).run()


def test_the_command_stops_draws_and_says_what_was_decided(folder: Path, tmp_path: Path) -> None:
    command = [
        "explain",
        str(folder),
        "--model",
        "birds:gap",
        "--method",
        "uniform",
        "--method",
        "edges",
        "--tune",
        "off",
        "--workers",
        "0",
    ]
    wrong = CliRunner().invoke(main, [*command, "--until-decided", "sparsity", "--out", str(tmp_path / "run")])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: until_decided needs a metric that is bounded on both sides")
    command += ["--metric", "complexity", "--until-decided", "complexity", "--margin", "0.6", "--out", str(tmp_path / "run")]
    foretold = CliRunner().invoke(main, [*command, "--dry-run"])
    assert "in a random order, until complexity has decided; at most" in foretold.stderr
    assert "forward for each image, at most" in foretold.stdout
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.output
    assert "n was chosen by the data" in found.stderr
    assert "uniform less edges, complexity:" in found.stderr
    assert (tmp_path / "run" / "figures" / "grid.png").exists()
