"""The changes between two versions are given to a store: deletes, and the rows as they are now.

They come from the lists of changes or, where these are not complete, from a comparison of all keys. Only row groups in
which a changed row stands are read.
"""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from pipeline import progress, schema
from pipeline.feeds import verify
from pipeline.feeds.load import Pace
from pipeline.feeds.shape import columns_of, shaped
from pipeline.feeds.store import Delta, Rejection, matrix
from pipeline.feeds.unit_rows import without_unfit
from pipeline.feeds.verify import Differences
from pipeline.runs.feed_plan import Feed, Sync
from pipeline.table.changed_rows import check_found
from pipeline.table.net_changes import net_changes, split
from pipeline.table.row_reader import RowReader

SAMPLE_ROWS = 256
"""So many of the rows that were written are kept, to be read back."""
SYNC_BYTES = 16 * 2**20
"""A sync holds so many bytes of vectors at once."""


class Written:
    """It keeps some of what a sync wrote, for the look back."""

    def __init__(self) -> None:
        self.sent = self.deleted = self.bytes = 0
        self.known: set[str] = set()
        """They are ids that the store refused before, and that were written or deleted now."""
        self.sample: list[pa.Table] = []
        self.gone: list[str] = []


class Changes:
    """They lead a generation from what was applied to the version that is wanted."""

    def __init__(self, found: Feed, reader: RowReader, decided: Sync, excluded: Sequence[str]) -> None:
        self._found, self._reader, self._decided = found, reader, decided
        self._excluded = frozenset(excluded)
        self._compared: Differences | None = None
        self._pace = Pace(found.spec.limits.rate)

    def ids(self) -> Iterator[tuple[pa.Array, pa.Array]]:
        """Yield (ids to send, ids to delete), some at a time; each id comes once."""
        found, marker = self._found, self._decided.marker
        if self._decided.compare:
            if self._compared is None:
                self._compared, _, _ = verify.compare_keys(found.store, marker.generation, self._reader)
            # One of two copies may be the right one: both go, before the row is sent again.
            yield pa.array([], pa.string()), pa.array(self._compared.duplicate, pa.string())
            yield pa.array(self._compared.to_send, pa.string()), pa.array(self._compared.extra, pa.string())
            return
        for changed in net_changes(found.table, marker.applied, found.version):
            upserts, gone = split(changed)
            yield upserts.column(schema.ID).combine_chunks(), gone

    def apply(self, delta: Delta, written: Written, alive: Callable[[], None]) -> list[Rejection]:
        """Give all changes to the delta. Return the rows that the store refuses, which are deleted there. `alive` raises
        if another feed took over."""
        refused: list[Rejection] = []
        for upserts, gone in self.ids():
            if len(gone):
                delta.delete(gone)
                written.deleted += len(gone)
                written.known |= self._excluded.intersection(gone.to_pylist())
                if not self._decided.compare:
                    written.gone += gone.slice(0, SAMPLE_ROWS - len(written.gone)).to_pylist()
            sent = 0
            for rows in self.rows(upserts):
                alive()
                sent += rows.num_rows
                refused += self.upsert(delta, rows, written)
            check_found(self._found.table, self._found.version, len(upserts), sent)
        return refused

    def rows(self, ids: pa.Array) -> Iterator[pa.Table]:
        """Yield the rows as the shape has them, several batches together."""
        found = self._found
        width = found.shape.vector.list_size * found.shape.vector.value_type.bit_width // 8
        most, held, rows = max(1, SYNC_BYTES // max(1, width)), list[pa.Table](), 0
        limits = found.spec.limits
        if not isinstance(limits.rate, str):
            # A server ends a transaction in which nothing happens for as long as the lease.
            most = max(1, min(most, int(limits.rate * limits.lease_s / 10)))
        columns = columns_of(found.shape, vectors=True)
        for some in self._reader.with_ids(ids, columns, newer_than=self._decided.marker.applied):
            held.append(shaped(some, found.shape))
            rows += some.num_rows
            if rows >= most:
                yield from _slices(pa.concat_tables(held), most)
                held, rows = [], 0
        if held:
            yield from _slices(pa.concat_tables(held), most)

    def upsert(self, delta: Delta, rows: pa.Table, written: Written) -> list[Rejection]:
        fit, refused = without_unfit(self._found.store, rows, self._found.shape)
        self._pace.wait(fit.num_rows)
        if fit.num_rows:
            refused += delta.upsert(fit)
        if refused:  # What the store held under their ids is not the table's any more.
            delta.delete(pa.array([one.id for one in refused], pa.string()))
        written.known |= self._excluded.intersection(rows.column(schema.ID).to_pylist())
        written.sent += rows.num_rows - len(refused)
        progress.current().encoded(rows.num_rows, 0)
        written.bytes += matrix(fit, self._found.shape).nbytes
        room = SAMPLE_ROWS - sum(some.num_rows for some in written.sample)
        if room > 0:
            bad = {one.id for one in refused}
            good = rows.filter(pa.array([name not in bad for name in rows.column(schema.ID).to_pylist()]))
            written.sample.append(good.slice(0, room))
        return refused


def _slices(rows: pa.Table, most: int) -> Iterator[pa.Table]:
    return (rows.slice(start, most) for start in range(0, rows.num_rows, most))
