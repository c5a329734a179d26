"""Lakehouse tables for tests, and the rows that a source gives."""

import json
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyroaring import BitMap

from pipeline.config import LimitSpec, SourceSpec
from pipeline.sources.listing import Recorded, find_sources
from pipeline.sources.reader import SliceSpec, first_spans, read_slices
from pipeline.sources.survey import Survey, check_folders, survey
from pipeline.work import Slice, SourceFile, Unit


def spec_of(path: Path | str | tuple[str, ...], **options: Any) -> SourceSpec:
    path = path if isinstance(path, tuple) else str(path)
    return SourceSpec(**{"path": path, "id": "id", "text": "text", **options})


def surveyed(spec: SourceSpec, recorded: Recorded | None = None) -> tuple[tuple[SourceFile, ...], Survey]:
    files = find_sources(spec, recorded).files
    found = survey(files, spec)
    check_folders(found.folders, found.schema)
    return files, found


def slices(spec: SourceSpec) -> list[Slice]:
    _, found = surveyed(spec)
    groups = first_spans(found.spans, found.schema, spec, spec.keep, LimitSpec())
    units = [Unit(unit_id=str(n), spans=spans, sources=tuple(range(len(spans)))) for n, spans in enumerate(groups)]
    slicing = SliceSpec(source=spec, schema=found.schema, carried=spec.keep, limits=LimitSpec(), rows=100)
    return [piece for unit in units for piece in read_slices(unit, slicing)]


def rows_of(spec: SourceSpec) -> list[dict[str, Any]]:
    """The documents by id, without their places; there are no dead letters."""
    found = slices(spec)
    assert [letter for piece in found for letter in piece.dead_letters.to_pylist()] == []
    rows = [row for piece in found for row in piece.documents.to_pylist()]
    return sorted(({name: row[name] for name in ("id", "text", *spec.keep)} for row in rows), key=lambda row: row["id"])


def texts_of(spec: SourceSpec) -> dict[str, str]:
    return {row["id"]: row["text"] for row in rows_of(spec)}


def errors_of(spec: SourceSpec) -> list[str]:
    return [letter["error"] for piece in slices(spec) for letter in piece.dead_letters.to_pylist()]


def documents(*ids: int, text: str = "text of {}", **more: Any) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64()), "text": [text.format(id) for id in ids], **more})


def catalog_at(folder: Path) -> SqlCatalog:
    """A catalog in a file of the folder, whose tables are folders beside it, by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    catalog = SqlCatalog("tests", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    catalog.create_namespace_if_not_exists("lake")
    return catalog


def write_log(root: Path, version: int, *actions: Mapping[str, Any]) -> None:
    """A commit of a Delta log, as it is written."""
    (root / "_delta_log").mkdir(parents=True, exist_ok=True)
    (root / "_delta_log" / f"{version:020d}.json").write_text("\n".join(map(json.dumps, actions)))


def table_actions(
    fields: Sequence[Mapping[str, Any]], features: Sequence[str] = (), partitions: Sequence[str] = (), **settings: str
) -> list[Mapping[str, Any]]:
    """What a Delta log says of a table: its protocol and its columns."""
    protocol: dict[str, Any] = {"minReaderVersion": 3, "minWriterVersion": 7}
    schema = {"type": "struct", "fields": [{"nullable": True, "metadata": {}, **field} for field in fields]}
    described = {
        "id": str(uuid.uuid4()),
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps(schema),
        "partitionColumns": list(partitions),
        "configuration": settings,
        "createdTime": 1,
    }
    return [
        {"protocol": protocol | {"readerFeatures": list(features), "writerFeatures": list(features)}},
        {"metaData": described},
    ]


def add(root: Path, name: str, rows: pa.Table, **more: Any) -> Mapping[str, Any]:
    """Write a data file; the action that adds it to a Delta table."""
    pq.write_table(rows, root / name)
    size = (root / name).stat().st_size
    action = {"path": name, "size": size, "modificationTime": 1, "dataChange": True, "partitionValues": {}}
    return {"add": action | {"stats": json.dumps({"numRecords": rows.num_rows})} | more}


def vector(*rows: int) -> bytes:
    """A deletion vector between its size and its checksum."""
    keys = sorted({row >> 32 for row in rows})
    bitmaps = [(key, BitMap(row & 0xFFFFFFFF for row in rows if row >> 32 == key)) for key in keys]
    for _, bitmap in bitmaps:
        bitmap.run_optimize()
    parts = [np.int32(1681511377).tobytes(), np.uint64(len(keys)).tobytes()]
    parts += [np.uint32(key).tobytes() + bitmap.serialize() for key, bitmap in bitmaps]
    data = b"".join(parts)
    return len(data).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")


def with_deletes(table: Any, *deletes: Mapping[str, Any]) -> str:
    """Commit files that delete rows to an Iceberg table, as only other engines write them; returns the new metadata file.

    Each is what a manifest says of such a file; the catalog does not hear of it.
    """
    from pyiceberg.manifest import (
        DataFile,
        ManifestContent,
        ManifestEntry,
        ManifestEntryStatus,
        ManifestWriterV2,
        write_manifest_list,
    )
    from pyiceberg.typedef import Record

    class DeletesWriter(ManifestWriterV2):
        def content(self) -> ManifestContent:
            return ManifestContent.DELETES

        @property
        def _meta(self) -> dict[str, str]:
            return super()._meta | {"content": "deletes"}

    before, number = table.current_snapshot(), 10**18 + table.last_sequence_number
    folder = f"{table.location()}/metadata"
    output = table.io.new_output(f"{folder}/{number}-m0.avro")
    with DeletesWriter(table.spec(), table.schema(), output, number, "null") as writer:
        for each in deletes:
            file = DataFile.from_args(**{"partition": Record(), "record_count": 1} | each)
            file.spec_id = table.spec().spec_id
            status = ManifestEntryStatus.ADDED
            writer.add_entry(ManifestEntry.from_args(status=status, snapshot_id=number, data_file=file))
    sequence = table.last_sequence_number + 1
    listed = table.io.new_output(f"{folder}/snap-{number}.avro")
    with write_manifest_list(2, listed, number, before.snapshot_id, sequence, "null") as lists:
        lists.add_manifests([*before.manifests(table.io), writer.to_manifest_file()])
    raw = json.loads(table.metadata.model_dump_json())
    snapshot = {
        "snapshot-id": number,
        "parent-snapshot-id": before.snapshot_id,
        "sequence-number": sequence,
        "timestamp-ms": raw["last-updated-ms"],
        "manifest-list": listed.location,
        "summary": {"operation": "delete"},
        "schema-id": table.schema().schema_id,
    }
    raw["snapshots"].append(snapshot)
    raw |= {"current-snapshot-id": number, "last-sequence-number": sequence}
    raw["refs"]["main"]["snapshot-id"] = number
    place = f"{folder}/{10_000 + sequence:05d}-{uuid.uuid4()}.metadata.json"
    Path(place.removeprefix("file://")).write_text(json.dumps(raw))
    return place


def puffin(vectors: Mapping[str, bytes]) -> bytes:
    """A Puffin file with the deletion vectors of these data files."""
    content, blobs = b"PFA1", []
    for path, data in vectors.items():
        blob = {"type": "deletion-vector-v1", "fields": [], "snapshot-id": -1, "sequence-number": -1}
        blobs.append(blob | {"offset": len(content), "length": len(data), "properties": {"referenced-data-file": path}})
        content += data
    footer = json.dumps({"blobs": blobs}).encode()
    return content + b"PFA1" + footer + len(footer).to_bytes(4, "little") + bytes(4) + b"PFA1"
