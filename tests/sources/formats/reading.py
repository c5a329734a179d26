"""Reads one file of any format through the registry, in spans of a given size, without the rest of the program."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.sources.columns import Block
from pipeline.sources.formats import registry
from pipeline.work import SourceFile, Span

STRINGS = pa.schema([("text", pa.string())])


def source_file(path: Path, asked: str = "auto") -> SourceFile:
    form, compression = registry.format_of(str(path), asked)
    return SourceFile(path=str(path), size=path.stat().st_size, version="v", format=form, compression=compression)


def spec_of(path: Path, **options: Any) -> SourceSpec:
    return SourceSpec(**{"path": str(path), "text": "text", **options})


def spans_of(file: SourceFile, spec: SourceSpec, size: int | None) -> Iterator[Span]:
    extent = registry.extent(file, None, spec)
    if extent.divisible and size is not None:
        for start in range(0, file.size, size):
            yield Span(file=file, kind="bytes", start=start, stop=min(start + size, file.size), rows=None)
    else:
        kind: Any = "bytes" if extent.divisible else "file"
        yield Span(file=file, kind=kind, start=0, stop=file.size, rows=None)


def blocks_of(
    path: Path,
    schema: pa.Schema = STRINGS,
    *,
    size: int | None = None,
    max_row_bytes: int = 2**20,
    **options: Any,
) -> list[Block]:
    spec = spec_of(path, **options)
    file = source_file(path, spec.format)
    found = []
    for span in spans_of(file, spec, size):
        with path.open("rb") as opened:
            found += registry.blocks(opened, span, schema, spec, max_row_bytes, lambda first, count: True)
    for block in found:
        assert block.columns.schema == schema
        assert block.rows == block.columns.num_rows == len(block.positions)
        assert set(block.errors) <= set(range(block.rows))
        block.columns.validate(full=True)
        for error in block.errors.values():
            assert "\n" not in error
            assert len(error) < 300
    return found


def rows_of(path: Path, schema: pa.Schema = STRINGS, **options: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """The good rows, and (position, error) of the bad ones."""
    good, bad = [], []
    for block in blocks_of(path, schema, **options):
        rows = zip(block.columns.to_pylist(), block.positions.to_pylist(), strict=True)
        for index, (row, position) in enumerate(rows):
            if index in block.errors:
                bad.append((position, block.errors[index]))
            else:
                good.append(row)
    return good, bad
