"""Converts tidy rows to tables with one row per picture and one column per method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from xattn.deferred import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

KEYS = ["model", "head", "method"]
EXPLAINED = ["image", "target"]  # what a row explains, within one model and head

Places: TypeAlias = "NDArray[np.int64]"


class Numbered(NamedTuple):
    """Rows numbered by their distinct values in some columns.

    Attributes:
        place: index of each row's values in `values`, `(n,)`; −1 where a column is empty.
        values: the distinct values, in the order in which those of the first column appear, then those of the second.
    """

    place: Places
    values: pd.MultiIndex


def numbered(rows: pd.DataFrame, columns: Sequence[str]) -> Numbered:
    """The distinct values of some columns, and their index for each row.

    >>> import pandas as pd
    >>> numbered(pd.DataFrame({"image": ["b", "a", "b"], "target": ["1", "1", "2"]}), ["image", "target"]).place.tolist()
    [0, 2, 1]
    """
    import pandas as pd

    values_of: list[Any] = []
    key, is_known = np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=bool)
    for column in columns:
        codes, values = pd.factorize(rows[column])
        key *= max(1, len(values))
        key += codes
        is_known &= codes >= 0
        values_of.append(values)
        del codes
    different, place = _different(key if is_known.all() else key[is_known], math.prod(max(1, len(values)) for values in values_of))
    del key
    levels: list[NDArray[np.object_]] = []
    for values in reversed(values_of):
        different, code = np.divmod(different, max(1, len(values)))
        levels.insert(0, np.asarray(values, dtype=object)[code])
    if not is_known.all():
        everywhere = np.full(len(rows), -1, dtype=np.int64)
        everywhere[is_known] = place
        place = everywhere
    return Numbered(place, pd.MultiIndex.from_arrays(levels, names=list(columns)))


def _different(key: Places, count: int) -> tuple[Places, Places]:
    """The distinct numbers below `count`, in ascending order, and the index of each number among them."""
    if count > 2 * len(key):
        different, place = np.unique(key, return_inverse=True)
        return different, place
    different = np.flatnonzero(np.bincount(key, minlength=count))
    number = np.zeros(count, dtype=np.int64)
    number[different] = np.arange(len(different))
    return different, number[key]


def groups(rows: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], Places]]:
    """Groups rows by the values of some columns: the values, in the order of their first rows, and the rows that have them.

    Unlike pandas' groups, these need no sorted copy of all rows; rows with an empty cell in `columns` are in no group.

    >>> import pandas as pd
    >>> [(key, where.tolist()) for key, where in groups(pd.DataFrame({"method": ["b", "a", "b"]}), ["method"])]
    [(('b',), [0, 2]), (('a',), [1])]
    """
    place, values = numbered(rows, columns)
    small = place.astype(np.int16) if len(values) < 2**15 else place  # int16 is sorted in a few passes
    del place
    ordered = np.argsort(small, kind="stable")
    ends = np.cumsum(np.bincount(small + 1, minlength=len(values) + 1))
    found = [(ordered[start:end], key) for start, end, key in zip(ends[:-1], ends[1:], values, strict=True)]
    for where, key in sorted(found, key=lambda each: int(each[0][0])):
        yield key, where


def by_picture(rows: pd.DataFrame, value: str, index: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Table with one row per picture and one column per method: the value, or the mean of several values without NaN.

    Args:
        rows: tidy; those with an empty cell in `index` or `columns` are left out.
        value: the column of values.
        index: columns that identify a picture; the table's rows are in the order of appearance.
        columns: columns that identify a method.
    """
    import pandas as pd

    down, across = numbered(rows, index), numbered(rows, columns)
    width = len(across.values)
    is_known = (down.place >= 0) & (across.place >= 0)
    cell, values = (down.place * width + across.place)[is_known], rows[value].to_numpy(dtype=np.float64)[is_known]
    table = np.full(len(down.values) * width, math.nan)
    if len(cell) and np.bincount(cell).max() > 1:
        means = pd.Series(values).groupby(cell).mean()
        cell, values = means.index.to_numpy(), means.to_numpy()
    table[cell] = values
    labels = [each.get_level_values(0) if each.nlevels == 1 else each for each in (down.values, across.values)]
    cells: Any = table.reshape(len(down.values), width)
    found: pd.DataFrame = pd.DataFrame(cells, index=labels[0], columns=labels[1])
    return found
