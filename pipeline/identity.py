"""The hashes that decide what is the same: of a text, of a row, of a model's vectors, of the output, of a unit of work.

A change here makes every table out there look new, so golden tests pin each of them. No clock, no random number, no
path of this machine enters; nothing here opens a file.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrays import decode, is_list, list_parts, struct_children
from pipeline.work import Span

SEMANTICS = 1
"""Raised when our own code moves a vector beyond the stated tolerance."""

_NULL = b"\x00"
_BEFORE_VALUE = struct.Struct("<BQ").pack
_NAN = struct.pack("<d", float("nan"))


def digest(value: Any) -> str:
    """128 bits in hex over the canonical JSON of `value` (keys sorted, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def vectors_spec(
    encoder: Mapping[str, Any], dtype: str, chunk: Mapping[str, Any] | None, calibration: str | None = None
) -> dict[str, Any]:
    """All that changes a vector: the encoder's identity, how texts are chunked, the dtype, the digest of the ranges that
    int8 and uint8 are quantised with, and our `SEMANTICS`. Its digest is the fingerprint."""
    return {"encoder": encoder, "dtype": dtype, "chunk": chunk, "calibration": calibration, "semantics": SEMANTICS}


def unit_id(spans: Sequence[Span], output: str, fingerprint: str) -> str:
    """A unit is the same while its spans, their files' versions, the output and the model are."""
    pieces = [
        [span.file.name, span.file.version, span.file.format, span.kind, span.start, span.stop, *_given(span.take)]
        for span in spans
    ]
    return digest({"kind": "rows", "spans": pieces, "output": output, "fingerprint": fingerprint})


def retry_id(unit: str, rows: Sequence[tuple[int, int]]) -> str:
    """The id of rows of a live unit that are tried again; a row is (number of its source, position), and rows are
    sorted."""
    return digest({"kind": "texts", "unit": unit, "rows": [list(row) for row in rows]})


def texts_id(hashes: Sequence[bytes], fingerprint: str) -> str:
    """The id of the texts with these content hashes, sorted: wherever they stand, their vectors are the same."""
    return digest({"kind": "texts", "hashes": [item.hex() for item in hashes], "fingerprint": fingerprint})


def stale_id(unit: str, sources: Sequence[int]) -> str:
    """The id of what is left of a unit that can't be read any more: no plan has it, so that it is looked at again each
    time."""
    return digest({"kind": "stale", "unit": unit, "sources": list(sources)})


def _given(value: int | None) -> list[int]:
    return [] if value is None else [value]


def content_hashes(texts: pa.Array | pa.ChunkedArray, prompt: str) -> pa.Array:
    """binary(16) per text, over exactly what the model reads: prompt + text in UTF-8, not normalised."""
    before, blake2b = prompt.encode(), hashlib.blake2b
    values = pc.cast(texts, pa.large_binary()).to_pylist()
    return pa.array([blake2b(before + value, digest_size=16).digest() for value in values], pa.binary(16))


def id_hashes(ids: pa.Array | pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """uint64[n, 2]: 128 bits per id, enough to call two ids equal when their hashes are."""
    raw = b"".join(hashlib.blake2b(value.as_buffer(), digest_size=16).digest() for value in pc.cast(ids, pa.binary()))
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def row_hashes(columns: pa.Table, more: pa.Table | None = None, row: Iterable[int] = ()) -> pa.Array:
    """int64 per row over all columns in their order: names and types are the output's business, values count here.

    With `more` a hash per row of it, over the columns of row `row[i]` of `columns` and then its own: as if they had been
    repeated, but hashed once.
    """
    blake2b = hashlib.blake2b
    if more is None:
        hashes = [blake2b(values, digest_size=8).digest() for values in _encoded_rows(columns)]
    else:
        states = [blake2b(values, digest_size=8) for values in _encoded_rows(columns)]
        copies = [states[number].copy() for number in row]
        for state, values in zip(copies, _encoded_rows(more), strict=True):
            state.update(values)
        hashes = [state.digest() for state in copies]
    return pa.array(np.frombuffer(b"".join(hashes), np.int64))


def _encoded_rows(columns: pa.Table) -> Iterable[bytes]:
    """The values of each row, one after the other."""
    if not columns.num_columns:
        return [b""] * columns.num_rows
    return map(b"".join, zip(*map(_encode_column, columns.columns), strict=True))


def _encode_column(values: pa.Array | pa.ChunkedArray) -> Iterable[bytes]:
    """One prefix-free byte string per value, so that no two rows run together: b"\\0" for null, else 1, length,
    bytes."""
    if isinstance(values, pa.ChunkedArray):
        # Chunks are not joined first: pyarrow 26 takes half floats for integers when it joins dictionaries of them.
        return [encoded for chunk in values.chunks for encoded in _encode_column(chunk)]
    if pa.types.is_dictionary(values.type):
        # Each value once: a column of a million rows may have ten.
        known = [*_encode_column(values.dictionary), _NULL]
        places = pc.fill_null(values.indices.cast(pa.int64()), len(known) - 1)
        return [known[place] for place in places.to_numpy().tolist()]
    return [_NULL if value is None else _BEFORE_VALUE(1, len(value)) + value for value in _value_bytes(values)]


def _value_bytes(values: pa.Array) -> Iterable[bytes | None]:
    """Equal bytes for equal values, whatever their encoding: views, large and fixed sizes, dictionaries, extensions."""
    values = decode(values)
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return list(values.cast(pa.large_binary()).to_pylist())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return list(values.to_pylist())
    if pa.types.is_floating(kind):
        floats = values.cast(pa.float64()).to_pylist()
        # A NaN has many bit patterns, and conversions choose among them.
        return [None if x is None else _NAN if x != x else struct.pack("<d", x) for x in floats]
    if _is_tick(kind):
        return [None if value is None else struct.pack("<q", value) for value in _ticks(values)]
    return [None if value is None else repr(value).encode() for value in _python_values(values)]


def _is_tick(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind) and not pa.types.is_interval(kind))


def _ticks(values: pa.Array) -> list[int | None]:
    """The stored integers: Python has no year 10000, and its objects print differently from version to version."""
    return list(values.view(pa.int32() if values.type.bit_width == 32 else pa.int64()).to_pylist())


def _python_values(values: pa.Array) -> list[Any]:
    """Objects with one repr per value: numbers, str, bytes, Decimal, and lists, dicts and pairs of them."""
    values = decode(values)
    kind = values.type
    if not _needs_care(kind):
        return list(values.to_pylist())
    if is_list(kind) or pa.types.is_map(kind):
        lengths, children = list_parts(values)
        items = [_python_values(child) for child in children]
        flat = items[0] if len(items) == 1 else list(zip(*items, strict=True))
        stops = np.cumsum(lengths)
        ranges = zip((stops - lengths).tolist(), stops.tolist(), values.is_valid().to_pylist(), strict=True)
        return [flat[start:stop] if valid else None for start, stop, valid in ranges]
    if pa.types.is_struct(kind):
        fields = {name: _python_values(child) for name, child in struct_children(values).items()}
        rows = zip(*fields.values(), strict=True)
        valid = values.is_valid().to_pylist()
        return [dict(zip(fields, row, strict=True)) if known else None for row, known in zip(rows, valid, strict=True)]
    return _ticks(values)


def _needs_care(kind: pa.DataType) -> bool:
    """Whether Arrow's own Python form of a value, at any depth, is not ours: times, and objects of extensions."""
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind) or is_list(kind):
        return _needs_care(kind.value_type)
    if pa.types.is_map(kind):
        return _needs_care(kind.key_type) or _needs_care(kind.item_type)
    return any(_needs_care(item.type) for item in kind) if pa.types.is_struct(kind) else _is_tick(kind)
