"""From rows to an Arrow table, column by column: lists of tensors are flattened first, which is several times faster than converting rows."""

# pyarrow ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import pyarrow as pa

from broker.tap_sinks.parquet_layout import LAYOUT, PATH_STEP, TENSOR
from broker.tap_sinks.parquet_rows import Row

Table = Any
"""A pyarrow.Table."""
_MISFITS = (pa.ArrowException, ValueError, TypeError, OverflowError)
_STEP = attrgetter(*(PATH_STEP.field(at).name for at in range(PATH_STEP.num_fields)))


def table_of(rows: Sequence[Row]) -> tuple[Table, int]:
    """Rows with the columns of the layout, and how many do not fit into those (records that are none of ours) and are left out."""
    try:
        return _table(rows), 0
    except _MISFITS:
        fitting = [row for row in rows if _fits(row)]
        return _table(fitting), len(rows) - len(fitting)


def joined(tables: Sequence[Table]) -> Table:
    """One table of them all, each column in one piece: a file has as few groups of rows as there were flushes."""
    return pa.concat_tables(tables).combine_chunks()


def _fits(row: Row) -> bool:
    try:
        _table([row])
    except _MISFITS:
        return False
    return True


def _table(rows: Sequence[Row]) -> Table:
    columns = [_column(field, list(map(itemgetter(field.name), rows))) for field in LAYOUT]
    return pa.Table.from_arrays(columns, schema=LAYOUT)


def _column(field: Any, values: list[Any]) -> Any:
    if field.name in ("inputs", "outputs"):
        return _lists(values, field.type, _tensors)
    if field.name == "path":
        return _lists(values, field.type, _steps)
    return pa.array(values, field.type)


def _lists(values: Sequence[Sequence[Any] | None], kind: Any, flat: Any) -> Any:
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value or ()))
    missing = [value is None for value in values]
    elements = flat(list(chain.from_iterable(value for value in values if value)))
    mask = pa.array(missing, pa.bool_()) if any(missing) else None
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), elements, type=kind, mask=mask)


def _tensors(tensors: Sequence[tuple[str, str, Sequence[int], bytes | None]]) -> Any:
    names, datatypes, shapes, data = zip(*tensors, strict=True) if tensors else ((), (), (), ())
    columns = [pa.array(each, TENSOR.field(at).type) for at, each in enumerate((names, datatypes, [list(shape) for shape in shapes], data))]
    return pa.StructArray.from_arrays(columns, fields=[TENSOR.field(at) for at in range(TENSOR.num_fields)])


def _steps(steps: Sequence[Any]) -> Any:
    columns = list(zip(*map(_STEP, steps), strict=True)) if steps else [()] * PATH_STEP.num_fields
    arrays = [pa.array(each, PATH_STEP.field(at).type) for at, each in enumerate(columns)]
    return pa.StructArray.from_arrays(arrays, fields=[PATH_STEP.field(at) for at in range(PATH_STEP.num_fields)])
