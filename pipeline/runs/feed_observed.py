"""A feed that is told says how far its store is behind the table, and what was sent.

An open feed and its summary come in, and facts go to whoever listens to the run, under the feed's name. They bear the names
of their metrics.
"""

import contextlib
from collections.abc import Iterator

from pipeline import progress
from pipeline.config import RunSpec
from pipeline.errors import PipelineError, TableBusy
from pipeline.feeds.store import Generation
from pipeline.runs.feed_opened import generations_of
from pipeline.runs.feed_plan import Feed
from pipeline.runs.feed_summary import FeedSummary
from pipeline.table import snapshot


@contextlib.contextmanager
def observed_feed(spec: RunSpec, found: Feed, summary: FeedSummary) -> Iterator[None]:
    """Tell where the store is before the block and after it, and how the block ended."""
    if not spec.metrics.wanted:
        yield
        return
    _tell(found.name, _state(found, _applied(found.live)))
    try:
        yield
    except TableBusy:
        raise
    except PipelineError as error:
        _tell(found.name, {"feed_exit_code": error.exit_code})
        raise
    live = next((one for one in generations_of(found.store, found.spec) if one.live), None)
    done = {
        "feed_rows_sent_total": summary.sent,
        "feed_rows_deleted_total": summary.deleted,
        "feed_rows_refused": len(summary.rejected),
        "feed_exit_code": summary.exit_code,
    }
    _tell(found.name, _state(found, _applied(live)) | done)


def _tell(feed: str, facts: dict[str, int]) -> None:
    run = progress.current()
    feeds = run.facts.get("feeds", {})
    run.know(feeds=feeds | {feed: feeds.get(feed, {}) | facts})


def _applied(live: Generation | None) -> int:
    return live.marker.applied if live is not None and live.marker is not None else 0


def _state(found: Feed, applied: int) -> dict[str, int]:
    """Return the version that the store shows, and how many changes it lacks at most, for a row may change twice."""
    current = snapshot.current(found.table)
    progress.current().know(version=current.version, table_rows=current.counts.rows)
    behind = 0
    for version in range(applied + 1, current.version + 1) if applied else ():
        counts = snapshot.read_alone(found.table, version).counts
        behind += counts.new + counts.changed + counts.deleted
    return {"feed_table_version": applied, "feed_rows_behind": behind if applied else current.counts.rows}
