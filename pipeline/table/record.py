"""The proof that a slice is done: which rows it covers, which parts hold them, what it cost.

A record is created once, after its parts are durable; the first one wins and later attempts' parts are orphans. Records
of a unit that cover its rows without a gap, the final one saying so, make the unit done.
"""

import dataclasses
import itertools
import json
import operator
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.storage import Folder
from pipeline.storage.parallel import in_parallel
from pipeline.table import layout
from pipeline.table.part import Part, partition_from_json, partition_to_json
from pipeline.work import Unreadable

READERS = 32
"""Records are small: reading many is a matter of waiting in parallel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """What a slice cost; adds up over slices, attempts that lost the race not counted."""

    rows_encoded: int = 0
    tokens: int = 0
    tokens_encoded: int = 0
    """Tokens of the distinct rows that the encoder computed."""
    tokens_padded: int = 0
    """Tokens that the model computed for, padding included."""
    truncated: int = 0
    coded: int = 0
    """Numbers that became codes of a range: those of int8 and uint8 tables."""
    clipped: int = 0
    """How many of the coded numbers lie outside their range by more than a step."""
    read_s: float = 0.0
    tokenize_s: float = 0.0
    encode_s: float = 0.0
    write_s: float = 0.0

    @property
    def stages(self) -> dict[str, float]:
        """They are the seconds by stage."""
        return {"read": self.read_s, "tokenize": self.tokenize_s, "encode": self.encode_s, "write": self.write_s}

    def __add__(self, other: "Effort") -> "Effort":
        pairs = zip(_EFFORT_FIELDS, _effort_values(self), _effort_values(other), strict=True)
        return Effort(**{name: mine + others for name, mine, others in pairs})


_EFFORT_FIELDS = tuple(item.name for item in dataclasses.fields(Effort))
_effort_values = operator.attrgetter(*_EFFORT_FIELDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    unit_id: str
    first_row: int
    num_rows: int
    """Source rows covered: those in the parts, the failed and the skipped."""
    documents: int
    """Source rows that the parts hold, in one row each or in their chunks."""
    failed: int
    """Source rows that became dead letters."""
    skipped: int
    """Source rows that the configuration leaves out."""
    broken: bool
    """A dead letter stands for the rest of a file, however many rows it had."""
    last: bool
    sources: tuple[int, ...]
    """The number of each of the unit's spans, as written into the parts."""
    parts: tuple[Part, ...]
    dead_letters: tuple[str, int] | None
    """Staged file of dead letters and its size."""
    bad_vectors: int
    """Rows whose vector is not finite or is zero, as written or before it became integers; the gate wants none."""
    effort: Effort
    attempt: str
    """Nonce of the attempt: makes the bytes of each attempt its own."""
    unread: Mapping[int, Unreadable] = field(default_factory=dict)
    """The sources that can't be read to their end, by their number in `sources`."""
    texts_of: str | None = None
    """The fingerprint of the vectors, where the unit is one of texts: they stand by the hash of the text in the only part."""

    @property
    def stop_row(self) -> int:
        return self.first_row + self.num_rows

    @property
    def rows(self) -> int:
        """Rows that its parts hold."""
        return sum(part.rows for part in self.parts)

    @property
    def staged(self) -> list[tuple[str, int]]:
        """Every staged file that the record relies on, with its size."""
        files = [(part.path, part.size) for part in self.parts]
        return [*files, self.dead_letters] if self.dead_letters else files

    def to_json(self) -> bytes:
        raw = dataclasses.asdict(self)
        raw["parts"] = [
            {"path": part.path, "size": part.size, "rows": part.rows, "raw_bytes": part.raw_bytes}
            | {"partition": partition_to_json(part.partition), "sources": part.sources}
            for part in self.parts
        ]
        if not self.unread:
            del raw["unread"]
        return json.dumps(raw, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes, units: Mapping[str, str] | None = None) -> "Record":
        """Make the record of its file. Fields that a newer program writes are left out: its slice is done all the same.

        `units` gives the string of a unit's id that all of its records share, because there may be a million of them.
        """
        raw = json.loads(data)
        raw["unit_id"] = (units or {}).get(raw["unit_id"], raw["unit_id"])
        raw["sources"] = tuple(raw["sources"])
        raw["parts"] = tuple(
            Part(
                path=part["path"],
                size=part["size"],
                rows=part["rows"],
                raw_bytes=part["raw_bytes"],
                partition=partition_from_json(part["partition"]),
                units=(raw["unit_id"],),
                sources=raw["sources"] if part["sources"] == list(raw["sources"]) else tuple(part["sources"]),
            )
            for part in raw["parts"]
        )
        raw["dead_letters"] = tuple(raw["dead_letters"]) if raw["dead_letters"] else None
        raw["effort"] = Effort(**_known(Effort, raw["effort"]))
        raw["unread"] = unread_from_json(raw.get("unread", {}))
        return Record(**_known(Record, raw))


_RECORD_FIELDS = tuple(item.name for item in dataclasses.fields(Record))
_record_values = operator.attrgetter(*_RECORD_FIELDS)
_part_values = operator.attrgetter("path", "size", "rows", "raw_bytes", "partition", "sources")


class Records(Mapping[str, Sequence[Record]]):
    """The records of each unit, held as bytes and made anew whenever they are asked for.

    A run of a million slices holds the records of all until its version is committed. The objects of one take some 1.8 KiB,
    its bytes a fifth of that. To make it takes some 10 microseconds: whoever needs several things of all records takes them
    in one go.
    """

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}

    def add(self, unit_id: str, records: Iterable[Record]) -> None:
        """Hold these records of a unit, in this order, instead of any that it has."""
        self._packed[unit_id] = pickle.dumps([_pack(record) for record in records])

    def __getitem__(self, unit_id: str) -> list[Record]:
        return [_unpack(unit_id, values) for values in pickle.loads(self._packed[unit_id])]

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


def _pack(record: Record) -> tuple[Any, ...]:
    """The values of the fields alone, in order. The unit's id is known to who unpacks them."""
    values = dict(zip(_RECORD_FIELDS, _record_values(record), strict=True))
    values["parts"] = tuple(map(_part_values, record.parts))
    values["effort"] = _effort_values(record.effort)
    values["unread"] = record.unread or None
    return tuple(values.values())[1:]


def _unpack(unit_id: str, packed: tuple[Any, ...]) -> Record:
    values = dict(zip(_RECORD_FIELDS, (unit_id, *packed), strict=True))
    units = (unit_id,)
    values["parts"] = tuple(
        Part(
            path=path,
            size=size,
            rows=rows,
            raw_bytes=raw_bytes,
            partition=partition,
            units=units,
            sources=sources,
        )
        for path, size, rows, raw_bytes, partition, sources in values["parts"]
    )
    values["effort"] = Effort(**dict(zip(_EFFORT_FIELDS, values["effort"], strict=True)))
    values["unread"] = values["unread"] or {}
    return Record(**values)


def _known(kind: type[Record] | type[Effort], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the fields that this program knows."""
    return {item.name: raw[item.name] for item in dataclasses.fields(kind) if item.name in raw}


def unread_to_json(unread: Mapping[int, Unreadable]) -> dict[str, dict[str, Any]]:
    """The keys of JSON are strings."""
    return {str(source): dataclasses.asdict(item) for source, item in unread.items()}


def unread_from_json(raw: Mapping[str, Mapping[str, Any]]) -> dict[int, Unreadable]:
    return {int(source): Unreadable(**item) for source, item in raw.items()}


def create(table: Folder, record: Record) -> bool:
    """Write the record; False if another attempt's stands there already."""
    return table.create_once(layout.record(record.unit_id, record.first_row), record.to_json()) is None


def read_all(table: Folder, units: Iterable[str], *, writes: bool = True, chained: bool = True) -> Records:
    """Valid records of the given units, by first row. With `writes` a record that can't be read or whose parts are gone
    is deleted: it would block its slice for ever, and its rows are to be encoded again."""
    wanted = {unit: unit for unit in units}
    broken: list[str] = []
    found = Records()
    for unit, records in itertools.groupby(_read(table, wanted, broken), key=lambda record: record.unit_id):
        held = list(records)
        found.add(unit, chain(held) if chained else held)
    if writes:
        table.delete(broken)
    return found


def _read(table: Folder, wanted: Mapping[str, str], broken: list[str]) -> Iterator[Record]:
    """Valid records by path, which is by unit, then by first row; the paths of the others come into `broken`."""
    paths = table.gather(
        layout.RECORDS, lambda files: sorted(info.path for info in files if layout.staged_unit(info.path) in wanted)
    )
    if not paths:
        return
    # Listed after the records: parts are durable before their record, so none of a valid record can be missing.
    staged = table.gather(layout.STAGED_PARTS, lambda files: {info.path: info.size for info in files})
    for path, content in zip(paths, in_parallel(table.read, paths, READERS), strict=True):
        if content is None:
            continue
        try:
            record = Record.from_json(content, wanted)
        except (ValueError, KeyError, TypeError):
            broken.append(path)
            continue
        if all(staged.get(name) == size for name, size in record.staged):
            yield record
        else:
            broken.append(path)


def read_text_records(table: Folder, fingerprint: str, *, writes: bool = True) -> list[Record]:
    """Valid records of all texts that earlier runs encoded with this fingerprint and did not publish."""
    units = {layout.staged_unit(info.path) for info in table.list(layout.RECORDS)} - {None}
    found = read_all(table, {unit for unit in units if unit is not None}, writes=writes, chained=False)
    return [record for records in found.values() for record in records if record.texts_of == fingerprint]


def forget(table: Folder, units: Iterable[str]) -> None:
    """Delete what was staged for these units."""
    gone = set(units)
    staged = [info.path for info in table.list(layout.STAGING) if layout.staged_unit(info.path) in gone] if gone else []
    delete_staged(table, staged)


def delete_staged(table: Folder, paths: Collection[str]) -> None:
    """Records last: one whose parts are gone is invalid and gets deleted, parts without a record are orphans."""
    table.delete(path for path in paths if not path.startswith(layout.RECORDS))
    table.delete(path for path in paths if path.startswith(layout.RECORDS))


def chain(records: Sequence[Record]) -> list[Record]:
    """The records that count: in order, each beginning at or after the end of the one before. Overlaps come from attempts
    that were cut at other slice sizes; the one that begins first wins."""
    chosen: list[Record] = []
    for record in sorted(records, key=lambda record: record.first_row):
        if not chosen or record.first_row >= chosen[-1].stop_row:
            chosen.append(record)
    return chosen


def intervals(records: Sequence[Record]) -> tuple[tuple[int, int], ...]:
    """Rows [first, stop) that a chain covers."""
    return tuple((record.first_row, record.stop_row) for record in records)


def is_complete(records: Sequence[Record]) -> bool:
    """The chain covers the unit from its first row to its end."""
    position = 0
    for record in records:
        if record.first_row != position:
            return False
        position = record.stop_row
    return bool(records) and records[-1].last
