"""Comparison of several runs in one table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xattn.deferred import pandas as pd
from xattn.errors import InputError
from xattn.metrics.sheets import FAILS
from xattn.metrics.significance import Adjustment, Significance, significance
from xattn.metrics.tables import Table, comparison
from xattn.metrics.target_base import PER_LABEL
from xattn.metrics.training_seeds import common_names
from xattn.metrics.trial import trial
from xattn.study.questions import Key, picture_names, shown_names
from xattn.study.schema import Deviation, run_key
from xattn.study.sequential import stated
from xattn.study.store import GROWING, Store
from xattn.study.summary import controls_last
from xattn.study.values import categorical, joined, narrowed
from xattn.text import counted

KEYS = ["image", "model", "head", "method", "metric", "target"]
MACHINERY = {"batch_size": "batch size", "device": "device", "torch": "torch"}  # settings that change values by rounding only
_OF_TARGETS = ["model", "head", "image", "target", "target_rule", "run"]
AGREE = 0.01  # percent; differences of one value between runs are reported above this


def compare_runs(
    runs: Sequence[str | Path],
    against: str | None = None,
    *,
    without_degenerate: bool = False,
    seeds: str | None = None,
    on_trial: bool = False,
) -> Table:
    """Makes one comparison table of several runs.

    Two runs may hold the same model, head, method and metric for different images. If they ask different questions of a model (another
    target, stage, input size, …), its rows stay separate, and the difference is added to its name; if the weights differ, the run is added.
    Two pictures with the same name are the same picture if their contents are the same. If runs share values that differ by more than 0.01
    (between batch sizes, for example), a note says so, and the values of the first run are used.

    Args:
        runs: run folders.
        against: the reference: a method, a model, a head or "model · head". Every other row of the same method is tested against it.
        without_degenerate: leave maps that are flagged `degenerate` out of all columns.
        seeds: regular expression that matches the training seed in the models' names, as the table without `seeds` prints them. Models
            whose names are equal without the match become one row, with intervals over seeds and pictures.
        on_trial: mark metrics that fail their trial on these rows, with the reason; see `xattn.metrics.trial.trial`.

    Raises:
        InputError: a trial lacks methods or controls, two runs of different versions of xattn give different values for the same item, runs
            explain the same images for different labels, or runs are shards of different splits.
        RunError: a folder is not a run.
    """
    rows, notes = _rows_and_notes(runs, seeds)
    table = comparison(rows, against, without_degenerate=without_degenerate, seeds=seeds)
    tried = trial(rows).frame if on_trial else pd.DataFrame({"verdict": []})
    failing = tried[tried["verdict"] == "fails"]
    reasons = [f"{of['metric']}: fails its trial ({FAILS}) on {of['model']} · {of['head']}: {of['reason']}." for of in _records(failing)]
    return replace(table, notes=(*table.notes, *reasons, *notes), failing=tuple(dict.fromkeys(of["metric"] for of in _records(failing))))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the rows of a frame as dictionaries."""
    return [{str(key): value for key, value in of.items()} for of in frame.to_dict("records")]


def significance_of_runs(
    runs: Sequence[str | Path],
    against: str | None = None,
    *,
    adjustment: Adjustment = "holm",
    margins: Mapping[str, float] | None = None,
    without_degenerate: bool = False,
    seeds: str | None = None,
) -> Significance:
    """Tests the differences between methods over several runs: `significance` of the joint rows that `compare_runs` uses.

    Args:
        runs: run folders.
        against: the reference, as `significance` takes it; None: every two methods of a classifier.
        adjustment: how the p-values of a metric's pairs are adjusted for multiple comparisons.
        margins: the largest difference that does not matter, by metric, in the metric's unit.
        without_degenerate: leave out pictures that have a map flagged `degenerate`.
        seeds: as for `compare_runs`; networks of several seeds are tested over seeds and pictures.

    Raises:
        InputError: as for `compare_runs`, or there are not two methods with the same pictures.
        NameUnknownError: the reference, metric or adjustment does not exist.
        SettingError: a margin is not positive, or `seeds` is not a regular expression.
        RunError: a folder is not a run.
    """
    rows, notes = _rows_and_notes(runs, seeds)
    found = significance(rows, against, adjustment=adjustment, margins=margins, without_degenerate=without_degenerate, seeds=seeds)
    return replace(found, notes=(*found.notes, *notes))


def _rows_and_notes(runs: Sequence[str | Path], seeds: str | None) -> tuple[pd.DataFrame, list[str]]:
    """Returns the joint rows of several runs, and notes on what they lack or differ in.

    Args:
        runs: run folders.
        seeds: the regular expression that groups their models; None: no grouping.
    """
    stores = [Store(run) for run in runs]
    names = shown_names(stores)
    rows, differing = joint_rows(stores, names)
    unfinished = [str(store.folder) for store in stores if not store.finished]
    notes = [f"{folder} is not finished: its part of the table is over the images done so far." for folder in unfinished]
    of_seeds = _ungrouped(stores, names) if seeds is None else _same_weights(stores, names, seeds)
    return rows, [*_deviations(stores, names), *_sequences(stores), *of_seeds, *differing, *notes, *_missing_shards(stores)]


def joint_rows(stores: Sequence[Store], names: Sequence[Mapping[Key, str]]) -> tuple[pd.DataFrame, list[str]]:
    """Joins the rows of several runs: each value once, controls last; also returns notes on what differs between the runs.

    Args:
        stores: the runs.
        names: names of their models in a joint table, from `shown_names`.

    Raises:
        InputError: as for `compare_runs`.
    """
    frames = [store.values() for store in stores]
    pictures = picture_names(stores, [set(rows["image"].cat.categories) for rows in frames])
    for number, (called, renamed) in enumerate(zip(names, pictures, strict=True)):
        rows = frames[number]
        images = rows["image"].cat.rename_categories(renamed)
        frames[number] = rows.assign(model=_shown_models(rows, called), image=images, run=np.int16(number))
    rows, other_targets = _one_target(joined(frames))
    repeats = _repeats(rows)
    if repeats is None:
        return controls_last(rows), other_targets
    differs = _differing(rows[repeats.is_repeated], stores)
    return controls_last(rows[~repeats.is_later]), [*other_targets, *differs]


def _shown_models(rows: pd.DataFrame, called: Mapping[Key, str]) -> pd.Categorical:
    """Returns the models' names in a joint table; a model may have one name per head."""
    models, heads = (list(rows[column].cat.categories) for column in ("model", "head"))
    names = [called.get((model, head), model) for model in models for head in heads]
    different = list(dict.fromkeys(names))
    place = np.array([different.index(name) for name in names], dtype=np.int32)
    codes = rows["model"].cat.codes.to_numpy(dtype=np.int32) * len(heads) + rows["head"].cat.codes.to_numpy()
    return categorical(narrowed(place, len(different))[codes], different)


class _Repeats(NamedTuple):
    """Marks rows that hold the same value, from several runs or twice from one run.

    Attributes:
        is_repeated: another row holds the same value.
        is_later: an earlier row holds the same value.
    """

    is_repeated: NDArray[np.bool_]
    is_later: NDArray[np.bool_]


def _repeats(rows: pd.DataFrame) -> _Repeats | None:
    """Finds rows that hold the same value; None if there are none."""
    columns = [rows[name].cat for name in KEYS]
    if math.prod(len(column.categories) + 1 for column in columns) >= 2**63:  # too many combinations for a 64-bit key
        return _Repeats(*(rows.duplicated(KEYS, keep=keep).to_numpy() for keep in (False, "first")))
    key = np.zeros(len(rows), dtype=np.int64)
    for column in columns:
        key *= len(column.categories) + 1
        key += column.codes.to_numpy()
        key += 1
    ordered = np.sort(key)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    del ordered
    found = pd.Series(key)
    return _Repeats(found.duplicated(keep=False).to_numpy(), found.duplicated().to_numpy())


def _deviations(stores: Sequence[Store], names: Sequence[Mapping[Key, str]]) -> list[str]:
    """Returns notes on runs with shortcuts or of level fast: how far they are from exact values."""
    found: dict[str, None] = {}
    for store, called in zip(stores, names, strict=True):
        forwards = store.read_run().get("forwards", {})
        for key, model in called.items():
            deviations = forwards.get(run_key(*key), {}).get("deviation") or {}
            said = "; ".join(f"{metric} differs from exact by {Deviation.of(apart)}" for metric, apart in deviations.items())
            found |= {f"{model} · {key[1]}: {said}.": None} if said else {}
    return list(found)


def _ungrouped(stores: Sequence[Store], names: Sequence[Mapping[Key, str]]) -> list[str]:
    """Returns notes on networks with several rows of different weights or seeds, which may be seeds of one training."""
    rows: dict[Key, dict[str, tuple[str, Any]]] = {}
    for store, called in zip(stores, names, strict=True):
        settings = store.read_run()["settings"]
        for model in settings["models"]:
            key = (model["name"], model["head"])
            rows.setdefault(key, {})[called[key]] = (model["weights"], settings.get("seed"))
    several = {key: found for key, found in rows.items() if len(set(found.values())) > 1}
    return [
        f"{model} · {head} has {len(found)} rows of different weights or seeds, and the interval of each is over images alone. If they are "
        "seeds of one training, --seeds makes them one row, with an interval over seeds and images."
        for (model, head), found in several.items()
    ]


def _same_weights(stores: Sequence[Store], names: Sequence[Mapping[Key, str]], seeds: str) -> list[str]:
    """Returns notes on rows of several seeds in which two networks have the same weights."""
    weights: dict[str, dict[str, str]] = {}
    for store, called in zip(stores, names, strict=True):
        for model in store.read_run()["settings"]["models"]:
            shown = called[model["name"], model["head"]]
            weights.setdefault(shown, {})[model["head"]] = model["weights"]
    groups: dict[tuple[str, str], list[str]] = {}
    for shown, name in common_names(list(weights), seeds).items():
        for head, digest in weights[shown].items():
            groups.setdefault((name, head), []).append(digest)
    return [
        f"{name} · {head}: {len(found)} seeds have {_weights(len(set(found)))}. Equal networks show the spread of what is drawn in methods "
        "and metrics, not of training, and the interval over seeds is of that alone."
        for (name, head), found in groups.items()
        if len(set(found)) < len(found)
    ]


def _weights(count: int) -> str:
    return "the same weights" if count == 1 else f"{count} different weights"


def _sequences(stores: Sequence[Store]) -> list[str]:
    """Returns notes on what was decided by runs that stop when a metric has decided."""
    kept = [(store, store.read_run().get("sequence")) for store in stores]
    return [f"{store.folder}: {line}" if len(stores) > 1 else line for store, of in kept if of is not None for line in stated(of)]


def _differing(rows: pd.DataFrame, stores: Sequence[Store]) -> list[str]:
    """Returns a note on values that runs share but that differ.

    Args:
        rows: rows of the values that several runs hold.
        stores: the runs.

    Raises:
        InputError: the runs are of different versions of xattn.
    """
    groups = rows.groupby(KEYS, sort=False, observed=True)
    values = groups["value"]
    spread = (values.max() - values.min())[groups.size() > 1]
    apart = spread[spread > AGREE]
    if apart.empty:
        return []
    key: Any = apart.idxmax()  # one value for each of KEYS
    found = rows.set_index(KEYS).sort_index().loc[[key]]
    settings = [stores[number].read_run()["settings"] for number in found["run"]]
    if len(versions := {of.get("xattn") for of in settings}) > 1:
        raise InputError(
            f"the runs give different values of {key[4]} of {key[3]} on {key[0]}: {', '.join(f'{value:.6g}' for value in found['value'])}. "
            f"They come from different versions of xattn ({', '.join(map(str, sorted(map(str, versions))))}); compare them separately."
        )
    differs = [
        f"{what} {' and '.join(map(str, dict.fromkeys(of.get(setting) for of in settings)))}"
        for setting, what in MACHINERY.items()
        if len({of.get(setting) for of in settings}) > 1
    ]
    return [
        f"{len(apart)} of {len(spread)} values that several runs hold differ by more than {AGREE}, at most by {apart.max():.2g}"
        f"{' (' + ', '.join(differs) + ')' if differs else ''}: those of the first run are taken."
    ]


def _missing_shards(stores: Sequence[Store]) -> list[str]:
    """Returns notes on missing shards.

    Raises:
        InputError: shards come from two different splits of one run.
    """
    places: dict[str, dict[int, set[int]]] = {}
    for store in stores:
        settings = store.read_run()["settings"]
        place, count = settings.pop("shard", (1, 1))
        settings = {key: value for key, value in settings.items() if key not in GROWING}  # shards may be extended one after the other
        places.setdefault(json.dumps(settings, sort_keys=True), {}).setdefault(count, set()).add(place)
    notes = []
    for cuts in places.values():
        if len(cuts) > 1:
            raise InputError(
                f"these are shards of one run cut into {' and '.join(map(str, sorted(cuts)))} parts: compare shards of one split."
            )
        for count, found in cuts.items():
            if missing := sorted(set(range(1, count + 1)) - found):
                notes.append(f"Of {count} shards {', '.join(map(str, missing))} are not here: the table is over the images of the others.")
    return notes


def _one_target(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Drops rows of later runs that explain an image for another target; also returns a note on each model with such images.

    Raises:
        InputError: the labels of an image differ between runs.
    """
    notes, left = [], rows["target"].notna()
    for (model, head), group in rows[_OF_TARGETS].groupby(["model", "head"], sort=False, observed=True):
        rules = [str(rule) for rule in group["target_rule"].dropna().unique()]
        if all(rule.startswith(PER_LABEL) for rule in rules):
            continue
        several = _images_of_several_targets(group)
        if not several:
            continue
        image, count = several[0], len(several)
        targets = ", ".join(sorted(group.loc[group["image"] == image, "target"].unique()))
        if any("label" in rule for rule in rules):
            raise InputError(
                f"the runs explain {model} · {head} for different targets ({targets} on {image}), though all for {', '.join(rules)}: their "
                "labels differ. Compare them separately, or run them with the same labels."
            )
        left &= ~(rows.index.isin(group.index) & rows["image"].isin(several) & (rows["run"] != _first(group, rows)))
        notes.append(
            f"{model} · {head}: the runs explain {counted(count, 'image')} for different targets ({targets} on {image}); those of the "
            "first run are taken."
        )
    return (rows if left.all() else rows[left]), notes


def _images_of_several_targets(rows: pd.DataFrame) -> list[str]:
    """Returns the images that are explained for several targets, in order."""
    images, targets = rows["image"].cat, rows["target"].cat
    count = len(targets.categories)
    known = (targets.codes >= 0).to_numpy()
    different = np.unique(images.codes.to_numpy(dtype=np.int64)[known] * count + targets.codes.to_numpy()[known])
    several = np.flatnonzero(np.bincount(different // max(1, count)) > 1)
    return [str(image) for image in images.categories[several]]


def _first(group: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """Returns, for each row, the first run of its group that holds its image."""
    return rows["image"].map(group.groupby("image", observed=True)["run"].min())
