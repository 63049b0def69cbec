"""Reads a part: a Parquet file that is checked before and after reading, because other software may have written it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xattn.study.schema import SCHEMA

MOST_ROWS = 10**7
MOST_BYTES = 16 * 2**30
TEXTS = [column.name for column in SCHEMA if column.type == pa.string()]
OF_MAPS = ("count", "height", "scale")
OF_SCORES = ("model", "head", "method", "target", "target_rule", "degenerate")


def read_part(
    source: Any, images: Iterable[str] | None = None, columns: Collection[str] | None = None, *, encoded: bool = False
) -> pa.Table:
    """Reads the rows of a part in the current schema; columns that an earlier version did not write are empty.

    Args:
        source: a path or an opened file.
        images: names of the images to read; None: all.
        columns: columns of the schema to read; the others are neither read nor checked. None: all.
        encoded: keep texts as dictionaries and indices, as the part stores them.

    Raises:
        ValueError: columns have a wrong type, the part has more rows or bytes than allowed, or its rows contradict each other.
        ArrowException: it is not a readable Parquet file.
        OSError: it is not a readable Parquet file, or the file itself cannot be read.
    """
    with pq.ParquetFile(source) as file:
        _check_size(file.metadata)
        _check_columns(file.schema_arrow)
        metadata, there = file.metadata, file.schema_arrow.names
    if hasattr(source, "seek"):
        source.seek(0)
    wanted = [_encoded(column) if encoded else column for column in SCHEMA if columns is None or column.name in columns]
    read = [name for name in there if columns is None or name in columns]
    with pq.ParquetFile(source, metadata=metadata, read_dictionary=[name for name in TEXTS if name in read]) as file:
        table = file.read(read)
    _check_texts(table)
    if images is not None:
        table = table.filter(pc.is_in(table["image"].cast(pa.string()), value_set=pa.array(sorted(set(images)), pa.string())))
    found = [
        _cast(table[column.name], column.type) if column.name in table.column_names else pa.nulls(len(table), column.type)
        for column in wanted
    ]
    table = pa.table(found, schema=pa.schema(wanted))
    table.validate(full=True)
    _check_rows(table)
    return table


def _encoded(column: pa.Field) -> pa.Field:
    return column.with_type(pa.dictionary(pa.int32(), pa.string())) if column.type == pa.string() else column


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type).dictionary_encode()
    return column.cast(kind)


def _check_size(metadata: pq.FileMetaData) -> None:
    if metadata.num_rows > MOST_ROWS:
        raise ValueError(f"its metadata claims {metadata.num_rows:,} rows")
    size = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(column) for column in range(group.num_columns)]
        size += sum(max(chunk.total_uncompressed_size, 4 * chunk.num_values) for chunk in chunks)
    if not 0 <= size <= MOST_BYTES:
        raise ValueError(f"its metadata claims {size:,} bytes")


def _check_columns(schema: pa.Schema) -> None:
    """Refuses columns of a wrong type before they are read; columns with unknown names are not read."""
    names = schema.names
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"column '{min(twice)}' appears twice")
    if "image" not in names:
        raise ValueError("it has no column 'image'")
    for column in SCHEMA:
        if column.name in names:
            found = schema.field(column.name).type
            found = found.value_type if pa.types.is_dictionary(found) else found
            taken = pa.types.is_primitive(column.type) or pa.types.is_string(column.type)  # targets were numbers in version 0.1
            if found != column.type and not (pa.types.is_primitive(found) and taken):
                raise ValueError(f"column '{column.name}' is of type {found}; {column.type} is needed")


def _check_texts(table: pa.Table) -> None:
    """Refuses texts that are small in the file, where a dictionary holds them once, and would fill the memory when repeated in the rows."""
    chunks = [chunk for column in table.columns for chunk in column.chunks if pa.types.is_dictionary(chunk.type)]
    texts = [(pc.binary_length(chunk.dictionary), chunk.indices) for chunk in chunks if pa.types.is_string(chunk.type.value_type)]
    most = MOST_BYTES // 4
    if sum((pc.max(lengths).as_py() or 0) * len(indices) for lengths, indices in texts) <= most:
        return
    size = sum(pc.sum(pc.take(lengths, indices).cast(pa.int64())).as_py() or 0 for lengths, indices in texts)
    if size > most:
        raise ValueError(f"its texts have {size:,} bytes")


def _check_rows(table: pa.Table) -> None:
    """Refuses rows without the entries that a map or a score needs, among the columns that are read."""
    if table["image"].null_count:
        raise ValueError("a row has no image")
    names = set(table.column_names)
    if {"method", "error", *OF_SCORES, "label", "predicted"} <= names:
        _check_scores(table)
    if {"metric", "method"} <= names and pc.any(pc.and_(pc.is_valid(table["metric"]), pc.is_null(table["method"]))).as_py():
        raise ValueError("a row of a score has no method")
    if {"map", *OF_MAPS, "model", "head"} <= names:
        _check_maps(table)


def _check_scores(table: pa.Table) -> None:
    is_about_map = pc.and_(pc.is_valid(table["method"]), pc.is_null(table["error"]))
    for name in OF_SCORES:
        if table[name].null_count and pc.any(pc.and_(is_about_map, pc.is_null(table[name]))).as_py():
            raise ValueError(f"a row of a map or a score has no {name}")
    for name in ("label", "predicted"):
        if pc.any(pc.and_(is_about_map, pc.invert(pc.is_finite(table[name])))).as_py():
            raise ValueError(f"a row has a {name} that is not a number")


def _check_maps(table: pa.Table) -> None:
    maps = table.select(["map", *OF_MAPS, "model", "head"]).filter(pc.is_valid(table["map"]))
    for name in (*OF_MAPS, "model", "head"):
        if maps[name].null_count:
            raise ValueError(f"a row of a map has no {name}")
    if len(maps):
        count, height = maps["count"].cast(pa.int64()), maps["height"].cast(pa.int64())
        size = pc.binary_length(maps["map"]).cast(pa.int64())
        if pc.min(count).as_py() < 1 or pc.min(height).as_py() < 1:
            raise ValueError("a map has no rows")
        rows_of_maps = pc.multiply(count, height)
        width = pc.divide(size, pc.multiply(rows_of_maps, pa.scalar(2, pa.int64())))
        if pc.min(width).as_py() < 1 or not pc.all(pc.equal(pc.multiply(pc.multiply(rows_of_maps, width), 2), size)).as_py():
            raise ValueError("the size of a map differs from its metadata")
