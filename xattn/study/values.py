"""Values of a run in a few bytes each, for tables and figures; scales to ten million rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xattn.deferred import pandas as pd

if TYPE_CHECKING:
    import pandas

TEXTS = ("image", "model", "head", "method", "metric", "target", "target_rule")
NUMBERS = ("value", "label", "predicted")
COLUMNS = (*TEXTS, *NUMBERS, "degenerate")
READ = (*COLUMNS, "error")
AT_ONCE = 2**18  # rows whose texts are numbered in one step


def values_of(parts: Iterable[pa.Table]) -> pandas.DataFrame | None:
    """Reads the rows of values of some parts, with `COLUMNS`; None if there is no part.

    Texts become categories in alphabetical order, the order in which texts are sorted and grouped.

    Args:
        parts: tables with the columns `READ`, read one after the other; texts are plain, or dictionaries and indices, which is faster.
    """
    kept: list[pa.Table] = []
    texts: dict[str, dict[str, int]] = {name: {} for name in TEXTS}
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
    parts_seen = False
    for part in parts:
        parts_seen = True
        kept.append(part.select(COLUMNS).filter(pc.is_valid(part["metric"])))
        if sum(map(len, kept)) >= AT_ONCE:
            _add(pa.concat_tables(kept), texts, columns)
            kept = []
    if not parts_seen:
        return None
    _add(pa.concat_tables(kept) if kept else None, texts, columns)
    found: dict[str, Any] = {}
    for name in COLUMNS:
        found[name] = np.concatenate(columns.pop(name) or [np.empty(0, dtype=np.int8 if name in TEXTS else np.float64)])
        if name in TEXTS:
            found[name] = categorical(found[name], list(texts[name]))
    return pd.DataFrame(found, copy=False)


def joined(frames: Sequence[pandas.DataFrame]) -> pandas.DataFrame:
    """Concatenates frames of `values_of`, possibly with more columns, and merges their categories."""
    if len(frames) == 1:
        return frames[0]
    found: dict[str, Any] = {}
    for name in frames[0].columns:
        columns = [frame[name] for frame in frames]
        if name not in TEXTS:
            found[name] = np.concatenate([column.to_numpy() for column in columns])
            continue
        texts = list(dict.fromkeys(text for column in columns for text in column.cat.categories))
        place = {text: number for number, text in enumerate(texts)}
        numbers = [np.array([*(place[text] for text in column.cat.categories), -1], dtype=np.int32) for column in columns]
        codes = np.concatenate([number[column.cat.codes] for number, column in zip(numbers, columns, strict=True)])
        found[name] = categorical(codes, texts)
    return pd.DataFrame(found, copy=False)


def _add(table: pa.Table | None, texts: Mapping[str, dict[str, int]], columns: Mapping[str, list[NDArray[Any]]]) -> None:
    """Appends rows to columns; texts become their numbers among the texts known so far."""
    if table is None:
        return
    for name, known in texts.items():
        column = table[name].combine_chunks()
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        number = np.array([known.setdefault(text, len(known)) for text in encoded.dictionary.to_pylist()], dtype=np.int32)
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        columns[name].append(narrowed(np.append(number, -1)[codes], len(known)))
    for name in NUMBERS:
        columns[name].append(table[name].to_numpy())
    columns["degenerate"].append(table["degenerate"].to_numpy(zero_copy_only=False).astype(bool))


def narrowed(codes: NDArray[Any], count: int) -> NDArray[Any]:
    """Returns codes for `count` categories in the smallest sufficient integer type."""
    kind = next(kind for kind in (np.int8, np.int16, np.int32) if count <= np.iinfo(kind).max)
    return codes.astype(kind, copy=False)


def categorical(codes: NDArray[Any], texts: Sequence[str]) -> pandas.Categorical:
    """Returns texts from their numbers (−1 for none) as categories in alphabetical order; unused categories are left out."""
    used = np.zeros(len(texts) + 1, dtype=bool)
    used[codes] = True
    order = sorted(np.flatnonzero(used[:-1]).tolist(), key=texts.__getitem__)
    place = np.full(len(texts) + 1, -1, dtype=np.int32)
    place[order] = np.arange(len(order))
    categories = pd.Index([texts[number] for number in order], dtype="str")
    return pd.Categorical.from_codes(narrowed(place, len(order))[codes], categories=categories)
