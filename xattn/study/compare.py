"""Several runs in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from xattn.errors import InputError
from xattn.metrics.tables import Table, comparison
from xattn.metrics.targets import PER_LABEL
from xattn.study.store import Store

KEYS = ["image", "model", "head", "method", "metric", "target"]
AGREE = 0.01  # percent: largest accepted difference of one value between batch sizes


def shown_names(stores: Sequence[Store]) -> list[dict[tuple[str, str], str]]:
    """Names of each run's models for a joint table, by model and head; a run's path is added where weights differ."""
    digests: dict[tuple[str, str], str] = {}
    shown = []
    for store in stores:
        names = {}
        for model in store.read_run()["settings"]["models"]:
            key = (model["name"], model["head"])
            names[key] = key[0] if digests.setdefault(key, model["weights"]) == model["weights"] else f"{key[0]} ({store.folder})"
        shown.append(names)
    return shown


def compare_runs(runs: Sequence[str | Path], against: str | None = None) -> Table:
    """One comparison table of several runs.

    Two runs may hold the same model, head, method and metric for different images; for the same image their values must agree. The
    name of a model whose weights differ between runs is followed by its run.

    Args:
        runs: run folders.
        against: a method to test the others against.

    Raises:
        InputError: two runs give different values for the same item, or are shards of different splits.
        RunError: a folder that is not a run.
    """
    stores = [Store(run) for run in runs]
    frames = []
    for store, names in zip(stores, shown_names(stores), strict=True):
        rows = store.rows()
        called = [names.get(key, key[0]) for key in zip(rows["model"], rows["head"], strict=True)]
        frames.append(rows.assign(model=called))
    rows = pd.concat(frames, ignore_index=True)
    rows = rows.assign(target=rows["target"].astype(str))
    _refuse_mixed_targets(rows)
    values = rows.groupby(KEYS, sort=False)["value"]
    apart = (values.max() - values.min()) > AGREE
    if apart.any():
        key = apart[apart].index[0]
        found = rows.set_index(KEYS).sort_index().loc[[key], "value"]
        raise InputError(
            f"the runs give different values of {key[4]} of {key[3]} on {key[0]}: {', '.join(f'{value:.6g}' for value in found)}. "
            "They were run with other settings; compare them separately."
        )
    table = comparison(rows.drop_duplicates(KEYS), against)
    unfinished = [str(store.folder) for store in stores if not store.finished]
    notes = [f"{folder} is not finished: its part of the table is over the images done so far." for folder in unfinished]
    return replace(table, notes=(*table.notes, *notes, *_missing_shards(stores)))


def _missing_shards(stores: Sequence[Store]) -> list[str]:
    """Notes on shards that are missing.

    Raises:
        InputError: shards of one run that was split in two ways.
    """
    places: dict[str, dict[int, set[int]]] = {}
    for store in stores:
        settings = store.read_run()["settings"]
        place, count = settings.pop("shard", (1, 1))
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


def _refuse_mixed_targets(rows: pd.DataFrame) -> None:
    for (model, head), group in rows.groupby(["model", "head"], sort=False):
        if len(rules := sorted(group["target_rule"].dropna().unique())) > 1:
            raise InputError(
                f"the runs explain {model} · {head} for different targets ({', '.join(rules)}): their means answer different questions. "
                "Compare them separately, or run them with the same --target."
            )
        if not all(rule.startswith(PER_LABEL) for rule in rules) and (several := group.groupby("image")["target"].nunique() > 1).any():
            image = several[several].index[0]
            targets = ", ".join(sorted(group.loc[group["image"] == image, "target"].unique()))
            raise InputError(
                f"the runs explain {model} · {head} for different targets ({targets} on {image}): their means answer different questions. "
                "Compare them separately, or run them with the same --target."
            )
