"""For how long a reader of `data/` sees neither the old version nor the new one, on a disk and on S3 servers here.

    python -m benchmarks.window [--parts 10] [--megabytes 32] [--changed 1 10]

A table of some parts; a version replaces some of them. Before its commit readers of the folder see the old version. From
the commit on the new parts are copied into `data/`, then the old ones leave it. Another process lists the folder all the
while and tells when it first saw a part of the new version, and when the last of the old was gone; in between rows may be
there twice, or a file that was listed may be gone when it is read. No row may be missing from both: it is checked.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import identity
from pipeline.storage import Folder
from pipeline.table import layout, materialise, record, snapshot
from pipeline.table.operations import replace_units
from pipeline.table.part import Part, encode_part, part_schema
from pipeline.table.publication import Publication
from pipeline.table.record import Effort, Record
from pipeline.work import Unit
from tests.servers import moto_server, rclone_server
from tests.table.test_publish import commit, make_unit

DIM = 384
SCHEMA = part_schema(pa.schema([]), True, "embedding", DIM, "float32")
ROW_BYTES = 4 * DIM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=32, help="of a part")
    parser.add_argument("--changed", type=int, nargs="*", default=[1, 10])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for changed in arguments.changed:
            measure("disk", Folder(str(root / f"disk-{changed}")), arguments.parts, changed, arguments.megabytes)
        (root / "store").mkdir()
        with rclone_server(root / "store") as rclone, moto_server() as moto:
            for server in (rclone, moto):
                bucket = server.make_bucket("window")
                for changed in arguments.changed:
                    table = Folder(f"{bucket}/{changed}", server.storage_options)
                    measure(server.name, table, arguments.parts, changed, arguments.megabytes)


def measure(place: str, table: Folder, parts: int, changed: int, megabytes: int) -> None:
    rows = megabytes * 2**20 // ROW_BYTES
    old = [make_unit(f"old {number}", number) for number in range(parts)]
    first = publish(
        table, snapshot.empty(), [(unit, stage(table, unit, number, rows)) for number, unit in enumerate(old)]
    )
    first = materialise.materialise(table, first)
    fresh = [make_unit(f"new {number}", parts + number) for number in range(changed)]
    staged = [(unit, stage(table, unit, number, rows)) for number, unit in enumerate(fresh)]
    here, there = multiprocessing.Pipe()
    reader = multiprocessing.get_context("spawn").Process(target=watch, args=(table, there))
    reader.start()
    here.recv()
    version = publish(table, first, staged, kept=frozenset(unit.unit_id for unit in old[changed:]))
    committed = time.time()
    materialise.materialise(table, version)
    done = time.time()
    time.sleep(0.2)
    here.send(None)
    seen: list[tuple[float, frozenset[str]]] = here.recv()
    reader.join()
    before, after = (frozenset(part.path for part in found.parts) for found in (first, snapshot.current(table)))
    for moment, names in seen:
        assert moment > committed or names == before, "a new part before the commit"
        assert names >= before or names >= after, "a row is missing from both"
    mixed = [moment for moment, names in seen if names not in (before, after)]
    window = max(mixed) - min(mixed) if mixed else 0.0
    print(
        f"{place:7} {changed:3} of {parts} parts of {megabytes} MiB: {window:6.2f} s mixed, {done - committed:6.2f} s from "
        f"the commit to the end, {len(seen) / (seen[-1][0] - seen[0][0]):4.0f} looks a second",
        flush=True,
    )


def watch(table: Folder, told: Connection) -> None:
    """Look at data/ again and again until told to stop."""
    names_of(table)
    told.send(None)
    seen: list[tuple[float, frozenset[str]]] = []
    while not told.poll():
        seen.append((time.time(), names_of(table)))
        time.sleep(0.001)
    told.send(seen)


def names_of(table: Folder) -> frozenset[str]:
    """On a disk names alone, which is one look; sizes would be looked up one by one, and some be gone by then."""
    if table.is_local:
        return frozenset(f"{layout.DATA}{name}" for name in os.listdir(f"{table.url}/{layout.DATA}") if name[0] != ".")
    return frozenset(info.path for info in table.list(layout.DATA))


def publish(
    table: Folder,
    parent: snapshot.Snapshot,
    done: Sequence[tuple[Unit, Sequence[Record]]],
    kept: frozenset[str] = frozenset(),
) -> snapshot.Snapshot:
    return commit(Publication(table, parent), replace_units.Work(done=done, kept=kept))


def stage(table: Folder, unit: Unit, number: int, rows: int) -> list[Record]:
    """A recorded unit of one part, whose rows have ids by `number`."""
    texts = pa.array([f"text {row} of {unit.unit_id}" for row in range(rows)], pa.large_string())
    vectors = np.random.default_rng(number).standard_normal(rows * DIM, np.float32)
    (source,) = unit.sources
    group = pa.table(
        [
            pa.array([f"{number}-{row}" for row in range(rows)], pa.string()),
            texts,
            pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=SCHEMA.field("embedding").type),
            identity.content_hashes(texts, ""),
            pa.array([0] * rows, SCHEMA.field("row_hash").type),
            pa.array([source] * rows, pa.int32()),
            pa.array([3] * rows, pa.int32()),
            pa.array([False] * rows),
        ],
        schema=SCHEMA,
    )
    path, content = layout.staged_part(unit.unit_id, 0, "x", 0), encode_part(group, "embedding")
    table.write(path, content)
    part = Part(
        path=path, size=content.size, rows=rows, raw_bytes=group.nbytes, partition=(), units=(unit.unit_id,), sources=(source,)
    )  # fmt: skip
    made = Record(
        unit_id=unit.unit_id, first_row=0, num_rows=rows, documents=rows, failed=0, skipped=0, broken=False, last=True,
        sources=(source,), parts=(part,), dead_letters=None, bad_vectors=0, effort=Effort(), attempt="x",
    )  # fmt: skip
    record.create(table, made)
    return [made]


if __name__ == "__main__":
    main()
