"""A column's type lives longer than a night: the types of new files are held against those that a table stands with.

Comes in: the types that the sources of a table were read with so far, and those of the files that it does not know yet.
Goes out: a `TypeChange` where these differ and some value of theirs has no place in the standing type. What becomes of the
table then is not decided here.
"""

import contextlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.config import LimitSpec, SourceSpec
from pipeline.sources.column_types import carried_type, plain_type, unite, without_nulls
from pipeline.sources.columns import WrongType
from pipeline.sources.formats import registry
from pipeline.sources.span_reader import span_blocks
from pipeline.work import SourceFile, Span

CHECKED_BYTES, CHECKED_FILES = 256 * 2**20, 256
"""A plan reads a column of so many stored bytes in so many new files at most, to see whether all values fit the standing
type."""
_READERS = 4


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The columns as the sources of a table were read so far."""

    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    files: Collection[tuple[str, str]] = frozenset()
    """Name and version of each file that the table was built from."""

    def knows(self, file: SourceFile) -> bool:
        return (file.name, file.version) in self.files


@dataclass(frozen=True, kw_only=True)
class Found:
    """The type that a column has in a new file."""

    file: SourceFile
    type: pa.DataType


@dataclass(frozen=True, kw_only=True)
class TypeChange:
    """New files have values of a column that the standing type may not hold."""

    column: str
    old: pa.DataType
    new: pa.DataType
    """It holds all values of `old` and of the wider files."""
    wider: tuple[Found, ...]
    """The files whose types can be united with the old one."""
    alien: tuple[Found, ...] = ()
    """The files whose types can't."""
    only_json: bool = False
    """All files of the source are JSON Lines, where whole numbers and fractions are of one kind."""


def type_change(column: str, old: pa.DataType, found: Sequence[Found], *, only_json: bool) -> TypeChange | None:
    """What the new files make of the type; None where they have the old one, or one that it holds."""
    new, wider, alien = old, [], []
    for item in found:
        united = _united(column, new, item, only_json=only_json)
        if united is None:
            alien.append(item)
            continue
        if _widens(column, old, item, only_json=only_json):
            wider.append(item)
        new = united
    if not wider and not alien:
        return None
    return TypeChange(
        column=column,
        old=old,
        new=new if wider else old,
        wider=tuple(wider),
        alien=tuple(alien),
        only_json=only_json,
    )


def _widens(column: str, old: pa.DataType, item: Found, *, only_json: bool) -> bool:
    united = _united(column, old, item, only_json=only_json)
    return united is not None and plain_type(united) != plain_type(old)


def _united(column: str, kind: pa.DataType, item: Found, *, only_json: bool) -> pa.DataType | None:
    """The type as the table carries it; None if there is none."""
    join = registry.FORMS[item.file.format].join if only_json else None
    united = join(column, kind, item.type) if join is not None else None
    if united is None:
        united = unite(kind, item.type)
    if united is None and (carried := carried_type(item.type)) is not None:
        united = unite(kind, carried)
    carried = carried_type(united) if united is not None else None
    return None if carried is None else without_nulls(carried)


def unfitting(change: TypeChange, spec: SourceSpec, limits: LimitSpec) -> TypeChange | None:
    """The change for the sake of those files that hold a value which doesn't fit the old type; None if there are none.

    Reads the column in them; where they are too many, all are taken for files that hold such a value.
    """

    def is_unfit(item: Found) -> bool:
        return not (_is_comparable(change, item) and _fits(item.file, change, spec, limits))

    found: list[Found] = []
    for group in (change.wider, change.alien):
        if len(group) > CHECKED_FILES or sum(item.file.size for item in group) > CHECKED_BYTES:
            found += group
            continue
        with ThreadPoolExecutor(_READERS) as pool:
            found += itertools.compress(group, pool.map(is_unfit, group))
    return type_change(change.column, change.old, found, only_json=change.only_json)


def since(change: TypeChange, seen: pa.DataType) -> TypeChange:
    """The change where the table has values of no more than the type `seen`: it is null where only nulls were."""
    found = (*change.wider, *change.alien)
    again = type_change(change.column, seen, found, only_json=change.only_json)
    return change if again is None else replace(again, old=change.old)


def _is_comparable(change: TypeChange, item: Found) -> bool:
    """Whether a value of one type can be equal to one of the other. Text that says a number is no number; in JSON strings
    stand for what it has no types for."""
    if item in change.wider or item.file.format == "jsonl":
        return True
    return _is_number(change.old) and _is_number(item.type)


def _is_number(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _fits(file: SourceFile, change: TypeChange, spec: SourceSpec, limits: LimitSpec) -> bool:
    span = Span(file=file, kind="file", start=0, stop=file.size, rows=None)
    schema = pa.schema([(change.column, change.old)])
    with contextlib.closing(span_blocks(span, schema, replace(spec, where=None), limits, _always)) as blocks:
        return not any(isinstance(error, WrongType) for block in blocks for error in block.errors.values())


def _always(first: int, count: int) -> bool:
    return True
