"""csv and tsv: the names in the header, and the records of a span; all values are strings until the plan says otherwise.

Bad records become errors of their row, and reading goes on with the next line; only storage can fail here.
"""

import csv
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.sources.columns import Block, RestLost, failed_block, skipped_block
from pipeline.sources.formats import values
from pipeline.sources.formats.compression import Read
from pipeline.sources.formats.content import NUL_FILLED, is_filled_with_nuls, peeked, sample, utf8
from pipeline.sources.formats.escaped import Fields, Malformed
from pipeline.sources.formats.form import MOST_SAMPLED_BYTES, SAMPLE_BYTES, SAMPLE_ROWS, Form, Look, Needed, unreadable
from pipeline.sources.formats.scan import ANY_ENDS, LINE_FEEDS, Line, groups, lines, span_lines
from pipeline.work import SourceFile, Span

# A limit of the process, 128 KiB by default; here limits.max_row_bytes bounds a record before it is parsed.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

_REPLAY_BYTES = 2**20
_ENDS_BYTES = 2**16
_RETURN_IN_FIELD = "\udc0d"
"""Stands for a carriage return that ends no line, which csv takes for the end of one. Decoded text can't hold it."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    delimiter: str
    quote: str
    """Empty for none: then every line is a record, unless there is an escape."""
    escape: str = ""
    """Empty for none: then a quote inside quotes is written twice."""
    ends: re.Pattern[bytes] = LINE_FEEDS
    """What ends a line of this file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DelimitedRecord:
    position: int
    """Byte offset of the first line, in the uncompressed stream."""
    fields: Sequence[str | None] = ()
    """None is a null, which only dialects with an escape can write."""
    size: int = 0
    error: str | None = None


def dialect(file: SourceFile, spec: SourceSpec) -> Dialect:
    """The dialect that the configuration gives the file; its line ends are known only from its content."""
    comma, quote = (",", '"') if file.format == "csv" else ("\t", "")
    asked = spec.csv
    return Dialect(
        delimiter=comma if asked.delimiter is None else asked.delimiter,
        quote=quote if asked.quote is None else asked.quote,
        escape=asked.escape or "",
    )


def _opened(opened: BinaryIO, file: SourceFile, spec: SourceSpec) -> tuple[Read, Dialect]:
    """The text of the file from its beginning, and its dialect."""
    form = dialect(file, spec)
    read, head = peeked(utf8(opened, file, spec.encoding), _ENDS_BYTES)
    return read, replace(form, ends=_ends(head, form.quote.encode(), headed=not spec.csv.columns))


def _ends(head: bytes, quote: bytes, *, headed: bool) -> re.Pattern[bytes]:
    """Lone carriage returns end lines where one ends the header, or, without a header, the first line and at least half of
    the others: in all other files they are part of a field."""
    if b"\r" not in head:
        return LINE_FEEDS
    if quote:
        sign = re.escape(quote)
        head = re.sub(sign + b"[^" + sign + b"]*" + sign, b"", head)
    found = ANY_ENDS.findall(head)
    is_lone = found[:1] == [b"\r"] and (headed or found.count(b"\r") >= found.count(b"\n"))
    return ANY_ENDS if is_lone else LINE_FEEDS


def look(opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
    """The names in the header; all columns are strings."""
    read, form = _opened(opened, file, spec)
    found = records(lines(sample(read, MOST_SAMPLED_BYTES), 0, None, SAMPLE_BYTES, form.ends), form, SAMPLE_BYTES)
    header = _header(found, spec)
    if header is None:
        return unreadable("the file is empty")
    if header.error is not None:
        return unreadable(header.error)
    rows, size = 0, 0
    for record in itertools.islice(found, SAMPLE_ROWS):
        rows, size = rows + 1, size + record.size
        if size >= SAMPLE_BYTES:
            break
    names = _names(header)
    return Look(
        names=names,
        types={name: pa.string() for name in columns if name in names},
        duplicates=_duplicates(names, columns),
        rows=rows,
        size=size,
    )


def _header(found: Iterator[DelimitedRecord], spec: SourceSpec) -> DelimitedRecord | None:
    return DelimitedRecord(position=-1, fields=spec.csv.columns) if spec.csv.columns else next(found, None)


def _names(header: DelimitedRecord) -> list[str]:
    return ["" if name is None else name for name in header.fields]


def _duplicates(names: Sequence[str], columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in columns if names.count(name) > 1)


def blocks(
    opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
) -> Iterator[Block]:
    """All records of the span in order; the header is read from the beginning of the file, wherever the span is."""
    read, form = _opened(opened, span.file, spec)
    found: Iterator[DelimitedRecord] = records(lines(read, 0, None, max_row_bytes, form.ends), form, max_row_bytes)
    header = _header(found, spec)
    if header is None:
        return
    names = _names(header)
    twice = _duplicates(names, schema.names)
    error = header.error or (f"it has more than one column {twice[0]!r}" if twice else None)
    if error is None and not span.start and (missing := _missing(names, span.file, spec)) and not spec.csv.columns:
        second = next(found, None)
        found = found if second is None else itertools.chain([second], found)
        # The only line of a file may have been meant as a row.
        error = None if second else f"it is the only line of the file, and names no column {missing!r}"
    if span.kind == "bytes":
        opened.seek(0)
        found = records(span_lines(opened, span, max_row_bytes, spec.encoding, form.ends), form, max_row_bytes)
    rows: Iterable[DelimitedRecord] = (record for record in found if record.position != header.position)
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
            yield _block(group, names, schema, span.file)
        first += len(group)


def _missing(names: Sequence[str], file: SourceFile, spec: SourceSpec) -> str | None:
    """The first column of id and text that neither the header nor a folder has."""
    known = {*names, *(name for name, _ in file.partition)}
    return next((name for name in (*spec.text_columns, *spec.id_columns) if name not in known), None)


def _block(group: Sequence[DelimitedRecord], header: list[str], schema: pa.Schema, file: SourceFile) -> Block:
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


def records(stream: Iterator[Line], form: Dialect, max_bytes: int) -> Iterator[DelimitedRecord]:
    """The records of the lines, empty lines left out. A bad record ends with its first line, unless it is well quoted."""
    quote = form.quote.encode()
    replayed = _Replay(stream, form.ends)
    while (line := replayed.begin()) is not None:
        content = line.content
        if line.error is not None:
            yield DelimitedRecord(position=line.position, error=line.error)
        elif not content.removesuffix(b"\r"):
            continue
        elif form.escape and not form.quote and content.removesuffix(b"\r") == b"\\.":
            continue  # the end of data, as PostgreSQL writes it
        elif is_filled_with_nuls(content):
            yield DelimitedRecord(position=line.position, size=len(line.raw), error=f"the record {NUL_FILLED}")
        elif form.escape and (form.quote or form.escape.encode() in content):
            yield _joined(line, replayed, form, max_bytes, _escaped)
        elif quote and quote in content:
            yield _joined(line, replayed, form, max_bytes, _quoted)
        else:
            yield _unquoted(line, form)


def _unquoted(line: Line, form: Dialect) -> DelimitedRecord:
    try:
        text = line.content.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        return DelimitedRecord(position=line.position, size=len(line.raw), error="the record is not valid UTF-8")
    return DelimitedRecord(position=line.position, size=len(line.raw), fields=text.split(form.delimiter))


Parse = Callable[[Iterator[Line], Dialect], Sequence[str | None]]
"""Takes as many lines as the record has; raises _Bad."""


class _Bad(Exception):
    """The record can't be parsed; the message says why."""


def _joined(first: Line, replayed: "_Replay", form: Dialect, max_bytes: int, parse: Parse) -> DelimitedRecord:
    """The record that begins with the line and may go on over others."""
    size, over, broken = 0, False, None

    def feed() -> Iterator[Line]:
        nonlocal size, over, broken
        line: Line | None = first
        while line is not None:
            size += len(line.raw) + 1
            broken = line.error if line.broken else None
            over = (line.error is not None and not line.broken) or size - 1 > max_bytes
            if broken or over:
                return
            yield line
            line = replayed.more()

    error = None
    fields: Sequence[str | None] = ()
    try:
        fields = parse(feed(), form)
    except _Bad as bad:
        error = str(bad)
    if broken:
        return DelimitedRecord(position=first.position, size=size, error=broken)
    if over:
        error = f"the record is longer than limits.max_row_bytes ({max_bytes})"
    if error is not None:
        replayed.again()
    elif any(_has_broken_bytes(field) for field in fields if field is not None):
        error = "the record is not valid UTF-8"
    return DelimitedRecord(position=first.position, size=size, fields=fields, error=error)


def _quoted(feed: Iterator[Line], form: Dialect) -> Sequence[str | None]:
    try:
        parsed = csv.reader(map(_text, feed), delimiter=form.delimiter, quotechar=form.quote, strict=True)
        fields = [field.replace(_RETURN_IN_FIELD, "\r") for field in next(parsed, [])]
    except csv.Error as malformed:
        unclosed = "unexpected end of data" in str(malformed)
        raise _Bad("a quote is not closed" if unclosed else f"the quotes are malformed: {malformed}") from None
    if form.ends is ANY_ENDS and fields:
        fields[-1] = fields[-1].removesuffix(
            "\r"
        )  # that of the line's end, which stands for itself inside quotes alone
    return fields


def _escaped(feed: Iterator[Line], form: Dialect) -> Sequence[str | None]:
    fields = Fields(delimiter=form.delimiter, quote=form.quote, escape=form.escape)
    for line in feed:
        content, end = line.content, line.end.decode()
        if content.endswith(b"\r") and form.ends is LINE_FEEDS:
            content, end = content[:-1], "\r" + end
        try:
            if fields.feed(content.decode(errors="surrogateescape"), end):
                return fields.done
        except Malformed as malformed:
            raise _Bad(f"the quotes are malformed: {malformed}") from None
    raise _Bad("a quote is not closed" if form.quote else "the record ends with an escape")


def _text(line: Line) -> str:
    """Bytes that are no UTF-8 become surrogates, so that the record's end is found in spite of them."""
    text = line.content.decode(errors="surrogateescape")
    if line.end == b"\r":
        return text + "\r"
    if "\r" in text[:-1]:
        text = text[:-1].replace("\r", _RETURN_IN_FIELD) + text[-1]
    return text + (line.end.decode() or "\n")


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

    def __init__(self, stream: Iterator[Line], ends: re.Pattern[bytes] = LINE_FEEDS) -> None:
        self._stream = stream
        self._ends = ends
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
        self._raw += line.end or b"\n"
        self._at = len(self._raw)
        return line

    def again(self) -> None:
        self._at = self._restart

    def _held(self) -> Line | None:
        if self._at >= len(self._raw):
            return None
        end = self._ends.search(self._raw, self._at)
        assert end is not None  # every line is held with its end
        line = Line(position=self._base + self._at, raw=bytes(self._raw[self._at : end.start()]), end=end[0])
        self._at = end.end()
        return line


def _divisible(file: SourceFile, spec: SourceSpec) -> bool:
    form = dialect(file, spec)
    return not form.quote and not form.escape


CSV = Form(blocks=blocks, look=look, suffixes=(".csv",), divisible=_divisible, strings_only=True)
TSV = Form(blocks=blocks, look=look, suffixes=(".tsv",), divisible=_divisible, strings_only=True)
