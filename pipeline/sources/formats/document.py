"""What formats with one document per file share: the file is read as a whole, and is one row at position 0."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.sources.columns import Block, failed_block, skipped_block
from pipeline.sources.formats import values
from pipeline.sources.formats.compression import CHUNK_BYTES, Broken, Read
from pipeline.sources.formats.content import (
    HEAD_BYTES,
    NUL_FILLED,
    UTF8,
    encoding_of,
    is_filled_with_nuls,
    uncompressed,
)
from pipeline.sources.formats.form import Blocks, Look, LookInto, Misfit, Needed
from pipeline.work import SourceFile, Span

Parse = Callable[[bytes, str], Mapping[str, str]]
"""The columns of a file's content, `path` excepted, given `source.encoding`; raises Misfit if there is no document in it."""


def look_of(names: Sequence[str], check: Callable[[], None] = lambda: None) -> LookInto:
    """All files of a format have the same columns. `check` raises InputError if something is missing."""

    def look(opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
        check()
        return Look(names=names, types={name: pa.string() for name in names if name in columns})

    return look


def blocks_of(parse: Parse) -> Blocks:
    def blocks(
        opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
    ) -> Iterator[Block]:
        if not needed(0, 1):
            yield skipped_block(1)
            return
        try:
            content = _content(uncompressed(opened, span.file), max_row_bytes)
            if is_filled_with_nuls(content) and encoding_of(content[:HEAD_BYTES], spec.encoding) == UTF8:
                raise Misfit(f"the file {NUL_FILLED}")
            found = {**parse(content, spec.encoding), "path": span.file.path}
        except (Misfit, Broken) as error:
            yield failed_block(schema, pa.array([0], pa.int64()), str(error))
            return
        yield values.block({name: [text] for name, text in found.items()}, [0], {}, schema, span.file)

    return blocks


def _content(read: Read, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := read(CHUNK_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise Misfit(f"the file is longer than limits.max_row_bytes ({max_bytes})")
    return b"".join(pieces)
