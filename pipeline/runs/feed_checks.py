"""A generation is looked back at: before it is shown, after a sync, and when a person asks."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.feeds import recall, verify
from pipeline.feeds.store import Marker
from pipeline.feeds.verify import Verification
from pipeline.runs.feed_changes import SAMPLE_ROWS, Written
from pipeline.runs.feed_opened import letters_of, reader_of, timed
from pipeline.runs.feed_plan import Feed
from pipeline.runs.feed_summary import FeedSummary
from pipeline.table.row_reader import RowReader

QUERIES = 64
QUERIES_WITHOUT_INDEX = 8
"""Each of these reads all rows, and only says that the store compares them as it should."""
DEEP_ROWS = 100_000
"""So many rows are read back when a person asks for it."""


def proven(found: Feed, marker: Marker) -> Verification:
    """Look at a generation before it is shown: all keys, some rows, and how good the index is."""
    reader = reader_of(found)
    refused = [one.id for one in letters_of(found, marker)]
    differences, rows, expected = verify.compare_keys(found.store, marker.generation, reader, refused)
    sample = list(verify.sampled(reader, found.shape, SAMPLE_ROWS, 0, refused))
    compared = verify.compare_rows(found.store, marker.generation, found.shape, sample, differences)
    measured = _recall(found, marker, reader, sample, refused)
    return Verification(
        generation=marker.generation,
        version=marker.applied,
        rows=rows,
        expected=expected,
        differences=differences,
        sampled=compared,
        recall=measured.share if measured else None,
        queries=measured.queries if measured else 0,
        index_faults=_faults(found, measured),
    )


def _recall(
    found: Feed, marker: Marker, reader: RowReader, sample: Sequence[pa.Table], refused: Sequence[str]
) -> recall.Recall | None:
    if not sample:
        return None
    queries = pa.concat_tables(sample).combine_chunks()
    most = QUERIES_WITHOUT_INDEX if found.spec.index.kind == "none" else QUERIES
    step = max(1, queries.num_rows // most)
    chosen = queries.take(pa.array(range(0, queries.num_rows, step)[:most]))
    return recall.measure(found.store, marker.generation, found.shape, reader, chosen, refused)


def _faults(found: Feed, measured: recall.Recall | None) -> tuple[str, ...]:
    least = found.spec.limits.min_recall
    if measured is None or measured.share >= least:
        return ()
    return (
        f"the index finds {measured.share:.3f} of the ten nearest rows, less than feeds.limits.min_recall ({least:g}); the "
        f"best row comes first for {measured.best:.0%} of {measured.queries} queries",
    )


def still_right(
    found: Feed, generation: str, reader: RowReader, written: Written, refused: Sequence[str]
) -> Verification:
    """Look at a generation after a sync: all keys, some of the rows that were written, and that what went is gone."""
    differences, rows, expected = verify.compare_keys(found.store, generation, reader, refused)
    compared = verify.compare_rows(found.store, generation, found.shape, written.sample, differences)
    back = found.store.get(generation, found.shape, written.gone) if written.gone else None
    if back is not None and back.num_rows:
        differences.extra += [name for name in back.column(schema.ID).to_pylist() if name not in differences.extra]
    return Verification(
        generation=generation,
        version=found.version.version,
        rows=rows,
        expected=expected,
        differences=differences,
        sampled=compared,
    )


def look_deep(found: Feed, marker: Marker, summary: FeedSummary, num_rows: int, seed: int) -> None:
    """Compare all keys, and so many rows with all that they hold."""
    with timed(summary, "verify"):
        reader = reader_of(found)
        letters = letters_of(found, marker)
        refused = [one.id for one in letters]
        differences, rows, expected = verify.compare_keys(found.store, marker.generation, reader, refused)
        sample = verify.sampled(reader, found.shape, num_rows, seed, refused)
        queries: list[pa.Table] = []
        chosen = np.random.default_rng(seed)
        total = max(1, min(num_rows, sum(part.rows for part in reader.version.parts)))

        def passed_on() -> Iterator[pa.Table]:
            for some in sample:
                # From all over the sample, and a few more than are asked.
                mask = chosen.random(some.num_rows) < 2 * QUERIES / total
                queries.append(some.filter(pa.array(mask)))
                yield some

        compared = verify.compare_rows(found.store, marker.generation, found.shape, passed_on(), differences)
        measured = _recall(found, marker, reader, queries, refused)
        summary.rejected = letters
        summary.read_bytes = reader.read_bytes
        summary.verification = Verification(
            generation=marker.generation,
            version=marker.applied,
            rows=rows,
            expected=expected,
            differences=differences,
            sampled=compared,
            recall=measured.share if measured else None,
            queries=measured.queries if measured else 0,
            index_faults=_faults(found, measured),
        )
