"""Metrics on trial: verdicts on rows whose order is known, reliability, stability, truth."""

from __future__ import annotations

import math
import subprocess
import sys

import krippendorff
import numpy as np
import pandas as pd
import pytest

from xattn.errors import InputError, NameUnknownError
from xattn.metrics.trial import _alpha, trial

PICTURES = 12


def rows(values: dict[tuple[str, str], object], model: str = "net") -> pd.DataFrame:
    """Rows of `{(metric, method): values of the pictures}`."""
    lines = []
    for (metric, method), given in values.items():
        for number, value in enumerate(np.broadcast_to(np.asarray(given, dtype=float), PICTURES)):
            about = {"image": f"{number}.png", "target": str(number), "model": model, "head": "gap", "target_rule": "predicted"}
            lines.append({**about, "method": method, "metric": metric, "value": value, "degenerate": False})
    return pd.DataFrame(lines)


def noise(seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=PICTURES)


def test_a_metric_passes_if_every_control_is_behind_whichever_way_it_counts() -> None:
    planted = {"random": 10 + noise(0), "edges": 20 + noise(1)}
    found = {"grad-cam": 50 + noise(2), "layer-cam": 45 + noise(3), "hires-cam": 40 + noise(4)}
    insertion = {("insertion", method): values for method, values in (planted | found).items()}
    deletion = {("deletion", method): 100 - values for method, values in (planted | found).items()}
    frame = trial(rows(insertion | deletion)).frame.set_index("metric")
    assert frame["verdict"].to_list() == ["passes", "passes"]
    assert frame["behind"].to_list() == frame["planted"].to_list() == [2, 2]
    assert frame["n"].to_list() == [PICTURES] * 2


def test_a_metric_fails_that_puts_a_control_ahead_and_says_which() -> None:
    found = {"grad-cam": 50 + noise(2), "random": 10 + noise(0), "fake-cam": 90 + noise(1)}
    trialled = trial(rows({("insertion", method): values for method, values in found.items()}))
    (line,) = trialled.frame.to_dict("records")
    assert (line["verdict"], line["ahead"], line["behind"]) == ("fails", "fake-cam", 1)
    assert line["reason"].startswith("it puts fake-cam ahead of the methods")
    assert "fails ✗" in trialled.text()


def test_a_metric_is_undecided_where_pictures_do_not_tell_a_control_from_the_methods() -> None:
    found = {"grad-cam": 50 + noise(2), "random": 10 + noise(0), "centre": 50 + noise(1)}
    (line,) = trial(rows({("insertion", method): values for method, values in found.items()})).frame.to_dict("records")
    assert (line["verdict"], line["undecided"]) == ("undecided", "centre")


def test_one_bad_method_does_not_make_a_metric_fail_but_most_do() -> None:
    good, bad, control = 50 + noise(2), 5 + noise(3), 20 + noise(0)
    one = {"grad-cam": good, "layer-cam": good + 1, "guided-backprop": bad, "random": control}
    (line,) = trial(rows({("insertion", method): values for method, values in one.items()})).frame.to_dict("records")
    assert line["verdict"] == "passes"
    most = {"grad-cam": good, "layer-cam": bad + 1, "guided-backprop": bad, "random": control}
    (line,) = trial(rows({("insertion", method): values for method, values in most.items()})).frame.to_dict("records")
    assert line["verdict"] == "fails"


def test_a_control_without_values_is_not_counted_and_none_decides_nothing() -> None:
    values = {("insertion-correlation", "grad-cam"): 0.5 + noise(1, 0.1), ("insertion-correlation", "uniform"): math.nan}
    (line,) = trial(rows(values)).frame.to_dict("records")
    assert (line["planted"], line["undefined"], line["verdict"]) == (0, "uniform", "undecided")
    values |= {("insertion-correlation", "random"): noise(2, 0.01)}
    (line,) = trial(rows(values)).frame.to_dict("records")
    assert (line["planted"], line["undefined"], line["verdict"]) == (1, "uniform", "passes")


def test_methods_can_be_planted_too() -> None:
    found = {"grad-cam": 50 + noise(2), "activation-map": 60 + noise(3), "random": noise(0)}
    given = rows({("insertion", method): values for method, values in found.items()})
    assert trial(given).frame["verdict"].item() == "passes"
    assert trial(given, planted=["activation-map"]).frame["ahead"].item() == "activation-map"
    with pytest.raises(NameUnknownError, match="Unknown method in these runs 'activation-maps'. Did you mean 'activation-map'"):
        trial(given, planted=["activation-maps"])


def test_alpha_is_krippendorff_s_of_the_ranks_of_methods_without_the_controls() -> None:
    values = {method: noise(seed) for seed, method in enumerate(["grad-cam", "layer-cam", "hires-cam", "random"])}
    frame = trial(rows({("insertion", method): found for method, found in values.items()})).frame
    ranks = pd.DataFrame({method: found for method, found in values.items() if method != "random"})
    for column, given in (("agreement of pictures", ranks.rank(axis=1)), ("agreement of methods", ranks.rank().T)):
        expected = krippendorff.alpha(reliability_data=given.to_numpy(), level_of_measurement="ordinal")
        assert frame[column].item() == pytest.approx(expected)
    agreed = {method: place + noise(0, 1e-3) for place, method in enumerate(["grad-cam", "layer-cam", "hires-cam", "random"])}
    (line,) = trial(rows({("insertion", method): found for method, found in agreed.items()})).frame.to_dict("records")
    assert line["agreement of pictures"] == line["agreement of methods"] == pytest.approx(1)
    assert "pictures do not agree" in frame["reason"].item()
    assert "pictures do not agree" not in line["reason"]


def test_alpha_is_that_of_krippendorff_s_published_example() -> None:
    # Krippendorff 2011, "Computing Krippendorff's alpha-reliability", D: four observers of twelve units, some missing.
    nan = math.nan
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ]
    assert _alpha(pd.DataFrame(observers)) == pytest.approx(0.815, abs=5e-4)  # his α of ordinal values


def test_stability_is_the_lowest_rank_correlation_with_the_metric_s_other_settings() -> None:
    places = {"grad-cam": 3, "layer-cam": 2, "hires-cam": 1, "random": 0}
    same = {("insertion", method): place for method, place in places.items()}
    scaled = {("insertion:protocol=rise", method): place**2 for method, place in places.items()}
    turned = {("insertion:protocol=gomez", method): -place for method, place in places.items()}
    other = {("deletion", method): -place for method, place in places.items()}
    frame = trial(rows(same | scaled | turned | other)).frame.set_index("metric")
    assert frame.loc["insertion", "stability"] == frame.loc["insertion:protocol=gomez", "stability"] == pytest.approx(-1)
    assert frame.loc["insertion", "least like"] == "insertion:protocol=gomez"
    assert math.isnan(frame.loc["deletion", "stability"])
    assert trial(rows(same | scaled | other)).frame.set_index("metric").loc["insertion", "stability"] == pytest.approx(1)


def test_a_metric_that_orders_maps_against_the_truth_fails() -> None:
    places = {"grad-cam": 3, "layer-cam": 2, "hires-cam": 1, "random": 0}
    given = rows({("insertion", method): place + noise(seed, 0.01) for seed, (method, place) in enumerate(places.items())})
    truth = given.drop(columns=["metric", "degenerate"])
    (line,) = trial(given, truth=truth).frame.to_dict("records")
    assert line["truth"] == pytest.approx(1)
    (line,) = trial(given, truth=truth.assign(value=-truth["value"])).frame.to_dict("records")
    assert line["truth"] == pytest.approx(-1)
    assert line["verdict"] == "fails"
    assert line["reason"].startswith("it orders maps against the truth")


def test_methods_are_read_between_random_and_the_best_of_a_search_which_is_no_method_itself() -> None:
    values = {"grad-cam": 40 + noise(0), "random": 20 + noise(1), "greedy": 90 + noise(2), "greedy:curve=insertion": 60 + noise(3)}
    (line,) = trial(rows({("insertion", method): found for method, found in values.items()})).frame.to_dict("records")
    means = {method: found.mean() for method, found in values.items()}
    assert line["methods"] == 1
    expected = (means["grad-cam"] - means["random"]) / (means["greedy:curve=insertion"] - means["random"])
    assert line["reached"] == pytest.approx(expected)


def test_a_misplaced_map_is_planted_though_it_is_no_control() -> None:
    values = {"grad-cam": noise(0), "random": noise(1) - 50, "misplaced-cam": 50 + noise(2)}
    (line,) = trial(rows({("insertion", method): found for method, found in values.items()})).frame.to_dict("records")
    assert (line["methods"], line["planted"], line["ahead"]) == (1, 2, "misplaced-cam")


def test_each_classifier_has_rows_of_its_own() -> None:
    one = rows({("insertion", "grad-cam"): 5 + noise(0), ("insertion", "random"): noise(1)}, "one")
    two = rows({("insertion", "grad-cam"): noise(0), ("insertion", "random"): 5 + noise(1)}, "two")
    found = trial(pd.concat([one, two]))
    assert found.frame["verdict"].to_list() == ["passes", "fails"]
    assert "| one" in found.text()
    assert found.text("csv").startswith("model,head,metric,")


def test_rows_without_methods_or_controls_are_refused_with_what_to_add() -> None:
    with pytest.raises(InputError, match="these rows have no control: they are of grad-cam"):
        trial(rows({("insertion", "grad-cam"): 1}))
    with pytest.raises(InputError, match="these rows have no method: they are of random"):
        trial(rows({("insertion", "random"): 1}))


def test_without_krippendorff_all_but_alpha_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    monkeypatch.setattr("xattn.metrics.trial._has_krippendorff", lambda: False)
    found = trial(rows({("insertion", "grad-cam"): 5 + noise(0), ("insertion", "layer-cam"): 5, ("insertion", "random"): noise(1)}))
    assert found.frame["agreement of pictures"].isna().all()
    assert "pip install 'xattn[reliability]'" in found.text()


@pytest.mark.parametrize(("pictures", "told"), [(5, True), (6, False)])
def test_too_few_pictures_for_any_verdict_are_told(pictures: int, told: bool) -> None:
    found = {"grad-cam": 50 + noise(2), "random": 10 + noise(0)}
    some = rows({("insertion", method): values for method, values in found.items()})
    trialled = trial(some[some["target"].astype(int) < pictures])
    assert trialled.frame["verdict"].to_list() == ["undecided" if told else "passes"]
    assert ("Nothing can be found better or worse on 5 pictures: the test needs 6 or more." in trialled.text()) == told


def test_a_trial_loads_no_torch() -> None:
    code = (
        "import sys, pandas; from xattn.metrics.trial import trial\n"
        "row = dict(image='a', target='1', model='m', head='gap', metric='insertion', value=1.0)\n"
        "trial(pandas.DataFrame([row | dict(method=m, image=str(k)) for m in ('grad-cam', 'random') for k in range(3)])).text()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
