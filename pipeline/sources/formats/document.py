"""Formats with one document per file share this: the file is one row at position 0, with the columns of its format.

Comes in: what a format makes of the content of a file. Goes out: the blocks and the look that the registry wants. Knows no
format.
"""

import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.extras import install
from pipeline.sources.columns import Block, failed_block, skipped_block
from pipeline.sources.formats import values
from pipeline.sources.formats.compression import CHUNK_BYTES, Broken, Read
from pipeline.sources.formats.content import (
    HEAD_BYTES,
    NUL_FILLED,
    UTF8,
    encoding_of,
    is_filled_with_nuls,
    lfs_pointer,
    uncompressed,
)
from pipeline.sources.formats.form import Blocks, Look, LookInto, Misfit, Needed
from pipeline.work import SourceFile, Span

Found = Mapping[str, str | None]
"""The columns of one document, those of its place excepted."""
Parse = Callable[[bytes, SourceFile, SourceSpec], Found]
"""The columns of a file's content; raises Misfit if there is no document in it."""
Extract = Callable[[BinaryIO], Found]
"""The columns of an open file that a library reads; raises Misfit likewise."""

PLACE = ("path", "file")
"""Every document has these columns: its file's path, and the path below the folder of the source."""
COUNTS = ("pages", "attachments")
"""These columns are integers, and all others are strings."""
USUAL: Mapping[str, pa.DataType] = {
    **dict.fromkeys(("title", "author", "date", "subject", "from", "to"), pa.string()),
    **dict.fromkeys(COUNTS, pa.int64()),
}
"""Folders of documents have these columns, whatever kinds of documents happen to be there."""
PAGE_END = "\n\f"
"""It ends each page of a document that has pages. The line feed is there because some tokenizers drop a form feed."""
_HELD_BYTES = 64 * 2**20
"""A file up to this size is read at once, since libraries ask for many small pieces of it."""


def look_of(names: Collection[str], check: Callable[[], None] = lambda: None) -> LookInto:
    """All files of a format have the same columns. `check` raises InputError if something is missing."""

    def look(opened: BinaryIO, file: SourceFile, columns: Collection[str], spec: SourceSpec) -> Look:
        check()
        return look_with(names, file, columns)

    return look


def look_with(names: Collection[str], file: SourceFile, columns: Collection[str]) -> Look:
    """What a file says of itself that has the columns `names`, and those of its place."""
    every = [*names, *(name for name in PLACE if _is_told_by_file(name, file))]
    return Look(names=every, types={name: _type_of(name) for name in every if name in columns})


def _type_of(name: str) -> pa.DataType:
    return pa.int64() if name in COUNTS else pa.string()


def _is_told_by_file(name: str, file: SourceFile) -> bool:
    """A folder `file=x` is older than the column, and keeps its meaning."""
    return name != "file" or name not in dict(file.partition)


def blocks_of(parse: Parse) -> Blocks:
    """Files are texts of some kind, which may be packed, and are read whole."""

    def found(opened: BinaryIO, file: SourceFile, spec: SourceSpec, max_row_bytes: int) -> Found:
        content = _content(uncompressed(opened, file), max_row_bytes)
        if is_filled_with_nuls(content) and encoding_of(content[:HEAD_BYTES], spec.encoding) == UTF8:
            raise Misfit(f"the file {NUL_FILLED}")
        return parse(content, file, spec)

    return _one_each(found)


def extracted(extract: Extract) -> Blocks:
    """Files are containers that a library reads; their text alone has to keep to limits.max_row_bytes."""

    def found(opened: BinaryIO, file: SourceFile, spec: SourceSpec, max_row_bytes: int) -> Found:
        columns = extract(_at_hand(opened))
        check_size(columns, max_row_bytes)
        return columns

    return _one_each(found)


def _one_each(find: Callable[[BinaryIO, SourceFile, SourceSpec, int], Found]) -> Blocks:
    """A file is one document, or one dead letter with the reason why it is none."""

    def blocks(
        opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
    ) -> Iterator[Block]:
        if not needed(0, 1):
            yield skipped_block(1)
            return
        try:
            found = find(opened, span.file, spec, max_row_bytes)
        except (Misfit, Broken) as error:
            yield failed_block(schema, pa.array([0], pa.int64()), str(error))
            return
        yield row(found, 0, schema, span.file)

    return blocks


def row(found: Mapping[str, str | None], position: int, schema: pa.Schema, file: SourceFile, after: str = "") -> Block:
    """One document at a position of the file; `after` stands behind the file's name where it has several."""
    own = {"path": file.path, "file": file.relative + after}
    placed = {name: text for name, text in own.items() if _is_told_by_file(name, file)}
    columns = {name: [None if text is None else _whole_characters(text)] for name, text in {**found, **placed}.items()}
    return values.block(columns, [position], {}, schema, file)


def check_size(found: Mapping[str, str | None], max_row_bytes: int) -> None:
    """Raises Misfit for a document whose columns are too long together."""
    if sum(len(text or "") for text in found.values()) > max_row_bytes or (
        sum(len((text or "").encode(errors="replace")) for text in found.values()) > max_row_bytes
    ):
        raise Misfit(f"the document's text is longer than limits.max_row_bytes ({max_row_bytes})")


def has_text(text: str) -> bool:
    return bool(text.strip())


def needs(module: str, what: str, extra: str) -> Callable[[], None]:
    """A check that a package is there; it raises InputError."""

    def check() -> None:
        try:
            __import__(module)
        except ImportError as error:
            raise InputError(
                f"source files in {what} need the packages of the extra `{extra}` ({error}): {install(extra)} on every node"
            ) from None

    return check


def _whole_characters(text: str) -> str:
    """Halves of surrogate pairs are no characters and can't be stored."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _at_hand(opened: BinaryIO) -> BinaryIO:
    size = opened.seek(0, os.SEEK_END)
    opened.seek(0)
    if not size:
        raise Misfit("the file is empty")
    found = io.BytesIO(opened.read(size)) if size <= _HELD_BYTES else cast(Any, opened)
    message = lfs_pointer(found.read(HEAD_BYTES))
    if message is not None:
        raise Misfit(message)
    found.seek(0)
    return cast(BinaryIO, found)


def _content(read: Read, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := read(CHUNK_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise Misfit(f"the file is longer than limits.max_row_bytes ({max_bytes})")
    return b"".join(pieces)
