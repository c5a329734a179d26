"""csv and tsv: the names in the header, and the records of a span; all values are strings until the plan says otherwise.

Bad records become errors of their row, and reading goes on with the next line; only storage can fail here.
"""

import csv
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.sources.columns import Block, RestLost, failed_block, skipped_block
from pipeline.sources.formats import values
from pipeline.sources.formats.compression import reader
from pipeline.sources.formats.form import SAMPLE_BYTES, SAMPLE_ROWS, UNREADABLE, Form, Look, Needed
from pipeline.sources.formats.scan import Line, groups, lines
from pipeline.work import SourceFile, Span

# A limit of the process, 128 KiB by default; here limits.max_row_bytes bounds a record before it is parsed.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

_REPLAY_BYTES = 2**20
_RETURN_IN_FIELD = "\udc0d"
"""Stands for a carriage return that ends no line, which csv takes for the end of one. Decoded text can't hold it."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    delimiter: str
    quote: str
    """Empty for none: then every line is a record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    position: int
    """Byte offset of the first line, in the uncompressed stream."""
    fields: Sequence[str] = ()
    size: int = 0
    error: str | None = None


def dialect(file: SourceFile, spec: SourceSpec) -> Dialect:
    comma, quote = (",", '"') if file.format == "csv" else ("\t", "")
    asked = spec.csv
    return Dialect(
        delimiter=comma if asked.delimiter is None else asked.delimiter,
        quote=quote if asked.quote is None else asked.quote,
    )


def look(opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
    found = records(lines(reader(opened, file), 0, None, SAMPLE_BYTES), dialect(file, spec), SAMPLE_BYTES)
    header = Record(position=-1, fields=spec.csv.columns) if spec.csv.columns else next(found, None)
    if header is None or header.error is not None:
        return UNREADABLE
    rows, size = 0, 0
    for record in itertools.islice(found, SAMPLE_ROWS):
        rows, size = rows + 1, size + record.size
        if size >= SAMPLE_BYTES:
            break
    names = list(header.fields)
    return Look(
        names=names,
        types={name: pa.string() for name in columns if name in names},
        duplicates=_duplicates(names, columns),
        rows=rows,
        size=size,
    )


def _duplicates(names: Sequence[str], columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in columns if names.count(name) > 1)


def blocks(
    opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
) -> Iterator[Block]:
    """All records of the span in order; the header is read from the beginning of the file, wherever the span is."""
    form = dialect(span.file, spec)
    found = records(lines(reader(opened, span.file), 0, None, max_row_bytes), form, max_row_bytes)
    header = Record(position=-1, fields=spec.csv.columns) if spec.csv.columns else next(found, None)
    if header is None:
        return
    twice = _duplicates(header.fields, schema.names)
    error = header.error or (f"it has more than one column {twice[0]!r}" if twice else None)
    if span.kind == "bytes":
        opened.seek(max(span.start - 1, 0))
        found = records(lines(opened.read, span.start, span.stop, max_row_bytes), form, max_row_bytes)
    rows: Iterable[Record] = (record for record in found if record.position != header.position)
    if error is not None and not span.start:
        rows = itertools.chain([header], rows)  # a file of nothing else must not go by unseen
    first = 0
    for group in groups(rows, lambda record: record.size):
        if not needed(first, len(group)):
            yield skipped_block(len(group))
        elif error is not None:
            places = pa.array([record.position for record in group], pa.int64())
            reason = f"the file's header can't be used: {error}"
            # Where the stream itself breaks, one row stands for the rest.
            lost = any(isinstance(record.error, RestLost) for record in group)
            yield failed_block(schema, places, RestLost(reason) if lost else reason)
        else:
            yield _block(group, header.fields, schema, span.file)
        first += len(group)


def _block(group: Sequence[Record], header: Sequence[str], schema: pa.Schema, file: SourceFile) -> Block:
    columns: dict[str, list[str | None]] = {name: [None] * len(group) for name in schema.names if name in header}
    places = [(columns[name], header.index(name)) for name in columns]
    errors: dict[int, str] = {}
    for row, record in enumerate(group):
        if record.error is not None:
            errors[row] = record.error
        elif len(record.fields) != len(header):
            errors[row] = f"the record has {len(record.fields)} fields, not {len(header)} as the header"
        else:
            for column, place in places:
                column[row] = record.fields[place]
    return values.block(columns, [record.position for record in group], errors, schema, file)


# --- records


def records(stream: Iterator[Line], form: Dialect, max_bytes: int) -> Iterator[Record]:
    """The records of the lines, empty lines left out. A bad record ends with its first line, unless it is well quoted."""
    quote = form.quote.encode()
    replayed = _Replay(stream)
    while (line := replayed.begin()) is not None:
        content = line.content
        if line.error is not None:
            yield Record(position=line.position, error=line.error)
        elif not content.removesuffix(b"\r"):
            continue
        elif quote and quote in content:
            yield _quoted(line, replayed, form, max_bytes)
        else:
            yield _unquoted(line, form)


def _unquoted(line: Line, form: Dialect) -> Record:
    try:
        text = line.content.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        return Record(position=line.position, size=len(line.raw), error="the record is not valid UTF-8")
    return Record(position=line.position, size=len(line.raw), fields=text.split(form.delimiter))


def _quoted(first: Line, replayed: "_Replay", form: Dialect, max_bytes: int) -> Record:
    size, over, broken = 0, False, None

    def feed() -> Iterator[str]:
        nonlocal size, over, broken
        line: Line | None = first
        while line is not None:
            size += len(line.raw) + 1
            broken = line.error if line.broken else None
            over = (line.error is not None and not line.broken) or size - 1 > max_bytes
            if broken or over:
                return
            yield _text(line.content)
            line = replayed.more()

    error = None
    fields: list[str] = []
    try:
        parsed = csv.reader(feed(), delimiter=form.delimiter, quotechar=form.quote, strict=True)
        fields = [field.replace(_RETURN_IN_FIELD, "\r") for field in next(parsed, [])]
    except csv.Error as malformed:
        unclosed = "unexpected end of data" in str(malformed)
        error = "a quote is not closed" if unclosed else f"the quotes are malformed: {malformed}"
    if broken:
        return Record(position=first.position, size=size, error=broken)
    if over:
        error = f"the record is longer than limits.max_row_bytes ({max_bytes})"
    if error is not None:
        replayed.again()
    elif any(map(_has_broken_bytes, fields)):
        error = "the record is not valid UTF-8"
    return Record(position=first.position, size=size, fields=fields, error=error)


def _text(content: bytes) -> str:
    """Bytes that are no UTF-8 become surrogates, so that the record's end is found in spite of them."""
    text = content.decode(errors="surrogateescape")
    if "\r" in text[:-1]:
        text = text[:-1].replace("\r", _RETURN_IN_FIELD) + text[-1]
    return text + "\n"


def _has_broken_bytes(field: str) -> bool:
    if field.isascii():
        return False
    try:
        field.encode()
    except UnicodeEncodeError:
        return True
    return False


class _Replay:
    """A stream of lines that can go back to the line after the one that a record begins with.

    What a record reads beyond its first line is held as bytes, however many lines they are.
    """

    def __init__(self, stream: Iterator[Line]) -> None:
        self._stream = stream
        self._raw = bytearray()
        self._base = 0  # the position of the first byte held
        self._at = 0
        self._restart = 0
        self._failed: Line | None = None  # after the bytes held

    def begin(self) -> Line | None:
        """The next line, as the first of a record."""
        if self._at > _REPLAY_BYTES or self._at == len(self._raw):
            del self._raw[: self._at]
            self._base, self._at = self._base + self._at, 0
        line = self._held()
        if line is None and self._failed is not None:
            line, self._failed = self._failed, None
        elif line is None:
            line = next(self._stream, None)
        self._restart = self._at
        return line

    def more(self) -> Line | None:
        """The next line of the record."""
        line = self._held() or self._failed
        if line is not None:
            return line
        line = next(self._stream, None)
        if line is None:
            return None
        if line.error is not None:
            self._failed = line
            return line
        if not self._raw:
            self._base = line.position
        self._raw += line.raw
        self._raw += b"\n"
        self._at = len(self._raw)
        return line

    def again(self) -> None:
        self._at = self._restart

    def _held(self) -> Line | None:
        if self._at >= len(self._raw):
            return None
        end = self._raw.index(b"\n", self._at)
        line = Line(position=self._base + self._at, raw=bytes(self._raw[self._at : end]))
        self._at = end + 1
        return line


def _divisible(file: SourceFile, spec: SourceSpec) -> bool:
    return not dialect(file, spec).quote


CSV = Form(blocks=blocks, look=look, suffixes=(".csv",), divisible=_divisible, strings_only=True)
TSV = Form(blocks=blocks, look=look, suffixes=(".tsv",), divisible=_divisible, strings_only=True)
