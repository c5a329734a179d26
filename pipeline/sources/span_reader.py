"""A span of a source file becomes blocks of rows, whatever its format makes of it.

Comes in: a span, and which of its rows are to do. Goes out: blocks. The file is the planned version as long as it is
read; a format that fails, in this process or in its own, makes bad rows of what is left.
"""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import LimitSpec, SourceSpec
from pipeline.errors import PipelineError, SourceChanged
from pipeline.sources import isolated
from pipeline.sources.columns import Block, RestLost, Unread, failed_block
from pipeline.sources.formats import registry
from pipeline.sources.formats.content import HEAD_BYTES, is_plain
from pipeline.sources.formats.form import Needed
from pipeline.sources.lakehouse.deleted import deleted_rows
from pipeline.sources.lakehouse.deletion_vectors import Positions
from pipeline.storage import check_unchanged, checks_itself, open_pinned, pinned
from pipeline.work import NO_PLACE, SourceFile, Span

_FAILED_ROWS = 1024


def span_blocks(
    span: Span, wanted: pa.Schema, spec: SourceSpec, limits: LimitSpec, needed: Needed
) -> Generator[Block, None, None]:
    """The rows of the span, as many as it takes."""
    left = span.take
    if span.kind == "bytes" and span.start and not _can_be_cut(span, spec):
        return  # the first span has all rows of the file
    file = span.file.pinned
    with _told(span.file), pinned(file, spec.storage_options, registry.readahead_bytes(file)) as opened:
        for block in _whatever_happens(opened, span, wanted, spec, limits, needed):
            if not checks_itself(file.path):
                # Before anybody records what was read, not only at the end of the file.
                check_unchanged(file, spec.storage_options)
            if left is None or block.rows <= left:
                yield block
                left = None if left is None else left - block.rows
            elif left:
                yield block.slice(0, left)
                left = 0
            if left == 0:
                return


def _whatever_happens(
    opened: BinaryIO, span: Span, wanted: pa.Schema, spec: SourceSpec, limits: LimitSpec, needed: Needed
) -> Iterator[Block]:
    """The rows of the span; where its format fails, bad rows in place of the rest. Only storage can raise."""
    read = isolated.blocks if registry.FORMS[span.file.format].isolated else registry.blocks
    rows = 0
    logged = span.file.logged
    try:
        deleted = deleted_rows(logged, spec.storage_options) if logged is not None and logged.deletes else None
        with contextlib.closing(cast(Any, read(opened, span, wanted, spec, limits.max_row_bytes, needed))) as found:
            for block in found:
                try:
                    yield block if deleted is None else _marked(block, deleted)
                except GeneratorExit:  # nobody wants the rest, and what fails while it is closed is no bad row
                    return
                rows += block.rows
        return
    except PipelineError:
        raise
    except isolated.Lost as lost:
        error = f"the file can't be read from here on: {lost}"
    except Exception as failure:
        error = f"the file can't be read from here on: {type(failure).__name__}: {failure}"
    if span.rows is None:
        yield failed_block(wanted, pa.nulls(1, pa.int64()), RestLost(error))
        return
    for start in range(rows, span.rows, _FAILED_ROWS):
        places = pa.nulls(min(_FAILED_ROWS, span.rows - start), pa.int64())
        yield failed_block(wanted, places, Unread(error))


def _marked(block: Block, deleted: Positions) -> Block:
    """The block, with its deleted rows named; rows that nobody needed have no positions, and are not looked at."""
    if block.columns is None:
        return block
    places = pc.fill_null(block.positions, NO_PLACE).to_numpy()
    return replace(block, deleted=np.isin(places, deleted))


@contextlib.contextmanager
def _told(file: SourceFile) -> Iterator[None]:
    """A lakehouse table never writes other bytes under a name: where they are not there, the file was removed."""
    try:
        yield
    except SourceChanged as error:
        if file.logged is None or repr(file.path) not in str(error):
            raise
        raise SourceChanged(
            f"source file {file.path!r} of {file.logged.snapshot.label} is gone since it was planned, as vacuum and "
            "expired snapshots make it: start again to read what the table holds now, and let it keep replaced files "
            "for longer than a run takes"
        ) from None


def _can_be_cut(span: Span, spec: SourceSpec) -> bool:
    """By the first bytes of the file, which stands elsewhere than the span."""
    with contextlib.closing(open_pinned(span.file, spec.storage_options, HEAD_BYTES)) as opened:
        return is_plain(opened.read(HEAD_BYTES), span.file, spec.encoding)
