"""The physical lines of a stream, each with its place. Lines end with a line feed, nothing else.

Comes in: `Read`. Goes out: `Line`s, blank ones too. What a line means is not known here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from pipeline.sources.columns import Block, RestLost, skipped_block
from pipeline.sources.formats.compression import CHUNK_BYTES, Broken, Read, reader
from pipeline.sources.formats.form import Needed
from pipeline.work import Span

_BLOCK_ROWS = 1024
_BLOCK_BYTES = 4 * 2**20
BOM = b"\xef\xbb\xbf"

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    position: int
    """Byte offset in the uncompressed stream."""
    raw: bytes
    """Without the line feed; empty if there is an error."""
    error: str | None = None
    broken: bool = False
    """The stream ends here before its time."""

    @property
    def content(self) -> bytes:
        """Without a byte order mark at the beginning of the file."""
        return self.raw if self.position else self.raw.removeprefix(BOM)


def lines(read: Read, start: int, stop: int | None, max_bytes: int) -> Iterator[Line]:
    """The lines that begin in [start, stop); `read` stands one byte before `start` if there is one.

    Holds at most `max_bytes` of a line and one chunk. A longer line, and the place where `read` breaks, are lines with
    an error.
    """
    position = max(start - 1, 0)
    inside = start == 0  # else the first piece belongs to a line that began before
    parts: list[bytes] = []
    held, too_long = 0, False
    error: str | None = None
    for chunk in _chunks(read):
        if isinstance(chunk, Broken):
            error = str(chunk)
            break
        begin = 0
        while (end := chunk.find(b"\n", begin)) >= 0:
            if inside and (too_long or held + end - begin > max_bytes):
                yield _too_long(position, max_bytes)
            elif inside:
                yield Line(position=position, raw=b"".join([*parts, chunk[begin:end]]) if parts else chunk[begin:end])
            position += held + end - begin + 1
            if stop is not None and position >= stop:
                return
            inside, parts, held, too_long, begin = True, [], 0, False, end + 1
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
        yield Line(position=position, raw=b"".join(parts))


def span_lines(opened: BinaryIO, span: Span, max_bytes: int) -> Iterator[Line]:
    """The lines of a span of a file that is cut by bytes, or of the whole, uncompressed."""
    start, stop = (span.start, span.stop) if span.kind == "bytes" else (0, None)
    if start:
        opened.seek(start - 1)
    return lines(reader(opened, span.file), start, stop, max_bytes)


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
