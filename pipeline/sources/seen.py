"""A look at a source of which nothing is known: its files, its columns, and what a sample of the rows holds.

The path of a source comes in, and a `Seen` goes out. Which columns are then used for what is decided in roles.py. Files
that can't be read are passed over here: a run tells of them.
"""

import collections
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.config import LimitSpec, SourceSpec
from pipeline.errors import InputError, one_line
from pipeline.sources.column_types import named_type
from pipeline.sources.formats import registry
from pipeline.sources.formats.content import encoding_hint
from pipeline.sources.formats.form import Look, Misfit
from pipeline.sources.lakehouse import look as lakehouse
from pipeline.sources.listing import Sources, find_sources
from pipeline.sources.span_reader import span_blocks
from pipeline.sources.spans import cut
from pipeline.storage import open_pinned
from pipeline.work import FormatName, SourceFile

FILES, DOCUMENT_FILES = 8, 64
"""So many files of a format are looked into: of one with many rows in a file, and of one with a document in each."""
ROWS = 1000
"""So many rows are sampled, about as many from each file."""
_LOOK_BYTES = 2**16
_LONG_NAME = 40


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column, and what it holds in the sample."""

    name: str
    type: pa.DataType | None
    """None where files disagree about it."""
    values: tuple[Any, ...]
    """A value for each row of the sample; None where there is none. Nested values are not read, and are all None."""

    @property
    def is_text(self) -> bool:
        return self.type is not None and pa.types.is_string(self.type)

    @property
    def is_flat(self) -> bool:
        return self.type is not None and _is_flat(self.type)

    @cached_property
    def filled(self) -> tuple[Any, ...]:
        """The values that are neither null nor blank."""
        return tuple(value for value in self.values if value is not None and str(value).strip())

    @property
    def share(self) -> float:
        """The share of rows that have a value."""
        return len(self.filled) / len(self.values) if self.values else 0.0

    @cached_property
    def is_unique(self) -> bool:
        """Whether every row of the sample has a value, and each another one."""
        return self.is_flat and bool(self.values) and len(set(self.filled)) == len(self.values)

    @cached_property
    def mean_chars(self) -> float:
        """The mean characters of the values that are strings."""
        return sum(map(len, map(str, self.filled))) / max(1, len(self.filled)) if self.is_text else 0.0

    @cached_property
    def is_prose(self) -> bool:
        """Whether most values look like words that somebody wrote: they are several, or many letters without any space."""
        prose = sum(_is_prose(value) for value in self.filled) if self.is_text else 0
        return prose > len(self.filled) / 2

    def described(self) -> str:
        """Return what a person is told of it, in one piece."""
        kind = "mixed types" if self.type is None else str(self.type)
        if self.is_text and self.filled:
            return f"{kind}, {self.mean_chars:,.0f} characters on average"
        return kind if self.filled or not self.is_flat else f"{kind}, empty"


@dataclass(frozen=True, kw_only=True)
class Seen:
    files: tuple[SourceFile, ...]
    looked_into: int
    """So many files were looked into."""
    rows: int
    """So many rows were sampled."""
    columns: tuple[Column, ...]
    """They stand in the order in which they were found."""
    left_out: tuple[str, ...] = ()
    """What a person is told of the files that are left out."""

    @property
    def formats(self) -> Mapping[FormatName, int]:
        """The number of files of each format, the most frequent first."""
        return dict(collections.Counter(file.format for file in self.files).most_common())

    @property
    def are_documents(self) -> bool:
        """Whether the files are documents, each one or, as a box of mails, many of them."""
        return all(registry.FORMS[form].is_document for form in self.formats)

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


def look_at(spec: SourceSpec) -> Seen:
    """Look at all that `spec.path` names. Documents are taken, and files of rows left out, where these are the fewer.

    Raises InputError where there are no files, where none can be read, and for files of both kinds otherwise.
    """
    sources = _alike(find_sources(spec))
    files = sources.files
    found: dict[str, pa.DataType | None] = {}
    tables = []
    chosen = list(_chosen(files))
    reasons = list[str]()
    bad = list[str]()
    for file in chosen:
        look = _look(file, spec)
        if not look.readable:
            reasons.append(f"{file.path!r}: {look.reason or 'it holds no row'}")
            continue
        types = {name: named_type(kind) for name, kind in look.types.items()}
        types |= {name: pa.string() for name, _ in file.partition if name not in types}
        for name, kind in types.items():
            found[name] = _joined(found[name], kind) if name in found else kind
        tables.append(_sample(file, look, types, spec, -(-ROWS // len(chosen)), bad))
    if not found:
        raise InputError(
            f"none of the files of source.path {spec.path!r} can be read: {'; '.join(reasons[:3])}{encoding_hint(reasons)}"
        )
    rows = sum(table.num_rows for table in tables)
    if not rows:
        told = f": {one_line(bad[0], 300)}" if bad else ""
        raise InputError(
            f"no row can be read in the files of source.path {spec.path!r} that were tried, such as {chosen[0].path!r}{told}"
            f"{encoding_hint(bad) or '; check what they hold'}"
        )
    return Seen(
        files=files,
        looked_into=len(tables),
        rows=rows,
        columns=tuple(_column(name, kind, tables) for name, kind in found.items()),
        left_out=sources.left_out,
    )


def _alike(found: Sources) -> Sources:
    """Return files of one kind: all of them, or the documents where these are more than the files of rows."""
    counts = collections.Counter(is_document(file) for file in found.files)
    if len(counts) < 2:
        return found
    if counts[True] > counts[False]:
        return found.documents
    one, other = (next(file for file in found.files if is_document(file) is kind) for kind in (True, False))
    raise InputError(
        f"{found.files[0].root!r} has files that are a document each ({counts[True]:,}, such as {_name(one)}) and files whose "
        f"rows are documents ({counts[False]:,}, such as {_name(other)}): to embed the documents alone, add "
        "--set source.format=documents; to embed the rows alone, give a pattern in quotes, such as "
        f"'{other.root}**/*{_suffix(other)}'"
    )


def is_document(file: SourceFile) -> bool:
    return registry.FORMS[file.format].is_document


def _name(file: SourceFile) -> str:
    return file.path.rpartition("/")[2]


def _suffix(file: SourceFile) -> str:
    return "." + _name(file).partition(".")[2]


def _chosen(files: Sequence[SourceFile]) -> Iterator[SourceFile]:
    """Some files of each format, evenly spread, empty ones only where there are no others."""
    for form in dict.fromkeys(file.format for file in files):
        those = [file for file in files if file.format == form]
        those = [file for file in those if file.size] or those
        most = DOCUMENT_FILES if registry.FORMS[form].rows_per_file == 1 else FILES
        step = max(1.0, len(those) / most)
        yield from (those[int(index * step)] for index in range(min(most, len(those))))


def _look(file: SourceFile, spec: SourceSpec) -> Look:
    """Look for all columns. One that holds values of two kinds is left out, and so has no type."""
    names = list(_look_for(file, spec, []).names)
    try:
        return _look_for(file, spec, names)
    except Misfit:
        found = dict[str, pa.DataType]()
        look = None
        for name in names:
            with contextlib.suppress(Misfit):
                look = _look_for(file, spec, [name])
                found |= look.types
        return replace(look, types=found) if look is not None else Look(types={}, readable=False)


def _look_for(file: SourceFile, spec: SourceSpec, names: Sequence[str]) -> Look:
    if file.logged is not None:
        return lakehouse.look(file, file.logged, names, spec)
    with contextlib.closing(open_pinned(file, spec.storage_options, _LOOK_BYTES)) as opened:
        return registry.look(opened, file, names, spec)


def _sample(
    file: SourceFile, look: Look, types: Mapping[str, pa.DataType], spec: SourceSpec, most: int, bad: list[str]
) -> pa.Table:
    """Return the first rows of a file that are not bad, with its flat columns. The reasons of the others go to `bad`."""
    schema = pa.schema([(name, kind if kind != pa.null() else pa.string()) for name, kind in types.items()])
    schema = pa.schema([item for item in schema if _is_flat(item.type)])
    pieces = [pa.table([pa.array([], kind) for kind in schema.types], schema=schema)]
    spans = [span for group in cut([registry.extent(file, look, spec)]) for span in group]
    left = most
    for span in spans[:1]:
        with contextlib.closing(span_blocks(span, schema, spec, LimitSpec(), _always)) as blocks:
            for block in blocks:
                good = [row for row in range(block.rows) if row not in block.errors][:left]
                bad += block.errors.values()
                if block.columns is not None:
                    pieces.append(block.columns.take(pa.array(good, pa.int64())))
                    left -= len(good)
                if left <= 0:
                    break
    return pa.concat_tables(pieces)


def _always(first: int, count: int) -> bool:
    """Every row is needed. Formats that are read in a process of their own send this there."""
    return True


def _is_flat(kind: pa.DataType) -> bool:
    """Whether values are single ones, of which a person and a filter can make something."""
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _joined(one: pa.DataType | None, other: pa.DataType) -> pa.DataType | None:
    if one is not None and pa.types.is_null(one):
        return other
    return one if one == other or pa.types.is_null(other) else None


def _column(name: str, kind: pa.DataType | None, tables: Sequence[pa.Table]) -> Column:
    values = list[Any]()
    for table in tables:
        has = kind is not None and name in table.column_names
        values += table.column(name).to_pylist() if has else [None] * table.num_rows
    return Column(name=name, type=pa.string() if kind == pa.null() else kind, values=tuple(values))


def _is_prose(value: str) -> bool:
    words = value.split()
    if len(words) == 1:  # This is an address, a name or a code, or a language that puts no spaces between words.
        return len(value) >= _LONG_NAME // 4 and not value.isascii()
    return len(words) >= 3 or sum(map(str.isalpha, words)) >= 2
