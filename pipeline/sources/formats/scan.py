"""The physical lines of a stream, each with its place. Lines end with a line feed, or with lone carriage returns too where
the caller says so.

Comes in: `Read`. Goes out: `Line`s, blank ones too. What a line means is not known here.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from pipeline.sources.columns import Block, RestLost, skipped_block
from pipeline.sources.formats.compression import CHUNK_BYTES, Broken, Read
from pipeline.sources.formats.content import HEAD_BYTES, is_plain, utf8
from pipeline.sources.formats.form import Needed
from pipeline.work import Span

_BLOCK_ROWS = 1024
_BLOCK_BYTES = 4 * 2**20
_MOST_BLANKS = 2**22
"""A file with more blank lines in a row is damaged, or made to keep a reader busy."""
BOM = b"\xef\xbb\xbf"
LINE_FEEDS = re.compile(b"\n")
ANY_ENDS = re.compile(b"\r\n|\r|\n")

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    position: int
    """Byte offset in the uncompressed stream, in UTF-8."""
    raw: bytes
    """Without its end; empty if there is an error."""
    end: bytes = b"\n"
    error: str | None = None
    broken: bool = False
    """The stream ends here before its time."""

    @property
    def content(self) -> bytes:
        """Without a byte order mark at the beginning of the file."""
        return self.raw if self.position else self.raw.removeprefix(BOM)


def lines(
    read: Read, start: int, stop: int | None, max_bytes: int, ends: re.Pattern[bytes] = LINE_FEEDS
) -> Iterator[Line]:
    """The lines that begin in [start, stop); `read` stands one byte before `start` if there is one.

    Holds at most `max_bytes` of a line and one chunk. A longer line, and the place where `read` breaks or blank lines
    don't end, are lines with an error.
    """
    position = max(start - 1, 0)
    inside = start == 0  # else the first piece belongs to a line that began before
    parts: list[bytes] = []
    held, too_long = 0, False
    error: str | None = None
    blanks = 0
    for chunk in _chunks(read) if ends is LINE_FEEDS else _undivided(_chunks(read)):
        if isinstance(chunk, Broken):
            error = str(chunk)
            break
        begin = 0
        if blanks > _MOST_BLANKS:
            error = f"more than {_MOST_BLANKS:,} blank lines stand here in a row"
            break
        for match in ends.finditer(chunk):
            end = match.start()
            if inside and (too_long or held + end - begin > max_bytes):
                yield _too_long(position, max_bytes)
            elif inside:
                raw = b"".join([*parts, chunk[begin:end]]) if parts else chunk[begin:end]
                blanks = 0 if raw and not raw.isspace() else blanks + 1
                yield Line(position=position, raw=raw, end=match[0])
            position += held + match.end() - begin
            if stop is not None and position >= stop:
                return
            inside, parts, held, too_long, begin = True, [], 0, False, match.end()
        held += len(chunk) - begin
        if not inside and stop is not None and position + held >= stop:
            return  # the next line begins behind it, however far the end of this one is
        too_long = too_long or held > max_bytes
        if too_long or not inside:
            parts = []
        elif begin < len(chunk):
            parts.append(chunk[begin:])
    if error is not None:
        yield Line(position=position, raw=b"", error=RestLost(error), broken=True)
    elif inside and too_long:
        yield _too_long(position, max_bytes)
    elif inside and held:
        yield Line(position=position, raw=b"".join(parts), end=b"")


def span_lines(
    opened: BinaryIO, span: Span, max_bytes: int, encoding: str, ends: re.Pattern[bytes] = LINE_FEEDS
) -> Iterator[Line]:
    """The lines of a span of a file that is cut by bytes, or of the whole, as UTF-8.

    The first span of a file that turns out to be packed or in another encoding has all of its lines; the others are not
    to be read.
    """
    if span.kind == "bytes" and span.start:
        opened.seek(span.start - 1)
        return lines(opened.read, span.start, span.stop, max_bytes, ends)
    stop = None
    if span.kind == "bytes" and span.stop < span.file.size:
        opened.seek(0)
        stop = span.stop if is_plain(opened.read(HEAD_BYTES), span.file, encoding) else None
    opened.seek(0)
    return lines(utf8(opened, span.file, encoding), 0, stop, max_bytes, ends)


def line_blocks(rows: Iterable[Line], needed: Needed, parse: Callable[[Sequence[Line]], Block]) -> Iterator[Block]:
    """The rows in blocks, parsed where they are `needed`, counted elsewhere."""
    first = 0
    for group in groups(rows, lambda line: len(line.raw)):
        yield parse(group) if needed(first, len(group)) else skipped_block(len(group))
        first += len(group)


def _chunks(read: Read) -> Iterator[bytes | Broken]:
    try:
        while chunk := read(CHUNK_BYTES):
            yield chunk
    except Broken as broken:
        yield broken


def _undivided(chunks: Iterable[bytes | Broken]) -> Iterator[bytes | Broken]:
    """The chunks, none of which ends between a carriage return and its line feed."""
    kept = b""
    for chunk in chunks:
        if isinstance(chunk, Broken):
            if kept:
                yield kept
            yield chunk
            return
        chunk, kept = kept + chunk, b""
        if chunk.endswith(b"\r"):
            chunk, kept = chunk[:-1], b"\r"
        if chunk:
            yield chunk
    if kept:
        yield kept


def _too_long(position: int, max_bytes: int) -> Line:
    return Line(position=position, raw=b"", error=f"the line is longer than limits.max_row_bytes ({max_bytes})")


def groups(stream: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[Sequence[Item]]:
    """Consecutive items that make a block: at most 1024, and 4 MiB unless one alone is larger."""
    group: list[Item] = []
    size = 0
    for item in stream:
        group.append(item)
        size += size_of(item)
        if len(group) >= _BLOCK_ROWS or size >= _BLOCK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
