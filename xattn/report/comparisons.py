"""Table of a report: that of `xattn compare`, once for each method as the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xattn.errors import InputError
from xattn.metrics.base import metrics
from xattn.metrics.sheets import OF_LABELS, Sheet
from xattn.metrics.tables import Table, comparison
from xattn.metrics.typeset import groups, latex_cell, latex_text
from xattn.metrics.wide import KEYS
from xattn.report.contents import Column
from xattn.study.compare import compare_runs, joint_rows
from xattn.study.questions import shown_names
from xattn.study.store import Store
from xattn.text import shown

LAST = ("n", "degenerate_share")


def compared(runs: Sequence[str | Path], columns: Sequence[Column]) -> dict[str, Any] | None:
    """Returns the table in the page's format; None if the runs hold no scores.

    Args:
        runs: run folders.
        columns: columns of the report, to which rows of the table are linked.
    """
    stores = [Store(run) for run in runs]
    try:
        table = compare_runs(runs)
    except InputError as error:
        if "no scores" not in str(error):
            raise
        return None
    rows, _ = joint_rows(stores, shown_names(stores))
    of_runs = table.notes[len(comparison(rows).notes) :]
    place = {column: number for number, column in enumerate(columns)}
    printed = table.sheet()
    network = {number: name for name, numbers in groups(printed) for number in numbers}
    values = [*table.metrics, *(name for name in OF_LABELS if name in table.frame), *LAST]
    methods = list(dict.fromkeys(table.frame["method"]))
    return {
        "columns": [_column(name, header) for name, header in zip(values, _headers(printed), strict=True)],
        "rows": [
            {
                "place": place.get(Column(row["model"], row["head"], row["method"]), -1),
                "names": [_plain(str(row[key])) for key in KEYS],
                "values": [_number(row[name]) for name in values],
                "cells": [column.cells[number].plain for column in printed.columns] + [texts[number] for _, texts in printed.tail],
                "network": latex_text(network[number]),
                "latex": _latex(printed, number),
            }
            for number, (_, row) in enumerate(table.frame.iterrows())
        ],
        "latexHeader": ["", *map(latex_text, _headers(printed))],
        "notes": list(map(_plain, table.notes)),
        "references": {_plain(method): _against(comparison(rows, method), of_runs) for method in methods if len(methods) > 1},
    }


def _column(name: str, header: str) -> dict[str, Any]:
    about: dict[str, Any] = {"name": name, "header": header, "better": None}
    if name not in OF_LABELS and name not in LAST:
        metadata = metrics.create(name).metadata
        about |= {"better": metadata.better, "unit": metadata.unit}
    elif name in OF_LABELS:
        about |= {"better": "higher" if name == "accuracy" else "lower"}
    return about


def _headers(printed: Sheet) -> list[str]:
    return [column.header for column in printed.columns] + [header for header, _ in printed.tail]


def _latex(printed: Sheet, number: int) -> list[str]:
    """Returns method and cells of a row; the best is not marked, because rows may be hidden."""
    cells = [latex_cell(replace(column.cells[number], rank=0)) for column in printed.columns]
    return [latex_text(printed.rows[number][2]), *cells, *(latex_text(texts[number]) for _, texts in printed.tail)]


def _against(table: Table, of_runs: Sequence[str]) -> dict[str, Any]:
    """Returns what a reference adds: differences and p of each metric, marked LaTeX cells, notes."""
    printed = table.sheet()
    rows = [row for _, row in table.frame.iterrows()]
    return {
        "difference": [[_number(row[f"{metric} difference"]) for metric in table.metrics] for row in rows],
        "p": [[_number(row[f"{metric} p"]) for metric in table.metrics] for row in rows],
        "latex": [_latex(printed, number) for number in range(len(rows))],
        "notes": list(map(_plain, (*table.notes, *of_runs))),
    }


def _plain(text: str) -> str:
    return shown(text, keep="")


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
