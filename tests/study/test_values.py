"""Values of a run in few bytes: the same as its rows, and tables of them as from rows of text."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xattn.errors import RunError
from xattn.metrics.significance import significance
from xattn.metrics.tables import comparison
from xattn.metrics.wide import by_picture, groups
from xattn.study.parts import read_part
from xattn.study.schema import Row, arrow_table
from xattn.study.store import Store
from xattn.study.summary import Summary
from xattn.study.values import COLUMNS, READ, joined, values_of

METHODS, METRICS = ("random", "grad-cam", "centre"), ("average-drop", "insertion")


def rows_of(images: range, seed: int = 0) -> list[Row]:
    """Rows of two targets for every third image; some values are undefined, and one image failed."""
    draw = random.Random(seed)
    rows = [Row("broken.png", seed=0, error="no picture")]
    for number in images:
        for target in ("3", "7") if number % 3 == 0 else ("7",):
            about = {"model": "net", "head": "gap", "target": target, "target_rule": "labels", "label": 7.0, "predicted": 3.0}
            for method in METHODS:
                for metric in METRICS:
                    value = None if draw.random() < 0.1 else 100 * draw.random()
                    rows.append(Row(f"{number}.png", method=method, metric=metric, value=value, degenerate=False, **about))
                rows.append(Row(f"{number}.png", method=method, degenerate=number == 4, **about))
    return rows


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "run")
    for number in range(3):
        found.write_part(f"{number}", arrow_table(rows_of(range(10 * number, 10 * number + 10), number)))
    return found


def test_values_are_the_rows_with_texts_as_categories_in_the_order_of_letters(store: Store) -> None:
    values, rows = store.values(), store.rows()
    for name in COLUMNS:
        assert values[name].astype(rows[name].dtype).equals(rows[name])
    assert list(values["image"].cat.categories) == sorted(rows["image"].unique())
    assert values.memory_usage(index=False).sum() < 40 * len(values)


def test_a_table_of_categories_is_that_of_texts_to_the_last_digit(store: Store) -> None:
    values, rows = store.values(), store.rows()
    for against in (None, "random"):
        one, other = (comparison(frame, against, without_degenerate=True) for frame in (values, rows))
        assert one.text("csv") == other.text("csv")
        assert one.notes == other.notes
    assert significance(values).text("csv") == significance(rows).text("csv")


def test_values_of_several_runs_are_joined_under_common_categories(store: Store, tmp_path: Path) -> None:
    more = Store(tmp_path / "more")
    more.write_part("0", arrow_table(rows_of(range(25, 35), 9)))
    found = joined([store.values(), more.values()])
    rows = pd.concat([store.rows(), more.rows()], ignore_index=True)
    assert all(found[name].astype(rows[name].dtype).equals(rows[name]) for name in COLUMNS)
    assert list(found["image"].cat.categories) == sorted(rows["image"].unique())


def test_many_texts_take_more_bytes_and_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xattn.study.values.AT_ONCE", 100)  # so that numbers of texts grow on the way
    tables = [arrow_table(rows_of(range(start, start + 20))).select(READ) for start in range(0, 400, 20)]
    found = values_of(tables)
    assert found is not None
    images = [name for table in tables for name in table.filter(pa.compute.is_valid(table["metric"]))["image"].to_pylist()]
    assert found["image"].tolist() == images
    assert found["image"].cat.codes.dtype == "int16"
    assert values_of([]) is None


def test_a_run_without_a_part_has_no_values(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no finished part yet"):
        Store(tmp_path / "none").values()


def test_columns_that_are_not_asked_for_are_not_read(store: Store, tmp_path: Path) -> None:
    table = read_part(tmp_path / "run" / "parts" / "0.parquet", columns=("image", "model", "error"))
    assert table.column_names == ["image", "model", "error"]
    assert store.failed() == [("broken.png", "no picture")]


@pytest.mark.parametrize("missing", ["target", "head", "degenerate"])
def test_a_damaged_row_of_a_score_is_refused_whatever_columns_are_read(missing: str, tmp_path: Path) -> None:
    rows = arrow_table(rows_of(range(3)))
    place = rows.column_names.index(missing)
    Store(tmp_path / "run").write_part("0", rows.set_column(place, missing, pa.nulls(len(rows), rows.schema.field(missing).type)))
    with pytest.raises(RunError, match=f"has no {missing}"):
        Store(tmp_path / "run").values()


def test_pictures_by_methods_are_pandas_pivot_table_without_its_empty_rows(store: Store) -> None:
    rows = store.rows()
    one = rows[rows["metric"] == "insertion"]
    wanted = one.pivot_table(index=["image", "target"], columns="method", values="value", sort=False, dropna=False)
    for frame in (one, store.values()[store.values()["metric"] == "insertion"]):
        found = by_picture(frame, "value", ["image", "target"], ["method"])
        assert found.notna().any(axis=1).sum() == wanted.notna().any(axis=1).sum()
        pd.testing.assert_frame_equal(found.dropna(how="all"), wanted[found.columns].dropna(how="all"), check_names=False)
    means = by_picture(one, "value", ["image"], ["method"])
    wanted = one.pivot_table(index="image", columns="method", values="value", sort=False, dropna=False)
    pd.testing.assert_frame_equal(means, wanted[means.columns], check_names=False)


def test_pictures_of_a_thousand_classes_take_a_row_each() -> None:
    """Not one for each picture and class: 50,000 × 1,000 rows would fill the memory."""
    rows = pd.DataFrame(
        {"image": [f"{n}" for n in range(3000)], "target": [f"{n % 1000}" for n in range(3000)], "method": "a", "value": 1.0}
    )
    assert by_picture(rows, "value", ["image", "target"], ["method"]).shape == (3000, 1)


def test_means_of_a_run_are_those_of_its_rows(store: Store) -> None:
    summary = Summary(METRICS)
    for table in store.tables():
        summary.add(table)
    found, rows = summary.frame().set_index("method"), store.rows()
    for (method, metric), value in rows.groupby(["method", "metric"])["value"].mean().items():
        assert found.loc[method, metric] == pytest.approx(value)
    assert found["n"].tolist() == [rows[["image", "target"]].drop_duplicates().shape[0]] * 3
    assert found["degenerate_share"].tolist() == pytest.approx([1 / found["n"].iloc[0]] * 3)


def test_texts_that_stay_numbered_are_those_that_are_read_plain(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "run" / "parts" / "0.parquet"
    plain, encoded = read_part(path), read_part(path, encoded=True)
    assert pa.types.is_dictionary(encoded.schema.field("method").type)
    assert encoded.to_pylist() == plain.to_pylist()
    numbers = plain.set_column(plain.column_names.index("target"), "target", pa.array([7] * len(plain), pa.int64()))  # as version 0.1 did
    pq.write_table(numbers.drop_columns(["reason"]), tmp_path / "earlier.parquet")
    found = read_part(tmp_path / "earlier.parquet", encoded=True)
    assert found["target"].to_pylist() == ["7"] * len(plain)
    assert found["reason"].null_count == len(plain)


def test_texts_are_refused_by_what_the_rows_would_hold_of_them_not_by_their_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xattn.study.parts.MOST_BYTES", 8_000_000)
    path = tmp_path / "part.parquet"
    for images, fits in ((["a" * 100] * 100_000, False), (["a" * 100, *["b"] * 99_999], True)):
        pq.write_table(pa.table({"image": images}), path, row_group_size=1000)
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="its texts have 10,000,000 bytes"):
            assert len(read_part(path, columns=("image",))) == 100_000


def test_groups_are_those_of_pandas_in_its_order_whatever_the_columns(store: Store) -> None:
    for rows in (store.values(), store.rows()):
        for columns in (["method"], ["model", "method", "metric"], ["image", "target", "method", "metric"]):
            found = [(key, where.tolist()) for key, where in groups(rows, columns)]
            wanted = rows.groupby(columns, sort=False, observed=True)
            assert found == [(key if isinstance(key, tuple) else (key,), group.index.tolist()) for key, group in wanted]
    gaps = pd.DataFrame({"method": ["b", None, "a", "b"], "value": [1.0, 2.0, 3.0, 4.0]})
    assert [(key, where.tolist()) for key, where in groups(gaps, ["method"])] == [(("b",), [0, 3]), (("a",), [2])]
    assert list(groups(gaps[:0], ["method"])) == []
