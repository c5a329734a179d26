"""The changed rows of a reindex become parts, and then a revision of the table.

`Changes` come in after every text that needed it was encoded. Tasks that write rows go out, and the `Revision` that
the table is to take.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.errors import RunError
from pipeline.execution.costs import SCAN_ROWS_PER_S
from pipeline.execution.executor import Executor
from pipeline.runs.prepared import Prepared
from pipeline.runs.row_changes import Changes
from pipeline.runs.row_vectors import live_places
from pipeline.stages.row_keys import GetTokenizer
from pipeline.stages.row_writer import UnitUpserts, WriteResult, WriteTask, upserts_of, with_version_numbers
from pipeline.stages.worker_spec import WorkerSpec
from pipeline.table import record, scan, snapshot
from pipeline.table.diff import Keys
from pipeline.table.operations.merge_rows import Revision
from pipeline.table.record import Effort, Record
from pipeline.table.scan import Gathering
from pipeline.table.snapshot import Tally

TASK_ROWS = 8192
"""A task writes at most so many rows."""
TASK_BYTES = 256 * 2**20
"""A task writes at most so many bytes of vectors."""


def all_staged(prepared: Prepared, changes: Changes) -> tuple[dict[bytes, str], list[Record]]:
    """Return (text -> staged file, the records of these files), after everything is encoded."""
    needed = changes.staged.keys() | {item for unit in changes.texts for item in unit.hashes or ()}
    if not needed:
        return {}, []
    found: dict[bytes, str] = {}
    records = []
    for item in record.read_text_records(prepared.table, prepared.vectors.fingerprint):
        own: set[bytes] = set()
        for part in item.parts:
            rows = snapshot.read_parquet(prepared.table.read(part.path))
            own = (set(rows.column("content_hash").to_pylist()) & needed) - found.keys()
            found |= dict.fromkeys(own, part.path)
        if own:
            records.append(item)
    if len(found) < len(needed):
        raise RunError(f"{len(needed) - len(found)} texts have no record after the run: start again to finish them")
    return found, records


def write_tasks(
    prepared: Prepared, executor: Executor, changes: Changes, staged: Mapping[bytes, str]
) -> list[WriteTask]:
    """Divide the rows to write into tasks. The vectors that the table has are first copied out of its parts."""
    gathered = _gather(prepared, executor, changes)
    stored = prepared.stored_vector_bytes
    most = max(1, min(TASK_ROWS, TASK_BYTES // stored))
    pieces: list[list[UnitUpserts]] = []
    room = 0
    for number in np.unique(changes.upserts["unit"]).tolist():
        rows = changes.upserts[changes.upserts["unit"] == number]
        for some in _by_document(rows, max(most, TASK_BYTES // stored)):
            if room < len(some):
                pieces.append([])
                room = most
            room -= len(some)
            pieces[-1].append(upserts_of(changes.units[number], number, changes.numbers[number], some))
    tasks = []
    for index, piece in enumerate(pieces):
        texts = {content.tobytes() for item in piece for content in item.upserts["content"]}
        files = {gathered[changes.places[text][0]] if text in changes.places else staged[text] for text in texts}
        tasks.append(
            WriteTask(
                units=tuple(piece),
                vectors=tuple(sorted(files)),
                output=f"{changes.publication.folder}rows/{index:06d}",
            )
        )
    return tasks


def _by_document(rows: Keys, most: int) -> Iterator[Keys]:
    """Yield groups of at most `most` rows. A group has more only if a single document does."""
    starts = np.flatnonzero(
        np.concatenate([[True], (rows[1:][["span", "position"]] != rows[:-1][["span", "position"]])])
    )
    begin = 0
    bounds = [*starts[1:].tolist(), len(rows)]
    for place, stop in enumerate(bounds):
        following = bounds[place + 1] if place + 1 < len(bounds) else None
        if following is None or following - begin > most:
            yield rows[begin:stop]
            begin = stop


def _gather(prepared: Prepared, executor: Executor, changes: Changes) -> dict[int, str]:
    """Map each part to a file with those of its vectors that other rows need."""
    rows_of: dict[int, set[int]] = {}
    for part, row in changes.places.values():
        rows_of.setdefault(part, set()).add(row)
    parent = prepared.parent
    jobs = [
        Gathering(
            part=parent.parts[part],
            rows=np.array(sorted(rows), np.int32),
            embedding=str(parent.embeddings[0]["column"]),
            output=changes.publication.staged("vectors", part),
        )
        for part, rows in sorted(rows_of.items())
    ]
    seconds = sum(job.part.rows for job in jobs) / SCAN_ROWS_PER_S
    list(executor.for_each(prepared, _gathered, jobs, seconds=seconds))
    return {part: job.output for part, job in zip(sorted(rows_of), jobs, strict=True)}


def _gathered(job: Gathering, spec: WorkerSpec, tokenizer: GetTokenizer) -> Iterator[str]:
    yield scan.gather(spec.open_table(), job)


def revision_of(
    prepared: Prepared, executor: Executor, changes: Changes, written: Sequence[WriteResult], records: Sequence[Record]
) -> Revision:
    lost_ids = np.concatenate([np.zeros((0, 2), np.uint64), *(item.lost_ids for item in written)])
    lost_places = live_places(prepared, executor, lost_ids)
    names = {row.tobytes() for row in lost_ids}
    stays = np.array([row.tobytes() not in names for row in changes.upserts["id"]], bool)
    upserts = changes.upserts[stays]
    lost: dict[int, Tally] = {}
    for item in written:
        for number, tally in item.lost.items():
            lost[number] = lost.get(number, Tally()) + tally
    read = [_less(known.tally, lost.get(place, Tally())) for place, known in enumerate(changes.known)]
    added = [
        (replace(unit, sources=numbers), own + unchanged.tally)
        for unit, numbers, own, unchanged in zip(
            changes.units, changes.numbers, read, changes.unchanged_spans, strict=True
        )
    ]
    return Revision(
        added=added,
        kept=changes.kept,
        unchanged=frozenset(number for spans in changes.unchanged_spans for number in spans.numbers),
        stale=changes.stale,
        moved=changes.moved,
        removed=np.unique(np.concatenate([changes.removed, lost_places])),
        deleted=np.unique(np.concatenate([changes.deletes, lost_places])),
        fresh=[part for item in written for part in item.parts],
        dead_letters=_dead_letters(prepared, changes, written),
        new=int((upserts["part"] < 0).sum()),
        changed=int((upserts["part"] >= 0).sum()),
        failed_new=sum(tally.failed for tally in read),
        effort=sum((item.effort for item in records), Effort()),
        bad_vectors=sum(item.bad_vectors for item in records),
        done=frozenset(item.unit_id for item in records) | {unit.unit_id for unit in changes.units},
    )


def _less(known: Tally, lost: Tally) -> Tally:
    """Subtract the documents that failed after all, which `lost` counts."""
    return Tally(
        rows=known.rows - lost.rows,
        documents=known.documents - lost.documents,
        failed=known.failed + lost.documents,
        skipped=known.skipped,
    )


def _dead_letters(prepared: Prepared, changes: Changes, written: Sequence[WriteResult]) -> Iterator[pa.Table]:
    for known, numbers in zip(changes.known, changes.numbers, strict=True):
        for path in known.dead_letters:
            yield with_version_numbers(snapshot.read_parquet(prepared.table.read(path)), numbers)
    for item in written:
        for path in item.dead_letters:
            yield snapshot.read_parquet(prepared.table.read(path))
