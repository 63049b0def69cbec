"""Several runs in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from xattn.errors import InputError
from xattn.metrics.tables import Table, comparison
from xattn.study.store import Store


def shown_names(stores: Sequence[Store]) -> list[dict[str, str]]:
    """How each run's models are called beside the others': by the run's path too, where two of one name have other weights."""
    digests: dict[str, str] = {}
    shown = []
    for store in stores:
        names = {}
        for model in store.read_run()["settings"]["models"]:
            name, digest = model["name"], model["weights"]
            names[name] = name if digests.setdefault(name, digest) == digest else f"{name} ({store.folder})"
        shown.append(names)
    return shown


def compare_runs(runs: Sequence[str | Path], against: str | None = None) -> Table:
    """One comparison table of several runs.

    Two runs may hold the same model, head, method and metric for different images; for the same image they may not differ. A model
    whose weights differ between runs is called by its run too.

    Args:
        runs: run folders.
        against: a method to test the others against.

    Raises:
        InputError: two runs give one value differently.
        RunError: a folder that is no run.
    """
    stores = [Store(run) for run in runs]
    frames = []
    for store, names in zip(stores, shown_names(stores), strict=True):
        rows = store.rows()
        frames.append(rows.assign(model=rows["model"].replace(names)))
    rows = pd.concat(frames, ignore_index=True).drop_duplicates()
    keys = ["image", "model", "head", "method", "metric"]
    if (twice := rows[rows.duplicated(keys, keep=False)]).size:
        first = twice.iloc[0]
        raise InputError(
            f"the runs give different values of {first['metric']} of {first['method']} on {first['image']}: "
            f"{', '.join(f'{value:.6g}' for value in twice['value'].head(2))}. They were run with other settings; compare them apart."
        )
    return comparison(rows, against)
