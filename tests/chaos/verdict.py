"""What must hold of a table after a kill, whatever was killed and when; where it doesn't, the differences in words."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pipeline
from pipeline.config import load
from pipeline.errors import PipelineError
from tests.chaos.job import BOUND, Job
from tests.inline import vectors_of

TOLERANCE = 1e-6
"""Of a number of a vector: a slice that goes on after a kill may be batched otherwise."""


def faults(job: Job, expected: pa.Table) -> list[str]:
    """Empty if all holds: the rows, what lies in data/ and staging/, the snapshot, and that nothing is left to do."""
    try:
        rows = job.rows()
    except (OSError, pa.ArrowException, IndexError, KeyError) as error:
        return [f"the table can't be read: {type(error).__name__}: {error}"]
    return [
        *other_rows(rows, expected),
        *_other_files(job.table),
        *_other_snapshot(job.table, expected.num_rows),
        *_work_left(job),
    ]


def cost_fault(twice: int) -> list[str]:
    """Of the rows that were encoded more often than once."""
    if 0 <= twice <= BOUND:
        return []
    return [f"{twice} rows encoded twice, from 0 to {BOUND} may be"]


def difference(rows: pa.Table, expected: pa.Table) -> float:
    """The largest between numbers of the vectors of the same rows."""
    return float(np.abs(vectors_of(rows) - vectors_of(expected)).max(initial=0))


def other_rows(rows: pa.Table, expected: pa.Table) -> Iterator[str]:
    ids = rows["id"].to_pylist()
    if len(set(ids)) < len(ids):
        yield f"{len(ids) - len(set(ids))} rows of data/ have an id that another has"
    if rows.schema != expected.schema:
        yield f"other columns: {rows.schema} instead of {expected.schema}"
        return
    if ids != expected["id"].to_pylist():
        wanted = set(expected["id"].to_pylist())
        yield f"{len(ids)} rows instead of {len(wanted)}: {len(wanted - set(ids))} missing, {len(set(ids) - wanted)} more"
        return
    for name in rows.column_names:
        if name != "embedding" and not rows[name].equals(expected[name]):
            pairs = zip(rows[name].to_pylist(), expected[name].to_pylist(), strict=True)
            yield f"{sum(one != other for one, other in pairs)} rows have another {name}"
    apart = difference(rows, expected)
    if not apart <= TOLERANCE:
        yield f"a number of a vector differs by {apart:.1e}, up to {TOLERANCE:.0e} may be"


def _other_files(table: Path) -> Iterator[str]:
    lists = sorted((table / "meta" / "parts").glob("*.parquet"))
    live = set(pq.read_table(lists[-1], columns=["path"])["path"].to_pylist())
    found = {str(path.relative_to(table)) for path in (table / "data").rglob("*") if path.is_file()}
    for path in sorted(found - live):
        yield f"{path} is no part of the version"
    for path in sorted(live - found):
        yield f"{path} of the version is missing"
    records = list((table / "staging" / "records").rglob("*.json"))
    if records:
        yield f"{len(records)} records are left in staging"


def _other_snapshot(table: Path, num_rows: int) -> Iterator[str]:
    names = sorted(path.name for path in (table / "meta" / "versions").iterdir())
    if names != ["000001.done", "000001.json"]:
        yield f"meta/versions/ holds {names} instead of one version that is done"
        return
    counts = json.loads((table / "meta" / "versions" / "000001.json").read_text())["counts"]
    told = {name: counts[name] for name in ("rows", "new", "failed")}
    if told != {"rows": num_rows, "new": num_rows, "failed": 0}:
        yield f"the snapshot counts {told} where all of {num_rows} rows are new"


def _work_left(job: Job) -> Iterator[str]:
    try:
        planned = pipeline.plan(load(job.config))
    except PipelineError as error:
        yield f"another plan fails: {error}"
        return
    if planned.changes_pending:
        yield f"another run would not find nothing to do: {planned}"
