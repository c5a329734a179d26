"""Which rows of a data file are deleted: read from where the log says, just before the file is read.

Comes in: a source file. Goes out: the positions of its deleted rows. Files of positions are Parquet, and are read in
a process of their own as all Parquet of a source is.
"""

import contextlib
import functools
import json
import struct
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import LimitSpec, SourceSpec
from pipeline.errors import SourceChanged
from pipeline.sources import isolated
from pipeline.sources.lakehouse.deletion_vectors import Positions, framed, positions
from pipeline.storage import Options, look_up, open_pinned
from pipeline.work import DeletedRows, Logged, SourceFile, Span

_PUFFIN = b"PFA1"
_TAIL_BYTES = 12
_POSITIONS = pa.schema([("file_path", pa.string()), ("pos", pa.int64())])


class UnknownDeletes(ValueError):
    """What says which rows are deleted can't be read: none of the file's rows may be taken for a live one."""


def deleted_rows(logged: Logged, options: Options) -> Positions:
    """int64[n]: the positions of the deleted rows, sorted, each once. Raises UnknownDeletes, SourceChanged and
    StorageError."""
    found = []
    read = {"bitmap": _bitmap, "positions": _positions, "puffin": _puffin}
    for each in logged.deletes:
        try:
            found.append(read[each.kind](each, options))
        except (ValueError, KeyError, TypeError, struct.error, isolated.Lost) as error:
            raise UnknownDeletes(
                f"{each.path or 'the log'} says which of its rows are deleted, and can't be read: {error}"
            ) from None
    return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))


def _bitmap(each: DeletedRows, options: Options) -> Positions:
    if not each.path:
        return positions(each.inline, each.rows)
    return positions(framed(_bytes(each.path, each.offset, each.size, options)), each.rows)


def _puffin(each: DeletedRows, options: Options) -> Positions:
    """The footer is JSON, with its size, flags and a mark behind it."""
    tail = _bytes(each.path, max(0, each.size - _TAIL_BYTES), _TAIL_BYTES, options)
    size, flags = struct.unpack("<i4s", tail[-12:-4])
    if tail[-4:] != _PUFFIN or flags[0] or size < 0:
        raise ValueError("it is no Puffin file with a plain footer")
    blobs = json.loads(_bytes(each.path, each.size - 12 - size, size, options))["blobs"]
    found = [np.zeros(0, np.int64)]
    for blob in blobs:
        if blob.get("properties", {}).get("referenced-data-file") == each.data_file:
            content = framed(_bytes(each.path, int(blob["offset"]), int(blob["length"]), options))
            rows = blob["properties"].get("cardinality")
            found.append(positions(content, None if rows is None else int(rows)))
    return np.concatenate(found)


def _bytes(path: str, offset: int, size: int, options: Options) -> bytes:
    """A piece of a file, whose whole size the log need not tell."""
    found = look_up(path, options)
    if found is None:
        raise SourceChanged(f"{path!r} is gone, which says what rows of a source file are deleted")
    with contextlib.closing(open_pinned(found, options, 0)) as opened:
        opened.seek(max(0, offset))
        return opened.read(max(0, size))


def _positions(each: DeletedRows, options: Options) -> Positions:
    file = SourceFile(path=each.path, size=each.size, version="", format="parquet")
    span = Span(file=file, kind="file", start=0, stop=each.size, rows=None)
    # Row groups that speak of other files are not read.
    spec = SourceSpec(path=each.path, text="file_path", where=f"file_path == {each.data_file!r}")
    needed, most = functools.partial(_all, True), LimitSpec().max_row_bytes
    found: list[Any] = []
    with contextlib.closing(open_pinned(file, options, 0)) as opened:
        blocks = isolated.blocks(opened, span, _POSITIONS, spec, most, needed)
        with contextlib.closing(cast(Any, blocks)):
            for block in blocks:
                if block.errors:
                    raise ValueError(next(iter(block.errors.values())))
                if block.columns is not None:
                    here = block.columns.filter(pc.equal(block.columns["file_path"], each.data_file))
                    found.append(here["pos"].to_numpy())
    return np.concatenate([np.zeros(0, np.int64), *found]).astype(np.int64)


def _all(answer: bool, first: int, count: int) -> bool:
    return answer
