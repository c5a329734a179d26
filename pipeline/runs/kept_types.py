"""A table keeps the types of its columns, and takes wider ones where new files need them.

The survey of the sources and the table's current version come in. The types that a run reads with go out, and the
columns for which all of the table's files have to be written anew, or an InputError that names old type, new type, file
and remedy. Nothing is written here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.config import RunSpec
from pipeline.errors import InputError
from pipeline.progress import counted, size
from pipeline.runs import plan as planning
from pipeline.sources.survey import Survey
from pipeline.sources.type_changes import Found, Standing, TypeChange, since, unfitting
from pipeline.storage import Folder
from pipeline.table import snapshot
from pipeline.table.seen_types import largest_integer, seen_type
from pipeline.table.snapshot import Snapshot
from pipeline.work import lasting_name

LARGEST_EXACT = 2**53
"""Up to it every whole number is a float64."""


@dataclass(frozen=True, kw_only=True)
class KeptTypes:
    """It says how the sources are read so that the table stays what it is."""

    survey: Survey
    """It has the types to read with, and the changes are settled."""
    widened: tuple[TypeChange, ...] = ()
    """They are columns of the table's files that take a wider type."""
    retyped: bool = False
    """Some column is read as another type than before, so that all units are other ones."""
    words: Mapping[str, str] = field(default_factory=dict)
    """The output spec keeps these names of types, since what is stored is the same under the type that is read."""


def standing(spec: RunSpec, parent: Snapshot, forms: Collection[str]) -> Standing | None:
    """Return the types that the table was built with, while the roles of its columns are what they were; else None. The
    user's own `source.schema` goes before them."""
    if not parent.source_schema:
        return None
    fixed = snapshot.hex_to_schema(parent.source_schema)
    if planning.shape(planning.output_spec(spec, fixed, forms, _words(parent, fixed))) != planning.shape(
        parent.output_spec
    ):
        return None
    files = zip(parent.sources.column("path").to_pylist(), parent.sources.column("version").to_pylist(), strict=True)
    return Standing(
        types={item.name: item.type for item in fixed if item.name not in spec.source.schema},
        files=frozenset((lasting_name(path), version) for path, version in files),
    )


def settle(spec: RunSpec, surveyed: Survey, parent: Snapshot, table: Folder) -> KeptTypes:
    """Decide what becomes of each column of the table whose type is another in new files.

    Values that all fit the old type take it. Where some don't, the column takes the type that holds both. For a column
    that the table's files don't hold this costs nothing; for another all files are written anew. Raises InputError where
    no type holds both, and where ids would be written otherwise than before.
    """
    schema, widened = surveyed.schema, []
    taken: dict[str, pa.DataType] = {}
    for change in surveyed.changes:
        left = unfitting(change, spec.source, spec.limits)
        if left is not None and left.alien and _is_stored(left, spec):
            left = since(left, seen_type(table, parent, left.column, left.old))
        if left is not None and left.alien:
            raise InputError(_refusal(left, left.alien[0], table))
        if (
            left is not None
            and _turns_to_fractions(left)
            and largest_integer(table, parent, left.column) > LARGEST_EXACT
        ):
            raise InputError(_refusal(left, left.wider[0], table))
        if left is not None and left.column in spec.source.id_columns and not _same_text(left):
            raise InputError(_other_ids(left, table))
        new = change.old if left is None else left.new
        taken[change.column] = new
        schema = schema.set(schema.get_field_index(change.column), pa.field(change.column, new))
        if left is not None and _is_stored(left, spec):
            widened.append(left)
    fixed = snapshot.hex_to_schema(parent.source_schema)
    widened += [change for change in _asked_for(spec, schema, fixed) if _is_stored(change, spec)]
    stored = {change.column for change in widened}
    words = {
        name: word
        for name, word in _words(parent, fixed).items()
        if name in schema.names
        and name not in stored
        and schema.field(name).type == taken.get(name, fixed.field(name).type)
    }
    retyped = any(name in schema.names and name not in words for name in _words(parent, fixed))
    return KeptTypes(
        survey=replace(surveyed, schema=schema, changes=()), widened=tuple(widened), retyped=retyped, words=words
    )


def _asked_for(spec: RunSpec, schema: pa.Schema, fixed: pa.Schema) -> list[TypeChange]:
    """Return the columns to which `source.schema` gives another type than the table has."""
    return [
        TypeChange(column=name, old=fixed.field(name).type, new=schema.field(name).type, wider=())
        for name in spec.source.schema
        if name in fixed.names and fixed.field(name).type != schema.field(name).type
    ]


def told(change: TypeChange) -> str:
    """Return what a person is told of a column that takes another type."""
    if not change.wider:
        return f"column {change.column!r} from {change.old} to {change.new} by source.schema"
    more = f" and {len(change.wider) - 1:,} more files" if len(change.wider) > 1 else ""
    return f"column {change.column!r} from {change.old} to {change.new} for {change.wider[0].file.path!r}{more}"


def cost(parent: Snapshot) -> str:
    """Return what it costs to write the table anew."""
    stored = size(sum(part.size for part in parent.parts))
    return (
        f"all of the table ({counted(len(parent.parts), 'file')}, {stored}) is written anew and all source files read, "
        "nothing is encoded for it"
    )


def _words(parent: Snapshot, fixed: pa.Schema) -> dict[str, str]:
    """Return the names of types that the version's output spec has, for columns that are read as before."""
    words = parent.output_spec.get("schema", {})
    return {name: words[name] for name in fixed.names if name in words}


def _is_stored(change: TypeChange, spec: RunSpec) -> bool:
    """Say whether the table's files or the names of its folders depend on the type. Integers are named alike in all
    their widths."""
    partitions = spec.table.partition_by
    if change.column in spec.source.keep and change.column not in partitions:
        return True
    return change.column in partitions and not _both_integers(change)


def _turns_to_fractions(change: TypeChange) -> bool:
    """Say whether whole numbers of JSON become floats, at any depth."""
    return change.only_json and "int64" in str(change.old) and "double" in str(change.new)


def _same_text(change: TypeChange) -> bool:
    """Say whether ids are written alike under both types."""
    kinds = (change.old, change.new)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return _both_integers(change) or all(any(check(kind) for check in binary) for kind in kinds)


def _both_integers(change: TypeChange) -> bool:
    return bool(pa.types.is_integer(change.old) and pa.types.is_integer(change.new))


def _refusal(change: TypeChange, item: Found, table: Folder) -> str:
    name, old = change.column, change.old
    return (
        f"column {name!r} is {old} in table {table.url}, but {item.type} in {item.file.path!r}, and no type holds both as "
        f"they are: nothing was done. Convert the file, leave it out by source.exclude, or set source.schema.{name} to "
        f"{old}, under which values that are none become dead letters; a table of its own can have source.schema.{name}: "
        "string"
    )


def _other_ids(change: TypeChange, table: Folder) -> str:
    name, item = change.column, change.wider[0]
    return (
        f"column {name!r}, which makes the ids, is {change.old} in table {table.url}, but {item.type} in "
        f"{item.file.path!r}, with values that the former can't hold, and as {change.new} every id would be written "
        f"otherwise: nothing was done. Convert the file, leave it out by source.exclude, or build a table of its own "
        f"(table.path) with source.schema.{name}: string"
    )
