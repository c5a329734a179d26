"""What there is to embed: the types of the source files' columns, and the spans that units are made of.

Comes in: a SourceSpec and its files. Goes out: a `Survey`. Nothing is read here but footers and first lines; which files
there are stands in listing.py, how a span becomes documents in reader.py, what is special to a format in formats/.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.errors import ConfigError, InputError, one_line
from pipeline.sources import filter, type_names
from pipeline.sources.column_types import (
    can_be_id,
)
from pipeline.sources.columns import column_names, partition_value
from pipeline.sources.formats import registry
from pipeline.sources.formats.content import encoding_hint
from pipeline.sources.formats.document import USUAL
from pipeline.sources.formats.form import Look, Misfit
from pipeline.sources.formats.values import can_be_text
from pipeline.sources.lakehouse import look as lakehouse
from pipeline.sources.left_out import remarks
from pipeline.sources.spans import PACKED_RATIO, cut
from pipeline.sources.type_changes import Standing, TypeChange
from pipeline.sources.united_types import (
    FIX_TYPES,
    change_of,
    column_type,
    exists,
    folder_values,
    formats,
    logged_values,
    unknown_column,
)
from pipeline.storage import open_pinned
from pipeline.work import FormatName, SourceFile, Span

_SAMPLED_FILES = 8
_SAMPLED_BYTES, _MOST_SAMPLED_FILES = 64 * 2**20, 256
"""Up to so many stored bytes in so many files all of a format are looked into."""
_MOST_FRONT_MATTERS = 4096
"""Up to so many texts are all looked into for the columns of their front matter, which each file names by itself."""
_THREADS = 16
_LOOK_BYTES = 2**16
_SHOWN_REASONS = 3
_ROW_BYTES_GUESS = 1000


@dataclass(frozen=True, kw_only=True)
class PartitionFolder:
    """A `key=value` folder that speaks for a file."""

    column: str
    value: Any
    """None is the null partition. A lakehouse table's log gives values their own types."""
    path: str
    """The path of one such file."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What planning needs to know of the sources."""

    schema: pa.Schema
    """The columns that are read: id, texts, kept and partition columns, under their names in the source."""
    spans: list[tuple[Span, ...]]
    """The spans of each unit, in path order."""
    rows_known: int | None
    """Rows of all files; None where only reading can tell."""
    rows_estimate: int
    bytes: int
    """The size of all files as they are stored."""
    bytes_unpacked: int
    """What they hold, uncompressed: by their footers where these say it, else about so much."""
    row_bytes: Mapping[FormatName, float] = field(default_factory=dict)
    """The bytes of a row by format, uncompressed unless the format is so by itself; of formats that were looked into."""
    folders: tuple["PartitionFolder", ...] = ()
    """What folders say of columns that their files lack, each value once."""
    changes: tuple[TypeChange, ...] = ()
    """Columns whose types in new files are others than the table stands with; the schema has the types that hold both."""
    remarks: tuple[str, ...] = ()
    """What a person is told of how files are read."""
    left_out: tuple[str, ...] = ()
    """What a person is told of the files that were left out."""
    snapshot: str | None = None
    """The state of a lakehouse table that is read, for people."""

    def expected_rows(self, span: Span) -> int:
        """How many rows the span has, by what its file says of itself, else by its bytes and those of other rows."""
        return span.rows if span.rows is not None else round(_estimated_rows(span, self.row_bytes))


# --- survey


def survey(
    files: Sequence[SourceFile],
    spec: SourceSpec,
    partition_by: Sequence[str] = (),
    before: Mapping[str, pa.DataType] | None = None,
    standing: Standing | None = None,
) -> Survey:
    """Look into the files once, for types and for spans: all footers and schemas, the first lines of some other files.

    Raises InputError for columns that don't exist, don't fit together or can't be what they are meant for, and if no
    file can be read. A single file that can't be read is no error: reading it makes a dead letter. `before` are types of
    an earlier survey: of a column that no sampled file happens to have. A column that is `standing` keeps its type, but for
    what files that the table doesn't know make of it.
    """
    stands = standing or Standing()
    columns = list(column_names(spec, [*spec.keep, *partition_by]))
    planned = _planned_types(spec, columns, files)
    looks = _look_into(files, columns, spec, stands)
    _check_readable(files, looks)
    plain = {*spec.id_columns, *spec.text_columns, *partition_by}
    usual = USUAL if spec.format == "documents" else {}
    sampled = any(not registry.FORMS[form].every for form in formats(files))
    absent = {**usual, **(before or {}), **planned} if sampled else {}
    changes = {
        name: change_of(name, stands, files, looks, plain=name in plain)
        for name in columns
        if name in stands.types and name not in planned
    }
    for name in changes:
        if name not in absent and not exists(name, files, looks):
            raise InputError(unknown_column(name, files, looks))
    kinds: dict[str, pa.DataType] = {}
    for name in columns:
        if name not in changes:
            kinds[name] = column_type(name, files, looks, planned.get(name), absent.get(name), plain=name in plain)
        else:
            change = changes[name]
            kinds[name] = stands.types[name] if change is None else change.new
    schema = pa.schema(list(kinds.items()))
    _check_roles(schema, spec)
    if spec.where is not None:
        filter.check(spec.where, schema)
    spans = cut(registry.extent(file, looks.get(file.path), spec) for file in files)
    row_bytes = _row_bytes(files, looks)
    logged = [file.logged for file in files if file.logged is not None]
    known = [each.live_rows for each in logged] or [span.rows for group in spans for span in group]
    rows_known = None if None in known else sum(cast(list[int], known))
    return Survey(
        schema=schema,
        spans=spans,
        rows_known=rows_known,
        rows_estimate=_estimate_rows(spans, looks, row_bytes) if rows_known is None else rows_known,
        row_bytes=row_bytes,
        bytes=sum(file.size for file in files),
        bytes_unpacked=sum(_bytes_unpacked(file, looks.get(file.path)) for file in files),
        folders=tuple(_folders(columns, files, looks)),
        snapshot=logged[0].snapshot.label if logged else None,
        changes=tuple(change for change in changes.values() if change is not None),
        remarks=remarks({file.relative: looks[file.path].remark for file in files if file.path in looks}),
    )


def check_folders(folders: Iterable["PartitionFolder"], schema: pa.Schema) -> None:
    """Raises InputError for a value in a folder's name that its column can't hold."""
    for folder in folders:
        kind = schema.field(folder.column).type
        if partition_value(folder.value, kind) is None:
            raise InputError(
                f"column {folder.column!r} is {kind}, but the folders of {folder.path!r} say {folder.value!r}, which is no "
                "such value: give its type in source.schema (string holds all), or narrow source.path"
            )


def _folders(
    columns: Sequence[str], files: Sequence[SourceFile], looks: Mapping[str, Look]
) -> Iterator["PartitionFolder"]:
    for name in columns:
        distinct = {value: path for path, value in (*folder_values(name, files, looks), *logged_values(name, files))}
        yield from (PartitionFolder(column=name, value=value, path=path) for value, path in distinct.items())


def _given_type(name: str, kind: str) -> pa.DataType:
    try:
        return type_names.parse(kind)
    except ConfigError as error:
        raise ConfigError(f"source.schema.{name}: {error}") from None


def _planned_types(spec: SourceSpec, columns: Sequence[str], files: Sequence[SourceFile]) -> Mapping[str, pa.DataType]:
    """The types that `source.schema` gives. Raises InputError for a column that is not read, and for a type that can't be."""
    for name in spec.schema:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, 1, 0.5) or columns
            raise InputError(
                f"source.schema gives a type to column {name!r}, which is not read; the nearest is {near[0]!r}: rename "
                "it, or add it to source.keep"
            )
    if not spec.schema:
        return {}
    planned = {name: _given_type(name, kind) for name, kind in spec.schema.items()}
    for form in formats(files):
        for name, kind in planned.items():
            if registry.FORMS[form].strings_only and not can_be_text(kind):
                raise InputError(f"source.schema.{name} is {kind}, but {form} files hold strings: give a flat type")
    return planned


def _look_into(
    files: Sequence[SourceFile], columns: Sequence[str], spec: SourceSpec, standing: Standing
) -> dict[str, Look]:
    """By path. All files of formats that say what they hold, and of a small source; of others some that are spread over the
    list, and as many of those that the table doesn't know."""
    chosen: list[SourceFile] = []
    for form in formats(files):
        those = [file for file in files if file.format == form]
        if registry.FORMS[form].every:
            chosen += those
            continue
        those = [file for file in those if file.size] or those
        if form == "text" and spec.front_matter == "columns" and len(those) <= _MOST_FRONT_MATTERS:
            chosen += those
            continue
        fresh = [file for file in those if not standing.knows(file)]
        chosen += dict.fromkeys((*_sampled(those), *_sampled(fresh)))

    def look(file: SourceFile) -> tuple[str, Look]:
        if file.logged is not None:
            return file.path, lakehouse.look(file, file.logged, columns, spec)
        with contextlib.closing(open_pinned(file, spec.storage_options, _LOOK_BYTES)) as opened:
            try:
                return file.path, registry.look(opened, file, columns, spec)
            except Misfit as misfit:
                raise InputError(f"{misfit} in {file.path!r}: {FIX_TYPES}") from None

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(pool.map(look, chosen))


def _sampled(files: Sequence[SourceFile]) -> Sequence[SourceFile]:
    small = len(files) <= _MOST_SAMPLED_FILES and sum(file.size for file in files) <= _SAMPLED_BYTES
    return files if small else _spread(files, _SAMPLED_FILES)


def _spread(files: Sequence[SourceFile], count: int) -> list[SourceFile]:
    """First, last and evenly between."""
    if len(files) <= count:
        return list(files)
    return [files[round(index * (len(files) - 1) / (count - 1))] for index in range(count)]


def _check_readable(files: Sequence[SourceFile], looks: Mapping[str, Look]) -> None:
    if any(look.readable for look in looks.values()):
        return
    known = [(path, look.reason or "it holds no row") for path, look in looks.items()]
    shown = "; ".join(f"{path!r}: {one_line(reason, 300)}" for path, reason in known[:_SHOWN_REASONS])
    more = f"; and {len(known) - _SHOWN_REASONS} more" if len(known) > _SHOWN_REASONS else ""
    remedy = encoding_hint([reason for _, reason in known]) or "; check source.path and source.format"
    raise InputError(
        f"none of the {len(files)} source files can be read as {', '.join(formats(files))}: {shown}{more}{remedy}"
    )


def _check_roles(schema: pa.Schema, spec: SourceSpec) -> None:
    for name in spec.text_columns:
        kind = schema.field(name).type
        if not pa.types.is_string(kind):
            raise InputError(f"source.text names column {name!r}, which is {kind}: expected a column of strings")
    for name in spec.id_columns:
        kind = schema.field(name).type
        if not can_be_id(kind):
            raise InputError(
                f"source.id names column {name!r}, which is {kind}: expected strings, integers, binary, dates, decimals "
                "or timestamps; null makes ids from file and position"
            )


# --- rows


def _estimate_rows(
    spans: Sequence[tuple[Span, ...]], looks: Mapping[str, Look], row_bytes: Mapping[FormatName, float]
) -> int:
    rows = 0.0
    for span in (span for group in spans for span in group):
        if span.rows is not None:
            rows += span.rows
        elif (look := looks.get(span.file.path)) is None or look.readable:
            rows += _estimated_rows(span, row_bytes)
    return round(rows)


def _estimated_rows(span: Span, row_bytes: Mapping[FormatName, float]) -> float:
    packed = PACKED_RATIO if span.file.compression else 1
    return (span.stop - span.start) * packed / row_bytes.get(span.file.format, _ROW_BYTES_GUESS)


def _bytes_unpacked(file: SourceFile, look: Look | None) -> int:
    told = sum(group.size for group in (look.row_groups if look is not None else None) or ())
    # A writer may leave the sizes in a footer at 0.
    return told or file.size * (PACKED_RATIO if file.compression or file.format == "parquet" else 1)


def _row_bytes(files: Sequence[SourceFile], looks: Mapping[str, Look]) -> dict[FormatName, float]:
    """The mean bytes of a row by format: of a sample's text, or of whole files that tell how many rows they hold."""
    sizes: dict[FormatName, int] = {}
    rows: dict[FormatName, int] = {}
    for file in files:
        if (look := looks.get(file.path)) is None:
            continue
        counted = sum(group.rows for group in look.row_groups or ())
        sizes[file.format] = sizes.get(file.format, 0) + (file.size if counted else look.size)
        rows[file.format] = rows.get(file.format, 0) + (counted or look.rows)
    return {form: max(1.0, sizes[form] / count) for form, count in rows.items() if count}
