"""A document per line: column `text` is the line, column `path` its file. Only storage can fail here."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.sources.columns import Block
from pipeline.sources.formats import values
from pipeline.sources.formats.content import NUL_FILLED, is_filled_with_nuls, sample, utf8
from pipeline.sources.formats.form import MOST_SAMPLED_BYTES, SAMPLE_BYTES, SAMPLE_ROWS, Form, Look, Needed
from pipeline.sources.formats.scan import Line, line_blocks, lines, span_lines
from pipeline.work import SourceFile, Span

_COLUMNS = ("text", "path")


def look(opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
    rows, size = 0, 0
    for line in _rows(lines(sample(utf8(opened, file, spec.encoding), MOST_SAMPLED_BYTES), 0, None, SAMPLE_BYTES)):
        rows, size = rows + 1, size + len(line.raw)
        if rows >= SAMPLE_ROWS or size >= SAMPLE_BYTES:
            break
    types = {name: pa.string() for name in _COLUMNS if name in columns}
    return Look(names=_COLUMNS, types=types, rows=rows, size=size)


def blocks(
    opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
) -> Iterator[Block]:
    """All lines of the span that aren't empty; a line ends before its line feed, or carriage return and line feed."""
    rows = _rows(span_lines(opened, span, max_row_bytes, spec.encoding))
    return line_blocks(rows, needed, lambda group: _block(group, schema, span.file))


def _rows(stream: Iterator[Line]) -> Iterator[Line]:
    return (line for line in stream if line.error is not None or line.content.removesuffix(b"\r"))


def _block(group: Sequence[Line], schema: pa.Schema, file: SourceFile) -> Block:
    texts: list[str | None] = [None] * len(group)
    errors: dict[int, str] = {}
    for row, line in enumerate(group):
        if line.error is not None:
            errors[row] = line.error
            continue
        if is_filled_with_nuls(line.raw):
            errors[row] = f"the line {NUL_FILLED}"
            continue
        try:
            texts[row] = line.content.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            errors[row] = f"the line is not valid UTF-8 (byte {error.start})"
    columns: dict[str, list[str | None]] = {"text": texts, "path": [file.path] * len(group)}
    return values.block(columns, [line.position for line in group], errors, schema, file)


FORM = Form(blocks=blocks, look=look, divisible=lambda file, spec: True, strings_only=True)
