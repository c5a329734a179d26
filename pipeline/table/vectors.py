"""Rows of a table in, their vectors as floats out, whatever the table's dtype is.

Codes are read back by what stands in the metadata of the rows' schema (`part.QUANTISED`), which Arrow carries along; knows
no folders and no versions.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoder.similarities import as_matrix
from pipeline.errors import InputError
from pipeline.table.part import QUANTISED
from pipeline.table.quantize import PACKED, SCALAR, dequantize

_ROWS_AT_A_TIME = 65_536

_ADVICE = "give rows of pipeline.read(table).to_table(), or of a part read by pyarrow, which keep it"


def vectors(rows: pa.Table | pa.RecordBatch, column: str | None = None) -> NDArray[np.float32]:
    """float32[n, dim]: the vectors of some rows of a table; of int8 and uint8 codes the numbers that they stand for, of
    binary and ubinary ones +1 or -1.

    `column` is the table's embedding column where nothing else tells: it is the one that the metadata names, or the only one
    of fixed-size lists. Raises InputError where there is none, or codes without the metadata that says how they are read.
    """
    if not isinstance(rows, pa.Table | pa.RecordBatch):
        raise InputError(f"rows is a {type(rows).__module__}.{type(rows).__qualname__}, not an Arrow table: {_ADVICE}")
    told = _told(rows.schema)
    name = column or _column_of(rows.schema, told)
    if name not in rows.schema.names:
        raise InputError(f"rows has no column {name!r}; it has {', '.join(rows.schema.names) or 'none'}")
    values = rows.column(name)
    if not any(
        is_kind(values.type) for is_kind in (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    ):
        raise InputError(f"column {name!r} is {values.type}; expected lists of numbers")
    if not pa.types.is_integer(values.type.value_type):
        return as_matrix(values).astype(np.float32, copy=False)
    if told is None or told["column"] != name:
        raise InputError(f"column {name!r} holds codes, and no metadata says what they stand for: {_ADVICE}")
    return _decoded(values, told)


def _told(rows: pa.Schema) -> dict[str, Any] | None:
    raw = (rows.metadata or {}).get(QUANTISED)
    if raw is None:
        return None
    try:
        told = json.loads(raw)
        ranges = np.array([told["minimum"], told["maximum"]], np.float32) if told["dtype"] in SCALAR else None
        if told["dtype"] not in SCALAR + PACKED or (ranges is not None and ranges.shape != (2, told["dim"])):
            raise ValueError(f"dtype {told['dtype']!r} with ranges for other dimensions")
        return {"column": str(told["column"]), "dtype": told["dtype"], "dim": told["dim"], "ranges": ranges}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"the metadata of rows doesn't say how its codes are read ({error!r}): {_ADVICE}") from None


def _column_of(rows: pa.Schema, told: dict[str, Any] | None) -> str:
    if told is not None:
        return str(told["column"])
    lists: list[str] = [field.name for field in rows if pa.types.is_fixed_size_list(field.type)]
    if len(lists) != 1:
        raise InputError(f"rows has {len(lists)} columns of fixed-size lists: name that of the vectors as `column`")
    return lists[0]


def _decoded(values: pa.ChunkedArray | pa.Array, told: dict[str, Any]) -> NDArray[np.float32]:
    codes = as_matrix(values)
    dtype, dim = told["dtype"], told["dim"]
    kind, width = np.dtype("uint8" if dtype.startswith("u") else "int8"), -(-dim // 8) if dtype in PACKED else dim
    if (codes.dtype, codes.shape[1]) != (kind, width):
        raise InputError(
            f"column {told['column']!r} has {codes.shape[1]} numbers of {codes.dtype}; its metadata says {width} of {kind}"
        )
    found = np.empty((len(codes), dim), np.float32)
    for start in range(0, len(codes), _ROWS_AT_A_TIME):
        some = slice(start, start + _ROWS_AT_A_TIME)
        found[some] = dequantize(codes[some], dtype, dim, told["ranges"])
    return found
