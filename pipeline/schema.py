"""The names and Arrow types of all columns that travel between stages or stand in the table.

This file knows no values: what a column holds is said beside its name, how it is computed stands in identity.py.
"""

import copyreg

import pyarrow as pa

ID = "id"
TEXT = "text"
CONTENT_HASH = "content_hash"
"""16 bytes over exactly what the model reads."""
ROW_HASH = "row_hash"
"""64 bits over kept columns, partition values and chunk fields."""
SOURCE = "source"
"""Number of the span of a source file that the row came from; its key in the version's list of sources."""
N_TOKENS = "n_tokens"
"""Tokens that the model read: special tokens and prompt included, after truncation."""
TRUNCATED = "truncated"
POSITION = "position"
"""The row's place in its source file: byte offset of a line (of the uncompressed stream), row index in Parquet."""
TOKENS = "tokens"
DOCUMENT = "document"
"""The number, in its slice, of the document that a row of token ids was cut from; only where documents are chunked."""
DOC_ID = "doc_id"
CHUNK_INDEX = "chunk_index"
CHUNK_START = "chunk_start"
CHUNK_END = "chunk_end"
"""Characters, not bytes: text[chunk_start:chunk_end] of the document's text is the chunk."""
PAGE = "page"
LAST_PAGE = "last_page"
"""The pages on which a chunk begins and ends, from 1 on; null in a document without pages."""
PAGES = (PAGE, LAST_PAGE)
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Stands for null in the name of a partition's folder, as Hive has it."""
UNESCAPED = " !$'()+,-.@_~"
"""These stand as they are in the name of a partition's folder, as letters and digits do."""
MAX_FOLDER_BYTES = 255
"""Common disks allow a folder's name so many bytes."""

LINEAGE: tuple[pa.Field, ...] = (
    pa.field(CONTENT_HASH, pa.binary(16), nullable=False),
    pa.field(ROW_HASH, pa.int64(), nullable=False),
    pa.field(SOURCE, pa.int32(), nullable=False),
    pa.field(N_TOKENS, pa.int32(), nullable=False),
    pa.field(TRUNCATED, pa.bool_(), nullable=False),
)
"""The columns after the embedding in every part."""

CHUNK: tuple[pa.Field, ...] = (
    pa.field(DOC_ID, pa.string(), nullable=False),
    pa.field(CHUNK_INDEX, pa.int32(), nullable=False),
    pa.field(CHUNK_START, pa.int64(), nullable=False),
    pa.field(CHUNK_END, pa.int64(), nullable=False),
)
"""The columns before the embedding in a table of chunks; the id of a chunk is `<doc_id>#<chunk_index>`."""

CHUNK_PAGES: tuple[pa.Field, ...] = tuple(pa.field(name, pa.int32()) for name in PAGES)
"""The columns after those of the chunk, in a table of documents with pages."""

_WRITTEN = frozenset([ID, TEXT, *(field.name for field in (*CHUNK, *LINEAGE))])
_RESERVED = _WRITTEN | {POSITION, TOKENS}


def is_reserved(name: str) -> bool:
    """Whether a kept, partition or embedding column can't have this name. Many readers don't tell the cases of letters
    apart: to DuckDB a folder `ID=x` is the column `id` of the rows in it."""
    return name in _RESERVED or name.lower() in _WRITTEN


DEAD_LETTERS = pa.schema(
    [
        pa.field(ID, pa.string()),
        pa.field(SOURCE, pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field(POSITION, pa.int64()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field(TEXT, pa.large_string()),
    ]
)
"""One row per source row (or unreadable rest of a file) that has no vector. `stage` is read, tokenize or encode."""

CHANGES = pa.schema(
    [
        pa.field(ID, pa.string(), nullable=False),
        pa.field("op", pa.string(), nullable=False),
        pa.field(CONTENT_HASH, pa.binary(16)),
        pa.field(ROW_HASH, pa.int64()),
    ]
)
"""The changes of a version against its parent; `op` is upsert or delete, a delete carries the hashes that went."""


def embedding_type(dim: int, dtype: str) -> pa.DataType:
    """FixedSizeList[dim] of the output dtype; for `binary` and `ubinary` it is [ceil(dim / 8)], eight dimensions a
    byte."""
    width = -(-dim // 8) if dtype in ("binary", "ubinary") else dim
    return pa.list_(pa.field("element", _VALUES[dtype], nullable=False), width)


_VALUES = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "uint8": pa.uint8(),
    "binary": pa.int8(),
    "ubinary": pa.uint8(),
}


def _fixed_size_list(field: pa.Field, size: int) -> pa.DataType:
    return pa.list_(field, size)


# pyarrow's own pickling of this type forgets the name of its field and that it has no nulls (seen up to pyarrow 25), so that
# workers would write parts of another type. Schemas and tables that hold it are pickled by way of it.
copyreg.pickle(pa.FixedSizeListType, lambda kind: (_fixed_size_list, (kind.value_field, kind.list_size)))
