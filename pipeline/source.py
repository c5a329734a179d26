"""What there is to embed: the source files, the types of their columns, and the spans that units are made of.

Comes in: a SourceSpec. Goes out: `SourceFile`s and a `Survey`. Nothing is read here but footers and first lines; how a
span becomes documents stands in reading.py, what is special to a format in its own file.
"""

import contextlib
import difflib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import unquote

import pyarrow as pa

from pipeline import jsonl, parquet
from pipeline.columns import can_be_id, column_names, common_type, partition_type, plain_type, without_nulls
from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.schema import NULL_PARTITION
from pipeline.spans import Extent, RowGroup, cut
from pipeline.storage import list_pattern, open_pinned
from pipeline.unit import SourceFile, Span

Format = Literal["parquet", "jsonl", "jsonl.gz"]

_SUFFIXES: Mapping[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".ndjson.gz": "jsonl.gz",
}
_SAMPLED_FILES = 8
_THREADS = 16
_ROW_BYTES_GUESS = 1000
_GZIP_RATIO_GUESS = 4


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What planning needs to know of the sources."""

    schema: pa.Schema
    """Of the columns that are read: id, texts, kept and partition columns, under their names in the source."""
    spans: list[tuple[Span, ...]]
    """The spans of each unit, in path order."""
    rows_known: int | None
    """Rows of all files; None where only reading can tell."""
    rows_estimate: int
    bytes: int
    """Of the files as they are stored."""


# --- files


def list_sources(spec: SourceSpec) -> list[SourceFile]:
    """The files of all patterns, each once, sorted by path.

    Raises InputError for a pattern without files and for a file whose format is unknown.
    """
    found = {file.path: file for pattern in spec.patterns for file in list_pattern(pattern, spec.storage_options)}
    return [
        SourceFile(
            path=path,
            size=file.size,
            version=file.version,
            format=_format(path, spec.format),
            partition=hive_partition(path),
        )
        for path, file in sorted(found.items())
    ]


def _format(path: str, asked: str) -> Format:
    name = path.rpartition("/")[2].lower()
    if asked == "jsonl":
        return "jsonl.gz" if name.endswith(".gz") else "jsonl"
    if asked == "parquet":
        return "parquet"
    for suffix, known in _SUFFIXES.items():
        if name.endswith(suffix):
            return known
    raise InputError(
        f"the format of {path!r} is unknown: expected one of {', '.join(_SUFFIXES)}; narrow source.path, or set "
        "source.format to parquet or jsonl"
    )


def hive_partition(path: str) -> tuple[tuple[str, str | None], ...]:
    """The `key=value` folders of a path, unescaped, in path order; a key that comes again counts where it is deepest."""
    pairs: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if key and equals:
            pairs[unquote(key)] = None if value == NULL_PARTITION else unquote(value)
    return tuple(pairs.items())


# --- survey


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one file says of itself."""

    file: SourceFile
    footer: parquet.Footer | None = None
    sample: jsonl.Sample | None = None


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """The type of a column so far, and a file that has it."""

    type: pa.DataType
    path: str


def survey(files: Sequence[SourceFile], spec: SourceSpec, partition_by: Sequence[str] = ()) -> Survey:
    """Look into the files once, for types and for spans: all Parquet footers, the first lines of some JSONL files.

    Raises InputError for columns that don't exist, don't fit together or can't be what they are meant for, and if no
    file can be read. A single file that can't be read is no error: reading it makes a dead letter.
    """
    columns = list(column_names(spec.id, spec.text_columns, [*spec.keep, *partition_by]))
    looks = _look_into(files, columns, spec)
    _check_readable(files, looks)
    schema = pa.schema([(name, _column_type(name, files, looks)) for name in columns])
    _check_roles(schema, spec)
    extents = [Extent(file=file, row_groups=_row_groups(looks.get(file.path))) for file in files]
    spans = cut(extents)
    known = [span.rows for group in spans for span in group]
    return Survey(
        schema=schema,
        spans=spans,
        rows_known=None if None in known else sum(cast(list[int], known)),
        rows_estimate=_estimate_rows(spans, looks),
        bytes=sum(file.size for file in files),
    )


def _look_into(files: Sequence[SourceFile], columns: Sequence[str], spec: SourceSpec) -> dict[str, _Look]:
    """By path. All Parquet files, and JSONL files spread over the list."""
    jsonl_files = [file for file in files if file.format != "parquet" and file.size]
    chosen = [file for file in files if file.format == "parquet"] + _spread(jsonl_files, _SAMPLED_FILES)

    def look(file: SourceFile) -> _Look:
        with contextlib.closing(open_pinned(file, spec.storage_options, parquet.FOOTER_READAHEAD_BYTES)) as opened:
            if file.format == "parquet":
                return _Look(file=file, footer=parquet.read_footer(opened, columns))
            try:
                return _Look(
                    file=file, sample=jsonl.sample(opened, file.format == "jsonl.gz", columns, spec.text_columns)
                )
            except jsonl.Misfit as misfit:
                raise InputError(f"{misfit} in {file.path!r}: {_FIX_TYPES}") from None

    with ThreadPoolExecutor(_THREADS) as pool:
        return {found.file.path: found for found in pool.map(look, chosen)}


_FIX_TYPES = "a column needs one type; leave it out of source.keep, or convert the files"


def _spread(files: Sequence[SourceFile], count: int) -> list[SourceFile]:
    """First, last and evenly between."""
    if len(files) <= count:
        return list(files)
    return [files[round(index * (len(files) - 1) / (count - 1))] for index in range(count)]


def _check_readable(files: Sequence[SourceFile], looks: Mapping[str, _Look]) -> None:
    if not any(look.footer or (look.sample and look.sample.objects) for look in looks.values()):
        raise InputError(
            f"none of the {len(files)} source files can be read, the first is {files[0].path!r}: expected Parquet files, "
            "or JSON objects one a line; check source.path and source.format"
        )


def _row_groups(look: _Look | None) -> tuple[RowGroup, ...] | None:
    return look.footer.row_groups if look and look.footer else None


# --- types


def _column_type(name: str, files: Sequence[SourceFile], looks: Mapping[str, _Look]) -> pa.DataType:
    """The one type of a column in all files that have it, and in the names of the folders of those that don't."""
    kinds = [kind for kind in (_parquet_kind(name, looks), _jsonl_kind(name, looks)) if kind is not None]
    in_jsonl = any(look.sample is not None and name in look.sample.types for look in looks.values())
    lacking = [file for file in files if not _has_column(name, looks.get(file.path), in_jsonl)]
    values = [(file.path, value) for file in lacking for key, value in file.partition if key == name]
    if values and not (kinds and pa.types.is_string(kinds[0].type)):
        kinds.append(_Kind(type=partition_type(value for _, value in values), path=values[0][0]))
    if not kinds:
        raise InputError(_unknown_column(name, files, looks))
    kind = kinds[0]
    for other in kinds[1:]:
        kind = _unite(name, kind, other, common_type)
    return without_nulls(kind.type)


def _has_column(name: str, look: _Look | None, in_jsonl: bool) -> bool:
    """A JSONL file that was not sampled is taken for one like the others; an unreadable Parquet file lacks nothing."""
    if look is None:
        return in_jsonl
    if look.sample is not None:
        return name in look.sample.types
    return look.footer is None or name in look.footer.types


def _parquet_kind(name: str, looks: Mapping[str, _Look]) -> _Kind | None:
    kind: _Kind | None = None
    for look in looks.values():
        if look.footer is None or name not in look.footer.types:
            continue
        if name in look.footer.duplicates:
            raise InputError(f"{look.file.path!r} has more than one column {name!r}: rename one")
        found = _Kind(type=plain_type(look.footer.types[name]), path=look.file.path)
        kind = found if kind is None else _unite(name, kind, found, common_type)
    return kind


def _jsonl_kind(name: str, looks: Mapping[str, _Look]) -> _Kind | None:
    def join(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
        try:
            return jsonl.join_types(name, a, b)
        except jsonl.Misfit:
            return None

    kind: _Kind | None = None
    for look in looks.values():
        if look.sample is None or name not in look.sample.types:
            continue
        found = _Kind(type=look.sample.types[name], path=look.file.path)
        kind = found if kind is None else _unite(name, kind, found, join)
    return kind


def _unite(name: str, a: _Kind, b: _Kind, join: Callable[[pa.DataType, pa.DataType], pa.DataType | None]) -> _Kind:
    kind = join(a.type, b.type)
    if kind is None:
        raise InputError(f"column {name!r} is {a.type} in {a.path!r} but {b.type} in {b.path!r}: {_FIX_TYPES}")
    return _Kind(type=kind, path=a.path if kind == a.type else b.path)


def _check_roles(schema: pa.Schema, spec: SourceSpec) -> None:
    for name in spec.text_columns:
        kind = schema.field(name).type
        if not pa.types.is_string(kind):
            raise InputError(f"source.text names column {name!r}, which is {kind}: expected a column of strings")
    if spec.id is not None and not can_be_id(schema.field(spec.id).type):
        raise InputError(
            f"source.id names column {spec.id!r}, which is {schema.field(spec.id).type}: expected strings, integers, binary, "
            "dates, decimals or timestamps; null makes ids from file and position"
        )


def _unknown_column(name: str, files: Sequence[SourceFile], looks: Mapping[str, _Look]) -> str:
    known = {key for file in files for key, _ in file.partition}
    for look in looks.values():
        known.update(look.footer.names if look.footer else look.sample.names if look.sample else ())
    near = difflib.get_close_matches(name, known, 3, 0.6) or sorted(known)[:10]
    return f"no source file has a column {name!r}; the nearest are {', '.join(map(repr, near)) or 'none'}"


# --- rows


def _estimate_rows(spans: Sequence[tuple[Span, ...]], looks: Mapping[str, _Look]) -> int:
    samples = [look.sample for look in looks.values() if look.sample is not None]
    sampled_rows = sum(sample.rows for sample in samples)
    row_bytes = sum(sample.size for sample in samples) / sampled_rows if sampled_rows else _ROW_BYTES_GUESS
    rows = 0.0
    for span in (span for group in spans for span in group):
        if span.rows is not None:
            rows += span.rows
        elif span.file.format != "parquet":
            packed = _GZIP_RATIO_GUESS if span.file.format == "jsonl.gz" else 1
            rows += (span.stop - span.start) * packed / max(1.0, row_bytes)
    return round(rows)
