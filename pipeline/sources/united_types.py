"""The type that a column has in all files of a source, of whatever formats they are.

Comes in: files, and what was found in those that were looked into. Goes out: a type, or an InputError that names two files
that don't fit together. Opens no file.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.sources.column_types import carried_type, named_type, unite, without_nulls
from pipeline.sources.columns import partition_type
from pipeline.sources.formats import registry
from pipeline.sources.formats.form import Join, Look
from pipeline.sources.type_changes import Found, Standing, TypeChange, type_change
from pipeline.work import FormatName, SourceFile

FIX_TYPES = "a column needs one type; leave it out of source.keep, set its type in source.schema, or convert the files"


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """The type of a column so far, and a file that has it."""

    type: pa.DataType
    path: str


def change_of(
    name: str, standing: Standing, files: Sequence[SourceFile], looks: Mapping[str, Look], *, plain: bool
) -> TypeChange | None:
    """What the files that the table doesn't know make of the type that the column stands with. Strings of a format that
    has nothing else are parsed as any type."""
    found = []
    for file in files:
        look = looks.get(file.path)
        if look is None or name not in look.types:
            continue
        if standing.knows(file) or registry.FORMS[file.format].strings_only:
            continue
        _check_once(name, file, look)
        kind = look.types[name]
        found.append(Found(file=file, type=named_type(kind) if plain else kind))
    only_json = {file.format for file in files} == {"jsonl"}
    return type_change(name, standing.types[name], found, only_json=only_json)


def exists(name: str, files: Sequence[SourceFile], looks: Mapping[str, Look]) -> bool:
    return any(name in look.types for look in looks.values()) or bool(folder_values(name, files, looks))


def _check_once(name: str, file: SourceFile, look: Look) -> None:
    if name in look.duplicates:
        raise InputError(f"{file.path!r} has more than one column {name!r}: rename one")


def column_type(
    name: str,
    files: Sequence[SourceFile],
    looks: Mapping[str, Look],
    planned: pa.DataType | None,
    absent: pa.DataType | None,
    *,
    plain: bool,
) -> pa.DataType:
    """The one type of a column in all files that have it, and in the names of the folders of those that don't.

    `planned` is what the user says, `absent` what the column is if no file that was looked into has it.
    """
    kinds = [kind for form in formats(files) if (kind := _kind_in(name, files, looks, form, planned, plain=plain))]
    values = folder_values(name, files, looks)
    if values and not (kinds and pa.types.is_string(kinds[0].type)):
        kinds.append(_Kind(type=partition_type(value for _, value in values), path=values[0][0]))
    if not kinds and absent is not None:
        kinds = [_Kind(type=named_type(absent) if plain else absent, path="the table")]
    if not kinds:
        raise InputError(unknown_column(name, files, looks))
    if planned is not None:
        kinds = [_Kind(type=named_type(planned) if plain else planned, path="source.schema")]
    kind = kinds[0]
    for other in kinds[1:]:
        kind = _unite(name, kind, other)
    carried = carried_type(kind.type)
    if carried is None:
        raise InputError(
            f"column {name!r} is {kind.type} in {kind.path!r}, which a Parquet file can't hold: leave it out of "
            "source.keep, or convert the files"
        )
    return without_nulls(carried)


def folder_values(name: str, files: Sequence[SourceFile], looks: Mapping[str, Look]) -> list[tuple[str, str | None]]:
    """(path, value) of the files that lack the column and whose folders name it."""
    known = {form for form in formats(files) if _has_format(name, files, looks, form)}
    lacking = [file for file in files if not _has_column(name, file, looks, known)]
    return [(file.path, value) for file in lacking for key, value in file.partition if key == name]


def logged_values(name: str, files: Sequence[SourceFile]) -> list[tuple[str, Any]]:
    """(path, value) of the files of which a lakehouse table's log tells it."""
    logged = [file for file in files if file.logged is not None]
    return [(file.path, value) for file in logged for key, value in file.partition if key == name]


def _has_format(name: str, files: Sequence[SourceFile], looks: Mapping[str, Look], form: FormatName) -> bool:
    found = (looks.get(file.path) for file in files if file.format == form)
    return any(look is not None and name in look.types for look in found)


def _has_column(name: str, file: SourceFile, looks: Mapping[str, Look], formats: Collection[FormatName]) -> bool:
    """A file that was not sampled is taken for one like the others of its format; an unreadable one lacks nothing."""
    look = looks.get(file.path)
    if look is None:
        return file.format in formats
    return not look.readable or name in look.types


def _kind_in(
    name: str,
    files: Sequence[SourceFile],
    looks: Mapping[str, Look],
    form: FormatName,
    planned: pa.DataType | None,
    *,
    plain: bool,
) -> _Kind | None:
    """In all files of one format; in the first one that has it if the type is planned anyway."""
    kind: _Kind | None = None
    for file in files:
        look = looks.get(file.path)
        if file.format != form or look is None or name not in look.types:
            continue
        _check_once(name, file, look)
        found = look.types[name]
        here = _Kind(type=named_type(found) if plain else found, path=file.path)
        if kind is None:
            kind = here
        elif planned is None:
            kind = _unite(name, kind, here, registry.FORMS[form].join)
    return kind


def _unite(name: str, a: _Kind, b: _Kind, join: Join | None = None) -> _Kind:
    kind = join(name, a.type, b.type) if join is not None else unite(a.type, b.type)
    if kind is None:
        raise InputError(f"column {name!r} is {a.type} in {a.path!r} but {b.type} in {b.path!r}: {FIX_TYPES}")
    return _Kind(type=kind, path=a.path if kind == a.type else b.path)


def unknown_column(name: str, files: Sequence[SourceFile], looks: Mapping[str, Look]) -> str:
    known = {key for file in files for key, _ in file.partition}
    for look in looks.values():
        known.update(look.names)
    near = difflib.get_close_matches(name, known, 3, 0.6) or sorted(known)[:10]
    return f"no source file has a column {name!r}; the nearest are {', '.join(map(repr, near)) or 'none'}"


def formats(files: Iterable[SourceFile]) -> Iterator[FormatName]:
    """In the order of the registry."""
    present = {file.format for file in files}
    return (form for form in registry.FORMS if form in present)
