"""Several runs in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xattn.deferred import pandas as pd
from xattn.errors import InputError
from xattn.metrics.significance import Adjustment, Significance, significance
from xattn.metrics.tables import Table, comparison
from xattn.metrics.targets import PER_LABEL
from xattn.study.questions import Key, picture_names, shown_names
from xattn.study.schema import Deviation, run_key
from xattn.study.sequential import stated
from xattn.study.store import GROWING, Store
from xattn.study.summary import controls_last

KEYS = ["image", "model", "head", "method", "metric", "target"]
MACHINERY = {"batch_size": "batch size", "device": "device", "torch": "torch"}  # settings that change values by rounding alone
AGREE = 0.01  # percent: largest difference of one value between runs that is not told


def compare_runs(
    runs: Sequence[str | Path], against: str | None = None, *, without_degenerate: bool = False, seeds: str | None = None
) -> Table:
    """One comparison table of several runs.

    Two runs may hold the same model, head, method and metric for different images. Where they ask different questions of a model (another
    target, stage, input size, …), its rows stay apart, and what differs follows its name; so does the run where the weights differ.
    Pictures of the same name are the same where their contents are. Values that runs share and that differ by more than 0.01, as between
    batch sizes, are noted, and those of the first run are taken.

    Args:
        runs: run folders.
        against: the reference: a method, or a model, a head or "model · head" whose row of the same method each other one is tested
            against.
        without_degenerate: leave maps that are flagged `degenerate` out of every column.
        seeds: regular expression of what names the seed of training in the models' names, as the table without it prints them: models that
            have the same name without it are one row, with intervals over seeds and pictures.

    Raises:
        InputError: two runs of different versions of xattn give different values for the same item, runs explain the same images for
            different labels, or are shards of different splits.
        RunError: a folder that is not a run.
    """
    rows, notes = _rows_and_notes(runs)
    table = comparison(rows, against, without_degenerate=without_degenerate, seeds=seeds)
    return replace(table, notes=(*table.notes, *notes))


def significance_of_runs(
    runs: Sequence[str | Path],
    against: str | None = None,
    *,
    adjustment: Adjustment = "holm",
    margins: Mapping[str, float] | None = None,
    without_degenerate: bool = False,
) -> Significance:
    """What may be concluded from several runs: `significance` of their joint rows, which are those of `compare_runs`.

    Args:
        runs: run folders.
        against: the reference, as `significance` takes it; None: every two methods of a classifier.
        adjustment: of the p-values of the pairs of a metric.
        margins: by metric, in its unit, the largest difference that does not matter.
        without_degenerate: leave out pictures with a map that is flagged `degenerate`.

    Raises:
        InputError: as `compare_runs`, or there are no two methods of the same pictures.
        NameUnknownError: no such reference, metric or adjustment.
        SettingError: a margin that is not positive.
        RunError: a folder that is not a run.
    """
    rows, notes = _rows_and_notes(runs)
    found = significance(rows, against, adjustment=adjustment, margins=margins, without_degenerate=without_degenerate)
    return replace(found, notes=(*found.notes, *notes))


def _rows_and_notes(runs: Sequence[str | Path]) -> tuple[pd.DataFrame, list[str]]:
    """The joint rows of several runs, and notes on what they lack or differ in."""
    stores = [Store(run) for run in runs]
    names = shown_names(stores)
    rows, differing = joint_rows(stores, names)
    unfinished = [str(store.folder) for store in stores if not store.finished]
    notes = [f"{folder} is not finished: its part of the table is over the images done so far." for folder in unfinished]
    return rows, [*_deviations(stores, names), *_sequences(stores), *differing, *notes, *_missing_shards(stores)]


def joint_rows(stores: Sequence[Store], names: Sequence[Mapping[Key, str]]) -> tuple[pd.DataFrame, list[str]]:
    """The rows of several runs as those of one, each value once, controls last, and notes on what differs between them.

    Args:
        stores: of the runs.
        names: of their models in a joint table, from `shown_names`.

    Raises:
        InputError: as `compare_runs`.
    """
    of_runs = [store.rows() for store in stores]
    pictures = picture_names(stores, [set(rows["image"]) for rows in of_runs])
    frames = []
    for number, (rows, called, renamed) in enumerate(zip(of_runs, names, pictures, strict=True)):
        models = [called.get(key, key[0]) for key in zip(rows["model"], rows["head"], strict=True)]
        frames.append(rows.assign(model=models, image=rows["image"].map(lambda name, to=renamed: to.get(name, name)), run=number))
    rows = pd.concat(frames, ignore_index=True)
    rows = rows.assign(target=rows["target"].astype(str))
    rows, other_targets = _one_target(rows)
    return controls_last(rows.drop_duplicates(KEYS)), [*other_targets, *_differing(rows, stores)]


def _deviations(stores: Sequence[Store], names: Sequence[Mapping[Key, str]]) -> list[str]:
    """What runs with shortcuts, or of level fast, differ from exact."""
    found: dict[str, None] = {}
    for store, called in zip(stores, names, strict=True):
        forwards = store.read_run().get("forwards", {})
        for key, model in called.items():
            deviations = forwards.get(run_key(*key), {}).get("deviation") or {}
            said = "; ".join(f"{metric} differs from exact by {Deviation.of(apart)}" for metric, apart in deviations.items())
            found |= {f"{model} · {key[1]}: {said}.": None} if said else {}
    return list(found)


def _sequences(stores: Sequence[Store]) -> list[str]:
    """What runs decided that took pictures until a metric had decided."""
    kept = [(store, store.read_run().get("sequence")) for store in stores]
    return [f"{store.folder}: {line}" if len(stores) > 1 else line for store, of in kept if of is not None for line in stated(of)]


def _differing(rows: pd.DataFrame, stores: Sequence[Store]) -> list[str]:
    """A note on values that runs share and that differ.

    Raises:
        InputError: runs of different versions of xattn.
    """
    groups = rows.groupby(KEYS, sort=False)
    values = groups["value"]
    spread = (values.max() - values.min())[groups.size() > 1]
    apart = spread[spread > AGREE]
    if apart.empty:
        return []
    key: Any = apart.idxmax()  # a value of each of KEYS
    found = rows.set_index(KEYS).sort_index().loc[[key]]
    settings = [stores[number].read_run()["settings"] for number in found["run"]]
    if len(versions := {of.get("xattn") for of in settings}) > 1:
        raise InputError(
            f"the runs give different values of {key[4]} of {key[3]} on {key[0]}: {', '.join(f'{value:.6g}' for value in found['value'])}. "
            f"They are of different versions of xattn ({', '.join(map(str, sorted(map(str, versions))))}); compare them separately."
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
    """Notes on shards that are missing.

    Raises:
        InputError: shards of one run that was split in two ways.
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
                f"these are shards of one run cut into {' and '.join(map(str, sorted(cuts)))} parts: compare those of one cut."
            )
        for count, found in cuts.items():
            if missing := sorted(set(range(1, count + 1)) - found):
                notes.append(f"Of {count} shards {', '.join(map(str, missing))} are not here: the table is over the images of the others.")
    return notes


def _one_target(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows without those of later runs that explain an image for another target, and a note on each model that has such images.

    Raises:
        InputError: the labels of an image differ between runs.
    """
    notes, left = [], rows["target"].notna()
    for (model, head), group in rows.groupby(["model", "head"], sort=False):
        rules = [str(rule) for rule in group["target_rule"].dropna().unique()]
        if all(rule.startswith(PER_LABEL) for rule in rules):
            continue
        several = group.groupby("image")["target"].nunique() > 1
        if not several.any():
            continue
        image, count = several[several].index[0], int(several.sum())
        targets = ", ".join(sorted(group.loc[group["image"] == image, "target"].unique()))
        if any("label" in rule for rule in rules):
            raise InputError(
                f"the runs explain {model} · {head} for different targets ({targets} on {image}), though all for {', '.join(rules)}: their "
                "labels differ. Compare them separately, or run them with the same labels."
            )
        left &= ~(rows.index.isin(group.index) & rows["image"].isin(several[several].index) & (rows["run"] != _first(group, rows)))
        notes.append(
            f"{model} · {head}: the runs explain {count} images for different targets ({targets} on {image}); those of the first run are "
            "taken."
        )
    return rows[left], notes


def _first(group: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """For each row, the first run that holds its image in a group."""
    return rows["image"].map(group.groupby("image")["run"].min())
