"""The formats by name, and which one a file has. A new format is a file of its own and an entry here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.sources.columns import Block
from pipeline.sources.formats import (
    arrow,
    delimited,
    docx,
    epub,
    html,
    jsonl,
    lines,
    mail,
    notebook,
    parquet,
    pdf,
    pptx,
    text,
)
from pipeline.sources.formats.form import Form, Look, Needed
from pipeline.sources.spans import PACKED_RATIO, Extent
from pipeline.work import Compression, FormatName, SourceFile, Span

FORMS: Mapping[FormatName, Form] = {
    "parquet": parquet.FORM,
    "jsonl": jsonl.FORM,
    "csv": delimited.CSV,
    "tsv": delimited.TSV,
    "arrow": arrow.FORM,
    "lines": lines.FORM,
    "text": text.FORM,
    "html": html.FORM,
    "pdf": pdf.FORM,
    "docx": docx.FORM,
    "pptx": pptx.FORM,
    "epub": epub.FORM,
    "ipynb": notebook.FORM,
    "eml": mail.MAIL,
    "mbox": mail.BOX,
}
GUESSED = ("auto", "documents")
"""Under these values of `source.format` the name of a file says which format it has."""
_CUTTABLE = ("auto", "utf-8", "utf8")
"""The values of `source.encoding` under which files are cut by bytes: the places in others are those of their UTF-8."""
_COMPRESSIONS: Mapping[str, Compression] = {".gz": "gz", ".zst": "zst"}


def format_of(path: str, asked: str) -> tuple[FormatName, Compression]:
    """The format asked for, or with "auto" the one that the name's end stands for, and how the file is compressed.

    With "documents" the name's end decides too, but only among formats of documents. Raises InputError for a name that
    stands for no format.
    """
    name = path.rpartition("/")[2].lower()
    compression: Compression = ""
    for suffix, packed in _COMPRESSIONS.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), packed
            break
    candidates = _candidates(asked)
    for known, form in candidates.items():
        fits = asked == known or (asked in GUESSED and name.endswith(form.suffixes))
        if fits and (form.packable or asked not in GUESSED):
            return known, compression if form.packable else ""
        if fits and not compression:
            return known, ""
    plain = [suffix for form in candidates.values() if not form.packable for suffix in form.suffixes]
    packable = [suffix for form in candidates.values() if form.packable for suffix in form.suffixes]
    raise InputError(
        f"the format of {path!r} is unknown: expected one of {', '.join(plain)}, or {', '.join(packable)}, which may be "
        f"followed by .gz or .zst; narrow source.path, or set source.format to one of {', '.join(FORMS)}"
    )


def suffixes() -> list[str]:
    """The ends of the names that stand for a format."""
    return [suffix for form in FORMS.values() for suffix in form.suffixes]


def _candidates(asked: str) -> Mapping[FormatName, Form]:
    return {name: form for name, form in FORMS.items() if form.is_document} if asked == "documents" else FORMS


def readahead_bytes(file: SourceFile) -> int:
    """For `open_pinned`; 0 where exact ranges are read."""
    return FORMS[file.format].readahead_bytes


def blocks(
    opened: BinaryIO, span: Span, schema: pa.Schema, spec: SourceSpec, max_row_bytes: int, needed: Needed
) -> Iterator[Block]:
    """All rows of the span in order, with the columns of `schema`; see `form.Blocks`."""
    read, inner = FORMS[span.file.format].blocks, _inner(spec)
    if not spec.renamed:
        return read(opened, span, schema, spec, max_row_bytes, needed)
    inside = pa.schema({spec.renamed.get(item.name, item.name): item.type for item in schema})
    return (_renamed(block, schema, spec) for block in read(opened, span, inside, inner, max_row_bytes, needed))


def _inner(spec: SourceSpec) -> SourceSpec:
    """The specification with the names that the files have."""
    if not spec.renamed:
        return spec
    return replace(spec, schema={spec.renamed.get(name, name): kind for name, kind in spec.schema.items()})


def _renamed(block: Block, schema: pa.Schema, spec: SourceSpec) -> Block:
    """The block with the names that the table has; a column may go under both of its names."""
    if block.columns is None:
        return block
    columns = [block.columns.column(spec.renamed.get(name, name)) for name in schema.names]
    return replace(block, columns=pa.table(columns, schema=schema))


def look(opened: BinaryIO, file: SourceFile, columns: Sequence[str], spec: SourceSpec) -> Look:
    """What the file says of the columns and of itself; see `form.LookInto`."""
    inside = list(dict.fromkeys(spec.renamed.get(name, name) for name in columns))
    found = FORMS[file.format].look(opened, file, inside, _inner(spec))
    if not spec.renamed:
        return found
    twice, names = found.duplicates, {name: spec.renamed.get(name, name) for name in columns}
    return replace(
        found,
        names={*found.names, *(name for name, old in names.items() if old in found.names)},
        types={name: found.types[old] for name, old in names.items() if old in found.types},
        duplicates=tuple(name for name, old in names.items() if old in twice),
    )


def extent(file: SourceFile, look: Look | None, spec: SourceSpec) -> Extent:
    """How the file can be cut; `look` is None for a file that was not looked into."""
    form = FORMS[file.format]
    if file.logged is not None:
        known = file.logged.rows if look is None or look.readable else None
        groups = look.row_groups if look is not None else None
        return Extent(file=file, alone=True, groups=file.logged.cut or (), row_groups=groups, rows=known)
    if look is not None and look.row_groups is not None:
        return Extent(file=file, row_groups=look.row_groups)
    if form.every and look is not None and not look.readable:
        return Extent(file=file)
    return Extent(
        file=file,
        unit_bytes=form.unit_bytes // PACKED_RATIO if file.compression else form.unit_bytes,
        divisible=not file.compression and spec.encoding in _CUTTABLE and form.divisible(file, spec),
        rows=form.rows_per_file,
    )
