"""The files of a lakehouse table that hold the rows of one snapshot, as source files.

Comes in: a SourceSpec whose path is `delta:..` or `iceberg:..`, the columns that are read, and how earlier runs cut
the files. Goes out: source files, each with all that a reader needs of the log. They are pinned by the log: a write
during the run changes nothing.
"""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline import identity
from pipeline.config import SourceSpec, prefix_of
from pipeline.errors import InputError
from pipeline.sources.lakehouse import delta, iceberg
from pipeline.sources.lakehouse.data_file import DataFile
from pipeline.sources.lakehouse.refusal import HUDI
from pipeline.sources.spans import Cut, is_large
from pipeline.storage import store_of
from pipeline.work import LakeColumn, LakeSnapshot, Logged, SourceFile

_FORMATS: Mapping[str, Callable[[str, SourceSpec, set[str]], tuple[LakeSnapshot, list[DataFile]]]] = {
    "delta:": delta.snapshot,
    "iceberg:": iceberg.snapshot,
}


def is_lakehouse(spec: SourceSpec) -> bool:
    """Whether the source is a lakehouse table. Raises InputError if it is one among other paths."""
    named = [pattern for pattern in spec.patterns if prefix_of(pattern)]
    if named and len(spec.patterns) > 1:
        raise InputError("source.path lists a lakehouse table among other paths: give one table alone")
    return bool(named)


def find(spec: SourceSpec, columns: Sequence[str], cuts: Mapping[tuple[str, str], Cut]) -> tuple[SourceFile, ...]:
    """The files of the snapshot, sorted by path; those of `cuts`, by path and version, need not be looked into.

    Raises InputError for what is no such table, for a snapshot that it doesn't have, and for what can't be read
    exactly.
    """
    (pattern,), (root,) = spec.patterns, spec.places
    prefix = prefix_of(pattern)
    store_of(root)  # no message shows a path that holds a secret
    if prefix == "hudi:":
        raise InputError(f"source.path {pattern!r}: {HUDI}")
    if spec.format not in ("auto", "parquet"):
        raise InputError(
            f"source.format is {spec.format!r}, but a lakehouse table says itself what its files are: leave it out"
        )
    if spec.exclude:
        raise InputError(
            "source.exclude leaves out files, and a lakehouse table is more than its files: use source.where"
        )
    wanted = {spec.renamed.get(name, name) for name in columns}
    found, files = _FORMATS[prefix](root, spec, wanted)
    if not files:
        raise InputError(f"{found.label} holds no rows: expected a snapshot with some (source.snapshot)")
    found = _with_columns(found, wanted)
    mapped = _mapping(found.columns)
    made = [_source_file(file, found, mapped, spec, cuts) for file in files]
    return tuple(sorted(made, key=lambda file: file.path))


def _source_file(
    file: DataFile, found: LakeSnapshot, mapped: list[Any], spec: SourceSpec, cuts: Mapping[tuple[str, str], Cut]
) -> SourceFile:
    deletes = sorted([each.path, each.offset, each.inline.hex()] for each in file.deletes)
    more = [identity.digest([mapped, deletes])[:16]] if mapped or deletes else []
    version, known = "-".join([str(file.size), *file.written, *more]), dict(file.partition)
    logged = Logged(
        snapshot=found,
        rows=file.rows,
        deletes=file.deletes,
        cut=_known_cut(file, cuts.get((file.path, version))) if spec.limit is None else None,
    )
    renamed = ((new, known[old]) for new, old in spec.renamed.items() if old in known and new not in known)
    return SourceFile(
        path=file.path,
        size=file.size,
        version=version,
        format="parquet",
        partition=(*file.partition, *renamed),
        logged=logged,
    )


def _known_cut(file: DataFile, cut: Cut | None) -> tuple[tuple[int, int], ...] | None:
    """How the file was cut; None where it is new, or where a part of it is missing."""
    if cut is None or not is_large(file.size, file.rows):
        return None if cut is None else ()
    starts, stops = [0, *(stop for _, stop in cut.groups)], [start for start, _ in cut.groups]
    return cut.groups if cut.groups and starts[:-1] == stops and cut.rows == file.rows else None


def _with_columns(found: LakeSnapshot, wanted: Collection[str]) -> LakeSnapshot:
    """The snapshot with the columns that are read: it goes to the workers with every file."""
    known = [column.name for column in found.columns]
    for name in sorted(set(wanted) - set(known)):
        near = difflib.get_close_matches(name, known, 3, 0.6) or known[:10]
        raise InputError(f"{found.label} has no column {name!r}; the nearest are {', '.join(map(repr, near))}")
    return replace(found, columns=tuple(column for column in found.columns if column.name in wanted))


def _mapping(columns: Sequence[LakeColumn]) -> list[Any]:
    """What is to be known of columns that files may have under other names: a file gives other rows when one of these
    becomes another column of the same name."""
    plain = ((column.name,) for column in columns)
    mapped = (column for column, names in zip(columns, plain, strict=True) if column.field_id or column.names != names)
    return [[column.name, column.field_id, *column.names] for column in mapped]
